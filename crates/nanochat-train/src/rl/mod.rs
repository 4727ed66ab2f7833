//! Reinforcement: answers are drawn, graded, and made likelier or less likely. Source: nanochat
//! `chat_rl.py`, July 2026; what it leaves out is a flag here.
//!
//! ```text
//! questions of a step -> num_samples answers each -> rewards -> advantages -> one train step
//! ```
//! Rollouts and training share the weights: a decoder is made of the trainer's model anew in each step, and
//! all answers of the step are its rows ([`crate::answers`]).

pub mod objective;
mod passes;
pub mod questions;
pub mod rollout;

use std::path::{Path, PathBuf};
use std::time::Instant;

use nanochat_gpt::{Nano, checkpoint};
use nanochat_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::objective::Objective;
use self::passes::{Pass, Served};
use self::questions::{Part, Questions};
use self::rollout::{Draw, Sample, Sampling, roll, seed_of};
use crate::base::Outcome;
use crate::metrics::{LineKind, Observer, Pace, step_line, step_row};
use crate::optim::LearningRates;
use crate::replay::Replay;
use crate::resume::{Identity, Progress};
use crate::schedule::Rates;
use crate::step::{StepReport, Trainer};
use crate::stop::StopSignal;
use crate::survival::{Session, Survival};
use crate::{Error, Result};

/// Values of an RL run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RlRecipe {
    /// Steps.
    pub num_iterations: u64,
    /// Questions of a step.
    pub examples_per_step: usize,
    /// Samples of a micro batch.
    pub device_batch_size: usize,
    /// How answers are drawn.
    pub sampling: Sampling,
    /// What is maximised.
    pub objective: Objective,
    /// Optimizer steps over the same samples; upstream: 1.
    pub passes: usize,
    /// Rates at the beginning; they fall to 0 in a line.
    pub rates: LearningRates,
    /// Muon's weight decay.
    pub weight_decay: f64,
    /// Seed of the samples.
    pub seed: u64,
    /// Steps between tests; 0: at the beginning and the end only.
    pub eval_every: u64,
    /// Questions of a test.
    pub eval_examples: usize,
    /// Steps between checkpoints; 0: at the end only.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
}

/// Upstream's Muon momentum in this stage.
const MOMENTUM: f64 = 0.95;

/// Samples of a question in a test: pass@1 to pass@8.
const TEST_SAMPLES: usize = 8;

/// Questions of a test whose answers go into its row.
const SHOWN: usize = 4;

/// Seed of tests: the same draws in every test.
const TEST_SEED: u64 = 42;

impl RlRecipe {
    /// Rates of a step: `1 - step / N` of the first ones.
    fn at(&self, step: u64) -> Rates {
        let lr_multiplier = 1.0 - step as f64 / self.num_iterations.max(1) as f64;
        Rates { lr_multiplier, muon_momentum: MOMENTUM, muon_weight_decay: self.weight_decay }
    }
}

/// Everything an RL run is made of.
pub struct RlRun<'a> {
    /// Its values.
    pub recipe: &'a RlRecipe,
    /// Checkpoints.
    pub dir: &'a Path,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// What is asked.
    pub questions: &'a dyn Questions,
    /// The model that the run began with; needed if the objective has a KL term.
    pub reference: Option<&'a Nano>,
    /// Goes on from this step's directory.
    pub resume: Option<PathBuf>,
    /// Rows that are drawn at once: more are faster, and take more memory for keys and values. On a CPU
    /// the answers are the same ones.
    pub rows: usize,
    /// What happens to it that nobody planned.
    pub survival: &'a Survival,
}

/// What names an RL run: a checkpoint of another is not gone on with.
pub fn identity(recipe: &RlRecipe, tokenizer: &Tokenizer) -> Identity {
    let settings = serde_json::to_value(recipe).expect("a recipe has only string keys");
    Identity { stage: "rl", tokenizer: tokenizer.fingerprint(), settings }
}

/// What the rollouts of a step gave.
struct Rollouts {
    samples: Vec<Vec<Sample>>,
    seconds: f64,
}

impl Rollouts {
    fn mean(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        let n = self.samples.iter().flatten().count().max(1);
        self.samples.iter().flatten().map(of).sum::<f64>() / n as f64
    }

    fn answer_tokens(&self) -> usize {
        self.samples.iter().flatten().map(|s| s.answer_tokens).sum()
    }
}

