//! Matrix products: `mm` and, where the result is added, a second pass. Reference: `ops/matmul.rs`.

use super::passes::add_;
use crate::cpu::Cpu;
use crate::cpu::gemm::{Gemm, Multiply, gemm_fresh};
use crate::ops::MatMul;

/// `beta = 0`: `mm` into C. Else `mm` into new memory, then `add`: so autograd accumulates a
/// gradient, and so `x + linear(y)` runs.
pub(super) fn matmul(cpu: &Cpu, c: &mut [f32], a: &[f32], b: &[f32], s: &MatMul) {
    if s.beta == 0.0 {
        return cpu.product(c, a, b, s);
    }
    add_(cpu, c, &cpu.fresh_product(a, b, s), s.beta);
}

/// `mm` of a gate: a few columns, in f32 whatever the backend multiplies in, as on [`Cpu`]; zeros
/// where a size is 0.
pub(super) fn narrow(cpu: &Cpu, g: Gemm, a: &[f32], b: &[f32]) -> Vec<f32> {
    if g.m * g.n * g.k == 0 {
        return vec![0.0; g.m * g.n];
    }
    gemm_fresh(&cpu.pool, &cpu.kernels, Multiply::F32, g, a, b)
}
