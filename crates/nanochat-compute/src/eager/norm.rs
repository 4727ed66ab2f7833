//! `F.rms_norm`, which is composite on a CPU. Reference: `ops/norm.rs`.

use super::passes::{
    Fresh, Out, add, add_, copy, mul, rsqrt, scale, scale_rows, shift, spread, sum_rows,
};
use crate::cpu::Cpu;

/// `pow(x, 2)`, `mean`, `+ eps`, `rsqrt` (N), `mul`.
pub(super) fn norm<O: Out>(
    cpu: &Cpu,
    out: O,
    rstd: &mut [f32],
    x: &[f32],
    c: usize,
    eps: f32,
) -> O::Written {
    let mean = sum_rows(cpu, Fresh, &mul(cpu, Fresh, x, x), c, c as f32);
    rsqrt(cpu, &mut *rstd, &shift(cpu, Fresh, &mean, eps));
    scale_rows(cpu, out, x, rstd, c)
}

/// The gradient, then `add` where it is added to another.
pub(super) fn norm_backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dout: &[f32],
    out: &[f32],
    rstd: &[f32],
    c: usize,
    beta: f32,
) {
    if beta == 0.0 {
        return gradient(cpu, dx, dout, (out, 1.0), rstd, c);
    }
    let fresh = gradient(cpu, Fresh, dout, (out, 1.0), rstd, c);
    add_(cpu, dx, &fresh, beta);
}

/// The backward of `mul`, `rsqrt`, `mean` and `pow`, in that order: `dout rstd`, `dout out` and its
/// sums by rows, these times rstd (N), spread over the columns, `2 pow(out, 1)`, their product, the
/// sum.
///
/// Autograd has x where this has `out = scale x rstd`; the factors move to the sums, the passes
/// stay.
pub(super) fn gradient<O: Out>(
    cpu: &Cpu,
    dx: O,
    dout: &[f32],
    (out, out_scale): (&[f32], f32),
    rstd: &[f32],
    c: usize,
) -> O::Written {
    let direct = scale_rows(cpu, Fresh, dout, rstd, c);
    let sums = sum_rows(cpu, Fresh, &mul(cpu, Fresh, dout, out), c, 1.0);
    let halved = scale(cpu, Fresh, &sums, -0.5 / (out_scale * out_scale));
    let of_rows = mul(cpu, Fresh, &halved, rstd);
    let spread = spread(cpu, Fresh, &of_rows, c, c as f32);
    let doubled = scale(cpu, Fresh, &copy(cpu, Fresh, out), 2.0);
    let through_mean = mul(cpu, Fresh, &spread, &doubled);
    drop((spread, doubled));
    add(cpu, dx, &direct, &through_mean)
}
