//! Gated sums: smear and value embeddings. References: `ops/smear.rs`, `ops/value_gate.rs`.

use super::Cpu;
use super::chunks::{each, rows_per_chunk};
use super::math::{dot, sigmoid, simd_fn};
use crate::ops::{Smear, ValueGate};

simd_fn! {
    fn smear_rows(out: &mut [f32], gate: &mut [f32], x: &[f32], w: &[f32], lambda: f32, s: &Smear, first: usize) {
        for (i, (out, gate)) in out.chunks_exact_mut(s.c).zip(gate).enumerate() {
            let n = first + i;
            let row = &x[n * s.c..][..s.c];
            *gate = sigmoid::<FMA>(dot(w, &row[..s.channels]));
            if n.is_multiple_of(s.t) {
                out.copy_from_slice(row);
            } else {
                let (before, g) = (&x[(n - 1) * s.c..][..s.c], lambda * *gate);
                for ((o, x), b) in out.iter_mut().zip(row).zip(before) {
                    *o = x + g * b;
                }
            }
        }
    }
}

pub(super) fn smear(
    cpu: &Cpu,
    out: &mut [f32],
    gate: &mut [f32],
    x: &[f32],
    w: &[f32],
    lambda: &[f32],
    s: &Smear,
) {
    let rows = rows_per_chunk(s.c);
    each(&cpu.pool, [(out, rows * s.c), (gate, rows)], |i, [out, gate]| {
        smear_rows(&cpu.kernels, out, gate, x, w, lambda[0], s, i * rows);
    });
}

simd_fn! {
    /// `partial` receives the chunk's share of (dw, dlambda).
    fn smear_backward_rows(dx: &mut [f32], partial: &mut [f32], dout: &[f32], x: &[f32], gate: &[f32], w: &[f32], lambda: f32, s: &Smear, first: usize) {
        let (dw, dlambda) = partial.split_at_mut(s.channels);
        for (i, dx) in dx.chunks_exact_mut(s.c).enumerate() {
            let n = first + i;
            let d = &dout[n * s.c..][..s.c];
            if (n + 1).is_multiple_of(s.t) {
                dx.copy_from_slice(d);
            } else {
                let (after, g) = (&dout[(n + 1) * s.c..][..s.c], lambda * gate[n + 1]);
                for ((dx, d), a) in dx.iter_mut().zip(d).zip(after) {
                    *dx = d + g * a;
                }
            }
            if !n.is_multiple_of(s.t) {
                let sum = dot(d, &x[(n - 1) * s.c..][..s.c]);
                dlambda[0] += sum * gate[n];
                let z = lambda * sum * gate[n] * (1.0 - gate[n]);
                for c in 0..s.channels {
                    dw[c] += z * x[n * s.c + c];
                    dx[c] += z * w[c];
                }
            }
        }
    }
}

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
    lambda: &[f32],
    s: &Smear,
) {
    let rows = rows_per_chunk(s.c);
    let (n, width) = (s.b * s.t, s.channels + 1);
    let mut partials = vec![0f32; n.div_ceil(rows) * width];
    each(&cpu.pool, [(dx, rows * s.c), (&mut partials, width)], |i, [dx, partial]| {
        let first = i * rows;
        smear_backward_rows(&cpu.kernels, dx, partial, dout, x, gate, w, lambda[0], s, first);
    });
    for partial in partials.chunks_exact(width) {
        for (d, p) in dw.iter_mut().zip(partial) {
            *d += p;
        }
        dlambda[0] += partial[s.channels];
    }
}

