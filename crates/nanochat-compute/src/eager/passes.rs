//! The primitives: each reads its operands once and writes its result once, on all threads, as a
//! kernel of eager PyTorch does.
//!
//! In: slices. Out: newly allocated memory ([`Fresh`]), or an output that is given, as with torch's
//! `out=`. Primitives whose name ends in `_` work in place, as in torch.

use std::iter::repeat_n;

use crate::cpu::Cpu;
use crate::cpu::chunks::{CHUNK, Piece, each, fresh, map, overwrite, rows_per_chunk};
use crate::cpu::math::{self, LANES, simd_fn, sum_lanes};

/// Where a primitive writes.
pub(super) trait Out {
    /// What is left in the caller's hands.
    type Written;
    /// `f(i, piece)` for every piece of `chunk` floats of the output's `len`.
    fn write(
        self,
        cpu: &Cpu,
        len: usize,
        chunk: usize,
        f: impl Fn(usize, &mut Piece<'_>) + Sync,
    ) -> Self::Written;
}

/// Memory allocated for this one result and freed with it: torch's CPU allocator keeps nothing
/// either.
pub(super) struct Fresh;

impl Out for Fresh {
    type Written = Vec<f32>;

    fn write(
        self,
        cpu: &Cpu,
        len: usize,
        chunk: usize,
        f: impl Fn(usize, &mut Piece<'_>) + Sync,
    ) -> Vec<f32> {
        fresh(&cpu.pool, len, chunk, f)
    }
}

impl Out for &mut [f32] {
    type Written = ();

