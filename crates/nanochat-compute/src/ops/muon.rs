//! Muon: momentum, orthogonalised, variance-reduced, one step of one matrix.

use super::matmul::{Layout, MatMul, matmul};

/// Rates of one [`muon`] step.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// Rows of the matrix.
    pub m: usize,
    /// Columns of the matrix.
    pub n: usize,
    /// Learning rate, before the factor sqrt(max(1, m/n)).
    pub lr: f32,
    /// Nesterov momentum mu.
    pub momentum: f32,
    /// Decay of the variance buffer.
    pub beta2: f32,
    /// Cautious weight decay.
    pub wd: f32,
}

impl Muon {
    /// Elements of the variance buffer: one a row when m >= n, else one a column.
    pub fn second_len(&self) -> usize {
        if self.m >= self.n { self.m } else { self.n }
    }

    /// Floats of the scratch buffer: X, a product as large, and two Gram matrices.
    pub fn scratch_len(&self) -> usize {
        let r = self.m.min(self.n);
        2 * self.m * self.n + 2 * r * r
    }
}

/// Coefficients (a, b, c) of the five Polar Express iterations. Source: arXiv:2505.16932.
#[allow(clippy::excessive_precision)] // As printed by the source; the compiler rounds them to f32.
pub const POLAR_EXPRESS: [(f32, f32, f32); 5] = [
    (8.156_554_524_902_461, -22.483_292_925_577_95, 15.878_769_915_207_462),
    (4.042_929_935_166_739, -2.808_917_465_908_714, 0.500_017_845_105_131_6),
    (3.891_667_802_292_660_7, -2.772_484_153_217_685, 0.506_064_817_850_339_3),
    (3.285_753_657_755_655, -2.368_129_493_342_537_6, 0.464_490_242_330_031_06),
    (2.346_541_325_859_637_7, -1.709_782_838_268_708_1, 0.423_235_511_693_053_23),
];

/// One step, in place.
///
/// 1. `buf = lerp(buf, g, 1-mu)`, `u = lerp(g, buf, mu)` (Nesterov).
/// 2. Rows of `u` rescaled to norm `|u|_F / sqrt(m)` (MuonEq, arXiv:2603.28254), then
///    `X = u / (1.01 |u|_F + 1e-6)`.
/// 3. Five times with (a, b, c) of [`POLAR_EXPRESS`]: `A = X Xᵀ`, `X = aX + (bA + cA²) X` (m <= n;
///    from the other side when m > n).
/// 4. Rescaled to `|X|_F = sqrt(min(m, n))` (Muon+, arXiv:2602.21545).
/// 5. Variance reduction along the longer axis (NorMuon, arXiv:2510.05491): `second` decays towards the
///    mean square, `X *= s old/new` with `s = rsqrt(second)`, so that the norm stays.
/// 6. `p -= lr X + lr wd p [X p >= 0]`, lr times `sqrt(max(1, m/n))`.
///
/// Shapes: `p`, `buf`, `g` (m, n); `second` ([`Muon::second_len`]); `scratch` ([`Muon::scratch_len`]).
/// Plain reference; never optimise it.
pub fn muon(
    p: &mut [f32],
    buf: &mut [f32],
    second: &mut [f32],
    scratch: &mut [f32],
    g: &[f32],
    s: &Muon,
) {
    let (x, rest) = scratch.split_at_mut(s.m * s.n);
    for i in 0..x.len() {
        buf[i] += (g[i] - buf[i]) * (1.0 - s.momentum);
        x[i] = g[i] + (buf[i] - g[i]) * s.momentum;
    }
    equalise_rows(x, s);
    let scale = 1.0 / (norm2(x) * 1.01 + 1e-6);
    x.iter_mut().for_each(|x| *x *= scale);
    orthogonalise(x, rest, s);
    let scale = (s.m.min(s.n) as f32).sqrt() / norm2(x).max(1e-6);
    x.iter_mut().for_each(|x| *x *= scale);
    reduce_variance(x, second, s);
    let lr = s.lr * (s.m as f32 / s.n as f32).max(1.0).sqrt();
    for (p, x) in p.iter_mut().zip(x) {
        let decay = if *x * *p >= 0.0 { lr * s.wd * *p } else { 0.0 };
        *p -= lr * *x + decay;
    }
}

/// Euclidean norm, summed in f64.
fn norm2(x: &[f32]) -> f32 {
    x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
}

/// Step 2 of [`muon`]: every row to the norm `|X|_F / sqrt(m)`.
fn equalise_rows(x: &mut [f32], s: &Muon) {
    let target = norm2(x) / (s.m as f32).sqrt();
    for row in x.chunks_exact_mut(s.n) {
        let scale = target / norm2(row).max(1e-6);
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Step 3 of [`muon`]: five iterations on X.
fn orthogonalise(x: &mut [f32], rest: &mut [f32], s: &Muon) {
    let (m, n, r) = (s.m, s.n, s.m.min(s.n));
    let (y, rest) = rest.split_at_mut(m * n);
    let (gram, poly) = rest.split_at_mut(r * r);
    let poly = &mut poly[..r * r];
    for (a, b, c) in POLAR_EXPRESS {
        let (layout, k) = if m > n { (Layout::Tn, m) } else { (Layout::Nt, n) };
        matmul(gram, x, x, &MatMul { m: r, n: r, k, layout, beta: 0.0 });
        matmul(poly, gram, gram, &MatMul { m: r, n: r, k: r, layout: Layout::Nn, beta: 0.0 });
        for (p, g) in poly.iter_mut().zip(gram.iter()) {
            *p = b * g + c * *p;
        }
        let shape = MatMul { m, n, k: r, layout: Layout::Nn, beta: 0.0 };
        if m > n {
            matmul(y, x, poly, &shape)
        } else {
            matmul(y, poly, x, &shape)
        }
        for (x, y) in x.iter_mut().zip(y.iter()) {
            *x = a * *x + y;
        }
    }
}

/// Step 5 of [`muon`]: `v = mean(X^2)` along the longer axis (the last when m >= n), `second`
/// decays towards it, `X` is divided by its root and rescaled to the norm it had.
fn reduce_variance(x: &mut [f32], second: &mut [f32], s: &Muon) {
    let (m, n) = (s.m, s.n);
    let by_row = m >= n;
    let size = if by_row { n } else { m } as f64;
    let mut mean = vec![0f64; s.second_len()];
    for (i, x) in x.iter().enumerate() {
        mean[if by_row { i / n } else { i % n }] += f64::from(*x) * f64::from(*x) / size;
    }
    let old = (mean.iter().sum::<f64>() * size).sqrt();
    let mut new = 0f64;
    for (second, mean) in second.iter_mut().zip(&mean) {
        *second += (*mean as f32 - *second) * (1.0 - s.beta2);
        new += mean * size / f64::from(second.max(1e-10));
    }
    let keep = (old / new.sqrt().max(1e-10)) as f32;
    for (i, x) in x.iter_mut().enumerate() {
        let second = second[if by_row { i / n } else { i % n }];
        *x *= keep / second.max(1e-10).sqrt();
    }
}