/// Trains to the end; tests and saves on the way.
///
/// Errors: [`crate::Error::Stopped`] when it was asked to stop, which is saved; see [`Survival`].
pub fn run(run: RlRun<'_>, trainer: &mut Trainer<'_>, out: &mut dyn Observer) -> Result<Outcome> {
    let recipe = run.recipe;
    let id = identity(recipe, run.tokenizer);
    let mut session = Session::new(run.dir, &id, recipe.keep, run.survival);
    let served = Served::new(run.questions.fingerprint());
    let mut stream = served.clone();
    let mut train = Replay::new(&mut stream);
    let mut progress = session.begin(run.resume.as_deref(), trainer, &mut train, out)?;
    let last = recipe.num_iterations;
    let mut pace = Pace::resumed(progress.train_s);
    loop {
        let step = progress.step;
        let due =
            |every: u64| step == 0 || step == last || (every > 0 && step.is_multiple_of(every));
        if due(recipe.eval_every) && session.saved != Some(step) {
            let row = test(&run, trainer, step, out)?;
            session.row(step, row, out);
        }
        progress.train_s = pace.train_s;
        if step >= last {
            session.save_at_end(trainer, &train, &progress, out)?;
            break;
        }
        if step > 0 && (due(recipe.save_every) || session.retries(step)) {
            session.save(trainer, &train, &progress, out)?;
        }
        let start = Instant::now();
        let rollouts = rollouts(&run, trainer, step)?;
        let rates = recipe.at(step);
        // Batches that an interrupted step had drawn are the ones that were just made again.
        train.forget();
        let mut learning = Learning { run: &run, session: &mut session, served: &served };
        let learned =
            learning.learn(trainer, &mut train, &mut progress, (&rollouts, &rates), out)?;
        let Some(mut report) = learned else { continue };
        report.dt_s = start.elapsed().as_secs_f64();
        report.data_s = rollouts.seconds;
        progress.totals.push(&report);
        let smooth = progress.smooth.push(report.loss);
        progress.step += 1;
        let eta = pace.push(report.dt_s, last - progress.step);
        let (reward, length) =
            (rollouts.mean(|s| s.reward), rollouts.mean(|s| s.answer_tokens as f64));
        let lrm = rates.lr_multiplier;
        let line = step_line(progress.step, last, smooth, lrm, &report, eta);
        out.line(
            LineKind::Step,
            &format!("{line} | Average reward: {reward:.4} | Average sequence length: {length:.2}"),
        );
        let mut row = step_row("rl", progress.step, smooth, lrm, &report, pace.train_s);
        row["reward"] = json!(reward);
        row["sequence_length"] = json!(length);
        // Questions whose prompt the model cannot hold.
        row["left_out"] = json!(recipe.examples_per_step - rollouts.samples.len());
        row["rollout_ms"] = json!(1e3 * rollouts.seconds);
        let rate = rollouts.answer_tokens() as f64 / rollouts.seconds.max(1e-9);
        row["rollout_tokens_per_sec"] = json!(rate);
        session.row(progress.step, row, out);
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

/// Draws the answers of a step: the questions follow each other over the steps, again and again.
fn rollouts(run: &RlRun<'_>, trainer: &Trainer<'_>, step: u64) -> Result<Rollouts> {
    let start = Instant::now();
    let (recipe, n) = (run.recipe, run.recipe.examples_per_step);
    let draw = |i: usize| {
        let at = (step as usize * n + i) % run.questions.len(Part::Train).max(1);
        (Part::Train, at, seed_of(recipe.seed, step, i))
    };
    let draws: Vec<Draw> = (0..n).map(draw).collect();
    let mut samples = run.roll(trainer, &draws, &recipe.sampling)?;
    samples.retain(|drawn| !drawn.is_empty());
    if samples.is_empty() {
        let detail = format!(
            "no prompt of the {n} questions of step {step} fits into the model's {} tokens: take a model \
             with a longer context, or another task",
            trainer.model.config().sequence_len
        );
        return Err(Error::Recipe { what: "--task", detail });
    }
    Ok(Rollouts { samples, seconds: start.elapsed().as_secs_f64() })
}

impl RlRun<'_> {
    fn roll(
        &self,
        trainer: &Trainer<'_>,
        draws: &[Draw],
        sampling: &Sampling,
    ) -> Result<Vec<Vec<Sample>>> {
        let model = (trainer.be, trainer.model);
        roll(model, self.tokenizer, self.questions, draws, (sampling, self.rows))
    }
}

/// The part of a step that changes the weights.
struct Learning<'r, 's, 'a> {
    run: &'r RlRun<'a>,
    session: &'r mut Session<'s>,
    served: &'r Served,
}

