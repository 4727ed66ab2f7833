//! `nanochat train rl`: a chat model from questions that a program can grade.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use nanochat_compute::Backend;
use nanochat_compute::comm::Solo;
use nanochat_data::tasks::{self, Which, custom, starter};
use nanochat_gpt::checkpoint;
use nanochat_tokenizer::Tokenizer;
use nanochat_train::answers::ROWS;
use nanochat_train::base::Outcome;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::ranks::sums::Sum;
use nanochat_train::rl::objective::Objective;
use nanochat_train::rl::questions::{Part, Questions, TaskQuestions};
use nanochat_train::rl::rollout::Sampling;
use nanochat_train::rl::{self, RlRecipe, RlRun};
use nanochat_train::step::Trainer;
use serde::{Deserialize, Serialize};

use super::survive::StageSurvival;
use super::{finish, supervise};
use crate::cli::Global;
use crate::pipeline::{StageOptions, before_training, resume_from, step_of};
use crate::ranks;
use crate::run_dir::RunDir;
use crate::run_lock::RunLock;
use crate::screen::Screen;
use crate::stage::Optimizations;

/// Sums of the built-in world that are learned from, round and round.
const STARTER_QUESTIONS: usize = 2000;

/// Which questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskFlag {
    /// Sums of the built-in world, with the calculator.
    Starter,
    /// Small sums of the built-in world, in the head: the calculator does not answer.
    Mental,
    /// School mathematics in words, from the data folder.
    Gsm8k,
}

/// Flags of `train rl`.
#[derive(Args, Clone, Debug)]
pub struct RlArgs {
    /// Run directory with `tokenizer/` and `sft/`; none: the run that changed last.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Checkpoint to begin with; none: the run's newest of SFT.
    #[arg(long)]
    pub from: Option<PathBuf>,
    /// Goes on from the run's newest valid RL checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// How the run survives.
    #[command(flatten)]
    pub survival: StageSurvival,
    /// What is asked.
    #[arg(long, value_enum, default_value_t = TaskFlag::Starter)]
    pub task: TaskFlag,
    /// Questions of your own to learn from, in place of --task (docs/EVALS.md says how they look).
    #[arg(long, conflicts_with = "task")]
    pub task_file: Option<PathBuf>,
    /// Questions of your own to test by; none: those of --task-file.
    #[arg(long, requires = "task_file")]
    pub test_file: Option<PathBuf>,
    /// Seed of the built-in world whose questions are asked; none: --seed.
    #[arg(long, value_name = "SEED")]
    pub world: Option<u64>,
    /// A folder of downloaded data; none: `$NANOCHAT_DATA_DIR`, else the base directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Leaves the calculator out.
    #[arg(long)]
    pub no_tools: bool,
    /// Steps; wins over --num-epochs.
    #[arg(long)]
    pub num_iterations: Option<u64>,
    /// Passes over the questions.
    #[arg(long, default_value_t = 1)]
    pub num_epochs: u64,
    /// Questions of a step.
    #[arg(long, default_value_t = 16)]
    pub examples_per_step: usize,
    /// Answers drawn to a question.
    #[arg(long, default_value_t = 16)]
    pub num_samples: usize,
    /// Answers of a micro batch.
    #[arg(long, default_value_t = 8)]
    pub device_batch_size: usize,
    /// Answers drawn at once; more are faster and take more memory. On a CPU they are the same ones.
    #[arg(long, default_value_t = ROWS)]
    pub rollout_rows: usize,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Temperature of the draws.
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f32,
    /// Ids that may be drawn; 0: all.
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
    /// Rate of the scalars.
    #[arg(long, default_value_t = 0.5)]
    pub scalar_lr: f64,
    /// Multiplies every rate.
    #[arg(long, default_value_t = 0.05)]
    pub init_lr_frac: f64,
    /// Muon's weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Also trains the id that ends an answer.
    #[arg(long)]
    pub train_end_of_turn: bool,
    /// Divides advantages by the deviation of their question's rewards.
    #[arg(long)]
    pub normalize_advantage: bool,
    /// No gradient beyond this change of an id's probability; for --passes above 1.
    #[arg(long, value_name = "EPS")]
    pub clip_ratio: Option<f64>,
    /// Pulls towards the model that the run began with.
    #[arg(long, default_value_t = 0.0, value_name = "BETA")]
    pub kl: f64,
    /// Optimizer steps over the same answers.
    #[arg(long, default_value_t = 1)]
    pub passes: usize,
    /// Steps between tests; 0: at the beginning and the end only.
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
    fn check(&self) -> Result<()> {
        let sizes = [
            ("--examples-per-step", self.examples_per_step),
            ("--device-batch-size", self.device_batch_size),
            ("--max-new-tokens", self.max_new_tokens),
            ("--passes", self.passes),
        ];
        if let Some((name, _)) = sizes.into_iter().find(|(_, n)| *n == 0) {
            bail!("{name} is 0: give at least 1");
        }
        let n = self.num_samples;
        ensure!(
            n >= 2,
            "--num-samples {n}: one answer is always as good as the mean, so nothing is learned: give 2 or more"
        );
        if let Some(eps) = self.clip_ratio {
            ensure!(eps > 0.0 && eps < 1.0, "--clip-ratio {eps}: give a share between 0 and 1");
        }
        ensure!(self.kl >= 0.0 && self.kl.is_finite(), "--kl {}: give 0 or more", self.kl);
        Ok(())
    }

