//! What a matrix kernel is made of: registers of sums ([`Lanes`]), and on top of them the tile
//! product and the packing, written once for all instruction sets.
//!
//! A packed word is 4 bytes: one f32, or a pair of bf16 with neighbouring k (the lower half is
//! the smaller k). The A side of a tile is read word by word, the B side by whole registers.

use std::marker::PhantomData;

/// Words along k that one block holds at most: 16 columns of f32 (AVX2) take 24 KiB of L1.
pub(crate) const KC: usize = 384;
/// Distance between two rows of a packed A panel: `KC`, and a cache line against set conflicts.
pub(crate) const A_ROW: usize = KC + 16;

/// A register of sums and the instruction that adds products to them.
///
/// # Safety
/// All functions need the instructions of the implementing type, and pointers to the number of
/// elements that their docs name. `N` is at most 16.
pub(crate) trait Lanes: Copy + 'static {
    /// Sums in a register, words in a register.
    const N: usize;
    /// Steps of k in a packed word: 1 for f32, 2 for pairs of bf16.
    const STEP: usize;
    /// A packed word is the float itself: rows `A_ROW` apart are a packed A as they are.
    const RAW: bool;
    /// `N` sums.
    type Sums: Copy;
    /// `N` packed words.
    type Words: Copy;

    /// All zero.
    unsafe fn zero() -> Self::Sums;
    /// `N` floats.
    unsafe fn load(src: *const f32) -> Self::Sums;
    /// `N` floats.
    unsafe fn store(dst: *mut f32, sums: Self::Sums);
    /// `factor * x + sums`, rounded as `mul_add` rounds.
    unsafe fn scale_add(factor: f32, x: Self::Sums, sums: Self::Sums) -> Self::Sums;
    /// `N` words.
    unsafe fn words(src: *const u32) -> Self::Words;
    /// One word, in every lane.
    unsafe fn splat(src: *const u32) -> Self::Words;
    /// `sums + a * b`, in the order of k within a word.
    unsafe fn mul_add(sums: Self::Sums, a: Self::Words, b: Self::Words) -> Self::Sums;

    /// `N` words of `N * STEP` signed bytes: those at k, then (if `STEP` is 2) those at k + 1.
    unsafe fn words_of_int8(src: *const u8) -> Self::Words;
    /// [`Lanes::mul_add`] with the words of [`Lanes::words_of_int8`]: the same bits.
    #[inline(always)]
    unsafe fn mul_add_int8(sums: Self::Sums, a: Self::Words, src: *const u8) -> Self::Sums {
        // SAFETY: the conditions of this function.
        unsafe { Self::mul_add(sums, a, Self::words_of_int8(src)) }
    }
    /// `N` words of `N * STEP` bf16 in the order of words.
    unsafe fn words_of_bf16(src: *const u8) -> Self::Words;

    /// Called after every 16 words of a block, and at its end: sums that a register of its own holds
    /// meanwhile join the others.
    #[inline(always)]
    unsafe fn line_end(sums: Self::Sums) -> Self::Sums {
        sums
    }

    /// The packed word of the values at k and k + 1; the second counts only if `STEP` is 2.
    fn word(x0: f32, x1: f32) -> u32;
    /// Packs `N` words from `N * STEP` floats that follow each other along k.
    unsafe fn pack_along(src: *const f32, dst: *mut u32);
    /// Packs `N` words side by side from `N` floats at `src` (k) and, if `STEP` is 2, at
    /// `src + ld` (k + 1).
    unsafe fn pack_across(src: *const f32, ld: usize, dst: *mut u32);
    /// Packs `N` rows of `N * STEP` floats, `ld` apart, to `N` rows of `N` words, `dst_ld` apart:
    /// word i of row r goes to row i, column r.
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize);
}

/// One product of packed panels: `c = beta * c + a b`.
pub(crate) struct Tile {
    /// Steps along k, in words: a multiple of `WORDS`.
    pub words: usize,
    /// Panel of A: rows `A_ROW` apart, or (`a_by_k`) `MR` values for each word step.
    pub a: *const u32,
    pub a_by_k: bool,
    /// Panel of B: `NR` words for each word step, aligned to 64 bytes.
    pub b: *const u32,
    /// At least `rows` rows of `cols` floats, `ldc` apart.
    pub c: *mut f32,
    pub ldc: usize,
    /// 1..=MR
    pub rows: usize,
    /// 1..=NR
    pub cols: usize,
    pub beta: f32,
}

/// A piece of an operand in memory, to be packed.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// First element: row (or column, for B) 0 of the piece, k 0 of the block.
    pub src: *const f32,
    pub ld: usize,
    /// The elements of one row (A) or column (B) follow each other in memory.
    pub k_contiguous: bool,
    /// Rows of A or columns of B.
    pub count: usize,
    /// Rows or columns that exist in memory from `src` on: `count`, or more.
    pub reach: usize,
    /// Elements along k: at most `KC * STEP`.
    pub k: usize,
}

