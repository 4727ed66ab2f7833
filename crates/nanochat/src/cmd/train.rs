//! `nanochat train`: a base model from documents, a chat model from conversations and from rewards.

mod flags;
pub mod rl;
mod survive;

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Subcommand;
use nanochat_compute::Backend;
use nanochat_compute::eager::Eager;
use nanochat_gpt::{GptConfig, checkpoint};
use nanochat_train::base::{Cadence, Outcome};
use nanochat_train::batch_size::Job;
use nanochat_train::optim::LearningRates;
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::schedule::SftSchedule;
use nanochat_train::sft::SftRecipe;
use nanochat_train::step::StepMode;
use serde_json::{Map, Value, json};

use crate::batch::{self, Wanted};
use crate::cli::Global;
use crate::machine;
use crate::pipeline::{self, Corpus, StageOptions, Talks};
use crate::ranks::Ranks;
use crate::run_dir::RunDir;
use crate::run_lock::RunLock;
use crate::screen::Screen;
use crate::stage::{Optimizations, Stage};
use crate::supervise;

pub use flags::{BaseArgs, CadenceFlags, RecipeFlags, SftArgs, bad_rows};
pub use survive::{SurvivalFlags, Time, listen};

/// What to train.
#[derive(Subcommand)]
pub enum TrainCommand {
    /// Pretrain a base model on documents.
    #[command(
        after_help = "Example: nanochat train base --data books/ --tokenizer runs/t/tokenizer --depth 4 --run runs/d4"
    )]
    Base(Box<BaseArgs>),
    /// Finetune a base model on conversations.
    #[command(after_help = "Example: nanochat train sft --data dolly.jsonl --run runs/d4")]
    Sft(Box<SftArgs>),
    /// Reinforce a chat model by questions that a program can grade.
    #[command(after_help = "Example: nanochat train rl --run runs/d4 --max-new-tokens 64")]
    Rl(Box<rl::RlArgs>),
}

/// Runs the command.
pub fn run(command: &TrainCommand, global: &Global) -> Result<()> {
    match command {
        TrainCommand::Base(args) => {
            let alone = args.survival.supervise;
            Ranks::meet(&args.ranks, global, alone)?.run(|ranks| base(args, global, ranks))
        }
        TrainCommand::Sft(args) => {
            let alone = args.survival.supervise;
            Ranks::meet(&args.ranks, global, alone)?.run(|ranks| sft(args, global, ranks))
        }
        TrainCommand::Rl(args) => rl::run(args, global),
    }
}

fn base(args: &BaseArgs, global: &Global, ranks: &Ranks) -> Result<()> {
    let start = Instant::now();
    let depth = args.recipe.depth.unwrap_or(Ask::default().depth);
    let run = RunDir::open_or_create(args.run.as_deref(), &format!("d{depth}"))?;
    let survival = args.survival.listen()?;
    if args.survival.supervise {
        return supervise::run(&run, "base", args.resume, &survival.stop);
    }
    let _lock = ranks.is_first().then(|| RunLock::take(&run)).transpose()?;
    let tokenizer = match &args.tokenizer {
        Some(path) => {
            let tokenizer = nanochat_tokenizer::Tokenizer::load(path)?;
            if ranks.is_first() {
                tokenizer.save(&run.join("tokenizer"))?;
            }
            tokenizer
        }
        None => run.tokenizer().context(
            "make one with \"nanochat tokenizer train --out DIR\" and give it with --tokenizer DIR",
        )?,
    };
    let ask = args.recipe.over(Ask { vocab_size: tokenizer.vocab_size(), ..Ask::default() });
    let recipe = Recipe::new(&ask)?;
    let corpus = if args.data.is_empty() {
        Corpus::Starter { seed: global.seed, documents: starter_documents(recipe.tokens()) }
    } else {
        Corpus::Files { paths: args.data.clone(), policy: args.policy() }
    };
    let data = corpus.split()?;
    let cadence = args.cadence.over(Cadence::default());
    let be = ranks.backend(global)?;
    let (t, rows) = (recipe.config.sequence_len, recipe.total_batch_size / ask.max_seq_len);
    let job = Job { config: &recipe.config, t, rows: ranks.share(rows)? };
    let resumed = batch::resumed(&run.join("base"), args.resume)?;
    let wanted = Wanted::of(ask.device_batch_size, resumed, &args.batch, 32);
    let mut screen = Screen::of_rank(&run, ranks.comm().rank())?;
    let (b, choice) = ranks.settle(&*be, &job, wanted, &args.batch, &mut screen)?;
    drop(screen);
    let recipe = Recipe::new(&Ask { device_batch_size: Some(b), ..ask })?;
    let forced = run.noted("forced").filter(|_| args.resume);
    let mut record = json!({
        "command": std::env::args().collect::<Vec<_>>(), "version": machine::VERSION,
        "started": machine::unix_seconds(), "machine": machine::Machine::here(global)?,
        "settings": {"base": &recipe},
    });
    if let Some(forced) = forced {
        record["forced"] = forced;
    }
    if ranks.is_first() {
        run.write_json("run.json", &record)?;
    }
    let options = StageOptions {
        resume: args.resume,
        seed: global.seed,
        eval_tokens_given: args.cadence.eval_tokens.is_some(),
        survival,
        comm: ranks.comm(),
        sum: args.ranks.sum(),
    };
    let outcome = pipeline::train_base(&*be, &run, &tokenizer, &recipe, &cadence, &data, options)?;
    if !ranks.is_first() {
        return Ok(());
    }
    let mut optimizations = Optimizations::default();
    optimizations.batch("base", wanted, b, choice.as_ref());
    finish(&run, "base", &optimizations, &outcome, start, global)
}

