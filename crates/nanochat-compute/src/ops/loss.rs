//! The head: logits, softcap and cross entropy in one operation that never holds (N, V).

use super::matmul::{Layout, MatMul, matmul};

/// A target that does not count.
pub const IGNORE: i32 = -1;

/// Shape and constants of [`head_loss`].
#[derive(Clone, Copy, Debug)]
pub struct HeadLoss {
    /// Rows.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// Tokens; rows of the weight past V (padding) are not read.
    pub v: usize,
    /// Logits are `cap * tanh(z / cap)`.
    pub softcap: f32,
    /// Multiplies every gradient: 1 / (counted targets * accumulation steps).
    pub grad_scale: f32,
}

/// Rows whose logits are held at once by [`head_loss`]: 512 x 32,768 f32 are 64 MiB.
pub const LOSS_ROWS: usize = 512;

impl HeadLoss {
    /// Floats of the scratch buffer: logits of [`LOSS_ROWS`] rows.
    pub fn scratch_len(&self) -> usize {
        self.n.min(LOSS_ROWS) * self.v
    }
}

/// Softcapped logits: `out[i] = cap * tanh(x[i] / cap)` in place. Plain reference.
pub fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}

/// Loss of one row of raw logits, which become its gradient when `scale` is given.
///
/// With `s = cap tanh(z / cap)`: `loss = log sum_j exp(s_j) - s_target` in nats;
/// `dz_j = scale (softmax_j - [j = target]) (1 - (s_j / cap)^2)`. An ignored target gives loss 0 and
/// gradient 0. Plain reference; never optimise it.
pub fn cross_entropy_row(z: &mut [f32], target: i32, cap: f32, scale: Option<f32>) -> f32 {
    if target == IGNORE {
        z.fill(0.0);
        return 0.0;
    }
    softcap(z, cap);
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = z.iter().map(|s| (s - max).exp()).sum();
    let lse = max + sum.ln();
    let loss = lse - z[target as usize];
    if let Some(scale) = scale {
        for (j, s) in z.iter_mut().enumerate() {
            let hit = if j == target as usize { 1.0 } else { 0.0 };
            let capped = 1.0 - (*s / cap) * (*s / cap);
            *s = scale * ((*s - lse).exp() - hit) * capped;
        }
    }
    loss
}

/// The id of the largest of each row, the lowest of equals; not-a-number is never the largest.
///
/// Shapes: `out` (N), `x` (N, V). Plain reference.
pub fn argmax(out: &mut [i32], x: &[f32], v: usize) {
    for (out, row) in out.iter_mut().zip(x.chunks_exact(v)) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        *out = row.iter().position(|x| *x == largest).unwrap_or(0) as i32;
    }
}

/// Losses of rows of raw logits, which become softcapped (zero where the target is ignored).
///
/// Shapes: `losses` (N), `logits` (N, V), `targets` (N) in 0..V or [`IGNORE`]. See
/// [`cross_entropy_row`]. Plain reference.
pub fn cross_entropy(losses: &mut [f32], logits: &mut [f32], targets: &[i32], v: usize, cap: f32) {
    for ((loss, z), &target) in losses.iter_mut().zip(logits.chunks_exact_mut(v)).zip(targets) {
        *loss = cross_entropy_row(z, target, cap, None);
    }
}

/// Per-row losses, and gradients when `grads` is given.
///
/// `losses[n] = cross entropy of softcap(x[n] Wᵀ) against targets[n]` in nats, 0 where ignored.
/// Gradients of `grad_scale * sum_n weights[n] losses[n]`: `dx` (N, C) overwritten, `dw` (>= V, C)
/// added. Without `weights` (N) every weight is 1; the losses are never weighted.
/// Shapes: `x` (N, C), `w` (>= V, C), `targets` (N) in 0..V or [`IGNORE`]; `scratch`
/// ([`HeadLoss::scratch_len`]). Walks [`LOSS_ROWS`] rows at a time. Plain reference.
#[allow(clippy::too_many_arguments)]
pub fn head_loss(
    losses: &mut [f32],
    grads: Option<(&mut [f32], &mut [f32])>,
    scratch: &mut [f32],
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    weights: Option<&[f32]>,
    s: &HeadLoss,
) {
    let (c, v) = (s.c, s.v);
    let w = &w[..v * c];
    let mut grads = grads;
    let has_grads = grads.is_some();
    for first in (0..s.n).step_by(LOSS_ROWS) {
        let m = LOSS_ROWS.min(s.n - first);
        let x = &x[first * c..][..m * c];
        let z = &mut scratch[..m * v];
        matmul(z, x, w, &MatMul { m, n: v, k: c, layout: Layout::Nt, beta: 0.0 });
        for (i, z) in z.chunks_exact_mut(v).enumerate() {
            let scale = s.grad_scale * weights.map_or(1.0, |w| w[first + i]);
            let scale = has_grads.then_some(scale);
            losses[first + i] = cross_entropy_row(z, targets[first + i], s.softcap, scale);
        }
        if let Some((dx, dw)) = &mut grads {
            let dx = &mut dx[first * c..][..m * c];
            matmul(dx, z, w, &MatMul { m, n: c, k: v, layout: Layout::Nn, beta: 0.0 });
            let shape = MatMul { m: v, n: c, k: m, layout: Layout::Tn, beta: 1.0 };
            matmul(&mut dw[..v * c], z, x, &shape);
        }
    }
}
