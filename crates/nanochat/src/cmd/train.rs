//! `nanochat train`: a base model from documents, a chat model from conversations. Flags that upstream
//! has keep upstream's names.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use nanochat_data::shard::{OnBad, Text};
use nanochat_data::{Batching, Policy, TooLong};
use nanochat_gpt::checkpoint;
use nanochat_train::base::Cadence;
use nanochat_train::optim::LearningRates;
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::schedule::SftSchedule;
use nanochat_train::sft::SftRecipe;
use serde_json::json;

use crate::cli::Global;
use crate::machine;
use crate::pipeline::{self, Corpus, Packing, StageOptions, Talks};
use crate::run_dir::RunDir;
use crate::screen::Screen;

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
}

/// Flags of `train base`.
#[derive(Args, Clone, Debug)]
pub struct BaseArgs {
    /// Files or folders of .parquet, .jsonl or .txt; none: the embedded starter corpus.
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Passes over bad rows, counted, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
    /// Column or field that holds the text.
    #[arg(long, default_value = "text")]
    pub column: String,
    /// Reads each .txt file as one document instead of pieces of about 2,000 bytes.
    #[arg(long)]
    pub whole_files: bool,
    /// Tokenizer (file or folder); none: the run's own.
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Run directory; none: `$NANOCHAT_BASE_DIR/runs/d<depth>`.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Goes on from the run's newest valid checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// Sizes, steps and rates.
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// Evaluations, samples, checkpoints.
    #[command(flatten)]
    pub cadence: CadenceFlags,
}

/// Sizes, steps and rates; what is not given comes from the recipe of the depth.
#[derive(Args, Clone, Debug, Default)]
pub struct RecipeFlags {
    /// Layers: the one dial.
    #[arg(long)]
    pub depth: Option<usize>,
    /// Width per layer (default: 64).
    #[arg(long)]
    pub aspect_ratio: Option<usize>,
    /// Channels of a head (default: 128).
    #[arg(long)]
    pub head_dim: Option<usize>,
    /// T: tokens of a row (default: 2048).
    #[arg(long)]
    pub max_seq_len: Option<usize>,
    /// Letters S (a quarter of T) and L (all of T), tiled over the layers (default: SSSL).
    #[arg(long)]
    pub window_pattern: Option<String>,
    /// Steps; wins over --target-flops and the data ratio.
    #[arg(long)]
    pub num_iterations: Option<u64>,
    /// Compute of the run.
    #[arg(long)]
    pub target_flops: Option<f64>,
    /// Training tokens per matrix parameter (default: 12).
    #[arg(long)]
    pub target_param_data_ratio: Option<f64>,
    /// Rows of a micro batch (default: the largest divisor up to 32).
    #[arg(long)]
    pub device_batch_size: Option<usize>,
    /// Tokens of a step (default: scaling law).
    #[arg(long)]
    pub total_batch_size: Option<usize>,
    /// Rate of the embeddings before scaling (default: 0.3).
    #[arg(long)]
    pub embedding_lr: Option<f64>,
    /// Rate of the head before scaling (default: 0.008).
    #[arg(long)]
    pub unembedding_lr: Option<f64>,
    /// Rate of the matrices (Muon) before scaling (default: 0.02).
    #[arg(long)]
    pub matrix_lr: Option<f64>,
    /// Rate of the scalars before scaling (default: 0.5).
    #[arg(long)]
    pub scalar_lr: Option<f64>,
    /// Muon weight decay before scaling (default: 0.28).
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Steps of warm-up (default: 40).
    #[arg(long)]
    pub warmup_steps: Option<u64>,
    /// Share of the run over which the rate falls (default: 0.65).
    #[arg(long)]
    pub warmdown_ratio: Option<f64>,
    /// Share of the rate left at the end (default: 0.05).
    #[arg(long)]
    pub final_lr_frac: Option<f64>,
}

