//! `nanochat bench start`: from typing `nanochat chat -p hi` to the first byte of the answer, and where
//! that time goes.
//!
//! The whole is measured from outside, in a process of its own that is started anew each time: what a
//! person waits for. The parts are measured inside this one, a round of them after each process. The
//! files are in the system's page cache after the first round, which does not count.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nanochat_engine::{ChatOptions, Event, Session};
use nanochat_gpt::checkpoint;
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::nano::decode::NanoDecoder;
use serde::Serialize;
use serde_json::{Value, json};

use super::child::median;
use crate::cli::Global;
use crate::figures::{parameters, size};
use crate::machine::{self, Machine};
use crate::run_dir::RunDir;

/// Flags of `bench start`.
#[derive(Args, Clone, Debug)]
pub struct StartBench {
    /// The run that is talked to (default: the one that changed last).
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// What is said.
    #[arg(long, default_value = "hi", value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: String,
    /// Processes that are timed, after one that is not.
    #[arg(long, default_value_t = 9)]
    pub runs: usize,
}

/// Tokens of an answer: enough that the process can still be looked at when the first is there.
const TOKENS: usize = 32;

/// What one process took.
struct Whole {
    ttft_ms: f64,
    memory: Memory,
}

/// Bytes of a process when its first word is there; 0 where the system does not say.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Memory {
    /// Its own.
    own: u64,
    /// Pages of files, which all processes share and the system may take back.
    files: u64,
}

/// Runs the command.
pub fn run(args: &StartBench, global: &Global) -> Result<()> {
    ensure!(args.runs > 0, "--runs is 0: give 1 or more");
    let run = RunDir::find(args.model.as_deref())?;
    let models = run.model_dir(None);
    let machine = Machine::here(global)?;
    let (step, _) = checkpoint::latest_once(&models)
        .context("train a model first (\"nanochat speedrun\"), or give another --model")?;
    let config = checkpoint::meta(&step)?.model_config;
    let n = ParamCount::of(&config).total;
    println!("nanochat bench start: chat -p {:?}", args.prompt);
    println!("machine   {}, {}", machine.cpu, machine.backend);
    println!(
        "model     d{}, {} parameters, {}",
        config.n_layer,
        parameters(n as u64),
        step.display()
    );
    let hashed_ms = timed(|| checkpoint::verify(&step))?.1;
    let (mut wholes, mut parts) = (Vec::new(), Vec::new());
    let mut is_mapped = false;
    for round in 0..=args.runs {
        let whole = process(run.root(), &args.prompt, global)?;
        let (times, mapped) = inside(&run, &args.prompt, global)?;
        if round > 0 {
            wholes.push(whole);
            parts.push(times);
        }
        is_mapped = mapped;
    }
    let ttft: Vec<f64> = wholes.iter().map(|w| w.ttft_ms).collect();
    let (least, most) = (
        ttft.iter().copied().fold(f64::INFINITY, f64::min),
        ttft.iter().copied().fold(0.0, f64::max),
    );
    let memory = wholes.last().map(|w| w.memory).unwrap_or_default();
    let ttft = median(ttft);
    println!("\nfirst byte after {ttft:.1} ms ({least:.1}-{most:.1}, {} processes)", args.runs);
    println!(
        "memory then {} of its own, {} of files",
        size(memory.own as f64),
        size(memory.files as f64)
    );
    println!("\nparts, ms, medians in one process");
    let mut breakdown = serde_json::Map::new();
    for (i, (name, _)) in parts[0].iter().enumerate() {
        let ms = median(parts.iter().map(|p| p[i].1).collect());
        println!("  {name:<12} {ms:>7.1}");
        breakdown.insert((*name).into(), json!(ms));
    }
    println!(
        "\nthe first time that a checkpoint is opened, all of it is hashed: {hashed_ms:.0} ms more"
    );
    let figures = json!({
        "machine": machine, "parameters": n, "n_layer": config.n_layer,
        "vocab_size": config.vocab_size, "mapped": is_mapped, "runs": args.runs,
        "ttft_ms": ttft, "ttft_ms_min": least, "ttft_ms_max": most,
        "own_bytes": memory.own, "file_bytes": memory.files,
        "parts_ms": Value::Object(breakdown), "hash_ms": hashed_ms,
    });
    println!("{figures}");
    Ok(())
}

/// What `f` gives, and the milliseconds that it took.
fn timed<T, E>(f: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let start = Instant::now();
    let out = f()?;
    Ok((out, start.elapsed().as_secs_f64() * 1e3))
}

/// One `nanochat chat`, from before it is started to the first byte that it says.
fn process(run: &Path, prompt: &str, global: &Global) -> Result<Whole> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg("chat").arg("--run").arg(run).args(["-m", &TOKENS.to_string()]);
    command.arg(format!("--prompt={prompt}")).args(global.arguments());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().context("cannot start a process for a measurement")?;
    let mut out = child.stdout.take().context("the process has no standard output")?;
    let first = out.read(&mut [0]).context("cannot read what the process says")?;
    let ttft_ms = start.elapsed().as_secs_f64() * 1e3;
    let pid = child.id();
    let memory = Memory {
        own: machine::process_bytes(pid, "RssAnon"),
        files: machine::process_bytes(pid, "RssFile"),
    };
    // To its end: a reader that goes away would end it in the middle of a word.
    std::io::copy(&mut out, &mut std::io::sink()).context("cannot read what the process says")?;
    let ended = child.wait_with_output().context("cannot wait for the process")?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "\"nanochat chat\" ended with {}: {said}", ended.status);
    ensure!(first > 0, "the model ended its answer before a word: give another --prompt");
    Ok(Whole { ttft_ms, memory })
}

/// The same steps in this process, each with its milliseconds; whether the weights were mapped.
fn inside(run: &RunDir, prompt: &str, global: &Global) -> Result<(Vec<(&'static str, f64)>, bool)> {
    let (models, find) = timed(|| anyhow::Ok(run.model_dir(None)))?;
    let (tokenizer, tokens) = timed(|| run.tokenizer())?;
    let (be, device) = timed(|| global.backend())?;
    let be = &*be;
    let ((step, _), check) = timed(|| checkpoint::latest_once(&models))?;
    let ((model, _), open) = timed(|| checkpoint::open(be, &step))?;
    let context = model.config().sequence_len;
    let (mut decoder, pack) = timed(|| NanoDecoder::new(be, &model, context))?;
    let mut session = Session::new(tokenizer, None);
    let options =
        ChatOptions { max_tokens: TOKENS.min(context / 2).max(1), ..ChatOptions::default() };
    let ((), first) = timed(|| {
        session.say(&mut decoder, prompt, &options, |event| match event {
            Event::Forgot(_) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        })
    })?;
    let parts = vec![
        ("find", find),
        ("tokenizer", tokens),
        ("device", device),
        ("check", check),
        ("open", open),
        ("pack", pack),
        ("first_token", first),
    ];
    Ok((parts, model.is_mapped()))
}
