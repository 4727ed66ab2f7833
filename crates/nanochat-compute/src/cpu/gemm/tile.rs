//! The tile product: a few rows of A times one panel of B, all sums in registers.
//!
//! In: packed panels. Out: a tile of C. Each sum of a block runs over k in ascending order, with
//! one rounding a product, and is then added to C: whatever rows or columns share the tile.

use std::hint::black_box;

use super::kernel::{A_ROW, Lanes, Tile};

/// `c = beta * c + a b` for `t.rows` rows; picks the smallest unrolled kernel that holds them.
///
/// # Safety
/// As [`super::kernel::Kernel::tile`].
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, const MR: usize, const NV: usize>(t: &Tile) {
    // SAFETY: the conditions of this function; the packed panel of A has MR rows of storage, so
    // reading up to MR of them is fine whatever `t.rows` is.
    unsafe {
        match (t.rows, t.a_by_k) {
            (1, false) => rows::<L, 1, NV, A_ROW, 1>(t),
            (2, false) => rows::<L, 2, NV, A_ROW, 1>(t),
            (3..=4, false) => rows::<L, 4, NV, A_ROW, 1>(t),
            (5..=8, false) if MR > 8 => rows::<L, 8, NV, A_ROW, 1>(t),
            (_, false) => rows::<L, MR, NV, A_ROW, 1>(t),
            (1..=4, true) => rows::<L, 4, NV, 1, MR>(t),
            (_, true) => rows::<L, MR, NV, 1, MR>(t),
        }
    }
}

/// The product for `R` rows; row r of A at word step p is `a[r * RS + p * CS]`.
#[inline(always)]
unsafe fn rows<L: Lanes, const R: usize, const NV: usize, const RS: usize, const CS: usize>(
    t: &Tile,
) {
    // SAFETY: `a` holds R rows of `words` words at the strides (RS, CS), `b` `words` steps of
    // NV * N words, C what `Tile` says; all by the conditions of `tile`.
    unsafe {
        let mut sums = [[L::zero(); NV]; R];
        prefetch::<L, NV>(t);
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.words {
            let mut columns = [L::words(b); NV];
            for (v, column) in columns.iter_mut().enumerate().skip(1) {
                *column = L::words(b.add(v * L::N));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let x = L::splat(a.add(r * RS));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = L::mul_add(*sum, x, column);
                }
            }
            a = a.add(CS);
            b = b.add(NV * L::N);
        }
        // Sums that are indexed by a variable live in memory, and the compiler would store them in
        // every step: the loops below see a copy.
        let sums = black_box(sums);
        let whole = t.cols == NV * L::N;
        for (r, row) in sums.iter().enumerate().take(t.rows) {
            let c = t.c.add(r * t.ldc);
            if whole {
                add_row::<L, NV>(c, row, t.beta);
            } else {
                add_part_of_row::<L, NV>(c, row, t);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_row<L: Lanes, const NV: usize>(c: *mut f32, row: &[L::Sums; NV], beta: f32) {
    for (v, &sums) in row.iter().enumerate() {
        // SAFETY: `c` has NV * N floats (a full tile), by the condition of the caller.
        unsafe {
            let c = c.add(v * L::N);
            let sums = if beta == 0.0 { sums } else { L::scale_add(beta, L::load(c), sums) };
            L::store(c, sums);
        }
    }
}

#[inline(always)]
unsafe fn add_part_of_row<L: Lanes, const NV: usize>(c: *mut f32, row: &[L::Sums; NV], t: &Tile) {
    // SAFETY: registers go through buffers of 16 >= N floats; `c` is touched for `cols` floats,
    // which it has by the condition of the caller.
    unsafe {
        for (v, &sums) in row.iter().enumerate() {
            let count = t.cols.saturating_sub(v * L::N).min(L::N);
            let c = c.wrapping_add(v * L::N);
            let mut buffer = [0.0f32; 16];
            if t.beta != 0.0 {
                std::ptr::copy_nonoverlapping(c, buffer.as_mut_ptr(), count);
            }
            add_row::<L, 1>(buffer.as_mut_ptr(), &[sums], t.beta);
            std::ptr::copy_nonoverlapping(buffer.as_ptr(), c, count);
        }
    }
}

/// Asks for the lines of C that the tile will add to, so that they come while it multiplies.
#[inline(always)]
unsafe fn prefetch<L: Lanes, const NV: usize>(t: &Tile) {
    #[cfg(target_arch = "x86_64")]
    for r in 0..t.rows {
        for line in (0..NV * L::N).step_by(16) {
            let c = t.c.wrapping_add(r * t.ldc + line);
            // SAFETY: a prefetch reads nothing, any address is allowed; SSE is part of x86-64.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(c.cast());
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = t;
}
