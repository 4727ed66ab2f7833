//! `nanochat speedrun`: tokenizer, pretraining, finetuning, reinforcement if asked for, evaluation after
//! each, report, a sample chat - one command, resumable.

mod dry_run;
mod evaluate;
mod plan;
mod rl_plan;
mod talk;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use nanochat_compute::Backend;
use nanochat_compute::comm::Solo;
use nanochat_compute::eager::Eager;
use nanochat_engine::Diversity;
use nanochat_gpt::checkpoint;
use nanochat_gpt::nano::count::ParamCount;
use nanochat_tokenizer::{Tokenizer, TrainOptions};
use nanochat_train::base::Outcome;
use nanochat_train::batch_size::Job;
use nanochat_train::eval::held_out::Score;
use nanochat_train::ranks::sums::Sum;
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::survival::Survival;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::train::rl::TaskFlag;
use super::train::{CadenceFlags, RecipeFlags, SurvivalFlags};
use crate::batch::{self, BatchFlags};
use crate::cli::Global;
use crate::figures::thousands;
use crate::machine::{self, Machine};
use crate::pipeline::{self, StageOptions};
use crate::run_dir::{RunDir, base_dir};
use crate::run_lock::RunLock;
use crate::screen::Screen;
use crate::stage::{Optimizations, Stage};
use dry_run::dry_run;
use plan::Plan;

/// Sizes of a pipeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The default: a model that talks, in minutes on two cores.
    #[default]
    Starter,
    /// Seconds; it babbles, but every stage runs.
    Tiny,
}

/// Flags of `speedrun`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  nanochat speedrun\n  nanochat speedrun --rl\n  nanochat speedrun --dry-run\n  nanochat speedrun --data books/ --sft-data dolly.jsonl --vocab-size 8192 --depth 4"
)]
pub struct SpeedrunArgs {
    /// Sizes of everything that is not given.
    #[arg(long, value_enum, default_value_t = Preset::Starter)]
    pub preset: Preset,
    /// Pretraining text: files or folders; none: the embedded starter corpus.
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Conversations; none: the embedded starter corpus.
    #[arg(long, num_args = 1..)]
    pub sft_data: Vec<PathBuf>,
    /// Passes over bad rows and records, counted, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
    /// Tokens of the vocabulary.
    #[arg(long)]
    pub vocab_size: Option<usize>,
    /// Steps of finetuning.
    #[arg(long)]
    pub sft_iterations: Option<u64>,
    /// Reinforces the finetuned model as well.
    #[arg(long)]
    pub rl: bool,
    /// What it is asked then.
    #[arg(long, value_enum, default_value_t = TaskFlag::Mental, requires = "rl")]
    pub rl_task: TaskFlag,
    /// Steps of reinforcement.
    #[arg(long, requires = "rl")]
    pub rl_iterations: Option<u64>,
    /// A folder of downloaded data: CORE is measured after pretraining, chat tasks after finetuning and
    /// reinforcement, on --eval-items of each task.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Held-out items of each kind, and items of each task of --data-dir.
    #[arg(long)]
    pub eval_items: Option<usize>,
    /// Run directory; none: a new one under `$NANOCHAT_BASE_DIR/runs`.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Goes on with the run (--run, else the one that changed last) where it stopped.
    #[arg(long)]
    pub resume: bool,
    /// All four optimizations off: 4 rows a micro batch, an eager SFT step on padded rows, no KV cache, one
    /// first token for all samples. For comparisons.
    #[arg(long)]
    pub baseline: bool,
    /// Prints the plan - parameters, bytes, tokens, FLOPs, time - and does nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Sizes, steps and rates.
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// How the rows of a micro batch are chosen.
    #[command(flatten)]
    pub batch: BatchFlags,
    /// Evaluations, samples, checkpoints.
    #[command(flatten)]
    pub cadence: CadenceFlags,
    /// How the run survives.
    #[command(flatten)]
    pub survival: SurvivalFlags,
}

/// The run between its stages: what is done, and how long it took over all sessions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    stages: std::collections::BTreeMap<String, Stage>,
    val_bpb: Option<f64>,
    peak_rss_bytes: u64,
    decode_tokens_per_sec: Option<f64>,
    #[serde(default)]
    diversity: Option<Diversity>,
    #[serde(default)]
    optimizations: Optimizations,
}

const STATE: &str = "stages.json";

struct Pipeline<'a> {
    be: &'a dyn Backend,
    /// What the baseline finetunes with.
    eager: Option<Eager>,
    plan: Plan,
    /// The plan's, with the vocabulary that the tokenizer has.
    ask: Ask,
    recipe: Recipe,
    run: RunDir,
    state: State,
    resume: bool,
    survival: Survival,
}

