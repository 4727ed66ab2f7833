//! Products against the triple loop in f64, on every kernel of this machine.

use super::portable::round_bf16;
use super::*;
use crate::cpu::simd::Simd;

/// Numbers in [-1, 1), the same in every run.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn naive(g: &Gemm, multiply: Multiply, c: &mut [f32], a: &[f32], b: &[f32]) {
    let round = |x: f32| f64::from(if multiply == Multiply::Bf16 { round_bf16(x) } else { x });
    for i in 0..g.m {
        for j in 0..g.n {
            let mut sum = 0.0;
            for p in 0..g.k {
                let x = if g.layout == Layout::Tn { a[p * g.lda + i] } else { a[i * g.lda + p] };
                let y = if g.layout == Layout::Nt { b[j * g.ldb + p] } else { b[p * g.ldb + j] };
                sum += round(x) * round(y);
            }
            let old = if g.beta == 0.0 { 0.0 } else { f64::from(g.beta * c[i * g.ldc + j]) };
            c[i * g.ldc + j] = (old + sum) as f32;
        }
    }
}

fn shapes() -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![(1, 1, 1), (1, 65, 3), (2, 12, 770), (3, 33, 65), (4, 64, 800)];
    shapes.extend([(5, 1, 2), (7, 17, 31), (12, 12, 12), (29, 47, 401), (64, 96, 769)]);
    shapes.extend([(131, 70, 100), (6, 16, 384), (14, 32, 1537), (65, 3, 2000), (97, 31, 15)]);
    shapes
}

fn case(pool: &Pool, kernels: &Kernels, multiply: Multiply, g: Gemm) {
    let (a_rows, a_cols) = if g.layout == Layout::Tn { (g.k, g.m) } else { (g.m, g.k) };
    let (b_rows, b_cols) = if g.layout == Layout::Nt { (g.n, g.k) } else { (g.k, g.n) };
    let a = random((a_rows - 1) * g.lda + a_cols, 1);
    let b = random((b_rows - 1) * g.ldb + b_cols, 2);
    let mut c = random((g.m - 1) * g.ldc + g.n, 3);
    if g.beta == 0.0 {
        // Old values of C must not be read.
        for i in 0..g.m {
            c[i * g.ldc..i * g.ldc + g.n].fill(f32::NAN);
        }
    }
    let (mut expected, before) = (c.clone(), c.clone());
    naive(&g, multiply, &mut expected, &a, &b);
    gemm(pool, kernels, multiply, g, &mut c, &a, &b);
    // Each of k additions rounds a sum of size sqrt(k) / 3 by 2^-25 of it: at most k * 6e-8 here.
    let tolerance = 6e-8 * g.k.max(64) as f32;
    for (x, (got, want)) in c.iter().zip(&expected).enumerate() {
        let inside = x % g.ldc < g.n;
        let close = if inside { (got - want).abs() <= tolerance } else { got == &before[x] };
        assert!(close, "{} {multiply:?} {g:?} at {x}: {got}, not {want}", kernels.simd());
    }
    let mut packed = PackedB::new(kernels, multiply, g.n, g.k);
    packed.pack(pool, g.layout, &b, g.ldb);
    let mut again = before;
    gemm_packed(pool, g, &mut again, &a, &packed);
    assert!(c == again, "{} {multiply:?} {g:?}: packed B gives other bits", kernels.simd());
}

#[test]
fn every_kernel_and_layout_equals_the_triple_loop() {
    let pool = Pool::new(3);
    for kernels in Kernels::available() {
        for multiply in [Multiply::F32, Multiply::Bf16] {
            for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
                for (m, n, k) in shapes() {
                    let g = Gemm::new(layout, m, n, k);
                    case(&pool, &kernels, multiply, g);
                    let wide = Gemm { lda: g.lda + 3, ldb: g.ldb + 5, ldc: g.ldc + 2, ..g };
                    case(&pool, &kernels, multiply, wide.with_beta(1.0));
                    case(&pool, &kernels, multiply, wide.with_beta(-0.5));
                }
            }
        }
    }
}

