//! Operations that make a pass over their operands, as a share of the least time that memory or arithmetic
//! lets them take.

use anyhow::Result;
use nanochat_compute::cpu::Cpu;
use nanochat_compute::ops::{AdamW, Muon, NORM_EPS, RopeNorm, Smear, ValueGate};
use nanochat_compute::{Backend, Tensor};
use serde_json::{Value, json};

use super::OpsBench;
use super::limits::{Limits, Work};
use super::operands::{ids, random};
use super::products::{register_peak, row};
use super::timing::{Seconds, seconds};

/// Channels: those of depth 6.
pub const C: usize = 384;
/// Channels of a head.
const D: usize = 64;
/// Rows of logits that are alive together.
const LOGIT_ROWS: usize = nanochat_compute::ops::LOSS_ROWS;
/// Channels that gates read.
const CHANNELS: usize = 12;
/// Positions of a row.
const T: usize = 512;

/// Instructions of an exp: two to clamp, nine multiply-adds, two sums, two products, three on the exponent.
const EXP: f64 = 18.0;
/// Instructions of a tanh: an exp, two to clamp, three more, and a division, which takes the time of
/// sixteen where vectors are 64 bytes (Intel's optimization manual: one in 16 cycles, one port of two).
const TANH: f64 = EXP + 2.0 + 3.0 + 32.0;

struct Table<'a> {
    cpu: &'a Cpu,
    args: &'a OpsBench,
    limits: &'a Limits,
    rows: Vec<Value>,
}

impl Table<'_> {
    /// Times an operation that moves `floats` floats at least.
    fn pass(&mut self, op: &str, floats: usize, call: impl FnMut() -> Result<()>) -> Result<()> {
        self.work(op, Work { bytes: 4.0 * floats as f64, lane_instructions: 0.0 }, call)
    }

    fn work(&mut self, op: &str, work: Work, call: impl FnMut() -> Result<()>) -> Result<()> {
        let Seconds { median, best } = seconds(self.args.runs, call)?;
        let least = self.limits.least_s(self.cpu, &work);
        let rate = work.bytes / median;
        println!(
            "{op:<20} {:8.2} ms  {:6.1} GB/s  {:5.1} % (best {:5.1} %)",
            1e3 * median,
            rate / 1e9,
            100.0 * least / median,
            100.0 * least / best
        );
        self.rows.push(json!({
            "op": op, "ms": 1e3 * median, "best_ms": 1e3 * best, "bytes": work.bytes,
            "bytes_per_sec": rate, "share": least / median, "best_share": least / best,
        }));
        Ok(())
    }
}

/// Times them.
pub fn run(args: &OpsBench, cpu: &Cpu, limits: &Limits) -> Result<Vec<Value>> {
    let be: &dyn Backend = cpu;
    let mut table = Table { cpu, args, limits, rows: Vec::new() };
    println!(
        "passes: {} rows of {C}; shares of what memory or arithmetic allows in the same second",
        args.tokens
    );
    rows_of_channels(be, &mut table)?;
    heads(be, &mut table)?;
    gates(be, &mut table)?;
    hidden(be, &mut table)?;
    logits(be, &mut table)?;
    optimizers(&mut table)?;
    Ok(table.rows)
}

fn n_of(table: &Table<'_>) -> usize {
    table.args.tokens
}

/// Norms, mixes, copies.
fn rows_of_channels(be: &dyn Backend, table: &mut Table<'_>) -> Result<()> {
    let n = n_of(table);
    let nc = n * C;
    let all = [1, 2, 3, 4].map(|seed| random(nc, seed));
    let [x, y, z, w] = all;
    let (x, y, z, w) = (x?, y?, z?, w?);
    let (rstd, a, b) = (random(n, 5)?, random(1, 6)?, random(1, 7)?);
    let (da, db) = (random(1, 8)?, random(1, 9)?);
    table.pass("fill", nc, || Ok(be.fill(&x, 0.5)?))?;
    table.pass("copy", 2 * nc, || Ok(be.copy(&x, &y)?))?;
    table.pass("add", 3 * nc, || Ok(be.add(&x, &y)?))?;
    table.pass("norm", 2 * nc + n, || Ok(be.norm(&x, &rstd, &y, C, NORM_EPS)?))?;
    table.pass("norm_backward", 4 * nc + n, || Ok(be.norm_backward(&x, &y, &z, &rstd, C, 1.0)?))?;
    table.pass("mix", 3 * nc, || Ok(be.mix(&x, &y, &z, &a, &b)?))?;
    table.pass(
        "mix_backward",
        6 * nc,
        || Ok(be.mix_backward(&x, &w, &da, &db, &y, &z, &a, &b)?),
    )?;
    table.pass("backout", 3 * nc, || Ok(be.backout(&x, &y, &z, &a)?))?;
    table.pass("backout_backward", 3 * nc, || Ok(be.backout_backward(&x, &da, &y, &z, &a)?))?;
    let s = Smear { b: n.div_ceil(T), t: n.min(T), c: C, channels: CHANNELS };
    anyhow::ensure!(s.b * s.t == n, "--tokens {n} is not whole rows of {T}");
    let (gate, weight) = (random(n, 10)?, random(CHANNELS, 11)?);
    let dweight = random(CHANNELS, 12)?;
    table.pass("smear", 2 * nc, || Ok(be.smear(&x, &gate, &y, &weight, &a, &s)?))?;
    table.pass("smear_backward", 3 * nc, || {
        Ok(be.smear_backward(&x, &dweight, &da, &y, &z, &gate, &weight, &a, &s)?)
    })?;
    let v = 32768.min(64 * n);
    let (vocab, tokens) = (random(v * C, 13)?, ids(n, v, 14)?);
    table.pass("embedding", 2 * nc, || Ok(be.embedding(&x, &vocab, &tokens, C)?))?;
    table.pass("embedding_backward", 3 * nc, || Ok(be.embedding_backward(&vocab, &y, &tokens, C)?))
}

