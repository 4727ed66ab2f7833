//! `F.relu(x).square()`. Reference: `ops/relu2.rs`.

use super::passes::{Fresh, copy, mul, relu_, scale, threshold_backward};
use crate::cpu::Cpu;

/// `relu`, `pow(r, 2)`.
pub(super) fn relu2(cpu: &Cpu, out: &mut [f32], x: &mut [f32]) {
    relu_(cpu, x);
    mul(cpu, out, x, x);
}

/// The backward of `pow`: `pow(r, 1)`, `2 r`, `d 2 r`; then `threshold_backward`, that of `relu`.
pub(super) fn relu2_backward(cpu: &Cpu, d: &mut [f32], r: &[f32]) {
    let doubled = scale(cpu, Fresh, &copy(cpu, Fresh, r), 2.0);
    let of_square = mul(cpu, Fresh, d, &doubled);
    drop(doubled);
    threshold_backward(cpu, d, &of_square, r);
}

/// `pow(r, 2)`. Autograd would have kept what [`relu2`] wrote; the model's plan makes it again, on
/// every backend.
pub(super) fn square(cpu: &Cpu, out: &mut [f32], r: &[f32]) {
    mul(cpu, out, r, r);
}
