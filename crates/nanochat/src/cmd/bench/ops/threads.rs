//! A training step on one thread and on all of them, in turn.

use anyhow::Result;
use nanochat_compute::Backend;
use nanochat_gpt::{GptConfig, Nano};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;
use nanochat_train::step::Trainer;
use serde_json::{Value, json};

use super::super::train::RandomTokens;
use super::OpsBench;
use super::timing::median;
use crate::cli::Global;

/// Rows of a step.
const B: usize = 8;

/// Seconds of a step on one thread over those on all.
pub fn run(args: &OpsBench, global: &Global) -> Result<Value> {
    let (depth, t, v) = if args.quick { (2, 128, 4096) } else { (6, 512, 32768) };
    let backends = [Global { threads: 1, ..global.clone() }.cpu()?, global.cpu()?];
    let config = GptConfig::from_depth(depth, 64, 64, t, v, "L")?;
    let rates = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    let models = [0, 1].map(|i| -> Result<Nano> {
        let model = Nano::zeros(&backends[i], config.clone())?;
        model.init(global.seed)?;
        Ok(model)
    });
    let [one, all] = models;
    let models = [one?, all?];
    let mut trainers = Vec::new();
    for (be, model) in backends.iter().zip(&models) {
        let optim = Optimizer::new(be, model, LearningRates::default())?;
        trainers.push(Trainer::new(be as &dyn Backend, model, optim, B, t)?);
    }
    let mut tokens = RandomTokens { b: B, t, v, state: global.seed };
    let mut times = [Vec::new(), Vec::new()];
    // The first round touches the memory and does not count.
    for step in 0..=args.runs {
        for (trainer, times) in trainers.iter_mut().zip(&mut times) {
            let report = trainer.step(step as u64, &mut tokens, 1, &rates)?;
            if step > 0 {
                times.push(report.dt_s);
            }
        }
    }
    let pairs = times[0].iter().zip(&times[1]);
    let ratio = median(pairs.map(|(one, all)| one / all).collect());
    let [one, all] = times.map(median);
    let threads = backends[1].threads();
    println!(
        "a step of depth {depth}, {B} x {t}: {:.0} ms on one thread, {:.0} ms on {threads}: {ratio:.2}x",
        1e3 * one,
        1e3 * all
    );
    Ok(json!({
        "threads": threads, "one_ms": 1e3 * one, "all_ms": 1e3 * all, "ratio": ratio,
        "depth": depth, "b": B, "t": t,
    }))
}