/// Rotation and norm of the heads of queries.
fn heads(be: &dyn Backend, table: &mut Table<'_>) -> Result<()> {
    let n = n_of(table);
    let t = n.min(T);
    let s = RopeNorm { t, h: C / D, d: D, start: 0, scale: 1.2, eps: NORM_EPS };
    let (x, out, rstd) = (random(n * C, 1)?, random(n * C, 2)?, random(n * C / D, 3)?);
    let (cos, sin) = (random(t * D / 2, 4)?, random(t * D / 2, 5)?);
    table.pass("rope_norm", 2 * n * C, || Ok(be.rope_norm(&x, &rstd, &cos, &sin, &s)?))?;
    table.pass("rope_norm_backward", 3 * n * C, || {
        Ok(be.rope_norm_backward(&x, &out, &rstd, &cos, &sin, &s)?)
    })
}

/// Value embeddings.
fn gates(be: &dyn Backend, table: &mut Table<'_>) -> Result<()> {
    let n = n_of(table);
    let hkv = C / D;
    let s = ValueGate { c: C, hkv, d: D, channels: CHANNELS, scale: 3.0 };
    let v = 32768.min(64 * n);
    let (values, y, dy) = (random(n * C, 1)?, random(n * C, 2)?, random(n * C, 3)?);
    let (embed, dembed, tokens) = (random(v * C, 4)?, random(v * C, 5)?, ids(n, v, 6)?);
    let (w, dw) = (random(hkv * CHANNELS, 7)?, random(hkv * CHANNELS, 8)?);
    let gate = random(n * hkv, 9)?;
    table.pass("value_gate", 3 * n * C, || {
        Ok(be.value_gate(&values, &gate, &embed, &tokens, &y, &w, &s)?)
    })?;
    table.pass("value_gate_backward", 4 * n * C, || {
        Ok(be.value_gate_backward(&dembed, &dw, &dy, &values, &embed, &tokens, &y, &w, &gate, &s)?)
    })
}

/// The MLP's hidden rows, (rows, 4C), as many as are alive together: as large as (N, C).
fn hidden(be: &dyn Backend, table: &mut Table<'_>) -> Result<()> {
    let n = n_of(table) * C;
    let (x, y) = (random(n, 1)?, random(n, 2)?);
    table.pass("relu2", 3 * n, || Ok(be.relu2(&y, &x)?))?;
    table.pass("square", 2 * n, || Ok(be.square(&y, &x)?))?;
    table.pass("relu2_backward", 3 * n, || Ok(be.relu2_backward(&y, &x)?))
}

/// Logits, as many as are alive together.
fn logits(be: &dyn Backend, table: &mut Table<'_>) -> Result<()> {
    let v = if table.args.quick { 4096 } else { 32768 };
    let len = LOGIT_ROWS * v;
    let (z, losses, targets) = (random(len, 1)?, random(LOGIT_ROWS, 2)?, ids(LOGIT_ROWS, v, 3)?);
    let work = |instructions: f64| Work {
        bytes: 8.0 * len as f64,
        lane_instructions: instructions * len as f64,
    };
    table.work("softcap", work(TANH), || Ok(be.softcap(&z, 15.0)?))?;
    table.work("cross_entropy", work(TANH + EXP + 4.0), || {
        Ok(be.cross_entropy(&losses, &z, &targets, v, 15.0)?)
    })
}

/// A table of the vocabulary by AdamW, and a matrix of the MLP by Muon, most of which is products.
fn optimizers(table: &mut Table<'_>) -> Result<()> {
    let cpu = table.cpu;
    let be: &dyn Backend = cpu;
    let n = if table.args.quick { 1 << 20 } else { 32768 * C };
    let [p, m, v, g] = [1, 2, 3, 4].map(|seed| random(n, seed));
    let (p, m, v, g) = (p?, m?, v?, g?);
    be.fill(&v, 0.1)?;
    let s = AdamW { lr: 1e-3, beta1: 0.8, beta2: 0.95, eps: 1e-10, wd: 0.0, t: 3 };
    table.pass("adamw", 7 * n, || Ok(be.adamw(&p, &m, &v, &g, &s)?))?;
    let s = Muon { m: 4 * C, n: C, lr: 1e-3, momentum: 0.9, beta2: 0.9, wd: 0.0 };
    let [p, buf, g] = [5, 6, 7].map(|seed| random(s.m * s.n, seed));
    let (p, buf, g) = (p?, buf?, g?);
    let (second, scratch) = (random(s.second_len(), 8)?, random(s.scratch_len(), 9)?);
    be.fill(&second, 0.1)?;
    let run = |p: &Tensor| Ok(be.muon(p, &buf, &second, &scratch, &g, &s)?);
    let time = seconds(table.args.runs, || run(&p))?;
    // Five times: a symmetric product, its square, and a product of them with the matrix.
    let flops = 5.0 * ((3 * s.m * s.n * s.n + s.n * s.n * s.n) as f64);
    let shape = format!("{} x {}", s.m, s.n);
    table.rows.push(row("muon", &shape, cpu, flops, time, register_peak(cpu)).0);
    Ok(())
}
