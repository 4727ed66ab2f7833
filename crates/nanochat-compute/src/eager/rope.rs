//! `apply_rotary_emb`, `norm` and `* 1.2`. Reference: `ops/rope.rs`.

use super::norm::{gradient, norm};
use super::passes::{Fresh, Out, add, neg, scale, zeros};
use crate::cpu::Cpu;
use crate::cpu::chunks::{Piece, each, rows_per_chunk};
use crate::cpu::math::simd_fn;
use crate::ops::RopeNorm;

/// Rotates, normalises and scales x: the passes of [`Rotary::rotate`], those of `norm`, and `mul`,
/// which generation 1 does not have.
pub(super) fn rope_norm(
    cpu: &Cpu,
    x: &mut [f32],
    rstd: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    s: &RopeNorm,
) {
    let rotated = Rotary::new(cpu, x.len(), cos, sin, s).rotate(x);
    if s.scale == 1.0 {
        return norm(cpu, x, rstd, &rotated, s.d, s.eps);
    }
    let normed = norm(cpu, Fresh, rstd, &rotated, s.d, s.eps);
    drop(rotated);
    scale(cpu, x, &normed, s.scale);
}

/// The backward of `mul`, of `norm` and of the rotation.
pub(super) fn rope_norm_backward(
    cpu: &Cpu,
    dx: &mut [f32],
    out: &[f32],
    rstd: &[f32],
    cos: &[f32],
    sin: &[f32],
    s: &RopeNorm,
) {
    let of_norm = if s.scale == 1.0 {
        gradient(cpu, Fresh, dx, (out, 1.0), rstd, s.d)
    } else {
        let of_scale = scale(cpu, Fresh, dx, s.scale);
        gradient(cpu, Fresh, &of_scale, (out, s.scale), rstd, s.d)
    };
    Rotary::new(cpu, dx.len(), cos, sin, s).rotate_backward(dx, &of_norm);
}

/// One of the halves of every head: torch's `x[..., :d]` or `x[..., d:]`, a view.
#[derive(Clone, Copy)]
enum Half {
    First,
    Second,
}

impl Half {
    /// Where it begins in a head of two halves.
    fn at(self, half: usize) -> usize {
        match self {
            Half::First => 0,
            Half::Second => half,
        }
    }
}

/// The tables at the positions of x, and the shape.
struct Rotary<'a> {
    cpu: &'a Cpu,
    cos: &'a [f32],
    sin: &'a [f32],
    minus_sin: Vec<f32>,
    /// Positions in the tables.
    t: usize,
    h: usize,
    d: usize,
}

impl<'a> Rotary<'a> {
    fn new(cpu: &'a Cpu, len: usize, cos: &'a [f32], sin: &'a [f32], s: &RopeNorm) -> Self {
        let (h, d, half) = (s.h, s.d, s.d / 2);
        let t = s.t.min(len / (h * d));
        let range = s.start * half..(s.start + t) * half;
        let (cos, sin) = (&cos[range.clone()], &sin[range]);
        Self { cpu, cos, sin, minus_sin: neg(cpu, Fresh, sin), t, h, d }
    }

    /// `x1 * cos`, `x2 * sin`, `+`, `x1 * (-sin)`, `x2 * cos`, `+`, `cat`.
    fn rotate(&self, x: &[f32]) -> Vec<f32> {
        let y1 = add(
            self.cpu,
            Fresh,
            &self.mul(x, Half::First, self.cos),
            &self.mul(x, Half::Second, self.sin),
        );
        let y2 = add(
            self.cpu,
            Fresh,
            &self.mul(x, Half::First, &self.minus_sin),
            &self.mul(x, Half::Second, self.cos),
        );
        self.cat(&y1, &y2)
    }

    /// The four products and two sums of the halves, then for each half the backward of the slice
    /// (`zeros` of whole heads, and a copy into its half), and the sum of both.
    fn rotate_backward(&self, dx: &mut [f32], dy: &[f32]) {
        let d2 = add(
            self.cpu,
            Fresh,
            &self.mul(dy, Half::Second, self.cos),
            &self.mul(dy, Half::First, self.sin),
        );
        let d1 = add(
            self.cpu,
            Fresh,
            &self.mul(dy, Half::Second, &self.minus_sin),
            &self.mul(dy, Half::First, self.cos),
        );
        let second = self.slice_backward(&d2, Half::Second);
        let first = self.slice_backward(&d1, Half::First);
        drop((d1, d2));
        add(self.cpu, dx, &second, &first);
    }

    /// A half of every head times a table, (N, H, D/2).
    fn mul(&self, x: &[f32], half: Half, table: &[f32]) -> Vec<f32> {
        let Self { cpu, t, h, d, .. } = *self;
        let heads = rows_per_chunk(d / 2);
        Fresh.write(cpu, x.len() / 2, heads * (d / 2), |i, out| {
            let x = &x[i * heads * d..][..2 * out.len()];
            mul_heads(&cpu.kernels, out, x, table, d / 2, half.at(d / 2), t, h, i * heads);
        })
    }

    /// Heads from their halves.
    fn cat(&self, y1: &[f32], y2: &[f32]) -> Vec<f32> {
        let (half, heads) = (self.d / 2, rows_per_chunk(self.d));
        Fresh.write(self.cpu, y1.len() * 2, heads * self.d, |i, out| {
            let at = i * heads * half..i * heads * half + out.len() / 2;
            cat_heads(&self.cpu.kernels, out, &y1[at.clone()], &y2[at], half);
        })
    }

    /// Whole heads that are 0 but for a half.
    fn slice_backward(&self, d: &[f32], half: Half) -> Vec<f32> {
        let (cpu, heads) = (self.cpu, rows_per_chunk(self.d));
        let mut out = zeros(cpu, d.len() * 2);
        each(&cpu.pool, [(&mut out, heads * self.d)], |i, [out]| {
            let d = &d[i * heads * (self.d / 2)..];
            copy_heads(&cpu.kernels, out, d, self.d / 2, half.at(self.d / 2));
        });
        out
    }
}

simd_fn! {
    /// `at` is where the half begins in a head of x, `first` the head of x that the chunk begins
    /// with.
    fn mul_heads(out: &mut Piece<'_>, x: &[f32], table: &[f32], half: usize, at: usize, t: usize, h: usize, first: usize) {
        let (mut position, mut head) = (first / h % t, first % h);
        for x in x.chunks_exact(2 * half) {
            let (x, table) = (&x[at..at + half], &table[position * half..][..half]);
            out.extend(x.iter().zip(table).map(|(x, m)| x * m));
            head += 1;
            if head == h {
                (head, position) = (0, if position + 1 == t { 0 } else { position + 1 });
            }
        }
    }
}

simd_fn! {
    fn cat_heads(out: &mut Piece<'_>, y1: &[f32], y2: &[f32], half: usize) {
        for (y1, y2) in y1.chunks_exact(half).zip(y2.chunks_exact(half)) {
            out.extend_from_slice(y1);
            out.extend_from_slice(y2);
        }
    }
}

simd_fn! {
    fn copy_heads(out: &mut [f32], d: &[f32], half: usize, at: usize) {
        for (out, d) in out.chunks_exact_mut(2 * half).zip(d.chunks_exact(half)) {
            out[at..at + half].copy_from_slice(d);
        }
    }
}
