//! `nanochat train rl`: a finetuned model learns from right and wrong answers of its own.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nanochat_compute::Backend;
use nanochat_data::tasks::{self, ChatTask, NoRunner, Which, starter};
use nanochat_gpt::{Nano, checkpoint};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::rl::{self, RlRecipe, RlRun};
use nanochat_train::step::Trainer;
use serde_json::json;

use crate::cli::Global;
use crate::pipeline;
use crate::run_dir::RunDir;
use crate::screen::Screen;
use crate::stage::Optimizations;

/// Sums of the built-in world that are learned from, round and round.
const STARTER_QUESTIONS: usize = 2000;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RlTask {
    /// Sums of the built-in world.
    Starter,
    /// School mathematics in words, from the data folder.
    Gsm8k,
}

/// Flags of `train rl`.
#[derive(Args, Clone, Debug)]
pub struct RlArgs {
    /// What is asked.
    #[arg(long, value_enum, default_value_t = RlTask::Starter)]
    pub task: RlTask,
    /// A folder of downloaded data; none: `$NANOCHAT_DATA_DIR`, else the base directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Run directory with `tokenizer/` and `sft/`; none: the run that changed last.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Checkpoint to begin with; none: the run's newest of SFT.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Goes on from the run's newest valid RL checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// Steps; none: one pass over the questions.
    #[arg(long)]
    pub num_steps: Option<u64>,
    /// Questions of a step.
    #[arg(long, default_value_t = 16)]
    pub examples_per_step: usize,
    /// Answers drawn to each question.
    #[arg(long, default_value_t = 16)]
    pub num_samples: usize,
    /// Rows of a pass.
    #[arg(long, default_value_t = 8)]
    pub device_batch_size: usize,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// How answers are drawn.
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Tokens that are drawn from; 0 is all.
    #[arg(long, default_value_t = 50)]
    pub top_k: usize,
    /// Rate of the embeddings.
    #[arg(long, default_value_t = 0.2)]
    pub embedding_lr: f64,
    /// Rate of the head.
    #[arg(long, default_value_t = 0.004)]
    pub unembedding_lr: f64,
    /// Rate of the matrices.
    #[arg(long, default_value_t = 0.02)]
    pub matrix_lr: f64,
    /// Multiplies every rate.
    #[arg(long, default_value_t = 0.05)]
    pub init_lr_frac: f64,
    /// Muon's weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Divides advantages by the standard deviation of a question's rewards.
    #[arg(long)]
    pub normalize_advantage: bool,
    /// Weight of the divergence from where it began, in the reward; 0 is none.
    #[arg(long, default_value_t = 0.0)]
    pub kl_beta: f64,
    /// Optimizer steps on the same answers.
    #[arg(long, default_value_t = 1)]
    pub updates_per_rollout: usize,
    /// From the second of them on, how far an answer's likelihood per token may move.
    #[arg(long, default_value_t = 0.2)]
    pub clip: f64,
    /// Steps between tests (pass@1 to pass@8); 0: never.
    #[arg(long, default_value_t = 60)]
    pub eval_every: u64,
    /// Questions of a test.
    #[arg(long, default_value_t = 400)]
    pub eval_examples: usize,
    /// Steps between checkpoints; 0: at the end only.
    #[arg(long, default_value_t = 60)]
    pub save_every: u64,
}