/// Words of a packed panel for `k` elements.
pub(crate) fn words_of<K: Kernel>(k: usize) -> usize {
    k.div_ceil(K::STEP).next_multiple_of(K::WORDS)
}

/// A thread that multiplies tiles of `K`, until it is dropped.
pub(crate) struct Tiles<K: Kernel>(PhantomData<(K, *const ())>);

impl<K: Kernel> Tiles<K> {
    /// # Safety
    /// The instructions of `K` exist, and this thread holds no other `Tiles`.
    pub(crate) unsafe fn begin() -> Tiles<K> {
        // SAFETY: the conditions of this function.
        unsafe { K::begin() };
        Tiles(PhantomData)
    }
}

impl<K: Kernel> Drop for Tiles<K> {
    fn drop(&mut self) {
        // SAFETY: `begin` proves the instructions.
        unsafe { K::end() }
    }
}

/// The kernels of one instruction set, compiled with its instructions switched on.
///
/// # Safety
/// The functions need the instructions of the implementing type; pointers as in [`Tile`] and
/// [`Piece`].
pub(crate) trait Kernel: Lanes {
    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Words along k that a tile takes at a time: packed panels are zero up to a multiple of it.
    const WORDS: usize = 1;
    /// `pack_a` of rows that do not lie along k makes panels of `MR` values for each word step,
    /// not rows of words.
    const A_BY_K: bool = true;

    /// Called by a thread before its first tile of a task.
    #[inline]
    unsafe fn begin() {}
    /// Called after its last one.
    #[inline]
    unsafe fn end() {}

    /// One tile of C.
    unsafe fn tile(t: &Tile);
    /// Packs rows of A to panels of `MR` rows, `MR * A_ROW` words apart.
    unsafe fn pack_a(p: &Piece, dst: *mut u32);
    /// Packs `count <= NR` columns of B to one panel; missing columns and an odd last k are zero.
    unsafe fn pack_b(p: &Piece, dst: *mut u32);
    /// `rows <= 4` rows of A times `N` rows of B, read where they lie; see [`super::matvec`].
    unsafe fn dots(d: &super::matvec::Dots);
    /// `rows <= 4` rows of A times a panel of narrow B, one row times two; see [`super::walk`].
    unsafe fn walk(w: &super::walk::Walk);
    /// Writes `words` word steps of a panel from narrow B: `NR` words for each.
    unsafe fn widen(src: *const u8, words: usize, format: super::walk::Format, dst: *mut u32);
}

/// Implements [`Kernel`] for a type with [`Lanes`]: tiles of `$mr` rows and `$nv` registers.
macro_rules! kernel {
    ($name:ident, $mr:literal, $nv:literal $(, $features:literal)?) => {
        impl $crate::cpu::gemm::kernel::Kernel for $name {
            const MR: usize = $mr;
            const NR: usize = $nv * <$name as $crate::cpu::gemm::kernel::Lanes>::N;

            $(#[target_feature(enable = $features)])?
            unsafe fn tile(t: &$crate::cpu::gemm::kernel::Tile) {
                // SAFETY: the conditions of this function.
                unsafe { $crate::cpu::gemm::tile::tile::<$name, $mr, $nv>(t) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn pack_a(p: &$crate::cpu::gemm::kernel::Piece, dst: *mut u32) {
                // SAFETY: the conditions of this function.
                unsafe { $crate::cpu::gemm::pack::pack_a::<$name, $mr>(p, dst) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn pack_b(p: &$crate::cpu::gemm::kernel::Piece, dst: *mut u32) {
                // SAFETY: the conditions of this function.
                unsafe { $crate::cpu::gemm::pack::pack_b::<$name, $nv>(p, dst) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots(d: &$crate::cpu::gemm::matvec::Dots) {
                // SAFETY: the conditions of this function.
                unsafe { $crate::cpu::gemm::matvec::dots::<$name>(d) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn walk(w: &$crate::cpu::gemm::walk::Walk) {
                // SAFETY: the conditions of this function.
                unsafe { $crate::cpu::gemm::walk::walk::<$name, $nv, { 2 * $nv }>(w) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn widen(
                src: *const u8,
                words: usize,
                format: $crate::cpu::gemm::walk::Format,
                dst: *mut u32,
            ) {
                // SAFETY: the conditions of this function.
                unsafe { $crate::cpu::gemm::walk::widen::<$name, $nv>(src, words, format, dst) }
            }
        }
    };
}
pub(crate) use kernel;
