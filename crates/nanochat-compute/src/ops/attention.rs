//! Causal attention with a sliding window and grouped queries: training and cached.

use crate::Floats;

/// Shape and constants of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rows of the batch.
    pub b: usize,
    /// Positions of a row.
    pub t: usize,
    /// Query heads; a multiple of `hkv`.
    pub h: usize,
    /// Key/value heads; query head i reads key/value head i / (h / hkv).
    pub hkv: usize,
    /// Channels of a head.
    pub d: usize,
    /// A query at t sees the keys at t - window ..= t: itself and `window` earlier ones.
    pub window: usize,
    /// Multiplies q·k: 1 / sqrt(D).
    pub scale: f32,
}

/// `out[b,t,h] = sum_s softmax_s(scale q[b,t,h]·k[b,s,h']) v[b,s,h']` over the visible s.
///
/// Shapes: `q`, `out` (B, T, H, D); `k`, `v` (B, T, Hkv, D); `lse` (B, T, H) keeps
/// log(sum_s exp(scale q·k)) for the backward. Holds one row of scores at a time.
/// Plain reference; never optimise it.
pub fn attention(out: &mut [f32], lse: &mut [f32], q: &[f32], k: &[f32], v: &[f32], s: &Attention) {
    for b in 0..s.b {
        let kv = b * s.t * s.hkv * s.d..(b + 1) * s.t * s.hkv * s.d;
        for t in 0..s.t {
            for h in 0..s.h {
                let i = (b * s.t + t) * s.h + h;
                let q = &q[i * s.d..][..s.d];
                let head = h / (s.h / s.hkv);
                let first = t.saturating_sub(s.window);
                let out = &mut out[i * s.d..][..s.d];
                lse[i] = attend(out, q, &k[kv.clone()], &v[kv.clone()], head, first..t + 1, s);
            }
        }
    }
}

/// One query against the keys `seen` of one head; returns the log of the sum of exponentials.
fn attend(
    out: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    head: usize,
    seen: std::ops::Range<usize>,
    s: &Attention,
) -> f32 {
    let row = |m: &[f32], p: usize| -> Vec<f32> { m[(p * s.hkv + head) * s.d..][..s.d].to_vec() };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let scores: Vec<f32> = seen.clone().map(|p| s.scale * dot(q, &row(k, p))).collect();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|z| (z - max).exp()).sum();
    out.fill(0.0);
    for (p, z) in seen.zip(&scores) {
        let w = (z - max).exp() / sum;
        for (o, v) in out.iter_mut().zip(row(v, p)) {
            *o += w * v;
        }
    }
    max + sum.ln()
}

/// Gradients of [`attention`]: `dq`, `dk`, `dv` are overwritten.
///
/// With `p = exp(scale q·k - lse)` and `delta = dout·out` of the same query:
/// `dv[s] = sum p dout`, `ds = p (dout·v[s] - delta)`, `dq = scale sum ds k`, `dk[s] = scale sum ds q`.
/// Shapes as [`attention`]. Source: FlashAttention, arXiv:2205.14135. Plain reference.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    s: &Attention,
) {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dq.fill(0.0);
    dk.fill(0.0);
    dv.fill(0.0);
    for b in 0..s.b {
        for t in 0..s.t {
            for h in 0..s.h {
                let i = (b * s.t + t) * s.h + h;
                let at = i * s.d..(i + 1) * s.d;
                let (dout, q) = (&dout[at.clone()], &q[at.clone()]);
                let delta = dot(dout, &out[at.clone()]);
                for p in t.saturating_sub(s.window)..t + 1 {
                    let kv = ((b * s.t + p) * s.hkv + h / (s.h / s.hkv)) * s.d;
                    let (k, v) = (&k[kv..kv + s.d], &v[kv..kv + s.d]);
                    let w = (s.scale * dot(q, k) - lse[i]).exp();
                    let ds = s.scale * w * (dot(dout, v) - delta);
                    for j in 0..s.d {
                        dv[kv + j] += w * dout[j];
                        dk[kv + j] += ds * q[j];
                        dq[at.start + j] += ds * k[j];
                    }
                }
            }
        }
    }
}

/// Positions of a page: keys and values of a cache lie in pages, which need not follow each other.
pub const PAGE: usize = 64;

/// Shape and constants of [`attention_cached`].
#[derive(Clone, Copy, Debug)]
pub struct CachedAttention {
    /// Rows, each with its own place.
    pub rows: usize,
    /// New queries of a row.
    pub t: usize,
    /// Pages that a place names.
    pub pages: usize,
    /// Query heads.
    pub h: usize,
    /// Key/value heads.
    pub hkv: usize,
    /// Channels of a head.
    pub d: usize,
    /// As [`Attention::window`].
    pub window: usize,
    /// As [`Attention::scale`].
    pub scale: f32,
}

impl CachedAttention {
    /// Numbers of a place: the position of the row's first new query, then a page for every
    /// [`PAGE`] positions from 0 on; what stands for pages that no query sees is not looked at.
    pub fn place_len(&self) -> usize {
        1 + self.pages
    }

    /// Pages (of a place) that the queries of a row see, the first of which stands at `start`.
    pub fn seen(&self, start: usize) -> std::ops::Range<usize> {
        start.saturating_sub(self.window) / PAGE..(start + self.t).div_ceil(PAGE)
    }
}

/// [`attention`] of `t` new queries a row against a cache that already holds their keys.
///
/// Shapes: `q`, `out` (rows, T, H, D); `k`, `v` (any number of pages, Hkv, [`PAGE`], D), f32 or bf16;
/// `places` (rows, [`CachedAttention::place_len`]). Rows may share pages. Sums in f32 for both types.
/// Source: PagedAttention, arXiv:2309.06180. Plain reference; never optimise it.
pub fn attention_cached(
    out: &mut [f32],
    q: &[f32],
    k: Floats<'_>,
    v: Floats<'_>,
    places: &[i32],
    s: &CachedAttention,
) {
    let CachedAttention { h, hkv, d, window, scale, .. } = *s;
    let page = PAGE * hkv * d;
    for (r, place) in places.chunks_exact(s.place_len()).enumerate() {
        let start = place[0] as usize;
        let seen = s.seen(start);
        // Position by position, as `attend` reads them.
        let copied = |x: Floats<'_>| -> Vec<f32> {
            let row = |i: usize| {
                let (block, at, head) = (i / hkv / PAGE, i / hkv % PAGE, i % hkv);
                let from = place[1 + seen.start + block] as usize * page + (head * PAGE + at) * d;
                x.to_f32(from..from + d)
            };
            (0..seen.len() * PAGE * hkv).flat_map(row).collect()
        };
        let (k, v, before) = (copied(k), copied(v), seen.start * PAGE);
        let shape = Attention { b: 1, t: 0, h, hkv, d, window, scale };
        for t in 0..s.t {
            for head in 0..h {
                let at = (((r * s.t) + t) * h + head) * d;
                let p = start + t;
                let (q, out) = (&q[at..at + d], &mut out[at..at + d]);
                let keys = p.saturating_sub(window) - before..p + 1 - before;
                attend(out, q, &k, &v, head / (h / hkv), keys, &shape);
            }
        }
    }
}