impl RecipeFlags {
    /// The flags over a set of defaults.
    pub fn over(&self, defaults: Ask) -> Ask {
        let d = defaults;
        Ask {
            depth: self.depth.unwrap_or(d.depth),
            aspect_ratio: self.aspect_ratio.unwrap_or(d.aspect_ratio),
            head_dim: self.head_dim.unwrap_or(d.head_dim),
            max_seq_len: self.max_seq_len.unwrap_or(d.max_seq_len),
            window_pattern: self.window_pattern.clone().unwrap_or(d.window_pattern),
            vocab_size: d.vocab_size,
            num_iterations: self.num_iterations.or(d.num_iterations),
            target_flops: self.target_flops.or(d.target_flops),
            target_param_data_ratio: self
                .target_param_data_ratio
                .unwrap_or(d.target_param_data_ratio),
            device_batch_size: self.device_batch_size.or(d.device_batch_size),
            total_batch_size: self.total_batch_size.or(d.total_batch_size),
            rates: LearningRates {
                embedding: self.embedding_lr.unwrap_or(d.rates.embedding),
                unembedding: self.unembedding_lr.unwrap_or(d.rates.unembedding),
                matrix: self.matrix_lr.unwrap_or(d.rates.matrix),
                scalar: self.scalar_lr.unwrap_or(d.rates.scalar),
            },
            weight_decay: self.weight_decay.unwrap_or(d.weight_decay),
            warmup_steps: self.warmup_steps.unwrap_or(d.warmup_steps),
            warmdown_ratio: self.warmdown_ratio.unwrap_or(d.warmdown_ratio),
            final_lr_frac: self.final_lr_frac.unwrap_or(d.final_lr_frac),
            world: d.world,
        }
    }
}

/// Evaluations, samples, checkpoints.
#[derive(Args, Clone, Debug, Default)]
pub struct CadenceFlags {
    /// Steps between validations; 0: at the end only (default: 250).
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// Tokens of a validation (default: 41943040, at most one pass).
    #[arg(long)]
    pub eval_tokens: Option<usize>,
    /// Steps between samples; 0: at the end only (default: 2000).
    #[arg(long)]
    pub sample_every: Option<u64>,
    /// Steps between checkpoints; 0: at the end only (default: 0).
    #[arg(long)]
    pub save_every: Option<u64>,
    /// Checkpoints kept (default: 3).
    #[arg(long)]
    pub keep: Option<usize>,
}

impl CadenceFlags {
    /// The flags over a set of defaults.
    pub fn over(&self, defaults: Cadence) -> Cadence {
        let d = defaults;
        Cadence {
            eval_every: self.eval_every.unwrap_or(d.eval_every),
            eval_tokens: self.eval_tokens.unwrap_or(d.eval_tokens),
            sample_every: self.sample_every.unwrap_or(d.sample_every),
            save_every: self.save_every.unwrap_or(d.save_every),
            keep: self.keep.unwrap_or(d.keep),
            prompts: d.prompts,
        }
    }
}

/// How SFT rows are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RowsFlag {
    /// Several conversations a row, best fit.
    Packed,
    /// One conversation a row, padded to T.
    Fixed,
    /// One conversation a row, padded to the longest of the batch.
    Dynamic,
}

/// What happens to conversations longer than T.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LongFlag {
    /// Cut to fit, counted.
    Truncate,
    /// Left out, counted.
    Skip,
}

