//! The loops around the tiles: which part of B is packed when, and what a task is.
//!
//! B is packed in pieces that stay in the last-level cache; a task is a block of rows of C (and,
//! when there are few rows, a range of columns), whose part of A it packs into its own L2.

use std::ops::Range;

use super::buffer::{Use, with_words};
use super::kernel::{A_ROW, KC, Kernel, Piece, Tile, Tiles, words_of};
use super::matvec::{Dots, ROWS};
use super::{Gemm, Layout, Shared, SharedConst};
use crate::cpu::pool::Pool;

/// Words of B that are packed at a time: 8 MiB, a share of a last-level cache.
const B_WORDS: usize = 2 << 20;
/// Columns of B that are packed at a time at least, so that packing A pays.
const MIN_COLUMNS: usize = 1024;
/// Floats of B of a task with few rows: half a MiB is the least L2 in use, and this is half of it.
const L2_FLOATS: usize = 64 << 10;
/// Words of A of a task: 147 KiB of L2, 96 rows of the longest block.
const A_WORDS: usize = 96 * KC;
/// Rows of a task at most.
const MAX_ROWS: usize = 256;
/// Up to this many rows B is read where it lies.
const FEW_ROWS: usize = 2 * ROWS;
/// Below this many rows, loading the panels of B into L1 would cost too much.
const MIN_ROWS: usize = 48;

/// Bytes that threads keep packed for products whose B has at most `operand` elements.
pub(crate) fn workspace_bytes(threads: usize, operand: usize) -> usize {
    4 * (operand.min(B_WORDS) + threads * MAX_ROWS * A_ROW)
}

/// How k is cut: equal blocks of at most `KC` words, the same for every caller with this k.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// Elements.
    pub k: usize,
    /// Words: all of them, and in each block but the last.
    pub words: usize,
    pub block: usize,
}

impl Blocks {
    pub fn new<K: Kernel>(k: usize) -> Blocks {
        let words = words_of::<K>(k);
        let block = words.div_ceil(words.div_ceil(KC)).next_multiple_of(16);
        Blocks { k, words, block }
    }

    pub fn count(&self) -> usize {
        self.words.div_ceil(self.block)
    }

    pub fn words_of(&self, index: usize) -> usize {
        self.block.min(self.words - index * self.block)
    }

    /// First element and number of elements of a block.
    pub fn elements_of<K: Kernel>(&self, index: usize) -> (usize, usize) {
        let start = index * self.block * K::STEP;
        (start, (self.block * K::STEP).min(self.k - start))
    }
}

/// Packed B: for each block of `range`, `panels` panels of `NR` columns.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub words: SharedConst<u32>,
    pub blocks: Blocks,
    pub range: (usize, usize),
    pub panels: usize,
}

impl Panels {
    /// Words that a piece of `blocks` blocks and `columns` columns needs.
    pub fn room<K: Kernel>(blocks: &Blocks, count: usize, columns: usize) -> usize {
        count * blocks.block * columns.next_multiple_of(K::NR)
    }

    /// Where a panel starts, from the start of the piece.
    pub fn offset<K: Kernel>(&self, block: usize, panel: usize) -> usize {
        (block - self.range.0) * self.blocks.block * self.panels * K::NR
            + panel * K::NR * self.blocks.words_of(block)
    }
}

/// `C = beta * C + op(A) op(B)` with one kernel.
pub(super) fn drive<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    b: SharedConst<f32>,
) {
    if g.layout == Layout::Nt && g.m <= FEW_ROWS {
        return few_rows::<K>(pool, g, c, a, b);
    }
    let blocks = Blocks::new::<K>(g.k);
    let columns = (B_WORDS / blocks.words).max(MIN_COLUMNS) / K::NR * K::NR;
    let columns = columns.min(g.n);
    let at_a_time = (B_WORDS / Panels::room::<K>(&blocks, 1, columns)).clamp(1, blocks.count());
    with_words(Use::Call, Panels::room::<K>(&blocks, at_a_time, columns), |words| {
        let words = words.as_mut_ptr();
        for j in (0..g.n).step_by(columns) {
            let columns = columns.min(g.n - j);
            for first in (0..blocks.count()).step_by(at_a_time) {
                let range = (first, blocks.count().min(first + at_a_time));
                let panels = columns.div_ceil(K::NR);
                let piece = Panels { words: SharedConst(words), blocks, range, panels };
                pack::<K>(pool, g, b, j..j + columns, &piece, Shared(words));
                multiply::<K>(pool, g, c, a, j..j + columns, &piece);
            }
        }
    });
}

