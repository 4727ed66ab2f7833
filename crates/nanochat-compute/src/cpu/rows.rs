//! Operations row by row: embedding, norm, rope. References: `ops/embedding.rs`, `ops/norm.rs`,
//! `ops/rope.rs`.

use super::Cpu;
use super::chunks::{each, rows_per_chunk};
use super::gemm::portable::to_bf16;
use super::math::{dot, simd_fn};
use crate::FloatsMut;
use crate::ops::RopeNorm;

pub(super) fn embedding(cpu: &Cpu, out: &mut [f32], table: &[f32], ids: &[i32], c: usize) {
    let rows = rows_per_chunk(c);
    each(&cpu.pool, [(out, rows * c)], |i, [out]| {
        for (out, &id) in out.chunks_exact_mut(c).zip(&ids[i * rows..]) {
            out.copy_from_slice(&table[id as usize * c..][..c]);
        }
    });
}

/// Parts of a table, each written by one task, which scans all ids for its own.
const TABLE_TASKS: usize = 8;

/// Rows of a table from `first` on: those of `x` that belong there, in the order of n.
fn place_part(
    first: usize,
    x: &[f32],
    (ids, c): (&[i32], usize),
    rows: usize,
    mut store: impl FnMut(usize, &[f32]),
) {
    for (n, &id) in ids.iter().enumerate() {
        if let Some(row) = (id as usize).checked_sub(first).filter(|row| *row < rows) {
            store(row * c, &x[n * c..][..c]);
        }
    }
}

simd_fn! {
    fn round(out: &mut [u16], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = to_bf16(*x);
        }
    }
}

pub(super) fn place_rows(cpu: &Cpu, table: FloatsMut<'_>, x: &[f32], ids: &[i32], c: usize) {
    /// Floats that are placed sooner than a second thread is woken: the keys of a few tokens.
    const FEW: usize = 1 << 14;
    let parts = if x.len() <= FEW { 1 } else { TABLE_TASKS };
    let rows = (table.len() / c).div_ceil(parts).max(1);
    let ids = (ids, c);
    match table {
        FloatsMut::F32(table) => each(&cpu.pool, [(table, rows * c)], |i, [table]| {
            place_part(i * rows, x, ids, table.len() / c, |at, x| {
                table[at..at + c].copy_from_slice(x);
            });
        }),
        FloatsMut::Bf16(table) => each(&cpu.pool, [(table, rows * c)], |i, [table]| {
            place_part(i * rows, x, ids, table.len() / c, |at, x| {
                round(&cpu.kernels, &mut table[at..at + c], x);
            });
        }),
    }
}

pub(super) fn embedding_backward(
    cpu: &Cpu,
    dtable: &mut [f32],
    dout: &[f32],
    ids: &[i32],
    c: usize,
) {
    let rows = (dtable.len() / c).div_ceil(TABLE_TASKS).max(1);
    each(&cpu.pool, [(dtable, rows * c)], |i, [dtable]| {
        let first = i * rows;
        for (n, &id) in ids.iter().enumerate() {
            let Some(row) = (id as usize).checked_sub(first) else { continue };
            if let Some(to) = dtable.get_mut(row * c..(row + 1) * c) {
                for (d, g) in to.iter_mut().zip(&dout[n * c..][..c]) {
                    *d += g;
                }
            }
        }
    });
}

simd_fn! {
    fn norm_rows(out: &mut [f32], rstd: &mut [f32], x: &[f32], c: usize, eps: f32) {
        for ((out, r), x) in out.chunks_exact_mut(c).zip(rstd).zip(x.chunks_exact(c)) {
            *r = 1.0 / (dot(x, x) / c as f32 + eps).sqrt();
            for (o, v) in out.iter_mut().zip(x) {
                *o = v * *r;
            }
        }
    }
}

