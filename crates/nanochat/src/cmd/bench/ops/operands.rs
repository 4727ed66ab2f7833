//! Operands of what is timed: random, the same for the same seed.

use anyhow::Result;
use nanochat_compute::Tensor;

/// Uniform draws in [-1, 1): a linear congruential generator.
struct Draws(u64);

impl Draws {
    fn bits(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 40
    }
}

/// `len` floats in [-1, 1).
pub fn random(len: usize, seed: u64) -> Result<Tensor> {
    let mut draws = Draws(seed);
    let draw = |_| draws.bits() as f32 / (1 << 23) as f32 - 1.0;
    Ok(Tensor::from_f32(&(0..len).map(draw).collect::<Vec<_>>())?)
}

/// `len` ids below `v`.
pub fn ids(len: usize, v: usize, seed: u64) -> Result<Tensor> {
    let mut draws = Draws(seed);
    let draw = |_| (draws.bits() % v as u64) as i32;
    Ok(Tensor::from_i32(&(0..len).map(draw).collect::<Vec<_>>())?)
}
