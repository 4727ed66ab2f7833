//! `cat([x[:, :1], x[:, 1:] + gate * x[:, :-1]])`. Reference: `ops/smear.rs`.
//!
//! Slices along T are views, as in torch: a primitive reads the rows that they leave where they
//! lie.

use std::iter::repeat_n;

use super::matmul::narrow;
use super::passes::{
    Fresh, add, add_, add_slices, mul, mul_slices, rows, scale, scale_slice, sigmoid,
    sigmoid_backward, sum_all, sum_rows, zeros,
};
use crate::cpu::Cpu;
use crate::cpu::chunks::{each, rows_per_chunk};
use crate::cpu::gemm::{Gemm, Layout};
use crate::ops::Smear;

/// Row of `x` that row `r` of `x[:, 1:]` is.
fn later(r: usize, s: &Smear) -> usize {
    r + r / (s.t - 1) + 1
}

/// Row of `x[:, 1:]` that row `n` of x is.
fn of_later(n: usize, s: &Smear) -> Option<usize> {
    (!n.is_multiple_of(s.t)).then(|| n - n / s.t - 1)
}

/// Row `n` of x.
fn row<'a>(x: &'a [f32], n: usize, s: &Smear) -> &'a [f32] {
    &x[n * s.c..][..s.c]
}

/// `mm` of the first channels and `sigmoid` (N), `lambda *` (N), `gate * x[:, :-1]`, `x[:, 1:] +`,
/// `cat`.
///
/// The gate of the first position, which torch leaves out, is asked for and computed.
pub(super) fn smear(
    cpu: &Cpu,
    out: &mut [f32],
    gate: &mut [f32],
    x: &[f32],
    w: &[f32],
    lambda: f32,
    s: &Smear,
) {
    let (n, after_first, k) = (s.b * s.t, s.b * s.t.saturating_sub(1), &cpu.kernels);
    let linear = Gemm { lda: s.c, ..Gemm::new(Layout::Nt, n, 1, s.channels) };
    sigmoid(cpu, &mut *gate, &narrow(cpu, linear, x, w));
    let scaled = scale(cpu, Fresh, gate, lambda);
    let before = rows(cpu, Fresh, after_first, s.c, |r, out| {
        let n = later(r, s);
        scale_slice(k, out, row(x, n - 1, s), scaled[n]);
    });
    let sum = rows(cpu, Fresh, after_first, s.c, |r, out| {
        add_slices(k, out, row(x, later(r, s), s), row(&before, r, s));
    });
    drop(before);
    rows(cpu, out, n, s.c, |n, out| match of_later(n, s) {
        Some(r) => out.extend_from_slice(row(&sum, r, s)),
        None => out.extend_from_slice(row(x, n, s)),
    });
}

/// The backward of `cat`, of the sum, of both products, of `sigmoid` and `mm`: each slice's is
/// `zeros` and a copy into it, and their sums make dx.
#[allow(clippy::too_many_arguments)]
pub(super) fn smear_backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dw: &mut [f32],
    dlambda: &mut [f32],
    dout: &[f32],
    x: &[f32],
    gate: &[f32],
    w: &[f32],
    lambda: f32,
    s: &Smear,
) {
    let (n, after_first, k) = (s.b * s.t, s.b * s.t.saturating_sub(1), &cpu.kernels);
    let scaled = scale(cpu, Fresh, gate, lambda);
    let of_before = rows(cpu, Fresh, after_first, s.c, |r, out| {
        let n = later(r, s);
        scale_slice(k, out, row(dout, n, s), scaled[n]);
    });
    let of_gate = rows(cpu, Fresh, after_first, s.c, |r, out| {
        let n = later(r, s);
        mul_slices(k, out, row(dout, n, s), row(x, n - 1, s));
    });
    let sums = sum_rows(cpu, Fresh, &of_gate, s.c, 1.0);
    drop(of_gate);
    let before = placed(cpu, &of_before, s, |n| of_later(n + 1, s));
    drop(of_before);
    let after = placed(cpu, dout, s, |n| of_later(n, s).map(|_| n));
    let both = add(cpu, Fresh, &before, &after);
    drop((before, after));
    let first = placed(cpu, dout, s, |n| n.is_multiple_of(s.t).then_some(n));
    let direct = add(cpu, Fresh, &both, &first);
    drop((both, first));
    // What follows is small but for the last three passes. The first positions have the gradient 0.
    let sum = |n| of_later(n, s).map_or(0.0, |r| sums[r]);
    let sums = rows(cpu, Fresh, n, 1, |n, out| out.extend_from_slice(&[sum(n)]));
    dlambda[0] += sum_all(cpu, &mul(cpu, Fresh, &sums, gate));
    let of_linear = sigmoid_backward(cpu, Fresh, &scale(cpu, Fresh, &sums, lambda), gate);
    let of_w = Gemm { ldb: s.c, ..Gemm::new(Layout::Tn, 1, s.channels, n) };
    add_(cpu, dw, &narrow(cpu, of_w, &of_linear, x), 1.0);
    let of_channels = Gemm::new(Layout::Nn, n, s.channels, 1);
    let of_channels = narrow(cpu, of_channels, &of_linear, w);
    let through_gate = rows(cpu, Fresh, after_first, s.c, |r, out| {
        let from = later(r, s) * s.channels;
        out.extend_from_slice(&of_channels[from..from + s.channels]);
        out.extend(repeat_n(0.0, s.c - s.channels));
    });
    let through_gate = placed(cpu, &through_gate, s, |n| of_later(n, s));
    add(cpu, dx, &direct, &through_gate);
}

/// The backward of a slice along T: `zeros`, then row `n` is copied from row `source(n)` of d.
fn placed(
    cpu: &Cpu,
    d: &[f32],
    s: &Smear,
    source: impl Fn(usize) -> Option<usize> + Sync,
) -> Vec<f32> {
    let mut out = zeros(cpu, s.b * s.t * s.c);
    let rows = rows_per_chunk(s.c);
    each(&cpu.pool, [(&mut out, rows * s.c)], |i, [out]| {
        for (j, out) in out.chunks_exact_mut(s.c).enumerate() {
            if let Some(r) = source(i * rows + j) {
                out.copy_from_slice(row(d, r, s));
            }
        }
    });
    out
}
