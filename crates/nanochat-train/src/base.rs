//! Pretraining: documents to a base model. Source: nanochat `base_train.py`, July 2026.

use std::path::{Path, PathBuf};

use nanochat_data::Batches;
use nanochat_engine::generate::{Engine, GenerateOptions};
use nanochat_engine::sample::SampleOptions;
use nanochat_gpt::checkpoint;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Result;
use crate::eval::bpb;
use crate::metrics::{LineKind, Observer, Pace, step_line, step_row};
use crate::ranks::dealt;
use crate::recipe::Recipe;
use crate::replay::Replay;
use crate::resume::{Identity, Progress};
use crate::step::Trainer;
use crate::survival::{Session, Survival};

/// When a base run looks up from its work; 0 means never, the end always counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cadence {
    /// Steps between validations.
    pub eval_every: u64,
    /// Tokens of a validation.
    pub eval_tokens: usize,
    /// Steps between samples.
    pub sample_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
    /// What samples begin with.
    pub prompts: Vec<String>,
}

impl Default for Cadence {
    fn default() -> Self {
        let prompts = [
            "The capital of France is",
            "The chemical symbol of gold is",
            "If yesterday was Friday, then tomorrow will be",
            "The opposite of hot is",
            "The planets of the solar system are:",
            "My favorite color is",
            "If 5*x + 3 = 13, then x is",
        ];
        Self {
            eval_every: 250,
            eval_tokens: 80 * 524_288,
            sample_every: 2000,
            save_every: 0,
            keep: 3,
            prompts: prompts.map(String::from).into(),
        }
    }
}

/// Everything a base run is made of.
pub struct BaseRun<'a> {
    /// Its values.
    pub recipe: &'a Recipe,
    /// When it looks up.
    pub cadence: &'a Cadence,
    /// Checkpoints.
    pub dir: &'a Path,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Training batches.
    pub train: &'a mut dyn Batches,
    /// A fresh stream of validation batches of the same shape.
    pub val: &'a mut dyn FnMut() -> Result<Box<dyn Batches>>,
    /// Goes on from this step's directory.
    pub resume: Option<PathBuf>,
    /// What happens to it that nobody planned.
    pub survival: &'a Survival,
}

/// What names a base run: a checkpoint of another is not gone on with.
pub fn identity(recipe: &Recipe, tokenizer: &Tokenizer) -> Identity {
    Identity {
        stage: "base",
        tokenizer: tokenizer.fingerprint(),
        settings: serde_json::to_value(recipe).expect("a recipe has only string keys"),
    }
}

/// What a finished run reached.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps, losses, validation.
    pub progress: Progress,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Seconds of training steps.
    pub train_s: f64,
    /// Median seconds of a step of this session; none if it took none.
    pub step_s: Option<f64>,
    /// How often a step was planned in this session.
    pub plans: u64,
}

fn due(step: u64, every: u64, last: u64) -> bool {
    step == last || (every > 0 && step.is_multiple_of(every))
}