/// Runs the command.
pub fn run(args: &SpeedrunArgs, global: &Global) -> Result<()> {
    let plan = Plan::new(args, global);
    let recipe = Recipe::new(&plan.ask)?;
    let be = global.backend()?;
    let be = &*be;
    if args.dry_run {
        return dry_run(be, &plan, &recipe);
    }
    let run = open_run(args, &plan)?;
    let _lock = RunLock::take(&run)?;
    let survival = args.survival.listen(false)?;
    let state = run.read_json(STATE)?.unwrap_or_default();
    if plan.baseline {
        global.expect_cpu("--baseline")?;
    }
    let eager = if plan.baseline { Some(Eager::new(global.cpu()?)) } else { None };
    let (ask, resume) = (plan.ask.clone(), args.resume);
    let mut pipeline = Pipeline { be, eager, plan, ask, recipe, run, state, resume, survival };
    pipeline.record(global)?;
    pipeline.go(global)
}

/// A new directory, or the one to go on with.
fn open_run(args: &SpeedrunArgs, plan: &Plan) -> Result<RunDir> {
    if args.resume {
        let run = RunDir::find(args.run.as_deref())?;
        let before: Option<Value> = run.read_json("run.json")?;
        let before = before.map(|b| serde_json::from_value::<Plan>(b["settings"]["plan"].clone()));
        // How a batch is chosen may change: a run goes on with the one it has.
        let same = |b: Plan| Plan { batch: plan.batch, ..b } == *plan;
        if before.is_some_and(|b| !b.is_ok_and(same)) {
            bail!(
                "{} was started with other settings (see its run.json): give the same ones, or begin a \
                 new run without --resume",
                run.root().display()
            );
        }
        return Ok(run);
    }
    let run = match &args.run {
        Some(dir) => RunDir::open_or_create(Some(dir), "")?,
        None => {
            let runs = base_dir().join("runs");
            let name = |n: u32| if n == 0 { "speedrun".into() } else { format!("speedrun-{n}") };
            let free = (0..).map(name).find(|n: &String| !runs.join(n).exists());
            RunDir::open_or_create(None, &free.expect("numbers do not end"))?
        }
    };
    if run.join("run.json").exists() {
        bail!(
            "{} already holds a run: go on with --resume, or choose another --run",
            run.root().display()
        );
    }
    Ok(run)
}

