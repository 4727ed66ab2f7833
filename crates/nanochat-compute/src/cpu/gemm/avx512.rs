//! Matrix kernels for AVX-512: tiles of 14 x 32 sums in 28 of the 32 registers, in f32 and in
//! pairs of bf16.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::kernel::{Lanes, kernel};
use super::portable::{round_bf16, to_bf16};

/// Products and sums in f32; `ROUND`: operands are rounded to bf16 when packed.
#[derive(Clone, Copy)]
pub(crate) struct Avx512F32<const ROUND: bool>;

/// Products of pairs of bf16 (`vdpbf16ps`), sums in f32. Subnormal bf16 count as zero.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Pairs;

impl<const ROUND: bool> Lanes for Avx512F32<ROUND> {
    const N: usize = 16;
    const STEP: usize = 1;
    const RAW: bool = !ROUND;
    type Sums = __m512;
    type Words = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> __m512 {
        // SAFETY: AVX-512 and 16 floats at src are conditions of `Lanes`.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store(dst: *mut f32, sums: __m512) {
        // SAFETY: AVX-512 and 16 floats at dst are conditions of `Lanes`.
        unsafe { _mm512_storeu_ps(dst, sums) }
    }
    #[inline(always)]
    unsafe fn scale_add(factor: f32, x: __m512, sums: __m512) -> __m512 {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), x, sums) }
    }
    #[inline(always)]
    unsafe fn words(src: *const u32) -> __m512 {
        // SAFETY: AVX-512 and 16 words at src are conditions of `Lanes`.
        unsafe { _mm512_loadu_ps(src.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(src: *const u32) -> __m512 {
        // SAFETY: AVX-512 and a word at src are conditions of `Lanes`.
        unsafe { _mm512_set1_ps(*src.cast()) }
    }
    #[inline(always)]
    unsafe fn mul_add(sums: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe { _mm512_fmadd_ps(a, b, sums) }
    }
    #[inline(always)]
    unsafe fn words_of_int8(src: *const u8) -> __m512 {
        // SAFETY: the conditions of this function.
        unsafe { floats_of_int8(src) }
    }
    #[inline(always)]
    unsafe fn words_of_bf16(src: *const u8) -> __m512 {
        // SAFETY: AVX-512 and 32 bytes at src are conditions of `Lanes`.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    fn word(x0: f32, _: f32) -> u32 {
        if ROUND { round_bf16(x0).to_bits() } else { x0.to_bits() }
    }
    #[inline(always)]
    unsafe fn pack_along(src: *const f32, dst: *mut u32) {
        // SAFETY: AVX-512, 16 floats and 16 words are conditions of `Lanes`.
        unsafe { _mm512_storeu_si512(dst.cast(), rounded::<ROUND>(_mm512_loadu_ps(src))) }
    }
    #[inline(always)]
    unsafe fn pack_across(src: *const f32, _: usize, dst: *mut u32) {
        // SAFETY: as `pack_along`.
        unsafe { Self::pack_along(src, dst) }
    }
    #[inline(always)]
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize) {
        // SAFETY: AVX-512, 16 rows of 16 floats and of 16 words are conditions of `Lanes`.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = rounded::<ROUND>(_mm512_loadu_ps(src.add(r * ld)));
            }
            store_turned(rows, dst, dst_ld);
        }
    }
}

