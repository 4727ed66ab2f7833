//! Sums in lanes, exp and tanh that the compiler can vectorise, and functions compiled once for each
//! family of instructions.

/// Lanes of a sum: the same on every machine, so that every machine sums in the same order.
pub(crate) const LANES: usize = 16;

/// Compiles a function's body for AVX2, for AVX-512 and plainly; the first argument chooses.
///
/// The body must not call other functions than `#[inline(always)]` ones for the features to reach them.
/// In it, `FMA` says whether a multiply-add is one instruction.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(kernels: &$crate::cpu::simd::Kernels, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            #[allow(clippy::extra_unused_type_parameters)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body::<true>($($arg),*)
            }
            match kernels.simd() {
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Simd::Amx
                | $crate::cpu::simd::Simd::Avx512Bf16
                | $crate::cpu::simd::Simd::Avx512 => {
                    // SAFETY: a `Kernels` with this family exists only where the machine has it.
                    unsafe { avx512($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Simd::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2($($arg),*) }
                }
                _ => body::<false>($($arg),*),
            }
        }
    };
}
pub(crate) use simd_fn;

/// Sums the lanes in a fixed tree.
#[inline(always)]
pub(crate) fn sum_lanes(acc: [f32; LANES]) -> f32 {
    let mut a = acc;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] += a[i + width];
        }
        width /= 2;
    }
    a[0]
}

/// `sum_i x[i] y[i]` in lanes.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            acc[i] += x[i] * y[i];
        }
    }
    sum_lanes(acc) + tail
}

/// `a b + c`, rounded once where that is one instruction.
#[inline(always)]
fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for any x that is not NaN: relative error below 2e-7; 0 below -87.3, large but finite above 88.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of degree 7 in r, and n into the exponent bits.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = x.clamp(-87.3, 88.3);
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -0.693_359_4, x);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let p = 1.0 / 5040.0;
    let p = mul_add::<FMA>(p, r, 1.0 / 720.0);
    let p = mul_add::<FMA>(p, r, 1.0 / 120.0);
    let p = mul_add::<FMA>(p, r, 1.0 / 24.0);
    let p = mul_add::<FMA>(p, r, 1.0 / 6.0);
    let p = mul_add::<FMA>(p, r, 0.5);
    let p = mul_add::<FMA>(p * r, r, r) + 1.0;
    let bits = (shifted.to_bits().wrapping_sub(ROUND.to_bits())).wrapping_add(127) << 23;
    p * f32::from_bits(bits)
}

/// `tanh x`: absolute error below 2e-7.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<FMA>(2.0 * x.clamp(-20.0, 20.0)) + 1.0)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn are_exact<const FMA: bool>() {
        let (exp, tanh) = (exp::<FMA>, tanh::<FMA>);
        for i in -8_700..8_800 {
            let x = i as f32 * 0.01 + 0.003;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) / want - 1.0).abs() < 2e-7, "exp({x}) = {}", exp(x));
        }
        for i in -3_000..3_000 {
            let x = i as f32 * 0.004;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "tanh({x})");
        }
        assert_eq!((tanh(0.0), tanh(1e30), tanh(-1e30)), (0.0, 1.0, -1.0));
        assert!(exp(-1e30) < 1.3e-38 && exp(f32::NEG_INFINITY) < 1.3e-38);
    }

    #[test]
    fn exp_and_tanh_are_as_exact_as_they_say() {
        are_exact::<false>();
        are_exact::<true>();
    }
}
