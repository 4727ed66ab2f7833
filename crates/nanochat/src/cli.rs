//! Commands and the flags that all of them share.

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nanochat_compute::Backend;
use nanochat_compute::cpu::simd::{Kernels, Simd};
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::cuda::{self, Cuda};
use nanochat_compute::ops::WeightFormat;

use crate::cmd;

/// A small ChatGPT, end to end, in one binary.
#[derive(Parser)]
#[command(name = "nanochat", version, about, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Where to run; `auto` takes the fastest device that is there.
    #[arg(long, global = true, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// CPU threads; 0 takes all that the process may use.
    #[arg(long, global = true, default_value_t = 0)]
    pub threads: usize,
    /// How matrix products multiply; `auto` takes bf16 where the CPU is faster at it.
    #[arg(long, global = true, value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
    /// Instructions that the CPU's kernels use; `auto` takes the fastest that it has.
    #[arg(long, global = true, value_enum, default_value_t = SimdChoice::Auto)]
    pub simd: SimdChoice,
    /// Seed of everything that is drawn.
    #[arg(long, global = true, default_value_t = 42)]
    pub seed: u64,
    /// End standard output with one compact JSON object.
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// The flags that give another process the same.
    pub fn arguments(&self) -> Vec<String> {
        let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
            value().map_or_else(|| "auto".into(), |v| v.get_name().to_owned())
        };
        vec![
            format!("--device={}", name(&|| self.device.to_possible_value())),
            format!("--threads={}", self.threads),
            format!("--dtype={}", name(&|| self.dtype.to_possible_value())),
            format!("--simd={}", name(&|| self.simd.to_possible_value())),
            format!("--seed={}", self.seed),
        ]
    }

    fn precision(&self) -> Precision {
        match self.dtype {
            Dtype::Auto => Precision::Auto,
            Dtype::F32 => Precision::F32,
            Dtype::Bf16 => Precision::Bf16,
        }
    }

    /// Opens the device. Errors: it is not there; the machine lacks the instructions of `--simd`.
    pub fn backend(&self) -> Result<Box<dyn Backend>> {
        match self.gpu()? {
            Some(gpu) => Ok(Box::new(gpu)),
            None => Ok(Box::new(self.cpu()?)),
        }
    }

    /// The GPU where the flags choose it: always with `--device cuda`; with `auto` when there is one,
    /// and nothing was said that only the CPU knows.
    pub fn gpu(&self) -> Result<Option<Cuda>> {
        self.gpu_of(0)
    }

    /// As [`Global::gpu`], of several GPUs this one.
    pub fn gpu_of(&self, index: usize) -> Result<Option<Cuda>> {
        match self.device {
            Device::Cpu => Ok(None),
            Device::Cuda => Ok(Some(Cuda::open(index, self.precision())?)),
            Device::Auto if self.simd != SimdChoice::Auto || self.threads != 0 => Ok(None),
            Device::Auto if !cuda::gpus().is_ok_and(|gpus| !gpus.is_empty()) => Ok(None),
            Device::Auto => match Cuda::open(index, self.precision()) {
                Ok(gpu) => Ok(Some(gpu)),
                Err(e) => {
                    eprintln!("warning: there is a GPU, but the CPU is used: {e}");
                    Ok(None)
                }
            },
        }
    }

    /// Threads of the CPU that the flags give.
    pub fn threads_given(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.threads == 0 { all() } else { self.threads }
    }

    /// For what only the CPU does. Errors: the flags ask for a GPU.
    pub fn expect_cpu(&self, what: &str) -> Result<()> {
        if self.device == Device::Cuda {
            bail!("{what} is for the CPU: leave --device cuda out");
        }
        Ok(())
    }

    /// Opens the CPU, whatever the device: for what only it can do. Errors: the machine lacks the
    /// instructions of `--simd`.
    pub fn cpu(&self) -> Result<Cpu> {
        let precision = self.precision();
        let Some(simd) = self.simd.family() else {
            return Ok(Cpu::open(self.threads, precision));
        };
        let Some(kernels) = Kernels::new(simd) else {
            let have: Vec<String> = Simd::available().iter().map(Simd::to_string).collect();
            bail!("this CPU has no {simd}: leave --simd out, or choose of {}", have.join(", "));
        };
        Ok(Cpu::with(kernels, self.threads, precision))
    }
}

/// Devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The fastest that is there.
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU (CUDA_VISIBLE_DEVICES says which ones there are).
    Cuda,
}

/// Families of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimdChoice {
    /// The fastest that the CPU has.
    Auto,
    /// Tile registers (Intel servers since 2023).
    Amx,
    /// AVX-512 with products of bf16 pairs.
    Avx512Bf16,
    /// AVX-512.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// Plain code.
    Portable,
}

impl SimdChoice {
    fn family(self) -> Option<Simd> {
        match self {
            SimdChoice::Auto => None,
            SimdChoice::Amx => Some(Simd::Amx),
            SimdChoice::Avx512Bf16 => Some(Simd::Avx512Bf16),
            SimdChoice::Avx512 => Some(Simd::Avx512),
            SimdChoice::Avx2 => Some(Simd::Avx2),
            SimdChoice::Portable => Some(Simd::Portable),
        }
    }
}

/// How matrix products multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// bf16 where the CPU is faster at it, else f32.
    Auto,
    /// 32-bit floats.
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
}

/// In what form weights are read when a model generates or is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// bf16 where products round to bf16 anyway and that is faster, else f32: never other results.
    #[default]
    Auto,
    /// As they lie in memory: 4 bytes a weight.
    F32,
    /// Rounded to bf16: 2 bytes a weight.
    Bf16,
    /// Integers with a scale for each output channel: 1 byte a weight; the fastest at few rows.
    Int8,
}

impl Weights {
    /// What the model is told.
    pub fn format(self) -> WeightFormat {
        match self {
            Weights::Auto => WeightFormat::Auto,
            Weights::F32 => WeightFormat::F32,
            Weights::Bf16 => WeightFormat::Bf16,
            Weights::Int8 => WeightFormat::Int8,
        }
    }
}

/// Commands.
#[derive(Subcommand)]
pub enum Command {
    /// The whole pipeline: tokenizer, pretraining, finetuning, evaluation, report, a sample chat.
    Speedrun(Box<cmd::speedrun::SpeedrunArgs>),
    /// Talk to a model in the terminal.
    Chat(cmd::chat::ChatArgs),
    /// Answer over HTTP: the chat page in a browser, and OpenAI's API.
    Serve(Box<cmd::serve::ServeArgs>),
    /// Train a base model, or finetune one on conversations.
    #[command(subcommand)]
    Train(cmd::train::TrainCommand),
    /// Start a command as several ranks on this machine.
    Launch(cmd::launch::LaunchArgs),
    /// Measure a model: bits per byte, held-out questions, per-token losses.
    #[command(subcommand)]
    Eval(cmd::eval::EvalCommand),
    /// Learn, use and export a tokenizer.
    #[command(subcommand)]
    Tokenizer(cmd::tokenizer::TokenizerCommand),
    /// Fetch and look at data.
    #[command(subcommand)]
    Data(cmd::data::DataCommand),
    /// Time the parts on this machine.
    #[command(subcommand)]
    Bench(cmd::bench::BenchCommand),
    /// Check the four optimizations by what they do.
    Verify(cmd::verify::VerifyArgs),
    /// Write a run's report.md and report.html.
    #[command(subcommand)]
    Report(cmd::report::ReportCommand),
    /// Turn a Hugging Face folder or upstream's safetensors into a checkpoint.
    Import(cmd::import::ImportArgs),
    /// Run Python that a model wrote, where it can do no harm.
    #[command(subcommand)]
    Sandbox(cmd::sandbox::SandboxCommand),
    /// Say what this machine offers: CPU, memory, GPUs and their libraries.
    Doctor,
    /// Look at checkpoints: list, verify, compare, prune.
    #[command(subcommand)]
    Checkpoint(cmd::checkpoint::CheckpointCommand),
}