/// Packs the columns `columns` of B, all blocks of `piece`, a panel of a block a task.
pub(super) fn pack<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    b: SharedConst<f32>,
    columns: Range<usize>,
    piece: &Panels,
    words: Shared<u32>,
) {
    pool.run(piece.panels * (piece.range.1 - piece.range.0), |task| {
        let (block, panel) = (piece.range.0 + task / piece.panels, task % piece.panels);
        let (k0, k) = piece.blocks.elements_of::<K>(block);
        let j = columns.start + panel * K::NR;
        let k_contiguous = g.layout == Layout::Nt;
        let offset = if k_contiguous { j * g.ldb + k0 } else { k0 * g.ldb + j };
        let count = K::NR.min(columns.end - j);
        // SAFETY: columns j .. j + count <= n and k0 .. k0 + k <= k of B exist (`Gemm::check_b`);
        // the panel lies inside the piece, whose size is `Panels::room`, and belongs to this task;
        // the instructions exist: the kernel was chosen by `Kernels`.
        unsafe {
            let src = b.get().add(offset);
            let p = Piece { src, ld: g.ldb, k_contiguous, count, reach: count, k };
            K::pack_b(&p, words.get().add(piece.offset::<K>(block, panel)));
        }
    });
}

/// Adds the blocks of `piece` to the columns `columns` of C.
pub(super) fn multiply<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    columns: Range<usize>,
    piece: &Panels,
) {
    let cut = Cut::new::<K>(pool.threads(), g.m, piece);
    // Tasks that share rows find them packed: with few rows, packing costs as much as multiplying.
    if cut.ranges > 1 && g.layout != Layout::Tn && g.m <= MAX_ROWS {
        let rows = cut.rows * cut.row_blocks;
        return with_words(Use::Task, (piece.range.1 - piece.range.0) * rows * A_ROW, |words| {
            let words = Shared(words.as_mut_ptr());
            pack_rows::<K>(pool, g, a, piece, (words, rows));
            multiply_tasks::<K>(pool, g, c, a, columns, (piece, &cut, Some(words)));
        });
    }
    multiply_tasks::<K>(pool, g, c, a, columns, (piece, &cut, None));
}

/// Packs all rows of A, block after block of `piece`, each with room for `rows`; they lie along k.
fn pack_rows<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    a: SharedConst<f32>,
    piece: &Panels,
    (words, rows): (Shared<u32>, usize),
) {
    /// Rows of a task.
    const ROWS: usize = 8;
    let parts = g.m.div_ceil(ROWS);
    pool.run(parts * (piece.range.1 - piece.range.0), |task| {
        let (at, i) = (task / parts, task % parts * ROWS);
        let (k0, k) = piece.blocks.elements_of::<K>(piece.range.0 + at);
        let (count, reach) = (ROWS.min(g.m - i), g.m - i);
        // SAFETY: rows i .. i + count <= m and k0 .. k0 + k <= k of A exist (`Gemm::check_a`); each
        // row has A_ROW words of its own, in the room that the caller made for every block; the
        // instructions exist: the kernel was chosen by `Kernels`.
        unsafe {
            let src = a.get().add(i * g.lda + k0);
            let p = Piece { src, ld: g.lda, k_contiguous: true, count, reach, k };
            K::pack_a(&p, words.get().add((at * rows + i) * A_ROW));
        }
    });
}

/// The tasks of a [`Cut`]; with `packed` they find A as [`pack_rows`] left it.
fn multiply_tasks<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    columns: Range<usize>,
    (piece, cut, packed): (&Panels, &Cut, Option<Shared<u32>>),
) {
    pool.run(cut.tasks(), |task| {
        // Row blocks of one range of columns follow each other: they share its panels in cache.
        let (range, i) = (task / cut.row_blocks, task % cut.row_blocks * cut.rows);
        let rows = cut.rows.min(g.m - i);
        let panels = range * cut.panels..piece.panels.min((range + 1) * cut.panels);
        let room = if packed.is_some() { 0 } else { cut.rows * A_ROW };
        with_words(Use::Task, room, |own| {
            let own = own.as_mut_ptr();
            // SAFETY: the kernel was chosen by `Kernels`; tasks do not run inside tasks' tiles.
            let _tiles = unsafe { Tiles::<K>::begin() };
            for block in piece.range.0..piece.range.1 {
                let (k0, k) = piece.blocks.elements_of::<K>(block);
                let k_contiguous = g.layout != Layout::Tn;
                let offset = if k_contiguous { i * g.lda + k0 } else { k0 * g.lda + i };
                let all = cut.rows * cut.row_blocks;
                let words = match packed {
                    Some(words) => {
                        words.get().wrapping_add(((block - piece.range.0) * all + i) * A_ROW)
                    }
                    None => own,
                };
                if packed.is_none() {
                    // SAFETY: rows i .. i + rows <= m and k0 .. k0 + k <= k of A exist
                    // (`Gemm::check_a`); `own` has a row of A_ROW words for each of `cut.rows`, a
                    // multiple of MR; the instructions exist: the kernel was chosen by `Kernels`.
                    unsafe {
                        let src = a.get().add(offset);
                        let reach = g.m - i;
                        let p = Piece { src, ld: g.lda, k_contiguous, count: rows, reach, k };
                        K::pack_a(&p, words);
                    }
                }
                for panel in panels.clone() {
                    let j = columns.start + panel * K::NR;
                    for r in (0..rows).step_by(K::MR) {
                        if g.symmetric && j + K::NR <= i + r {
                            continue; // below the diagonal
                        }
                        // SAFETY: A and B are packed, above and by the caller; the tile
                        // (i + r .., j ..) lies inside C (`Gemm::check_c`) and inside this task.
                        unsafe {
                            K::tile(&Tile {
                                words: piece.blocks.words_of(block),
                                a: words.add(r * A_ROW),
                                a_by_k: K::A_BY_K && !k_contiguous,
                                b: piece.words.get().add(piece.offset::<K>(block, panel)),
                                c: c.get().add((i + r) * g.ldc + j),
                                ldc: g.ldc,
                                rows: K::MR.min(rows - r),
                                cols: K::NR.min(columns.end - j),
                                beta: if block == 0 { g.beta } else { 1.0 },
                            });
                        }
                    }
                }
            }
        });
    });
}

