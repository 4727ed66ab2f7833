//! What an evaluation leaves in its run: a line while it goes, a file of items, a row of scores.
//!
//! ```text
//! <run>/evals/<stage>/core.jsonl   one line an item: prompt, answers, why it is right or wrong
//!                     chat.jsonl, held_out.jsonl
//!       metrics.jsonl              one row an evaluation: scores by task
//! ```

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use nanochat_data::tasks::DataDir;
use nanochat_train::eval::{Graded, Progress, TaskScore};
use nanochat_train::metrics::{LineKind, Observer, duration};
use serde_json::{Map, Value, json};

use crate::run_dir::{RunDir, base_dir};
use crate::screen::Screen;

/// The data folder that the user gave, else `$NANOCHAT_DATA_DIR`, else the base directory.
pub fn data_dir(given: Option<&Path>) -> DataDir {
    let env = || std::env::var_os("NANOCHAT_DATA_DIR").filter(|d| !d.is_empty()).map(PathBuf::from);
    DataDir::new(given.map(Path::to_path_buf).or_else(env).unwrap_or_else(base_dir))
}

/// Which checkpoint of which run is evaluated, and by what.
pub struct Subject<'a> {
    /// The run.
    pub run: &'a RunDir,
    /// `base`, `sft`, ...
    pub stage: &'a str,
    /// Its step.
    pub step: u64,
    /// `core`, `chat` or `held_out`.
    pub eval: &'static str,
}

/// Writes items as they come and tells how far it is.
pub struct Recorder<'a> {
    subject: Subject<'a>,
    screen: Screen,
    path: PathBuf,
    tmp: PathBuf,
    file: BufWriter<File>,
    start: Instant,
    task_start: Instant,
    right: f64,
}

impl<'a> Recorder<'a> {
    /// Opens the file of items, `out` or the run's own; it is put in place at the end.
    pub fn open(subject: Subject<'a>, out: Option<&Path>) -> Result<Self> {
        let dir = subject.run.join("evals").join(subject.stage);
        let path =
            out.map_or_else(|| dir.join(format!("{}.jsonl", subject.eval)), Path::to_path_buf);
        let tmp = path.with_extension("jsonl.tmp");
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let file = File::create(&tmp).with_context(|| format!("cannot write {}", tmp.display()))?;
        let screen = Screen::open_log(subject.run)?;
        let (file, now) = (BufWriter::new(file), Instant::now());
        Ok(Self { subject, screen, path, tmp, file, start: now, task_start: now, right: 0.0 })
    }

    /// A line for people and the log.
    pub fn say(&mut self, text: &str) {
        self.screen.say(text);
    }

    /// A task begins.
    pub fn task(&mut self) {
        (self.task_start, self.right) = (Instant::now(), 0.0);
    }

    /// A task is done.
    pub fn scored(&mut self, s: &TaskScore) {
        let rate = s.n as f64 / s.seconds.max(1e-9);
        self.screen.say(&format!(
            "{:<32} {:6.2} % of {:<6} centered {:7.4} | {} | {rate:.1} items/sec",
            s.task,
            100.0 * s.score,
            s.n,
            s.centered,
            duration(s.seconds),
        ));
    }

    /// Puts the items in place, writes the row of scores, and returns the object that standard output ends
    /// with: the contract's keys and those of `more`.
    pub fn finish(mut self, scores: &[TaskScore], more: Map<String, Value>) -> Result<Value> {
        let writing = || format!("cannot write {}", self.path.display());
        self.file.flush().with_context(writing)?;
        std::fs::rename(&self.tmp, &self.path).with_context(writing)?;
        let by_task = |value: fn(&TaskScore) -> Value| {
            scores.iter().map(|s| (s.task.clone(), value(s))).collect::<Map<_, _>>()
        };
        let mut object = json!({
            "scores": by_task(|s| json!(s.score)),
            "n": by_task(|s| json!(s.n)),
            "seconds": self.start.elapsed().as_secs_f64(),
            "centered": by_task(|s| json!(s.centered)),
            "task_seconds": by_task(|s| json!(s.seconds)),
        });
        let fields = object.as_object_mut().expect("made as an object above");
        fields.extend(more);
        let mut row = fields.clone();
        row.insert("kind".into(), json!("eval"));
        row.insert("eval".into(), json!(self.subject.eval));
        row.insert("stage".into(), json!(self.subject.stage));
        row.insert("step".into(), json!(self.subject.step));
        // Rows of training stay, whatever their step.
        self.screen.metrics(self.subject.run, self.subject.stage, u64::MAX)?;
        self.screen.row(Value::Object(row))?;
        fields.insert("items".into(), json!(self.path));
        Ok(object)
    }
}

impl Recorder<'_> {
    /// Writes an item down and says nothing.
    pub fn keep(&mut self, item: &Graded) -> nanochat_train::Result<()> {
        let io = |source| nanochat_train::Error::Io { file: self.tmp.clone(), source };
        serde_json::to_writer(&mut self.file, item).map_err(|e| io(e.into()))?;
        self.file.write_all(b"\n").map_err(io)
    }
}

impl Progress for Recorder<'_> {
    fn item(&mut self, item: Graded, done: usize, of: usize) -> nanochat_train::Result<()> {
        self.right += f64::from(u8::from(item.right > 0.0));
        self.keep(&item)?;
        let seconds = self.task_start.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(1e-9);
        let share = 100.0 * self.right / done as f64;
        let left = duration((of - done) as f64 / rate.max(1e-9));
        let task = &item.task;
        let line =
            format!("{task} {done}/{of} | {share:.1} % right | {rate:.1} items/sec | eta {left}");
        self.screen.line(LineKind::Step, &line);
        Ok(())
    }
}
