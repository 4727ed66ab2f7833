//! Blocked attention against the references and against itself.

use super::*;
use crate::cpu::Precision;
use crate::cpu::gemm::Multiply;
use crate::cpu::simd::Kernels;
use crate::ops::attention as reference;

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn every_cpu(threads: usize) -> Vec<Cpu> {
    let both = |kernels| [Precision::F32, Precision::Bf16].map(|precision| (kernels, precision));
    let open = |(kernels, precision)| Cpu::with(kernels, threads, precision);
    Kernels::available().into_iter().flat_map(both).map(open).collect()
}

/// (b, t, h, hkv, d, window)
fn shapes() -> Vec<Attention> {
    let all = [
        (1, 1, 1, 1, 8, 1),
        (2, 3, 2, 1, 5, 10),
        (1, 65, 3, 3, 16, 100),
        (2, 130, 4, 2, 32, 1000),
        (1, 200, 2, 2, 64, 70),
        (1, 150, 6, 1, 24, 0),
        (1, 333, 2, 1, 17, 128),
        (1, 71, 1, 1, 128, 64),
    ];
    all.map(|(b, t, h, hkv, d, window)| Attention { b, t, h, hkv, d, window, scale: 0.7 }).to_vec()
}

/// bf16 rounds operands to 2^-9; sums of many roundings stay well below one in twenty.
fn tolerance(cpu: &Cpu) -> f32 {
    if cpu.multiply == Multiply::Bf16 { 5e-2 } else { 2e-5 }
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    let size = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * size, "{what} at {i}: {got}, not {want}");
    }
}

#[test]
fn forward_and_backward_equal_the_references() {
    for s in shapes() {
        let (queries, keys) = (s.b * s.t * s.h * s.d, s.b * s.t * s.hkv * s.d);
        let (q, k, v) = (random(queries, 1), random(keys, 2), random(keys, 3));
        let dout = random(queries, 4);
        let (mut out, mut lse) = (vec![0.0; queries], vec![0.0; s.b * s.t * s.h]);
        reference::attention(&mut out, &mut lse, &q, &k, &v, &s);
        let (mut dq, mut dk, mut dv) = (vec![0.0; queries], vec![0.0; keys], vec![0.0; keys]);
        reference::attention_backward(&mut dq, &mut dk, &mut dv, &dout, &out, &lse, &q, &k, &v, &s);
        for cpu in every_cpu(2) {
            let what = format!("{} {:?} {s:?}", cpu.kernels.simd(), cpu.multiply);
            let (mut o, mut l) = (vec![f32::NAN; queries], vec![f32::NAN; lse.len()]);
            attention(&cpu, &mut o, &mut l, &q, &k, &v, &s);
            assert_close(&o, &out, tolerance(&cpu), &format!("out {what}"));
            assert_close(&l, &lse, tolerance(&cpu), &format!("lse {what}"));
            let mut grads = [vec![f32::NAN; queries], vec![f32::NAN; keys], vec![f32::NAN; keys]];
            let [gq, gk, gv] = &mut grads;
            attention_backward(&cpu, gq, gk, gv, &dout, &out, &lse, &q, &k, &v, &s);
            assert_close(gq, &dq, tolerance(&cpu), &format!("dq {what}"));
            assert_close(gk, &dk, tolerance(&cpu), &format!("dk {what}"));
            assert_close(gv, &dv, tolerance(&cpu), &format!("dv {what}"));
        }
    }
}

#[test]
fn nothing_depends_on_the_threads() {
    let s = Attention { b: 1, t: 300, h: 4, hkv: 2, d: 32, window: 90, scale: 0.2 };
    let (queries, keys) = (s.t * s.h * s.d, s.t * s.hkv * s.d);
    let (q, k, v) = (random(queries, 1), random(keys, 2), random(keys, 3));
    let all = |threads: usize| {
        let cpu = Cpu::with(Kernels::detect(), threads, Precision::F32);
        let (mut out, mut lse) = (vec![0.0; queries], vec![0.0; s.t * s.h]);
        attention(&cpu, &mut out, &mut lse, &q, &k, &v, &s);
        let (mut dq, mut dk, mut dv) = (vec![0.0; queries], vec![0.0; keys], vec![0.0; keys]);
        attention_backward(&cpu, &mut dq, &mut dk, &mut dv, &q, &out, &lse, &q, &k, &v, &s);
        [out, lse, dq, dk, dv]
    };
    assert!(all(1) == all(2) && all(1) == all(5));
}

