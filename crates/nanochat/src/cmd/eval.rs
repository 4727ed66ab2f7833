//! `nanochat eval`: bits per byte, CORE, chat tasks, held-out questions, per-token losses, samples.

pub mod chat;
mod compare;
pub mod core;
pub mod held_out;
pub mod items;
mod programs;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use nanochat_compute::Backend;
use nanochat_data::starter::Starter;
use nanochat_data::{Dataset, Loader, LoaderConfig, Policy};
use nanochat_engine::{Diversity, Engine, FirstToken, GenerateOptions, SampleOptions};
use nanochat_gpt::checkpoint::Meta;
use nanochat_gpt::nano::buffers::{Buffers, Mode, StepPlan};
use nanochat_gpt::nano::packed::PackedWeights;
use nanochat_gpt::{Nano, checkpoint};
use nanochat_train::eval::bpb;
use serde_json::json;

use crate::batch::Switch;
use crate::cli::{Dtype, Global, Weights};
use crate::pipeline;
use crate::run_dir::RunDir;

pub use items::data_dir;

/// What to measure.
#[derive(Subcommand)]
pub enum EvalCommand {
    /// Bits per byte on documents.
    Bpb(BpbArgs),
    /// CORE: up to 22 tasks by likelihood, with few-shot examples; for base models.
    #[command(after_help = core::HELP)]
    Core(core::CoreArgs),
    /// Questions in chat format: ARC, MMLU, GSM8K, HumanEval, spelling, or a file of your own.
    #[command(after_help = chat::HELP)]
    Chat(chat::ChatArgs),
    /// Two models on the same items: paired differences and how sure they are.
    #[command(after_help = compare::HELP)]
    Compare(compare::CompareArgs),
    /// Held-out questions of the starter corpus: arithmetic, facts, multiple choice, spelling, letter
    /// counts, stories.
    HeldOut(held_out::HeldOutArgs),
    /// Loss in nats and the likeliest id for every target of given ids; f32 unless --dtype says else.
    #[command(
        after_help = "Example: echo '[[0,5,7,9]]' > ids.json; nanochat eval tokens --model DIR --ids ids.json"
    )]
    Tokens(TokensArgs),
    /// Continue a text.
    Sample(SampleArgs),
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A run, a checkpoint, or a folder that "nanochat import" reads; none: the run that changed last.
    #[arg(long, alias = "run")]
    pub model: Option<PathBuf>,
    /// Checkpoints of a run: `rl`, `sft` or `base`; none: the furthest.
    #[arg(short = 'i', long)]
    pub source: Option<String>,
    /// In what form the weights of the linear layers and the head are read: what rounding them costs.
    #[arg(long, value_enum, default_value_t = Weights::Auto)]
    pub weights: Weights,
}

impl ModelArgs {
    /// The weights packed for a forward pass, when they are to be other than the model's.
    fn packed(&self, be: &dyn Backend, model: &Nano) -> Result<Option<PackedWeights>> {
        Ok(match self.weights {
            Weights::Auto | Weights::F32 => None,
            Weights::Bf16 | Weights::Int8 => {
                Some(PackedWeights::new(be, model, self.weights.format())?)
            }
        })
    }
}

/// Losses (B, T) of the ids and targets in `buffers`.
fn losses(
    be: &dyn Backend,
    model: &Nano,
    buffers: &Buffers,
    packed: Option<&PackedWeights>,
) -> nanochat_gpt::Result<Vec<f32>> {
    match packed {
        Some(weights) => model.losses_with(be, buffers, weights),
        None => model.losses(be, buffers),
    }
}

/// Flags of `eval bpb`.
#[derive(Args, Clone, Debug)]
pub struct BpbArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Files or folders; all of them are validation. None: the starter corpus' validation documents.
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Tokens to evaluate.
    #[arg(long, default_value_t = 262_144)]
    pub split_tokens: usize,
    /// Rows of a batch.
    #[arg(long, default_value_t = 8)]
    pub device_batch_size: usize,
}

/// Flags of `eval tokens`.
#[derive(Args, Clone, Debug)]
pub struct TokensArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON list of lists of ids; `-` reads standard input.
    #[arg(long)]
    pub ids: PathBuf,
}

/// Flags of `eval sample`.
#[derive(Args, Clone, Debug)]
pub struct SampleArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// What to continue.
    #[arg(short, long, default_value = "Once upon a time", allow_hyphen_values = true)]
    pub prompt: String,
    /// Most new tokens.
    #[arg(short, long, default_value_t = 64)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    #[arg(short, long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Samples, drawn independently.
    #[arg(short, long, default_value_t = 1)]
    pub num_samples: usize,
    /// How the samples' first tokens are drawn; `broadcast` copies one to all, as upstream did until
    /// December 2025.
    #[arg(long, value_enum, default_value_t = FirstTokenFlag::Independent)]
    pub first_token: FirstTokenFlag,
    /// Off runs the whole text through the model for every token: the reference, and slow.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub kv_cache: Switch,
}

