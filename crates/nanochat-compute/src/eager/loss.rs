//! The head: all (N, V) logits at once, one tensor a step of the formula. Reference: `ops/loss.rs`.

use super::matmul::matmul;
use super::passes::{Fresh, div, rows, scale, tanh, tanh_backward, zeros};
use crate::cpu::Cpu;
use crate::cpu::chunks::Piece;
use crate::cpu::math::{LANES, exp, simd_fn, sum_lanes};
use crate::ops::{HeadLoss, IGNORE, MatMul};

/// `x / cap`, `tanh`, `cap *`.
pub(super) fn softcap(cpu: &Cpu, x: &mut [f32], cap: f32) {
    let bent = tanh(cpu, Fresh, &div(cpu, Fresh, x, cap));
    scale(cpu, x, &bent, cap);
}

/// `mm`, `/ cap`, `tanh`, `cap *`, `log_softmax`, `nll_loss`; then the backward of each: `zeros`
/// with `-grad_scale` at the targets, `log_softmax_backward`, `cap *`, `tanh_backward`, `/ cap`,
/// `mm` twice.
///
/// Tensors are freed where torch frees them: tanh and log softmax are kept for the backward, and of
/// the others no two live longer than the pass from one to the next.
#[allow(clippy::too_many_arguments)]
pub(super) fn head_loss(
    cpu: &Cpu,
    losses: &mut [f32],
    grads: Option<(&mut [f32], &mut [f32])>,
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    weights: Option<&[f32]>,
    s: &HeadLoss,
) {
    let (n, c, v) = (s.n, s.c, s.v);
    if n == 0 {
        return;
    }
    let w = &w[..v * c];
    let logits = cpu.fresh_product(x, w, &MatMul::forward(n, c, v));
    let divided = div(cpu, Fresh, &logits, s.softcap);
    drop(logits);
    let bent = tanh(cpu, Fresh, &divided);
    drop(divided);
    let log_p = log_softmax(cpu, &scale(cpu, Fresh, &bent, s.softcap), v);
    for ((loss, &target), row) in losses.iter_mut().zip(targets).zip(log_p.chunks_exact(v)) {
        *loss = if target == IGNORE { 0.0 } else { -row[target as usize] };
    }
    let Some((dx, dw)) = grads else { return };
    let of_log_p = nll_loss_backward(cpu, targets, weights, v, s.grad_scale);
    let of_capped = log_softmax_backward(cpu, &of_log_p, &log_p, v);
    drop((of_log_p, log_p));
    let of_bent = scale(cpu, Fresh, &of_capped, s.softcap);
    drop(of_capped);
    let of_divided = tanh_backward(cpu, Fresh, &of_bent, &bent);
    drop((of_bent, bent));
    let of_logits = div(cpu, Fresh, &of_divided, s.softcap);
    drop(of_divided);
    matmul(cpu, &mut dw[..v * c], &of_logits, x, &MatMul::weight_grad(n, c, v));
    matmul(cpu, dx, &of_logits, w, &MatMul::input_grad(n, c, v));
}

/// `zeros`, and the gradient of a row's loss at its target.
fn nll_loss_backward(
    cpu: &Cpu,
    targets: &[i32],
    weights: Option<&[f32]>,
    v: usize,
    grad_scale: f32,
) -> Vec<f32> {
    let mut out = zeros(cpu, targets.len() * v);
    for (n, (row, &target)) in out.chunks_exact_mut(v).zip(targets).enumerate() {
        if target != IGNORE {
            row[target as usize] = -grad_scale * weights.map_or(1.0, |w| w[n]);
        }
    }
    out
}

simd_fn! {
    fn log_softmax_row(out: &mut Piece<'_>, x: &[f32]) {
        let mut max = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let tail = chunks.remainder();
        for x in chunks.clone() {
            for j in 0..LANES {
                max[j] = if x[j] > max[j] { x[j] } else { max[j] };
            }
        }
        let max = max.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = [0f32; LANES];
        for x in chunks {
            for j in 0..LANES {
                sum[j] += exp::<FMA>(x[j] - max);
            }
        }
        let sum = sum_lanes(sum) + tail.iter().map(|x| exp::<FMA>(x - max)).sum::<f32>();
        let lse = max + sum.ln();
        out.extend(x.iter().map(|x| x - lse));
    }
}

/// One kernel, as in torch: `x - log sum_j e^x_j` of each row.
fn log_softmax(cpu: &Cpu, x: &[f32], v: usize) -> Vec<f32> {
    rows(cpu, Fresh, x.len() / v, v, |n, out| {
        log_softmax_row(&cpu.kernels, out, &x[n * v..][..v]);
    })
}

simd_fn! {
    fn log_softmax_backward_row(out: &mut Piece<'_>, d: &[f32], log_p: &[f32]) {
        let mut sum = [0f32; LANES];
        let chunks = d.chunks_exact(LANES);
        let tail: f32 = chunks.remainder().iter().sum();
        for d in chunks {
            for j in 0..LANES {
                sum[j] += d[j];
            }
        }
        let sum = sum_lanes(sum) + tail;
        out.extend(d.iter().zip(log_p).map(|(d, log_p)| d - exp::<FMA>(*log_p) * sum));
    }
}

/// One kernel, as in torch: `d - softmax sum_j d_j` of each row.
fn log_softmax_backward(cpu: &Cpu, d: &[f32], log_p: &[f32], v: usize) -> Vec<f32> {
    rows(cpu, Fresh, d.len() / v, v, |n, out| {
        let at = n * v..(n + 1) * v;
        log_softmax_backward_row(&cpu.kernels, out, &d[at.clone()], &log_p[at]);
    })
}
