//! The backward of attention for one key/value head, block by block.
//!
//! Source: FlashAttention-2, arXiv:2307.08691. Scores are computed once more, transposed (keys
//! down, queries across), so that the weights are a packed A for dv and dk as they lie. Sums run
//! over heads, then queries (dk, dv) or keys (dq), always ascending.

use super::product::{Parts, Product, block_rows, pack_columns, pack_rows, packed_len, product};
use super::softmax::{BLOCK, ScoreGradients, softmax_backward};
use crate::cpu::gemm::kernel::{A_ROW, Kernel, Piece, Tiles, words_of};
use crate::cpu::gemm::{Shared, SharedConst};
use crate::cpu::simd::Kernels;
use crate::ops::attention::Attention;

/// The tensors of [`super::attention_backward`].
pub(super) struct Backward {
    /// (B, T, H, D), as `dout`, `out`, `q`.
    pub dq: Shared<f32>,
    /// (B, T, Hkv, D), as `dv`, `k`, `v`.
    pub dk: Shared<f32>,
    pub dv: Shared<f32>,
    pub dout: SharedConst<f32>,
    pub out: SharedConst<f32>,
    /// (B, T, H)
    pub lse: SharedConst<f32>,
    pub q: SharedConst<f32>,
    pub k: SharedConst<f32>,
    pub v: SharedConst<f32>,
    pub s: Attention,
    pub kernels: Kernels,
}

/// Workspace of a task. Blocks of queries have fixed room, `across` or `turned` words each.
struct Work {
    /// Queries of a head and gradients of its outputs, packed as B: queries as columns (`turned`,
    /// for the scores), and queries along k (`across`, for dk and dv).
    q_turned: *mut u32,
    dout_turned: *mut u32,
    q_across: *mut u32,
    dout_across: *mut u32,
    /// (T), zero from there to the end of the block.
    lse: *mut f32,
    delta: *mut f32,
    /// A block of keys and one of values, rows as A; the keys also along k as B.
    k_rows: *mut u32,
    v_rows: *mut u32,
    k_across: *mut u32,
    /// Weights and gradients of scores, keys down; packed as A where they are not already.
    weights: *mut f32,
    grads: *mut f32,
    packed: *mut u32,
    /// Gradients of scores as A with keys along k.
    grads_by_k: *mut u32,
}

/// Words of a block of queries as columns, as rows of k, and of a block of keys as rows of k.
fn lens<K: Kernel>(d: usize) -> (usize, usize, usize) {
    let keys = packed_len::<K>(d, block_rows::<K>());
    (packed_len::<K>(BLOCK, d), packed_len::<K>(d, BLOCK), keys)
}

impl Backward {
    /// Words of workspace that a head needs.
    pub fn room<K: Kernel>(s: &Attention) -> usize {
        let blocks = s.t.div_ceil(BLOCK);
        let (turned, across, keys) = lens::<K>(s.d);
        let by_k = BLOCK.next_multiple_of(K::MR) * A_ROW;
        let heads = 2 * blocks * (turned + across + BLOCK);
        heads + keys + 5 * block_rows::<K>() * A_ROW + by_k + 16 * 16
    }

    fn work<K: Kernel>(&self, mut parts: Parts) -> Work {
        let blocks = self.s.t.div_ceil(BLOCK);
        let (turned, across, keys) = lens::<K>(self.s.d);
        let rows = block_rows::<K>() * A_ROW;
        Work {
            q_turned: parts.take(blocks * turned),
            dout_turned: parts.take(blocks * turned),
            q_across: parts.take(blocks * across),
            dout_across: parts.take(blocks * across),
            lse: parts.take(blocks * BLOCK).cast(),
            delta: parts.take(blocks * BLOCK).cast(),
            k_rows: parts.take(rows),
            v_rows: parts.take(rows),
            k_across: parts.take(keys),
            weights: parts.take(rows).cast(),
            grads: parts.take(rows).cast(),
            packed: parts.take(rows),
            grads_by_k: parts.take(BLOCK.next_multiple_of(K::MR) * A_ROW),
        }
    }

