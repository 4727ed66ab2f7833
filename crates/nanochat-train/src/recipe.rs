//! Every value of a base run, from one dial: `--depth`. Source: nanochat `base_train.py`, July 2026.

use nanochat_gpt::GptConfig;
use nanochat_gpt::nano::count::{ParamCount, train_flops_per_token};
use serde::{Deserialize, Serialize};

use crate::optim::LearningRates;
use crate::schedule::{BaseSchedule, round_half_even};
use crate::{Error, Result};

/// Batch size, in tokens, at which upstream's learning rates are tuned.
pub const REFERENCE_BATCH: f64 = 524_288.0;

/// Depth at which upstream's batch size and weight decay are tuned.
const REFERENCE_DEPTH: usize = 12;

/// What a user may ask for; `None` takes the recipe's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Layers.
    pub depth: usize,
    /// Width per layer: C is about depth times this.
    pub aspect_ratio: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// T.
    pub max_seq_len: usize,
    /// Letters S and L.
    pub window_pattern: String,
    /// V.
    pub vocab_size: usize,
    /// Steps; wins over `target_flops` and the data ratio.
    pub num_iterations: Option<u64>,
    /// Compute of the run; wins over the data ratio.
    pub target_flops: Option<f64>,
    /// Training tokens per scaling parameter.
    pub target_param_data_ratio: f64,
    /// Rows of a micro batch.
    pub device_batch_size: Option<usize>,
    /// Tokens of a step.
    pub total_batch_size: Option<usize>,
    /// Rates before scaling.
    pub rates: LearningRates,
    /// Smear's lambda before the first step.
    #[serde(default)]
    pub smear_init: f32,
    /// Muon weight decay before scaling.
    pub weight_decay: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Share of the run over which the learning rate falls.
    pub warmdown_ratio: f64,
    /// Share of the learning rate that is left at the end.
    pub final_lr_frac: f64,
    /// Ranks that share a batch.
    pub world: usize,
}

impl Default for Ask {
    /// Upstream's defaults.
    fn default() -> Self {
        Self {
            depth: 20,
            aspect_ratio: 64,
            head_dim: 128,
            max_seq_len: 2048,
            window_pattern: "SSSL".into(),
            vocab_size: 32768,
            num_iterations: None,
            target_flops: None,
            target_param_data_ratio: 12.0,
            device_batch_size: None,
            total_batch_size: None,
            rates: LearningRates::default(),
            smear_init: 0.0,
            weight_decay: 0.28,
            warmup_steps: 40,
            warmdown_ratio: 0.65,
            final_lr_frac: 0.05,
            world: 1,
        }
    }
}

/// Every value of a base run, settled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Sizes of the model.
    pub config: GptConfig,
    /// Rows of a micro batch.
    pub device_batch_size: usize,
    /// Tokens of a step, over all ranks.
    pub total_batch_size: usize,
    /// Micro batches of a step.
    pub accumulation: usize,
    /// Steps and their rates.
    pub schedule: BaseSchedule,
    /// Rates, scaled for the batch.
    pub rates: LearningRates,
    /// Rates as given, before scaling; SFT starts from these.
    pub unscaled_rates: LearningRates,
    /// sqrt(B / reference batch): what multiplied the rates.
    pub batch_lr_scale: f64,
    /// Smear's lambda before the first step.
    #[serde(default)]
    pub smear_init: f32,
    /// Training FLOPs a token.
    pub flops_per_token: f64,
}

impl Recipe {
    /// Settles every value.
    ///
    /// `D = ratio * P_s` tokens; `B = 2^round(log2(B_ref (D / D_ref)^0.383))` (arXiv:2505.13738);
    /// `lr *= sqrt(B / B_ref)`; `wd *= sqrt(B / B_ref) D_ref / D` (arXiv:2405.13698), D_ref being D at
    /// depth 12. Steps: as given, else from FLOPs, else `floor(D / B)`.
    ///
    /// Errors: sizes that do not fit; a total batch that micro batches do not divide.
    pub fn new(ask: &Ask) -> Result<Self> {
        let config = ask.config(ask.depth)?;
        let reference = ask.config(REFERENCE_DEPTH)?;
        let ratio = ask.target_param_data_ratio;
        let scaling = |c: &GptConfig| ParamCount::of(c).scaling() as f64;
        let (d, d_ref) = (ratio * scaling(&config), ratio * scaling(&reference));
        let total_batch_size = match ask.total_batch_size {
            Some(b) => b,
            None => {
                let b = (REFERENCE_BATCH * (d / d_ref).powf(0.383)).log2();
                2usize.pow(round_half_even(b).clamp(0.0, 40.0) as u32)
            }
        };
        let (device_batch_size, accumulation) = ask.micro_batches(total_batch_size)?;
        let flops_per_token = train_flops_per_token(&config);
        let b = total_batch_size as f64;
        let num_iterations = match (ask.num_iterations, ask.target_flops) {
            (Some(n), _) => n,
            (None, Some(f)) => round_half_even(f / (flops_per_token * b)) as u64,
            (None, None) => (d / b).floor() as u64,
        };
        if num_iterations == 0 {
            let detail = format!("{b} tokens a step are more than the whole run: 0 steps");
            return Err(Error::Recipe { what: "--total-batch-size", detail });
        }
        let batch_lr_scale = (b / REFERENCE_BATCH).sqrt();
        Ok(Self {
            config,
            device_batch_size,
            total_batch_size,
            accumulation,
            schedule: BaseSchedule {
                num_iterations,
                warmup_steps: ask.warmup_steps,
                warmdown_ratio: ask.warmdown_ratio,
                final_lr_frac: ask.final_lr_frac,
                weight_decay: ask.weight_decay * batch_lr_scale * (d_ref / d),
                momentum_steps: 400,
            },
            rates: ask.rates.scaled(batch_lr_scale),
            unscaled_rates: ask.rates,
            batch_lr_scale,
            smear_init: ask.smear_init,
            flops_per_token,
        })
    }

    /// Tokens of the whole run.
    pub fn tokens(&self) -> f64 {
        self.schedule.num_iterations as f64 * self.total_batch_size as f64
    }
}

impl Ask {
    fn config(&self, depth: usize) -> Result<GptConfig> {
        Ok(GptConfig::from_depth(
            depth,
            self.aspect_ratio,
            self.head_dim,
            self.max_seq_len,
            self.vocab_size,
            &self.window_pattern,
        )?)
    }

    /// (rows of a micro batch, micro batches of a step).
    fn micro_batches(&self, total: usize) -> Result<(usize, usize)> {
        let row = self.max_seq_len * self.world;
        let what = "--total-batch-size";
        if row == 0 || total == 0 || !total.is_multiple_of(row) {
            let detail = format!("{total} tokens are not one or more rows of T x ranks = {row}");
            return Err(Error::Recipe { what, detail });
        }
        let rows = total / row;
        let b = match self.device_batch_size {
            Some(b) => b,
            // The largest divisor that is at most 32.
            None => (1..=rows.min(32)).rev().find(|b| rows.is_multiple_of(*b)).unwrap_or(1),
        };
        if b == 0 || !rows.is_multiple_of(b) {
            let near: Vec<usize> = (1..=rows).filter(|b| rows.is_multiple_of(*b)).collect();
            let detail = format!(
                "{total} tokens are {rows} rows of T = {}; --device-batch-size {b} does not divide them: \
                 use one of {near:?}",
                self.max_seq_len
            );
            return Err(Error::Recipe { what, detail });
        }
        Ok((b, rows / b))
    }
}
