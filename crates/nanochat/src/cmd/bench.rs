//! `nanochat bench`: how fast the parts run on this machine. Standard output ends with one JSON object.

mod batch_size;
mod child;
mod gpu;
pub mod infer;
pub mod model;
mod ops;
mod quick;
mod scaling;
mod serve;
pub mod sft;
mod start;
mod step;
mod streams;
mod sweep;
pub mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::Global;
pub use batch_size::BatchBench;
use infer::InferBench;
use model::ModelFlags;
use ops::OpsBench;
use quick::QuickBench;
use scaling::ScalingBench;
use serve::ServeBench;
use sft::SftBench;
use start::StartBench;
use streams::StreamsBench;

/// What to time.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Training steps of a model on random tokens, with a breakdown by operation.
    Train(TrainBench),
    /// Products, attention and every other operation beside the machine's own limits.
    Ops(OpsBench),
    /// Tokenizer: training, encoding, decoding.
    Tokenizer(TokenizerBench),
    /// The automatic batch size: choice, memory as predicted and measured, every batch's speed.
    BatchSize(BatchBench),
    /// Generation with a KV cache and without one, over batch sizes.
    Infer(InferBench),
    /// Generation of many streams together, as a server does it, and what a known prompt saves.
    Streams(StreamsBench),
    /// A server under load: requests and tokens a second, first token and next ones, over clients.
    Serve(ServeBench),
    /// The finetuning step in all its ways, on the same conversations.
    Sft(SftBench),
    /// The time from the command line to the first word of an answer, and what it goes into.
    Start(StartBench),
    /// The four optimizations on this machine, in minutes.
    Quick(QuickBench),
    /// What a step would take on many devices, predicted from one device's and the links.
    Scaling(ScalingBench),
    /// What the GPU can do at most, and what share of it each kernel reaches.
    Gpu(GpuBench),
}

/// Flags of `bench gpu`.
#[derive(Args, Clone, Debug)]
pub struct GpuBench {
    /// Every kernel once at small sizes: for a checker that slows everything down.
    #[arg(long)]
    pub small: bool,
}

/// Flags of `bench train`.
#[derive(Args, Clone, Debug)]
pub struct TrainBench {
    /// What is trained.
    #[command(flatten)]
    pub model: ModelFlags,
    /// Rows of a micro batch.
    #[arg(long, default_value_t = 32)]
    pub device_batch_size: usize,
    /// Tokens of a step; 0: one micro batch.
    #[arg(long, default_value_t = 0)]
    pub total_batch_size: usize,
    /// Steps timed, after one that is not.
    #[arg(long, default_value_t = 3)]
    pub steps: u64,
}

/// Flags of `bench tokenizer`.
#[derive(Args, Clone, Debug)]
pub struct TokenizerBench {
    /// Files or folders of text; none: the embedded starter corpus.
    #[arg(long, num_args = 1..)]
    pub data: Vec<std::path::PathBuf>,
    /// Bytes of text; the data is repeated to reach it.
    #[arg(long, default_value_t = 100_000_000)]
    pub bytes: usize,
    /// V.
    #[arg(long, default_value_t = 32768)]
    pub vocab_size: usize,
}

/// Runs the command.
pub fn run(command: &BenchCommand, global: &Global) -> Result<()> {
    match command {
        BenchCommand::Train(args) => train::run(args, global),
        BenchCommand::Ops(args) => {
            global.expect_cpu("bench ops (bench gpu is its like)")?;
            ops::run(args, global)
        }
        BenchCommand::Tokenizer(args) => tokenizer(args, global),
        BenchCommand::BatchSize(args) => batch_size::run(args, global),
        BenchCommand::Infer(args) => infer::run(args, global),
        BenchCommand::Streams(args) => streams::run(args, global),
        BenchCommand::Serve(args) => serve::run(args, global),
        BenchCommand::Sft(args) => {
            global.expect_cpu("bench sft, which compares with an eager step of the CPU,")?;
            sft::run(args, global)
        }
        BenchCommand::Start(args) => start::run(args, global),
        BenchCommand::Quick(args) => {
            global.expect_cpu("bench quick, which compares with an eager step of the CPU,")?;
            quick::run(args, global)
        }
        BenchCommand::Scaling(args) => scaling::run(args),
        BenchCommand::Gpu(args) => gpu::run(args, global),
    }
}

fn tokenizer(args: &TokenizerBench, global: &Global) -> Result<()> {
    let mut docs: Vec<String> = if args.data.is_empty() {
        nanochat_data::starter::Starter::new(global.seed).documents(20_000).collect()
    } else {
        let policy = nanochat_data::Policy::default();
        let set = nanochat_data::Dataset::open(&args.data, &policy)?;
        set.pass().collect::<std::result::Result<_, _>>()?
    };
    let once: usize = docs.iter().map(String::len).sum();
    anyhow::ensure!(once > 0, "the data holds no text");
    let n = docs.len();
    let mut bytes = once;
    for i in 0.. {
        if bytes >= args.bytes {
            break;
        }
        bytes += docs[i % n].len();
        docs.push(docs[i % n].clone());
    }
    let threads = global.threads_given();
    let report = nanochat_tokenizer::bench::run(&docs, args.vocab_size, threads)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