/// How C is cut into tasks. Only speed depends on it.
struct Cut {
    /// Rows of a task, a multiple of `MR`.
    rows: usize,
    row_blocks: usize,
    /// Panels of a task.
    panels: usize,
    ranges: usize,
}

impl Cut {
    fn new<K: Kernel>(threads: usize, m: usize, piece: &Panels) -> Cut {
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let max_rows = (A_WORDS / piece.blocks.block).min(MAX_ROWS);
        let row_blocks = m.div_ceil(max_rows).max(wanted.min(m.div_ceil(MIN_ROWS)));
        // Where the panels suffice for all threads, none of them comes from memory twice.
        let row_blocks = if m <= max_rows && piece.panels >= wanted { 1 } else { row_blocks };
        let row_blocks = if row_blocks > 1 { row_blocks.next_multiple_of(threads) } else { 1 };
        let rows = m.div_ceil(row_blocks).next_multiple_of(K::MR);
        let row_blocks = m.div_ceil(rows);
        // A range of columns stays in the last-level cache while its row blocks run.
        let panel_words = K::NR * piece.blocks.block * (piece.range.1 - piece.range.0);
        let mut ranges = (piece.panels * panel_words).div_ceil(2 * B_WORDS);
        if row_blocks * ranges < 2 * threads {
            ranges = wanted.div_ceil(row_blocks);
        }
        let panels = piece.panels.div_ceil(ranges);
        Cut { rows, row_blocks, panels, ranges: piece.panels.div_ceil(panels) }
    }

    fn tasks(&self) -> usize {
        self.row_blocks * self.ranges
    }
}

/// At most [`FEW_ROWS`] rows of A times rows of B, which come from memory once and are not packed.
fn few_rows<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    b: SharedConst<f32>,
) {
    let blocks = Blocks::new::<K>(g.k);
    let a_ld = blocks.words.next_multiple_of(16);
    let rows = g.m.next_multiple_of(ROWS);
    with_words(Use::Call, rows * a_ld, |words| {
        for r in 0..rows {
            for w in 0..blocks.words {
                let at = |k: usize| {
                    // SAFETY: row r < m and k < g.k of A exist (`Gemm::check_a`).
                    if r < g.m && k < g.k { unsafe { *a.get().add(r * g.lda + k) } } else { 0.0 }
                };
                let word = K::word(at(w * K::STEP), at(w * K::STEP + 1));
                // SAFETY: r < rows and w < a_ld.
                unsafe { *words.as_mut_ptr().add(r * a_ld + w) = word };
            }
        }
        let packed = SharedConst(words.as_ptr());
        // Whole groups of registers, four tasks a thread, but no task under some microseconds, and
        // none whose part of B leaves L2 before the second group of rows reads it.
        let group = 4 * K::N;
        let columns = g.n.div_ceil(4 * pool.threads()).max(16384 / g.k);
        let columns = columns.min(L2_FLOATS / g.k).max(1).next_multiple_of(group);
        pool.run(g.n.div_ceil(columns), |task| {
            let j = task * columns;
            for r in (0..g.m).step_by(ROWS) {
                // SAFETY: columns j .. of B and C exist (`Gemm::check_b`, `check_c`) and belong to
                // this task; ROWS rows of A from r < m on are packed above; the instructions
                // exist: the kernel was chosen by `Kernels`.
                unsafe {
                    K::dots(&Dots {
                        a: packed.get().add(r * a_ld),
                        a_ld,
                        b: b.get().add(j * g.ldb),
                        ldb: g.ldb,
                        c: c.get().add(r * g.ldc + j),
                        ldc: g.ldc,
                        rows: ROWS.min(g.m - r),
                        columns: columns.min(g.n - j),
                        k: g.k,
                        block: blocks.block,
                        beta: g.beta,
                    });
                }
            }
        });
    });
}
