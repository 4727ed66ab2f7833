//! Weights made ready for generation: in how many bits they are kept, and in which order.
//!
//! In bf16 a weight is its nearest bf16. In int8 every row of W, an output channel, is 255 steps of
//! one scale: `scale[n] = max_k |w[n,k]| / 127`, `q[n,k] = w[n,k] / scale[n]` to the nearest integer,
//! ties to even. Integers of 8 bits are exact in bf16, so the products are those of bf16 or f32, and
//! the scale multiplies their sum.

use half::bf16;

use super::matmul::MatMul;

/// In what form the weights of the linear layers and the head are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// bf16 where products round operands to bf16 anyway and reading half the bytes is faster, else
    /// f32: never a result other than f32's.
    #[default]
    Auto,
    /// As they lie.
    F32,
    /// Rounded to the nearest bf16: 2 bytes a weight.
    Bf16,
    /// Symmetric integers with a scale for each output channel: 1 byte a weight.
    Int8,
}

impl WeightFormat {
    /// `int8`.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::Auto => "auto",
            WeightFormat::F32 => "f32",
            WeightFormat::Bf16 => "bf16",
            WeightFormat::Int8 => "int8",
        }
    }
}

/// A weight in the order in which a device reads it, made once for many products.
pub struct PackedWeight {
    /// Columns of the product: rows of the weight.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Bytes it takes: what a product reads of it.
    pub bytes: usize,
    /// What a weight is kept as: bf16 or int8.
    pub format: WeightFormat,
    /// Where it lies on a device of its own; none in host memory.
    pub address: Option<u64>,
    /// Whatever the device made of it.
    pub(crate) inner: Box<dyn std::any::Any>,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({} x {}, {})", self.n, self.k, self.format.name())
    }
}

/// One row in int8: writes `q`, returns its scale.
///
/// `scale = max |w| / 127`; `q[i] = w[i] / scale` to the nearest integer, ties to even, within -127
/// and 127. A row of zeros (or of numbers so small that the scale is 0) has scale 0 and zeros; a row
/// with a NaN or an infinity has scale NaN, and so have its products. Panics unless the lengths are
/// equal.
#[inline(always)]
pub fn quantize_row(q: &mut [i8], w: &[f32]) -> f32 {
    assert_eq!(q.len(), w.len(), "an integer a weight");
    let largest = w.iter().fold(0f32, |m, x| m.max(x.abs()));
    let is_finite = w.iter().all(|x| x.is_finite());
    let scale = largest / 127.0;
    if !is_finite || scale == 0.0 {
        q.fill(0);
        return if is_finite { 0.0 } else { f32::NAN };
    }
    for (q, w) in q.iter_mut().zip(w) {
        *q = (w / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    scale
}

/// A weight as the plain reference keeps it.
pub(crate) enum PlainWeight {
    /// (n, k)
    Bf16(Vec<bf16>),
    /// (n, k) integers and (n) scales.
    Int8(Vec<i8>, Vec<f32>),
}

/// The plain reference of [`crate::Backend::pack`]: none where a weight is read as it lies.
pub(crate) fn pack(w: &[f32], n: usize, k: usize, format: WeightFormat) -> Option<PackedWeight> {
    let (inner, bytes) = match format {
        WeightFormat::Auto | WeightFormat::F32 => return None,
        WeightFormat::Bf16 => {
            (PlainWeight::Bf16(w.iter().map(|&x| bf16::from_f32(x)).collect()), 2 * n * k)
        }
        WeightFormat::Int8 => {
            let (mut q, mut scales) = (vec![0; n * k], vec![0.0; n]);
            for ((q, w), scale) in q.chunks_mut(k).zip(w.chunks(k)).zip(&mut scales) {
                *scale = quantize_row(q, w);
            }
            (PlainWeight::Int8(q, scales), n * (k + 4))
        }
    };
    Some(PackedWeight { n, k, bytes, format, address: None, inner: Box::new(inner) })
}

/// `C[i,j] = beta * C[i,j] + scale[j] * sum_k A[i,k] * q[j,k]`, sums in k order in f32; for bf16 q is
/// the rounded weight, and there is no scale.
///
/// Shapes: `c` (m, n), `a` (m, k). False when the weight was packed by another backend. Plain
/// reference; never optimise it.
pub(crate) fn matmul_packed(c: &mut [f32], a: &[f32], b: &PackedWeight, s: &MatMul) -> bool {
    let Some(b) = b.inner.downcast_ref::<PlainWeight>() else { return false };
    for i in 0..s.m {
        for j in 0..s.n {
            let mut sum = 0.0;
            for k in 0..s.k {
                let q = match b {
                    PlainWeight::Bf16(w) => w[j * s.k + k].to_f32(),
                    PlainWeight::Int8(q, _) => f32::from(q[j * s.k + k]),
                };
                sum += a[i * s.k + k] * q;
            }
            if let PlainWeight::Int8(_, scales) = b {
                sum *= scales[j];
            }
            let c = &mut c[i * s.n + j];
            *c = if s.beta == 0.0 { sum } else { s.beta * *c + sum };
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_in_int8_by_hand() {
        let mut q = [9; 6];
        // The scale is 2: halves go to the even neighbour, and so does what lies between 2 and 3.
        let scale = quantize_row(&mut q, &[254.0, -254.0, 1.0, 3.0, -5.0, 4.8]);
        assert_eq!((scale, q), (2.0, [127, -127, 0, 2, -2, 2]));
    }

    #[test]
    fn rows_without_a_scale() {
        let mut q = [9; 2];
        assert_eq!((quantize_row(&mut q, &[0.0, -0.0]), q), (0.0, [0, 0]));
        assert_eq!((quantize_row(&mut q, &[1e-45, 0.0]), q), (0.0, [0, 0]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut q = [9; 2];
            assert!(quantize_row(&mut q, &[1.0, bad]).is_nan());
            assert_eq!(q, [0, 0]);
        }
        // The largest float has a scale that is finite; subnormal scales are coarse, not wrong.
        assert_eq!((quantize_row(&mut q, &[f32::MAX, -f32::MAX]), q).1, [127, -127]);
        let scale = quantize_row(&mut q, &[3e-43, -3e-43]);
        assert!((f32::from(q[0]) * scale - 3e-43).abs() <= 3e-43 / 2.0 && q[1] == -q[0]);
    }

    #[test]
    fn a_weight_is_within_half_a_step() {
        let w: Vec<f32> = (0..1000).map(|i| ((i * i) as f32).sin()).collect();
        let mut q = vec![0; w.len()];
        let scale = quantize_row(&mut q, &w);
        let off = |(q, w): (&i8, &f32)| (f32::from(*q) * scale - w).abs();
        let worst = q.iter().zip(&w).map(off).fold(0.0, f32::max);
        assert!(worst <= scale * 0.5001, "{worst} of {scale}");
        assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127));
    }
}
