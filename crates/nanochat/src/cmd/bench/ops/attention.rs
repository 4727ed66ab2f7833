//! Attention, forward and backward, as a share of the register peak; only pairs that the mask leaves count.

use anyhow::Result;
use nanochat_compute::Backend;
use nanochat_compute::cpu::Cpu;
use nanochat_compute::ops::Attention;
use serde_json::Value;

use super::OpsBench;
use super::operands::random;
use super::products::{register_peak, row};
use super::timing::seconds;

/// (T, D).
const SHAPES: [(usize, usize); 5] = [(256, 32), (512, 64), (1024, 64), (2048, 64), (2048, 128)];

/// Times them.
pub fn run(args: &OpsBench, cpu: &Cpu) -> Result<Vec<Value>> {
    let be: &dyn Backend = cpu;
    let mut rows = Vec::new();
    let shapes = if args.quick { &SHAPES[..2] } else { &SHAPES[..] };
    for &(t, d) in shapes {
        let (h, b) = (super::elementwise::C / d, (args.rows[0] / t).max(1));
        let s = Attention { b, t, h, hkv: h, d, window: t, scale: 1.0 / (d as f32).sqrt() };
        let n = b * t * h * d;
        let [q, k, v, o, dout] = [4, 5, 6, 7, 8].map(|seed| random(n, seed));
        let (q, k, v, o, dout) = (q?, k?, v?, o?, dout?);
        let lse = random(b * t * h, 9)?;
        let pairs = (b * h * t * (t + 1) / 2) as f64;
        let shape = format!("B {b} T {t} H {h} D {d}");
        let peak = register_peak(cpu);
        let time = seconds(args.runs, || Ok(be.attention(&o, &lse, &q, &k, &v, &s)?))?;
        rows.push(row("attention", &shape, cpu, 4.0 * d as f64 * pairs, time, peak).0);
        let [dq, dk, dv] = [10, 11, 12].map(|seed| random(n, seed));
        let (dq, dk, dv) = (dq?, dk?, dv?);
        let time = seconds(args.runs, || {
            Ok(be.attention_backward(&dq, &dk, &dv, &dout, &o, &lse, &q, &k, &v, &s)?)
        })?;
        let flops = 10.0 * d as f64 * pairs;
        rows.push(row("attention_backward", &shape, cpu, flops, time, peak).0);
    }
    Ok(rows)
}