#[test]
fn cached_attention_has_the_bits_of_the_forward() {
    // Heads that AMX decodes where they lie: 32 to 128 channels, one to four queries to a key.
    let all = [(4, 2, 32, 1000), (3, 3, 20, 40), (6, 1, 64, 129), (2, 2, 64, 71), (3, 1, 96, 33)];
    for (h, hkv, d, window) in all.into_iter().chain([(4, 1, 128, 1000), (1, 1, 256, 90)]) {
        let s = Attention { b: 2, t: 170, h, hkv, d, window, scale: 0.3 };
        let (queries, keys) = (s.b * s.t * h * d, s.b * s.t * hkv * d);
        let (q, k, v) = (random(queries, 1), random(keys, 2), random(keys, 3));
        for cpu in every_cpu(2) {
            let (mut out, mut lse) = (vec![0.0; queries], vec![0.0; s.b * s.t * h]);
            attention(&cpu, &mut out, &mut lse, &q, &k, &v, &s);
            for (start, t) in [(0, 1), (63, 1), (64, 1), (169, 1), (0, 170), (100, 70), (5, 2)] {
                let rows = |x: &[f32]| -> Vec<f32> {
                    let row = |b: usize| &x[(b * s.t + start) * h * d..][..t * h * d];
                    [row(0), row(1)].concat()
                };
                let scale = s.scale;
                let c = CachedAttention { rows: 2, t, pages: 3, h, hkv, d, window, scale };
                let (kc, places) = paged(&k, &s, start, &c);
                let (vc, _) = paged(&v, &s, start, &c);
                let mut got = vec![f32::NAN; 2 * t * h * d];
                let f32s = (Floats::F32(&kc), Floats::F32(&vc));
                attention_cached(&cpu, &mut got, &rows(&q), f32s.0, f32s.1, &places, &c);
                let name = cpu.kernels.simd();
                assert!(got == rows(&out), "{name} {:?} {start} {t} {h}", cpu.multiply);
                // Where products multiply bf16, keys and values stored in bf16 change nothing.
                if cpu.multiply == Multiply::Bf16 {
                    let (kc, vc) = (rounded(&kc), rounded(&vc));
                    let mut got = vec![f32::NAN; 2 * t * h * d];
                    let bf16s = (Floats::Bf16(&kc), Floats::Bf16(&vc));
                    attention_cached(&cpu, &mut got, &rows(&q), bf16s.0, bf16s.1, &places, &c);
                    assert!(got == rows(&out), "{name} bf16 pages {start} {t} {h} {d}");
                }
            }
        }
    }
}

fn rounded(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect()
}

/// Rows of keys in pages, those of both rows mixed, and where they are. Pages that no query sees are
/// named -1; what is behind the last query is NaN, and may not be read.
fn paged(x: &[f32], s: &Attention, start: usize, c: &CachedAttention) -> (Vec<f32>, Vec<i32>) {
    let (position, page) = (s.hkv * s.d, BLOCK * s.hkv * s.d);
    let mut cache = vec![f32::NAN; (2 * c.pages + 1) * page];
    let mut places = Vec::new();
    for b in 0..2 {
        places.push(start as i32);
        for p in 0..c.pages {
            if !c.seen(start).contains(&p) {
                places.push(-1);
                continue;
            }
            let to = (2 * p + 5 - b) % (2 * c.pages + 1);
            places.push(to as i32);
            for key in p * BLOCK..((p + 1) * BLOCK).min(start + c.t) {
                for head in 0..s.hkv {
                    let from = &x[(b * s.t + key) * position + head * s.d..][..s.d];
                    let at = to * page + (head * BLOCK + key % BLOCK) * s.d;
                    cache[at..at + s.d].copy_from_slice(from);
                }
            }
        }
    }
    (cache, places)
}
