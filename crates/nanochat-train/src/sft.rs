//! Finetuning: conversations to a chat model, over the same train step. Source: nanochat
//! `chat_sft.py`, July 2026.

use std::path::{Path, PathBuf};

use nanochat_data::Batches;
use nanochat_gpt::checkpoint;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::base::{Outcome, Validation};
use crate::metrics::{LineKind, Observer, Pace, sft_step_line, step_row};
use crate::optim::LearningRates;
use crate::replay::Replay;
use crate::resume::Identity;
use crate::schedule::SftSchedule;
use crate::step::Trainer;
use crate::survival::{Session, Survival};

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
    /// What happens to it that nobody planned.
    pub survival: &'a Survival,
}

/// What names an SFT run: a checkpoint of another is not gone on with.
pub fn identity(recipe: &SftRecipe, tokenizer: String) -> Identity {
    let settings = serde_json::to_value(recipe).expect("a recipe has only string keys");
    Identity { stage: "sft", tokenizer, settings }
}

/// Share of one pass over the data after a batch that began in pass `epoch`; `before` it was less.
///
/// A batch that reaches into the next pass makes the stream count from 0 again.
fn share_of_pass(train: &dyn Batches, epoch: u64, before: f64) -> f64 {
    let now = train.progress();
    if epoch > 1 || now < before { 1.0 } else { now }
}

/// Trains to the end; validates and saves on the way.
///
/// Errors: [`crate::Error::Stopped`] when it was asked to stop, which is saved; see [`Survival`].
pub fn run(run: SftRun<'_>, trainer: &mut Trainer<'_>, out: &mut dyn Observer) -> Result<Outcome> {
    let SftRun { recipe, dir, tokenizer, token_bytes, train, val, resume, survival } = run;
    let id = identity(recipe, tokenizer);
    let mut session = Session::new(dir, &id, recipe.keep, survival);
    let mut train = Replay::new(train);
    let mut progress = session.begin(resume.as_deref(), trainer, &mut train, out)?;
    let mut pace = Pace::resumed(progress.train_s);
    let shape = (recipe.device_batch_size, recipe.max_seq_len);
    let mut validation = Validation { shape, tokens: recipe.eval_tokens, token_bytes, val };
    loop {
        let step = progress.step;
        let share = match recipe.num_iterations {
            Some(n) => step as f64 / n.max(1) as f64,
            None => progress.share,
        };
        let done = share >= 1.0;
        let due = |every: u64| done || (every > 0 && step.is_multiple_of(every));
        if due(recipe.eval_every) && progress.val_step != Some(step) {
            validation.run(&mut session, trainer, &train, &mut progress, out)?;
        }
        progress.train_s = pace.train_s;
        session.settle(false, trainer, step, out)?;
        if done {
            session.save_at_end(trainer, &train, &progress, out)?;
            break;
        }
        if step > 0 && (due(recipe.save_every) || session.retries(step)) {
            session.save(trainer, &train, &progress, out)?;
        }
        let rates = recipe.schedule.at(step, share);
        let how = (recipe.accumulation, &rates);
        let Some(report) = session.step(trainer, &mut train, &mut progress, how, out)? else {
            // The data of a step that was passed over is used up, too.
            progress.share = share_of_pass(&train, 1, progress.share);
            continue;
        };
        progress.share = share_of_pass(&train, report.epoch, progress.share);
        progress.totals.push(&report);
        let smooth = progress.smooth.push(report.loss);
        progress.step += 1;
        let of = recipe
            .num_iterations
            .unwrap_or_else(|| (progress.step as f64 / progress.share.max(1e-6)).round() as u64);
        let eta = pace.push(report.dt_s, of.saturating_sub(progress.step));
        let lrm = rates.lr_multiplier;
        out.line(LineKind::Step, &sft_step_line(progress.step, of, smooth, lrm, &report, eta));
        let row = step_row("sft", progress.step, smooth, lrm, &report, pace.train_s);
        session.row(progress.step, row, out);
    }
    progress.train_s = pace.train_s;
    let checkpoint = checkpoint::step_dir(dir, progress.step);
    Ok(Outcome {
        progress,
        checkpoint,
        train_s: pace.train_s,
        step_s: pace.median(),
        plans: trainer.plans(),
    })
}
