//! Seconds of two layers, of the head and of the optimizer, from which those of a step follow.

use std::time::Instant;

use nanochat_compute::ops::{AdamW, HeadLoss, LOSS_ROWS};
use nanochat_compute::{Backend, DType};
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use serde::{Deserialize, Serialize};

use super::Job;
use crate::Result;
use crate::optim::{LearningRates, Optimizer};
use crate::schedule::Rates;

/// Layers are alike: the probe's model has two, since every second one has a value embedding.
const LAYERS: usize = 2;
/// Tokens of the probe's vocabulary: its tables and its head take no time.
const VOCAB: usize = 64;
/// Timings of a batch, of which the least counts: what disturbs a machine only adds.
const RUNS: usize = 3;
/// No further batch is timed after this many seconds.
const ENOUGH_S: f64 = 1.2;
/// A larger batch that gains less than this a row has reached the plateau ...
const PLATEAU: f64 = 0.01;
/// ... when it is the second one in a row.
const FLAT: usize = 2;
/// Parameters whose AdamW step is timed.
const TABLE: usize = 1 << 20;

/// What the probe measured, seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// (B, forward and backward of two layers on B rows), B ascending.
    pub two_layers: Vec<(usize, f64)>,
    /// Head and loss: what a call takes once.
    pub head_call: f64,
    /// Head and loss: what [`LOSS_ROWS`] more rows take.
    pub head_rows: f64,
    /// Optimizer step of two layers.
    pub muon: f64,
    /// Optimizer step of the tables.
    pub tables: f64,
}

impl Timings {
    /// Seconds of a step: `accumulation (L t_layer(B) + t_head(B T)) + t_optimizer`; none when B was
    /// not timed.
    pub fn step_s(&self, b: usize, t: usize, accumulation: usize, layers: usize) -> Option<f64> {
        let two = self.two_layers.iter().find(|(timed, _)| *timed == b)?.1;
        let pairs = layers as f64 / LAYERS as f64;
        let head = self.head_call + (b * t).div_ceil(LOSS_ROWS) as f64 * self.head_rows;
        Some(accumulation as f64 * (pairs * two + head) + pairs * self.muon + self.tables)
    }

    /// False for times that no clock gives: a cache may hold anything.
    pub(super) fn are_sound(&self) -> bool {
        let rest = [self.head_call, self.head_rows, self.muon, self.tables];
        let layers = self.two_layers.iter().map(|(_, s)| *s);
        !self.two_layers.is_empty() && layers.chain(rest).all(|s| s.is_finite() && s >= 0.0)
    }

    /// The slower of both, for batches that both timed.
    pub fn slowest(&self, other: &Timings) -> Timings {
        let both = |(b, s): &(usize, f64)| {
            let theirs = other.two_layers.iter().find(|(timed, _)| timed == b)?;
            Some((*b, s.max(theirs.1)))
        };
        Timings {
            two_layers: self.two_layers.iter().filter_map(both).collect(),
            head_call: self.head_call.max(other.head_call),
            head_rows: self.head_rows.max(other.head_rows),
            muon: self.muon.max(other.muon),
            tables: self.tables.max(other.tables),
        }
    }
}