/// Starter documents for a run of so many tokens: about 110 tokens of each reach a row.
pub fn starter_documents(tokens: f64) -> usize {
    (tokens / 110.0) as usize + 1000
}

fn sft(args: &SftArgs, global: &Global, ranks: &Ranks) -> Result<()> {
    let start = Instant::now();
    let run = RunDir::find(args.run.as_deref())?;
    let survival = args.survival.listen()?;
    if args.survival.supervise {
        return supervise::run(&run, "sft", args.resume, &survival.stop);
    }
    let _lock = ranks.is_first().then(|| RunLock::take(&run)).transpose()?;
    let tokenizer = run.tokenizer()?;
    let from = match &args.from {
        Some(path) => checkpoint::latest(path)?.0,
        None => checkpoint::latest(&run.join("base"))?.0,
    };
    let sizes = SftSizes::new(args, &from)?;
    let talks = if args.data.is_empty() {
        Talks::Starter { seed: global.seed, conversations: args.conversations }
    } else {
        Talks::Files { paths: args.data.clone(), policy: bad_rows(args.skip_bad) }
    };
    let mut screen = Screen::of_rank(&run, ranks.comm().rank())?;
    let data = talks.split(&mut screen)?;
    let packing = args.packing();
    let be: Box<dyn Backend> = match packing.step {
        StepMode::Compiled => ranks.backend(global)?,
        StepMode::Eager => {
            global.expect_cpu("--step eager")?;
            Box::new(Eager::new(global.cpu()?))
        }
    };
    let be = &*be;
    let rows = ranks.share(sizes.rows)?;
    let job = Job { config: &sizes.config, t: sizes.t, rows };
    let resumed = batch::resumed(&run.join("sft"), args.resume)?;
    let wanted = match (args.device_batch_size, resumed) {
        // What is not planned once has no bytes to choose by: the baseline's batch.
        (None, None) if !packing.is_static() => Wanted::UpTo(BASELINE_BATCH),
        (given, resumed) => Wanted::of(given, resumed, &args.batch, sizes.inherited),
    };
    let (b, choice) = ranks.settle(be, &job, wanted, &args.batch, &mut screen)?;
    drop(screen);
    let recipe = sizes.recipe(args, b);
    let (resume, seed) = (args.resume, global.seed);
    let (comm, sum) = (ranks.comm(), args.ranks.sum());
    let options = StageOptions { resume, seed, eval_tokens_given: true, survival, comm, sum };
    let outcome =
        pipeline::train_sft(be, &run, &tokenizer, &from, &recipe, data, packing, options)?;
    if !ranks.is_first() {
        return Ok(());
    }
    let mut optimizations = Optimizations::default();
    optimizations.batch("sft", wanted, b, choice.as_ref());
    optimizations.sft(packing);
    finish(&run, "sft", &optimizations, &outcome, start, global)
}

/// Rows of a micro batch that is planned anew each time: what nanochat's finetuning had by hand.
pub const BASELINE_BATCH: usize = 4;

/// Sizes of an SFT run: what is not given is inherited from the base run.
struct SftSizes {
    config: GptConfig,
    /// T.
    t: usize,
    /// Rows of a step.
    rows: usize,
    /// The base run's rows of a micro batch.
    inherited: usize,
    rates: LearningRates,
}

impl SftSizes {
    fn new(args: &SftArgs, from: &std::path::Path) -> Result<Self> {
        let meta = checkpoint::meta(from)?;
        let base: Option<Recipe> = serde_json::from_value(meta.trainer["settings"].clone()).ok();
        let t = args.max_seq_len.unwrap_or(meta.model_config.sequence_len);
        let inherited = base.as_ref().map_or(32, |b| b.device_batch_size);
        let total = args.total_batch_size.or(base.as_ref().map(|b| b.total_batch_size));
        let total = total.unwrap_or(args.device_batch_size.unwrap_or(inherited) * t);
        anyhow::ensure!(
            t > 0 && total > 0 && total.is_multiple_of(t),
            "--total-batch-size {total} is not one or more rows of {t} tokens"
        );
        let fallback = LearningRates { unembedding: 0.004, ..LearningRates::default() };
        let rates = base.as_ref().map_or(fallback, |b| b.unscaled_rates);
        Ok(Self { config: meta.model_config, t, rows: total / t, inherited, rates })
    }

