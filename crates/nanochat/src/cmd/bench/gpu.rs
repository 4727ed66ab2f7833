//! `nanochat bench gpu`: what the card can do at most, and what share of it each kernel reaches.

use anyhow::{Context, Result};
use nanochat_compute::cuda::Cuda;
use nanochat_compute::ops::{
    AdamW, Attention, CachedAttention, HeadLoss, MatMul, Muon, MuonMatrix, NORM_EPS, PAGE,
    RopeNorm, Smear, ValueGate, WeightFormat, rope_tables,
};
use nanochat_compute::{Backend, DType, Tensor};
use serde_json::{Value, json};

use super::GpuBench;
use super::step::{self, Sizes};
use super::train::gpu_peak;
use crate::cli::Global;

/// One kernel at one shape.
struct Row {
    name: String,
    /// Milliseconds, median.
    ms: f64,
    /// Bytes read and written, each once.
    bytes: f64,
    /// Operations.
    flops: f64,
}

/// What the card does at most, as measured.
struct Ceilings {
    /// Bytes a second.
    copy: f64,
    /// Operations a second.
    product: f64,
}

impl Row {
    /// The least that the card could take, over what was taken; and what of.
    fn share(&self, c: &Ceilings) -> (f64, &'static str) {
        let (memory, arithmetic) = (self.bytes / c.copy, self.flops / c.product);
        let least = memory.max(arithmetic);
        let of = if memory > arithmetic { "memory" } else { "arithmetic" };
        (least / (self.ms / 1e3), of)
    }
}

/// Sizes of the model whose operations are timed.
struct Shape {
    b: usize,
    t: usize,
    c: usize,
    h: usize,
    d: usize,
    v: usize,
}

impl Shape {
    /// Rows.
    fn n(&self) -> usize {
        self.b * self.t
    }
}

/// Times operations on one GPU.
struct Bench<'a> {
    be: &'a Cuda,
    rounds: usize,
    rows: Vec<Row>,
}

impl Bench<'_> {
    /// Numbers in [-1, 1), the same for the same seed: zeros would be faster than real data.
    fn random(&self, len: usize, dtype: DType, seed: u64) -> Result<Tensor> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        // A million different numbers, over and over.
        let some: Vec<f32> = (0..len.min(1 << 20)).map(|_| next()).collect();
        let x = self.be.alloc(len, dtype)?;
        let mut at = 0;
        while at < len {
            let n = some.len().min(len - at);
            let to = x.slice(at..at + n);
            match dtype {
                DType::BF16 => {
                    to.write_bf16(&some[..n].iter().map(|x| bf16(*x)).collect::<Vec<_>>())?
                }
                _ => to.write_f32(&some[..n])?,
            }
            at += n;
        }
        Ok(x)
    }

    /// Times `run` and notes the row.
    fn time(
        &mut self,
        name: &str,
        (bytes, flops): (usize, f64),
        run: impl Fn() -> nanochat_compute::Result<()>,
    ) -> Result<f64> {
        for _ in 0..3 {
            run()?;
        }
        let mut ms = Vec::new();
        for _ in 0..self.rounds {
            ms.push(1e3 * self.be.seconds(&run)?);
        }
        ms.sort_by(f64::total_cmp);
        let ms = ms[ms.len() / 2];
        self.rows.push(Row { name: name.into(), ms, bytes: bytes as f64, flops });
        Ok(ms)
    }
}

