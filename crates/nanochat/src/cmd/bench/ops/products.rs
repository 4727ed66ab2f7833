//! Products of linear layers in their three layouts, and the head, as a share of the register peak that is
//! measured again beside each shape.

use std::time::Duration;

use anyhow::Result;
use nanochat_compute::Backend;
use nanochat_compute::cpu::Cpu;
use nanochat_compute::cpu::peak::{self, Arithmetic};
use nanochat_compute::ops::{HeadLoss, MatMul};
use serde_json::{Map, Value, json};

use super::OpsBench;
use super::operands::{ids, random};
use super::timing::{Seconds, median, seconds};

/// Sides of a layer: every pair of them is a shape.
const SIDES: [usize; 6] = [256, 384, 512, 768, 1536, 3072];
/// Of the head.
const VOCAB: usize = 32768;
/// Shapes of `--quick`.
const QUICK: [(usize, usize); 3] = [(256, 256), (384, 1536), (384, 4096)];
/// A narrow layer, which `bench/peers` compares.
const NARROW: (usize, usize) = (128, 512);
const NAMES: [&str; 3] = ["linear", "linear_input_grad", "linear_weight_grad"];

/// The arithmetic of a backend's products.
pub fn dtype(cpu: &Cpu) -> &'static str {
    if cpu.is_bf16() { "bf16" } else { "f32" }
}

/// FLOP/s in registers, all threads.
pub fn register_peak(cpu: &Cpu) -> f64 {
    let arithmetic = if cpu.is_bf16() { Arithmetic::Bf16 } else { Arithmetic::F32 };
    let time = Duration::from_millis(20);
    peak::flops(&cpu.kernels(), arithmetic, cpu.threads(), time).unwrap_or(f64::NAN)
}

/// A figure of arithmetic, printed and as JSON.
pub fn row(op: &str, shape: &str, cpu: &Cpu, flops: f64, s: Seconds, peak: f64) -> (Value, f64) {
    let (rate, best) = (flops / s.median, flops / s.best);
    let (share, best_share) = (rate / peak, best / peak);
    println!(
        "{op:<20} {shape:<22} {:<4} {:9.1} GFLOP/s  {:5.1} % (best {:5.1} %)",
        dtype(cpu),
        rate / 1e9,
        100.0 * share,
        100.0 * best_share
    );
    let value = json!({
        "op": op, "shape": shape, "dtype": dtype(cpu), "flops_per_sec": rate,
        "best_flops_per_sec": best, "peak_flops_per_sec": peak, "share": share,
        "best_share": best_share,
    });
    (value, best_share)
}

fn shapes(args: &OpsBench) -> Vec<(usize, usize, usize)> {
    if args.quick {
        return QUICK.map(|(k, n)| (args.rows[0], k, n)).into();
    }
    let pairs = || SIDES.into_iter().flat_map(|k| SIDES.map(|n| (k, n)));
    let all = |&m: &usize| std::iter::once(NARROW).chain(pairs()).map(move |(k, n)| (m, k, n));
    let head = SIDES.map(|k| (args.rows[0], k, VOCAB));
    args.rows.iter().flat_map(all).chain(head).collect()
}

/// Times them; the rows, and the median and the least share of each layout.
pub fn run(args: &OpsBench, cpu: &Cpu) -> Result<(Vec<Value>, Value)> {
    let be: &dyn Backend = cpu;
    let mut rows = Vec::new();
    let mut shares: [Vec<(f64, f64)>; 3] = Default::default();
    for (m, k, n) in shapes(args) {
        let (x, w, y) = (random(m * k, 1)?, random(n * k, 2)?, random(m * n, 3)?);
        let peak = register_peak(cpu);
        let products = [
            (&y, &x, &w, MatMul::forward(m, k, n)),
            (&x, &y, &w, MatMul::input_grad(m, k, n)),
            (&w, &y, &x, MatMul::weight_grad(m, k, n)),
        ];
        for (i, (c, a, b, s)) in products.into_iter().enumerate() {
            let time = seconds(args.runs, || Ok(be.matmul(c, a, b, &s)?))?;
            let shape = format!("{m} x {k} x {n}");
            let (value, best) = row(NAMES[i], &shape, cpu, s.flops(), time, peak);
            shares[i].push((s.flops() / time.median / peak, best));
            rows.push(value);
        }
    }
    rows.extend(head(args, cpu)?);
    let mut summary = Map::new();
    println!("products in {}: shares of the peak over {} shapes", dtype(cpu), shares[0].len());
    for (name, shares) in NAMES.iter().zip(&shares) {
        let all = |of: fn(&(f64, f64)) -> f64| shares.iter().map(of).collect::<Vec<f64>>();
        let (typical, best) = (all(|s| s.0), all(|s| s.1));
        let least = |x: &[f64]| x.iter().copied().fold(f64::INFINITY, f64::min);
        let found = json!({
            "median": median(typical.clone()), "least": least(&typical),
            "median_of_best": median(best.clone()), "least_of_best": least(&best),
        });
        let percent = |key: &str| 100.0 * found[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "  {name:<20} median {:5.1} %, least {:5.1} %; of the best runs {:5.1} %, {:5.1} %",
            percent("median"),
            percent("least"),
            percent("median_of_best"),
            percent("least_of_best")
        );
        summary.insert((*name).into(), found);
    }
    Ok((rows, Value::Object(summary)))
}

/// Losses alone, and with both gradients.
fn head(args: &OpsBench, cpu: &Cpu) -> Result<Vec<Value>> {
    let be: &dyn Backend = cpu;
    let (n, c) = (args.rows[0], super::elementwise::C);
    let v = if args.quick { 4096 } else { VOCAB };
    let s = HeadLoss { n, c, v, softcap: 15.0, grad_scale: 1e-4 };
    let (x, w, targets) = (random(n * c, 1)?, random(v * c, 2)?, ids(n, v, 3)?);
    let (dx, dw) = (random(n * c, 4)?, random(v * c, 5)?);
    let (losses, scratch) = (random(n, 6)?, random(s.scratch_len(), 7)?);
    let one = 2.0 * (n * c * v) as f64;
    let mut rows = Vec::new();
    for (name, grads, flops) in
        [("head_loss", None, one), ("head_loss_grads", Some((&dx, &dw)), 3.0 * one)]
    {
        let peak = register_peak(cpu);
        let run = || Ok(be.head_loss(&losses, grads, &scratch, &x, &w, &targets, &s)?);
        let time = seconds(args.runs, run)?;
        rows.push(row(name, &format!("{n} x {c} x {v}"), cpu, flops, time, peak).0);
    }
    Ok(rows)
}
