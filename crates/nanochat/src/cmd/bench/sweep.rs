//! Every batch of a sweep in one process, in turn: what they take relative to each other.

use std::time::Instant;

use anyhow::Result;
use nanochat_compute::{Backend, DType};
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::{GptConfig, Nano};
use nanochat_train::batch_size::Job;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;

use super::child::median;

/// Rows that a batch trains in each round at least: a second or so, in which caches forget the others.
const VISIT: usize = 8;

/// Speeds of some batches, relative to each other.
pub struct Sweep {
    /// B, ascending.
    pub batches: Vec<usize>,
    /// Seconds of a step, by round and batch.
    pub step_s: Vec<Vec<f64>>,
}

impl Sweep {
    /// For each round: the batch's speed over the mean speed of the round.
    fn relative(&self, i: usize) -> Vec<f64> {
        let mean = |round: &[f64]| round.iter().sum::<f64>() / round.len() as f64;
        self.step_s.iter().map(|round| mean(round) / round[i]).collect()
    }

    /// Speed of each batch over that of the best, by medians over the rounds.
    pub fn shares(&self) -> Vec<f64> {
        let all: Vec<f64> = (0..self.batches.len()).map(|i| median(self.relative(i))).collect();
        let best = all.iter().fold(0.0, |a: f64, b| a.max(*b));
        all.iter().map(|s| s / best).collect()
    }

    /// Lowest, median and highest of the speed of batch `i` over that of batch `j` in the same round.
    pub fn ratio(&self, i: usize, j: usize) -> [f64; 3] {
        let mut all: Vec<f64> = self.step_s.iter().map(|round| round[j] / round[i]).collect();
        all.sort_by(f64::total_cmp);
        [all[0], median(all.clone()), all[all.len() - 1]]
    }

    /// Seconds of a step of batch `i`, median over the rounds.
    pub fn step_s(&self, i: usize) -> f64 {
        median(self.step_s.iter().map(|round| round[i]).collect())
    }
}

/// Trains with each of the batches in `rounds` rounds, up and down by turns, so that a machine that
/// drifts favours none. All use the same memory; the weights stay as they are.
pub fn sweep(be: &dyn Backend, job: &Job<'_>, batches: &[usize], rounds: usize) -> Result<Sweep> {
    let config: &GptConfig = job.config;
    let model = Nano::zeros(be, config.clone())?;
    model.init(0)?;
    let plans: Vec<_> =
        batches.iter().map(|&b| StepPlan::on(be, config, b, job.t, Mode::train(be))).collect();
    let scratch_len = Optimizer::scratch_len(be, model.table());
    let most = plans.iter().map(|plan| plan.bytes().div_ceil(4)).max().unwrap_or(0);
    let arena = be.alloc(most.max(scratch_len), DType::F32)?;
    let grads = be.alloc(model.table().len(), DType::F32)?;
    let mut optim = Optimizer::new(be, &model, LearningRates::default())?;
    let scratch = arena.slice(0..scratch_len);
    let still = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    let mut all = Vec::new();
    // The first round touches the memory and does not count.
    for round in 0..=rounds {
        let mut micro_s = vec![0.0; batches.len()];
        let mut order: Vec<usize> = (0..batches.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            let buffers = plans[i].views(&arena);
            let n = batches[i] * job.t;
            // Other tokens in every row, the same in every batch.
            let ids = |shift: usize| -> Vec<i32> {
                let id = |i: usize| (i + shift).wrapping_mul(2_654_435_761) >> 7;
                (0..n).map(|i| (id(i) % config.vocab_size) as i32).collect()
            };
            buffers.tokens.write_i32(&ids(0))?;
            buffers.targets.write_i32(&ids(1))?;
            let micro_batches = VISIT.div_ceil(batches[i]);
            let start = Instant::now();
            for _ in 0..micro_batches {
                model.forward_backward(be, &buffers, &grads, 1e-6)?;
            }
            micro_s[i] = start.elapsed().as_secs_f64() / micro_batches as f64;
        }
        let start = Instant::now();
        optim.step(be, &model, &grads, &scratch, &still)?;
        let optimizer_s = start.elapsed().as_secs_f64();
        be.fill(&grads, 0.0)?;
        let step = |(b, s): (&usize, f64)| (job.rows / b) as f64 * s + optimizer_s;
        all.push(batches.iter().zip(micro_s).map(step).collect());
    }
    all.remove(0);
    Ok(Sweep { batches: batches.to_vec(), step_s: all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_round_changes_no_share() {
        let round = |slow: f64| [4.0, 2.0, 2.5].map(|s| s * slow).to_vec();
        let step_s = [1.0, 3.0, 1.0, 5.0].map(round).to_vec();
        let sweep = Sweep { batches: vec![1, 2, 4], step_s };
        let want = [0.5, 1.0, 0.8];
        assert!(sweep.shares().iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12));
        assert_eq!(sweep.ratio(1, 0), [2.0, 2.0, 2.0]);
        assert_eq!(sweep.step_s(1), 6.0, "the upper middle of 2, 2, 6, 10");
    }
}
