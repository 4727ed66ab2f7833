//! A few rows times a matrix that is read once, where it lies: what decoding does.
//!
//! In: packed rows of A, rows of B along k. Out: `rows` x `columns` of C. Sums run in the order of
//! the tile product, so a row of C has the same bits as if it were computed among many.

use super::kernel::Lanes;

/// Rows of A that [`dots`] takes at most.
pub(crate) const ROWS: usize = 4;
/// Words of a cache line.
const LINE: usize = 16;

/// `c[r, j] = beta * c[r, j] + sum_k a[r, k] b[j, k]` for `rows` rows and `columns` columns.
pub(crate) struct Dots {
    /// (ROWS, a_ld) words; rows past `rows` are zero.
    pub a: *const u32,
    pub a_ld: usize,
    /// (columns, k) floats, `ldb` apart.
    pub b: *const f32,
    pub ldb: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// 1..=ROWS
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
    /// Words after which the tile product adds a block of sums to C.
    pub block: usize,
    pub beta: f32,
}

/// All of `d`, several registers of columns at a time: a lone chain of sums would wait for itself.
///
/// # Safety
/// As [`super::kernel::Kernel::dots`]: the pointers hold what `Dots` says.
#[inline(always)]
pub(crate) unsafe fn dots<L: Lanes>(d: &Dots) {
    // SAFETY: the conditions of this function.
    unsafe {
        match d.rows {
            1 => columns::<L, 1, 2>(d),
            2 => columns::<L, 2, 2>(d),
            _ => columns::<L, ROWS, 1>(d),
        }
    }
}

#[inline(always)]
unsafe fn columns<L: Lanes, const R: usize, const G: usize>(d: &Dots) {
    let mut j = 0;
    // SAFETY: j + G * N <= columns in the first loop, one column at least is left in the second.
    unsafe {
        while j + G * L::N <= d.columns {
            group::<L, R, G>(d, j, L::N);
            j += G * L::N;
        }
        while j < d.columns {
            group::<L, R, 1>(d, j, L::N.min(d.columns - j));
            j += L::N;
        }
    }
}

/// Columns `j .. j + (G - 1) * N + last`; `last < N` only if G is 1.
#[inline(always)]
unsafe fn group<L: Lanes, const R: usize, const G: usize>(d: &Dots, j: usize, last: usize) {
    let words = d.k.div_ceil(L::STEP);
    let whole = if last == L::N { d.k / (L::STEP * L::N) * L::N } else { 0 };
    let mut turned = [0u32; 256];
    // SAFETY: k and columns stay inside what `Dots` says; a register of C goes through a buffer of
    // 16 >= N floats; N * N <= 256.
    unsafe {
        let mut start = 0;
        while start < words {
            let end = words.min(start + d.block);
            let mut sums = [[L::zero(); G]; R];
            // Whole cache lines of a group of rows, then of the next group: rows may lie so that
            // their lines share a few places of the cache.
            for line in (start..end).step_by(LINE) {
                for g in 0..G {
                    for w in (line..end.min(line + LINE)).step_by(L::N) {
                        let steps = L::N.min(end - w);
                        let b = d.b.add((j + g * L::N) * d.ldb + w * L::STEP);
                        if w + L::N <= whole {
                            L::pack_turned(b, d.ldb, turned.as_mut_ptr(), L::N);
                            for s in 0..L::N {
                                let column = turned.as_ptr().add(s * L::N);
                                step::<L, R, G>(d, &mut sums, g, w + s, column);
                            }
                        } else {
                            pack_edge::<L>(d, b, w, steps, last, turned.as_mut_ptr());
                            for s in 0..steps {
                                let column = turned.as_ptr().add(s * L::N);
                                step::<L, R, G>(d, &mut sums, g, w + s, column);
                            }
                        }
                    }
                    for row in &mut sums {
                        row[g] = L::line_end(row[g]);
                    }
                }
            }
            let beta = if start == 0 { d.beta } else { 1.0 };
            for (r, row) in sums.iter().enumerate().take(d.rows) {
                for (g, &sums) in row.iter().enumerate() {
                    add::<L>(d.c.add(r * d.ldc + j + g * L::N), last, beta, sums);
                }
            }
            start = end;
        }
    }
}

#[inline(always)]
unsafe fn step<L: Lanes, const R: usize, const G: usize>(
    d: &Dots,
    sums: &mut [[L::Sums; G]; R],
    g: usize,
    w: usize,
    column: *const u32,
) {
    // SAFETY: word w < words of each of the ROWS >= R rows of A; N words at `column`.
    unsafe {
        let column = L::words(column);
        for (r, row) in sums.iter_mut().enumerate() {
            row[g] = L::mul_add(row[g], L::splat(d.a.add(r * d.a_ld + w)), column);
        }
    }
}

/// Turns `steps` words of `count` rows one by one; what is missing is zero.
#[inline(always)]
unsafe fn pack_edge<L: Lanes>(
    d: &Dots,
    b: *const f32,
    w: usize,
    steps: usize,
    count: usize,
    turned: *mut u32,
) {
    for s in 0..steps {
        let k = (w + s) * L::STEP;
        for r in 0..L::N {
            // SAFETY: row r < count of B has element k, and k + 1 if that is below d.k;
            // s, r < N and N * N <= 256 words are at `turned`.
            unsafe {
                let src = b.wrapping_add(r * d.ldb + s * L::STEP);
                let x0 = if r < count { *src } else { 0.0 };
                let x1 = if r < count && k + 1 < d.k { *src.add(1) } else { 0.0 };
                *turned.add(s * L::N + r) = L::word(x0, x1);
            }
        }
    }
}

/// `c = beta * c + sums` for the first `count` lanes.
#[inline(always)]
unsafe fn add<L: Lanes>(c: *mut f32, count: usize, beta: f32, sums: L::Sums) {
    let mut buffer = [0.0f32; 16];
    // SAFETY: `count` floats at c, N <= 16 in the buffer.
    unsafe {
        if beta != 0.0 {
            std::ptr::copy_nonoverlapping(c, buffer.as_mut_ptr(), count);
        }
        let old = L::load(buffer.as_ptr());
        let sums = if beta == 0.0 { sums } else { L::scale_add(beta, old, sums) };
        L::store(buffer.as_mut_ptr(), sums);
        std::ptr::copy_nonoverlapping(buffer.as_ptr(), c, count);
    }
}
