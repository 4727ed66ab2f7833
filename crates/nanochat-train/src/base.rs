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
use crate::recipe::Recipe;
use crate::resume::{self, Identity, Progress};
use crate::step::Trainer;

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
pub fn run(
    mut run: BaseRun<'_>,
    trainer: &mut Trainer<'_>,
    out: &mut dyn Observer,
) -> Result<Outcome> {
    let (recipe, cadence) = (run.recipe, run.cadence);
    let id = Identity {
        stage: "base",
        tokenizer: run.tokenizer.fingerprint(),
        settings: serde_json::to_value(recipe).expect("a recipe has only string keys"),
    };
    let mut progress = match &run.resume {
        Some(dir) => resume::restore(dir, &id, trainer, run.train)?,
        None => Progress::default(),
    };
    let first = progress.step;
    let last = recipe.schedule.num_iterations;
    let mut pace = Pace::resumed(progress.train_s);
    let token_bytes = run.tokenizer.token_bytes();
    loop {
        let step = progress.step;
        let resumed_here = run.resume.is_some() && step == first;
        if due(step, cadence.eval_every, last) && !resumed_here {
            validate(&mut run, trainer, &mut progress, &token_bytes, out)?;
        }
        if due(step, cadence.sample_every, last) && step > 0 && !resumed_here {
            for text in samples(trainer, run.tokenizer, &cadence.prompts) {
                out.line(LineKind::Event, &text);
            }
        }
        if due(step, cadence.save_every, last) && step > 0 && !resumed_here {
            progress.train_s = pace.train_s;
            let path = resume::save(run.dir, &id, trainer, run.train, &progress, cadence.keep)?;
            out.line(LineKind::Event, &format!("checkpoint {}", path.display()));
        }
        if step >= last {
            break;
        }
        let rates = recipe.schedule.at(step);
        let report = trainer.step(step, run.train, recipe.accumulation, &rates)?;
        progress.totals.push(&report);
        let smooth = progress.smooth.push(report.loss);
        progress.step += 1;
        let eta = pace.push(report.dt_s, last - progress.step);
        let lrm = rates.lr_multiplier;
        let line = step_line(progress.step, last, smooth, lrm, &report, eta);
        out.line(LineKind::Step, &line);
        out.row(step_row("base", progress.step, smooth, lrm, &report, pace.train_s))?;
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
    run: &mut BaseRun<'_>,
    trainer: &Trainer<'_>,
    progress: &mut Progress,
    token_bytes: &[u32],
    out: &mut dyn Observer,
) -> Result<()> {
    let (b, t) = (run.recipe.device_batch_size, run.recipe.config.sequence_len);
    let buffers = trainer.eval_buffers(b, t)?;
    let n = (run.cadence.eval_tokens / (b * t)).max(1);
    let mut batches = (run.val)()?;
    let sum = bpb::evaluate(trainer.be, trainer.model, &buffers, batches.as_mut(), n, token_bytes)?;
    let (step, bpb) = (progress.step, sum.bpb());
    progress.val_bpb = Some(bpb);
    progress.min_val_bpb = Some(progress.min_val_bpb.map_or(bpb, |m| m.min(bpb)));
    out.line(LineKind::Event, &format!("Step {step:05} | Validation bpb: {bpb:.6}"));
    out.row(json!({
        "kind": "eval", "stage": "base", "step": step, "val_bpb": bpb, "tokens": sum.tokens,
    }))
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
