//! What a run says while it goes: step lines for people and grep, one JSON object a line for machines.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::step::StepReport;
use crate::{Error, Result};

/// `metrics.jsonl` of a run.
pub struct Metrics {
    file: File,
    path: PathBuf,
    /// A row may have been cut short: the next one begins on a line of its own.
    is_cut: bool,
}

impl Metrics {
    /// Opens the file for appending. Rows of `stage` at or after step `from` are dropped first: a
    /// resumed run writes them again.
    pub fn open(path: &Path, stage: &str, from: u64) -> Result<Self> {
        let io = |source| Error::Io { file: path.into(), source };
        if path.exists() {
            let rows = BufReader::new(File::open(path).map_err(io)?).lines();
            let keep = |line: &str| match serde_json::from_str::<Value>(line) {
                Ok(row) => row["stage"] != stage || row["step"].as_u64().is_none_or(|s| s < from),
                Err(_) => false, // a line cut by a crash
            };
            let kept: Vec<String> =
                rows.map_while(std::result::Result::ok).filter(|l| keep(l)).collect();
            let tmp = path.with_extension("jsonl.tmp");
            std::fs::write(&tmp, kept.iter().flat_map(|l| [l.as_str(), "\n"]).collect::<String>())
                .map_err(io)?;
            std::fs::rename(&tmp, path).map_err(io)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        Ok(Self { file, path: path.into(), is_cut: false })
    }

    /// Appends one row.
    pub fn write(&mut self, row: &Value) -> Result<()> {
        let line = format!("{}{row}\n", if self.is_cut { "\n" } else { "" });
        let written = self.file.write_all(line.as_bytes());
        self.is_cut = written.is_err();
        written.map_err(|source| Error::Io { file: self.path.clone(), source })
    }
}

/// Where a loop tells what it does.
pub trait Observer {
    /// A line for people; `kind` says how loud it is.
    fn line(&mut self, kind: LineKind, text: &str);
    /// A row for machines.
    fn row(&mut self, row: Value) -> Result<()>;
}

/// Kinds of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// A training step; a terminal may overwrite it with the next.
    Step,
    /// An evaluation, a sample, a checkpoint: to be kept.
    Event,
}

/// Loss smoothed over steps: `ema = 0.9 ema + 0.1 loss`, divided by `1 - 0.9^n`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SmoothLoss {
    /// The running sum.
    pub ema: f64,
    /// Steps in it.
    pub n: u64,
}

impl SmoothLoss {
    /// Takes a loss in; returns the smoothed one.
    pub fn push(&mut self, loss: f64) -> f64 {
        self.ema = 0.9 * self.ema + 0.1 * loss;
        self.n += 1;
        self.ema / (1.0 - 0.9f64.powf(self.n as f64))
    }
}

/// What went through the model over a whole run, earlier sessions included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens, padding included.
    pub tokens: u64,
    /// Targets that counted.
    pub trained_tokens: u64,
    /// Tokens that only filled rows.
    pub padding_tokens: u64,
    /// Seconds spent laying out and allocating memory.
    pub plan_s: f64,
}

impl Totals {
    /// Takes a step in.
    pub fn push(&mut self, r: &StepReport) {
        self.tokens += r.tokens as u64;
        self.trained_tokens += r.trained_tokens as u64;
        self.padding_tokens += r.padding_tokens as u64;
        self.plan_s += r.plan_s;
    }
}

/// Pace of a run: seconds spent, seconds left.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Seconds of training, steps only, earlier sessions included.
    pub train_s: f64,
    steps: u64,
    steady_s: f64,
    /// Seconds of each step of this session.
    all: Vec<f64>,
}

/// Steps that are left out of the average: caches are cold.
const COLD_STEPS: u64 = 3;

impl Pace {
    /// Continues from `train_s` seconds of an earlier session.
    pub fn resumed(train_s: f64) -> Self {
        Self { train_s, ..Self::default() }
    }

    /// Takes a step's seconds in; returns the seconds that `left` more steps will take.
    pub fn push(&mut self, dt_s: f64, left: u64) -> f64 {
        self.train_s += dt_s;
        self.steps += 1;
        self.all.push(dt_s);
        if self.steps <= COLD_STEPS {
            return dt_s * left as f64;
        }
        self.steady_s += dt_s;
        self.steady_s / (self.steps - COLD_STEPS) as f64 * left as f64
    }

    /// Median seconds of a step of this session.
    pub fn median(&self) -> Option<f64> {
        median(self.all.clone())
    }
}

/// The middle value, the upper of two; none of none.
pub fn median(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

/// `17.0m`, `42s`, `3h 05m`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0}s"),
        s if s < 5400.0 => format!("{:.1}m", s / 60.0),
        s => format!("{}h {:02}m", (s / 3600.0) as u64, (s / 60.0) as u64 % 60),
    }
}

/// The step line; its first three fields are a contract.
pub fn step_line(step: u64, of: u64, loss: f64, lrm: f64, r: &StepReport, eta_s: f64) -> String {
    let rate = r.tokens as f64 / r.dt_s;
    let share = 100.0 * step as f64 / of.max(1) as f64;
    format!(
        "step {step} | loss {loss:.4} | tokens/sec: {rate:.0} | {share:.1}% of {of} | lrm {lrm:.2} | \
         dt {:.0}ms | epoch {} | eta {}",
        1e3 * r.dt_s,
        r.epoch,
        duration(eta_s)
    )
}

/// The step line of finetuning: trained tokens are what counts, and padding is what does not.
pub fn sft_step_line(
    step: u64,
    of: u64,
    loss: f64,
    lrm: f64,
    r: &StepReport,
    eta_s: f64,
) -> String {
    format!(
        "{} | trained tokens/sec: {:.0} | padding {:.1}%",
        step_line(step, of, loss, lrm, r, eta_s),
        r.trained_tokens as f64 / r.dt_s,
        100.0 * r.padding_tokens as f64 / r.tokens.max(1) as f64,
    )
}

/// The row of a step in `metrics.jsonl`.
pub fn step_row(stage: &str, step: u64, smooth: f64, lrm: f64, r: &StepReport, s: f64) -> Value {
    json!({
        "kind": "step", "stage": stage, "step": step, "loss": r.loss, "smooth_loss": smooth,
        "lr_multiplier": lrm, "dt_ms": 1e3 * r.dt_s, "data_ms": 1e3 * r.data_s,
        "tokens": r.tokens, "trained_tokens": r.trained_tokens,
        "padding_tokens": r.padding_tokens, "plan_ms": 1e3 * r.plan_s,
        "tokens_per_sec": r.tokens as f64 / r.dt_s, "epoch": r.epoch, "train_s": s,
        "grad_norm": r.grad_norm,
    })
}