#[test]
fn long_sums_and_wide_outputs_are_cut_and_joined() {
    let pool = Pool::new(2);
    let kernels = Kernels::detect();
    for multiply in [Multiply::F32, Multiply::Bf16] {
        case(&pool, &kernels, multiply, Gemm::new(Layout::Tn, 9, 1030, 6000).with_beta(1.0));
        case(&pool, &kernels, multiply, Gemm::new(Layout::Nt, 7, 3000, 1500));
    }
}

#[test]
fn a_row_depends_neither_on_the_other_rows_nor_on_the_threads() {
    for kernels in Kernels::available() {
        for multiply in [Multiply::F32, Multiply::Bf16] {
            let (m, n, k) = (131, 77, 901);
            let (a, b) = (random(m * k, 4), random(n * k, 5));
            let product = |threads: usize, m: usize| {
                let mut c = vec![0.0; m * n];
                let g = Gemm::new(Layout::Nt, m, n, k);
                gemm(&Pool::new(threads), &kernels, multiply, g, &mut c, &a[..m * k], &b);
                c
            };
            let all = product(1, m);
            for (threads, m) in [(2, m), (5, m), (2, 1), (3, 2), (1, 3), (2, 4), (2, 5), (1, 40)] {
                assert!(product(threads, m) == all[..m * n], "{} rows {m}", kernels.simd());
            }
        }
    }
}

#[test]
fn a_symmetric_product_is_the_whole_product() {
    let pool = Pool::new(3);
    for kernels in Kernels::available() {
        for multiply in [Multiply::F32, Multiply::Bf16] {
            for (m, k) in [(1, 3), (7, 5), (33, 65), (64, 96), (97, 400), (150, 31)] {
                let a = random(m * k, 9);
                let g = Gemm { ldc: m + 3, ..Gemm::new(Layout::Nt, m, m, k) };
                let mut whole = vec![0.0; m * g.ldc];
                let mut half = vec![f32::NAN; m * g.ldc];
                gemm(&pool, &kernels, multiply, g, &mut whole, &a, &a);
                gemm(&pool, &kernels, multiply, g.with_symmetry(), &mut half, &a, &a);
                for i in 0..m {
                    let (whole, half) = (&whole[i * g.ldc..][..m], &half[i * g.ldc..][..m]);
                    assert!(whole == half, "{} {multiply:?} {m} x {k} row {i}", kernels.simd());
                }
            }
        }
    }
}

#[test]
fn families_with_the_same_fused_sums_agree_to_the_bit_in_f32() {
    let fused = |k: &Kernels| k.simd() != Simd::Portable;
    let product = |kernels: &Kernels| {
        let (a, b) = (random(50 * 700, 6), random(40 * 700, 7));
        let mut c = vec![0.0; 50 * 40];
        let g = Gemm::new(Layout::Nt, 50, 40, 700);
        gemm(&Pool::new(1), kernels, Multiply::F32, g, &mut c, &a, &b);
        c
    };
    let results: Vec<_> = Kernels::available().iter().filter(|k| fused(k)).map(product).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    for x in random(1000, 8).into_iter().chain([0.0, -0.0, f32::INFINITY, 1e-40, 3e38]) {
        assert_eq!(round_bf16(x).to_bits(), half::bf16::from_f32(x).to_f32().to_bits());
    }
    assert!(round_bf16(f32::NAN).is_nan());
}

#[test]
#[should_panic(expected = "gemm: A is 3 x 4")]
fn a_short_operand_is_refused() {
    let (mut c, b) = ([0.0; 6], [0.0; 8]);
    let g = Gemm::new(Layout::Nt, 3, 2, 4);
    gemm(&Pool::new(1), &Kernels::detect(), Multiply::F32, g, &mut c, &[0.0; 11], &b);
}
