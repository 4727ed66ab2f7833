//! What a run left behind, read leniently: run directory -> [`Record`].
//!
//! Every file may be missing, cut or older than the program: what cannot be read is absent, and
//! `notes` says why.

use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::{Map, Value};

use super::figures::date;
use super::items::{self, Task};
use super::stage::Stage;
use crate::run_dir::RunDir;

/// A run.
#[derive(Debug, Default)]
pub struct Record {
    /// The directory's name.
    pub name: String,
    /// `run.json`, or null.
    pub run: Value,
    /// `summary.json`, or null.
    pub summary: Value,
    /// Stages, in the order of the pipeline.
    pub stages: Vec<Stage>,
    /// Held-out scores, in the order of the file.
    pub scores: Vec<Score>,
    /// Rows of evaluations of tasks, in the order of the file.
    pub evals: Vec<Value>,
    /// Graded items of the evaluations.
    pub items: Vec<Task>,
    /// The conversation at the end.
    pub sample: Vec<Turn>,
    /// What could not be read.
    pub notes: Vec<String>,
}

/// Held-out answers of one kind.
#[derive(Debug, Default)]
pub struct Score {
    /// `arithmetic`, ...
    pub kind: String,
    /// Share of right answers.
    pub score: Option<f64>,
    /// The answers; empty when only the score is known.
    pub answers: Vec<Answer>,
}

/// One graded answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// What was asked.
    pub question: String,
    /// What the model said.
    pub answer: String,
    /// Graded right.
    pub right: bool,
}

/// One turn of the sample conversation.
#[derive(Debug, Default)]
pub struct Turn {
    /// What was asked.
    pub user: String,
    /// What the model said.
    pub assistant: String,
    /// Tool calls and what they gave.
    pub tools: Vec<(String, String)>,
}

/// A finite number of an object.
pub fn number(value: &Value, key: &str) -> Option<f64> {
    value.get(key)?.as_f64().filter(|x| x.is_finite())
}

/// A text of an object; other scalars as they are written; empty when absent.
pub fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

/// The elements of a list; none of anything else.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Stages in the order in which the pipeline runs them; others follow by name.
fn rank(stage: &str) -> usize {
    let order = ["data", "tokenizer", "base", "mid", "sft", "rl", "eval", "chat"];
    order.iter().position(|s| *s == stage).unwrap_or(order.len())
}

impl Record {
    /// Reads what the directory has.
    pub fn read(run: &RunDir) -> Self {
        let mut record = Self { name: name(run), ..Self::default() };
        record.run = record.json(run, "run.json");
        record.summary = record.json(run, "summary.json");
        let scores = record.json(run, "scores.json");
        record.scores = read_scores(&scores, &record.summary);
        record.sample = list(&record.json(run, "samples.json")).iter().map(read_turn).collect();
        record.items = items::read(run);
        record.read_metrics(run);
        record.read_summary_stages();
        record.stages.sort_by(|a, b| (rank(&a.name), &a.name).cmp(&(rank(&b.name), &b.name)));
        record
    }

    fn json(&mut self, run: &RunDir, file: &str) -> Value {
        match run.read_json::<Value>(file) {
            Ok(Some(value)) => value,
            Ok(None) => Value::Null,
            Err(e) => {
                self.notes.push(format!("{file} cannot be read: {}", e.root_cause()));
                Value::Null
            }
        }
    }

    fn stage(&mut self, name: &str) -> &mut Stage {
        let at = self.stages.iter().position(|s| s.name == name).unwrap_or_else(|| {
            self.stages.push(Stage::named(name));
            self.stages.len() - 1
        });
        &mut self.stages[at]
    }