impl Learning<'_, '_, '_> {
    /// One optimizer step for each pass over the samples. `None`: the step was passed over.
    ///
    /// A run that is asked to stop does so before the first pass has changed anything, or after the last:
    /// so a step is whole or not taken.
    fn learn(
        &mut self,
        trainer: &mut Trainer<'_>,
        train: &mut Replay<'_>,
        progress: &mut Progress,
        (rollouts, rates): (&Rollouts, &Rates),
        out: &mut dyn Observer,
    ) -> Result<Option<StepReport>> {
        let pass = Pass::new(self.run, trainer, &rollouts.samples)?;
        let stop = trainer.watch.stop.clone();
        let mut report: Option<StepReport> = None;
        for _ in 0..self.run.recipe.passes.max(1) {
            let batches = pass.batches(self.run, trainer)?;
            let count = batches.len();
            self.served.serve(batches);
            let step = self.session.step(trainer, train, progress, (count, rates), out);
            trainer.watch.stop = StopSignal::default();
            let one = match step {
                Ok(Some(one)) => one,
                other => {
                    trainer.watch.stop = stop;
                    return other;
                }
            };
            report = Some(match report {
                None => one,
                // Tokens of all passes, the loss of the first: the samples' own.
                Some(before) => StepReport {
                    tokens: before.tokens + one.tokens,
                    trained_tokens: before.trained_tokens + one.trained_tokens,
                    padding_tokens: before.padding_tokens + one.padding_tokens,
                    plan_s: before.plan_s + one.plan_s,
                    ..before
                },
            });
        }
        trainer.watch.stop = stop;
        Ok(report)
    }
}

/// The answers to the first questions of a test, for a reader.
fn shown(run: &RlRun<'_>, answers: &[Vec<Sample>]) -> Result<Vec<Value>> {
    let one = |(i, samples): (usize, &Vec<Sample>)| {
        let question = run.questions.get(Part::Test, i)?.text();
        let said = |s: &Sample| json!({"text": s.text, "reward": s.reward});
        let samples: Vec<Value> = samples.iter().map(said).collect();
        Ok(json!({"question": question, "answers": samples}))
    };
    answers.iter().take(SHOWN).enumerate().map(one).collect()
}

/// Shares of test questions that at least one of the first k samples answers, k = 1..8.
fn test(
    run: &RlRun<'_>,
    trainer: &Trainer<'_>,
    step: u64,
    out: &mut dyn Observer,
) -> Result<Value> {
    let start = Instant::now();
    let recipe = run.recipe;
    let sampling = Sampling { num_samples: TEST_SAMPLES, ..recipe.sampling.clone() };
    let n = recipe.eval_examples.min(run.questions.len(Part::Test));
    let draws: Vec<Draw> = (0..n).map(|i| (Part::Test, i, seed_of(TEST_SEED, 0, i))).collect();
    let answers = run.roll(trainer, &draws, &sampling)?;
    let mut passed = [0usize; TEST_SAMPLES];
    for samples in &answers {
        // A question that was not answered, because its prompt does not fit, is not passed.
        let first = samples.iter().position(|s| s.reward >= 1.0).unwrap_or(TEST_SAMPLES);
        passed[first..].iter_mut().for_each(|p| *p += 1);
    }
    let share = passed.map(|p| p as f64 / n.max(1) as f64);
    let words: Vec<_> =
        share.iter().enumerate().map(|(k, s)| format!("Pass@{}: {s:.4}", k + 1)).collect();
    out.line(LineKind::Event, &format!("Step {step} | {}", words.join(", ")));
    let seconds = start.elapsed().as_secs_f64();
    let mut row = json!({ "kind": "eval", "questions": n, "seconds": seconds });
    for (k, s) in share.iter().enumerate() {
        row[format!("pass@{}", k + 1)] = json!(s);
    }
    row["samples"] = Value::Array(shown(run, &answers)?);
    Ok(row)
}
