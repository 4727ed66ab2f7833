//! Seconds of a layer, of the head and of the optimizer, from which those of a step follow.

use std::time::Instant;

use nanochat_compute::ops::{AdamW, HeadLoss, LOSS_ROWS};
use nanochat_compute::{Backend, DType, Tensor};
use nanochat_gpt::nano::buffers::{Buffers, Mode, StepPlan};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use serde::{Deserialize, Serialize};

use super::Job;
use crate::Result;
use crate::metrics::median;
use crate::optim::{LearningRates, Optimizer};
use crate::schedule::Rates;
use crate::step::Bytes;

/// Layers are alike: the probe's model has one.
const LAYERS: usize = 1;
/// Tokens of the probe's vocabulary: its tables and its head take no time.
const VOCAB: usize = 64;
/// Rounds at most: each gives the batches' times relative to each other, and the median counts.
const ROUNDS: usize = 9;
/// No further round begins after this many seconds.
const ENOUGH_S: f64 = 1.8;
/// Seconds that all batches may take the first time, when memory is touched: batches are timed up to
/// there, and two at least. Larger ones are not chosen: what they save is little, and what they lose
/// in caches is not known.
const FIRST_S: f64 = 0.3;
/// Stretches of rows of the head's two timings ([`Timings::stretch`]); with one, a weight is not packed.
const STRETCHES: [usize; 2] = [2, 5];
/// Share of the vocabulary that the head is timed on: its time is that many times as long.
const HEAD_SHARE: usize = 8;
/// Parameters whose AdamW step is timed.
const TABLE: usize = 1 << 20;

/// What the probe measured, seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Rows of a stretch of the head: as many as the device holds the logits of.
    #[serde(default = "loss_rows")]
    pub stretch: usize,
    /// Batches that were timed, ascending.
    pub batches: Vec<usize>,
    /// Rounds, in each of which everything was timed once.
    pub rounds: Vec<Round>,
    /// Optimizer step of a layer.
    pub muon: f64,
    /// Optimizer step of the tables.
    pub tables: f64,
}

/// What timings of before had.
fn loss_rows() -> usize {
    LOSS_ROWS
}

/// A round of timings, seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Forward and backward of a layer on each of the batches.
    pub layer: Vec<f64>,
    /// Head and loss on two and on five stretches of rows.
    pub head: [f64; 2],
}

impl Timings {
    /// Modelled seconds of a step of `rows` rows of T tokens in micro batches of each timed batch that
    /// divides them.
    ///
    /// `accumulation (L t_layer(B) + t_head(B T)) + t_optimizer`, where the head takes something once a
    /// call (its weight is packed) and something for every stretch of rows. Each round gives times
    /// relative to those of the last batch; their medians count, so that a machine that is slow for a
    /// while slows all batches down.
    pub fn step_s(&self, t: usize, rows: usize, layers: usize) -> Vec<(usize, f64)> {
        let layers = layers as f64 / LAYERS as f64;
        let one = |round: &Round, i: usize| {
            let b = self.batches[i];
            let stretches = b as f64 * t as f64 / self.stretch.max(1) as f64;
            // A part of a short stretch takes its time; a long one, on a GPU, is worth its rows.
            let stretches = if self.stretch > LOSS_ROWS { stretches } else { stretches.ceil() };
            let [few, many] = round.head;
            // Noise must not make rows free.
            let each = (many - few).max(0.0) / (STRETCHES[1] - STRETCHES[0]) as f64;
            let head = few + (stretches - STRETCHES[0] as f64) * each;
            (rows / b) as f64 * (layers * round.layer[i] + head) + layers * self.muon + self.tables
        };
        let Some(last) = self.batches.len().checked_sub(1) else { return Vec::new() };
        let middle = |all: Vec<f64>| median(all).unwrap_or(f64::NAN);
        let all = middle(self.rounds.iter().map(|r| one(r, last)).collect());
        let share = |i| middle(self.rounds.iter().map(|r| one(r, i) / one(r, last)).collect());
        let timed = self.batches.iter().enumerate().filter(|(_, b)| rows.is_multiple_of(**b));
        timed.map(|(i, &b)| (b, share(i) * all)).collect()
    }

