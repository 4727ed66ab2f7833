//! The head: logits, softcap, cross entropy and their gradients, a few rows at a time. Reference:
//! `ops/loss.rs`.

use super::chunks::{CHUNK, each};
use super::gemm::{self, PackedB, gemm_packed};
#[cfg(target_arch = "x86_64")]
use super::head;
use super::math::{LANES, exp, simd_fn, sum_lanes, tanh};
use super::{Cpu, gemm_of};
use crate::ops::{HeadLoss, IGNORE, LOSS_ROWS, Layout, MatMul};

simd_fn! {
    fn softcap_chunk(x: &mut [f32], cap: f32) {
        let inverse = 1.0 / cap;
        for x in x {
            *x = cap * tanh::<FMA>(*x * inverse);
        }
    }
}

pub(super) fn softcap(cpu: &Cpu, x: &mut [f32], cap: f32) {
    each(&cpu.pool, [(x, CHUNK)], |_, [x]| softcap_chunk(&cpu.kernels, x, cap));
}

simd_fn! {
    /// Softcaps a row in place; returns its largest value.
    fn cap_and_max(z: &mut [f32], cap: f32) -> f32 {
        let inverse = 1.0 / cap;
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut chunks = z.chunks_exact_mut(LANES);
        for z in &mut chunks {
            for j in 0..LANES {
                z[j] = cap * tanh::<FMA>(z[j] * inverse);
                max[j] = if z[j] > max[j] { z[j] } else { max[j] };
            }
        }
        for z in chunks.into_remainder() {
            *z = cap * tanh::<FMA>(*z * inverse);
            max[0] = if *z > max[0] { *z } else { max[0] };
        }
        max.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

simd_fn! {
    /// `sum_j e^(s_j - max)`.
    fn sum_exp(s: &[f32], max: f32) -> f32 {
        let mut acc = [0f32; LANES];
        let chunks = s.chunks_exact(LANES);
        let tail: f32 = chunks.remainder().iter().map(|s| exp::<FMA>(s - max)).sum();
        for s in chunks {
            for j in 0..LANES {
                acc[j] += exp::<FMA>(s[j] - max);
            }
        }
        sum_lanes(acc) + tail
    }
}

simd_fn! {
    /// `s_j = scale e^(s_j - lse) (1 - (s_j / cap)^2)`: the gradient of a row but for its target.
    fn gradient_row(s: &mut [f32], lse: f32, cap: f32, scale: f32) {
        let inverse = 1.0 / cap;
        for s in s {
            let t = *s * inverse;
            *s = scale * exp::<FMA>(*s - lse) * (1.0 - t * t);
        }
    }
}

/// One row; see the reference `cross_entropy_row`.
fn row(cpu: &Cpu, z: &mut [f32], target: i32, cap: f32, scale: Option<f32>) -> f32 {
    if target == IGNORE {
        z.fill(0.0);
        return 0.0;
    }
    let max = cap_and_max(&cpu.kernels, z, cap);
    let lse = max + sum_exp(&cpu.kernels, z, max).ln();
    let s = z[target as usize];
    if let Some(scale) = scale {
        gradient_row(&cpu.kernels, z, lse, cap, scale);
        z[target as usize] -= scale * (1.0 - (s / cap) * (s / cap));
    }
    lse - s
}

pub(super) fn cross_entropy(
    cpu: &Cpu,
    losses: &mut [f32],
    logits: &mut [f32],
    targets: &[i32],
    v: usize,
    cap: f32,
) {
    each(&cpu.pool, [(losses, 1), (logits, v)], |i, [loss, z]| {
        loss[0] = row(cpu, z, targets[i], cap, None);
    });
}

#[allow(clippy::too_many_arguments)]
pub(super) fn head_loss(
    cpu: &Cpu,
    losses: &mut [f32],
    mut grads: Option<(&mut [f32], &mut [f32])>,
    scratch: &mut [f32],
    x: &[f32],
    w: &[f32],
    targets: &[i32],
    weights: Option<&[f32]>,
    s: &HeadLoss,
) {
    let (c, v) = (s.c, s.v);
    let w = &w[..v * c];
    let has_grads = grads.is_some();
    let scale_of = |n: usize| {
        let scale = s.grad_scale * weights.map_or(1.0, |w| w[n]);
        has_grads.then_some(scale)
    };
    #[cfg(target_arch = "x86_64")]
    if head::is_for(cpu, s) {
        let mut kept = cpu.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let packed = PackedHead::pack(cpu, w, s, has_grads, &mut kept);
        let (logits, grad) = (&packed.logits, packed.grad.as_ref().filter(|_| has_grads));
        let inputs = head::Inputs {
            x,
            weights: head::Weights { plain: w, logits, grad },
            targets,
            scales: weights,
        };
        return head::head_loss(cpu, losses, grads, scratch, inputs, s);
    }
    let mut kept = cpu.head.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let head = Head::new(cpu, w, s, grads.is_some(), &mut kept);
    for first in (0..s.n).step_by(LOSS_ROWS) {
        let m = LOSS_ROWS.min(s.n - first);
        let x = &x[first * c..][..m * c];
        let z = &mut scratch[..m * v];
        head.logits(z, x, m);
        let losses = &mut losses[first..first + m];
        each(&cpu.pool, [(losses, 1), (z, v)], |i, [loss, z]| {
            loss[0] = row(cpu, z, targets[first + i], s.softcap, scale_of(first + i));
        });
        if let Some((dx, dw)) = &mut grads {
            let z = &scratch[..m * v];
            head.input_grad(&mut dx[first * c..][..m * c], z, m);
            let shape = MatMul { m: v, n: c, k: m, layout: Layout::Tn, beta: 1.0 };
            cpu.product(&mut dw[..v * c], z, x, &shape);
        }
    }
}

/// Bytes that training holds for this head beside its scratch.
pub(super) fn workspace_bytes(cpu: &Cpu, s: &HeadLoss) -> usize {
    #[cfg(target_arch = "x86_64")]
    if head::is_for(cpu, s) {
        return PackedHead::bytes(cpu, s) + head::workspace_bytes(cpu.pool.threads(), s);
    }
    if PackedHead::pays(s) { PackedHead::bytes(cpu, s) } else { 0 }
}

/// Room for the packed weight of a head: for logits, and for the gradient of the rows.
pub(super) struct PackedHead {
    logits: PackedB,
    grad: Option<PackedB>,
}

impl PackedHead {
    /// True when [`head_loss`] packs: the weight is read more than once.
    fn pays(s: &HeadLoss) -> bool {
        s.n > LOSS_ROWS
    }

    /// Bytes of both.
    fn bytes(cpu: &Cpu, s: &HeadLoss) -> usize {
        let bytes = |n, k| PackedB::bytes_for(&cpu.kernels, cpu.multiply, n, k);
        bytes(s.v, s.c) + bytes(s.c, s.v)
    }

    /// Packs the weight into the room that is kept.
    fn pack<'a>(
        cpu: &Cpu,
        w: &[f32],
        s: &HeadLoss,
        has_grads: bool,
        kept: &'a mut Option<PackedHead>,
    ) -> &'a PackedHead {
        let (c, v) = (s.c, s.v);
        let room = |n, k| PackedB::new(&cpu.kernels, cpu.multiply, n, k);
        if !kept.as_ref().is_some_and(|k| k.fits(s)) {
            *kept = None; // the old room goes before the new one comes
        }
        let packed = kept.get_or_insert_with(|| PackedHead { logits: room(v, c), grad: None });
        packed.logits.pack(&cpu.pool, gemm::Layout::Nt, w, c);
        if has_grads {
            let grad = packed.grad.get_or_insert_with(|| room(c, v));
            grad.pack(&cpu.pool, gemm::Layout::Nn, w, c);
        }
        packed
    }

    fn fits(&self, s: &HeadLoss) -> bool {
        (self.logits.n(), self.logits.k()) == (s.v, s.c)
    }
}

