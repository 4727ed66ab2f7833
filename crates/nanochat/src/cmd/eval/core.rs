//! `nanochat eval core`: the CORE metric of a base model.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use nanochat_data::tasks::core::{self as tasks, CoreTask};
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_train::eval::core;
use nanochat_train::eval::likelihood::Batched;
use serde_json::{Map, Value, json};

use super::items::{Recorder, Subject, data_dir};
use super::{ModelArgs, open_run};
use crate::cli::Global;

/// Shown after `--help`.
pub const HELP: &str = "Examples:\n  nanochat eval core --data-dir DATA --max-per-task 100\n  \
    nanochat eval core --model RUN -i base --tasks copa,arc_easy,lambada_openai";

/// Flags.
#[derive(Args, Clone, Debug)]
pub struct CoreArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A folder with the eval bundle (`core.yaml`) or with `core_tasks.tsv`; none:
    /// `$NANOCHAT_DATA_DIR`, else the base directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Tasks by name, separated by commas; none: all whose files are there.
    #[arg(long, value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// Items of each task at most; -1 takes all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub max_per_task: i64,
    /// Runs every choice whole, without sharing what choices have in common: the baseline of the speed.
    #[arg(long)]
    pub no_share: bool,
    /// File of graded items; none: `evals/STAGE/core.jsonl` of the run.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

impl CoreArgs {
    /// All tasks of a folder that are there, `items` of each.
    pub fn of(model: ModelArgs, data_dir: Option<PathBuf>, items: usize) -> Self {
        let max_per_task = i64::try_from(items).unwrap_or(-1);
        Self { model, data_dir, tasks: Vec::new(), max_per_task, no_share: false, out: None }
    }
}

/// Runs the command.
pub fn run(args: &CoreArgs, global: &Global) -> Result<()> {
    println!("{}", measure(args, global)?);
    Ok(())
}

/// Evaluates, and leaves items and a row of scores; returns what standard output ends with.
pub fn measure(args: &CoreArgs, global: &Global) -> Result<Value> {
    let data = data_dir(args.data_dir.as_deref());
    let (tasks, missing) = chosen(tasks::open(data.root())?, &args.tasks)?;
    let be = global.backend()?;
    let be = &*be;
    let opened = open_run(be, &args.model)?;
    let tokenizer = opened.run.tokenizer()?;
    let (stage, step) = (opened.stage.as_str(), opened.step);
    let subject = Subject { run: &opened.run, stage, step, eval: "core" };
    let mut recorder = Recorder::open(subject, args.out.as_deref())?;
    let format = args.model.weights.format();
    let decoder = NanoDecoder::with_weights(be, &opened.model, usize::MAX, format)?;
    let mut model = Batched::new(decoder, !args.no_share);
    for label in &missing {
        recorder.say(&format!("warning: {label} is left out: its file is not there"));
    }
    let most = usize::try_from(args.max_per_task).ok();
    let mut scores = Vec::new();
    for task in &tasks {
        let items = task.items(most)?;
        if items.len() <= task.shots {
            let (n, shots) = (items.len(), task.shots);
            recorder.say(&format!("warning: {} has {n} items for {shots} examples", task.label));
        }
        recorder.task();
        let score = core::evaluate(&mut model, &tokenizer, task, &items, &mut recorder)?;
        recorder.scored(&score);
        scores.push(score);
    }
    let metric = core::metric(&scores);
    if let Some(metric) = metric {
        let (n, of) = (scores.len(), tasks::TASKS);
        let part = if n < of { format!(" (over {n} of its {of} tasks)") } else { String::new() };
        recorder.say(&format!("CORE {metric:.6}{part}"));
    }
    let more = [
        ("core", json!(metric)),
        ("tasks", json!(scores.len())),
        ("missing", json!(missing)),
        ("share", json!(!args.no_share)),
        ("max_per_task", json!(most)),
    ];
    recorder
        .finish(&scores, more.map(|(k, v)| (k.to_owned(), v)).into_iter().collect::<Map<_, _>>())
}

/// The tasks that were asked for, and the names of those without a file.
fn chosen(all: Vec<CoreTask>, names: &[String]) -> Result<(Vec<CoreTask>, Vec<String>)> {
    if let Some(name) = names.iter().find(|name| !all.iter().any(|t| t.label == **name)) {
        let known: Vec<&str> = all.iter().map(|t| t.label.as_str()).collect();
        bail!("no task {name:?}: choose of {}", known.join(", "));
    }
    let asked = |t: &CoreTask| names.is_empty() || names.contains(&t.label);
    let (there, gone): (Vec<_>, Vec<_>) =
        all.into_iter().filter(asked).partition(|t| t.file.is_file());
    match gone.first() {
        Some(task) if there.is_empty() || !names.is_empty() => {
            bail!(
                "{}: {} does not exist: leave the task out, or get its file",
                task.label,
                task.file.display()
            )
        }
        _ => Ok((there, gone.into_iter().map(|t| t.label).collect())),
    }
}