pub(super) fn norm(cpu: &Cpu, out: &mut [f32], rstd: &mut [f32], x: &[f32], c: usize, eps: f32) {
    let rows = rows_per_chunk(c);
    each(&cpu.pool, [(out, rows * c), (rstd, rows)], |i, [out, rstd]| {
        let x = &x[i * rows * c..][..out.len()];
        norm_rows(&cpu.kernels, out, rstd, x, c, eps);
    });
}

simd_fn! {
    fn norm_backward_rows(dx: &mut [f32], dout: &[f32], out: &[f32], rstd: &[f32], c: usize, beta: f32) {
        for (n, dx) in dx.chunks_exact_mut(c).enumerate() {
            let (dout, out) = (&dout[n * c..][..c], &out[n * c..][..c]);
            let (m, r) = (dot(dout, out) / c as f32, rstd[n]);
            if beta == 0.0 {
                for ((dx, d), o) in dx.iter_mut().zip(dout).zip(out) {
                    *dx = r * (d - o * m);
                }
            } else {
                for ((dx, d), o) in dx.iter_mut().zip(dout).zip(out) {
                    *dx = beta * *dx + r * (d - o * m);
                }
            }
        }
    }
}

pub(super) fn norm_backward(
    cpu: &Cpu,
    dx: &mut [f32],
    dout: &[f32],
    out: &[f32],
    rstd: &[f32],
    c: usize,
    beta: f32,
) {
    let rows = rows_per_chunk(c);
    each(&cpu.pool, [(dx, rows * c)], |i, [dx]| {
        let range = i * rows * c..i * rows * c + dx.len();
        let (dout, out) = (&dout[range.clone()], &out[range]);
        norm_backward_rows(&cpu.kernels, dx, dout, out, &rstd[i * rows..], c, beta);
    });
}

/// Where heads that follow each other stand, without a division for each.
struct Places {
    head: usize,
    t: usize,
}

impl Places {
    /// From the `first` head on.
    #[inline(always)]
    fn new(s: &RopeNorm, first: usize) -> Self {
        Self { head: first % s.h, t: first / s.h % s.t }
    }

    /// The position of the next head.
    #[inline(always)]
    fn next(&mut self, s: &RopeNorm) -> usize {
        let position = s.start + self.t;
        self.head += 1;
        if self.head == s.h {
            self.head = 0;
            self.t = if self.t + 1 == s.t { 0 } else { self.t + 1 };
        }
        position
    }
}

/// Calls `$run` with the width of a head, as a constant where it is a usual one: loops over it are then
/// straight code.
macro_rules! with_width {
    ($d:expr, |$width:ident| $run:expr) => {
        match $d {
            64 => {
                let $width = 64;
                $run
            }
            128 => {
                let $width = 128;
                $run
            }
            $width => $run,
        }
    };
}

#[inline(always)]
fn rope_norm_head(head: &mut [f32], cos: &[f32], sin: &[f32], d: usize, s: &RopeNorm) -> f32 {
    let (x1, x2) = head[..d].split_at_mut(d / 2);
    for (((x1, x2), cos), sin) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
        let (a, b) = (*x1, *x2);
        *x1 = a * cos + b * sin;
        *x2 = b * cos - a * sin;
    }
    let rstd = 1.0 / (dot(&head[..d], &head[..d]) / d as f32 + s.eps).sqrt();
    let scale = s.scale * rstd;
    for v in &mut head[..d] {
        *v *= scale;
    }
    rstd
}

simd_fn! {
    /// `first` is the row of x that the chunk begins with, counted in heads.
    fn rope_norm_heads(x: &mut [f32], rstd: &mut [f32], cos: &[f32], sin: &[f32], s: &RopeNorm, first: usize) {
        let mut places = Places::new(s, first);
        with_width!(s.d, |d| for (head, r) in x.chunks_exact_mut(d).zip(rstd) {
            let at = places.next(s) * (d / 2);
            let (cos, sin) = (&cos[at..at + d / 2], &sin[at..at + d / 2]);
            *r = rope_norm_head(head, cos, sin, d, s);
        });
    }
}

