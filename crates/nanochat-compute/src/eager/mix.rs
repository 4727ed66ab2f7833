//! Residual mixes. References: `ops/mix.rs`.

use super::passes::{Fresh, add, add_, mul, neg, scale, scale_, sub, sum_all};
use crate::cpu::Cpu;

/// `a * x`, `b * y`, `+`.
pub(super) fn mix(cpu: &Cpu, out: &mut [f32], x: &[f32], y: &[f32], a: f32, b: f32) {
    add(cpu, out, &scale(cpu, Fresh, x, a), &scale(cpu, Fresh, y, b));
}

/// For each of the two products: `mul` by the number, `mul` by the stream and `sum`; the gradient
/// of y is added to what is there.
#[allow(clippy::too_many_arguments)]
pub(super) fn mix_backward(
    cpu: &Cpu,
    d: &mut [f32],
    dy: &mut [f32],
    da: &mut [f32],
    db: &mut [f32],
    x: &[f32],
    y: &[f32],
    a: f32,
    b: f32,
) {
    let of_y = scale(cpu, Fresh, d, b);
    db[0] += sum_all(cpu, &mul(cpu, Fresh, d, y));
    add_(cpu, dy, &of_y, 1.0);
    drop(of_y);
    da[0] += sum_all(cpu, &mul(cpu, Fresh, d, x));
    scale_(cpu, d, a);
}

/// `lambda * y`, `x -`.
pub(super) fn backout(cpu: &Cpu, out: &mut [f32], x: &[f32], y: &[f32], lambda: f32) {
    sub(cpu, out, x, &scale(cpu, Fresh, y, lambda));
}

/// `neg`, `mul` by the number; `mul` by y and `sum`.
pub(super) fn backout_backward(
    cpu: &Cpu,
    dy: &mut [f32],
    dlambda: &mut [f32],
    dout: &[f32],
    y: &[f32],
    lambda: f32,
) {
    let negative = neg(cpu, Fresh, dout);
    scale(cpu, dy, &negative, lambda);
    dlambda[0] += sum_all(cpu, &mul(cpu, Fresh, &negative, y));
}
