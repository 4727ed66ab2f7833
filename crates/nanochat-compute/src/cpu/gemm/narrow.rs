//! B in fewer bits than the kernel multiplies: bf16 where it multiplies f32, int8 everywhere.
//!
//! In: an (n, k) weight, once; then rows of A. Out: `C = beta C + scale[n] sum_k A[m,k] q[n,k]`. B lies
//! panel after panel, each with its scales at its end, so that a few rows walk over it from beginning to
//! end, widening it in registers (`walk`); for many rows a panel is widened to packed words, and
//! the tiles multiply those. Both ways have the same sums in the same order.

use std::ops::Range;

use super::buffer::{Shelf, Use, Words, with_words};
use super::drive::Blocks;
use super::kernel::{A_ROW, Kernel, Piece, Tile, Tiles};
use super::walk::{Format, PANELS, ROWS, Walk, finish, scale_at};
use super::{Gemm, Layout, Multiply, Shared, SharedConst, with_kernel};
use crate::cpu::chunks::each;
use crate::cpu::math::simd_fn;
use crate::cpu::pool::Pool;
use crate::cpu::simd::Kernels;
use crate::ops::packed::quantize_row;

/// Up to this many rows B is widened in registers, once for every [`ROWS`] of them.
const FEW_ROWS: usize = ROWS;
/// Bytes of B that a task walks over at least: some microseconds.
const TASK_BYTES: usize = 32 << 10;
/// Words of A of a task with many rows: 576 KiB of L2.
const A_WORDS: usize = 144 << 10;
/// Rows of a task at most.
const MAX_ROWS: usize = 256;
/// Below this many rows, widening the panels would cost as much as multiplying them.
const MIN_ROWS: usize = 64;

/// An (n, k) operand in few bits, in the order in which one kernel reads it.
pub struct NarrowB {
    words: Words,
    format: Format,
    kernels: Kernels,
    multiply: Multiply,
    n: usize,
    k: usize,
}

impl NarrowB {
    /// Packs `b`, (n, k) without gaps, in memory of a shelf.
    pub(crate) fn on(
        shelf: &mut Shelf,
        pool: &Pool,
        (kernels, multiply): (&Kernels, Multiply),
        format: Format,
        b: &[f32],
        (n, k): (usize, usize),
    ) -> NarrowB {
        assert!(n > 0 && k > 0 && b.len() >= n * k, "narrow B is {n} x {k} in {}", b.len());
        let (kernels, b) = (*kernels, &b[..n * k]);
        let room = with_kernel!(kernels, multiply, bytes(n, k, format));
        let mut words = shelf.take(room.div_ceil(4));
        let all = &mut words.bytes_mut()[..room];
        with_kernel!(kernels, multiply, pack(pool, &kernels, all, b, k, format));
        NarrowB { words, format, kernels, multiply, n, k }
    }

    /// True when it is in these kernels' order.
    pub fn is_for(&self, kernels: &Kernels, multiply: Multiply) -> bool {
        self.kernels.simd() == kernels.simd() && self.multiply == multiply
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.words.len() * 4
    }
}

/// `C = beta C + A B^T` as this module says; `g.layout` is [`Layout::Nt`], `g.ldb` is not used.
///
/// Panics as [`super::gemm`], and if `g.n`, `g.k` are not those of `b`.
pub fn gemm_narrow(pool: &Pool, g: Gemm, c: &mut [f32], a: &[f32], b: &NarrowB) {
    assert!(g.n == b.n && g.k == b.k, "gemm: B is packed as {} x {}", b.n, b.k);
    assert!(g.layout == Layout::Nt && !g.symmetric, "gemm: narrow weights are for linear layers");
    g.check_c(c);
    g.check_a(a);
    let (c, a) = (Shared(c.as_mut_ptr()), SharedConst(a.as_ptr()));
    let start = SharedConst(b.words.as_ptr().cast());
    with_kernel!(b.kernels, b.multiply, multiply(pool, &g, c, a, start, b.format));
}

/// How the bytes of B lie.
#[derive(Clone, Copy)]
struct Shape {
    format: Format,
    blocks: Blocks,
    /// Bytes of a word step of a panel, of a panel without and with its scales.
    step: usize,
    scales: usize,
    panel: usize,
}

impl Shape {
    fn new<K: Kernel>(k: usize, format: Format) -> Shape {
        let blocks = Blocks::new::<K>(k);
        let step = K::NR * K::STEP * format.bytes();
        let scales = step * blocks.words;
        let panel = scales + if format.has_scales() { K::NR * 4 } else { 0 };
        Shape { format, blocks, step, scales, panel }
    }
}