    fn write(self, cpu: &Cpu, len: usize, chunk: usize, f: impl Fn(usize, &mut Piece<'_>) + Sync) {
        assert_eq!(self.len(), len, "the output has the length of the result");
        overwrite(&cpu.pool, self, chunk, f);
    }
}

/// Primitives element by element: `fn on tensors = on slices(operands; number) { element }`.
macro_rules! elementwise {
    ($(
        $(#[$doc:meta])*
        fn $name:ident = $slice:ident($x:ident $(, $y:ident)? $(; $a:ident)?) { $element:expr }
    )*) => {$(
        simd_fn! {
            pub(super) fn $slice(out: &mut Piece<'_>, $x: &[f32], $($y: &[f32],)? $($a: f32)?) {
                let operands = $x.iter()$(.zip($y))?;
                out.extend(operands.map(|elementwise!(@ $x $($y)?)| $element));
            }
        }
        $(#[$doc])*
        pub(super) fn $name<O: Out>(
            cpu: &Cpu, out: O, $x: &[f32], $($y: &[f32],)? $($a: f32)?
        ) -> O::Written {
            out.write(cpu, $x.len(), CHUNK, |i, out| {
                let at = i * CHUNK..i * CHUNK + out.len();
                $slice(&cpu.kernels, out, &$x[at.clone()], $(&$y[at.clone()],)? $($a)?);
            })
        }
    )*};
    (@ $x:ident) => { &$x };
    (@ $x:ident $y:ident) => { (&$x, &$y) };
}

elementwise! {
    /// `x + y`.
    fn add = add_slices(x, y) { x + y }
    /// `x - y`.
    fn sub = sub_slices(x, y) { x - y }
    /// `x y`.
    fn mul = mul_slices(x, y) { x * y }
    /// `x + a`.
    fn shift = shift_slice(x; a) { x + a }
    /// `a x`.
    fn scale = scale_slice(x; a) { a * x }
    /// `x / a`.
    fn div = div_slice(x; a) { x / a }
    /// `-x`.
    fn neg = neg_slice(x) { -x }
    /// `x`: what torch's `pow(x, 1)` is.
    fn copy = copy_slice(x) { x }
    /// `1 / sqrt x`.
    fn rsqrt = rsqrt_slice(x) { 1.0 / x.sqrt() }
    /// `1 / (1 + e^-x)`.
    fn sigmoid = sigmoid_slice(x) { math::sigmoid::<FMA>(x) }
    /// `d g (1 - g)`, for g = sigmoid.
    fn sigmoid_backward = sigmoid_backward_slices(d, g) { d * (1.0 - g) * g }
    /// `tanh x`.
    fn tanh = tanh_slice(x) { math::tanh::<FMA>(x) }
    /// `d (1 - t^2)`, for t = tanh.
    fn tanh_backward = tanh_backward_slices(d, t) { d * (1.0 - t * t) }
    /// `d` where r > 0, else 0, for r = relu.
    fn threshold_backward = threshold_backward_slices(d, r) { if r > 0.0 { d } else { 0.0 } }
}

simd_fn! {
    fn relu_slice(x: &mut [f32]) {
        for x in x {
            *x = x.max(0.0);
        }
    }
}

/// `x = max(x, 0)`.
pub(super) fn relu_(cpu: &Cpu, x: &mut [f32]) {
    each(&cpu.pool, [(x, CHUNK)], |_, [x]| relu_slice(&cpu.kernels, x));
}

simd_fn! {
    fn scale_in_place(x: &mut [f32], a: f32) {
        for x in x {
            *x *= a;
        }
    }
}

/// `x = a x`.
pub(super) fn scale_(cpu: &Cpu, x: &mut [f32], a: f32) {
    each(&cpu.pool, [(x, CHUNK)], |_, [x]| scale_in_place(&cpu.kernels, x, a));
}

simd_fn! {
    fn add_in_place(out: &mut [f32], x: &[f32], beta: f32) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = beta * *o + x;
        }
    }
}

/// `out = beta out + x`: how autograd adds to a gradient, for beta = 1.
pub(super) fn add_(cpu: &Cpu, out: &mut [f32], x: &[f32], beta: f32) {
    assert_eq!(out.len(), x.len());
    each(&cpu.pool, [(out, CHUNK)], |i, [out]| {
        let x = &x[i * CHUNK..][..out.len()];
        add_in_place(&cpu.kernels, out, x, beta);
    });
}

/// Zeros: torch's `zeros`, which writes them.
pub(super) fn zeros(cpu: &Cpu, len: usize) -> Vec<f32> {
    Fresh.write(cpu, len, CHUNK, |_, out| out.extend(repeat_n(0.0, out.len())))
}

/// `f(n, out)` for every row n: it writes the `c` floats of the row. Gathers, slices, and what runs
/// row by row.
pub(super) fn rows<O: Out>(
    cpu: &Cpu,
    out: O,
    n: usize,
    c: usize,
    f: impl Fn(usize, &mut Piece<'_>) + Sync,
) -> O::Written {
    let rows = rows_per_chunk(c);
    out.write(cpu, n * c, rows * c, |i, out| {
        for n in i * rows..i * rows + out.len() / c {
            f(n, out);
        }
    })
}

simd_fn! {
    fn scale_row_slices(out: &mut Piece<'_>, x: &[f32], r: &[f32], c: usize) {
        for (x, r) in x.chunks_exact(c).zip(r) {
            out.extend(x.iter().map(|x| x * r));
        }
    }
}

/// `x[n,c] r[n]`.
pub(super) fn scale_rows<O: Out>(cpu: &Cpu, out: O, x: &[f32], r: &[f32], c: usize) -> O::Written {
    let rows = rows_per_chunk(c);
    out.write(cpu, x.len(), rows * c, |i, out| {
        let x = &x[i * rows * c..][..out.len()];
        scale_row_slices(&cpu.kernels, out, x, &r[i * rows..], c);
    })
}

simd_fn! {
    fn spread_slice(out: &mut Piece<'_>, r: &[f32], c: usize, by: f32) {
        for r in r {
            out.extend(repeat_n(r / by, c));
        }
    }
}

/// `r[n] / by` in every column: a row's gradient, spread over what it was the mean of.
pub(super) fn spread<O: Out>(cpu: &Cpu, out: O, r: &[f32], c: usize, by: f32) -> O::Written {
    let rows = rows_per_chunk(c);
    out.write(cpu, r.len() * c, rows * c, |i, out| {
        let r = &r[i * rows..][..out.len() / c];
        spread_slice(&cpu.kernels, out, r, c, by);
    })
}

#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().sum();
    for x in chunks {
        for j in 0..LANES {
            acc[j] += x[j];
        }
    }
    sum_lanes(acc) + tail
}

simd_fn! {
    fn sum_rows_slice(out: &mut Piece<'_>, x: &[f32], c: usize, by: f32) {
        out.extend(x.chunks_exact(c).map(|x| sum(x) / by));
    }
}

/// `sum_c x[n,c] / by`: torch's `sum` for by = 1, its `mean` for by = c.
pub(super) fn sum_rows<O: Out>(cpu: &Cpu, out: O, x: &[f32], c: usize, by: f32) -> O::Written {
    let rows = rows_per_chunk(c);
    out.write(cpu, x.len() / c, rows, |i, out| {
        let x = &x[i * rows * c..][..out.len() * c];
        sum_rows_slice(&cpu.kernels, out, x, c, by);
    })
}

simd_fn! {
    fn sum_slice(x: &[f32]) -> f32 {
        sum(x)
    }
}

/// `sum_i x[i]`, chunks added in their order.
pub(super) fn sum_all(cpu: &Cpu, x: &[f32]) -> f32 {
    let parts = map(&cpu.pool, x.len().div_ceil(CHUNK), |i| {
        let x = &x[i * CHUNK..x.len().min((i + 1) * CHUNK)];
        [f64::from(sum_slice(&cpu.kernels, x))]
    });
    parts.iter().map(|[part]| part).sum::<f64>() as f32
}
