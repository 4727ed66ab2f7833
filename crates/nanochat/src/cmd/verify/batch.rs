//! The batch divides the step, its memory is what was predicted, and less memory means a smaller one.

use anyhow::{Result, ensure};
use nanochat_compute::Backend;
use nanochat_gpt::{GptConfig, Nano};
use nanochat_train::batch_size::{Job, Memory, candidates, choose, fitting, probe};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;
use nanochat_train::step::{Bytes, Trainer};

use super::Finding;
use crate::cli::Global;
use crate::cmd::bench::train::RandomTokens;
use crate::figures::size;
use crate::memory::Room;

/// Rows of a step.
const ROWS: usize = 24;
const T: usize = 128;

/// B of a job, as some way chooses it.
type Chooser = fn(&dyn Backend, &Job<'_>, &Memory) -> Result<usize>;

/// As training chooses.
fn automatic(be: &dyn Backend, job: &Job<'_>, memory: &Memory) -> Result<usize> {
    let fit = fitting(be, job, memory)?;
    let timings = probe(be, job, &fit, memory.budget())?;
    Ok(choose(job, memory, &fit, &timings, (false, 0.0)).batch_size)
}

/// As is often done: the largest batch whose forward and backward fit, times 0.85. The optimizer's
/// state is forgotten, and what comes out divides nothing.
fn largest_that_fits(be: &dyn Backend, job: &Job<'_>, memory: &Memory) -> Result<usize> {
    let step = |b: usize| {
        let bytes = Bytes::of(be, job.config, b, job.t);
        (bytes.arena + bytes.workspace + bytes.state / 2) as u64
    };
    let largest = (1..).take_while(|b| step(*b) <= memory.free).last().unwrap_or(0);
    Ok((largest as f64 * 0.85) as usize)
}

/// Checks the automatic choice, or the other way in its place.
pub fn check(global: &Global, is_out: bool) -> Finding {
    let be = global.backend()?;
    let be = &*be;
    let config = GptConfig::from_depth(4, 64, 64, T, 8192, "L")?;
    let job = Job { config: &config, t: T, rows: ROWS };
    let chooser: Chooser = if is_out { largest_that_fits } else { automatic };
    let total = |b| Bytes::of(be, &config, b, T).total() as u64;
    // First, while nothing that was freed can be used again.
    let (predicted, grown) = grown(be, &config, 8)?;
    // Memory for no more than this batch, for each that divides the step.
    let mut chosen = Vec::new();
    for most in candidates(ROWS) {
        let memory = Memory { held: 0, free: total(most), margin: 1.0 };
        let b = chooser(be, &job, &memory)?;
        ensure!(
            b > 0 && ROWS.is_multiple_of(b),
            "with memory for {most} rows it chose {b}, which does not divide the {ROWS} of a step"
        );
        ensure!(total(b) <= memory.free, "with memory for {most} rows it chose {b}");
        chosen.push(b);
    }
    let share = predicted / grown;
    // The workspace is counted as if every thread used all of its own.
    let workspace = Bytes::of(be, &config, 8, T).workspace as f64;
    let slack = 0.05 + workspace / predicted;
    // What a GPU works in is counted once for all models, code that was loaded before among it.
    let least = if be.own_memory().is_some() { 0.9 * (predicted - workspace) } else { 0.0 };
    let memory = if grown > 0.0 {
        ensure!(
            (0.95..=1.0 + slack).contains(&share)
                || least > 0.0 && (least..=predicted).contains(&grown),
            "training 8 rows takes {}, {} were predicted",
            size(grown),
            size(predicted)
        );
        format!("predicted memory / measured {share:.3}")
    } else {
        "measured memory is not known here".into()
    };
    Ok(format!("with room for {:?} rows it takes {chosen:?}; {memory}", candidates(ROWS)))
}

/// Bytes that training was predicted to take and took, for a batch of `b` rows.
fn grown(be: &dyn Backend, config: &GptConfig, b: usize) -> Result<(f64, f64)> {
    let predicted = Bytes::of(be, config, b, T).total() as f64;
    let before = Room::of(be).held as f64;
    let model = Nano::zeros(be, config.clone())?;
    model.init(1)?;
    let optim = Optimizer::new(be, &model, LearningRates::default())?;
    let mut trainer = Trainer::new(be, &model, optim, b, T)?;
    let mut tokens = RandomTokens { b, t: T, v: config.vocab_size, state: 1 };
    let rates = Rates { lr_multiplier: 1e-3, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    for step in 0..2 {
        trainer.step(step, &mut tokens, 1, &rates)?;
    }
    Ok((predicted, Room::of(be).held as f64 - before))
}