pub(super) fn rope_norm(
    cpu: &Cpu,
    x: &mut [f32],
    rstd: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    s: &RopeNorm,
) {
    let heads = rows_per_chunk(s.d);
    each(&cpu.pool, [(x, heads * s.d), (rstd, heads)], |i, [x, rstd]| {
        rope_norm_heads(&cpu.kernels, x, rstd, cos, sin, s, i * heads);
    });
}

simd_fn! {
    /// As [`rope_norm_heads`]; `places` are rows of `stride` numbers, of which the first counts.
    fn rope_norm_placed_heads(x: &mut [f32], rstd: &mut [f32], cos: &[f32], sin: &[f32], places: &[i32], stride: usize, s: &RopeNorm, first: usize) {
        with_width!(s.d, |d| for (i, (head, r)) in x.chunks_exact_mut(d).zip(rstd).enumerate() {
            let n = (first + i) / s.h;
            let at = (s.start + places[n / s.t * stride] as usize + n % s.t) * (d / 2);
            let (cos, sin) = (&cos[at..at + d / 2], &sin[at..at + d / 2]);
            *r = rope_norm_head(head, cos, sin, d, s);
        });
    }
}

/// A head has the bits that [`rope_norm`] gives it.
pub(super) fn rope_norm_placed(
    cpu: &Cpu,
    x: &mut [f32],
    rstd: &mut [f32],
    (cos, sin): (&[f32], &[f32]),
    places: &[i32],
    s: &RopeNorm,
) {
    let stride = places.len() / (rstd.len() / (s.t * s.h));
    let heads = rows_per_chunk(s.d);
    each(&cpu.pool, [(x, heads * s.d), (rstd, heads)], |i, [x, rstd]| {
        rope_norm_placed_heads(&cpu.kernels, x, rstd, cos, sin, places, stride, s, i * heads);
    });
}

#[inline(always)]
fn rope_norm_backward_head(
    head: &mut [f32],
    out: &[f32],
    rstd: f32,
    (cos, sin): (&[f32], &[f32]),
    d: usize,
    s: &RopeNorm,
) {
    let (head, out) = (&mut head[..d], &out[..d]);
    let m = dot(head, out) / (d as f32 * s.scale * s.scale);
    let scale = s.scale * rstd;
    for (dx, o) in head.iter_mut().zip(out) {
        *dx = scale * (*dx - o * m);
    }
    let (d1, d2) = head.split_at_mut(d / 2);
    for (((d1, d2), cos), sin) in d1.iter_mut().zip(d2).zip(cos).zip(sin) {
        let (a, b) = (*d1, *d2);
        *d1 = a * cos - b * sin;
        *d2 = a * sin + b * cos;
    }
}

simd_fn! {
    fn rope_norm_backward_heads(dx: &mut [f32], out: &[f32], rstd: &[f32], cos: &[f32], sin: &[f32], s: &RopeNorm, first: usize) {
        let mut places = Places::new(s, first);
        with_width!(s.d, |d| {
            let heads = dx.chunks_exact_mut(d).zip(out.chunks_exact(d)).zip(rstd);
            for ((head, out), rstd) in heads {
                let at = places.next(s) * (d / 2);
                let (cos, sin) = (&cos[at..at + d / 2], &sin[at..at + d / 2]);
                rope_norm_backward_head(head, out, *rstd, (cos, sin), d, s);
            }
        });
    }
}

pub(super) fn rope_norm_backward(
    cpu: &Cpu,
    dx: &mut [f32],
    out: &[f32],
    rstd: &[f32],
    cos: &[f32],
    sin: &[f32],
    s: &RopeNorm,
) {
    let heads = rows_per_chunk(s.d);
    each(&cpu.pool, [(dx, heads * s.d)], |i, [dx]| {
        let out = &out[i * heads * s.d..][..dx.len()];
        let rstd = &rstd[i * heads..];
        rope_norm_backward_heads(&cpu.kernels, dx, out, rstd, cos, sin, s, i * heads);
    });
}