    /// False for times that no clock gives: a cache may hold anything.
    pub(super) fn are_sound(&self) -> bool {
        let sound = |r: &Round| {
            let mut all = r.layer.iter().chain(&r.head);
            r.layer.len() == self.batches.len() && all.all(|s| s.is_finite() && *s > 0.0)
        };
        let rest = [self.muon, self.tables].into_iter().all(|s| s.is_finite() && s >= 0.0);
        let batches = !self.batches.is_empty() && self.batches.iter().all(|b| *b > 0);
        batches && !self.rounds.is_empty() && self.rounds.iter().all(sound) && rest
    }

    /// The slower of both, for batches and rounds that both timed.
    pub fn slowest(&self, other: &Timings) -> Timings {
        let place = |b: &usize| Some((self.at(*b)?, other.at(*b)?));
        let (batches, places): (Vec<usize>, Vec<_>) =
            self.batches.iter().filter_map(|b| Some((*b, place(b)?))).unzip();
        let both = |(a, b): (&Round, &Round)| Round {
            layer: places.iter().map(|&(i, j)| a.layer[i].max(b.layer[j])).collect(),
            head: [0, 1].map(|i| a.head[i].max(b.head[i])),
        };
        Timings {
            stretch: self.stretch,
            batches,
            rounds: self.rounds.iter().zip(&other.rounds).map(both).collect(),
            muon: self.muon.max(other.muon),
            tables: self.tables.max(other.tables),
        }
    }

    fn at(&self, b: usize) -> Option<usize> {
        self.batches.iter().position(|timed| *timed == b)
    }
}

