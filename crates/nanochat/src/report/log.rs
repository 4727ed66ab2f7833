//! The lines of a training log, ours, upstream's and the benchmark's -> a [`Summary`].
//!
//! ```text
//! step 100 | loss 3.4560 | tokens/sec: 125000 | 3.9% of 2520 | lrm 1.00 | dt 412ms | ...
//! step 00100/02520 (3.97%) | loss: 3.456789 | lrm: 1.00 | dt: 412.34ms | tok/sec: 1,271,512 | ...
//! Step 00010/00700 | Training loss: 1.234567| lrm: 1.000000| num_tokens: 12,345
//! Step 00250 | Validation bpb: 0.912345
//! Found optimal batch_size=93 in 20.5 seconds
//! auto-batch-size {"batch_size":8,"accumulation":2,"discovery_s":1.2,...}
//! decode 2244 tokens/sec
//! Total wall clock time: 3h51m
//! ```
//! Anything may stand around such lines; a carriage return ends one as a newline does.
//!
//! `line` takes a line apart | `events` lines that are no steps | `table` the benchmark's table

mod events;
mod line;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, BufRead};

use serde::Serialize;

use super::curve;
use super::figures::{commas, four, known, span, wall};
pub use events::BatchSize;
use line::Field;

/// What a log says.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Lines in the log.
    pub lines: usize,
    /// Training step lines among them.
    pub steps: usize,
    /// Runs of rising steps: pretraining, finetuning.
    pub stages: Vec<Stage>,
    /// Last loss of the log.
    pub final_loss: Option<f64>,
    /// Median of all step lines.
    pub tokens_per_sec: Option<f64>,
    /// Median of pretraining's step lines.
    pub base_tokens_per_sec: Option<f64>,
    /// Median milliseconds of finetuning's steps.
    pub sft_step_ms: Option<f64>,
    /// Tokens a second of decoding: the last `decode` line, else the median of the chat's answers.
    pub decode_tokens_per_sec: Option<f64>,
    /// Last validation bits per byte.
    pub val_bpb: Option<f64>,
    /// Lowest validation bits per byte.
    pub min_val_bpb: Option<f64>,
    /// Last value of every other evaluation, by its name in lower case: `core metric`, ...
    pub evals: BTreeMap<String, f64>,
    /// `Total training time` of the stages that say it, seconds.
    pub training_s: Option<f64>,
    /// `Total wall clock time`, seconds.
    pub wall_s: Option<f64>,
    /// `Peak memory usage`, MiB; of several the highest.
    pub peak_memory_mib: Option<f64>,
    /// The peak as a share of the limit that the batch size was chosen for.
    pub memory_utilization: Option<f64>,
    /// The last batch size that the log tells of.
    pub batch_size: Option<BatchSize>,
    #[serde(skip)]
    seen: Seen,
}

/// What waits for a later line.
#[derive(Debug, Default)]
struct Seen {
    /// The stage that a line named, until its first step.
    named: Option<&'static str>,
    /// A batch size, until the first step that it is of.
    batch_size: Option<BatchSize>,
    /// The last memory limit of a batch size, bytes.
    limit_bytes: Option<f64>,
    /// Rate of the last `decode` line.
    decode: Option<f64>,
    /// Rates of the chat's answers.
    answers: Vec<f64>,
}

/// Steps that rise; a fall below half of the last step begins the next stage, and so does a line
/// that names another one.
#[derive(Debug, Default, Serialize)]
pub struct Stage {
    /// `base`, `mid`, `sft` or `rl`: as the log says, else by its place.
    pub name: Option<&'static str>,
    /// First step seen.
    pub first_step: u64,
    /// Last step seen.
    pub last_step: u64,
    /// Steps planned, where the log says.
    pub of: Option<u64>,
    /// Step lines seen.
    pub steps: usize,
    /// First finite loss.
    pub first_loss: Option<f64>,
    /// Last finite loss.
    pub final_loss: Option<f64>,
    /// Lowest loss.
    pub min_loss: Option<f64>,
    /// Step lines whose loss is NaN or infinite.
    pub not_finite: usize,
    /// Median.
    pub tokens_per_sec: Option<f64>,
    /// Median milliseconds of a step; without them the average that a line gives.
    pub dt_ms: Option<f64>,
    /// Last model flops utilisation, percent.
    pub mfu: Option<f64>,
    /// Last validation bits per byte.
    pub val_bpb: Option<f64>,
    /// `Total training time` after its steps, seconds.
    pub training_s: Option<f64>,
    /// Its batch size.
    pub batch_size: Option<BatchSize>,
    #[serde(skip)]
    rates: Vec<f64>,
    #[serde(skip)]
    times: Vec<f64>,
}

