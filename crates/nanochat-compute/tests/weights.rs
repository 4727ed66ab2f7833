//! Weights in bf16 and int8 on every family of kernels: against the plain reference, and their bits.

mod common;

use common::{random, worst};
use nanochat_compute::cpu::simd::{Kernels, Simd};
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::eager::Eager;
use nanochat_compute::ops::{MatMul, WeightFormat};
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, Tensor};

const FORMATS: [WeightFormat; 2] = [WeightFormat::Bf16, WeightFormat::Int8];

fn tensor(x: &[f32]) -> Tensor {
    Tensor::from_f32(x).expect("small")
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()
}

/// Every family in both precisions, and whether operands are rounded.
fn every_cpu(threads: usize) -> Vec<(Cpu, bool)> {
    let kernels = |simd| Kernels::new(simd).expect("it is available");
    let both = [(Precision::F32, false), (Precision::Bf16, true)];
    let all = Simd::available().into_iter().flat_map(|simd| both.map(|both| (simd, both)));
    all.map(|(simd, (precision, is_bf16))| (Cpu::with(kernels(simd), threads, precision), is_bf16))
        .collect()
}

/// `beta C + x W^T` by a packed weight; C is NaN where it must not be read.
fn product(be: &dyn Backend, x: &[f32], w: &[f32], s: &MatMul, format: WeightFormat) -> Vec<f32> {
    let packed = be.pack(&tensor(w), s.n, s.k, format).expect("a weight").expect("it is packed");
    assert_eq!((packed.n, packed.k, packed.format), (s.n, s.k, format));
    let c = if s.beta == 0.0 { vec![f32::NAN; s.m * s.n] } else { random(s.m * s.n, 9) };
    let c = tensor(&c);
    be.matmul_packed(&c, &tensor(x), &packed, s).expect("operands that fit");
    c.to_vec_f32().expect("f32")
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// One row and many, widths and lengths that no tile divides, sums in one block and in several.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut all = vec![(1, 1, 1), (1, 65, 3), (2, 33, 65), (3, 70, 200), (4, 31, 770), (5, 64, 64)];
    all.extend([(8, 12, 1537), (40, 47, 401), (131, 70, 100), (300, 40, 33)]);
    all
}

#[test]
fn every_family_equals_the_plain_reference() {
    for (m, n, k) in shapes() {
        let (x, mut w) = (random(m * k, 1), random(n * k, 2));
        // Channels of very different size, and one of zeros.
        for (j, row) in w.chunks_mut(k).enumerate() {
            row.iter_mut().for_each(|w| *w *= [1.0, 0.01, 0.3][j % 3]);
        }
        w[n / 2 * k..][..k].fill(0.0);
        for s in [0.0, 1.0, -0.5].map(|beta| MatMul { beta, ..MatMul::forward(m, k, n) }) {
            for format in FORMATS {
                for (cpu, is_bf16) in every_cpu(2) {
                    let a = if is_bf16 { rounded(&x) } else { x.clone() };
                    let want = product(&Reference, &a, &w, &s, format);
                    let got = product(&cpu, &x, &w, &s, format);
                    // A sum of k products below 1 (127 in int8, before the scale of 1 / 127).
                    let limit = 2f32.powi(-24) * (16.0 * k as f32).max(64.0);
                    let apart = worst(&got, &want);
                    let name = Backend::name(&cpu);
                    assert!(apart <= limit, "{name} {s:?} {format:?}: {apart:e} over {limit:e}");
                }
            }
        }
    }
}