    /// Writes dk, dv of a key/value head and dq of the heads that share it.
    ///
    /// # Safety
    /// The instructions of `K` exist; the pointers hold tensors of the sizes of `s`; `parts` is
    /// [`Backward::room`] long; no other thread touches these heads' gradients.
    pub unsafe fn head<K: Kernel>(&self, b: usize, kv: usize, parts: Parts) {
        let Attention { t, h, hkv, window, .. } = self.s;
        let (group, work) = (h / hkv, self.work::<K>(parts));
        // SAFETY: the conditions of this function.
        let _tiles = unsafe { Tiles::<K>::begin() };
        for i in 0..group {
            let head = kv * group + i;
            // SAFETY: the conditions of this function; block by block inside t.
            unsafe {
                self.pack_head::<K>(b, head, &work);
                for key0 in (0..t).step_by(block_rows::<K>()) {
                    let keys = block_rows::<K>().min(t - key0);
                    self.pack_keys::<K>((b * t + key0) * hkv + kv, keys, &work);
                    let last = (key0 + keys - 1).saturating_add(window).min(t - 1) / BLOCK;
                    for block in key0 / BLOCK..=last {
                        let at = Block { b, head, kv, key0, keys, query0: block * BLOCK };
                        self.block::<K>(&at, &work, i == 0 && block == key0 / BLOCK);
                    }
                }
            }
        }
    }

    /// Packs the queries of a head and what belongs to them.
    ///
    /// # Safety
    /// As [`Backward::head`].
    unsafe fn pack_head<K: Kernel>(&self, b: usize, head: usize, w: &Work) {
        let Attention { t, h, d, .. } = self.s;
        let (turned, across, _) = lens::<K>(d);
        for block in 0..t.div_ceil(BLOCK) {
            let (query0, ld) = (block * BLOCK, h * d);
            let count = BLOCK.min(t - query0);
            let row = (b * t + query0) * h + head;
            // SAFETY: queries query0 .. query0 + count <= t of the head exist; block < blocks.
            unsafe {
                for (src, turn, cross) in [
                    (self.q.get(), w.q_turned, w.q_across),
                    (self.dout.get(), w.dout_turned, w.dout_across),
                ] {
                    let src = src.add(row * d);
                    pack_columns::<K>(src, ld, true, (count, d, d), turn.add(block * turned));
                    let cross = cross.add(block * across);
                    pack_columns::<K>(src, ld, false, (d, count, BLOCK), cross);
                }
                for i in 0..BLOCK {
                    let (lse, delta) = (w.lse.add(query0 + i), w.delta.add(query0 + i));
                    (*lse, *delta) = (0.0, 0.0);
                    if i < count {
                        let at = row + i * h;
                        let x = std::slice::from_raw_parts(self.out.get().add(at * d), d);
                        let y = std::slice::from_raw_parts(self.dout.get().add(at * d), d);
                        (*lse, *delta) = (*self.lse.get().add(at), dot(x, y));
                    }
                }
            }
        }
    }

    /// Packs `keys` keys and values from the row `at` of (B T Hkv, D) on.
    ///
    /// # Safety
    /// As [`Backward::head`].
    unsafe fn pack_keys<K: Kernel>(&self, at: usize, keys: usize, w: &Work) {
        let (ld, d) = (self.s.hkv * self.s.d, self.s.d);
        // SAFETY: the keys exist; a block has block_rows of them at most.
        unsafe {
            let (k, v) = (self.k.get().add(at * d), self.v.get().add(at * d));
            pack_rows::<K>(k, ld, keys, d, w.k_rows);
            pack_rows::<K>(v, ld, keys, d, w.v_rows);
            pack_columns::<K>(k, ld, false, (d, keys, block_rows::<K>()), w.k_across);
        }
    }

