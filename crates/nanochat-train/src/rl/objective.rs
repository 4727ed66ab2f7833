//! From rewards to the factors of each target's gradient.
//!
//! ```text
//! A_i = r_i - mean r                     (/ std r, if normalised)     one for each sample of a question
//! loss = -sum_t min(rho_t A, clip(rho_t, 1 - eps, 1 + eps) A) + beta sum_t k3_t
//! rho_t = p(id_t) / p_old(id_t),  k3 = p_ref / p - ln(p_ref / p) - 1
//! ```
//! Each of these has the gradient of a weighted log likelihood, `-sum_t w_t grad ln p(id_t)`, and `w` is
//! all that the train step needs. Without clipping, KL and a second pass over the same samples w = A:
//! REINFORCE. Sources: nanochat `chat_rl.py`, July 2026; PPO, arXiv:1707.06347, eq. 7; GRPO,
//! arXiv:2402.03300, section 4.1; k3: Schulman, "Approximating KL divergence", 2020.

use serde::{Deserialize, Serialize};

/// What is maximised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Divides advantages by the standard deviation of their question's rewards.
    pub normalize_advantage: bool,
    /// eps: no gradient once an id has become so much likelier (or less likely) than it was.
    pub clip_ratio: Option<f64>,
    /// beta: pulls towards the model that the run began with.
    pub kl: f64,
}

/// Log probabilities of an id, natural.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProbs {
    /// Of the model as it is.
    pub now: f64,
    /// Of the model that drew it.
    pub old: f64,
    /// Of the model that the run began with.
    pub reference: f64,
}

/// Keeps a question whose rewards hardly differ from dividing by nothing.
const STD_FLOOR: f64 = 1e-4;

impl Objective {
    /// Advantages of the samples of one question; all 0 when the rewards are equal.
    pub fn advantages(&self, rewards: &[f64]) -> Vec<f64> {
        let n = rewards.len().max(1) as f64;
        let mean = rewards.iter().sum::<f64>() / n;
        let variance = rewards.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n;
        let by = if self.normalize_advantage { variance.sqrt() + STD_FLOOR } else { 1.0 };
        rewards.iter().map(|r| (r - mean) / by).collect()
    }

    /// True if factors depend on log probabilities, beside the advantage.
    pub fn needs_logprobs(&self, passes: usize) -> bool {
        self.kl > 0.0 || passes > 1
    }

    /// w of an id of a sample with this advantage.
    pub fn factor(&self, advantage: f64, p: &LogProbs) -> f64 {
        let ratio = (p.now - p.old).exp();
        let clipped = self.clip_ratio.is_some_and(|eps| {
            (advantage > 0.0 && ratio > 1.0 + eps) || (advantage < 0.0 && ratio < 1.0 - eps)
        });
        let policy = if clipped { 0.0 } else { advantage * ratio };
        // d k3 / d ln p = 1 - p_ref / p
        policy - self.kl * (1.0 - (p.reference - p.now).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_differences_from_the_mean() {
        let plain = Objective::default();
        assert_eq!(plain.advantages(&[1.0, 0.0, 0.0, 1.0]), [0.5, -0.5, -0.5, 0.5]);
        assert_eq!(plain.advantages(&[1.0, 1.0]), [0.0, 0.0]);
        let normal = Objective { normalize_advantage: true, ..plain };
        let a = normal.advantages(&[1.0, 0.0, 0.0, 0.0]);
        // Mean 1/4, deviation sqrt(3)/4.
        assert!((a[0] - 3f64.sqrt()).abs() < 2e-3 && (a[1] + 1.0 / 3f64.sqrt()).abs() < 2e-3);
        assert_eq!(normal.advantages(&[0.0; 3]), [0.0; 3]);
    }

    #[test]
    fn the_first_pass_is_reinforce() {
        let p = LogProbs { now: -1.5, old: -1.5, reference: -1.5 };
        let o = Objective { clip_ratio: Some(0.2), kl: 0.1, ..Objective::default() };
        assert_eq!(o.factor(0.75, &p), 0.75);
        assert_eq!(o.factor(-0.25, &p), -0.25);
    }

    /// Twice the surrogate's difference quotient is what the factor says.
    #[test]
    fn factors_are_the_gradient_of_the_objective() {
        let surrogate = |o: &Objective, a: f64, p: &LogProbs| {
            let ratio = (p.now - p.old).exp();
            let policy = match o.clip_ratio {
                Some(eps) => (ratio * a).min(ratio.clamp(1.0 - eps, 1.0 + eps) * a),
                None => ratio * a,
            };
            let away = p.reference - p.now;
            policy - o.kl * (away.exp() - away - 1.0)
        };
        for clip_ratio in [None, Some(0.2)] {
            for kl in [0.0, 0.3] {
                let o = Objective { clip_ratio, kl, ..Objective::default() };
                for advantage in [0.8, -0.8] {
                    for now in [-2.0, -1.6, -1.45, -1.1] {
                        let at = |now| LogProbs { now, old: -1.5, reference: -1.9 };
                        let h = 1e-5;
                        let up = surrogate(&o, advantage, &at(now + h));
                        let slope = (up - surrogate(&o, advantage, &at(now - h))) / (2.0 * h);
                        let factor = o.factor(advantage, &at(now));
                        assert!((slope - factor).abs() < 1e-6, "{o:?} {now}: {slope} {factor}");
                    }
                }
            }
        }
    }
}