fn bytes<K: Kernel>(n: usize, k: usize, format: Format) -> usize {
    Shape::new::<K>(k, format).panel * n.div_ceil(K::NR)
}

simd_fn! {
    fn quantize(q: &mut [i8], w: &[f32]) -> f32 {
        quantize_row(q, w)
    }
}

/// Writes every panel, a task each.
fn pack<K: Kernel>(
    pool: &Pool,
    kernels: &Kernels,
    all: &mut [u8],
    b: &[f32],
    k: usize,
    format: Format,
) {
    let shape = Shape::new::<K>(k, format);
    each(pool, [(all, shape.panel)], |index, [panel]| {
        let rows = b[index * K::NR * k..].chunks_exact(k).take(K::NR);
        let mut q = vec![0; if format.has_scales() { k } else { 0 }];
        for (j, row) in rows.enumerate() {
            if format == Format::Int8 {
                let scale = quantize(kernels, &mut q, row);
                panel[shape.scales + 4 * j..][..4].copy_from_slice(&scale.to_ne_bytes());
                // For each word step and register: all the values at k, then those at k + 1.
                let (register, lane) = (j / K::N * K::N, j % K::N);
                for (i, &q) in q.iter().enumerate() {
                    let at = (i / K::STEP * K::NR + register) * K::STEP + i % K::STEP * K::N;
                    panel[at + lane] = q as u8;
                }
                continue;
            }
            for (i, &w) in row.iter().enumerate() {
                let at = (i / K::STEP * K::NR + j) * K::STEP + i % K::STEP;
                panel[2 * at..][..2].copy_from_slice(&super::portable::to_bf16(w).to_ne_bytes());
            }
        }
    });
}

fn multiply<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    b: SharedConst<u8>,
    format: Format,
) {
    let shape = Shape::new::<K>(g.k, format);
    if g.m <= FEW_ROWS {
        few::<K>(pool, g, c, a, b, &shape)
    } else {
        many::<K>(pool, g, c, a, b, &shape)
    }
}

/// Packs rows `rows` of A, all blocks, `stride` words from one block to the next.
///
/// # Safety
/// The rows lie in A; `words` has room for `stride` words a block, at least A_ROW a row of which there
/// are a multiple of MR; the instructions exist.
unsafe fn pack_a<K: Kernel>(
    g: &Gemm,
    a: SharedConst<f32>,
    rows: Range<usize>,
    blocks: &Blocks,
    (words, stride): (*mut u32, usize),
) {
    for block in 0..blocks.count() {
        let (k0, k) = blocks.elements_of::<K>(block);
        let (count, reach) = (rows.len(), g.m - rows.start);
        // SAFETY: the conditions of this function; k0 .. k0 + k <= k of A exist.
        unsafe {
            let src = a.get().add(rows.start * g.lda + k0);
            let p = Piece { src, ld: g.lda, k_contiguous: true, count, reach, k };
            K::pack_a(&p, words.add(block * stride));
        }
    }
}

/// At most [`FEW_ROWS`] rows: a range of panels a task, from the first byte to the last.
fn few<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    b: SharedConst<u8>,
    shape: &Shape,
) {
    let panels = g.n.div_ceil(K::NR);
    let a_task = panels.div_ceil(4 * pool.threads()).max(TASK_BYTES / shape.panel);
    let a_task = a_task.next_multiple_of(PANELS);
    let stride = ROWS * A_ROW;
    pool.run(panels.div_ceil(a_task), |task| {
        with_words(Use::Task, shape.blocks.count() * stride, |words| {
            let words = words.as_mut_ptr();
            // SAFETY: rows 0 .. m <= ROWS of A exist (`Gemm::check_a`), and there is room for ROWS
            // rows a block: kernels write `count` rows of those that lie along k.
            unsafe { pack_a::<K>(g, a, 0..g.m, &shape.blocks, (words, stride)) };
            let side_by_side = if g.m == 1 { PANELS } else { 1 };
            let end = panels.min((task + 1) * a_task);
            for panel in (task * a_task..end).step_by(side_by_side) {
                let j = panel * K::NR;
                let width = side_by_side.min(end - panel) * K::NR;
                // SAFETY: A is packed above; the panels lie inside B (`bytes`), the columns from j on
                // inside C (`Gemm::check_c`), and no other task has them; the instructions exist: the
                // kernel was chosen by `Kernels`.
                unsafe {
                    K::walk(&Walk {
                        a: words,
                        blocks: shape.blocks,
                        b: b.get().add(panel * shape.panel),
                        format: shape.format,
                        panel: shape.panel,
                        scales: shape.scales,
                        c: c.get().add(j),
                        ldc: g.ldc,
                        rows: g.m,
                        cols: width.min(g.n - j),
                        beta: g.beta,
                    });
                }
            }
        });
    });
}

