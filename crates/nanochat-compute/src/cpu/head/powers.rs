//! What becomes of a tile of logits: softcap, powers, and their gradient before it is divided by the
//! row's sum, in the orders in which two products read it.

use std::arch::x86_64::*;
use std::f32::consts::{LN_2, LOG2_E};
use std::mem::transmute;

use crate::cpu::gemm::avx512::{INTERLEAVE, store_turned};

/// Rows and columns of a tile of logits.
pub(super) const TILE: usize = 32;
/// Lanes of a register.
pub(super) const LANES: usize = 16;

/// A tile of raw logits on its way.
pub(super) struct Powers {
    /// TILE x TILE; becomes the gradients.
    pub logits: *mut f32,
    /// The first column's id, and ids that exist.
    pub first: usize,
    pub v: usize,
    /// TILE ids, negative where nothing counts.
    pub targets: *const i32,
    /// TILE raw logits of the targets, written where the target is in this tile.
    pub target_logits: *mut f32,
    /// TILE rows of LANES partial sums of powers.
    pub sums: *mut f32,
    /// Rows of 32 bf16 along v, and rows of 32 bf16 along the rows of the batch; none for a loss alone.
    pub gradients: Option<Gradients>,
}

/// Where the gradients of a tile go.
#[derive(Clone, Copy)]
pub(super) struct Gradients {
    /// TILE rows of LANES words, pairs along v.
    pub along: *mut u32,
    /// TILE rows (one a column of the tile) of LANES words, pairs along the batch.
    pub turned: *mut u32,
}

/// `2^y` for |y| < 126, relative error below 2e-7: the series of `e^(f ln 2)` for |f| <= 1/2, then the
/// exponent.
#[inline(always)]
unsafe fn exp2(y: __m512) -> __m512 {
    const C: [f32; 6] = {
        let (mut c, mut power, mut factorial, mut k) = ([0.0; 6], 1.0f64, 1.0f64, 0);
        while k < 6 {
            power *= std::f64::consts::LN_2;
            factorial *= (k + 1) as f64;
            c[k] = (power / factorial) as f32;
            k += 1;
        }
        c
    };
    // SAFETY: AVX-512 is a condition of this function.
    unsafe {
        let n = _mm512_roundscale_ps::<0>(y);
        let f = _mm512_sub_ps(y, n);
        let mut p = _mm512_set1_ps(C[5]);
        for c in [C[4], C[3], C[2], C[1], C[0], 1.0] {
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
        }
        _mm512_scalef_ps(p, n)
    }
}

/// With `t = tanh(z / cap)`: the power `e^(cap (t - 1))`, and that times `1 - t^2`.
///
/// `u = 1 / (e^(2 z / cap) + 1)`, so that `t = 1 - 2 u` and `1 - t^2 = 4 u (1 - u)`.
#[inline(always)]
unsafe fn power(z: __m512, cap: f32) -> (__m512, __m512) {
    // SAFETY: AVX-512 is a condition of this function.
    unsafe {
        // Past 40 nothing changes; NaN stays NaN (the second operand of min and max comes through).
        let y = _mm512_mul_ps(z, _mm512_set1_ps(2.0 * LOG2_E / cap));
        let y = _mm512_min_ps(_mm512_set1_ps(60.0), y);
        let y = _mm512_max_ps(_mm512_set1_ps(-60.0), y);
        let d = _mm512_add_ps(exp2(y), _mm512_set1_ps(1.0));
        // 14 bits of the reciprocal, and one step of Newton's.
        let u = _mm512_rcp14_ps(d);
        let rest = _mm512_fnmadd_ps(d, u, _mm512_set1_ps(2.0));
        let u = _mm512_mul_ps(u, rest);
        let e = exp2(_mm512_mul_ps(u, _mm512_set1_ps(-2.0 * cap * LOG2_E)));
        let four = _mm512_mul_ps(_mm512_set1_ps(4.0), e);
        let g = _mm512_mul_ps(four, _mm512_fnmadd_ps(u, u, u));
        (e, g)
    }
}

/// The largest softcap whose powers stay normal numbers: `e^(-2 cap) > 2^-126`.
pub(super) const MAX_CAP: f32 = 126.0 * LN_2 / 2.0 - 3.0;