/// How first tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FirstTokenFlag {
    /// Each sample for itself.
    Independent,
    /// One for all samples.
    Broadcast,
}

/// Runs the command.
pub fn run(command: &EvalCommand, global: &Global) -> Result<()> {
    match command {
        EvalCommand::Bpb(args) => eval_bpb(args, global),
        EvalCommand::Core(args) => core::run(args, global),
        EvalCommand::Chat(args) => chat::run(args, global),
        EvalCommand::Compare(args) => compare::run(args),
        EvalCommand::HeldOut(args) => held_out::run(args, global),
        EvalCommand::Tokens(args) => eval_tokens(args, global),
        EvalCommand::Sample(args) => eval_sample(args, global),
    }
}

/// A run holds a tokenizer or a stage: one that was imported has no tokenizer yet.
fn is_run(dir: &Path) -> bool {
    ["tokenizer", "base", "sft", "rl"].iter().any(|name| dir.join(name).is_dir())
}

/// A model, the run that it lies in, and what its checkpoint says of itself.
struct Opened {
    model: Nano,
    /// None: it lies in no run.
    run: Option<RunDir>,
    /// None: it is no checkpoint of this program.
    meta: Option<Meta>,
}

/// Opens a model wherever it lies; the run is known when it lies in one.
pub fn open_model(be: &dyn Backend, args: &ModelArgs) -> Result<(Nano, Option<RunDir>)> {
    let opened = open(be, args)?;
    Ok((opened.model, opened.run))
}

fn open(be: &dyn Backend, args: &ModelArgs) -> Result<Opened> {
    let load = |dir: &Path, run: Option<RunDir>| -> Result<Opened> {
        let (step, refused) = checkpoint::latest_once(dir)?;
        for e in refused {
            eprintln!("warning: refused {e}");
        }
        let (model, meta) = checkpoint::open(be, &step)?;
        Ok(Opened { model, run, meta: Some(meta) })
    };
    if let Some(dir) = &args.model {
        if !dir.exists() {
            bail!("{} does not exist", dir.display());
        }
        if is_run(dir) {
            let run = RunDir::find(Some(dir))?;
            return load(&run.model_dir(args.source.as_deref()), Some(run));
        }
        if checkpoint::latest_once(dir).is_ok() {
            // A step, or a stage's folder: its run is one or two floors up.
            let up = dir.ancestors().skip(1).take(2).find(|d| is_run(d));
            let run = up.map(|d| RunDir::find(Some(d))).transpose()?;
            return load(dir, run);
        }
        let has_steps = checkpoint::steps(dir).is_ok_and(|s| !s.is_empty());
        if has_steps {
            load(dir, None)?;
        }
        let model = nanochat_gpt::import::import(be, dir, None).with_context(|| {
            format!("{} is no run, checkpoint or importable folder", dir.display())
        })?;
        return Ok(Opened { model, run: None, meta: None });
    }
    let run = RunDir::find(None)?;
    load(&run.model_dir(args.source.as_deref()), Some(run))
}

fn with_run(be: &dyn Backend, args: &ModelArgs) -> Result<(Nano, RunDir)> {
    let found = open_run(be, args)?;
    Ok((found.model, found.run))
}

/// A model in a run with a tokenizer, and where in the pipeline it stands.
struct InRun {
    model: Nano,
    run: RunDir,
    stage: String,
    step: u64,
}

fn open_run(be: &dyn Backend, args: &ModelArgs) -> Result<InRun> {
    match open(be, args)? {
        Opened { model, run: Some(run), meta } => {
            let (stage, step) = meta.map_or_else(|| ("base".into(), 0), |m| (m.stage, m.step));
            Ok(InRun { model, run, stage, step })
        }
        Opened { run: None, .. } => {
            bail!("the model lies in no run with a tokenizer: give a run with --model DIR")
        }
    }
}

fn eval_bpb(args: &BpbArgs, global: &Global) -> Result<()> {
    let be = global.backend()?;
    let be = &*be;
    let start = Instant::now();
    let (model, run) = with_run(be, &args.model)?;
    let tokenizer = run.tokenizer()?;
    let set = if args.data.is_empty() {
        let starter = Starter::new(global.seed);
        let docs = (0..1500).map(|i| starter.validation_document(i)).collect();
        Dataset::memory(vec![("starter validation".into(), docs)], &Policy::default())?
    } else {
        Dataset::open(&args.data, &Policy::default())?
    };
    let (b, t) = (args.device_batch_size, model.config().sequence_len);
    let plan = StepPlan::on(be, model.config(), b, t, Mode::Eval);
    let arena = plan.layout().allocate(be)?;
    let buffers = plan.views(&arena);
    let mut batches = Loader::new(&set, tokenizer.clone(), LoaderConfig::new(b, t))?;
    let n = (args.split_tokens / (b * t)).max(1);
    let bytes = tokenizer.token_bytes();
    let packed = args.model.packed(be, &model)?;
    let losses = |buffers: &Buffers| losses(be, &model, buffers, packed.as_ref());
    let sum = bpb::evaluate_by(losses, &buffers, &mut batches, n, &bytes)?;
    println!("val bpb: {:.6} over {} tokens, {} bytes", sum.bpb(), sum.tokens, sum.bytes);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({"scores": {"bpb": sum.bpb()}, "n": {"bpb": sum.tokens}, "seconds": seconds})
    );
    Ok(())
}

