//! Flags of `nanochat train`. Those that upstream has keep upstream's names.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nanochat_data::shard::{OnBad, Text};
use nanochat_data::{Batching, Policy, TooLong};
use nanochat_train::base::Cadence;
use nanochat_train::optim::LearningRates;
use nanochat_train::recipe::Ask;
use nanochat_train::step::StepMode;

use super::survive::StageSurvival;
use crate::batch::BatchFlags;
use crate::pipeline::Packing;
use crate::ranks::RanksFlags;

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
    /// How the run survives.
    #[command(flatten)]
    pub survival: StageSurvival,
    /// Several processes, one run.
    #[command(flatten)]
    pub ranks: RanksFlags,
    /// Sizes, steps and rates.
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// How the rows of a micro batch are chosen.
    #[command(flatten)]
    pub batch: BatchFlags,
    /// Evaluations, samples, checkpoints.
    #[command(flatten)]
    pub cadence: CadenceFlags,
}

impl BaseArgs {
    /// How files are read.
    pub fn policy(&self) -> Policy {
        let policy = Policy { column: self.column.clone(), ..bad_rows(self.skip_bad) };
        if self.whole_files { Policy { text: Text::File, ..policy } } else { policy }
    }
}

/// Bad rows stop, or are counted.
pub fn bad_rows(skip: bool) -> Policy {
    let on_bad = if skip { OnBad::Skip } else { OnBad::Fail };
    Policy { on_bad, ..Policy::default() }
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
    /// Rows of a micro batch (default: chosen by memory and speed).
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
    /// Rate of the smear and backout weights, never scaled (default: 0.2).
    #[arg(long)]
    pub smear_lr: Option<f64>,
    /// How much of the token before each embedding starts with (default: 0).
    #[arg(long)]
    pub smear_init: Option<f32>,
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
                smear: self.smear_lr.unwrap_or(d.rates.smear),
            },
            smear_init: self.smear_init.unwrap_or(d.smear_init),
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
    /// Newest checkpoints kept, at least 2, beside the one that validated best (default: 3).
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

/// How the train step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StepFlag {
    /// One kernel an operation, new memory for each: the baseline.
    Eager,
    /// Fused kernels, memory planned once.
    Compiled,
}

impl StepFlag {
    /// The trainer's word for it.
    pub fn mode(self) -> StepMode {
        match self {
            StepFlag::Eager => StepMode::Eager,
            StepFlag::Compiled => StepMode::Compiled,
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
    /// Passes over bad records, counted, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
    /// Run directory with `tokenizer/` and `base/`; none: the run that changed last.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Base checkpoint to begin with; none: the run's newest.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Goes on from the run's newest valid SFT checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// How the run survives.
    #[command(flatten)]
    pub survival: StageSurvival,
    /// Several processes, one run.
    #[command(flatten)]
    pub ranks: RanksFlags,
    /// T (default: the base run's).
    #[arg(long)]
    pub max_seq_len: Option<usize>,
    /// Rows of a micro batch (default: chosen by memory and speed; 4 in an eager or dynamic step).
    #[arg(long)]
    pub device_batch_size: Option<usize>,
    /// How the rows of a micro batch are chosen.
    #[command(flatten)]
    pub batch: BatchFlags,
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
    /// How the train step runs: fused kernels in memory planned once, or as an eager framework does.
    #[arg(long, value_enum, default_value_t = StepFlag::Compiled)]
    pub step: StepFlag,
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
            step: self.step.mode(),
        }
    }
}