#[test]
fn a_row_depends_neither_on_the_other_rows_nor_on_the_threads() {
    let (m, n, k) = (131, 77, 1601);
    let (x, w) = (random(m * k, 3), random(n * k, 4));
    for format in FORMATS {
        let all: Vec<_> = every_cpu(1);
        let two = every_cpu(2).into_iter().zip(every_cpu(5));
        for ((one, _), ((two, _), (five, _))) in all.iter().zip(two) {
            let name = Backend::name(one);
            for beta in [0.0, 1.0] {
                let by = |cpu: &Cpu, m: usize| {
                    let s = MatMul { beta, ..MatMul::forward(m, k, n) };
                    bits(&product(cpu, &x[..m * k], &w, &s, format))
                };
                let whole = by(one, m);
                assert!(by(&two, m) == whole && by(&five, m) == whole, "{name} {format:?} threads");
                for rows in [1, 2, 3, 4, 5, 6, 8, 9, 40, 70] {
                    let got = by(if rows % 2 == 0 { &two } else { &five }, rows);
                    assert!(got == whole[..rows * n], "{name} {format:?} {rows} rows, beta {beta}");
                }
            }
        }
    }
}

#[test]
fn bf16_weights_have_the_bits_of_rounded_weights() {
    for (m, n, k) in shapes() {
        let (x, w) = (random(m * k, 5), random(n * k, 6));
        for s in [MatMul::forward(m, k, n), MatMul::forward(m, k, n).add()] {
            for (cpu, _) in every_cpu(3) {
                let got = product(&cpu, &x, &w, &s, WeightFormat::Bf16);
                let want = tensor(&random(m * n, 9));
                let be: &dyn Backend = &cpu;
                be.matmul(&want, &tensor(&x), &tensor(&rounded(&w)), &s)
                    .expect("operands that fit");
                let want = want.to_vec_f32().expect("f32");
                assert!(bits(&got) == bits(&want), "{} {s:?}", be.name());
            }
        }
    }
}

#[test]
fn weights_that_are_no_numbers_show() {
    let mut w = random(40 * 30, 7);
    w[5 * 30 + 29] = f32::NAN;
    w[39 * 30] = f32::INFINITY;
    for (cpu, _) in every_cpu(2) {
        for m in [1, 20] {
            let s = MatMul::forward(m, 30, 40);
            let got = product(&cpu, &random(m * 30, 8), &w, &s, WeightFormat::Int8);
            let is_bad = |j: usize| j == 5 || j == 39;
            assert!(got.iter().enumerate().all(|(i, c)| c.is_nan() == is_bad(i % 40)));
        }
    }
}

#[test]
fn a_format_takes_the_bytes_that_it_says() {
    let (n, k) = (96, 64);
    let w = tensor(&random(n * k, 10));
    let eager = Box::new(Eager::new(Cpu::open(1, Precision::F32))) as Box<dyn Backend>;
    let cpus = every_cpu(1).into_iter().map(|(cpu, _)| Box::new(cpu) as Box<dyn Backend>);
    for be in cpus.chain([eager, Box::new(Reference)]) {
        let bytes = |format| be.pack(&w, n, k, format).expect("a weight").map(|w| w.bytes);
        assert_eq!(bytes(WeightFormat::F32), None, "{}", be.name());
        assert_eq!(bytes(WeightFormat::Bf16), Some(2 * n * k), "{}", be.name());
        assert_eq!(bytes(WeightFormat::Int8), Some(n * (k + 4)), "{}", be.name());
    }
}

#[test]
fn a_weight_of_another_backend_is_refused() {
    let (n, k) = (20, 30);
    let (w, c, x) = (tensor(&random(n * k, 11)), tensor(&vec![0.0; n]), tensor(&random(k, 12)));
    let s = MatMul::forward(1, k, n);
    let cpus = every_cpu(1);
    for format in FORMATS {
        for (i, (cpu, _)) in cpus.iter().enumerate() {
            let be: &dyn Backend = cpu;
            let packed = be.pack(&w, n, k, format).expect("a weight").expect("it is packed");
            for (j, (other, _)) in cpus.iter().enumerate() {
                let refused = Backend::matmul_packed(other, &c, &x, &packed, &s).is_err();
                assert_eq!(refused, i != j, "{} by {}", be.name(), Backend::name(other));
            }
            assert!(Backend::matmul_packed(&Reference, &c, &x, &packed, &s).is_err());
            let wide = MatMul { n: n + 1, ..s };
            assert!(be.matmul_packed(&c, &x, &packed, &wide).is_err());
        }
    }
}
