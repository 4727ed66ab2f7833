//! One step of Muon. Reference: `ops/muon.rs`. Every pass over the matrix runs on all threads; what
//! follows from its rows (or columns) alone is a number each.

use super::Cpu;
use super::chunks::{CHUNK, each, rows_per_chunk};
use super::math::{LANES, simd_fn};
use crate::ops::muon::POLAR_EXPRESS;
use crate::ops::{Layout, MatMul, Muon};

/// Columns whose sums one task makes.
const COLUMNS: usize = 64;

simd_fn! {
    fn nesterov(x: &mut [f32], buf: &mut [f32], g: &[f32], mu: f32) {
        for ((x, buf), g) in x.iter_mut().zip(buf).zip(g) {
            *buf += (g - *buf) * (1.0 - mu);
            *x = g + (*buf - g) * mu;
        }
    }
}

simd_fn! {
    /// `sums[r] = sum_j x[r, j]^2`, in f64 until it is whole.
    fn row_squares(sums: &mut [f32], x: &[f32], n: usize) {
        for (sum, row) in sums.iter_mut().zip(x.chunks_exact(n)) {
            let mut lanes = [0f64; LANES];
            let chunks = row.chunks_exact(LANES);
            let tail: f64 = chunks.remainder().iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            for x in chunks {
                for j in 0..LANES {
                    lanes[j] += f64::from(x[j]) * f64::from(x[j]);
                }
            }
            *sum = (lanes.iter().sum::<f64>() + tail) as f32;
        }
    }
}

simd_fn! {
    /// `sums[j] = sum_i x[i, first + j]^2` for at most [`COLUMNS`] columns.
    fn column_squares(sums: &mut [f32], x: &[f32], n: usize, first: usize) {
        let mut lanes = [0f64; COLUMNS];
        for row in x.chunks_exact(n) {
            for (lane, x) in lanes.iter_mut().zip(&row[first..first + sums.len()]) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        for (sum, lane) in sums.iter_mut().zip(lanes) {
            *sum = lane as f32;
        }
    }
}

simd_fn! {
    fn scale_rows(x: &mut [f32], factors: &[f32], n: usize) {
        for (row, factor) in x.chunks_exact_mut(n).zip(factors) {
            for x in row {
                *x *= factor;
            }
        }
    }
}

simd_fn! {
    /// `x = a * x + b * y`.
    fn blend(x: &mut [f32], y: &[f32], a: f32, b: f32) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = a * *x + b * y;
        }
    }
}

simd_fn! {
    /// `p -= lr x + decay p [x p >= 0]` with rows of x times `factor`.
    fn update_row(p: &mut [f32], x: &[f32], factor: f32, lr: f32, decay: f32) {
        for (p, x) in p.iter_mut().zip(x) {
            let x = x * factor;
            let pull = if x * *p >= 0.0 { decay * *p } else { 0.0 };
            *p -= lr * x + pull;
        }
    }
}

simd_fn! {
    /// The same with a factor for each column.
    fn update_columns(p: &mut [f32], x: &[f32], factors: &[f32], lr: f32, decay: f32) {
        for ((p, x), factor) in p.iter_mut().zip(x).zip(factors) {
            let x = x * factor;
            let pull = if x * *p >= 0.0 { decay * *p } else { 0.0 };
            *p -= lr * x + pull;
        }
    }
}

pub(super) fn muon(
    cpu: &Cpu,
    p: &mut [f32],
    buf: &mut [f32],
    second: &mut [f32],
    scratch: &mut [f32],
    g: &[f32],
    s: &Muon,
) {
    let (x, rest) = scratch.split_at_mut(s.m * s.n);
    each(&cpu.pool, [(&mut *x, CHUNK), (buf, CHUNK)], |i, [x, buf]| {
        let g = &g[i * CHUNK..][..x.len()];
        nesterov(&cpu.kernels, x, buf, g, s.momentum);
    });
    equalise_rows(cpu, x, s);
    orthogonalise(cpu, x, rest, s);
    let factors = variance_factors(cpu, x, second, s);
    let (n, by_row, rows) = (s.n, s.m >= s.n, rows_per_chunk(s.n));
    let lr = s.lr * (s.m as f32 / s.n as f32).max(1.0).sqrt();
    let x = &*x;
    each(&cpu.pool, [(p, rows * n)], |i, [p]| {
        let x = &x[i * rows * n..][..p.len()];
        for (r, (p, x)) in p.chunks_exact_mut(n).zip(x.chunks_exact(n)).enumerate() {
            if by_row {
                update_row(&cpu.kernels, p, x, factors[i * rows + r], lr, lr * s.wd);
            } else {
                update_columns(&cpu.kernels, p, x, &factors, lr, lr * s.wd);
            }
        }
    });
}

