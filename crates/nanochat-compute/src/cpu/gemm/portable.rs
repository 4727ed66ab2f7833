//! Matrix kernels in plain Rust: what machines without AVX2 run, and, for pairs of bf16, the
//! layout and the order of sums of the AVX-512 kernel on any machine.

use super::kernel::{Lanes, kernel};

/// Rounds to the nearest bf16, ties to even; the result is the upper half of an f32. NaN stays
/// NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// `x` rounded to bf16.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(x)) << 16)
}

/// `a * b + c`: fused where that is one instruction, and not a call of the maths library.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

const N: usize = 8;

/// Products and sums in f32; `ROUND`: operands are rounded to bf16 when packed.
#[derive(Clone, Copy)]
pub(crate) struct PortableF32<const ROUND: bool>;

/// Products of pairs of bf16, sums in f32.
#[derive(Clone, Copy)]
pub(crate) struct PortablePairs;

impl<const ROUND: bool> Lanes for PortableF32<ROUND> {
    const N: usize = N;
    const STEP: usize = 1;
    const RAW: bool = !ROUND;
    type Sums = [f32; N];
    type Words = [f32; N];

    #[inline(always)]
    unsafe fn zero() -> [f32; N] {
        [0.0; N]
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> [f32; N] {
        // SAFETY: N floats at src, by the condition of `Lanes`.
        unsafe { src.cast::<[f32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn store(dst: *mut f32, sums: [f32; N]) {
        // SAFETY: N floats at dst, by the condition of `Lanes`.
        unsafe { dst.cast::<[f32; N]>().write(sums) }
    }
    #[inline(always)]
    unsafe fn scale_add(factor: f32, x: [f32; N], mut sums: [f32; N]) -> [f32; N] {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = mul_add(factor, x, *sum);
        }
        sums
    }
    #[inline(always)]
    unsafe fn words(src: *const u32) -> [f32; N] {
        // SAFETY: N words at src, by the condition of `Lanes`; any bits are a float.
        unsafe { src.cast::<[f32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn splat(src: *const u32) -> [f32; N] {
        // SAFETY: one word at src, by the condition of `Lanes`.
        [f32::from_bits(unsafe { *src }); N]
    }
    #[inline(always)]
    unsafe fn mul_add(mut sums: [f32; N], a: [f32; N], b: [f32; N]) -> [f32; N] {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = mul_add(a, b, *sum);
        }
        sums
    }
    #[inline(always)]
    unsafe fn words_of_int8(src: *const u8) -> [f32; N] {
        // SAFETY: N bytes at src, by the condition of `Lanes`.
        unsafe { src.cast::<[i8; N]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn words_of_bf16(src: *const u8) -> [f32; N] {
        // SAFETY: 2 N bytes at src, by the condition of `Lanes`.
        let halves = unsafe { src.cast::<[u16; N]>().read_unaligned() };
        halves.map(|half| f32::from_bits(u32::from(half) << 16))
    }
    #[inline(always)]
    fn word(x0: f32, _: f32) -> u32 {
        if ROUND { round_bf16(x0).to_bits() } else { x0.to_bits() }
    }
    #[inline(always)]
    unsafe fn pack_along(src: *const f32, dst: *mut u32) {
        for i in 0..N {
            // SAFETY: N floats and N words, by the condition of `Lanes`.
            unsafe { *dst.add(i) = Self::word(*src.add(i), 0.0) };
        }
    }
    #[inline(always)]
    unsafe fn pack_across(src: *const f32, _: usize, dst: *mut u32) {
        // SAFETY: as `pack_along`.
        unsafe { Self::pack_along(src, dst) }
    }
    #[inline(always)]
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize) {
        for r in 0..N {
            for i in 0..N {
                // SAFETY: N rows of N floats and of N words, by the condition of `Lanes`.
                unsafe { *dst.add(i * dst_ld + r) = Self::word(*src.add(r * ld + i), 0.0) };
            }
        }
    }
}

impl Lanes for PortablePairs {
    const N: usize = N;
    const STEP: usize = 2;
    const RAW: bool = false;
    type Sums = [f32; N];
    type Words = [u32; N];

    #[inline(always)]
    unsafe fn zero() -> [f32; N] {
        [0.0; N]
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> [f32; N] {
        // SAFETY: N floats at src, by the condition of `Lanes`.
        unsafe { src.cast::<[f32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn store(dst: *mut f32, sums: [f32; N]) {
        // SAFETY: N floats at dst, by the condition of `Lanes`.
        unsafe { dst.cast::<[f32; N]>().write(sums) }
    }
    #[inline(always)]
    unsafe fn scale_add(factor: f32, x: [f32; N], sums: [f32; N]) -> [f32; N] {
        // SAFETY: the conditions of this function.
        unsafe { PortableF32::<false>::scale_add(factor, x, sums) }
    }
    #[inline(always)]
    unsafe fn words(src: *const u32) -> [u32; N] {
        // SAFETY: N words at src, by the condition of `Lanes`.
        unsafe { src.cast::<[u32; N]>().read() }
    }
    #[inline(always)]
    unsafe fn splat(src: *const u32) -> [u32; N] {
        // SAFETY: one word at src, by the condition of `Lanes`.
        [unsafe { *src }; N]
    }
    /// The order of `vdpbf16ps`: the product at the odd k first, then the even one.
    #[inline(always)]
    unsafe fn mul_add(mut sums: [f32; N], a: [u32; N], b: [u32; N]) -> [f32; N] {
        let odd = |word: u32| f32::from_bits(word & 0xffff_0000);
        let even = |word: u32| f32::from_bits(word << 16);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = mul_add(even(a), even(b), mul_add(odd(a), odd(b), *sum));
        }
        sums
    }
    #[inline(always)]
    unsafe fn words_of_int8(src: *const u8) -> [u32; N] {
        // SAFETY: 2 N bytes at src, by the condition of `Lanes`.
        let [even, odd] = unsafe { src.cast::<[[i8; N]; 2]>().read() };
        // Integers of 8 bits are exact in the upper half of an f32.
        let bits = |x: i8| f32::from(x).to_bits();
        std::array::from_fn(|i| bits(even[i]) >> 16 | bits(odd[i]))
    }
    #[inline(always)]
    unsafe fn words_of_bf16(src: *const u8) -> [u32; N] {
        // SAFETY: 4 N bytes at src, by the condition of `Lanes`.
        unsafe { src.cast::<[u32; N]>().read_unaligned() }
    }
    #[inline(always)]
    fn word(x0: f32, x1: f32) -> u32 {
        u32::from(to_bf16(x0)) | u32::from(to_bf16(x1)) << 16
    }
    #[inline(always)]
    unsafe fn pack_along(src: *const f32, dst: *mut u32) {
        for i in 0..N {
            // SAFETY: 2 N floats and N words, by the condition of `Lanes`.
            unsafe { *dst.add(i) = Self::word(*src.add(2 * i), *src.add(2 * i + 1)) };
        }
    }
    #[inline(always)]
    unsafe fn pack_across(src: *const f32, ld: usize, dst: *mut u32) {
        for i in 0..N {
            // SAFETY: N floats in both rows and N words, by the condition of `Lanes`.
            unsafe { *dst.add(i) = Self::word(*src.add(i), *src.add(ld + i)) };
        }
    }
    #[inline(always)]
    unsafe fn pack_turned(src: *const f32, ld: usize, dst: *mut u32, dst_ld: usize) {
        for r in 0..N {
            for i in 0..N {
                // SAFETY: N rows of 2 N floats, N of N words, by the condition of `Lanes`.
                unsafe {
                    let pair = src.add(r * ld + 2 * i);
                    *dst.add(i * dst_ld + r) = Self::word(*pair, *pair.add(1));
                }
            }
        }
    }
}

type Plain = PortableF32<false>;
type Rounded = PortableF32<true>;
#[cfg(target_arch = "aarch64")]
mod size {
    use super::*;
    // 32 registers of four floats: 16 hold sums.
    kernel!(Plain, 8, 1);
    kernel!(Rounded, 8, 1);
    kernel!(PortablePairs, 8, 1);
}
#[cfg(not(target_arch = "aarch64"))]
mod size {
    use super::*;
    kernel!(Plain, 4, 1);
    kernel!(Rounded, 4, 1);
    kernel!(PortablePairs, 4, 1);
}
