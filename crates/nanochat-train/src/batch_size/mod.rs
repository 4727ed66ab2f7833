//! Rows of a micro batch: memory is arithmetic, speed is a short probe.
//!
//! ```text
//! rows of a step -> candidates -> those that fit -> modelled seconds -> the smallest within 1 %
//! ```
//! No step is tried to see whether memory runs out: [`Bytes`] is arithmetic, and what fits is known
//! before anything is allocated. The total batch does not change, so candidates divide its rows: the
//! choice decides speed and memory. Finetuning takes the mean of each micro batch over its own trained
//! targets, as upstream does, so there it also weighs rows a little differently.

mod cache;
mod probe;

use nanochat_compute::{Backend, DType};
use nanochat_gpt::GptConfig;
use serde::{Deserialize, Serialize};

pub use cache::{Cache, Key};
pub use probe::{Round, Timings, probe};

use crate::step::Bytes;
use crate::{Error, Result};

/// Slower than the best by this share is as good as the best: the smaller batch wins.
pub const TOLERANCE: f64 = 0.01;

/// What a batch is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The model.
    pub config: &'a GptConfig,
    /// Tokens of a row.
    pub t: usize,
    /// Rows of a step on this rank: total batch / (T ranks).
    pub rows: usize,
}

/// Memory of this process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Held now.
    pub held: u64,
    /// What may be had beside it: the least of the machine's, the container's and the process's limit.
    pub free: u64,
    /// Share of `free` that may be planned for.
    pub margin: f64,
}

impl Memory {
    /// What a plan may take.
    pub fn budget(&self) -> u64 {
        (self.free as f64 * self.margin.clamp(0.0, 1.0)) as u64
    }
}

/// A batch and why it was chosen. As JSON it is the line that a run prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// B.
    pub batch_size: usize,
    /// Micro batches of a step.
    pub accumulation: usize,
    /// Peak memory of the process in training.
    pub predicted_bytes: u64,
    /// What the process may have in all.
    pub limit_bytes: u64,
    /// Seconds that it took to choose.
    pub discovery_s: f64,
    /// The timings came from the cache.
    pub cached: bool,
    /// Candidates that fit, with the modelled speed of those that were timed.
    pub candidates: Vec<Candidate>,
}

/// One batch that could be chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// B.
    pub batch_size: usize,
    /// Bytes of training with it.
    pub bytes: u64,
    /// Modelled speed of whole steps; none: it was not timed.
    pub tokens_per_sec: Option<f64>,
}

/// Batches worth a thought: 2^k and 3 2^k that divide `rows`, and `rows` itself; ascending.
pub fn candidates(rows: usize) -> Vec<usize> {
    let powers = (0..usize::BITS).map(|k| 1usize << k).take_while(|b| *b <= rows);
    let smooth = powers.flat_map(|b| [b, b.saturating_mul(3)]);
    let mut all: Vec<usize> = smooth.filter(|b| *b <= rows && rows.is_multiple_of(*b)).collect();
    all.push(rows);
    all.sort_unstable();
    all.dedup();
    all
}

/// Candidates whose training fits into the memory, ascending, with its bytes.
///
/// Errors: [`Error::Memory`] when not even the smallest does.
pub fn fitting(be: &dyn Backend, job: &Job<'_>, memory: &Memory) -> Result<Vec<(usize, Bytes)>> {
    let bytes = |b| (b, Bytes::of(be, job.config, b, job.t));
    let all: Vec<_> = candidates(job.rows).into_iter().map(bytes).collect();
    let (smallest, need) = all[0];
    let fits = |b: &Bytes| b.total() as u64 <= memory.budget();
    let fitting: Vec<_> = all.into_iter().filter(|(_, b)| fits(b)).collect();
    if fitting.is_empty() {
        return Err(Error::Memory {
            batch_size: smallest,
            need: need.total() as u64,
            budget: memory.budget(),
        });
    }
    Ok(fitting)
}

/// The smallest batch whose step is at most [`TOLERANCE`] slower than the best.
///
/// `step_s` are (B, seconds of a whole step), B ascending, at least one.
pub fn smallest_within(step_s: &[(usize, f64)], tolerance: f64) -> usize {
    let best = step_s.iter().map(|(_, s)| *s).fold(f64::INFINITY, f64::min);
    let good = step_s.iter().find(|(_, s)| *s <= best * (1.0 + tolerance));
    good.or(step_s.first()).map_or(1, |(b, _)| *b)
}

/// What every rank decides from: the least memory and the slowest times of all, so that all decide
/// the same.
pub fn agree(ranks: &[(u64, Timings)]) -> (u64, Timings) {
    let budget = ranks.iter().map(|r| r.0).min().unwrap_or(0);
    let timings = ranks.iter().skip(1).fold(ranks[0].1.clone(), |a, (_, b)| a.slowest(b));
    (budget, timings)
}

/// Chooses from what fits and what was measured; `seconds` went into measuring.
pub fn choose(
    job: &Job<'_>,
    memory: &Memory,
    fitting: &[(usize, Bytes)],
    timings: &Timings,
    (cached, seconds): (bool, f64),
) -> Choice {
    let mut steps = timings.step_s(job.t, job.rows, job.config.n_layer);
    steps.retain(|(b, _)| fitting.iter().any(|(fits, _)| fits == b));
    let batch_size =
        if steps.is_empty() { fitting[0].0 } else { smallest_within(&steps, TOLERANCE) };
    let tokens = (job.rows * job.t) as f64;
    let step = |b: usize| steps.iter().find(|(timed, _)| *timed == b).map(|(_, s)| *s);
    let candidate = |(b, bytes): &(usize, Bytes)| Candidate {
        batch_size: *b,
        bytes: bytes.total() as u64,
        tokens_per_sec: step(*b).map(|s| (tokens / s).round()),
    };
    let bytes = fitting.iter().find(|(b, _)| *b == batch_size).map_or(0, |(_, b)| b.total());
    Choice {
        batch_size,
        accumulation: job.rows / batch_size,
        predicted_bytes: memory.held + bytes as u64,
        limit_bytes: memory.held + memory.free,
        discovery_s: (1e3 * seconds).round() / 1e3,
        cached,
        candidates: fitting.iter().map(candidate).collect(),
    }
}

/// True when the system would hand out the bytes now. Nothing is touched, nothing is kept.
pub fn can_allocate(be: &dyn Backend, bytes: &Bytes) -> bool {
    be.alloc(bytes.total().div_ceil(4), DType::F32).is_ok()
}

#[cfg(test)]
mod tests;
