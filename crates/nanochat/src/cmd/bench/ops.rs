//! `nanochat bench ops`: products and attention as a share of what the registers can do.

use std::time::{Duration, Instant};

use anyhow::Result;
use nanochat_compute::cpu::peak::{self, Arithmetic};
use nanochat_compute::ops::{Attention, Layout, MatMul};
use nanochat_compute::{Backend, Tensor};
use serde_json::json;

use super::OpsBench;
use crate::cli::Global;

/// (K, N) of the products.
const SHAPES: [(usize, usize); 8] = [
    (128, 512),
    (256, 256),
    (256, 1024),
    (384, 384),
    (384, 1536),
    (768, 768),
    (768, 3072),
    (384, 32768),
];

fn random(len: usize, seed: u64) -> Result<Tensor> {
    let mut state = seed;
    let draw = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    Ok(Tensor::from_f32(&(0..len).map(draw).collect::<Vec<_>>())?)
}

/// Median seconds of `runs` calls, after one that is not counted.
fn median(runs: usize, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    call()?;
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Runs the command.
pub fn run(args: &OpsBench, global: &Global) -> Result<()> {
    let cpu = global.cpu()?;
    let be: &dyn Backend = &cpu;
    let time = Duration::from_millis(300);
    let kernels = cpu.kernels();
    let measure = |a| peak::flops(&kernels, a, cpu.threads(), time);
    let (f32_peak, bf16_peak) = (measure(Arithmetic::F32), measure(Arithmetic::Bf16));
    let read = peak::read_bandwidth(cpu.threads(), 256 << 20);
    let peak = if cpu.is_bf16() { bf16_peak } else { f32_peak }.unwrap_or(f64::NAN);
    let dtype = if cpu.is_bf16() { "bf16" } else { "f32" };
    println!("{}: peak {:.0} GFLOP/s, read {:.1} GB/s", be.name(), peak / 1e9, read / 1e9);
    let mut rows = Vec::new();
    let mut show = |op: &str, shape: String, flops: f64, s: f64| {
        let (rate, share) = (flops / s, flops / s / peak);
        println!("{op:<20} {shape:<22} {:8.1} GFLOP/s  {:5.1} %", rate / 1e9, 100.0 * share);
        rows.push(json!({"op": op, "shape": shape, "dtype": dtype, "flops_per_sec": rate, "share": share}));
    };
    let m = args.rows;
    for (k, n) in SHAPES {
        let (x, w, y) = (random(m * k, 1)?, random(n * k, 2)?, random(m * n, 3)?);
        for (op, c, a, b, s) in [
            ("linear", &y, &x, &w, MatMul::forward(m, k, n)),
            ("linear_input_grad", &x, &y, &w, MatMul::input_grad(m, k, n)),
            ("linear_weight_grad", &w, &y, &x, MatMul::weight_grad(m, k, n)),
        ] {
            debug_assert!(s.layout != Layout::Nt || s.k == k);
            let seconds = median(args.runs, || Ok(be.matmul(c, a, b, &s)?))?;
            show(op, format!("{m} x {k} x {n}"), s.flops(), seconds);
        }
    }
    for (t, d) in [(256, 32), (512, 64), (2048, 64), (2048, 128)] {
        let (h, b) = (384 / d, (m / t).max(1));
        let s = Attention { b, t, h, hkv: h, d, window: t, scale: 1.0 / (d as f32).sqrt() };
        let n = b * t * h * d;
        let [q, k, v, o, dout] = [4, 5, 6, 7, 8].map(|seed| random(n, seed));
        let (q, k, v, o, dout) = (q?, k?, v?, o?, dout?);
        let lse = random(b * t * h, 9)?;
        let pairs = (b * h * t * (t + 1) / 2) as f64;
        let shape = format!("B {b} T {t} H {h} D {d}");
        let s_fwd = median(args.runs, || Ok(be.attention(&o, &lse, &q, &k, &v, &s)?))?;
        show("attention", shape.clone(), 4.0 * d as f64 * pairs, s_fwd);
        let [dq, dk, dv] = [10, 11, 12].map(|seed| random(n, seed));
        let (dq, dk, dv) = (dq?, dk?, dv?);
        let s_bwd = median(args.runs, || {
            Ok(be.attention_backward(&dq, &dk, &dv, &dout, &o, &lse, &q, &k, &v, &s)?)
        })?;
        show("attention_backward", shape, 10.0 * d as f64 * pairs, s_bwd);
    }
    let peak = json!({"f32": f32_peak, "bf16": bf16_peak, "read_bytes_per_sec": read});
    println!("{}", json!({"peak": peak, "ops": rows, "backend": be.name()}));
    Ok(())
}
