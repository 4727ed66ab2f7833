//! Finetuning: conversations to a chat model, over the same train step. Source: nanochat
//! `chat_sft.py`, July 2026.

use std::path::{Path, PathBuf};

use nanochat_data::Batches;
use nanochat_gpt::checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Result;
use crate::base::Outcome;
use crate::eval::bpb;
use crate::metrics::{LineKind, Observer, Pace, sft_step_line, step_row};
use crate::optim::LearningRates;
use crate::resume::{self, Identity, Progress};
use crate::schedule::SftSchedule;
use crate::step::Trainer;

/// Values of an SFT run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftRecipe {
    /// T.
    pub max_seq_len: usize,
    /// Rows of a micro batch.
    pub device_batch_size: usize,
    /// Micro batches of a step.
    pub accumulation: usize,
    /// Steps; none: one pass over the mixture.
    pub num_iterations: Option<u64>,
    /// Rates before the schedule.
    pub rates: LearningRates,
    /// Rates over the run.
    pub schedule: SftSchedule,
    /// Steps between validations; 0: at the end only.
    pub eval_every: u64,
    /// Tokens of a validation.
    pub eval_tokens: usize,
    /// Steps between checkpoints; 0: at the end only.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
}

/// Everything an SFT run is made of.
pub struct SftRun<'a> {
    /// Its values.
    pub recipe: &'a SftRecipe,
    /// Checkpoints.
    pub dir: &'a Path,
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Raw bytes of each token, 0 for specials.
    pub token_bytes: &'a [u32],
    /// Training batches.
    pub train: &'a mut dyn Batches,
    /// A fresh stream of validation batches of the same shape.
    pub val: &'a mut dyn FnMut() -> Result<Box<dyn Batches>>,
    /// Goes on from this step's directory.
    pub resume: Option<PathBuf>,
}

/// Share of one pass over the data after a batch that began in pass `epoch`; `before` it was less.
///
/// A batch that reaches into the next pass makes the stream count from 0 again.
fn share_of_pass(train: &dyn Batches, epoch: u64, before: f64) -> f64 {
    let now = train.progress();
    if epoch > 1 || now < before { 1.0 } else { now }
}

/// Trains to the end; validates and saves on the way.
pub fn run(
    mut run: SftRun<'_>,
    trainer: &mut Trainer<'_>,
    out: &mut dyn Observer,
) -> Result<Outcome> {
    let recipe = run.recipe;
    let id = Identity {
        stage: "sft",
        tokenizer: run.tokenizer.clone(),
        settings: serde_json::to_value(recipe).expect("a recipe has only string keys"),
    };
    let mut progress = match &run.resume {
        Some(dir) => resume::restore(dir, &id, trainer, run.train)?,
        None => Progress::default(),
    };
    let first = progress.step;
    let mut pace = Pace::resumed(progress.train_s);
    loop {
        let step = progress.step;
        let share = match recipe.num_iterations {
            Some(n) => step as f64 / n.max(1) as f64,
            None => progress.share,
        };
        let done = share >= 1.0;
        let resumed_here = run.resume.is_some() && step == first;
        let due = |every: u64| !resumed_here && (done || (every > 0 && step.is_multiple_of(every)));
        if due(recipe.eval_every) {
            validate(&mut run, trainer, &mut progress, out)?;
        }
        if due(recipe.save_every) && step > 0 {
            progress.train_s = pace.train_s;
            let path = resume::save(run.dir, &id, trainer, run.train, &progress, recipe.keep)?;
            out.line(LineKind::Event, &format!("checkpoint {}", path.display()));
        }
        if done {
            break;
        }
        let rates = recipe.schedule.at(step, share);
        let report = trainer.step(step, run.train, recipe.accumulation, &rates)?;
        progress.share = share_of_pass(run.train, report.epoch, progress.share);
        progress.totals.push(&report);
        let smooth = progress.smooth.push(report.loss);
        progress.step += 1;
        let of = recipe
            .num_iterations
            .unwrap_or_else(|| (progress.step as f64 / progress.share.max(1e-6)).round() as u64);
        let eta = pace.push(report.dt_s, of.saturating_sub(progress.step));
        let lrm = rates.lr_multiplier;
        out.line(LineKind::Step, &sft_step_line(progress.step, of, smooth, lrm, &report, eta));
        out.row(step_row("sft", progress.step, smooth, lrm, &report, pace.train_s))?;
    }
    progress.train_s = pace.train_s;
    let checkpoint = checkpoint::step_dir(run.dir, progress.step);
    Ok(Outcome {
        progress,
        checkpoint,
        train_s: pace.train_s,
        step_s: pace.median(),
        plans: trainer.plans(),
    })
}

fn validate(
    run: &mut SftRun<'_>,
    trainer: &Trainer<'_>,
    progress: &mut Progress,
    out: &mut dyn Observer,
) -> Result<()> {
    let (b, t) = (run.recipe.device_batch_size, run.recipe.max_seq_len);
    let buffers = trainer.eval_buffers(b, t)?;
    let n = (run.recipe.eval_tokens / (b * t)).max(1);
    let mut batches = (run.val)()?;
    let (be, model) = (trainer.be, trainer.model);
    let sum = bpb::evaluate(be, model, &buffers, batches.as_mut(), n, run.token_bytes)?;
    let (step, bpb) = (progress.step, sum.bpb());
    progress.val_bpb = Some(bpb);
    progress.min_val_bpb = Some(progress.min_val_bpb.map_or(bpb, |m| m.min(bpb)));
    out.line(LineKind::Event, &format!("Step {step:05} | Validation bpb: {bpb:.4}"));
    out.row(json!({
        "kind": "eval", "stage": "sft", "step": step, "val_bpb": bpb, "tokens": sum.tokens,
    }))
}