/// The least of some runs of `body`, after `cold` that do not count.
fn least(cold: usize, runs: usize, mut body: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for run in 0..cold + runs {
        let start = Instant::now();
        body()?;
        if run >= cold {
            least = least.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}

/// Times the batches `fitting` (ascending), until larger ones gain nothing or time is up.
///
/// Errors: memory that is not there.
pub fn probe(be: &dyn Backend, job: &Job<'_>, fitting: &[usize]) -> Result<Timings> {
    let start = Instant::now();
    let raw: RawConfig = job.config.clone().into();
    let raw = RawConfig { n_layer: LAYERS, vocab_size: VOCAB, sequence_len: job.t, ..raw };
    let model = Nano::zeros(be, GptConfig::new(raw)?)?;
    model.init(0)?;
    let mut timings = Timings::default();
    let (mut best, mut flat) = (f64::INFINITY, 0);
    for (i, &b) in fitting.iter().enumerate() {
        let seconds = layers(be, &model, b, job.t, usize::from(i == 0))?;
        timings.two_layers.push((b, seconds));
        let a_row = seconds / b as f64;
        flat = if a_row > best * (1.0 - PLATEAU) { flat + 1 } else { 0 };
        best = best.min(a_row);
        // The next one takes about twice as long.
        let next = start.elapsed().as_secs_f64() + 2.0 * RUNS as f64 * seconds;
        if flat >= FLAT || next > ENOUGH_S {
            break;
        }
    }
    timings.muon = optimizer(be, &model)?;
    drop(model);
    (timings.head_call, timings.head_rows) = head(be, job.config)?;
    timings.tables = tables(be, job.config)?;
    Ok(timings)
}

/// Seconds of forward and backward on `b` rows.
fn layers(be: &dyn Backend, model: &Nano, b: usize, t: usize, cold: usize) -> Result<f64> {
    let plan = StepPlan::new(model.config(), b, t, Mode::Train);
    let arena = plan.layout().allocate(be)?;
    let (buffers, grads) = (plan.views(&arena), be.alloc(model.table().len(), DType::F32)?);
    least(cold, RUNS, || {
        model.forward_backward(be, &buffers, &grads, 1e-3)?;
        Ok(())
    })
}

/// Seconds of an optimizer step that changes nothing.
fn optimizer(be: &dyn Backend, model: &Nano) -> Result<f64> {
    let mut optim = Optimizer::new(be, model, LearningRates::default())?;
    let grads = be.alloc(model.table().len(), DType::F32)?;
    let scratch = be.alloc(Optimizer::scratch_len(model.table()), DType::F32)?;
    let still = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    least(1, 1, || optim.step(be, model, &grads, &scratch, &still))
}

/// Seconds of a call of the head: (once, for every [`LOSS_ROWS`] rows). It walks that many at a time.
fn head(be: &dyn Backend, config: &GptConfig) -> Result<(f64, f64)> {
    let (c, v) = (config.n_embd, config.vocab_size);
    // Two and four stretches: with one, a weight is not worth packing.
    let [few, many] = [2 * LOSS_ROWS, 4 * LOSS_ROWS];
    let alloc = |len| be.alloc(len, DType::F32);
    let (w, dw) = (alloc(v * c)?, alloc(v * c)?);
    let (x, dx, losses) = (alloc(many * c)?, alloc(many * c)?, alloc(many)?);
    let targets = be.alloc(many, DType::I32)?;
    let scratch = alloc(LOSS_ROWS * v)?;
    // The embedding of zeros has no angle: any numbers do, none of them subnormal.
    be.fill(&w, 0.01)?;
    be.fill(&x, 0.5)?;
    let softcap = config.rules().softcap;
    let run = |n: usize| {
        let s = HeadLoss { n, c, v, softcap, grad_scale: 1e-3 };
        let (x, dx) = (x.slice(0..n * c), dx.slice(0..n * c));
        let (losses, targets) = (losses.slice(0..n), targets.slice(0..n));
        be.head_loss(&losses, Some((&dx, &dw)), &scratch, &x, &w, &targets, &s)
    };
    let few_s = least(1, RUNS, || Ok(run(few)?))?;
    let many_s = least(0, RUNS - 1, || Ok(run(many)?))?;
    // Noise must not make rows free, nor the call cost less than nothing.
    let rows = ((many_s - few_s) / 2.0).clamp(few_s / 4.0, few_s / 2.0);
    Ok((few_s - 2.0 * rows, rows))
}

/// Seconds of an AdamW step over everything that is no matrix.
fn tables(be: &dyn Backend, config: &GptConfig) -> Result<f64> {
    let n = ParamCount::of(config);
    let alloc = || be.alloc(TABLE, DType::F32);
    let (p, m, v, g) = (alloc()?, alloc()?, alloc()?, alloc()?);
    let s = AdamW { lr: 0.0, beta1: 0.9, beta2: 0.95, eps: 1e-10, wd: 0.0, t: 1 };
    let seconds = least(1, 1, || Ok(be.adamw(&p, &m, &v, &g, &s)?))?;
    Ok(seconds * (n.total - n.transformer_matrices) as f64 / TABLE as f64)
}