/// Longest line that is looked at; the rest of a longer one is skipped.
const LINE_BYTES: usize = 4096;

/// Reads a log.
pub fn parse(mut log: impl BufRead) -> io::Result<Summary> {
    let mut summary = Summary::default();
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        for piece in line.split(|b| *b == b'\r').filter(|p| !p.trim_ascii().is_empty()) {
            summary.lines += 1;
            let head = String::from_utf8_lossy(&piece[..piece.len().min(LINE_BYTES)]);
            summary.take(&line::plain(&head));
        }
        line.clear();
    }
    summary.complete();
    Ok(summary)
}

impl Summary {
    /// The summary for people.
    pub fn text(&self) -> String {
        let mut out = format!("{} step lines in {} lines\n", self.steps, self.lines);
        for s in &self.stages {
            let of = s.of.map_or(String::new(), |n| format!(" of {n}"));
            let name = s.name.map_or(String::new(), |n| format!("{n} "));
            let (first, last) = (known(s.first_loss, four), known(s.final_loss, four));
            let (low, rate) = (known(s.min_loss, four), known(s.tokens_per_sec, commas));
            let _ = writeln!(
                out,
                "{name}steps {} to {}{of}: loss {first} -> {last}, lowest {low}; \
                 tokens/sec: {rate} (median)",
                s.first_step, s.last_step
            );
        }
        let lowest = known(self.min_val_bpb, four);
        let _ = writeln!(out, "validation bpb: {}, lowest {lowest}", known(self.val_bpb, four));
        for (name, x) in &self.evals {
            let _ = writeln!(out, "{name}: {}", four(*x));
        }
        let _ = writeln!(out, "training: {}", known(self.training_s, span));
        let _ = writeln!(out, "wall clock: {}", known(self.wall_s, wall));
        out
    }

    fn take(&mut self, line: &str) {
        let mut fields = line.split('|');
        let step = fields.next().and_then(line::step_of);
        let fields: Vec<Field> = fields.filter_map(Field::read).collect();
        let find = |keys: &[&str]| fields.iter().find(|f| keys.contains(&f.key.as_str()));
        let value = |keys: &[&str]| find(keys).map(|f| f.value);
        let loss = value(&["loss", "training loss", "train loss"]);
        match (step, loss) {
            (Some((step, of)), Some(loss)) => {
                let planned = value(&["of"])
                    .or_else(|| fields.iter().find(|f| f.key.ends_with("% of")).map(|f| f.value));
                // Upstream's finetuning says "Training loss", its pretraining "loss".
                let sft = find(&["training loss"]).map(|_| "sft");
                let stage = self.stage(step, sft);
                stage.of = of.or(planned.map(|n| n as u64)).or(stage.of);
                stage.take_loss(loss);
                stage.rates.extend(value(&["tokens/sec", "tok/sec", "tok/s"]));
                stage.times.extend(find(&line::STEP_TIME_KEYS).and_then(Field::milliseconds));
                stage.mfu = value(&["bf16_mfu", "mfu"]).or(stage.mfu);
                self.steps += 1;
                self.final_loss = Some(loss).filter(|l| l.is_finite()).or(self.final_loss);
            }
            (Some((step, _)), None) => {
                // A validation before the first step of a stage is not the last stage's.
                let stage = self.stages.last_mut().filter(|s| step >= s.last_step.div_ceil(2));
                if let Some(stage) = stage {
                    let bpb = value(&["validation bpb", "val bpb"]).filter(|x| x.is_finite());
                    stage.val_bpb = bpb.or(stage.val_bpb);
                }
                fields.into_iter().for_each(|f| self.take_eval(f.key, f.value));
            }
            (None, _) => self.take_event(line, &fields),
        }
    }