simd_fn! {
    fn value_gate_rows(v: &mut [f32], gate: &mut [f32], table: &[f32], ids: &[i32], y: &[f32], w: &[f32], s: &ValueGate) {
        for (i, (head, gate)) in v.chunks_exact_mut(s.d).zip(gate).enumerate() {
            let (n, h) = (i / s.hkv, i % s.hkv);
            let z = dot(&w[h * s.channels..][..s.channels], &y[n * s.c..][..s.channels]);
            *gate = s.scale * sigmoid::<FMA>(z);
            let row = &table[(ids[n] as usize * s.hkv + h) * s.d..][..s.d];
            for (v, e) in head.iter_mut().zip(row) {
                *v += *gate * e;
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn value_gate(
    cpu: &Cpu,
    v: &mut [f32],
    gate: &mut [f32],
    table: &[f32],
    ids: &[i32],
    y: &[f32],
    w: &[f32],
    s: &ValueGate,
) {
    let kv = s.hkv * s.d;
    let rows = rows_per_chunk(kv);
    each(&cpu.pool, [(v, rows * kv), (gate, rows * s.hkv)], |i, [v, gate]| {
        let (ids, y) = (&ids[i * rows..], &y[i * rows * s.c..]);
        value_gate_rows(&cpu.kernels, v, gate, table, ids, y, w, s);
    });
}

simd_fn! {
    /// `partial` receives the chunk's share of dw.
    fn gate_gradient_rows(dy: &mut [f32], partial: &mut [f32], dv: &[f32], table: &[f32], ids: &[i32], y: &[f32], w: &[f32], gate: &[f32], s: &ValueGate) {
        let all = GateGradient { dv, table, ids, y, w, gate, s };
        // The usual sizes as constants: loops over them are then straight code.
        match (s.d, s.channels) {
            (64, 12) => all.rows(dy, partial, 64, 12),
            (128, 12) => all.rows(dy, partial, 128, 12),
            (d, channels) => all.rows(dy, partial, d, channels),
        }
    }
}

/// What [`gate_gradient_rows`] reads.
struct GateGradient<'a> {
    dv: &'a [f32],
    table: &'a [f32],
    ids: &'a [i32],
    y: &'a [f32],
    w: &'a [f32],
    gate: &'a [f32],
    s: &'a ValueGate,
}

impl GateGradient<'_> {
    #[inline(always)]
    fn rows(&self, dy: &mut [f32], partial: &mut [f32], d: usize, channels: usize) {
        let s = self.s;
        for (n, dy) in dy.chunks_exact_mut(s.c).enumerate() {
            let (dy, y) = (&mut dy[..channels], &self.y[n * s.c..][..channels]);
            let row = &self.table[self.ids[n] as usize * s.hkv * d..][..s.hkv * d];
            let dv = &self.dv[n * s.hkv * d..][..s.hkv * d];
            let gate = &self.gate[n * s.hkv..][..s.hkv];
            let weights = self.w.chunks_exact(channels).zip(partial.chunks_exact_mut(channels));
            let heads = row.chunks_exact(d).zip(dv.chunks_exact(d)).zip(gate);
            for (((row, dv), gate), (w, dw)) in heads.zip(weights) {
                let z = dot(dv, row) * gate * (1.0 - gate / s.scale);
                gate_channels(z, dy, dw, y, w);
            }
        }
    }
}

/// `dw += z y`, `dy += z w`.
#[inline(always)]
fn gate_channels(z: f32, dy: &mut [f32], dw: &mut [f32], y: &[f32], w: &[f32]) {
    for (((dy, dw), y), w) in dy.iter_mut().zip(dw).zip(y).zip(w) {
        *dw += z * y;
        *dy += z * w;
    }
}

/// Rows of the table are dealt out to this many tasks; each scans all ids for its own.
const TABLE_TASKS: usize = 8;

#[allow(clippy::too_many_arguments)]
pub(super) fn value_gate_backward(
    cpu: &Cpu,
    dtable: &mut [f32],
    dw: &mut [f32],
    dy: &mut [f32],
    dv: &[f32],
    table: &[f32],
    ids: &[i32],
    y: &[f32],
    w: &[f32],
    gate: &[f32],
    s: &ValueGate,
) {
    let kv = s.hkv * s.d;
    let rows = rows_per_chunk(s.c);
    let width = s.hkv * s.channels;
    let mut partials = vec![0f32; ids.len().div_ceil(rows) * width];
    each(&cpu.pool, [(dy, rows * s.c), (&mut partials, width)], |i, [dy, partial]| {
        let first = i * rows;
        let (dv, ids, y) = (&dv[first * kv..], &ids[first..], &y[first * s.c..]);
        let gate = &gate[first * s.hkv..];
        gate_gradient_rows(&cpu.kernels, dy, partial, dv, table, ids, y, w, gate, s);
    });
    for partial in partials.chunks_exact(width) {
        for (d, p) in dw.iter_mut().zip(partial) {
            *d += p;
        }
    }
    let rows = (dtable.len() / kv).div_ceil(TABLE_TASKS).max(1);
    each(&cpu.pool, [(dtable, rows * kv)], |i, [dtable]| {
        for (n, &id) in ids.iter().enumerate() {
            let Some(row) = (id as usize).checked_sub(i * rows) else { continue };
            let Some(to) = dtable.get_mut(row * kv..(row + 1) * kv) else { continue };
            for (h, to) in to.chunks_exact_mut(s.d).enumerate() {
                let (g, dv) = (gate[n * s.hkv + h], &dv[(n * s.hkv + h) * s.d..][..s.d]);
                for (t, d) in to.iter_mut().zip(dv) {
                    *t += g * d;
                }
            }
        }
    });
}