    fn recipe(&self, questions: &dyn Questions, seed: u64) -> RlRecipe {
        let per_epoch = (questions.len(Part::Train) / self.examples_per_step).max(1) as u64;
        let first = LearningRates {
            embedding: self.embedding_lr,
            unembedding: self.unembedding_lr,
            matrix: self.matrix_lr,
            scalar: self.scalar_lr,
            ..LearningRates::default()
        };
        RlRecipe {
            num_iterations: self.num_iterations.unwrap_or(self.num_epochs * per_epoch),
            examples_per_step: self.examples_per_step,
            device_batch_size: self.device_batch_size.min(self.num_samples),
            sampling: Sampling {
                num_samples: self.num_samples,
                max_new_tokens: self.max_new_tokens,
                temperature: self.temperature,
                top_k: Some(self.top_k).filter(|k| *k > 0),
                tools: !self.no_tools && self.task != TaskFlag::Mental,
                train_end_of_turn: self.train_end_of_turn,
            },
            objective: Objective {
                normalize_advantage: self.normalize_advantage,
                clip_ratio: self.clip_ratio,
                kl: self.kl,
            },
            passes: self.passes,
            rates: begin_at(first, self.init_lr_frac),
            weight_decay: self.weight_decay,
            seed,
            eval_every: self.eval_every,
            eval_examples: self.eval_examples,
            save_every: self.save_every,
            keep: 3,
        }
    }
}

/// Rates at the beginning: a share of `rates`, that of smear as well.
pub fn begin_at(rates: LearningRates, share: f64) -> LearningRates {
    LearningRates { smear: rates.smear * share, ..rates.scaled(share) }
}

/// Questions of a task: to learn from, and `most` at most to test by.
///
/// Errors: data that is not there.
pub fn questions(
    task: TaskFlag,
    data: Option<&Path>,
    (seed, most): (u64, usize),
) -> Result<TaskQuestions> {
    let most = most.max(1);
    let (train, test) = match task {
        TaskFlag::Starter => (starter::train(seed, STARTER_QUESTIONS), starter::test(seed, most)),
        TaskFlag::Mental => {
            (starter::mental_train(seed, STARTER_QUESTIONS), starter::mental_test(seed, most))
        }
        TaskFlag::Gsm8k => {
            let data = crate::cmd::eval::data_dir(data);
            let entry = tasks::entry("GSM8K")?;
            (entry.load(&data, Which::Train)?, entry.load(&data, Which::Test)?)
        }
    };
    Ok(TaskQuestions::new(train, test)?)
}