fn seconds(be: &dyn Backend, body: impl FnOnce() -> Result<()>) -> Result<f64> {
    be.synchronize()?;
    let start = Instant::now();
    body()?;
    be.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Times the smaller ones of the batches `fitting` (ascending), head and optimizer: all in turn, round
/// by round, so that a slow spell of the machine meets them all.
///
/// The probe itself stays within `budget` bytes. Errors: memory that is not there even so.
pub fn probe(
    be: &dyn Backend,
    job: &Job<'_>,
    fitting: &[(usize, Bytes)],
    budget: u64,
) -> Result<Timings> {
    if be.own_memory().is_some() {
        return whole_steps(be, job, fitting);
    }
    let start = Instant::now();
    let raw: RawConfig = job.config.clone().into();
    let raw = RawConfig { n_layer: LAYERS, vocab_size: VOCAB, sequence_len: job.t, ..raw };
    let model = Nano::zeros(be, GptConfig::new(raw)?)?;
    model.init(0)?;
    let head = Head::new(be, job.config)?;
    let grads = be.alloc(model.table().len(), DType::F32)?;
    let mut tried: Vec<Tried> = Vec::new();
    let mut spent = 0.0;
    for &(b, _) in fitting {
        // The next one takes about twice as long as the one before.
        if tried.len() >= 2 && spent + 2.0 * tried[tried.len() - 1].first > FIRST_S {
            break;
        }
        let plan = StepPlan::on(be, model.config(), b, job.t, Mode::train(be));
        // What the other layers of a step write between two visits of this one.
        let others = StepPlan::on(be, job.config, b, job.t, Mode::train(be)).bytes();
        let others = others.saturating_sub(plan.bytes()) / 4;
        // All arenas so far are about as large as this one, and the head takes what state would.
        let need = 2 * plan.bytes() + 4 * others + head.bytes();
        if !tried.is_empty() && need as u64 > budget {
            break;
        }
        let buffers = plan.views(&plan.layout().allocate(be)?);
        let mut one = Tried { b, buffers, others, first: 0.0 };
        one.first = one.run(be, &model, &grads)?;
        spent += one.first;
        tried.push(one);
    }
    let batches = tried.iter().map(|one| one.b).collect();
    let stretch = be.step_style().loss_rows;
    let mut timings = Timings { batches, stretch, ..Timings::default() };
    let most = tried.iter().map(|one| one.others).max().unwrap_or(0);
    let elsewhere = be.alloc(most, DType::F32)?;
    head.run(STRETCHES[1])?;
    for round in 0..ROUNDS {
        if round > 0 && start.elapsed().as_secs_f64() > ENOUGH_S {
            break;
        }
        let mut times = Round::default();
        for one in &tried {
            be.fill(&elsewhere.slice(0..one.others), 0.0)?;
            times.layer.push(one.run(be, &model, &grads)?);
        }
        for (stretches, time) in STRETCHES.into_iter().zip(&mut times.head) {
            *time = head.share() * seconds(be, || head.run(stretches))?;
        }
        timings.rounds.push(times);
    }
    timings.muon = optimizer(be, &model)?;
    timings.tables = tables(be, job.config)?;
    Ok(timings)
}

/// Times whole micro steps and the optimizer of the model itself: on a device that takes a fraction of a
/// second for them, and whose many small operations make a layer's time no measure of a model's.
fn whole_steps(be: &dyn Backend, job: &Job<'_>, fitting: &[(usize, Bytes)]) -> Result<Timings> {
    let model = Nano::zeros(be, job.config.clone())?;
    // Numbers do not matter, but zeros are multiplied faster than others.
    be.fill(model.params(), 0.01)?;
    let grads = be.alloc(model.table().len(), DType::F32)?;
    let layers = job.config.n_layer as f64 / LAYERS as f64;
    let mut timings = Timings { stretch: LOSS_ROWS, ..Timings::default() };
    let mut round = Round { layer: Vec::new(), head: [f64::MIN_POSITIVE; 2] };
    let mut spent = 0.0;
    for &(b, _) in fitting {
        let plan = StepPlan::on(be, job.config, b, job.t, Mode::train(be));
        let buffers = plan.views(&plan.layout().allocate(be)?);
        let ids = spread_ids(b * job.t, job.config.vocab_size);
        buffers.tokens.write_i32(&ids)?;
        buffers.targets.write_i32(&ids)?;
        let one = Tried { b, buffers, others: 0, first: 0.0 };
        // The first run loads kernels and chooses how products are computed.
        one.run(be, &model, &grads)?;
        let seconds = one.run(be, &model, &grads)?;
        timings.batches.push(b);
        round.layer.push(seconds / layers);
        spent += 2.0 * seconds;
        // The next one takes about twice as long.
        if timings.batches.len() >= 2 && spent + 4.0 * seconds > ENOUGH_S {
            break;
        }
    }
    timings.rounds.push(round);
    timings.muon = optimizer(be, &model)? / layers;
    Ok(timings)
}

/// `n` ids all over the vocabulary: on a GPU the rows of one id are added up one after another, so a batch
/// of one id alone would take longer the larger it is.
fn spread_ids(n: usize, vocab_size: usize) -> Vec<i32> {
    // Weyl's sequence of the golden ratio: neighbours are far apart, and all ids come equally often.
    let id = |i: u32| ((u64::from(i.wrapping_mul(0x9E37_79B9)) * vocab_size as u64) >> 32) as i32;
    (0..n as u32).map(id).collect()
}

/// A batch that is timed.
struct Tried {
    b: usize,
    buffers: Buffers,
    /// Floats that the other layers of a step take.
    others: usize,
    /// Seconds of the first run, which touches the memory.
    first: f64,
}

impl Tried {
    /// Seconds of forward and backward.
    fn run(&self, be: &dyn Backend, model: &Nano, grads: &Tensor) -> Result<f64> {
        seconds(be, || {
            model.forward_backward(be, &self.buffers, grads, 1e-3)?;
            Ok(())
        })
    }
}

/// Seconds of an optimizer step that changes nothing.
fn optimizer(be: &dyn Backend, model: &Nano) -> Result<f64> {
    let mut optim = Optimizer::new(be, model, LearningRates::default())?;
    let grads = be.alloc(model.table().len(), DType::F32)?;
    let scratch = be.alloc(Optimizer::scratch_len(be, model.table()), DType::F32)?;
    let still = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    optim.step(be, model, &grads, &scratch, &still)?;
    seconds(be, || optim.step(be, model, &grads, &scratch, &still))
}

/// Output head and loss with their gradients, on numbers that do not matter and a part of the
/// vocabulary.
struct Head<'a> {
    be: &'a dyn Backend,
    /// Tokens of the whole vocabulary.
    vocab: usize,
    shape: HeadLoss,
    w: Tensor,
    dw: Tensor,
    x: Tensor,
    dx: Tensor,
    losses: Tensor,
    targets: Tensor,
    scratch: Tensor,
    /// Rows of a stretch.
    stretch: usize,
}