    fn recipe(&self, args: &SftArgs, b: usize) -> SftRecipe {
        let rates = self.rates;
        SftRecipe {
            max_seq_len: self.t,
            device_batch_size: b,
            accumulation: self.rows / b,
            num_iterations: args.num_iterations,
            rates: LearningRates {
                embedding: args.embedding_lr.unwrap_or(rates.embedding),
                unembedding: args.unembedding_lr.unwrap_or(rates.unembedding),
                matrix: args.matrix_lr.unwrap_or(rates.matrix),
                scalar: args.scalar_lr.unwrap_or(rates.scalar),
                ..rates
            },
            schedule: SftSchedule {
                init_lr_frac: args.init_lr_frac,
                warmup_ratio: args.warmup_ratio,
                warmdown_ratio: args.warmdown_ratio,
                final_lr_frac: args.final_lr_frac,
            },
            eval_every: args.eval_every,
            eval_tokens: args.eval_tokens,
            save_every: args.save_every,
            keep: 3,
        }
    }
}

/// The lines at the end of a stage, in upstream's words, and the stage's part of summary.json.
fn finish(
    run: &RunDir,
    stage: &str,
    optimizations: &Optimizations,
    outcome: &Outcome,
    start: Instant,
    global: &Global,
) -> Result<()> {
    let mut screen = Screen::open_log(run)?;
    let peak = machine::peak_rss_bytes();
    screen.say(&format!("Peak memory usage: {:.2}MiB", peak as f64 / (1 << 20) as f64));
    screen.say(&format!("Total training time: {:.2}m", outcome.train_s / 60.0));
    let bpb = outcome.progress.min_val_bpb;
    if let Some(bpb) = bpb {
        screen.say(&format!("Minimum validation bpb: {bpb:.6}"));
    }
    // Training of earlier sessions, and all of this one.
    let seconds = outcome.train_s.max(start.elapsed().as_secs_f64());
    let figures = Stage::trained(seconds, outcome);
    let before = run.read_json("summary.json")?.unwrap_or_default();
    let mut summary = with_stage(before, stage, json!(figures), outcome.progress.val_bpb, peak);
    optimizations.write(&mut summary);
    summary.insert("machine".into(), json!(machine::Machine::here(global)?));
    summary.insert("command".into(), json!(std::env::args().collect::<Vec<_>>()));
    summary.insert("version".into(), json!(machine::VERSION));
    run.write_json("summary.json", &summary)?;
    // What the disk made of the last step is read back and hashed here, so that the first to open it
    // need not wait for that.
    checkpoint::verify_once(&outcome.checkpoint)
        .context("the last checkpoint does not come back from the disk as it was saved")?;
    if global.json {
        let mut row = json!({
            "stage": stage, "steps": outcome.progress.step, "val_bpb": outcome.progress.val_bpb,
            "min_val_bpb": bpb, "peak_rss_bytes": peak, "checkpoint": outcome.checkpoint,
        });
        if let (Value::Object(row), Value::Object(figures)) = (&mut row, json!(figures)) {
            row.extend(figures);
        }
        println!("{row}");
    }
    Ok(())
}

/// A summary with one more stage. `val_bpb` is the base model's.
fn with_stage(
    mut summary: Map<String, Value>,
    stage: &str,
    entry: Value,
    val_bpb: Option<f64>,
    peak: u64,
) -> Map<String, Value> {
    let mut stages = match summary.remove("stages") {
        Some(Value::Object(stages)) => stages,
        _ => Map::new(),
    };
    stages.insert(stage.into(), entry);
    let seconds = |s: &Value| s["seconds"].as_f64().unwrap_or(0.0);
    summary.insert("wall_s".into(), json!(stages.values().map(seconds).sum::<f64>()));
    summary.insert("stages".into(), Value::Object(stages));
    let peak = summary.get("peak_rss_bytes").and_then(Value::as_u64).unwrap_or(0).max(peak);
    summary.insert("peak_rss_bytes".into(), json!(peak));
    if stage == "base" && val_bpb.is_some() {
        summary.insert("val_bpb".into(), json!(val_bpb));
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_keeps_the_other_stages() {
        let base = json!({"seconds": 10.0});
        let summary = with_stage(Map::new(), "base", base, Some(1.5), 70);
        let summary = with_stage(summary, "sft", json!({"seconds": 2.5}), Some(0.9), 60);
        assert_eq!(summary["wall_s"], json!(12.5));
        assert_eq!(summary["peak_rss_bytes"], json!(70));
        assert_eq!(summary["val_bpb"], json!(1.5));
        assert_eq!(summary["stages"]["base"]["seconds"], json!(10.0));
    }
}