impl Powers {
    /// All of the tile.
    ///
    /// # Safety
    /// The machine has AVX-512 with BF16; the pointers hold what their fields say, aligned to 64 bytes but
    /// for `targets` and `target_logits`; `cap` is in (0, [`MAX_CAP`]].
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn run(&self, cap: f32) {
        let left = self.v - self.first;
        let mask = |from: usize| -> __mmask16 {
            let count = left.saturating_sub(from).min(LANES);
            ((1u32 << count) - 1) as u16
        };
        let masks = [mask(0), mask(LANES)];
        // SAFETY: the conditions of this function; rows and columns run to TILE.
        unsafe {
            for r in 0..TILE {
                let row = self.logits.add(r * TILE);
                let target = (*self.targets.add(r) as usize).wrapping_sub(self.first);
                let hit = target < TILE.min(left);
                if hit {
                    *self.target_logits.add(r) = *row.add(target);
                }
                let (e0, g0) = power(_mm512_load_ps(row), cap);
                let (e1, g1) = power(_mm512_load_ps(row.add(LANES)), cap);
                let sums = self.sums.add(r * LANES);
                let sum = _mm512_load_ps(sums);
                let sum = _mm512_mask_add_ps(sum, masks[0], sum, e0);
                _mm512_store_ps(sums, _mm512_mask_add_ps(sum, masks[1], sum, e1));
                let Some(Gradients { along, .. }) = self.gradients else { continue };
                let (mut g0, mut g1) =
                    (_mm512_maskz_mov_ps(masks[0], g0), _mm512_maskz_mov_ps(masks[1], g1));
                if hit {
                    // The target's own gradient has a part that is no power: it is added apart.
                    let other = !(1u32 << target);
                    g0 = _mm512_maskz_mov_ps(other as u16, g0);
                    g1 = _mm512_maskz_mov_ps((other >> LANES) as u16, g1);
                }
                _mm512_store_ps(row, g0);
                _mm512_store_ps(row.add(LANES), g1);
                let pairs = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(g1, g0));
                _mm512_store_si512(along.add(r * LANES).cast(), pairs);
            }
            if let Some(Gradients { turned, .. }) = self.gradients {
                for half in 0..2 {
                    let mut rows = [_mm512_setzero_si512(); LANES];
                    for (i, pair) in rows.iter_mut().enumerate() {
                        let even = self.logits.add(2 * i * TILE + half * LANES);
                        let (even, odd) = (_mm512_load_ps(even), _mm512_load_ps(even.add(TILE)));
                        let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
                        let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
                        *pair = _mm512_permutexvar_epi16(order, both);
                    }
                    store_turned(rows, turned.add(half * LANES * LANES), LANES);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Kernels, Simd};

    #[repr(C, align(64))]
    struct Aligned<T, const N: usize>([T; N]);

    #[test]
    fn a_tile_has_its_powers_and_gradients_in_both_orders() {
        if Kernels::new(Simd::Avx512Bf16).is_none() {
            eprintln!("skipped: no AVX-512 with bf16");
            return;
        }
        let (cap, first, v) = (15.0, 64, 64 + 27);
        let logit = |r: usize, j: usize| (r as f32 - 15.0) * (j as f32 - 11.5) * 0.4;
        let mut logits = Aligned([0f32; TILE * TILE]);
        for (i, z) in logits.0.iter_mut().enumerate() {
            *z = logit(i / TILE, i % TILE);
        }
        let mut targets = [-1; TILE];
        (targets[3], targets[7], targets[9]) = (64 + 20, 5, 64 + 28);
        let mut sums = Aligned([1f32; TILE * LANES]);
        let (mut along, mut turned) = (Aligned([0u32; 512]), Aligned([0u32; 512]));
        let mut seen = [f32::NAN; TILE];
        let powers = Powers {
            logits: logits.0.as_mut_ptr(),
            first,
            v,
            targets: targets.as_ptr(),
            target_logits: seen.as_mut_ptr(),
            sums: sums.0.as_mut_ptr(),
            gradients: Some(Gradients {
                along: along.0.as_mut_ptr(),
                turned: turned.0.as_mut_ptr(),
            }),
        };
        // SAFETY: the instructions are there, the memory is what `Powers` asks for.
        unsafe { powers.run(cap) };
        let half = |words: &[u32], row: usize, k: usize| {
            f32::from_bits(words[row * LANES + k / 2] >> (16 * (k % 2)) << 16)
        };
        for r in 0..TILE {
            let power = |j: usize| {
                let t = (f64::from(logit(r, j)) / f64::from(cap)).tanh();
                ((f64::from(cap) * (t - 1.0)).exp(), 1.0 - t * t)
            };
            let sum: f64 = 16.0 + (0..27).map(|j| power(j).0).sum::<f64>();
            let got: f32 = sums.0[r * LANES..][..LANES].iter().sum();
            assert!((f64::from(got) / sum - 1.0).abs() < 3e-6, "row {r}: {got}, not {sum}");
            for j in 0..TILE {
                let (e, capped) = power(j);
                let want = if j < 27 && (r, j) != (3, 20) { e * capped } else { 0.0 };
                for got in [half(&along.0, r, j), half(&turned.0, j, r)] {
                    // A difference of numbers near 1 has their rounding.
                    let apart = (f64::from(got) - want).abs();
                    assert!(apart <= want / 200.0 + 1e-6 * e, "{r}, {j}: {got}, not {want}");
                }
            }
        }
        assert_eq!(seen[3], logit(3, 20));
        assert!(seen.iter().enumerate().all(|(r, z)| r == 3 || z.is_nan()));
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        if Kernels::new(Simd::Avx512Bf16).is_none() {
            eprintln!("skipped: no AVX-512 with bf16");
            return;
        }
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16")]
        unsafe fn of(z: f32) -> (f32, f32) {
            // SAFETY: the condition of this function.
            let (e, g) = unsafe { power(_mm512_set1_ps(z), 15.0) };
            (_mm512_cvtss_f32(e), _mm512_cvtss_f32(g))
        }
        // SAFETY: the instructions are there.
        let of = |z| unsafe { of(z) };
        assert!(of(f32::NAN).0.is_nan() && of(f32::NAN).1.is_nan());
        assert!(of(f32::INFINITY).0 == 1.0 && of(f32::INFINITY).1 < 1e-16);
        let (e, g) = of(f32::NEG_INFINITY);
        assert!((e / (-30f32).exp() - 1.0).abs() < 1e-5 && (0.0..1e-20).contains(&g), "{e} {g}");
    }
}