/// Text on one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn eval_tokens(args: &TokensArgs, global: &Global) -> Result<()> {
    let text = if args.ids.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?
    } else {
        std::fs::read_to_string(&args.ids)
            .with_context(|| format!("cannot read {}", args.ids.display()))?
    };
    let lists: Vec<Vec<i32>> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a JSON list of lists of ids", args.ids.display()))?;
    // Parity is the point: f32 also where bf16 would be faster.
    let dtype = if global.dtype == Dtype::Auto { Dtype::F32 } else { global.dtype };
    let be = Global { dtype, ..global.clone() }.backend()?;
    let be = &*be;
    let (model, _) = open_model(be, &args.model)?;
    let packed = args.model.packed(be, &model)?;
    let v = model.config().vocab_size;
    let (mut all, mut argmax) = (Vec::new(), Vec::new());
    for (i, ids) in lists.iter().enumerate() {
        if ids.len() < 2 {
            bail!("list {i} holds {} ids: a loss needs an input and a target", ids.len());
        }
        if let Some(bad) = ids.iter().find(|&&id| id < 0 || id as usize >= v) {
            bail!("list {i}: id {bad} is outside the vocabulary of {v}");
        }
        let t = ids.len() - 1;
        let plan = StepPlan::on(be, model.config(), 1, t, Mode::Eval);
        let arena = plan.layout().allocate(be)?;
        let buffers = plan.views(&arena);
        buffers.tokens.write_i32(&ids[..t])?;
        buffers.targets.write_i32(&ids[1..])?;
        all.push(losses(be, &model, &buffers, packed.as_ref())?);
        let mut best = Vec::with_capacity(t);
        for first in (0..t).step_by(nanochat_compute::ops::LOSS_ROWS) {
            let rows = first..(first + nanochat_compute::ops::LOSS_ROWS).min(t);
            let logits = match &packed {
                Some(weights) => model.logits_with(be, &buffers, rows, weights)?,
                None => model.logits(be, &buffers, rows)?,
            };
            best.extend(logits.chunks_exact(v).map(largest));
        }
        argmax.push(best);
    }
    println!("{}", json!({"losses": all, "argmax": argmax}));
    Ok(())
}

/// Index of the first largest value.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best
}

fn eval_sample(args: &SampleArgs, global: &Global) -> Result<()> {
    let be = global.backend()?;
    let be = &*be;
    let (model, run) = with_run(be, &args.model)?;
    let tokenizer = run.tokenizer()?;
    let mut ids = vec![tokenizer.bos()];
    ids.extend(tokenizer.encode(&args.prompt));
    let limit = ids.len().saturating_add(args.max_tokens).max(model.config().sequence_len);
    let (kv_cache, weights) = (args.kv_cache == Switch::On, args.model.weights);
    let mut decoder = pipeline::decoder(be, &model, limit, kv_cache, weights)?;
    let sample = SampleOptions::new(args.temperature, None, global.seed)?;
    let options = GenerateOptions {
        n: args.num_samples,
        first_token: match args.first_token {
            FirstTokenFlag::Independent => FirstToken::Independent,
            FirstTokenFlag::Broadcast => FirstToken::Broadcast,
        },
        ..GenerateOptions::new(sample, args.max_tokens)
    };
    let generation = Engine::new(decoder.as_mut(), &tokenizer)?
        .generate(&ids, &options, |_| std::ops::ControlFlow::Continue(()))?;
    for row in &generation.rows {
        println!("{}{}", args.prompt, row.text());
    }
    let rate = generation.stats.tokens_per_sec();
    eprintln!("{rate:.0} tokens/sec");
    let diversity = Diversity::of(generation.rows.iter().map(|r| r.ids.as_slice()));
    if diversity.n > 1 {
        eprintln!(
            "{} samples: {} different first tokens, distinct-1 {:.2}, distinct-2 {:.2}",
            diversity.n, diversity.first_tokens, diversity.distinct_1, diversity.distinct_2
        );
    }
    if global.json {
        println!("{}", json!({"tokens_per_sec": rate, "diversity": diversity}));
    }
    Ok(())
}