/// Questions of one's own.
fn own_questions(train: &Path, test: Option<&Path>) -> Result<TaskQuestions> {
    let (learned, asked) = (custom::load(train)?, custom::load(test.unwrap_or(train))?);
    Ok(TaskQuestions::new(learned, asked)?)
}

/// Runs the command.
pub(super) fn run(args: &RlArgs, global: &Global) -> Result<()> {
    args.check()?;
    ranks::expect_one("train rl")?;
    let start = Instant::now();
    let run = RunDir::find(args.run.as_deref())?;
    let survival = args.survival.listen()?;
    if args.survival.supervise {
        return supervise::run(&run, "rl", args.resume, &survival.stop);
    }
    let _lock = RunLock::take(&run)?;
    let tokenizer = run.tokenizer()?;
    let from = match &args.from {
        Some(path) => checkpoint::latest(path)?.0,
        None => {
            checkpoint::latest(&run.join("sft"))
                .context(
                    "reinforcement begins with a chat model: run \"nanochat train sft\" first",
                )?
                .0
        }
    };
    let seed = global.seed;
    let questions = match &args.task_file {
        Some(file) => own_questions(file, args.test_file.as_deref())?,
        None => {
            let drawn = (args.world.unwrap_or(seed), args.eval_examples);
            questions(args.task, args.data_dir.as_deref(), drawn)?
        }
    };
    let recipe = args.recipe(&questions, seed);
    let be = global.backend()?;
    let options = StageOptions {
        resume: args.resume,
        seed,
        eval_tokens_given: false,
        survival,
        comm: &Solo,
        sum: Sum::default(),
    };
    let of = Reinforced { recipe: &recipe, questions: &questions, rows: args.rollout_rows };
    let outcome = train(&*be, &run, &tokenizer, &from, of, &options)?;
    finish(&run, "rl", &Optimizations::default(), &outcome, start, global)
}

/// What a model is reinforced by.
pub struct Reinforced<'a> {
    /// Values.
    pub recipe: &'a RlRecipe,
    /// What is asked.
    pub questions: &'a dyn Questions,
    /// Answers drawn at once.
    pub rows: usize,
}

/// Reinforces `from` (a step of an SFT run) in the run's `rl` folder.
pub fn train(
    be: &dyn Backend,
    run: &RunDir,
    tokenizer: &Tokenizer,
    from: &Path,
    Reinforced { recipe, questions, rows }: Reinforced<'_>,
    options: &StageOptions,
) -> Result<Outcome> {
    let dir = run.join("rl");
    let mut screen = Screen::open_log(run)?;
    let resume = resume_from(&dir, options.resume, &mut screen)?;
    // Tests are of the step before the next one; a run that goes on does not repeat its last.
    let next = step_of(&resume)?;
    screen.metrics(run, "rl", if resume.is_some() { next + 1 } else { 0 })?;
    let (model, meta) = checkpoint::load(be, resume.as_deref().unwrap_or(from))?;
    if !meta.tokenizer.is_empty() && meta.tokenizer != tokenizer.fingerprint() {
        bail!("{} was trained with another tokenizer", from.display());
    }
    let reference = match recipe.objective.kl > 0.0 {
        true => Some(checkpoint::load(be, from)?.0),
        false => None,
    };
    let optim = Optimizer::new(be, &model, recipe.rates)?;
    let t = model.config().sequence_len;
    let mut trainer = Trainer::new(be, &model, optim, recipe.device_batch_size, t)?;
    screen.say(&format!(
        "rl | {} | {} questions x {} answers a step, {} steps | {} | from {}",
        be.name(),
        recipe.examples_per_step,
        recipe.sampling.num_samples,
        recipe.num_iterations,
        questions.fingerprint(),
        from.display()
    ));
    let (id, survival) = (rl::identity(recipe, tokenizer), &options.survival);
    let state = (&trainer, questions.fingerprint(), &id);
    before_training(run, &dir, state, resume.as_deref(), survival, &mut screen)?;
    let reference = reference.as_ref();
    let rl = RlRun { recipe, dir: &dir, tokenizer, questions, reference, resume, rows, survival };
    rl::run(rl, &mut trainer, &mut screen).context("reinforcement stopped")
}
