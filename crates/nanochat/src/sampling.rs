//! Whether n samples of one prompt draw n first tokens: a statistical test on fixed logits, for
//! `verify` and the benchmarks.

use std::ops::ControlFlow;

use nanochat_engine::{ChiSquare, Engine, FirstToken, GenerateOptions, SampleOptions, chi_square};
use nanochat_gpt::Result;
use nanochat_gpt::model::Decoder;

/// Samples of a prompt.
pub const SAMPLES: usize = 16;
/// Prompts' worth of samples that are tested.
const PROMPTS: u64 = 125;
/// A right sampler falls below this in one of a thousand tests.
pub const UNLIKELY: f64 = 0.001;
const VOCAB: usize = 24;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// First tokens of all samples against the softmax of the logits.
    pub test: ChiSquare,
    /// Different first tokens of the first prompt's samples.
    pub first_tokens: usize,
}

/// A model that says the same whatever was said.
struct Fixed {
    logits: Vec<f32>,
    rows: usize,
    len: usize,
}

impl Fixed {
    /// Logits of 24 ids from likely to unlikely.
    fn new() -> Self {
        let logits = (0..VOCAB).map(|i| 2.0 - 0.15 * i as f32).collect();
        Self { logits, rows: 1, len: 0 }
    }
}

impl Decoder for Fixed {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_len(&self) -> usize {
        1 << 20
    }

    fn len(&self) -> usize {
        self.len
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn reset(&mut self) {
        (self.rows, self.len) = (1, 0);
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.len += ids.len();
        Ok(self.logits.clone())
    }

    fn fork(&mut self, n: usize) -> Result<()> {
        self.rows = n;
        Ok(())
    }

    fn decode(&mut self, _: &[u32]) -> Result<Vec<f32>> {
        self.len += 1;
        Ok(self.logits.repeat(self.rows))
    }
}

/// Ids of `n` samples of `tokens` ids at a temperature, the first row being number `first_row`.
pub fn draw(
    first_token: FirstToken,
    (temperature, seed): (f32, u64),
    (n, first_row): (usize, u64),
    tokens: usize,
) -> Vec<Vec<u32>> {
    let mut model = Fixed::new();
    let sample = SampleOptions::new(temperature, None, seed).expect("a temperature in 0..=2");
    let options = GenerateOptions {
        n,
        first_token,
        first_row,
        tools: false,
        stop_at_eot: false,
        ..GenerateOptions::new(sample, tokens)
    };
    let generation = Engine::without_text(&mut model)
        .generate(&[0], &options, |_| ControlFlow::Continue(()))
        .expect("fixed logits are finite and the prompt is not empty");
    generation.rows.into_iter().map(|row| row.ids).collect()
}

/// Draws first tokens as a user would, 16 samples a prompt, and tests all of them.
pub fn check(first_token: FirstToken, seed: u64) -> Found {
    let mut counts = vec![0; VOCAB];
    let mut first_tokens = 0;
    for prompt in 0..PROMPTS {
        let rows = draw(first_token, (1.0, seed.wrapping_add(prompt)), (SAMPLES, 0), 1);
        for row in &rows {
            counts[row[0] as usize] += 1;
        }
        if prompt == 0 {
            let mut firsts: Vec<u32> = rows.iter().map(|r| r[0]).collect();
            firsts.sort_unstable();
            firsts.dedup();
            first_tokens = firsts.len();
        }
    }
    let weights: Vec<f64> = Fixed::new().logits.iter().map(|z| f64::from(*z).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let probabilities: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    Found { test: chi_square(&counts, &probabilities), first_tokens }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn independent_samples_pass_and_copies_fail() {
        for seed in [1, 42, 7000] {
            let (fair, copied) =
                (check(FirstToken::Independent, seed), check(FirstToken::Broadcast, seed));
            assert!(fair.test.p_value >= UNLIKELY && fair.first_tokens > 4, "{fair:?}");
            assert!(copied.test.p_value < 1e-9 && copied.first_tokens == 1, "{copied:?}");
        }
    }
}