/// The weight, (V, C), as its products read it: packed once if it is read more than once.
struct Head<'a> {
    cpu: &'a Cpu,
    w: &'a [f32],
    c: usize,
    v: usize,
    packed: Option<&'a PackedHead>,
}

impl<'a> Head<'a> {
    fn new(
        cpu: &'a Cpu,
        w: &'a [f32],
        s: &HeadLoss,
        has_grads: bool,
        kept: &'a mut Option<PackedHead>,
    ) -> Self {
        let pack = PackedHead::pays(s);
        let packed = pack.then(|| PackedHead::pack(cpu, w, s, has_grads, kept));
        Self { cpu, w, c: s.c, v: s.v, packed }
    }

    /// `z = x W^T`, (m, V).
    fn logits(&self, z: &mut [f32], x: &[f32], m: usize) {
        let s = MatMul { m, n: self.v, k: self.c, layout: Layout::Nt, beta: 0.0 };
        match &self.packed {
            Some(packed) => gemm_packed(&self.cpu.pool, gemm_of(&s), z, x, &packed.logits),
            None => self.cpu.product(z, x, self.w, &s),
        }
    }

    /// `dx = z W`, (m, C).
    fn input_grad(&self, dx: &mut [f32], z: &[f32], m: usize) {
        let s = MatMul { m, n: self.c, k: self.v, layout: Layout::Nn, beta: 0.0 };
        match self.packed.and_then(|packed| packed.grad.as_ref()) {
            Some(w) => gemm_packed(&self.cpu.pool, gemm_of(&s), dx, z, w),
            None => self.cpu.product(dx, z, self.w, &s),
        }
    }
}
