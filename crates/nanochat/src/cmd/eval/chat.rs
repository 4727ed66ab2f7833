//! `nanochat eval chat`: questions in chat format, and files of one's own.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use nanochat_compute::Backend;
use nanochat_data::tasks::{self, ChatTask, Runner, Which, custom};
use nanochat_engine::SampleOptions;
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_train::answers::{ROWS, Together};
use nanochat_train::eval::chat::{self, ChatOptions};
use nanochat_train::eval::likelihood::Batched;
use nanochat_train::eval::{Graded, Progress, TaskScore};
use serde_json::{Map, Value, json};

use super::items::{Recorder, Subject, data_dir};
use super::programs::Sandboxed;
use super::{ModelArgs, open_run};
use crate::cli::Global;

/// Shown after `--help`.
pub const HELP: &str = "Examples:\n  nanochat eval chat --data-dir DATA -a ARC-Easy,GSM8K -x 200\n  \
    nanochat eval chat --task-file my_questions.jsonl\n  \
    nanochat eval chat -a GSM8K -t 1.0 --num-samples 8    # pass@1 to pass@8\n\
    Tasks: ARC-Easy, ARC-Challenge, MMLU, GSM8K, HumanEval, SpellingBee, SimpleSpelling.";

/// Flags.
#[derive(Args, Clone, Debug)]
pub struct ChatArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tasks by name, separated by commas or bars; none: all whose data is there.
    #[arg(short = 'a', long, value_delimiter = ',')]
    pub task_name: Vec<String>,
    /// JSONL files of questions of your own (docs/EVALS.md says how they look).
    #[arg(long, num_args = 1..)]
    pub task_file: Vec<PathBuf>,
    /// A folder of downloaded data; none: `$NANOCHAT_DATA_DIR`, else the base directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Questions of each task at most.
    #[arg(short = 'x', long)]
    pub max_problems: Option<usize>,
    /// Independent samples of a written answer; one right one suffices.
    #[arg(short, long, default_value_t = 1)]
    pub num_samples: usize,
    /// Most tokens of a written answer.
    #[arg(short, long, default_value_t = 512)]
    pub max_new_tokens: usize,
    /// Written answers computed at once; more are faster and take more memory.
    #[arg(long, default_value_t = ROWS)]
    pub rows: usize,
    /// 0 takes the likeliest token.
    #[arg(short, long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Tokens that are drawn from; 0 is all.
    #[arg(short = 'k', long, default_value_t = 50)]
    pub top_k: usize,
    /// File of graded items; none: `evals/STAGE/chat.jsonl` of the run.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

impl ChatArgs {
    /// All tasks of a folder that are there, `items` of each, answered greedily.
    pub fn of(model: ModelArgs, data_dir: Option<PathBuf>, items: usize) -> Self {
        Self {
            model,
            task_name: Vec::new(),
            task_file: Vec::new(),
            data_dir,
            max_problems: Some(items),
            num_samples: 1,
            max_new_tokens: 512,
            rows: ROWS,
            temperature: 0.0,
            top_k: 50,
            out: None,
        }
    }
}

/// Runs the command.
pub fn run(args: &ChatArgs, global: &Global) -> Result<()> {
    println!("{}", measure(args, global)?);
    Ok(())
}

