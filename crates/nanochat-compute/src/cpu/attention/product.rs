//! Products of small blocks with the tiles of [`gemm`](crate::cpu::gemm), some tiles left out and
//! some sums cut short: what the mask leaves of a product.

use crate::cpu::gemm::kernel::{A_ROW, Kernel, Piece, Tile, words_of};

/// Packed operands of `c = beta * c + a b`.
pub(super) struct Product {
    /// `rows` packed rows, their words side by side, or (`a_by_k`) panels by k if `K` makes them.
    pub a: *const u32,
    pub a_by_k: bool,
    pub rows: usize,
    /// Panels of `b_words` word steps.
    pub b: *const u32,
    pub b_words: usize,
    pub cols: usize,
    pub c: *mut f32,
    pub ldc: usize,
    pub beta: f32,
}

/// Multiplies tile by tile. `words(r, rows, j)` names the word steps that count for the tile at row
/// r and column j; None leaves the tile of C as it is.
///
/// # Safety
/// The instructions of `K` exist; the operands are packed for every step that `words` names; C has
/// `rows` rows of `cols` floats, `ldc` apart.
pub(super) unsafe fn product<K: Kernel>(
    p: &Product,
    words: impl Fn(usize, usize, usize) -> Option<(usize, usize)>,
) {
    for j in (0..p.cols).step_by(K::NR) {
        for r in (0..p.rows).step_by(K::MR) {
            let rows = K::MR.min(p.rows - r);
            let Some((start, end)) = words(r, rows, j) else { continue };
            // Words outside of what counts are zero on one side.
            let start = start / K::WORDS * K::WORDS;
            let words = end.saturating_sub(start).next_multiple_of(K::WORDS);
            let a_by_k = p.a_by_k && K::A_BY_K;
            // SAFETY: the conditions of this function.
            unsafe {
                let a_start = if a_by_k { start * K::MR } else { start };
                K::tile(&Tile {
                    words,
                    a: p.a.add(r * A_ROW + a_start),
                    a_by_k,
                    b: p.b.add(j * p.b_words + start * K::NR),
                    c: p.c.add(r * p.ldc + j),
                    ldc: p.ldc,
                    rows,
                    cols: K::NR.min(p.cols - j),
                    beta: p.beta,
                });
            }
        }
    }
}

/// Rows of a block that tiles fill well: the least multiple of `MR` from 64 on.
pub(super) const fn block_rows<K: Kernel>() -> usize {
    64usize.next_multiple_of(K::MR)
}

/// Words of a packed block of `cols` columns and `k` elements.
pub(super) fn packed_len<K: Kernel>(cols: usize, k: usize) -> usize {
    cols.next_multiple_of(K::NR) * words_of::<K>(k)
}

/// Packs a B of `cols` columns whose panels are `k_room` elements long, of which `k` exist.
///
/// # Safety
/// The instructions of `K` exist; `src` holds the columns, `dst` [`packed_len`] words for `k_room`.
pub(super) unsafe fn pack_columns<K: Kernel>(
    src: *const f32,
    ld: usize,
    k_contiguous: bool,
    (cols, k, k_room): (usize, usize, usize),
    dst: *mut u32,
) {
    for j in (0..cols).step_by(K::NR) {
        let count = K::NR.min(cols - j);
        // SAFETY: column j < cols exists; its panel has NR * words_of(k_room) words.
        unsafe {
            let src = src.add(if k_contiguous { j * ld } else { j });
            let p = Piece { src, ld, k_contiguous, count, reach: count, k };
            K::pack_b(&p, dst.add(j * words_of::<K>(k_room)));
        }
    }
}

/// Packs `count` rows of `k` elements that follow each other.
///
/// # Safety
/// The instructions of `K` exist; `src` holds the rows, `dst` `A_ROW` words for each.
pub(super) unsafe fn pack_rows<K: Kernel>(
    src: *const f32,
    ld: usize,
    count: usize,
    k: usize,
    dst: *mut u32,
) {
    // SAFETY: the conditions of this function.
    unsafe { K::pack_a(&Piece { src, ld, k_contiguous: true, count, reach: count, k }, dst) }
}

/// Hands out parts of a workspace, each on a cache line.
pub(super) struct Parts {
    next: *mut u32,
    left: usize,
}

impl Parts {
    /// `words` is aligned and `len` long.
    pub fn new(words: *mut u32, len: usize) -> Parts {
        Parts { next: words, left: len }
    }

    /// The next `len` words.
    pub fn take(&mut self, len: usize) -> *mut u32 {
        let len = len.next_multiple_of(16);
        assert!(len <= self.left, "the workspace was measured for its parts");
        let part = self.next;
        self.next = part.wrapping_add(len);
        self.left -= len;
        part
    }
}