impl<'a> Head<'a> {
    fn new(be: &'a dyn Backend, config: &GptConfig) -> Result<Self> {
        let stretch = be.step_style().loss_rows;
        let (c, vocab, n) = (config.n_embd, config.vocab_size, STRETCHES[1] * stretch);
        let v = vocab.div_ceil(HEAD_SHARE);
        let softcap = config.rules().softcap;
        let shape = HeadLoss { n, c, v, softcap, grad_scale: 1e-3 };
        let style = be.step_style();
        let alloc = |len| be.alloc(len, DType::F32);
        let stream = |len| be.alloc(len, style.activations);
        let (w, x) = (alloc(v * c)?, stream(n * c)?);
        // Any numbers do; none of them subnormal.
        be.fill(&w, 0.01)?;
        be.fill(&x, 0.5)?;
        Ok(Self {
            be,
            vocab,
            shape,
            w,
            dw: alloc(v * c)?,
            x,
            dx: stream(n * c)?,
            losses: alloc(n)?,
            targets: be.alloc(n, DType::I32)?,
            scratch: stream(n.min(stretch) * v)?,
            stretch,
        })
    }

    /// The whole vocabulary over what is timed.
    fn share(&self) -> f64 {
        self.vocab as f64 / self.shape.v as f64
    }

    /// Bytes of its tensors.
    fn bytes(&self) -> usize {
        let floats = [&self.w, &self.dw, &self.x, &self.dx, &self.scratch];
        floats.iter().map(|x| x.bytes()).sum()
    }

    /// On this many stretches of rows.
    fn run(&self, stretches: usize) -> Result<()> {
        let s = HeadLoss { n: stretches * self.stretch, ..self.shape };
        let (x, dx) = (self.x.slice(0..s.n * s.c), self.dx.slice(0..s.n * s.c));
        let (losses, targets) = (self.losses.slice(0..s.n), self.targets.slice(0..s.n));
        let scratch = match self.stretch > LOSS_ROWS {
            true => self.scratch.clone(),
            false => self.scratch.slice(0..s.scratch_len()),
        };
        let grads = Some((&dx, &self.dw));
        Ok(self.be.head_loss(&losses, grads, &scratch, &x, &self.w, &targets, &s)?)
    }
}

/// Seconds of an AdamW step over everything that is no matrix.
fn tables(be: &dyn Backend, config: &GptConfig) -> Result<f64> {
    let n = ParamCount::of(config);
    let alloc = || be.alloc(TABLE, DType::F32);
    let (p, m, v, g) = (alloc()?, alloc()?, alloc()?, alloc()?);
    let s = AdamW { lr: 0.0, beta1: 0.9, beta2: 0.95, eps: 1e-10, wd: 0.0, t: 1 };
    let run = || Ok(be.adamw(&p, &m, &v, &g, &s)?);
    run()?;
    Ok(seconds(be, run)? * (n.total - n.transformer_matrices) as f64 / TABLE as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_ids_hit_every_id_about_equally_often() {
        let mut hits = [0; 50];
        for id in spread_ids(5000, 50) {
            hits[id as usize] += 1;
        }
        assert!(hits.iter().all(|n| (95..=105).contains(n)), "{hits:?}");
    }

    #[test]
    fn a_slow_spell_changes_no_ratio() {
        // A layer takes 1 + 10 B, a head 4 and 2 a stretch; every other round runs at half the speed.
        let round = |slow: f64| Round {
            layer: [11.0, 21.0, 41.0].map(|s| s * slow).to_vec(),
            head: [8.0, 14.0].map(|s| s * slow),
        };
        let rounds = [1.0, 2.0, 1.0, 2.0, 1.0].map(round).to_vec();
        let stretch = LOSS_ROWS;
        let timings = Timings { batches: vec![1, 2, 4], stretch, rounds, ..Timings::default() };
        // Rows of one stretch each, two layers: 8 (22 + 6), 4 (42 + 8), 2 (82 + 12).
        let step = timings.step_s(LOSS_ROWS, 8, 2);
        let want = [(1, 224.0), (2, 200.0), (4, 188.0)];
        let near = |(a, b): (&(usize, f64), (usize, f64))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6;
        assert!(step.len() == 3 && step.iter().zip(want).all(near), "{step:?}");
        assert_eq!(timings.step_s(LOSS_ROWS, 6, 2).len(), 2, "4 does not divide 6");
    }
}
