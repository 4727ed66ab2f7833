//! Causal attention on the CPU, in blocks: no row of scores is ever whole in memory.
//!
//! In: queries, keys and values in rows of heads, or a cache of keys and values. Out: as the
//! references in [`crate::ops::attention`], in the arithmetic of [`Cpu`]'s products. Nothing
//! depends on the number of threads, and a query's output has the same bits from
//! [`attention`] and [`attention_cached`].

use self::backward::Backward;
use self::forward::{Keys, Queries, Source, attend};
use self::product::{Parts, block_rows};
use self::softmax::BLOCK;
use super::Cpu;
use super::gemm::buffer::{Use, with_words};
use super::gemm::kernel::{KC, Kernel};
use super::gemm::{Shared, SharedConst, with_kernel};
use crate::Floats;
use crate::ops::attention::{Attention, CachedAttention};

mod backward;
#[cfg(target_arch = "x86_64")]
mod decode;
mod forward;
mod product;
mod softmax;
#[cfg(test)]
mod tests;

/// Wider heads than this take the plain reference.
pub(crate) const MAX_D: usize = KC;

/// Equals [`crate::ops::attention::attention`] up to the order of sums.
pub(crate) fn attention(
    cpu: &Cpu,
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    s: &Attention,
) {
    check(s);
    let (queries, keys) = (s.b * s.t * s.h * s.d, s.b * s.t * s.hkv * s.d);
    assert!(q.len() == queries && out.len() == queries && lse.len() == s.b * s.t * s.h);
    assert!(k.len() == keys && v.len() == keys);
    if queries == 0 {
        return;
    }
    let all = Batch {
        q: SharedConst(q.as_ptr()),
        kv: Stored::F32(SharedConst(k.as_ptr()), SharedConst(v.as_ptr())),
        out: Shared(out.as_mut_ptr()),
        lse: Some(Shared(lse.as_mut_ptr())),
        rows: s.b,
        t: s.t,
        places: None,
        s: *s,
    };
    with_kernel!(cpu.kernels, cpu.multiply, forward(cpu, &all));
}

/// Equals [`crate::ops::attention::attention_cached`] up to the order of sums. Every page that a query
/// sees exists (`host.rs` checks it).
pub(crate) fn attention_cached(
    cpu: &Cpu,
    out: &mut [f32],
    q: &[f32],
    k: Floats<'_>,
    v: Floats<'_>,
    places: &[i32],
    c: &CachedAttention,
) {
    let CachedAttention { rows, t, h, hkv, d, window, scale, .. } = *c;
    let s = Attention { b: rows, t, h, hkv, d, window, scale };
    check(&s);
    let (queries, page) = (rows * t * h * d, BLOCK * hkv * d);
    assert!(q.len() == queries && out.len() == queries && v.len() == k.len());
    assert!(places.len() == rows * c.place_len());
    if queries == 0 {
        return;
    }
    for place in places.chunks_exact(c.place_len()) {
        let seen = &place[1..][c.seen(place[0] as usize)];
        assert!(seen.iter().all(|&p| p >= 0 && (p as usize + 1) * page <= k.len()));
    }
    let kv = match (k, v) {
        (Floats::F32(k), Floats::F32(v)) => {
            Stored::F32(SharedConst(k.as_ptr()), SharedConst(v.as_ptr()))
        }
        (Floats::Bf16(k), Floats::Bf16(v)) => {
            #[cfg(target_arch = "x86_64")]
            if decode::takes(cpu, c) {
                return decode::decode(cpu, out, q, k, v, places, c);
            }
            Stored::Bf16(SharedConst(k.as_ptr()), SharedConst(v.as_ptr()))
        }
        _ => unreachable!("keys and values have one type (`host.rs` checks it)"),
    };
    let all = Batch {
        q: SharedConst(q.as_ptr()),
        kv,
        out: Shared(out.as_mut_ptr()),
        lse: None,
        rows,
        t,
        places: Some((places, c.place_len())),
        s,
    };
    with_kernel!(cpu.kernels, cpu.multiply, forward(cpu, &all));
}

/// Equals [`crate::ops::attention::attention_backward`] up to the order of sums, which is fixed.
#[allow(clippy::too_many_arguments)]
pub(crate) fn attention_backward(
    cpu: &Cpu,
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
    check(s);
    let (queries, keys) = (s.b * s.t * s.h * s.d, s.b * s.t * s.hkv * s.d);
    assert!([dq.len(), dout.len(), out.len(), q.len()] == [queries; 4]);
    assert!([dk.len(), dv.len(), k.len(), v.len()] == [keys; 4]);
    assert!(lse.len() == s.b * s.t * s.h);
    if queries == 0 {
        return;
    }
    let all = Backward {
        dq: Shared(dq.as_mut_ptr()),
        dk: Shared(dk.as_mut_ptr()),
        dv: Shared(dv.as_mut_ptr()),
        dout: SharedConst(dout.as_ptr()),
        out: SharedConst(out.as_ptr()),
        lse: SharedConst(lse.as_ptr()),
        q: SharedConst(q.as_ptr()),
        k: SharedConst(k.as_ptr()),
        v: SharedConst(v.as_ptr()),
        s: *s,
        kernels: cpu.kernels,
    };
    with_kernel!(cpu.kernels, cpu.multiply, backward(cpu, &all));
}

fn check(s: &Attention) {
    assert!(s.hkv > 0 && s.h.is_multiple_of(s.hkv), "{} heads over {}", s.h, s.hkv);
    assert!(s.d <= KC, "heads have at most {KC} channels, not {}", s.d);
    assert!(s.scale > 0.0, "attention: scale is {}", s.scale);
}