impl Lanes for Avx512Pairs {
    const N: usize = 16;
    const STEP: usize = 2;
    const RAW: bool = false;
    type Sums = __m512;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> __m512 {
        // SAFETY: AVX-512 and 16 floats at src are conditions of `Lanes`.
        unsafe { _mm512_loadu_ps(src) }
    }
    #[inline(always)]
    unsafe fn store(dst: *mut f32, sums: __m512) {
        // SAFETY: AVX-512 and 16 floats at dst are conditions of `Lanes`.
        unsafe { _mm512_storeu_ps(dst, sums) }
    }
    #[inline(always)]
    unsafe fn scale_add(factor: f32, x: __m512, sums: __m512) -> __m512 {
        // SAFETY: AVX-512 is a condition of `Lanes`.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), x, sums) }
    }
    #[inline(always)]
    unsafe fn words(src: *const u32) -> __m512i {
        // SAFETY: AVX-512 and 16 words at src are conditions of `Lanes`.
        unsafe { _mm512_loadu_si512(src.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(src: *const u32) -> __m512i {
        // SAFETY: AVX-512 and a word at src are conditions of `Lanes`.
        unsafe { _mm512_set1_epi32(*src.cast()) }
    }
    #[inline(always)]
    unsafe fn mul_add(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: AVX512-BF16 is a condition of `Lanes`; both types are 512 bits without meaning
        // of their own.
        unsafe {
            _mm512_dpbf16_ps(
                sums,
                transmute::<__m512i, __m512bh>(a),
                transmute::<__m512i, __m512bh>(b),
            )
        }
    }
    #[inline(always)]
    unsafe fn words_of_int8(src: *const u8) -> __m512i {
        // SAFETY: AVX-512 and 32 bytes at src are conditions of `Lanes`. Integers of 8 bits are exact in
        // the upper half of an f32.
        unsafe {
            let even = _mm512_castps_si512(floats_of_int8(src));
            let odd = _mm512_castps_si512(floats_of_int8(src.add(16)));
            _mm512_or_si512(_mm512_srli_epi32::<16>(even), odd)
        }
    }
    #[inline(always)]
    unsafe fn words_of_bf16(src: *const u8) -> __m512i {
        // SAFETY: AVX-512 and 64 bytes at src are conditions of `Lanes`.
        unsafe { _mm512_loadu_si512(src.cast()) }
    }
    #[inline(always)]
    fn word(x0: f32, x1: f32) -> u32 {
        u32::from(to_bf16(x0)) | u32::from(to_bf16(x1)) << 16
    }
    #[inline(always)]
    unsafe fn pack_along(src: *const f32, dst: *mut u32) {
        // SAFETY: AVX-512, 32 floats and 16 words are conditions of `Lanes`.
        unsafe { _mm512_storeu_si512(dst.cast(), pairs_along(src)) }
    }
    #[inline(always)]
    unsafe fn pack_across(src: *const f32, ld: usize, dst: *mut u32) {
        // SAFETY: AVX-512 BW and BF16, 16 floats in both rows and 16 words are conditions of
        // `Lanes`.
        unsafe {
            // Words 0..16 are row k, words 16..32 row k + 1; the permutation interleaves them.
            let rows = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(src.add(ld)), _mm512_loadu_ps(src));
            let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
            let pairs = _mm512_permutexvar_epi16(order, transmute::<__m512bh, __m512i>(rows));
            _mm512_storeu_si512(dst.cast(), pairs);
        }
    }
    #[inline(always)]
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize) {
        // SAFETY: AVX-512, 16 rows of 32 floats and of 16 words are conditions of `Lanes`.
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (r, row) in rows.iter_mut().enumerate() {
                *row = pairs_along(src.add(r * ld));
            }
            store_turned(rows, dst, dst_ld);
        }
    }
}

/// 0, 16, 1, 17, ...: element i of the lower half beside element i of the upper half.
pub(crate) static INTERLEAVE: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// 16 signed bytes as floats.
#[inline(always)]
pub(super) unsafe fn floats_of_int8(src: *const u8) -> __m512 {
    // SAFETY: AVX-512 and 16 bytes are conditions of the caller.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(src.cast()))) }
}

/// 32 consecutive floats as 16 pairs of bf16.
#[inline(always)]
unsafe fn pairs_along(src: *const f32) -> __m512i {
    // SAFETY: AVX512-BF16 and 32 floats are conditions of the caller. The second operand becomes
    // the lower half.
    unsafe {
        let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(src.add(16)), _mm512_loadu_ps(src));
        transmute::<__m512bh, __m512i>(pairs)
    }
}

