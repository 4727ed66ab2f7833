//! A few rows times one or two panels of narrow B, widened in registers on the way: what decoding does.
//!
//! In: packed rows of A, panels of [`super::narrow`]. Out: `rows` x `cols` of C. Sums run in the order
//! of the tile product, so a row of C has the same bits as if it were computed among many.

use std::hint::black_box;

use super::drive::Blocks;
use super::kernel::{A_ROW, Lanes};

/// Rows of A that [`walk`] takes at most.
pub(crate) const ROWS: usize = 4;
/// Words after which [`Lanes::line_end`] is called.
const LINE: usize = 16;
/// Bytes ahead of the walk that are asked for: some hundred nanoseconds of reading.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// What an element of narrow B is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The upper half of an f32.
    Bf16,
    /// A signed integer; each column has a scale.
    Int8,
}

impl Format {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Format::Bf16 => 2,
            Format::Int8 => 1,
        }
    }

    pub(crate) fn has_scales(self) -> bool {
        self == Format::Int8
    }
}

/// Panels that [`walk`] takes at most side by side: two streams are read faster than one, and chains of
/// sums wait less for themselves.
pub(crate) const PANELS: usize = 2;

/// `c[r, j] = beta * c[r, j] + scale[j] * sum_k a[r, k] b[j, k]` for the columns of a panel or two.
pub(crate) struct Walk {
    /// For each block ROWS rows, `A_ROW` words apart; rows past `rows` may hold anything.
    pub a: *const u32,
    pub blocks: Blocks,
    /// The first panel, block after block: NR columns for each word step.
    pub b: *const u8,
    pub format: Format,
    /// Bytes from one panel to the next.
    pub panel: usize,
    /// Bytes from a panel's start to its NR scales, perhaps not aligned; not looked at where the format
    /// has none.
    pub scales: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// 1..=ROWS
    pub rows: usize,
    /// 1..=NR, or 1..=2 NR with one row: two panels.
    pub cols: usize,
    pub beta: f32,
}

/// How a register of words is widened.
trait Narrow {
    const FORMAT: Format;
    /// Bytes of a register of words.
    fn bytes<L: Lanes>() -> usize {
        L::N * L::STEP * Self::FORMAT.bytes()
    }
    unsafe fn words<L: Lanes>(src: *const u8) -> L::Words;
    unsafe fn mul_add<L: Lanes>(sums: L::Sums, a: L::Words, src: *const u8) -> L::Sums;
}

struct Int8;
struct Bf16;

impl Narrow for Int8 {
    const FORMAT: Format = Format::Int8;
    #[inline(always)]
    unsafe fn words<L: Lanes>(src: *const u8) -> L::Words {
        // SAFETY: the conditions of the caller are those of `Lanes`.
        unsafe { L::words_of_int8(src) }
    }
    #[inline(always)]
    unsafe fn mul_add<L: Lanes>(sums: L::Sums, a: L::Words, src: *const u8) -> L::Sums {
        // SAFETY: the conditions of the caller are those of `Lanes`.
        unsafe { L::mul_add_int8(sums, a, src) }
    }
}

impl Narrow for Bf16 {
    const FORMAT: Format = Format::Bf16;
    #[inline(always)]
    unsafe fn words<L: Lanes>(src: *const u8) -> L::Words {
        // SAFETY: the conditions of the caller are those of `Lanes`.
        unsafe { L::words_of_bf16(src) }
    }
    #[inline(always)]
    unsafe fn mul_add<L: Lanes>(sums: L::Sums, a: L::Words, src: *const u8) -> L::Sums {
        // SAFETY: as `words`.
        unsafe { L::mul_add(sums, a, L::words_of_bf16(src)) }
    }
}

/// All of `w`; a panel is `NV` registers wide, two are `NV2`.
///
/// # Safety
/// As [`super::kernel::Kernel::walk`]: the pointers hold what `Walk` says.
#[inline(always)]
pub(crate) unsafe fn walk<L: Lanes, const NV: usize, const NV2: usize>(w: &Walk) {
    let one_panel = w.cols <= NV * L::N;
    // SAFETY: the conditions of this function.
    unsafe {
        match (w.format, w.rows) {
            (Format::Int8, 1) if one_panel => rows::<L, Int8, NV, NV, 1>(w),
            (Format::Int8, 1) => rows::<L, Int8, NV, NV2, 1>(w),
            (Format::Int8, 2) => rows::<L, Int8, NV, NV, 2>(w),
            (Format::Int8, _) => rows::<L, Int8, NV, NV, ROWS>(w),
            (Format::Bf16, 1) if one_panel => rows::<L, Bf16, NV, NV, 1>(w),
            (Format::Bf16, 1) => rows::<L, Bf16, NV, NV2, 1>(w),
            (Format::Bf16, 2) => rows::<L, Bf16, NV, NV, 2>(w),
            (Format::Bf16, _) => rows::<L, Bf16, NV, NV, ROWS>(w),
        }
    }
}