/// The nearest bf16's bits.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Runs the command.
pub fn run(args: &GpuBench, global: &Global) -> Result<()> {
    let be =
        global.gpu()?.context("there is no GPU here: \"nanochat doctor\" says what is missing")?;
    let rounds = if args.small { 1 } else { 20 };
    let mut bench = Bench { be: &be, rounds, rows: Vec::new() };
    println!("{}", be.name());
    let ceilings = bench.ceilings(args.small)?;
    println!(
        "copies {:.0} GB/s (read and written), multiplies {:.0} TFLOP/s in bf16",
        ceilings.copy / 1e9,
        ceilings.product / 1e12
    );
    if let Some(peak) = gpu_peak(&be.name()) {
        println!("its data sheet says {:.0} TFLOP/s", peak / 1e12);
    }
    bench.rows.clear();
    let s = match args.small {
        true => Shape { b: 2, t: 192, c: 256, h: 2, d: 128, v: 1024 },
        false => Shape { b: 16, t: 2048, c: 768, h: 6, d: 128, v: 32768 },
    };
    bench.products(&s)?;
    bench.attention(&s)?;
    bench.streams(&s)?;
    bench.rows(&s)?;
    bench.head(&s)?;
    bench.optimizers(&s)?;
    bench.decoding(&s)?;
    bench.steps(&s)?;
    println!("\n{:<40} {:>10} {:>9} {:>9}   share of", "operation", "us", "GB/s", "TFLOP/s");
    let mut all = Vec::new();
    for row in &bench.rows {
        let (share, of) = row.share(&ceilings);
        let seconds = row.ms / 1e3;
        println!(
            "{:<40} {:>10.2} {:>9.0} {:>9.1} {:>4.0} % of {of}",
            row.name,
            1e3 * row.ms,
            row.bytes / seconds / 1e9,
            row.flops / seconds / 1e12,
            100.0 * share
        );
        all.push(json!({
            "name": row.name, "ms": row.ms, "bytes": row.bytes, "flops": row.flops, "share": share,
            "of": of,
        }));
    }
    let figures = json!({
        "backend": be.name(), "copy_bytes_per_sec": ceilings.copy,
        "product_flops_per_sec": ceilings.product, "operations": Value::from(all),
    });
    println!("{figures}");
    Ok(())
}

