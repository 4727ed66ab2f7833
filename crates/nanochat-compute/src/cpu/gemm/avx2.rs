//! Matrix kernels for AVX2 and FMA: tiles of 6 x 16 sums in 12 of the 16 registers.

use std::arch::x86_64::*;

use super::kernel::{Lanes, kernel};
use super::portable::round_bf16;

/// Products and sums in f32; `ROUND`: operands are rounded to bf16 when packed.
#[derive(Clone, Copy)]
pub(crate) struct Avx2F32<const ROUND: bool>;

// SAFETY of every block below: the instructions and the memory are the conditions of `Lanes`.
impl<const ROUND: bool> Lanes for Avx2F32<ROUND> {
    const N: usize = 8;
    const STEP: usize = 1;
    const RAW: bool = !ROUND;
    type Sums = __m256;
    type Words = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: AVX2 is a condition of `Lanes`.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> __m256 {
        // SAFETY: AVX2 and 8 floats at src are conditions of `Lanes`.
        unsafe { _mm256_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store(dst: *mut f32, sums: __m256) {
        // SAFETY: AVX2 and 8 floats at dst are conditions of `Lanes`.
        unsafe { _mm256_storeu_ps(dst, sums) }
    }
    #[inline(always)]
    unsafe fn scale_add(factor: f32, x: __m256, sums: __m256) -> __m256 {
        // SAFETY: AVX2 and FMA are conditions of `Lanes`.
        unsafe { _mm256_fmadd_ps(_mm256_set1_ps(factor), x, sums) }
    }
    #[inline(always)]
    unsafe fn words(src: *const u32) -> __m256 {
        // SAFETY: AVX2 and 8 words at src are conditions of `Lanes`.
        unsafe { _mm256_loadu_ps(src.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(src: *const u32) -> __m256 {
        // SAFETY: AVX2 and a word at src are conditions of `Lanes`.
        unsafe { _mm256_broadcast_ss(&*src.cast()) }
    }
    #[inline(always)]
    unsafe fn mul_add(sums: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: FMA is a condition of `Lanes`.
        unsafe { _mm256_fmadd_ps(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn words_of_int8(src: *const u8) -> __m256 {
        // SAFETY: AVX2 and 8 bytes at src are conditions of `Lanes`.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src.cast()))) }
    }
    #[inline(always)]
    unsafe fn words_of_bf16(src: *const u8) -> __m256 {
        // SAFETY: AVX2 and 16 bytes at src are conditions of `Lanes`.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    fn word(x0: f32, _: f32) -> u32 {
        if ROUND { round_bf16(x0).to_bits() } else { x0.to_bits() }
    }
    #[inline(always)]
    unsafe fn pack_along(src: *const f32, dst: *mut u32) {
        // SAFETY: AVX2, 8 floats and 8 words are conditions of `Lanes`.
        unsafe { _mm256_storeu_ps(dst.cast(), rounded::<ROUND>(_mm256_loadu_ps(src))) }
    }
    #[inline(always)]
    unsafe fn pack_across(src: *const f32, _: usize, dst: *mut u32) {
        // SAFETY: as `pack_along`.
        unsafe { Self::pack_along(src, dst) }
    }
    #[inline(always)]
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize) {
        // SAFETY: AVX2, 8 rows of 8 floats and of 8 words are conditions of `Lanes`.
        unsafe {
            let rows = turned(src, ld);
            for (i, row) in rows.into_iter().enumerate() {
                _mm256_storeu_ps(dst.add(i * dst_ld).cast(), rounded::<ROUND>(row));
            }
        }
    }
}

/// The columns of 8 rows of 8 floats, `ld` apart.
///
/// Loads of half registers put rows i and i + 4 side by side, which saves the lane crossings of a
/// transposition that begins with whole rows.
#[inline(always)]
unsafe fn turned(src: *const f32, ld: usize) -> [__m256; 8] {
    // SAFETY: AVX2 and the 8 rows are conditions of the caller.
    unsafe {
        let mut out = [_mm256_setzero_ps(); 8];
        for half in 0..2 {
            let mut r = [_mm256_setzero_ps(); 4];
            for (i, r) in r.iter_mut().enumerate() {
                let low = _mm_loadu_ps(src.add(i * ld + half * 4));
                let high = _mm_loadu_ps(src.add((i + 4) * ld + half * 4));
                *r = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high);
            }
            let t0 = _mm256_unpacklo_ps(r[0], r[1]);
            let t1 = _mm256_unpackhi_ps(r[0], r[1]);
            let t2 = _mm256_unpacklo_ps(r[2], r[3]);
            let t3 = _mm256_unpackhi_ps(r[2], r[3]);
            out[half * 4] = _mm256_shuffle_ps::<0x44>(t0, t2);
            out[half * 4 + 1] = _mm256_shuffle_ps::<0xee>(t0, t2);
            out[half * 4 + 2] = _mm256_shuffle_ps::<0x44>(t1, t3);
            out[half * 4 + 3] = _mm256_shuffle_ps::<0xee>(t1, t3);
        }
        out
    }
}

/// Rounds to bf16 as [`round_bf16`] does; NaN becomes a quiet NaN.
#[inline(always)]
unsafe fn rounded<const ROUND: bool>(x: __m256) -> __m256 {
    if !ROUND {
        return x;
    }
    // SAFETY: AVX2 is a condition of the caller.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), even);
        let kept = _mm256_and_si256(up, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        _mm256_blendv_ps(_mm256_castsi256_ps(kept), _mm256_set1_ps(f32::NAN), nan)
    }
}

type Plain = Avx2F32<false>;
type Rounded = Avx2F32<true>;
kernel!(Plain, 6, 2, "avx2,fma");
kernel!(Rounded, 6, 2, "avx2,fma");