/// Flags of `train sft`.
#[derive(Args, Clone, Debug)]
pub struct SftArgs {
    /// Files of conversations (.jsonl, .parquet); none: the embedded starter corpus.
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Run directory with `tokenizer/` and `base/`; none: the run that changed last.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Base checkpoint to begin with; none: the run's newest.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Goes on from the run's newest valid SFT checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// T (default: the base run's).
    #[arg(long)]
    pub max_seq_len: Option<usize>,
    /// Rows of a micro batch (default: the base run's).
    #[arg(long)]
    pub device_batch_size: Option<usize>,
    /// Tokens of a step (default: the base run's).
    #[arg(long)]
    pub total_batch_size: Option<usize>,
    /// Steps; none: one pass over the conversations.
    #[arg(long)]
    pub num_iterations: Option<u64>,
    /// Rate of the embeddings (default: the base run's).
    #[arg(long)]
    pub embedding_lr: Option<f64>,
    /// Rate of the head (default: the base run's).
    #[arg(long)]
    pub unembedding_lr: Option<f64>,
    /// Rate of the matrices (default: the base run's).
    #[arg(long)]
    pub matrix_lr: Option<f64>,
    /// Rate of the scalars (default: the base run's).
    #[arg(long)]
    pub scalar_lr: Option<f64>,
    /// Multiplies every rate.
    #[arg(long, default_value_t = 0.8)]
    pub init_lr_frac: f64,
    /// Share of the run that warms up.
    #[arg(long, default_value_t = 0.0)]
    pub warmup_ratio: f64,
    /// Share of the run over which the rate falls.
    #[arg(long, default_value_t = 0.5)]
    pub warmdown_ratio: f64,
    /// Share of the rate left at the end.
    #[arg(long, default_value_t = 0.0)]
    pub final_lr_frac: f64,
    /// Steps between validations; 0: at the end only.
    #[arg(long, default_value_t = 200)]
    pub eval_every: u64,
    /// Tokens of a validation.
    #[arg(long, default_value_t = 262_144)]
    pub eval_tokens: usize,
    /// Steps between checkpoints; 0: at the end only.
    #[arg(long, default_value_t = 0)]
    pub save_every: u64,
    /// How rows are made.
    #[arg(long, value_enum, default_value_t = RowsFlag::Packed)]
    pub batching: RowsFlag,
    /// What happens to conversations longer than T.
    #[arg(long, value_enum, default_value_t = LongFlag::Truncate)]
    pub too_long: LongFlag,
    /// Conversations of the starter corpus, when no data is given.
    #[arg(long, default_value_t = 20_000)]
    pub conversations: u64,
}

impl SftArgs {
    /// How rows are made.
    pub fn packing(&self) -> Packing {
        Packing {
            batching: match self.batching {
                RowsFlag::Packed => Batching::Packed,
                RowsFlag::Fixed => Batching::Fixed,
                RowsFlag::Dynamic => Batching::Dynamic,
            },
            too_long: match self.too_long {
                LongFlag::Truncate => TooLong::Truncate,
                LongFlag::Skip => TooLong::Skip,
            },
        }
    }
}

/// Runs the command.
pub fn run(command: &TrainCommand, global: &Global) -> Result<()> {
    match command {
        TrainCommand::Base(args) => base(args, global),
        TrainCommand::Sft(args) => sft(args, global),
    }
}