fn squares_of_rows(cpu: &Cpu, x: &[f32], m: usize, n: usize) -> Vec<f32> {
    let (mut sums, rows) = (vec![0.0; m], rows_per_chunk(n));
    each(&cpu.pool, [(&mut sums, rows)], |i, [sums]| {
        row_squares(&cpu.kernels, sums, &x[i * rows * n..][..sums.len() * n], n);
    });
    sums
}

fn squares_of_columns(cpu: &Cpu, x: &[f32], n: usize) -> Vec<f32> {
    let mut sums = vec![0.0; n];
    each(&cpu.pool, [(&mut sums, COLUMNS)], |i, [sums]| {
        column_squares(&cpu.kernels, sums, x, n, i * COLUMNS);
    });
    sums
}

/// Rows of equal norm, and the matrix of norm just below 1: step 2 of the reference.
fn equalise_rows(cpu: &Cpu, x: &mut [f32], s: &Muon) {
    let squares = squares_of_rows(cpu, x, s.m, s.n);
    let total: f64 = squares.iter().copied().map(f64::from).sum();
    let target = total.sqrt() / (s.m as f64).sqrt();
    let scale = |square: f32| target / f64::from(square).sqrt().max(1e-6);
    let equal: f64 = squares.iter().map(|q| f64::from(*q) * scale(*q) * scale(*q)).sum();
    let unit = 1.0 / (equal.sqrt() * 1.01 + 1e-6);
    let factors: Vec<f32> = squares.iter().map(|q| (scale(*q) * unit) as f32).collect();
    let (n, rows) = (s.n, rows_per_chunk(s.n));
    each(&cpu.pool, [(x, rows * n)], |i, [x]| {
        scale_rows(&cpu.kernels, x, &factors[i * rows..], n);
    });
}

/// Step 3 of the reference. A Gram matrix is symmetric, and so is its square.
fn orthogonalise(cpu: &Cpu, x: &mut [f32], rest: &mut [f32], s: &Muon) {
    let (m, n, r) = (s.m, s.n, s.m.min(s.n));
    let (y, rest) = rest.split_at_mut(m * n);
    let (gram, rest) = rest.split_at_mut(r * r);
    let poly = &mut rest[..r * r];
    for (a, b, c) in POLAR_EXPRESS {
        let (layout, k) = if m > n { (Layout::Tn, m) } else { (Layout::Nt, n) };
        cpu.symmetric_product(gram, x, x, &MatMul { m: r, n: r, k, layout, beta: 0.0 });
        let square = MatMul { m: r, n: r, k: r, layout: Layout::Nn, beta: 0.0 };
        cpu.symmetric_product(poly, gram, gram, &square);
        add_to(cpu, poly, c, gram, b);
        let shape = MatMul { m, n, k: r, layout: Layout::Nn, beta: 0.0 };
        if m > n {
            cpu.product(y, x, poly, &shape);
        } else {
            cpu.product(y, poly, x, &shape);
        }
        add_to(cpu, x, a, y, 1.0);
    }
}

/// `x = a * x + b * y`.
fn add_to(cpu: &Cpu, x: &mut [f32], a: f32, y: &[f32], b: f32) {
    each(&cpu.pool, [(x, CHUNK)], |i, [x]| {
        blend(&cpu.kernels, x, &y[i * CHUNK..][..x.len()], a, b);
    });
}

/// Steps 4 and 5 of the reference as one factor a row (m >= n) or a column of X; `second` decays.
fn variance_factors(cpu: &Cpu, x: &[f32], second: &mut [f32], s: &Muon) -> Vec<f32> {
    let (squares, size) = if s.m >= s.n {
        (squares_of_rows(cpu, x, s.m, s.n), s.n as f64)
    } else {
        (squares_of_columns(cpu, x, s.n), s.m as f64)
    };
    let total: f64 = squares.iter().copied().map(f64::from).sum();
    let scale = (s.m.min(s.n) as f64).sqrt() / total.sqrt().max(1e-6);
    let old = total.sqrt() * scale;
    let mut new = 0f64;
    for (second, square) in second.iter_mut().zip(&squares) {
        let square = f64::from(*square) * scale * scale;
        *second += ((square / size) as f32 - *second) * (1.0 - s.beta2);
        new += square / f64::from(second.max(1e-10));
    }
    let keep = (scale * old / new.sqrt().max(1e-10)) as f32;
    second.iter().map(|second| keep / second.max(1e-10).sqrt()).collect()
}
