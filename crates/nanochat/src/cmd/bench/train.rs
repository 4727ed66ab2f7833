//! `nanochat bench train`: whole training steps, and where their time goes.

use anyhow::Result;
use nanochat_compute::Backend;
use nanochat_compute::cpu::peak::{self, Arithmetic};
use nanochat_data::{Batch, Batches};
use nanochat_gpt::Nano;
use nanochat_gpt::nano::count::{ParamCount, train_flops_per_token};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;
use nanochat_train::step::Trainer;
use serde_json::{Map, json};
use std::time::Duration;

use super::TrainBench;
use crate::cli::Global;
use crate::machine;

/// Endless random tokens.
pub struct RandomTokens {
    /// Rows.
    pub b: usize,
    /// Tokens of a row.
    pub t: usize,
    /// Vocabulary.
    pub v: usize,
    /// Of the generator.
    pub state: u64,
}

impl Batches for RandomTokens {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        let (n, v) = (self.b * self.t, self.v as u64);
        let mut draw = || {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((self.state >> 33) % v) as i32
        };
        let ids: Vec<i32> = (0..=n).map(|_| draw()).collect();
        let (x, y) = (ids[..n].to_vec(), ids[1..].to_vec());
        let name = "random tokens".into();
        let (b, t, epoch) = (self.b, self.t, 1);
        Ok(Batch { b, t, x, y, w: None, epoch, name, trained_tokens: n, padding_tokens: 0 })
    }

    fn state(&self) -> Vec<u8> {
        self.state.to_le_bytes().into()
    }

    fn restore(&mut self, _: &[u8]) -> nanochat_data::Result<()> {
        Ok(())
    }

    fn fingerprint(&self) -> String {
        "random tokens".into()
    }

    fn progress(&self) -> f64 {
        0.0
    }
}

/// Operations a second that the device could do at most: a CPU's is measured, a GPU's is that of dense
/// bf16 in its data sheet, as upstream counts.
fn peak_flops(be: &dyn Backend, global: &Global) -> Result<f64> {
    if be.own_memory().is_some() {
        return Ok(gpu_peak(&be.name()).unwrap_or(f64::NAN));
    }
    let cpu = global.cpu()?;
    let arithmetic = if cpu.is_bf16() { Arithmetic::Bf16 } else { Arithmetic::F32 };
    let time = Duration::from_millis(300);
    Ok(peak::flops(&cpu.kernels(), arithmetic, cpu.threads(), time).unwrap_or(f64::NAN))
}

/// Bytes in use: of the GPU's memory now, of the process at most.
pub fn memory_in_use(be: &dyn Backend) -> u64 {
    be.own_memory().map_or_else(machine::peak_rss_bytes, |(free, all)| (all - free) as u64)
}

/// Dense bf16 operations a second by the data sheets of common GPUs.
pub fn gpu_peak(name: &str) -> Option<f64> {
    let sheets = [
        ("H100 PCIe", 756e12),
        ("H100 NVL", 835e12),
        ("H100", 989e12),
        ("H200", 989e12),
        ("B200", 2.25e15),
        ("A100", 312e12),
        ("L40S", 362e12),
        ("RTX 4090", 165.2e12),
        ("RTX 5090", 209.5e12),
    ];
    sheets.iter().find(|(model, _)| name.contains(model)).map(|(_, flops)| *flops)
}

/// Runs the command.
pub fn run(args: &TrainBench, global: &Global) -> Result<()> {
    let be = global.backend()?;
    let be = &*be;
    let config = args.model.config()?;
    let (b, t) = (args.device_batch_size, args.model.max_seq_len);
    let micro = b * t;
    let total = if args.total_batch_size == 0 { micro } else { args.total_batch_size };
    anyhow::ensure!(
        total.is_multiple_of(micro),
        "{total} tokens are not whole micro batches of {micro}"
    );
    let model = Nano::zeros(be, config.clone())?;
    model.init(global.seed)?;
    let optim = Optimizer::new(be, &model, LearningRates::default())?;
    let mut trainer = Trainer::new(be, &model, optim, b, t)?;
    let mut tokens = RandomTokens { b, t, v: config.vocab_size, state: global.seed };
    let rates = Rates { lr_multiplier: 0.01, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    let flops = train_flops_per_token(&config);
    println!(
        "{}: {}, {} parameters, {:.1} MFLOP/token, {micro} tokens a micro batch, {total} a step",
        be.name(),
        args.model.name(),
        ParamCount::of(&config).total,
        flops / 1e6
    );
    let mut ms = Vec::new();
    let mut breakdown = Vec::new();
    for step in 0..=args.steps {
        be.profile_start();
        let report = trainer.step(step, &mut tokens, total / micro, &rates)?;
        let spent = be.profile_stop();
        let rate = report.tokens as f64 / report.dt_s;
        println!(
            "step {step} | loss {:.4} | tokens/sec: {rate:.0} | dt {:.0}ms",
            report.loss,
            1e3 * report.dt_s
        );
        if step > 0 {
            ms.push(1e3 * report.dt_s);
            breakdown = spent;
        }
    }
    ms.sort_by(f64::total_cmp);
    let step_ms = ms[ms.len() / 2];
    let peak = peak_flops(be, global)?;
    let tokens_per_sec = total as f64 / step_ms * 1e3;
    let (planned, rss) = (trainer.bytes(), memory_in_use(be));
    let planned = planned.total();
    let sum: f64 = breakdown.iter().map(|(_, s)| s * 1e3).sum();
    for (op, s) in &breakdown {
        println!("  {op:<22} {:8.1} ms  {:5.1} %", s * 1e3, s * 1e5 / step_ms);
    }
    println!("  {:<22} {:8.1} ms  {:5.1} %", "all operations", sum, 100.0 * sum / step_ms);
    println!(
        "{tokens_per_sec:.0} tokens/sec, {:.0} GFLOP/s = {:.1} % of the {:.0} GFLOP/s peak; planned {:.2} GB, peak {:.2} GB",
        tokens_per_sec * flops / 1e9,
        100.0 * tokens_per_sec * flops / peak,
        peak / 1e9,
        planned as f64 / 1e9,
        rss as f64 / 1e9
    );
    let breakdown: Map<_, _> =
        breakdown.into_iter().map(|(op, s)| (op.into(), json!(s * 1e3))).collect();
    println!(
        "{}",
        json!({
            "tokens_per_sec": tokens_per_sec, "step_ms": step_ms,
            "mfu": tokens_per_sec * flops / peak, "peak_flops_per_sec": peak,
            "planned_bytes": planned, "peak_bytes": rss, "breakdown": breakdown,
            "backend": be.name(),
        })
    );
    Ok(())
}
