//! What attention does with a block of scores: softmax piece by piece, and its gradient.
//!
//! Blocks are [`BLOCK`] columns wide, rows `A_ROW` floats apart, so that a block can be multiplied
//! as a packed A. Sums and maxima run in 16 lanes on every machine.

use crate::cpu::gemm::kernel::A_ROW;
use crate::cpu::simd::{Kernels, Simd};

/// Columns of a block: keys in the forward, queries in the backward.
pub(super) const BLOCK: usize = 64;
/// Rows that a block has at most.
pub(super) const MAX_ROWS: usize = 128;
const LANES: usize = 16;

/// A block of scores `q . k` of `rows` queries against the keys from `key0` on.
///
/// The query of row r stands at position `first + r * step`.
pub(super) struct Scores {
    /// (rows, BLOCK), `A_ROW` apart: scores in, weights out, not yet divided by their sum.
    pub scores: *mut f32,
    pub rows: usize,
    pub key0: usize,
    pub first: usize,
    pub step: usize,
    pub window: usize,
    /// Positive.
    pub scale: f32,
    /// (rows): the largest scaled score so far, and the sum of weights relative to it.
    pub max: *mut f32,
    pub sum: *mut f32,
    /// (rows, d), `out_ld` apart: the output so far, rescaled when the maximum grows.
    pub out: *mut f32,
    pub out_ld: usize,
    pub d: usize,
    /// There is no output yet.
    pub fresh: bool,
}

/// Columns lo .. hi of a block at `key0` that a query at `position` sees.
pub(super) fn seen(position: usize, window: usize, key0: usize) -> (usize, usize) {
    let lo = position.saturating_sub(window).saturating_sub(key0).min(BLOCK);
    (lo, (position + 1).saturating_sub(key0).min(BLOCK))
}

/// Turns scores into `exp(scale * score - max)`, zero for keys that are not seen.
///
/// # Safety
/// The pointers hold what [`Scores`] says.
pub(super) unsafe fn softmax(kernels: Kernels, s: &Scores) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
    unsafe fn avx512(s: &Scores) {
        // SAFETY: the conditions of the outer function.
        unsafe { softmax_body::<true>(s) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(s: &Scores) {
        // SAFETY: the conditions of the outer function.
        unsafe { softmax_body::<true>(s) }
    }
    // SAFETY: the conditions of this function; `Kernels` proves that the machine has the
    // instructions of `simd()`.
    unsafe {
        match kernels.simd() {
            #[cfg(target_arch = "x86_64")]
            Simd::Amx | Simd::Avx512Bf16 | Simd::Avx512 => avx512(s),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => avx2(s),
            _ => softmax_body::<{ cfg!(target_arch = "aarch64") }>(s),
        }
    }
}

/// Three passes over the rows, so that the few numbers a row has are vectors too.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // r names a row of four things
unsafe fn softmax_body<const FMA: bool>(s: &Scores) {
    assert!(s.rows <= MAX_ROWS);
    let (mut top, mut shrink) = ([f32::NEG_INFINITY; MAX_ROWS], [1.0f32; MAX_ROWS]);
    let range = |r: usize| seen(s.first + r * s.step, s.window, s.key0);
    // SAFETY: row r < rows of scores.
    let row = |r: usize| unsafe { &mut *s.scores.add(r * A_ROW).cast::<[f32; BLOCK]>() };
    for r in 0..s.rows {
        let ((lo, hi), row) = (range(r), row(r));
        if lo >= hi {
            row.fill(0.0);
            continue;
        }
        row[..lo].fill(f32::NEG_INFINITY);
        row[hi..].fill(f32::NEG_INFINITY);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for x in row.chunks_exact(LANES) {
            for i in 0..LANES {
                lanes[i] = larger(x[i], lanes[i]);
            }
        }
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] = larger(lanes[i], lanes[i + width]);
            }
        }
        top[r] = lanes[0];
    }
    // SAFETY: `rows` maxima and sums, which nobody else touches.
    let (max, sum) = unsafe {
        let max = std::slice::from_raw_parts_mut(s.max, s.rows);
        (max, std::slice::from_raw_parts_mut(s.sum, s.rows))
    };
    for r in 0..s.rows {
        let new = larger(top[r] * s.scale, max[r]);
        // A row that has seen nothing keeps its infinite maximum: -inf - -inf is no number.
        shrink[r] = if new == max[r] { 1.0 } else { exp::<FMA>(max[r] - new) };
        max[r] = new;
        sum[r] *= shrink[r];
    }
    for r in 0..s.rows {
        let (lo, hi) = range(r);
        if lo >= hi {
            continue;
        }
        if shrink[r] != 1.0 && !s.fresh {
            // SAFETY: d floats of output row r < rows.
            let out = unsafe { std::slice::from_raw_parts_mut(s.out.add(r * s.out_ld), s.d) };
            out.iter_mut().for_each(|x| *x *= shrink[r]);
        }
        let (max, mut sums) = (max[r], [0.0; LANES]);
        for x in row(r).chunks_exact_mut(LANES) {
            for i in 0..LANES {
                x[i] = exp::<FMA>(fused::<FMA>(x[i], s.scale, -max));
                sums[i] += x[i];
            }
        }
        sum[r] += sum_lanes(sums);
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Blocks of the transposed scores: `rows` keys from `key0` on, [`BLOCK`] queries from `query0`.
pub(super) struct ScoreGradients {
    /// (rows, BLOCK), `A_ROW` apart: scores in, weights `p` out.
    pub scores: *mut f32,
    /// Alike: `dout . v` in, gradient of the scores out.
    pub grads: *mut f32,
    pub rows: usize,
    pub key0: usize,
    pub query0: usize,
    /// Queries that exist.
    pub queries: usize,
    pub window: usize,
    pub scale: f32,
    /// (BLOCK) each, for the queries of the block.
    pub lse: *const f32,
    pub delta: *const f32,
}

/// `p = exp(scale * score - lse)`, `ds = scale * p * (dp - delta)`, zero where nothing is seen.
///
/// # Safety
/// The pointers hold what [`ScoreGradients`] says.
pub(super) unsafe fn softmax_backward(kernels: Kernels, s: &ScoreGradients) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
    unsafe fn avx512(s: &ScoreGradients) {
        // SAFETY: the conditions of the outer function.
        unsafe { softmax_backward_body::<true>(s) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(s: &ScoreGradients) {
        // SAFETY: the conditions of the outer function.
        unsafe { softmax_backward_body::<true>(s) }
    }
    // SAFETY: the conditions of this function; `Kernels` proves that the machine has the
    // instructions of `simd()`.
    unsafe {
        match kernels.simd() {
            #[cfg(target_arch = "x86_64")]
            Simd::Amx | Simd::Avx512Bf16 | Simd::Avx512 => avx512(s),
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => avx2(s),
            _ => softmax_backward_body::<{ cfg!(target_arch = "aarch64") }>(s),
        }
    }
}

#[inline(always)]
unsafe fn softmax_backward_body<const FMA: bool>(s: &ScoreGradients) {
    // SAFETY: BLOCK floats each, by the condition of this function.
    let (lse, delta) =
        unsafe { (&*s.lse.cast::<[f32; BLOCK]>(), &*s.delta.cast::<[f32; BLOCK]>()) };
    for r in 0..s.rows {
        let key = s.key0 + r;
        let lo = key.saturating_sub(s.query0).min(s.queries);
        let hi = key.saturating_add(s.window).saturating_add(1).saturating_sub(s.query0);
        let hi = hi.min(s.queries);
        // SAFETY: row r < rows of both blocks, which are distinct.
        let (p, ds) = unsafe {
            (
                &mut *s.scores.add(r * A_ROW).cast::<[f32; BLOCK]>(),
                &mut *s.grads.add(r * A_ROW).cast::<[f32; BLOCK]>(),
            )
        };
        if lo < hi {
            for i in 0..BLOCK {
                p[i] = exp::<FMA>(fused::<FMA>(p[i], s.scale, -lse[i]));
                ds[i] = p[i] * (ds[i] - delta[i]) * s.scale;
            }
        }
        // Scores that no tile computed are whatever was there before: away with what they became.
        let (lo, hi) = if lo < hi { (lo, hi) } else { (BLOCK, BLOCK) };
        for x in [p, ds] {
            x[..lo].fill(0.0);
            x[hi..].fill(0.0);
        }
    }
}

#[inline(always)]
fn sum_lanes(mut x: [f32; LANES]) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            x[i] += x[i + width];
        }
    }
    x[0]
}

