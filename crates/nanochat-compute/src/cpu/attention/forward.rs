//! Attention of a block of queries over the blocks of keys they see, with an online softmax.
//!
//! Source: FlashAttention-2, arXiv:2307.08691. Blocks of keys begin at multiples of [`BLOCK`] and
//! are taken in ascending order, so what a query sees is summed in the same order wherever it
//! comes from: a batch, a longer text, or a cache.

use super::product::{Parts, Product, block_rows, pack_columns, pack_rows, packed_len, product};
use super::softmax::{BLOCK, MAX_ROWS, Scores, seen, softmax};
use crate::cpu::gemm::kernel::{A_ROW, Kernel, Tiles, words_of};
use crate::cpu::math::simd_fn;
use crate::cpu::simd::Kernels;

/// Queries that share a key/value head, and where their results go.
pub(super) struct Queries {
    /// (count, d), `q_ld` apart.
    pub q: *const f32,
    pub q_ld: usize,
    /// (count, d), `out_ld` apart.
    pub out: *mut f32,
    pub out_ld: usize,
    /// (count), `lse_ld` apart, or null.
    pub lse: *mut f32,
    pub lse_ld: usize,
    /// At most [`block_rows`].
    pub count: usize,
    /// Row r stands at position `first + r * step`; its own key is the last one it sees.
    pub first: usize,
    pub step: usize,
}

/// Where the keys and values of a head lie.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// (len, d), `ld` apart, both.
    Rows { k: *const f32, v: *const f32, ld: usize },
    /// Blocks of (BLOCK, d), `page` elements apart: block i is number `pages[i]`.
    Pages { k: *const f32, v: *const f32, page: usize, pages: &'a [i32] },
    /// The same in bf16.
    Bf16Pages { k: *const u16, v: *const u16, page: usize, pages: &'a [i32] },
}

/// One key/value head: packed block by block when first needed.
pub(super) struct Keys<'a> {
    source: Source<'a>,
    pub len: usize,
    pub d: usize,
    pub window: usize,
    pub scale: f32,
    /// Packed blocks from `base` on; with one slot, only the one in use.
    slots: usize,
    base: usize,
    next: usize,
    packed: *mut u32,
    /// Packed queries, scores, packed weights.
    queries: *mut u32,
    scores: *mut f32,
    weights: *mut u32,
    /// (BLOCK, d): a block of bf16 as f32.
    wide: *mut f32,
    kernels: Kernels,
}

impl<'a> Keys<'a> {
    /// Words of workspace for `slots` packed blocks.
    pub fn room<K: Kernel>(d: usize, slots: usize) -> usize {
        slots * block_len::<K>(d) + 3 * block_rows::<K>() * A_ROW + BLOCK * d + 80
    }

    /// One head; blocks from `base` on will be used, the first of them first.
    pub fn new<K: Kernel>(
        source: Source<'a>,
        (len, d): (usize, usize),
        (window, scale): (usize, f32),
        (base, slots): (usize, usize),
        mut parts: Parts,
        kernels: Kernels,
    ) -> Keys<'a> {
        let packed = parts.take(slots * block_len::<K>(d));
        let mut rows = || parts.take(block_rows::<K>() * A_ROW);
        let (queries, scores, weights) = (rows(), rows().cast(), rows());
        let (wide, next) = (parts.take(BLOCK * d).cast(), base);
        Keys {
            source,
            len,
            d,
            window,
            scale,
            slots,
            base,
            next,
            packed,
            queries,
            scores,
            weights,
            wide,
            kernels,
        }
    }

    /// The packed keys and values of a block.
    ///
    /// # Safety
    /// The instructions of `K` exist; `self` describes memory that exists; `block * BLOCK < len`.
    unsafe fn block<K: Kernel>(&mut self, block: usize) -> (*const u32, *const u32) {
        if self.slots == 1 {
            self.next = block;
        }
        while self.next <= block {
            // SAFETY: the conditions of this function, and next <= block.
            unsafe { self.pack::<K>(self.next) };
            self.next += 1;
        }
        let (k, v) = self.slot::<K>(block);
        (k.cast_const(), v.cast_const())
    }

    fn slot<K: Kernel>(&self, block: usize) -> (*mut u32, *mut u32) {
        let slot = (block - self.base) % self.slots;
        let k = self.packed.wrapping_add(slot * block_len::<K>(self.d));
        (k, k.wrapping_add(packed_len::<K>(BLOCK, self.d)))
    }

    /// # Safety
    /// As [`Keys::block`].
    unsafe fn pack<K: Kernel>(&self, block: usize) {
        let (k_to, v_to) = self.slot::<K>(block);
        let (key0, d) = (block * BLOCK, self.d);
        let count = BLOCK.min(self.len - key0);
        // SAFETY: keys key0 .. key0 + count <= len exist in the source, and in pages whole blocks of
        // BLOCK; a slot has room for a block, `wide` for BLOCK * d floats.
        unsafe {
            let pack_k = |k, ld| pack_columns::<K>(k, ld, true, (count, d, d), k_to);
            let pack_v = |v, ld| pack_columns::<K>(v, ld, false, (d, count, BLOCK), v_to);
            match self.source {
                Source::Rows { k, v, ld } => {
                    pack_k(k.add(key0 * ld), ld);
                    pack_v(v.add(key0 * ld), ld);
                }
                Source::Pages { k, v, page, pages } => {
                    let lies = pages[block] as usize * page;
                    pack_k(k.add(lies), d);
                    pack_v(v.add(lies), d);
                }
                Source::Bf16Pages { k, v, page, pages } => {
                    let lies = pages[block] as usize * page;
                    let wide = std::slice::from_raw_parts_mut(self.wide, count * d);
                    widen(&self.kernels, wide, std::slice::from_raw_parts(k.add(lies), count * d));
                    pack_k(self.wide, d);
                    widen(&self.kernels, wide, std::slice::from_raw_parts(v.add(lies), count * d));
                    pack_v(self.wide, d);
                }
            }
        }
    }
}