fn base(args: &BaseArgs, global: &Global) -> Result<()> {
    let depth = args.recipe.depth.unwrap_or(Ask::default().depth);
    let run = RunDir::open_or_create(args.run.as_deref(), &format!("d{depth}"))?;
    let tokenizer = match &args.tokenizer {
        Some(path) => {
            let tokenizer = nanochat_tokenizer::Tokenizer::load(path)?;
            tokenizer.save(&run.join("tokenizer"))?;
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
        Corpus::Files { paths: args.data.clone(), policy: policy(args) }
    };
    let cadence = args.cadence.over(Cadence::default());
    run.write_json(
        "run.json",
        &json!({
            "command": std::env::args().collect::<Vec<_>>(), "version": machine::VERSION,
            "started": machine::unix_seconds(), "machine": machine::Machine::here(global)?,
            "settings": {"base": &recipe},
        }),
    )?;
    let options = StageOptions {
        resume: args.resume,
        seed: global.seed,
        eval_tokens_given: args.cadence.eval_tokens.is_some(),
    };
    let cpu = global.backend()?;
    let outcome =
        pipeline::train_base(&cpu, &run, &tokenizer, &recipe, &cadence, &corpus, options)?;
    finish(&run, "base", &outcome, recipe.total_batch_size, global)
}

fn policy(args: &BaseArgs) -> Policy {
    let mut policy = Policy { column: args.column.clone(), ..Policy::default() };
    if args.skip_bad {
        policy.on_bad = OnBad::Skip;
    }
    if args.whole_files {
        policy.text = Text::File;
    }
    policy
}

/// Starter documents for a run of so many tokens: about 110 tokens of each reach a row.
pub fn starter_documents(tokens: f64) -> usize {
    (tokens / 110.0) as usize + 1000
}

fn sft(args: &SftArgs, global: &Global) -> Result<()> {
    let run = RunDir::find(args.run.as_deref())?;
    let tokenizer = run.tokenizer()?;
    let from = match &args.from {
        Some(path) => checkpoint::latest(path)?.0,
        None => checkpoint::latest(&run.join("base"))?.0,
    };
    let recipe = sft_recipe(args, &from)?;
    let talks = if args.data.is_empty() {
        Talks::Starter { seed: global.seed, conversations: args.conversations }
    } else {
        Talks::Files(args.data.clone())
    };
    let options = StageOptions { resume: args.resume, seed: global.seed, eval_tokens_given: true };
    let cpu = global.backend()?;
    let outcome = pipeline::train_sft(
        &cpu,
        &run,
        &tokenizer,
        &from,
        &recipe,
        &talks,
        args.packing(),
        options,
    )?;
    let tokens = recipe.device_batch_size * recipe.max_seq_len * recipe.accumulation;
    finish(&run, "sft", &outcome, tokens, global)
}

/// SFT's values: what is not given is inherited from the base run.
pub fn sft_recipe(args: &SftArgs, from: &std::path::Path) -> Result<SftRecipe> {
    let meta = checkpoint::meta(from)?;
    let settings = &meta.trainer["settings"];
    let base: Option<Recipe> = serde_json::from_value(settings.clone()).ok();
    let t = args.max_seq_len.unwrap_or(meta.model_config.sequence_len);
    let inherited = base.as_ref().map_or(32, |b| b.device_batch_size);
    let device_batch_size = args.device_batch_size.unwrap_or(inherited);
    let micro = device_batch_size * t;
    let total =
        args.total_batch_size.or(base.as_ref().map(|b| b.total_batch_size)).unwrap_or(micro);
    anyhow::ensure!(
        micro > 0 && total.is_multiple_of(micro),
        "--total-batch-size {total} is not a multiple of {device_batch_size} rows of {t} tokens"
    );
    let fallback = LearningRates { unembedding: 0.004, ..LearningRates::default() };
    let rates = base.as_ref().map_or(fallback, |b| b.unscaled_rates);
    Ok(SftRecipe {
        max_seq_len: t,
        device_batch_size,
        accumulation: total / micro,
        num_iterations: args.num_iterations,
        rates: LearningRates {
            embedding: args.embedding_lr.unwrap_or(rates.embedding),
            unembedding: args.unembedding_lr.unwrap_or(rates.unembedding),
            matrix: args.matrix_lr.unwrap_or(rates.matrix),
            scalar: args.scalar_lr.unwrap_or(rates.scalar),
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
    })
}

/// The lines at the end of a stage, in upstream's words.
fn finish(
    run: &RunDir,
    stage: &str,
    outcome: &nanochat_train::base::Outcome,
    tokens_per_step: usize,
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
    let tokens = outcome.progress.step as f64 * tokens_per_step as f64;
    let summary = json!({
        "stage": stage, "steps": outcome.progress.step, "val_bpb": outcome.progress.val_bpb,
        "min_val_bpb": bpb, "train_s": outcome.train_s,
        "tokens_per_sec": tokens / outcome.train_s.max(1e-9), "peak_rss_bytes": peak,
        "checkpoint": outcome.checkpoint,
    });
    if global.json {
        println!("{summary}");
    }
    Ok(())
}
