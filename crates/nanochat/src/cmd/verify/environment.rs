//! The device multiplies right, and memory is known.

use anyhow::ensure;
use nanochat_compute::ops::{MatMul, matmul};

use super::Finding;
use crate::cli::Global;
use crate::figures::size;
use crate::memory::Room;

/// Checks a product against the plain reference.
pub fn check(global: &Global) -> Finding {
    let be = global.backend()?;
    let be = &*be;
    let s = MatMul::forward(37, 129, 65);
    let numbers = |len: usize, step: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * step) % 251) as f32 / 251.0 - 0.5).collect()
    };
    let (a, b) = (numbers(s.m * s.k, 7), numbers(s.n * s.k, 11));
    let mut want = vec![0.0; s.m * s.n];
    matmul::matmul(&mut want, &a, &b, &s);
    let c = be.place_f32(&vec![0.0; s.m * s.n])?;
    be.matmul(&c, &be.place_f32(&a)?, &be.place_f32(&b)?, &s)?;
    let got = c.to_vec_f32()?;
    let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs()).fold(0.0, f32::max);
    // Operands below 1/2: bf16 rounds each by 2^-10 at most.
    let limit = if be.name().contains("bf16") { s.k as f32 * 2f32.powi(-10) * 0.25 } else { 1e-4 };
    ensure!(worst <= limit, "{}: a product is {worst:e} off, more than {limit:e}", be.name());
    let room = Room::now();
    Ok(format!("{}, products within {worst:.0e}, {} free", be.name(), size(room.free as f64)))
}
