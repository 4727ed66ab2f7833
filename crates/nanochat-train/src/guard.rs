//! Steps that must not reach the weights: what is one, and what becomes of the run.
//!
//! In: the losses of good steps, and that a step was bad. Out: the loss from which on a step counts as a
//! spike, and whether to pass over the step, go back, or stop. All of it is in the checkpoint, so a run
//! that goes on decides as one that never stopped.

use serde::{Deserialize, Serialize};

/// Losses that the median is taken over.
const WINDOW: usize = 128;
/// Losses below which no step is called a spike.
const LEAST: usize = 64;
/// A spike lies this many robust deviations above the median, and [`NATS`] above it at least: losses of
/// small batches and of a model that knows its data by heart are far apart in deviations alone.
const DEVIATIONS: f64 = 12.0;
const NATS: f64 = 1.0;
/// Standard deviations of a normal distribution in one median absolute deviation.
const SIGMA: f64 = 1.4826;

/// Bad steps in a row with which the run goes back to its last checkpoint.
pub const MAX_CONSECUTIVE: u32 = 3;

/// What becomes of a bad step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is passed over: the weights stay, the data is used up.
    Skip,
    /// Back to the last checkpoint; the data since is passed over.
    RollBack,
    /// It came again after going back: the run stops.
    Stop,
}

/// What a run remembers of its losses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Losses of the last good steps, oldest first.
    losses: Vec<f64>,
    /// Bad steps in a row so far.
    consecutive: u32,
    /// Bad steps of the whole run.
    pub skipped: u64,
    /// Times that it went back.
    pub rollbacks: u64,
    /// The step at which it last went back, until it has passed it.
    rolled_back_at: Option<u64>,
}

impl Guard {
    /// The loss above which a step is a spike: `median + max(1, 12 x 1.4826 x MAD)` nats over the last 128
    /// good steps; infinite before there are 64. Only finite losses are ever taken in, so no step can
    /// poison it.
    pub fn limit(&self) -> f64 {
        if self.losses.len() < LEAST {
            return f64::INFINITY;
        }
        let middle = median(self.losses.clone());
        let mad = median(self.losses.iter().map(|loss| (loss - middle).abs()).collect());
        middle + (DEVIATIONS * SIGMA * mad).max(NATS)
    }

    /// Takes in a step that reached the weights.
    pub fn good(&mut self, step: u64, loss: f64) {
        self.consecutive = 0;
        if self.rolled_back_at.is_some_and(|at| step > at) {
            self.rolled_back_at = None;
        }
        if loss.is_finite() {
            if self.losses.len() == WINDOW {
                self.losses.remove(0);
            }
            self.losses.push(loss);
        }
    }

    /// Takes in a bad step.
    pub fn bad(&mut self, step: u64) -> Verdict {
        self.consecutive += 1;
        self.skipped += 1;
        match self.rolled_back_at {
            _ if self.consecutive < MAX_CONSECUTIVE => Verdict::Skip,
            Some(at) if step <= at => Verdict::Stop,
            _ => {
                self.rolled_back_at = Some(step);
                Verdict::RollBack
            }
        }
    }

    /// What is remembered after going back to a step whose guard was `then`.
    pub fn rolled_back(&self, then: &Guard) -> Guard {
        let (losses, rolled_back_at) = (then.losses.clone(), self.rolled_back_at);
        let (skipped, rollbacks) = (self.skipped, self.rollbacks + 1);
        Guard { losses, consecutive: 0, skipped, rollbacks, rolled_back_at }
    }

    /// Bad steps in a row so far.
    pub fn consecutive(&self) -> u32 {
        self.consecutive
    }
}

/// The middle value, the upper of two. Not called with none.
fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses about 3, 0.1 apart.
    fn steady(n: u64) -> Guard {
        let mut guard = Guard::default();
        (0..n).for_each(|i| guard.good(i, 3.0 + 0.1 * (i % 5) as f64));
        guard
    }

    #[test]
    fn a_spike_is_far_from_the_median_and_no_loss_can_poison_it() {
        assert_eq!(steady(63).limit(), f64::INFINITY);
        let mut guard = steady(64);
        // Median 3.2, MAD 0.1: 12 x 1.4826 x 0.1 = 1.78.
        assert!((guard.limit() - (3.2 + 1.77912)).abs() < 1e-9, "{}", guard.limit());
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            guard.good(64, loss);
        }
        assert_eq!(guard, steady(64));
        // A third of the window gone wild moves the limit a little and not away.
        (0..40).for_each(|i| guard.good(i, 1e30));
        assert!(guard.limit() < 20.0, "{}", guard.limit());
        // Losses that are all alike leave a nat.
        let mut flat = Guard::default();
        (0..200).for_each(|i| flat.good(i, 0.5));
        assert_eq!((flat.limit(), flat.losses.len()), (1.5, WINDOW));
    }

    #[test]
    fn two_are_passed_over_the_third_goes_back_and_its_return_stops() {
        let mut guard = steady(100);
        assert_eq!([guard.bad(100), guard.bad(101)], [Verdict::Skip; 2]);
        guard.good(102, 3.0);
        assert_eq!([guard.bad(103), guard.bad(104)], [Verdict::Skip; 2]);
        assert_eq!(guard.bad(105), Verdict::RollBack);
        let mut back = guard.rolled_back(&steady(90));
        assert_eq!((back.skipped, back.rollbacks, back.consecutive()), (5, 1, 0));
        // The same place again.
        let mut again = back.clone();
        assert_eq!([again.bad(103), again.bad(104)], [Verdict::Skip; 2]);
        assert_eq!(again.bad(105), Verdict::Stop);
        // Past it, another one may go back again.
        back.good(106, 3.0);
        assert_eq!([back.bad(107), back.bad(108)], [Verdict::Skip; 2]);
        assert_eq!(back.bad(109), Verdict::RollBack);
    }
}