/// Many rows: panels are widened to words, once for all rows of a task.
fn many<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    b: SharedConst<u8>,
    shape: &Shape,
) {
    let (blocks, panels) = (&shape.blocks, g.n.div_ceil(K::NR));
    // As many tasks as keep every thread busy: by rows while a panel serves enough of them.
    let wanted = if pool.threads() == 1 { 1 } else { 4 * pool.threads() };
    let most = (A_WORDS / (blocks.count() * A_ROW)).clamp(K::MR, MAX_ROWS) / K::MR * K::MR;
    let row_blocks = g.m.div_ceil(most).max(wanted.min(g.m / MIN_ROWS)).max(1);
    let rows = g.m.div_ceil(row_blocks).next_multiple_of(K::MR);
    let row_blocks = g.m.div_ceil(rows);
    let a_task = panels.div_ceil(wanted.div_ceil(row_blocks));
    let stride = rows * A_ROW;
    // A, then one block of a panel in words, then its sums.
    let panel_at = blocks.count() * stride;
    let sums_at = panel_at + (blocks.block * K::NR).next_multiple_of(16);
    let room = sums_at + rows * K::NR;
    pool.run(row_blocks * panels.div_ceil(a_task), |task| {
        let (range, i) = (task / row_blocks, task % row_blocks * rows);
        let count = rows.min(g.m - i);
        with_words(Use::Task, room, |words| {
            let words = words.as_mut_ptr();
            // SAFETY: rows i .. i + count <= m of A exist (`Gemm::check_a`); there is room for `rows`,
            // a multiple of MR, rows a block; the kernel was chosen by `Kernels`, and tasks do not run
            // inside tasks' tiles.
            let _tiles = unsafe {
                pack_a::<K>(g, a, i..i + count, blocks, (words, stride));
                Tiles::<K>::begin()
            };
            for panel in range * a_task..panels.min((range + 1) * a_task) {
                let j = panel * K::NR;
                // SAFETY: the panel lies inside B (`bytes`), rows i .. i + count and the columns from j
                // on inside C (`Gemm::check_c`), and no other task has them; `room` holds A, the words
                // and the sums beside each other.
                unsafe {
                    let part = Part {
                        a: (words, stride),
                        b: b.get().add(panel * shape.panel),
                        words: words.add(panel_at),
                        sums: words.add(sums_at).cast(),
                        c: c.get().add(i * g.ldc + j),
                        rows: count,
                        cols: K::NR.min(g.n - j),
                    };
                    part.multiply::<K>(g, shape);
                }
            }
        });
    });
}

/// One panel and the rows of a task.
struct Part {
    a: (*const u32, usize),
    b: *const u8,
    /// Room for a block of the panel in words.
    words: *mut u32,
    /// Room for (rows, NR) sums.
    sums: *mut f32,
    c: *mut f32,
    rows: usize,
    cols: usize,
}

impl Part {
    /// # Safety
    /// The pointers hold what their docs say, for the kernel `K`; its instructions exist, and its tiles
    /// have begun.
    unsafe fn multiply<K: Kernel>(&self, g: &Gemm, shape: &Shape) {
        let scaled = shape.format.has_scales();
        // Sums that are scaled at the end are held apart from the old C.
        let (c, ldc, beta) = if scaled { (self.sums, K::NR, 0.0) } else { (self.c, g.ldc, g.beta) };
        for block in 0..shape.blocks.count() {
            let count = shape.blocks.words_of(block);
            // SAFETY: the conditions of this function: a block of the panel and of A begins there, and
            // the tile (r .., all columns) lies inside C or the sums.
            unsafe {
                let src = self.b.add(block * shape.blocks.block * shape.step);
                K::widen(src, count, shape.format, self.words);
                for r in (0..self.rows).step_by(K::MR) {
                    K::tile(&Tile {
                        words: count,
                        a: self.a.0.add(block * self.a.1 + r * A_ROW),
                        a_by_k: false,
                        b: self.words,
                        c: c.add(r * ldc),
                        ldc,
                        rows: K::MR.min(self.rows - r),
                        cols: self.cols,
                        beta: if block == 0 { beta } else { 1.0 },
                    });
                }
            }
        }
        for r in 0..if scaled { self.rows } else { 0 } {
            // SAFETY: `cols` floats in row r of the sums and of C; NR >= cols scales.
            unsafe {
                let scales = self.b.add(shape.scales);
                let c = self.c.add(r * g.ldc);
                for j in 0..self.cols {
                    finish(c.add(j), *self.sums.add(r * K::NR + j), scale_at(scales, j), g.beta);
                }
            }
        }
    }
}