/// Trains to the end of the recipe; validates, samples and saves on the way.
///
/// Errors: [`crate::Error::Stopped`] when it was asked to stop, which is saved; see [`Survival`].
pub fn run(run: BaseRun<'_>, trainer: &mut Trainer<'_>, out: &mut dyn Observer) -> Result<Outcome> {
    let BaseRun { recipe, cadence, dir, tokenizer, train, val, resume, survival } = run;
    let id = identity(recipe, tokenizer);
    let mut session = Session::new(dir, &id, cadence.keep, survival);
    let mut train = Replay::new(train);
    let mut progress = session.begin(resume.as_deref(), trainer, &mut train, out)?;
    let last = recipe.schedule.num_iterations;
    let mut pace = Pace::resumed(progress.train_s);
    let token_bytes = tokenizer.token_bytes();
    let mut validation = Validation {
        shape: (recipe.device_batch_size, recipe.config.sequence_len),
        tokens: cadence.eval_tokens,
        token_bytes: &token_bytes,
        val,
    };
    loop {
        let step = progress.step;
        let is_saved = session.saved == Some(step);
        if due(step, cadence.eval_every, last) && progress.val_step != Some(step) {
            validation.run(&mut session, trainer, &train, &mut progress, out)?;
        }
        let is_first = trainer.comm.rank() == 0;
        if due(step, cadence.sample_every, last) && step > 0 && !is_saved && is_first {
            for text in samples(trainer, tokenizer, &cadence.prompts) {
                out.line(LineKind::Event, &text);
            }
        }
        progress.train_s = pace.train_s;
        session.settle(false, trainer, step, out)?;
        if step >= last {
            session.save_at_end(trainer, &train, &progress, out)?;
            break;
        }
        if step > 0 && (due(step, cadence.save_every, last) || session.retries(step)) {
            session.save(trainer, &train, &progress, out)?;
        }
        let rates = recipe.schedule.at(step);
        let how = (recipe.accumulation, &rates);
        let Some(report) = session.step(trainer, &mut train, &mut progress, how, out)? else {
            continue;
        };
        progress.totals.push(&report);
        let smooth = progress.smooth.push(report.loss);
        progress.step += 1;
        let eta = pace.push(report.dt_s, last - progress.step);
        let lrm = rates.lr_multiplier;
        let line = step_line(progress.step, last, smooth, lrm, &report, eta);
        out.line(LineKind::Step, &line);
        let row = step_row("base", progress.step, smooth, lrm, &report, pace.train_s);
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

/// Bits per byte of validation batches, between steps.
pub(crate) struct Validation<'a> {
    /// (B, T).
    pub shape: (usize, usize),
    /// Tokens of it.
    pub tokens: usize,
    /// Raw bytes of each token.
    pub token_bytes: &'a [u32],
    /// A fresh stream.
    pub val: &'a mut dyn FnMut() -> Result<Box<dyn Batches>>,
}

impl Validation<'_> {
    /// Measures and tells. Errors: a run that is asked to stop meanwhile saves and ends, and validates
    /// when it goes on.
    pub fn run(
        &mut self,
        session: &mut Session<'_>,
        trainer: &mut Trainer<'_>,
        train: &Replay<'_>,
        progress: &mut Progress,
        out: &mut dyn Observer,
    ) -> Result<()> {
        let (b, t) = self.shape;
        let buffers = trainer.eval_buffers(b, t)?;
        let n = (self.tokens / (b * t)).max(1);
        let (be, model, comm) = (trainer.be, trainer.model, trainer.comm);
        let sum = if comm.world() == 1 {
            let mut batches = session.until_asked((self.val)()?);
            let sum = bpb::evaluate(be, model, &buffers, batches.as_mut(), n, self.token_bytes);
            match (sum, session.asked()) {
                (Err(_), Some(why)) => {
                    return Err(session.stopped(why, trainer, train, progress, out));
                }
                (sum, _) => sum?,
            }
        } else {
            // Asked to stop, ranks do so together, after it.
            let (mut batches, n) = dealt::of_rank((self.val)()?, n, comm);
            let sum = bpb::evaluate(be, model, &buffers, &mut batches, n, self.token_bytes)?;
            dealt::total(sum, comm)?
        };
        let (step, bpb) = (progress.step, sum.bpb());
        progress.val_bpb = Some(bpb);
        progress.val_step = Some(step);
        progress.min_val_bpb = Some(progress.min_val_bpb.map_or(bpb, |m| m.min(bpb)));
        out.line(LineKind::Event, &format!("Step {step:05} | Validation bpb: {bpb:.6}"));
        session.row(step, json!({"kind": "eval", "val_bpb": bpb, "tokens": sum.tokens}), out);
        Ok(())
    }
}

/// Greedy continuations of the prompts, 16 tokens each. A prompt that cannot be continued (T is shorter
/// than it) says so: what is only shown does not end a run.
fn samples(trainer: &Trainer<'_>, tokenizer: &Tokenizer, prompts: &[String]) -> Vec<String> {
    let text = |prompt: &String| match sample(trainer, tokenizer, prompt) {
        Ok(text) => format!("sample | {prompt}{}", text.replace('\n', " ")),
        Err(e) => format!("sample | {prompt} (not continued: {e})"),
    };
    prompts.iter().map(text).collect()
}

fn sample(trainer: &Trainer<'_>, tokenizer: &Tokenizer, prompt: &str) -> Result<String> {
    let limit = trainer.model.config().sequence_len;
    let mut decoder = NanoDecoder::new(trainer.be, trainer.model, limit)?;
    let options = GenerateOptions::new(SampleOptions::greedy(), 16);
    let mut ids = vec![tokenizer.bos()];
    ids.extend(tokenizer.encode(prompt));
    let generation = Engine::new(&mut decoder, tokenizer)?
        .generate(&ids, &options, |_| std::ops::ControlFlow::Continue(()))?;
    Ok(generation.rows[0].text().to_string())
}
