//! What a speedrun will do: presets and flags, settled before it starts.

use std::path::PathBuf;

use nanochat_data::{Batching, TooLong};
use nanochat_engine::FirstToken;
use nanochat_train::base::Cadence;
use nanochat_train::optim::LearningRates;
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::schedule::SftSchedule;
use nanochat_train::sft::SftRecipe;
use nanochat_train::step::StepMode;
use serde::{Deserialize, Serialize};

use super::rl_plan::RlPlan;
use super::{Preset, SpeedrunArgs};
use crate::batch::{BatchFlags, Wanted};
use crate::cli::Global;
use crate::cmd::train::{BASELINE_BATCH, bad_rows, starter_documents};
use crate::pipeline::{Corpus, Packing, Talks};

/// Everything a pipeline does, settled before it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Sizes of what is not given.
    pub preset: Preset,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Pretraining text; none: the starter corpus.
    pub data: Vec<PathBuf>,
    /// Conversations; none: the starter corpus.
    pub sft_data: Vec<PathBuf>,
    /// Bad rows are counted, not fatal.
    pub skip_bad: bool,
    /// V that is asked for.
    pub vocab_size: usize,
    /// Sizes, steps and rates.
    pub ask: Ask,
    /// How the rows of a micro batch are chosen.
    #[serde(default)]
    pub batch: BatchFlags,
    /// All four optimizations are off.
    #[serde(default)]
    pub baseline: bool,
    /// Evaluations, samples, checkpoints.
    pub cadence: Cadence,
    /// Steps of finetuning.
    pub sft_iterations: u64,
    /// Multiplies its rates.
    pub sft_lr_frac: f64,
    /// Held-out items of each kind, and items of each task.
    pub eval_items: usize,
    /// Downloaded tasks that are evaluated too.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
    /// Reinforcement; none: the run ends with finetuning.
    #[serde(default)]
    pub rl: Option<RlPlan>,
}

impl Plan {
    /// From the flags and the preset.
    pub fn new(args: &SpeedrunArgs, global: &Global) -> Self {
        let tiny = args.preset == Preset::Tiny;
        let vocab_size = args.vocab_size.unwrap_or(if tiny { 512 } else { 4096 });
        // What was tried stands in docs/LOG.md.
        let ask = Ask {
            depth: if tiny { 2 } else { 4 },
            aspect_ratio: if tiny { 16 } else { 48 },
            head_dim: if tiny { 16 } else { 48 },
            max_seq_len: if tiny { 64 } else { 256 },
            window_pattern: "L".into(),
            vocab_size,
            num_iterations: Some(if tiny { 20 } else { 1200 }),
            total_batch_size: Some(if tiny { 512 } else { 2048 }),
            rates: LearningRates {
                embedding: 3.39,
                unembedding: 0.09,
                matrix: 0.226,
                scalar: 0.28,
                smear: 0.02,
            },
            // With 0, whether a run learns to recall, and with it multiple choice, is luck.
            smear_init: 1.0,
            weight_decay: 0.0,
            warmup_steps: if tiny { 5 } else { 20 },
            warmdown_ratio: 0.45,
            ..Ask::default()
        };
        let cadence = Cadence {
            eval_every: if tiny { 0 } else { 175 },
            eval_tokens: if tiny { 1024 } else { 65_536 },
            sample_every: 0,
            save_every: if tiny { 10 } else { 175 },
            keep: 2,
            prompts: [
                "The capital of France is",
                "Once upon a time, there was a brave",
                "The opposite of hot is",
                "A dog says",
                "12 + 30 =",
            ]
            .map(String::from)
            .into(),
        };
        Self {
            preset: args.preset,
            seed: global.seed,
            data: args.data.clone(),
            sft_data: args.sft_data.clone(),
            skip_bad: args.skip_bad,
            vocab_size,
            ask: args.recipe.over(ask),
            batch: args.batch,
            baseline: args.baseline,
            cadence: args.cadence.over(cadence),
            sft_iterations: args.sft_iterations.unwrap_or(if tiny { 10 } else { 400 }),
            sft_lr_frac: 0.045,
            eval_items: args.eval_items.unwrap_or(if tiny { 4 } else { 100 }),
            data_dir: args.data_dir.clone(),
            rl: args.rl.then(|| RlPlan::new(args.rl_task, args.rl_iterations, tiny)),
        }
    }

    /// The stage that the model comes from in the end.
    pub fn last_stage(&self) -> &'static str {
        if self.rl.is_some() { "rl" } else { "sft" }
    }

    /// Where the text comes from.
    pub fn corpus(&self, recipe: &Recipe) -> Corpus {
        if self.data.is_empty() {
            Corpus::Starter { seed: self.seed, documents: starter_documents(recipe.tokens()) }
        } else {
            Corpus::Files { paths: self.data.clone(), policy: bad_rows(self.skip_bad) }
        }
    }

    /// Where the conversations come from.
    pub fn talks(&self, recipe: &Recipe) -> Talks {
        if self.sft_data.is_empty() {
            // About 45 tokens of a conversation reach a row.
            let tokens = self.sft_iterations * recipe.total_batch_size as u64;
            Talks::Starter { seed: self.seed, conversations: tokens / 45 + 1000 }
        } else {
            let policy = bad_rows(self.skip_bad);
            Talks::Files { paths: self.sft_data.clone(), policy }
        }
    }

    /// Where a stage's batch comes from.
    pub fn wanted(&self, resumed: Option<usize>) -> Wanted {
        let given = self.ask.device_batch_size;
        match (given, resumed) {
            (None, None) if self.baseline => Wanted::UpTo(BASELINE_BATCH),
            _ => Wanted::of(given, resumed, &self.batch, 32),
        }
    }

    /// How finetuning makes its rows and steps.
    pub fn packing(&self) -> Packing {
        let too_long = TooLong::Truncate;
        if self.baseline {
            Packing { batching: Batching::Dynamic, too_long, step: StepMode::Eager }
        } else {
            Packing { batching: Batching::Packed, too_long, step: StepMode::Compiled }
        }
    }

    /// How samples begin.
    pub fn first_token(&self) -> FirstToken {
        if self.baseline { FirstToken::Broadcast } else { FirstToken::Independent }
    }

    /// Values of finetuning, with `b` rows a micro batch. `tokens` are those of a conversation on average:
    /// where a row is one conversation, a step takes as many rows as packed ones would hold, so that
    /// both ways take the same steps on as many conversations.
    pub fn sft(&self, recipe: &Recipe, b: usize, tokens: f64) -> SftRecipe {
        let (t, total) = (recipe.config.sequence_len, recipe.total_batch_size);
        let accumulation = match self.packing().batching {
            Batching::Packed => total / t / b,
            _ => (total as f64 / tokens.max(1.0) / b as f64).round().max(1.0) as usize,
        };
        SftRecipe {
            max_seq_len: t,
            device_batch_size: b,
            accumulation,
            num_iterations: Some(self.sft_iterations),
            rates: self.ask.rates,
            schedule: SftSchedule {
                init_lr_frac: self.sft_lr_frac,
                warmup_ratio: 0.0,
                warmdown_ratio: 0.5,
                final_lr_frac: 0.0,
            },
            eval_every: 0,
            eval_tokens: self.cadence.eval_tokens,
            save_every: self.cadence.save_every,
            keep: self.cadence.keep,
        }
    }
}
