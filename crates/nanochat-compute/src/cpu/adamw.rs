//! One step of AdamW. Reference: `ops/adamw.rs`.

use super::Cpu;
use super::chunks::{CHUNK, each};
use super::math::simd_fn;
use crate::ops::AdamW;

simd_fn! {
    fn adamw_chunk(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], keep: f32, step: f32, b1: f32, b2: f32, c2: f32, eps: f32) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            *m += (g - *m) * b1;
            *v += (g * g - *v) * b2;
            *p = *p * keep - step * *m / ((*v * c2).sqrt() + eps);
        }
    }
}

pub(super) fn adamw(cpu: &Cpu, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamW) {
    let c1 = 1.0 - f64::from(s.beta1).powf(s.t as f64);
    let c2 = (1.0 / (1.0 - f64::from(s.beta2).powf(s.t as f64))) as f32;
    let (keep, step) = (1.0 - s.lr * s.wd, (f64::from(s.lr) / c1) as f32);
    let (b1, b2) = (1.0 - s.beta1, 1.0 - s.beta2);
    each(&cpu.pool, [(p, CHUNK), (m, CHUNK), (v, CHUNK)], |i, [p, m, v]| {
        let g = &g[i * CHUNK..][..p.len()];
        adamw_chunk(&cpu.kernels, p, m, v, g, keep, step, b1, b2, c2, s.eps);
    });
}