/// Keys and values: (rows, t, hkv, d), or pages of (hkv, BLOCK, d).
#[derive(Clone, Copy)]
enum Stored {
    F32(SharedConst<f32>, SharedConst<f32>),
    /// In pages only.
    Bf16(SharedConst<u16>, SharedConst<u16>),
}

/// A call of the forward: `t` queries a row.
struct Batch<'a> {
    /// (rows, t, h, d)
    q: SharedConst<f32>,
    kv: Stored,
    /// (rows, t, h, d)
    out: Shared<f32>,
    /// (rows, t, h)
    lse: Option<Shared<f32>>,
    rows: usize,
    t: usize,
    /// (rows, this many): the first query's position, and where each block of keys lies; without,
    /// rows begin at 0 and blocks follow each other.
    places: Option<(&'a [i32], usize)>,
    s: Attention,
}

impl<'a> Batch<'a> {
    /// Position of a row's first query, and its pages.
    fn place(&self, row: usize) -> (usize, Option<&'a [i32]>) {
        match self.places {
            None => (0, None),
            Some((places, len)) => {
                let place = &places[row * len..][..len];
                (place[0] as usize, Some(&place[1..]))
            }
        }
    }
}

impl<'a> Batch<'a> {
    /// Where the keys and values of a head lie.
    ///
    /// # Safety
    /// `row` and `head` exist.
    unsafe fn source(&self, row: usize, head: usize, pages: Option<&'a [i32]>) -> Source<'a> {
        let Attention { hkv, d, .. } = self.s;
        let (at, page) = (head * BLOCK * d, hkv * BLOCK * d);
        // SAFETY: the head lies in its row, or in every page: (hkv, BLOCK, d).
        unsafe {
            match (self.kv, pages) {
                (Stored::F32(k, v), None) => {
                    let from = (row * self.t * hkv + head) * d;
                    Source::Rows { k: k.get().add(from), v: v.get().add(from), ld: hkv * d }
                }
                (Stored::F32(k, v), Some(pages)) => {
                    Source::Pages { k: k.get().add(at), v: v.get().add(at), page, pages }
                }
                (Stored::Bf16(k, v), pages) => {
                    let pages = pages.expect("bf16 lies in pages");
                    Source::Bf16Pages { k: k.get().add(at), v: v.get().add(at), page, pages }
                }
            }
        }
    }
}

/// A task: one key/value head of one row and some blocks of queries of all heads that share it.
fn forward<K: Kernel>(cpu: &Cpu, all: &Batch<'_>) {
    let Attention { h, hkv, d, window, scale, .. } = all.s;
    let (group, heads) = (h / hkv, all.rows * hkv);
    // A block is block_rows positions of a head or, for a single position, the heads of a group.
    let single = all.t == 1 && group <= block_rows::<K>();
    let blocks = all.t.div_ceil(block_rows::<K>());
    let parts = (4 * cpu.threads()).div_ceil(heads).clamp(1, blocks);
    let blocks_each = blocks.div_ceil(parts);
    let parts = blocks.div_ceil(blocks_each);
    cpu.pool.run(heads * parts, |task| {
        // The last blocks see most keys, so they go first.
        let (head, part) = (task % heads, parts - 1 - task / heads);
        let (row, kv) = (head / hkv, head % hkv);
        let blocks = part * blocks_each..blocks.min((part + 1) * blocks_each);
        let (start, pages) = all.place(row);
        let position = start + blocks.start * block_rows::<K>();
        let end = start + all.t.min(blocks.end * block_rows::<K>());
        let base = position.saturating_sub(window) / BLOCK;
        let slots =
            if blocks.len() * group == 1 || single { 1 } else { end.div_ceil(BLOCK) - base };
        let room = Keys::room::<K>(d, slots);
        with_words(Use::Task, room, |words| {
            let words = Parts::new(words.as_mut_ptr(), room);
            // SAFETY: positions below `end <= start + t` of row < rows exist in k and v, in the row
            // itself or in its pages, rows below t in q, out and lse (asserted by the callers); a
            // task writes the outputs of its own heads and blocks only; the kernel was chosen by
            // `Kernels`.
            unsafe {
                let source = all.source(row, kv, pages);
                let sizes = (end, d);
                let at = (base, slots);
                let mut keys =
                    Keys::new::<K>(source, sizes, (window, scale), at, words, cpu.kernels);
                for block in blocks {
                    let t = block * block_rows::<K>();
                    for i in 0..if single { 1 } else { group } {
                        let at = (row * all.t + t) * h + kv * group + i;
                        let ld = if single { d } else { h * d };
                        let lse = all.lse.map_or(std::ptr::null_mut(), |lse| lse.get().add(at));
                        let left = block_rows::<K>().min(all.t - t);
                        let queries = Queries {
                            q: all.q.get().add(at * d),
                            q_ld: ld,
                            out: all.out.get().add(at * d),
                            out_ld: ld,
                            lse,
                            lse_ld: ld / d,
                            count: if single { group } else { left },
                            first: start + t,
                            step: usize::from(!single),
                        };
                        attend::<K>(&queries, &mut keys);
                    }
                }
            }
        });
    });
}

/// A task: one key/value head of one row, with all heads that share it.
fn backward<K: Kernel>(cpu: &Cpu, all: &Backward) {
    cpu.pool.run(all.s.b * all.s.hkv, |task| {
        let room = Backward::room::<K>(&all.s);
        with_words(Use::Task, room, |words| {
            let words = Parts::new(words.as_mut_ptr(), room);
            // SAFETY: the tensors have the sizes of `s` (asserted by the caller); a task writes the
            // gradients of its own heads only; the kernel was chosen by `Kernels`.
            unsafe { all.head::<K>(task / all.s.hkv, task % all.s.hkv, words) }
        });
    });
}