impl Pipeline<'_> {
    fn go(&mut self, global: &Global) -> Result<()> {
        let mut screen = Screen::open_log(&self.run)?;
        screen.say(&format!("run {} | {}", self.run.root().display(), self.be.name()));
        let tokenizer = self.tokenizer(&mut screen)?;
        // The vocabulary may come out smaller than asked when the text is short.
        self.ask.vocab_size = tokenizer.vocab_size();
        self.recipe = Recipe::new(&self.ask)?;
        self.print_parameters(&mut screen);
        drop(screen);
        self.base(&tokenizer, global)?;
        self.evaluate("base", &tokenizer, global)?;
        self.sft(&tokenizer)?;
        let mut scores = self.evaluate("sft", &tokenizer, global)?;
        if self.plan.rl.is_some() {
            self.rl(&tokenizer)?;
            scores = self.evaluate("rl", &tokenizer, global)?;
        }
        let samples = self.chat(&tokenizer)?;
        self.finish(global, &scores, &samples)
    }

    /// Says in run.json what the run is made of.
    fn record(&self, global: &Global) -> Result<()> {
        self.run.write_json(
            "run.json",
            &json!({
                "command": std::env::args().collect::<Vec<_>>(), "version": machine::VERSION,
                "started": machine::unix_seconds(), "machine": Machine::here(global)?,
                "settings": {"plan": &self.plan, "recipe": &self.recipe},
            }),
        )
    }

    fn done(&mut self, name: &str, start: Instant, trained: Option<&Outcome>) -> Result<()> {
        let before = self.state.stages.get(name).map_or(0.0, |s| s.seconds);
        let seconds = before + start.elapsed().as_secs_f64();
        let stage = match trained {
            Some(outcome) => Stage::trained(seconds, outcome),
            None => Stage::untrained(seconds),
        };
        self.state.stages.insert(name.into(), stage);
        self.state.peak_rss_bytes = self.state.peak_rss_bytes.max(machine::peak_rss_bytes());
        self.run.write_json(STATE, &self.state)
    }

    fn tokenizer(&mut self, screen: &mut Screen) -> Result<Tokenizer> {
        if self.resume && self.run.join("tokenizer").exists() {
            return self.run.tokenizer();
        }
        let start = Instant::now();
        let options = TrainOptions { vocab_size: self.plan.vocab_size, ..TrainOptions::default() };
        let corpus = self.plan.corpus(&self.recipe);
        let tokenizer = pipeline::train_tokenizer(&self.run, &corpus, &options, screen)?;
        self.done("tokenizer", start, None)?;
        Ok(tokenizer)
    }

    fn print_parameters(&self, screen: &mut Screen) {
        let n = ParamCount::of(&self.recipe.config);
        for (name, n) in n.rows() {
            screen.say(&format!("{name:<24}: {}", thousands(n as u64)));
        }
    }

    fn options(&self) -> StageOptions<'static> {
        let (resume, seed) = (self.resume, self.plan.seed);
        let (survival, comm, sum) = (self.survival.clone(), &Solo, Sum::default());
        StageOptions { resume, seed, eval_tokens_given: false, survival, comm, sum }
    }

    /// The rows of a stage's micro batch, chosen, said and noted.
    fn settle(&mut self, stage: &str, be: &dyn Backend) -> Result<usize> {
        let resumed = batch::resumed(&self.run.join(stage), self.resume)?;
        let wanted = self.plan.wanted(resumed);
        let config = &self.recipe.config;
        let (t, rows) = (config.sequence_len, self.recipe.total_batch_size / config.sequence_len);
        let mut screen = Screen::open_log(&self.run)?;
        let job = Job { config, t, rows };
        let say = &mut |line: &str| screen.say(line);
        let (b, choice) = batch::settle(be, &job, wanted, &self.plan.batch, say)?;
        self.state.optimizations.batch(stage, wanted, b, choice.as_ref());
        self.run.write_json(STATE, &self.state)?;
        Ok(b)
    }

    fn base(&mut self, tokenizer: &Tokenizer, global: &Global) -> Result<()> {
        let start = Instant::now();
        let run = self.run.clone();
        let data = self.plan.corpus(&self.recipe).split()?;
        let b = self.settle("base", self.be)?;
        self.recipe = Recipe::new(&Ask { device_batch_size: Some(b), ..self.ask.clone() })?;
        self.record(global)?;
        let recipe = self.recipe.clone();
        let cadence = &self.plan.cadence;
        let options = self.options();
        let out = pipeline::train_base(self.be, &run, tokenizer, &recipe, cadence, &data, options)?;
        self.state.val_bpb = out.progress.val_bpb.or(self.state.val_bpb);
        self.done("base", start, Some(&out))
    }

    fn sft(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let start = Instant::now();
        let run = self.run.clone();
        let from = checkpoint::latest(&run.join("base"))?.0;
        let data = self.plan.talks(&self.recipe).split(&mut Screen::open_log(&run)?)?;
        let eager = self.eager.take();
        let be = eager.as_ref().map_or(self.be, |eager| eager as &dyn Backend);
        let b = self.settle("sft", be)?;
        let t = self.recipe.config.sequence_len;
        let recipe = self.plan.sft(&self.recipe, b, pipeline::mean_tokens(&data.0, tokenizer, t)?);
        let packing = self.plan.packing();
        self.state.optimizations.sft(packing);
        let options = self.options();
        let out = pipeline::train_sft(be, &run, tokenizer, &from, &recipe, data, packing, options)?;
        self.done("sft", start, Some(&out))
    }

    fn finish(&mut self, global: &Global, scores: &[Score], _turns: &[Value]) -> Result<()> {
        let wall_s: f64 = self.state.stages.values().map(|s| s.seconds).sum();
        let scores: Map<String, Value> =
            scores.iter().map(|s| (s.kind.clone(), json!(s.score))).collect();
        let n = ParamCount::of(&self.recipe.config);
        let trained: f64 = self.state.stages.values().map(|s| s.tokens).sum();
        let flops = self.recipe.flops_per_token * trained;
        let mut summary = json!({
            "wall_s": wall_s, "peak_rss_bytes": self.state.peak_rss_bytes,
            "stages": self.state.stages, "val_bpb": self.state.val_bpb, "scores": scores,
            "decode_tokens_per_sec": self.state.decode_tokens_per_sec,
            "diversity": self.state.diversity,
            "machine": Machine::here(global)?, "parameters": n.total, "flops": flops,
            "command": std::env::args().collect::<Vec<_>>(), "version": machine::VERSION,
        });
        if let Value::Object(summary) = &mut summary {
            self.state.optimizations.write(summary);
        }
        self.run.write_json("summary.json", &summary)?;
        crate::report::build(&self.run)?;
        let mut screen = Screen::open_log(&self.run)?;
        let peak = self.state.peak_rss_bytes as f64 / (1 << 20) as f64;
        screen.say(&format!("Peak memory usage: {peak:.2}MiB"));
        screen.say(&format!("report: {}", self.run.join("report.html").display()));
        let run = self.run.root().display();
        screen.say(&format!("chat with it: cargo run --release -- chat --run {run}"));
        let minutes = (wall_s / 60.0).round() as u64;
        screen.say(&format!("Total wall clock time: {}h {}m", minutes / 60, minutes % 60));
        if global.json {
            println!("{summary}");
        }
        Ok(())
    }
}