    /// The stage that a step belongs to. `name`: what the step line itself says.
    fn stage(&mut self, step: u64, name: Option<&'static str>) -> &mut Stage {
        let name = self.seen.named.take().or(name);
        let begins = self.stages.last().is_none_or(|s| {
            // Steps without a name may turn out to be pretraining's; any other name begins a stage.
            let other =
                name.is_some() && s.name != name && (s.name.is_some() || name != Some("base"));
            step < s.last_step.div_ceil(2) || other
        });
        if begins {
            self.stages.push(Stage { name, first_step: step, ..Stage::default() });
        }
        let stage = self.stages.last_mut().expect("a stage was pushed when there was none");
        stage.name = stage.name.or(name);
        stage.batch_size = self.seen.batch_size.take().or_else(|| stage.batch_size.take());
        stage.last_step = step;
        stage.steps += 1;
        stage
    }

    fn take_eval(&mut self, key: String, x: f64) {
        match key.as_str() {
            _ if !x.is_finite() => {}
            "validation bpb" | "val bpb" => {
                self.val_bpb = Some(x);
                self.min_val_bpb = Some(self.min_val_bpb.map_or(x, |m| m.min(x)));
            }
            _ => drop(self.evals.insert(key, x)),
        }
    }

    /// The last stage of a name.
    fn stage_named(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().rev().find(|s| s.name == Some(name))
    }

    /// Medians, names by place, and what the table needs of the stages.
    fn complete(&mut self) {
        for stage in &mut self.stages {
            stage.tokens_per_sec = curve::median(stage.rates.iter().copied());
            stage.dt_ms = curve::median(stage.times.iter().copied()).or(stage.dt_ms);
        }
        let rates = self.stages.iter().flat_map(|s| s.rates.iter().copied());
        self.tokens_per_sec = curve::median(rates);
        self.name_stages();
        self.base_tokens_per_sec = self.stage_named("base").and_then(|s| s.tokens_per_sec);
        self.sft_step_ms = self.stage_named("sft").and_then(|s| s.dt_ms);
        let answers = curve::median(self.seen.answers.iter().copied());
        self.decode_tokens_per_sec = self.seen.decode.or(answers);
        let told: Vec<f64> = self.stages.iter().filter_map(|s| s.training_s).collect();
        if !told.is_empty() {
            self.training_s = Some(told.iter().sum());
        }
        let limit = self.seen.limit_bytes.filter(|l| *l > 0.0);
        let peak =
            self.peak_memory_mib.filter(|mib| *mib > 0.0).map(|mib| mib * f64::from(1 << 20));
        self.memory_utilization = peak.zip(limit).map(|(peak, limit)| peak / limit);
    }

    /// The first stage without a name is pretraining, the last of several finetuning.
    fn name_stages(&mut self) {
        let n = self.stages.len();
        let known = |stages: &[Stage], name| stages.iter().any(|s| s.name == Some(name));
        if n > 0 && self.stages[0].name.is_none() && !known(&self.stages, "base") {
            self.stages[0].name = Some("base");
        }
        if n > 1 && self.stages[n - 1].name.is_none() && !known(&self.stages, "sft") {
            self.stages[n - 1].name = Some("sft");
        }
        if n == 3 && self.stages[1].name.is_none() {
            self.stages[1].name = Some("mid");
        }
    }
}

impl Stage {
    fn take_loss(&mut self, loss: f64) {
        if !loss.is_finite() {
            self.not_finite += 1;
            return;
        }
        self.first_loss = self.first_loss.or(Some(loss));
        self.final_loss = Some(loss);
        self.min_loss = Some(self.min_loss.map_or(loss, |m| m.min(loss)));
    }
}