/// `a * b + c`, with one rounding if `FMA`. Without the instruction, `mul_add` would be a call.
#[inline(always)]
fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for x up to 88 with an error below 2 ulp; exactly 0 below -87.7; NaN stays NaN.
///
/// `x = n ln 2 + r`, `|r| <= ln 2 / 2`, and a polynomial for `e^r`. Source: Cephes, `expf`.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    /// 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa; 127 more make it the
    /// exponent of 2^n.
    const TO_EXPONENT: f32 = 12_582_912.0 + 127.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // From here down, n is -127, and an exponent of 0 is the number 0.
    let x = if x < -88.0 { -88.0 } else { x };
    let t = fused::<FMA>(x, std::f32::consts::LOG2_E, TO_EXPONENT);
    let n = t - TO_EXPONENT;
    let r = fused::<FMA>(n, -LN_2_LOW, fused::<FMA>(n, -LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fused::<FMA>(p, r, c);
    }
    let e = fused::<FMA>(p, r * r, r) + 1.0;
    e * f32::from_bits(t.to_bits() << 23)
}

#[cfg(test)]
mod tests {
    use super::exp;

    fn worst_ulp(exp: fn(f32) -> f32) -> f64 {
        let error = |i: i32| {
            let x = i as f32 * 1e-3 + 1.3e-5;
            let want = f64::from(x).exp();
            let ulp = f64::from((want as f32).next_up() - want as f32);
            (f64::from(exp(x)) - want).abs() / ulp
        };
        (-87_300..88_000).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_right_to_two_ulp() {
        let (fused, plain) = (worst_ulp(exp::<true>), worst_ulp(exp::<false>));
        assert!(fused < 2.0 && plain < 2.0, "{fused} and {plain} ulp");
    }

    #[test]
    fn exp_knows_its_limits() {
        assert_eq!([f32::NEG_INFINITY, -100.0, 0.0].map(exp::<true>), [0.0, 0.0, 1.0]);
        assert!(exp::<true>(f32::NAN).is_nan());
    }
}