simd_fn! {
    /// bf16 as f32: exact.
    fn widen(out: &mut [f32], x: &[u16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::from_bits(u32::from(*x) << 16);
        }
    }
}

/// Words of a packed block of keys and values.
fn block_len<K: Kernel>(d: usize) -> usize {
    packed_len::<K>(BLOCK, d) + packed_len::<K>(d, BLOCK)
}

/// Writes the outputs (and log-sums) of the queries.
///
/// # Safety
/// The instructions of `K` exist; the pointers hold what [`Queries`] and [`Keys`] say; every
/// position is below `keys.len`; no other thread touches the outputs.
pub(super) unsafe fn attend<K: Kernel>(rows: &Queries, keys: &mut Keys<'_>) {
    let (mut max, mut sum) = ([f32::NEG_INFINITY; MAX_ROWS], [0.0f32; MAX_ROWS]);
    assert!(rows.count <= block_rows::<K>() && block_rows::<K>() <= MAX_ROWS);
    let (d, window) = (keys.d, keys.window);
    let position = |r: usize| rows.first + r * rows.step;
    let first = position(0).saturating_sub(window) / BLOCK;
    let last = position(rows.count - 1) / BLOCK;
    // SAFETY: the conditions of this function; `queries`, `scores`, `weights` have block_rows rows
    // of A_ROW words.
    unsafe {
        let _tiles = Tiles::<K>::begin();
        pack_rows::<K>(rows.q, rows.q_ld, rows.count, d, keys.queries);
        for block in first..=last {
            let key0 = block * BLOCK;
            let (k, v) = keys.block::<K>(block);
            let d_words = words_of::<K>(d);
            let scores = Product {
                a: keys.queries,
                a_by_k: false,
                rows: rows.count,
                b: k,
                b_words: d_words,
                cols: BLOCK,
                c: keys.scores,
                ldc: A_ROW,
                beta: 0.0,
            };
            // Tiles of which no query sees a key are left out.
            product::<K>(&scores, |r, n, j| {
                let (lo, hi) =
                    (seen(position(r), window, key0).0, seen(position(r + n - 1), 0, key0).1);
                (j < hi && j + K::NR > lo).then_some((0, d_words))
            });
            let block_scores = Scores {
                scores: keys.scores,
                rows: rows.count,
                key0,
                first: rows.first,
                step: rows.step,
                window,
                scale: keys.scale,
                max: max.as_mut_ptr(),
                sum: sum.as_mut_ptr(),
                out: rows.out,
                out_ld: rows.out_ld,
                d,
                fresh: block == first,
            };
            softmax(keys.kernels, &block_scores);
            let mut weights = keys.scores.cast::<u32>().cast_const();
            if !K::RAW {
                pack_rows::<K>(keys.scores, A_ROW, rows.count, BLOCK, keys.weights);
                weights = keys.weights;
            }
            let outputs = Product {
                a: weights,
                a_by_k: false,
                rows: rows.count,
                b: v,
                b_words: BLOCK / K::STEP,
                cols: d,
                c: rows.out,
                ldc: rows.out_ld,
                beta: if block == first { 0.0 } else { 1.0 },
            };
            // Weights of keys that no query of a tile sees are zero: their steps are left out.
            product::<K>(&outputs, |r, n, _| {
                let (lo, hi) =
                    (seen(position(r), window, key0).0, seen(position(r + n - 1), 0, key0).1);
                Some((lo / K::STEP, hi.div_ceil(K::STEP)))
            });
        }
        for r in 0..rows.count {
            let share = 1.0 / sum[r];
            for x in std::slice::from_raw_parts_mut(rows.out.add(r * rows.out_ld), d) {
                *x *= share;
            }
            if !rows.lse.is_null() {
                *rows.lse.add(r * rows.lse_ld) = max[r] + sum[r].ln();
            }
        }
    }
}