/// Evaluates, and leaves items and a row of scores; returns what standard output ends with.
pub fn measure(args: &ChatArgs, global: &Global) -> Result<Value> {
    if args.num_samples == 0 || args.max_new_tokens == 0 {
        bail!("--num-samples and --max-new-tokens must be at least 1");
    }
    let top_k = (args.top_k > 0).then_some(args.top_k);
    let options = ChatOptions {
        num_samples: args.num_samples,
        max_new_tokens: args.max_new_tokens,
        sample: SampleOptions::new(args.temperature, top_k, global.seed)?,
    };
    let runner = Sandboxed::default();
    let (tasks, left_out) = chosen(args, &runner)?;
    let be = global.backend()?;
    let be = &*be;
    let opened = open_run(be, &args.model)?;
    let tokenizer = opened.run.tokenizer()?;
    let (stage, step) = (opened.stage.as_str(), opened.step);
    let subject = Subject { run: &opened.run, stage, step, eval: "chat" };
    let recorder = Recorder::open(subject, args.out.as_deref())?;
    let format = args.model.weights.format();
    let decoder = NanoDecoder::with_weights(be, &opened.model, usize::MAX, format)?;
    let (be, max_len) = (be as &dyn Backend, decoder.max_len());
    let writer = Together { be, model: &opened.model, format, rows: args.rows, max_len };
    let mut model = Batched::new(decoder, true).writing(writer);
    let mut watch = Watch { recorder, right: Vec::new() };
    for why in &left_out {
        watch.recorder.say(&format!("warning: {why}"));
    }
    let (mut scores, mut pass) = (Vec::new(), Map::new());
    for task in &tasks {
        watch.recorder.task();
        watch.right.clear();
        let most = args.max_problems;
        let score =
            chat::evaluate(&mut model, &tokenizer, task, most, &options, &runner, &mut watch)?;
        watch.recorder.scored(&score);
        let written = task.questions.iter().any(|q| !q.answer.is_categorical());
        if args.num_samples > 1 && written {
            let shares = watch.pass_at(args.num_samples);
            let said = |(k, p): (usize, &f64)| format!("pass@{} {:.1} %", k + 1, 100.0 * p);
            let said: Vec<String> = shares.iter().enumerate().map(said).collect();
            watch.recorder.say(&format!("  {}", said.join(", ")));
            pass.insert(task.name.clone(), json!(shares));
        }
        scores.push(score);
    }
    let metric = chat_core(&scores);
    watch.recorder.say(&match metric {
        Some(metric) => format!("ChatCORE {metric:.6}"),
        None => format!("no ChatCORE: it needs {}", tasks::CHAT_CORE.join(", ")),
    });
    let mut more = Map::new();
    more.insert("chatcore".into(), json!(metric));
    if !pass.is_empty() {
        more.insert("pass_at".into(), json!(pass));
    }
    watch.recorder.finish(&scores, more)
}

/// The mean above guessing of ChatCORE's tasks, if all of them ran.
fn chat_core(scores: &[TaskScore]) -> Option<f64> {
    let of = |name: &&str| scores.iter().find(|s| s.task == **name).cloned();
    let all: Vec<TaskScore> = tasks::CHAT_CORE.iter().filter_map(of).collect();
    (all.len() == tasks::CHAT_CORE.len()).then(|| chat::metric(&all)).flatten()
}

/// The tasks to run, and why others are not. What was named must run.
fn chosen(args: &ChatArgs, runner: &dyn Runner) -> Result<(Vec<ChatTask>, Vec<String>)> {
    let data = data_dir(args.data_dir.as_deref());
    let names: Vec<&str> = args
        .task_name
        .iter()
        .flat_map(|n| n.split('|'))
        .map(str::trim)
        .filter(|n| !n.is_empty())
        .collect();
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    let ready = |task: ChatTask| -> Result<ChatTask> {
        if task.runs_programs() {
            runner.ready()?;
        }
        Ok(task)
    };
    for name in &names {
        all.push(ready(tasks::entry(name)?.load(&data, Which::Test)?)?);
    }
    for file in &args.task_file {
        all.push(ready(custom::load(file)?)?);
    }
    if all.is_empty() {
        for entry in tasks::ALL {
            match entry.load(&data, Which::Test).map_err(anyhow::Error::from).and_then(ready) {
                Ok(task) => all.push(task),
                Err(e) => left_out.push(format!("{} is left out: {e}", entry.name)),
            }
        }
    }
    match left_out.first() {
        Some(why) if all.is_empty() => bail!("no task can run; the first: {why}"),
        _ => Ok((all, left_out)),
    }
}

/// Remembers how many samples of each question were right.
struct Watch<'a> {
    recorder: Recorder<'a>,
    right: Vec<f64>,
}

impl Watch<'_> {
    /// pass@1 to pass@n over the questions.
    fn pass_at(&self, n: usize) -> Vec<f64> {
        let mean = |k: usize| {
            let one = |share: &f64| chat::pass_at(n, (share * n as f64).round() as usize, k);
            self.right.iter().map(one).sum::<f64>() / self.right.len().max(1) as f64
        };
        (1..=n).map(mean).collect()
    }
}

impl Progress for Watch<'_> {
    fn item(&mut self, item: Graded, done: usize, of: usize) -> nanochat_train::Result<()> {
        self.right.push(item.right);
        self.recorder.item(item, done, of)
    }
}
