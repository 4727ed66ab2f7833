//! `nanochat bench quick`: the four optimizations on the machine at hand, in minutes.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use nanochat_compute::Backend;
use nanochat_compute::eager::Eager;
use nanochat_engine::FirstToken;
use nanochat_gpt::Nano;
use nanochat_gpt::nano::count::ParamCount;
use nanochat_train::batch_size::Job;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;
use nanochat_train::step::{Bytes, Trainer};
use serde_json::{Value, json};

use super::child::median;
use super::infer::{self, random_model};
use super::model::ModelFlags;
use super::sft::{self, Sizes, Talk, WAYS};
use super::train::RandomTokens;
use crate::batch::{self, BatchFlags, Wanted};
use crate::cli::{Global, Weights};
use crate::cmd::train::BASELINE_BATCH;
use crate::figures::{parameters, size, thousands};
use crate::machine::Machine;
use crate::memory::Room;
use crate::run_dir::RunDir;
use crate::sampling;

/// Flags of `bench quick`.
#[derive(Args, Clone, Debug)]
pub struct QuickBench {
    /// What is measured; a smaller model than elsewhere, so that it takes minutes.
    #[command(flatten)]
    pub model: ModelFlags,
    /// How the batch is chosen.
    #[command(flatten)]
    pub batch: BatchFlags,
    /// Rows that are generated together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    pub batch_sizes: Vec<usize>,
    /// Also writes the figures as quick.json into a run's directory, where `report compare` finds them.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
}

/// Rows of a step of the batch-size part.
const ROWS: usize = 32;
/// Tokens that are generated after the prompt.
const NEW_TOKENS: usize = 200;
const PROMPT: usize = 50;
/// Vocabulary of the finetuning part, which learns a tokenizer.
const SFT_VOCAB: usize = 4096;

/// Runs the command.
pub fn run(args: &QuickBench, global: &Global) -> Result<()> {
    args.batch.expect_on()?;
    let start = Instant::now();
    let (cpu, eager) = (global.cpu()?, Eager::new(global.cpu()?));
    let be: &dyn Backend = &cpu;
    let machine = Machine::here(global)?;
    let config = args.model.config()?;
    let n = ParamCount::of(&config).total;
    println!("nanochat bench quick");
    println!("machine   {}, {}", machine.cpu, machine.backend);
    println!("memory    {} free", size(Room::now().free as f64));
    println!("model     {}, {} parameters", args.model.name(), parameters(n as u64));
    let model = random_model(be, config, global.seed)?;

    println!("\n1  automatic batch size");
    let batch = batch_size(be, &model, args)?;
    println!("\n2  KV cache: prompt {PROMPT}, {NEW_TOKENS} new tokens");
    let cache = kv_cache(be, &model, args)?;
    drop(model);
    println!("\n3  finetuning step, starter conversations");
    let sft = finetuning(be, &eager, args, global)?;
    println!("\n4  independent sampling");
    let sampling = sampling(global.seed);
    let seconds = start.elapsed().as_secs_f64();
    println!("\n{seconds:.0} s in all");
    let figures = json!({
        "machine": machine, "model": args.model.name(), "parameters": n, "seconds": seconds,
        "batch_size": batch, "kv_cache": cache, "sft": sft, "sampling": sampling,
    });
    if let Some(dir) = &args.run {
        RunDir::find(Some(dir))?.write_json("quick.json", &figures)?;
    }
    println!("{figures}");
    Ok(())
}

/// The choice, and its speed beside that of the batch which was set by hand before.
fn batch_size(be: &dyn Backend, model: &Nano, args: &QuickBench) -> Result<Value> {
    let t = model.config().sequence_len;
    let job = Job { config: model.config(), t, rows: ROWS };
    let flags = BatchFlags { no_batch_size_cache: true, ..args.batch };
    let (b, choice) = batch::settle(be, &job, Wanted::Auto, &flags, &mut |line| {
        if !line.starts_with(batch::LINE) {
            println!("   {line}");
        }
    })?;
    let choice = choice.expect("an automatic choice says how it was made");
    // A batch in turn with the other, three times: machines drift.
    let batches = [b, BASELINE_BATCH];
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (b, rates) in batches.into_iter().zip(&mut rates) {
            let optim = Optimizer::new(be, model, LearningRates::default())?;
            let mut trainer = Trainer::new(be, model, optim, b, t)?;
            let mut tokens = RandomTokens { b, t, v: model.config().vocab_size, state: 1 };
            let still = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
            let report = trainer.step(0, &mut tokens, ROWS / b, &still)?;
            rates.push(report.tokens as f64 / report.dt_s);
        }
    }
    let [with, without] = rates.map(median);
    let bytes = |b| Bytes::of(be, model.config(), b, t).total();
    for (name, b, rate) in [("chosen", b, with), ("by hand", BASELINE_BATCH, without)] {
        println!(
            "   {name:<9} B {b:<3} {:>8} tokens/sec  {:>9}",
            thousands(rate as u64),
            size(bytes(b) as f64)
        );
    }
    Ok(json!({
        "batch_size": b, "baseline": BASELINE_BATCH, "discovery_s": choice.discovery_s,
        "accumulation": choice.accumulation, "predicted_bytes": choice.predicted_bytes,
        "baseline_bytes": bytes(BASELINE_BATCH),
        "tokens_per_sec": with, "baseline_tokens_per_sec": without,
    }))
}

fn kv_cache(be: &dyn Backend, model: &Nano, args: &QuickBench) -> Result<Value> {
    let (prompt, new_tokens, read_speed) = (PROMPT, NEW_TOKENS, None);
    let weights = Weights::Auto;
    let job = infer::Job { be, model, prompt, new_tokens, weights, read_speed };
    let mut rows = Vec::new();
    for &n in &args.batch_sizes {
        let (with, columns) = job.cached(n)?;
        let without = job.uncached(n, &columns, 6.0)?;
        println!(
            "   batch {n:<3} {:>8.1} tokens/sec with, {:>8.1} without: {:.1}x",
            with.tokens_per_sec,
            without.tokens_per_sec,
            with.tokens_per_sec / without.tokens_per_sec
        );
        rows.push(json!({
            "batch_size": n, "tokens_per_sec": with.tokens_per_sec,
            "no_cache_tokens_per_sec": without.tokens_per_sec, "ttft_ms": with.ttft_ms,
            "steps_timed": without.steps_timed,
        }));
    }
    Ok(json!(rows))
}

fn finetuning(
    be: &dyn Backend,
    eager: &Eager,
    args: &QuickBench,
    global: &Global,
) -> Result<Vec<sft::Figures>> {
    let talk = Talk::open(&[], None, SFT_VOCAB, global.seed)?;
    let config = sft::config(&args.model, talk.tokenizer.vocab_size())?;
    let model = Nano::zeros(be, config)?;
    model.init(global.seed)?;
    let sizes = Sizes { b: BASELINE_BATCH, rows: ROWS, steps: 1, rounds: 2 };
    let all = sft::measure(be, eager, &model, &talk, &WAYS, sizes)?;
    sft::print(&all);
    Ok(all)
}

fn sampling(seed: u64) -> Value {
    let row = |first: FirstToken| {
        let found = sampling::check(first, seed);
        println!(
            "   {:<12} {:>3} different first tokens of {}, chi-square p {:.3}",
            first.name(),
            found.first_tokens,
            sampling::SAMPLES,
            found.test.p_value
        );
        json!({"first_tokens": found.first_tokens, "p_value": found.test.p_value})
    };
    json!({
        "independent": row(FirstToken::Independent), "broadcast": row(FirstToken::Broadcast),
    })
}