impl Bench<'_> {
    fn ceilings(&mut self, small: bool) -> Result<Ceilings> {
        let len = if small { 1 << 20 } else { 1 << 28 };
        let (to, from) = (self.be.alloc(len, DType::F32)?, self.random(len, DType::F32, 1)?);
        let be = self.be;
        let ms = self.time("copy", (8 * len, 0.0), || be.copy(&to, &from))?;
        let copy = (8 * len) as f64 / ms * 1e3;
        drop((to, from));
        let n = if small { 256 } else { 8192 };
        let (a, b) = (self.random(n * n, DType::BF16, 2)?, self.random(n * n, DType::BF16, 3)?);
        let c = be.alloc(n * n, DType::BF16)?;
        let s = MatMul::forward(n, n, n);
        let ms = self.time("product", (6 * n * n, s.flops()), || be.matmul(&c, &a, &b, &s))?;
        Ok(Ceilings { copy, product: s.flops() / ms * 1e3 })
    }

    /// The linear layers, all three ways.
    fn products(&mut self, s: &Shape) -> Result<()> {
        let (be, n) = (self.be, s.n());
        for (name, k, m) in [("q", s.c, s.c), ("fc", s.c, 4 * s.c), ("mlp proj", 4 * s.c, s.c)] {
            let (x, y) = (self.random(n * k, DType::BF16, 1)?, self.random(n * m, DType::BF16, 2)?);
            let (w, dw) = (self.random(m * k, DType::F32, 3)?, be.alloc(m * k, DType::F32)?);
            let (dx, out) = (be.alloc(n * k, DType::BF16)?, be.alloc(n * m, DType::BF16)?);
            let bytes = 2 * n * (k + m) + 6 * m * k;
            let f = MatMul::forward(n, k, m);
            self.time(&format!("{name} forward"), (bytes, f.flops()), || {
                be.matmul(&out, &x, &w, &f)
            })?;
            let g = MatMul::input_grad(n, k, m);
            self.time(&format!("{name} input grad"), (bytes, f.flops()), || {
                be.matmul(&dx, &y, &w, &g)
            })?;
            let g = MatMul::weight_grad(n, k, m);
            self.time(&format!("{name} weight grad"), (bytes, f.flops()), || {
                be.matmul(&dw, &y, &x, &g)
            })?;
        }
        Ok(())
    }

    fn attention(&mut self, s: &Shape) -> Result<()> {
        let (be, len) = (self.be, s.n() * s.c);
        let stream = |seed| self.random(len, DType::BF16, seed);
        let (q, k, v, dout) = (stream(1)?, stream(2)?, stream(3)?, stream(4)?);
        let zeros = || be.alloc(len, DType::BF16);
        let (out, dq, dk, dv) = (zeros()?, zeros()?, zeros()?, zeros()?);
        let lse = be.alloc(s.n() * s.h, DType::F32)?;
        for (name, window) in [("full", s.t), ("window 512", 512.min(s.t / 4))] {
            let scale = 1.0 / (s.d as f32).sqrt();
            let a = Attention { b: s.b, t: s.t, h: s.h, hkv: s.h, d: s.d, window, scale };
            // Visible pairs of queries and keys.
            let pairs: usize = (0..s.t).map(|t| t.min(window) + 1).sum();
            let product = 2.0 * (s.b * s.h * pairs * s.d) as f64;
            let name = format!("attention {name}");
            self.time(&format!("{name} forward"), (8 * len, 2.0 * product), || {
                be.attention(&out, &lse, &q, &k, &v, &a)
            })?;
            self.time(&format!("{name} backward"), (16 * len, 5.0 * product), || {
                be.attention_backward(&dq, &dk, &dv, &dout, &out, &lse, &q, &k, &v, &a)
            })?;
        }
        Ok(())
    }

    fn streams(&mut self, s: &Shape) -> Result<()> {
        let (be, len) = (self.be, s.n() * s.c);
        let stream = |seed| self.random(len, DType::BF16, seed);
        let (x, y, d, dy) = (stream(1)?, stream(2)?, stream(3)?, stream(4)?);
        let one = |x: f32| be.place_f32(&[x]);
        let (a, b, da, db) = (one(1.0)?, one(0.1)?, one(0.0)?, one(0.0)?);
        self.time("add", (6 * len, 0.0), || be.add(&y, &x))?;
        self.time("residual mix", (6 * len, 0.0), || be.mix(&d, &x, &y, &a, &b))?;
        self.time("residual mix backward", (12 * len, 0.0), || {
            be.mix_backward(&d, &dy, &da, &db, &x, &y, &a, &b)
        })?;
        self.time("backout", (6 * len, 0.0), || be.backout(&d, &x, &y, &b))?;
        self.time("backout backward", (6 * len, 0.0), || {
            be.backout_backward(&dy, &db, &d, &y, &b)
        })?;
        let wide = 4 * len;
        let (r, h) = (self.random(wide, DType::BF16, 5)?, be.alloc(wide, DType::BF16)?);
        self.time("relu2 in place", (4 * wide, 0.0), || be.relu2_in_place(&h))?;
        self.time("relu2 in place, backward", (6 * wide, 0.0), || {
            be.relu2_in_place_backward(&r, &h)
        })?;
        Ok(())
    }

    fn rows(&mut self, s: &Shape) -> Result<()> {
        let (be, n, len) = (self.be, s.n(), s.n() * s.c);
        let stream = |seed| self.random(len, DType::BF16, seed);
        let (x, y, d) = (stream(1)?, stream(2)?, stream(3)?);
        let exact = |len| be.alloc(len, DType::F32);
        let (rstd, lse) = (exact(n)?, exact(n * s.h)?);
        self.time("norm", (4 * len, 0.0), || be.norm(&y, &rstd, &x, s.c, NORM_EPS))?;
        self.time("norm backward, added", (8 * len, 0.0), || {
            be.norm_backward(&d, &x, &y, &rstd, s.c, 1.0)
        })?;
        let (cos, sin) = rope_tables(s.t, s.d, 100_000.0);
        let (cos, sin) = (be.place_f32(&cos)?, be.place_f32(&sin)?);
        let (t, h, start, eps) = (s.t, s.h, 0, NORM_EPS);
        let rope = RopeNorm { t, h, d: s.d, start, scale: 1.2, eps };
        self.time("rope and norm", (4 * len, 0.0), || be.rope_norm(&x, &lse, &cos, &sin, &rope))?;
        self.time("rope and norm backward", (6 * len, 0.0), || {
            be.rope_norm_backward(&d, &x, &lse, &cos, &sin, &rope)
        })?;
        let smear = Smear { b: s.b, t: s.t, c: s.c, channels: 24 };
        let (w, dw) = (self.random(24, DType::F32, 4)?, exact(24)?);
        let (lambda, dlambda) = (be.place_f32(&[0.1])?, exact(1)?);
        self.time("smear", (4 * len, 0.0), || be.smear(&y, &rstd, &x, &w, &lambda, &smear))?;
        self.time("smear backward", (6 * len, 0.0), || {
            be.smear_backward(&d, &dw, &dlambda, &y, &x, &rstd, &w, &lambda, &smear)
        })?;
        // Few tokens are most of a text: a third of these are of one in a thousand.
        let id = |i: usize| match i % 3 {
            0 => (i / 3 % (s.v / 1000 + 1)) as i32,
            _ => ((i as u64 * 2_654_435_761) % s.v as u64) as i32,
        };
        let ids = be.place_i32(&(0..n).map(id).collect::<Vec<_>>())?;
        let table = self.random(s.v * s.c, DType::F32, 5)?;
        let dtable = exact(s.v * s.c)?;
        self.time("embedding", (6 * len, 0.0), || be.embedding(&x, &table, &ids, s.c))?;
        self.time("embedding backward", (2 * len + 8 * s.v * s.c, 0.0), || {
            be.embedding_backward(&dtable, &x, &ids, s.c)
        })?;
        let gate = ValueGate { c: s.c, hkv: s.h, d: s.d, channels: 12, scale: 3.0 };
        let (w, dw) = (self.random(12 * s.h, DType::F32, 6)?, exact(12 * s.h)?);
        self.time("value gate", (8 * len, 0.0), || {
            be.value_gate(&y, &lse, &table, &ids, &x, &w, &gate)
        })?;
        self.time("value gate backward", (8 * len + 8 * s.v * s.c, 0.0), || {
            be.value_gate_backward(&dtable, &dw, &d, &y, &table, &ids, &x, &w, &lse, &gate)
        })?;
        Ok(())
    }

    fn head(&mut self, s: &Shape) -> Result<()> {
        let (be, n) = (self.be, s.n().min(16384));
        let x = self.random(n * s.c, DType::BF16, 1)?;
        let w = self.random(s.v * s.c, DType::F32, 2)?;
        let (dx, dw) = (be.alloc(n * s.c, DType::BF16)?, be.alloc(s.v * s.c, DType::F32)?);
        let rows = n.min(be.step_style().loss_rows);
        let scratch = self.random(rows * s.v, DType::BF16, 3)?;
        let losses = be.alloc(n, DType::F32)?;
        let targets = be.place_i32(&(0..n).map(|i| (i * 7919 % s.v) as i32).collect::<Vec<_>>())?;
        let loss = HeadLoss { n, c: s.c, v: s.v, softcap: 15.0, grad_scale: 1e-4 };
        let flops = 6.0 * (n * s.c * s.v) as f64;
        self.time("head and loss, with gradients", (4 * n * s.v, flops), || {
            be.head_loss(&losses, Some((&dx, &dw)), &scratch, &x, &w, &targets, &loss)
        })?;
        let (losses, targets) = (losses.slice(0..rows), targets.slice(0..rows));
        self.time("cross entropy alone", (4 * rows * s.v, 0.0), || {
            be.cross_entropy(&losses, &scratch, &targets, s.v, 15.0)
        })?;
        Ok(())
    }

    fn optimizers(&mut self, s: &Shape) -> Result<()> {
        let (be, len) = (self.be, s.v * s.c);
        let exact = |len, seed| self.random(len, DType::F32, seed);
        let (p, m, g) = (exact(len, 1)?, exact(len, 2)?, exact(len, 4)?);
        let most = 12 * 4 * s.c * s.c;
        let (p_all, m_all, g_all) = (exact(most, 5)?, exact(most, 6)?, exact(most, 7)?);
        let v = be.alloc(len, DType::F32)?;
        let a = AdamW { lr: 1e-4, beta1: 0.8, beta2: 0.95, eps: 1e-10, wd: 0.01, t: 10 };
        self.time("adamw", (28 * len, 0.0), || be.adamw(&p, &m, &v, &g, &a))?;
        for (name, rows, columns) in [("square", s.c, s.c), ("wide", s.c, 4 * s.c)] {
            let o = Muon { m: rows, n: columns, lr: 0.01, momentum: 0.9, beta2: 0.9, wd: 0.0 };
            let len = rows * columns;
            let [p, buf, g] = [&p, &m, &g].map(|x| x.slice(0..len));
            let second = be.alloc(o.second_len(), DType::F32)?;
            let scratch = be.alloc(o.scratch_len(), DType::F32)?;
            let (r, k) = (rows.min(columns) as f64, rows.max(columns) as f64);
            let flops = 5.0 * (4.0 * r * r * k + 2.0 * r * r * r);
            self.time(&format!("muon, {name}"), (20 * len, flops), || {
                be.muon(&p, &buf, &second, &scratch, &g, &o)
            })?;
            let batch = 12;
            let one = |i: usize| -> Result<MuonMatrix> {
                let at = |x: &Tensor| x.slice(i * len..(i + 1) * len);
                let second = be.alloc(o.second_len(), DType::F32)?;
                Ok(MuonMatrix { p: at(&p_all), buf: at(&m_all), second, g: at(&g_all) })
            };
            let all = (0..batch).map(one).collect::<Result<Vec<_>>>()?;
            let scratch = be.alloc(batch * o.scratch_len(), DType::F32)?;
            let (bytes, flops) = (batch * 20 * len, batch as f64 * flops);
            self.time(&format!("muon, {name} x {batch}"), (bytes, flops), || {
                be.muon_batch(&all, &scratch, &o)
            })?;
        }
        Ok(())
    }

    /// The kernels of decode steps of few rows.
    fn steps(&mut self, s: &Shape) -> Result<()> {
        for (m, early) in [(1, false), (1, true), (2, true), (4, true), (8, true)] {
            self.be.launch_early(early);
            let sizes = Sizes { c: s.c, h: s.h, v: s.v, len: s.t.min(1024), m, early };
            let random = |len, dtype, seed| self.random(len, dtype, seed);
            let timed = step::times(self.be, sizes, self.rounds, &random)?;
            self.rows.extend(timed.into_iter().map(|t| Row {
                name: t.name,
                ms: t.ms,
                bytes: t.bytes as f64,
                flops: 0.0,
            }));
        }
        Ok(())
    }

    fn decoding(&mut self, s: &Shape) -> Result<()> {
        let be = self.be;
        for (name, k, n) in [("q", s.c, s.c), ("fc", s.c, 4 * s.c), ("head", s.c, s.v)] {
            let w = self.random(n * k, DType::F32, 1)?;
            let packed = be.pack(&w, n, k, WeightFormat::Bf16)?.context("bf16 is packed")?;
            for m in [1, 8] {
                let (x, y) = (self.random(m * k, DType::BF16, 2)?, be.alloc(m * n, DType::BF16)?);
                let f = MatMul::forward(m, k, n);
                self.time(&format!("decode {name}, {m} rows"), (2 * n * k, f.flops()), || {
                    be.matmul_packed(&y, &x, &packed, &f)
                })?;
            }
        }
        for (rows, len) in [(1, 1024), (32, 250)] {
            let pages = usize::div_ceil(len, PAGE);
            let all = rows * pages * PAGE * s.c;
            let (k, v) = (self.random(all, DType::BF16, 3)?, self.random(all, DType::BF16, 4)?);
            let (q, out) =
                (self.random(rows * s.c, DType::BF16, 5)?, be.alloc(rows * s.c, DType::BF16)?);
            let place = |r: usize| {
                let page = move |p: usize| (r * pages + p) as i32;
                std::iter::once(len as i32 - 1).chain((0..pages).map(page))
            };
            let places = be.place_i32(&(0..rows).flat_map(place).collect::<Vec<_>>())?;
            let (h, d, window, scale) = (s.h, s.d, len, 1.0 / (s.d as f32).sqrt());
            let c = CachedAttention { rows, t: 1, pages, h, hkv: h, d, window, scale };
            self.time(
                &format!("decode attention {rows} x {len}"),
                (4 * rows * len * s.c, 0.0),
                || be.attention_cached(&out, &q, &k, &v, &places, &c),
            )?;
        }
        Ok(())
    }
}
