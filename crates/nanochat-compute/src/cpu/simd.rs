//! Which vector instructions this machine has: found once, at run time, never fixed when the
//! program is built.
//!
//! In: nothing. Out: [`Kernels`], the proof that the chosen instructions exist. The only way to
//! make one is to ask the machine, so every `SAFETY` comment of a kernel can point here.

use std::fmt;

/// A family of kernels, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Simd {
    /// All of [`Simd::Avx512Bf16`], and AMX: products of bf16 pairs in tile registers, sums in f32.
    Amx,
    /// AVX-512 F, BW, VL and BF16: products of bf16 pairs, sums in f32.
    Avx512Bf16,
    /// AVX-512 F, BW and VL; bf16 products are f32 products of rounded operands.
    Avx512,
    /// AVX2 and FMA; bf16 as for [`Simd::Avx512`].
    Avx2,
    /// Plain Rust on every machine; the compiler finds the vectors.
    Portable,
}

impl Simd {
    /// The families this machine can run, the fastest first. [`Simd::Portable`] is always there.
    pub fn available() -> Vec<Simd> {
        let all = [Simd::Amx, Simd::Avx512Bf16, Simd::Avx512, Simd::Avx2, Simd::Portable];
        all.into_iter().filter(|simd| simd.is_available()).collect()
    }

    /// Whether this machine has the instructions of this family.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = || {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
        };
        let bf16 = || avx512() && is_x86_feature_detected!("avx512bf16");
        match self {
            Simd::Amx => bf16() && super::gemm::amx::is_available(),
            Simd::Avx512Bf16 => bf16(),
            Simd::Avx512 => avx512(),
            Simd::Avx2 => avx2(),
            Simd::Portable => true,
        }
    }

    /// Whether this machine has the instructions of this family.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Simd::Portable
    }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

impl fmt::Display for Simd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Simd::Amx => "amx",
            Simd::Avx512Bf16 => "avx512-bf16",
            Simd::Avx512 => "avx512",
            Simd::Avx2 => "avx2",
            Simd::Portable => "portable",
        })
    }
}

/// The kernels in use. Holding one proves that the machine has the instructions of
/// [`Kernels::simd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    simd: Simd,
}

impl Kernels {
    /// The fastest kernels of this machine.
    pub fn detect() -> Kernels {
        Kernels { simd: Simd::available()[0] }
    }

    /// The kernels of `simd`, if this machine can run them.
    pub fn new(simd: Simd) -> Option<Kernels> {
        simd.is_available().then_some(Kernels { simd })
    }

    /// All kernels this machine can run, the fastest first: what conformance tests walk through.
    pub fn available() -> Vec<Kernels> {
        Simd::available().into_iter().map(|simd| Kernels { simd }).collect()
    }

    /// Whether products of bf16 are faster than those of f32.
    ///
    /// Intel's `vdpbf16ps` does half as many products a cycle as its f32 multiply-add (162 against 349
    /// GFLOP/s on two cores of an Emerald Rapids, `nanochat bench ops --simd avx512-bf16`,
    /// 2026-11-26); AMD's does twice as many.
    pub fn is_bf16_faster(&self) -> bool {
        match self.simd {
            Simd::Amx => true,
            Simd::Avx512Bf16 => !is_intel(),
            Simd::Avx512 | Simd::Avx2 | Simd::Portable => false,
        }
    }

    /// The family of these kernels.
    pub fn simd(&self) -> Simd {
        self.simd
    }
}