    /// What a block of queries gives to a block of keys, and the other way round.
    ///
    /// # Safety
    /// As [`Backward::head`]; both blocks are packed.
    unsafe fn block<K: Kernel>(&self, at: &Block, w: &Work, first_of_keys: bool) {
        let Attention { t, h, hkv, d, window, scale, .. } = self.s;
        let &Block { b, head, kv, key0, keys, query0 } = at;
        let (turned, across, _) = lens::<K>(d);
        let (block, queries) = (query0 / BLOCK, BLOCK.min(t - query0));
        let d_words = words_of::<K>(d);
        // Queries of the block that see a key: lo .. hi; keys that a query sees, alike.
        let lo = |key: usize| (key0 + key).saturating_sub(query0).min(queries);
        let hi = |key: usize| {
            (key0 + key)
                .saturating_add(window)
                .saturating_add(1)
                .saturating_sub(query0)
                .min(queries)
        };
        // SAFETY: the conditions of this function.
        unsafe {
            for (a, b, c) in [(w.k_rows, w.q_turned, w.weights), (w.v_rows, w.dout_turned, w.grads)]
            {
                let (b, b_words) = (b.add(block * turned), d_words);
                let p = Product {
                    a,
                    a_by_k: false,
                    rows: keys,
                    b,
                    b_words,
                    cols: BLOCK,
                    c,
                    ldc: A_ROW,
                    beta: 0.0,
                };
                product::<K>(&p, |r, n, j| {
                    (j < hi(r + n - 1) && j + K::NR > lo(r)).then_some((0, d_words))
                });
            }
            let gradients = ScoreGradients {
                scores: w.weights,
                grads: w.grads,
                rows: keys,
                key0,
                query0,
                queries,
                window,
                scale,
                lse: w.lse.add(query0),
                delta: w.delta.add(query0),
            };
            softmax_backward(self.kernels, &gradients);
            let row = (b * t + key0) * hkv + kv;
            for (a, b, c) in
                [(w.weights, w.dout_across, self.dv.get()), (w.grads, w.q_across, self.dk.get())]
            {
                let mut a_words = a.cast::<u32>().cast_const();
                if !K::RAW {
                    pack_rows::<K>(a, A_ROW, keys, BLOCK, w.packed);
                    a_words = w.packed;
                }
                let p = Product {
                    a: a_words,
                    a_by_k: false,
                    rows: keys,
                    b: b.add(block * across),
                    b_words: BLOCK / K::STEP,
                    cols: d,
                    c: c.add(row * d),
                    ldc: hkv * d,
                    beta: if first_of_keys { 0.0 } else { 1.0 },
                };
                product::<K>(&p, |r, n, _| {
                    Some((lo(r) / K::STEP, hi(r + n - 1).div_ceil(K::STEP)))
                });
            }
            let (src, ld) = (w.grads.cast_const(), A_ROW);
            let p = Piece { src, ld, k_contiguous: false, count: queries, reach: BLOCK, k: keys };
            K::pack_a(&p, w.grads_by_k);
            let first_of_queries =
                query0.saturating_sub(window) / block_rows::<K>() * block_rows::<K>();
            let p = Product {
                a: w.grads_by_k,
                a_by_k: true,
                rows: queries,
                b: w.k_across,
                b_words: words_of::<K>(block_rows::<K>()),
                cols: d,
                c: self.dq.get().add(((b * t + query0) * h + head) * d),
                ldc: h * d,
                beta: if key0 == first_of_queries { 0.0 } else { 1.0 },
            };
            product::<K>(&p, |r, n, _| {
                let start = (query0 + r).saturating_sub(window).saturating_sub(key0).min(keys);
                let end = (query0 + r + n).saturating_sub(key0).min(keys);
                Some((start / K::STEP, end.div_ceil(K::STEP)))
            });
        }
    }
}

/// A block of keys and one of queries.
struct Block {
    b: usize,
    head: usize,
    kv: usize,
    key0: usize,
    keys: usize,
    query0: usize,
}

/// `sum_i x[i] y[i]`, in lanes.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for (x, y) in x.chunks(8).zip(y.chunks(8)) {
        for (lane, (x, y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
            *lane += x * y;
        }
    }
    lanes.iter().sum()
}