impl RlArgs {
    fn recipe(&self, questions: usize, seed: u64) -> Result<RlRecipe> {
        let counts = [
            ("--examples-per-step", self.examples_per_step),
            ("--num-samples", self.num_samples),
            ("--device-batch-size", self.device_batch_size),
            ("--max-new-tokens", self.max_new_tokens),
            ("--updates-per-rollout", self.updates_per_rollout),
        ];
        if let Some((flag, _)) = counts.into_iter().find(|c| c.1 == 0) {
            bail!("{flag} must be at least 1");
        }
        if self.num_samples < 2 {
            bail!(
                "--num-samples 1: one answer is always as good as the mean, so nothing is learned"
            );
        }
        let rates = LearningRates {
            embedding: self.embedding_lr,
            unembedding: self.unembedding_lr,
            matrix: self.matrix_lr,
            ..LearningRates::default()
        };
        let smear = rates.smear * self.init_lr_frac;
        Ok(RlRecipe {
            num_steps: self.num_steps.unwrap_or((questions / self.examples_per_step).max(1) as u64),
            questions: self.examples_per_step,
            num_samples: self.num_samples,
            device_batch_size: self.device_batch_size,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: (self.top_k > 0).then_some(self.top_k),
            rates: LearningRates { smear, ..rates.scaled(self.init_lr_frac) },
            weight_decay: self.weight_decay,
            normalize_advantage: self.normalize_advantage,
            kl_beta: self.kl_beta,
            updates: self.updates_per_rollout,
            clip: self.clip,
            eval_every: self.eval_every,
            eval_questions: self.eval_examples,
            save_every: self.save_every,
            keep: 3,
            seed,
        })
    }

    /// Questions to learn from and to test by.
    fn questions(&self, seed: u64) -> Result<(ChatTask, ChatTask)> {
        Ok(match self.task {
            RlTask::Starter => {
                (starter::train(seed, STARTER_QUESTIONS), starter::test(seed, self.eval_examples))
            }
            RlTask::Gsm8k => {
                let data = crate::cmd::eval::data_dir(self.data_dir.as_deref());
                let entry = tasks::entry("GSM8K")?;
                (entry.load(&data, Which::Train)?, entry.load(&data, Which::Test)?)
            }
        })
    }
}

/// Runs the command.
pub fn run(args: &RlArgs, global: &Global) -> Result<()> {
    let start = Instant::now();
    let (train, test) = args.questions(global.seed)?;
    let recipe = args.recipe(train.questions.len(), global.seed)?;
    let run = RunDir::find(args.run.as_deref())?;
    let tokenizer = run.tokenizer()?;
    let be = global.backend()?;
    let be: &dyn Backend = &*be;
    let from = match &args.from {
        Some(path) => checkpoint::latest(path)?.0,
        None => {
            checkpoint::latest(&run.join("sft"))
                .context("RL begins with a finetuned model: run \"nanochat train sft\" first")?
                .0
        }
    };
    let dir = run.join("rl");
    let mut screen = Screen::open_log(&run)?;
    let resume = pipeline::resume_from(&dir, args.resume, &mut screen)?;
    screen.metrics(&run, "rl", pipeline::step_of(&resume)? + 1)?;
    let (model, meta) = checkpoint::load(be, resume.as_deref().unwrap_or(&from))?;
    if !meta.tokenizer.is_empty() && meta.tokenizer != tokenizer.fingerprint() {
        bail!("{} was trained with another tokenizer", from.display());
    }
    // The policy's beginning, of which only the weights are read.
    let begun: Option<Nano> = match recipe.kl_beta != 0.0 {
        true => Some(checkpoint::load(be, &from)?.0),
        false => None,
    };
    let optim = Optimizer::new(be, &model, recipe.rates)?;
    let t = model.config().sequence_len;
    let mut trainer = Trainer::new(be, &model, optim, recipe.device_batch_size, t)?;
    screen.say(&format!(
        "rl | {} | {} | {} questions x {} answers a step | from {}",
        be.name(),
        train.name,
        recipe.questions,
        recipe.num_samples,
        from.display()
    ));
    let job = RlRun {
        recipe: &recipe,
        dir: &dir,
        tokenizer: &tokenizer,
        train: &train,
        test: &test,
        runner: &NoRunner,
        start: begun.as_ref(),
        resume,
    };
    let outcome = rl::run(job, &mut trainer, &mut screen).context("reinforcement stopped")?;
    drop(screen);
    let settings = json!({"rl": &recipe});
    let mut before: serde_json::Map<String, serde_json::Value> =
        run.read_json("run.json")?.unwrap_or_default();
    before.entry("settings").or_insert_with(|| json!({}))["rl"] = settings["rl"].clone();
    run.write_json("run.json", &before)?;
    super::finish(&run, "rl", &Optimizations::default(), &outcome, start, global)
}