/// Up to 32 consecutive floats as 16 pairs of bf16; past `left` floats nothing is read, and the pairs
/// are zero.
#[inline(always)]
pub(super) unsafe fn masked_pairs_along(src: *const f32, left: usize) -> __m512i {
    // SAFETY: AVX512-BF16 and min(left, 32) floats are conditions of the caller.
    unsafe {
        if left >= 32 {
            return pairs_along(src);
        }
        let low = _mm512_maskz_loadu_ps(first(left), src);
        let high = _mm512_maskz_loadu_ps(first(left.max(16) - 16), src.wrapping_add(16));
        transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// Up to 16 pairs of bf16 side by side, of `count` floats at `src` and at `src + ld`; only the rows
/// among the first `k_left` are read. The rest is zero.
#[inline(always)]
pub(super) unsafe fn masked_pairs_across(
    src: *const f32,
    ld: usize,
    count: usize,
    k_left: usize,
) -> __m512i {
    // SAFETY: AVX512-BF16 and BW, and min(count, 16) floats in min(k_left, 2) rows are conditions of
    // the caller.
    unsafe {
        let mask = |k: usize| if k < k_left { first(count) } else { 0 };
        let even = _mm512_maskz_loadu_ps(mask(0), src);
        let odd = _mm512_maskz_loadu_ps(mask(1), src.wrapping_add(ld));
        let rows = _mm512_cvtne2ps_pbh(odd, even);
        let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
        _mm512_permutexvar_epi16(order, transmute::<__m512bh, __m512i>(rows))
    }
}

/// The mask of the first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// Turns 16 rows of 16 words and stores them `dst_ld` apart.
#[inline(always)]
pub(crate) unsafe fn store_turned(mut r: [__m512i; 16], dst: *mut u32, dst_ld: usize) {
    // SAFETY: AVX-512 and 16 rows of 16 words at dst are conditions of the caller.
    unsafe {
        let mut t = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        // r[4 g + c] holds columns c, c + 4, c + 8, c + 12 of rows 4 g .. 4 g + 4.
        for i in 0..4 {
            t[i] = _mm512_shuffle_i32x4::<0x88>(r[i], r[4 + i]);
            t[4 + i] = _mm512_shuffle_i32x4::<0xdd>(r[i], r[4 + i]);
            t[8 + i] = _mm512_shuffle_i32x4::<0x88>(r[8 + i], r[12 + i]);
            t[12 + i] = _mm512_shuffle_i32x4::<0xdd>(r[8 + i], r[12 + i]);
        }
        for i in 0..4 {
            r[i] = _mm512_shuffle_i32x4::<0x88>(t[i], t[8 + i]);
            r[8 + i] = _mm512_shuffle_i32x4::<0xdd>(t[i], t[8 + i]);
            r[4 + i] = _mm512_shuffle_i32x4::<0x88>(t[4 + i], t[12 + i]);
            r[12 + i] = _mm512_shuffle_i32x4::<0xdd>(t[4 + i], t[12 + i]);
        }
        for (i, row) in r.into_iter().enumerate() {
            _mm512_storeu_si512(dst.add(i * dst_ld).cast(), row);
        }
    }
}

/// Rounds to bf16 as [`round_bf16`] does; NaN becomes a quiet NaN.
#[inline(always)]
unsafe fn rounded<const ROUND: bool>(x: __m512) -> __m512i {
    // SAFETY: AVX-512 is a condition of the caller.
    unsafe {
        let bits = _mm512_castps_si512(x);
        if !ROUND {
            return bits;
        }
        let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), even);
        let kept = _mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_blend_epi32(nan, kept, _mm512_set1_epi32(0x7fc0_0000))
    }
}

type Plain = Avx512F32<false>;
type Rounded = Avx512F32<true>;
kernel!(Plain, 14, 2, "avx2,fma,avx512f,avx512bw,avx512vl");
kernel!(Rounded, 14, 2, "avx2,fma,avx512f,avx512bw,avx512vl");
kernel!(Avx512Pairs, 14, 2, "avx2,fma,avx512f,avx512bw,avx512vl,avx512bf16");