/// `R` rows times `G` registers of columns, `NV` of them in a panel.
#[inline(always)]
unsafe fn rows<L: Lanes, F: Narrow, const NV: usize, const G: usize, const R: usize>(w: &Walk) {
    let scaled = F::FORMAT.has_scales();
    // SAFETY: the conditions of `walk`; a register goes through buffers of 16 >= N floats.
    unsafe {
        let mut totals = [[L::zero(); G]; R];
        let mut b = w.b;
        for block in 0..w.blocks.count() {
            let a = w.a.add(block * ROWS * A_ROW);
            let words = w.blocks.words_of(block);
            let sums = block_sums::<L, F, NV, G, R>(a, &mut b, w.panel, words);
            for (r, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
                for (g, (total, sums)) in totals.iter_mut().zip(sums).enumerate() {
                    *total = if block > 0 {
                        L::scale_add(1.0, *total, sums)
                    } else if scaled || w.beta == 0.0 || r >= w.rows {
                        sums
                    } else {
                        L::scale_add(w.beta, load::<L>(w, r, g), sums)
                    };
                }
            }
        }
        for (r, totals) in totals.iter().enumerate().take(w.rows) {
            for (g, &totals) in totals.iter().enumerate() {
                let mut buffer = [0.0f32; 16];
                L::store(buffer.as_mut_ptr(), totals);
                let (first, count) = columns::<L>(w, g);
                let c = w.c.wrapping_add(r * w.ldc + first);
                if !scaled {
                    std::ptr::copy_nonoverlapping(buffer.as_ptr(), c, count);
                    continue;
                }
                let scales = w.b.add(g / NV * w.panel + w.scales);
                for (j, &sum) in buffer.iter().enumerate().take(count) {
                    finish(c.add(j), sum, scale_at(scales, g % NV * L::N + j), w.beta);
                }
            }
        }
    }
}

/// First column of register `v`, and how many of its columns there are.
#[inline(always)]
fn columns<L: Lanes>(w: &Walk, v: usize) -> (usize, usize) {
    (v * L::N, w.cols.saturating_sub(v * L::N).min(L::N))
}

/// Register `v` of row `r` of C.
#[inline(always)]
unsafe fn load<L: Lanes>(w: &Walk, r: usize, v: usize) -> L::Sums {
    let (first, count) = columns::<L>(w, v);
    let mut buffer = [0.0f32; 16];
    // SAFETY: row r < rows of C has `cols` columns, of which `count` from `first` on are read.
    unsafe {
        let c = w.c.wrapping_add(r * w.ldc + first);
        std::ptr::copy_nonoverlapping(c, buffer.as_mut_ptr(), count);
        L::load(buffer.as_ptr())
    }
}

/// Sums over one block; moves `b` to its end in the first panel.
#[inline(always)]
unsafe fn block_sums<L: Lanes, F: Narrow, const NV: usize, const G: usize, const R: usize>(
    a: *const u32,
    b: &mut *const u8,
    panel: usize,
    words: usize,
) -> [[L::Sums; G]; R] {
    // SAFETY: `words` words in each of R <= ROWS rows of A, as many steps of NV registers at b, and at
    // `b + panel` if G > NV.
    unsafe {
        let mut sums = [[L::zero(); G]; R];
        for line in (0..words).step_by(LINE) {
            for p in line..words.min(line + LINE) {
                for first in (0..G).step_by(NV) {
                    prefetch(b.wrapping_add(first / NV * panel), NV * F::bytes::<L>());
                }
                for (r, row) in sums.iter_mut().enumerate() {
                    let x = L::splat(a.add(r * A_ROW + p));
                    for (g, sums) in row.iter_mut().enumerate() {
                        let src = b.add(g / NV * panel + g % NV * F::bytes::<L>());
                        *sums = F::mul_add::<L>(*sums, x, src);
                    }
                }
                *b = b.add(NV * F::bytes::<L>());
            }
            for row in &mut sums {
                for sums in row {
                    *sums = L::line_end(*sums);
                }
            }
        }
        // Sums that are indexed by a variable live in memory, and the compiler would store them in
        // every step: the caller sees a copy.
        black_box(sums)
    }
}

/// Asks for the bytes that the walk reaches a little later.
#[inline(always)]
unsafe fn prefetch(b: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing, any address is allowed; SSE is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(AHEAD + line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (b, bytes);
}

/// Scale `j` of those at `scales`.
#[inline(always)]
pub(crate) unsafe fn scale_at(scales: *const u8, j: usize) -> f32 {
    // SAFETY: the caller has more than j scales, perhaps not aligned.
    unsafe { scales.cast::<f32>().add(j).read_unaligned() }
}

/// `c = beta * c + scale * sum`, each operation rounded by itself; at beta 0 `c` is not read.
#[inline(always)]
pub(crate) unsafe fn finish(c: *mut f32, sum: f32, scale: f32, beta: f32) {
    let x = scale * sum;
    // SAFETY: the caller owns `c`.
    unsafe { *c = if beta == 0.0 { x } else { beta * *c + x } };
}

/// Writes `words` steps of `NV` registers of words from narrow ones.
///
/// # Safety
/// As [`super::kernel::Kernel::widen`].
#[inline(always)]
pub(crate) unsafe fn widen<L: Lanes, const NV: usize>(
    src: *const u8,
    words: usize,
    format: Format,
    dst: *mut u32,
) {
    // SAFETY: the conditions of this function.
    unsafe {
        match format {
            Format::Int8 => widen_as::<L, Int8>(src, words * NV, dst),
            Format::Bf16 => widen_as::<L, Bf16>(src, words * NV, dst),
        }
    }
}

#[inline(always)]
unsafe fn widen_as<L: Lanes, F: Narrow>(src: *const u8, registers: usize, dst: *mut u32) {
    for i in 0..registers {
        // SAFETY: as many registers at `src`, and N words for each at `dst`.
        unsafe {
            let words = F::words::<L>(src.add(i * F::bytes::<L>()));
            dst.add(i * L::N).cast::<L::Words>().write_unaligned(words);
        }
    }
}