    fn read_metrics(&mut self, run: &RunDir) {
        let Ok(file) = File::open(run.join("metrics.jsonl")) else { return };
        let (mut skipped, mut not_finite) = (0usize, 0usize);
        for line in BufReader::new(file).split(b'\n') {
            let Ok(line) = line else {
                self.notes.push("metrics.jsonl cannot be read to its end".into());
                break;
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let row: Value = serde_json::from_slice(&line).unwrap_or_default();
            let step = number(&row, "step");
            if super::evals::is_eval(&row) {
                self.evals.push(row);
                continue;
            }
            match (row["kind"].as_str(), row["stage"].as_str(), step) {
                (Some("step"), Some(stage), Some(step)) => {
                    not_finite += usize::from(number(&row, "loss").is_none());
                    self.stage(stage).take_step(step, &row);
                }
                (Some("eval"), Some(stage), Some(step)) => {
                    let bpb = number(&row, "val_bpb").map(|v| (step, v));
                    self.stage(stage).rewards.take_test(step, &row);
                    self.stage(stage).val_bpb.extend(bpb);
                }
                // What happened beside the steps is for the log.
                (
                    Some("skip" | "rollback" | "alarm" | "recovered" | "forced" | "stopped"),
                    _,
                    _,
                ) => {}
                _ => skipped += 1,
            }
        }
        if skipped > 0 {
            self.notes
                .push(format!("{} of metrics.jsonl skipped: unreadable", plural(skipped, "line")));
        }
        if not_finite > 0 {
            self.notes.push(format!("{} without a finite loss", plural(not_finite, "step")));
        }
    }

    /// The summary's figures win over what the steps add up to.
    fn read_summary_stages(&mut self) {
        let stages = self.summary["stages"].as_object().cloned().unwrap_or_default();
        for (name, of) in &stages {
            self.stage(name).take_summary(of);
        }
        self.stages.iter_mut().for_each(Stage::complete);
    }

    /// A stage by its name.
    pub fn stage_named(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.name == name)
    }

    /// A figure of `summary.json`.
    pub fn figure(&self, key: &str) -> Option<f64> {
        number(&self.summary, key)
    }

    /// Bits per byte on held-out text: the summary's, else the last one of pretraining.
    pub fn val_bpb(&self) -> Option<f64> {
        let base = || self.stage_named("base")?.last_bpb();
        self.figure("val_bpb").or_else(base)
    }

    /// The machine's fields, of `run.json` or `summary.json`.
    pub fn machine(&self) -> Map<String, Value> {
        let machines = [&self.run["machine"], &self.summary["machine"]];
        let object = machines.iter().find_map(|m| m.as_object().cloned());
        let named = |m: &&Value| Some(Map::from_iter([("cpu".into(), Value::from(m.as_str()?))]));
        object.or_else(|| machines.iter().find_map(named)).unwrap_or_default()
    }

    /// The command line, quoted where it must be; empty when unknown.
    pub fn command(&self) -> String {
        let found =
            [&self.run["command"], &self.summary["command"]].into_iter().find(|c| !c.is_null());
        match found {
            Some(Value::String(line)) => line.clone(),
            Some(Value::Array(words)) => {
                let words = words.iter().filter_map(Value::as_str).enumerate();
                // Where the program lies says nothing about the run.
                let word = |(i, w): (usize, &str)| match i {
                    0 => quote(w.rsplit(['/', '\\']).next().unwrap_or(w)),
                    _ => quote(w),
                };
                words.map(word).collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        }
    }

    /// The program's version; empty when unknown.
    pub fn version(&self) -> String {
        let version = text(&self.run, "version");
        if version.is_empty() { text(&self.summary, "version") } else { version }
    }

    /// When the run began; `None` when unknown.
    pub fn started(&self) -> Option<String> {
        number(&self.run, "started").map(date)
    }
}

impl Score {
    /// Right answers among those known.
    pub fn right(&self) -> usize {
        self.answers.iter().filter(|a| a.right).count()
    }
}

fn name(run: &RunDir) -> String {
    let whole = run.root().canonicalize().unwrap_or_else(|_| run.root().into());
    whole.file_name().map_or_else(|| "run".into(), |n| n.to_string_lossy().into_owned())
}

fn read_scores(scores: &Value, summary: &Value) -> Vec<Score> {
    let answer = |a: &Value| Answer {
        question: text(a, "question"),
        answer: text(a, "answer"),
        right: a["right"].as_bool().unwrap_or(false),
    };
    let score = |s: &Value| Score {
        kind: text(s, "kind"),
        score: number(s, "score"),
        answers: list(&s["answers"]).iter().map(answer).collect(),
    };
    let mut all: Vec<Score> = list(scores).iter().map(score).collect();
    for (kind, value) in summary["scores"].as_object().into_iter().flatten() {
        if !all.iter().any(|s| s.kind == *kind) {
            all.push(Score { kind: kind.clone(), score: value.as_f64(), answers: Vec::new() });
        }
    }
    all
}

fn read_turn(turn: &Value) -> Turn {
    let tool = |t: &Value| (text(t, "call"), text(t, "output"));
    Turn {
        user: text(turn, "user"),
        assistant: text(turn, "assistant"),
        tools: list(&turn["tools"]).iter().map(tool).collect(),
    }
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
