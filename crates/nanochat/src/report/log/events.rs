//! Lines without a step: totals, the batch size that was chosen, speed of a chat, names of stages.

use serde::Serialize;
use serde_json::Value;

use super::line::{Field, STEP_TIME_KEYS, leading, rate, seconds};
use super::{Seen, Summary};
use crate::report::record::number;

/// A batch size as a log tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BatchSize {
    /// Rows of a micro batch.
    pub batch_size: Option<f64>,
    /// `found`, `cached` or `given`.
    pub source: &'static str,
    /// Micro batches of a step.
    pub accumulation: Option<f64>,
    /// Memory that the plan needs, bytes.
    pub predicted_bytes: Option<f64>,
    /// Memory that it may use, bytes.
    pub limit_bytes: Option<f64>,
    /// Seconds that finding it took.
    pub discovery_s: Option<f64>,
}

/// Words of lines whose rate is not one of decoding for a person.
const OTHER_RATES: [&str; 8] =
    ["train", "throughput", "time/step", "flop", "baseline", "without", "no kv", "no cache"];

impl Summary {
    /// Takes a line without a step. `fields`: what follows its first `|`.
    pub(super) fn take_event(&mut self, line: &str, fields: &[Field<'_>]) {
        // What a model wrote is no event.
        if line.trim_start().starts_with("sample |") {
            return;
        }
        let lower = line.to_ascii_lowercase();
        self.seen.named = stage_name(&lower).or(self.seen.named);
        if let Some(found) = batch_size(line, &lower) {
            self.take_batch_size(found);
            return;
        }
        self.seen.take_rate(&lower);
        if let Some(stage) = self.stages.last_mut() {
            // `[VALIDATION] Avg time/step: 2.450s | Tokens/sec: 3265.3`
            let field = line.split('|').next().and_then(Field::read);
            let average = |f: &Field<'_>| f.key.ends_with(STEP_TIME_KEYS[3]);
            let first = field.iter().chain(fields).find(|f| average(f));
            stage.dt_ms = first.and_then(Field::milliseconds).or(stage.dt_ms);
        }
        self.take_total(line);
    }

    /// The machine-readable line and the one for people tell of the same choice; the former is
    /// the exact one.
    fn take_batch_size(&mut self, found: BatchSize) {
        let same = |b: &BatchSize| b.batch_size == found.batch_size;
        let size = match self.seen.batch_size.take().filter(same) {
            Some(told) if told.accumulation.is_some() => told.or(found),
            Some(told) => found.or(told),
            None => found,
        };
        self.seen.limit_bytes = size.limit_bytes.or(self.seen.limit_bytes);
        self.batch_size = Some(size.clone());
        self.seen.batch_size = Some(size);
    }

    /// Totals, and `CORE metric: 0.1912` alone on its line.
    fn take_total(&mut self, line: &str) {
        let Some((key, value)) = line.split_once(':') else { return };
        let key = key.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
        let x = leading(value).filter(|x| x.is_finite());
        match (key.as_str(), x) {
            ("total wall clock time", _) => self.wall_s = seconds(value).or(self.wall_s),
            ("total training time", _) => match self.stages.last_mut() {
                // A report at the end may say it again.
                Some(stage) => stage.training_s = stage.training_s.or(seconds(value)),
                None => self.training_s = seconds(value).or(self.training_s),
            },
            ("peak memory usage", Some(x)) => {
                self.peak_memory_mib = Some(self.peak_memory_mib.map_or(x, |peak| peak.max(x)));
            }
            ("minimum validation bpb", _) => self.min_val_bpb = x.or(self.min_val_bpb),
            ("val bpb" | "validation bpb", Some(x)) => self.take_eval(key, x),
            (k, Some(x)) if k.ends_with(" accuracy") || k.ends_with(" metric") => {
                self.take_eval(key, x);
            }
            _ => {}
        }
    }
}

impl BatchSize {
    /// With what only `other` knows.
    fn or(self, other: Self) -> Self {
        Self {
            source: if self.source == "found" { other.source } else { self.source },
            batch_size: self.batch_size.or(other.batch_size),
            accumulation: self.accumulation.or(other.accumulation),
            predicted_bytes: self.predicted_bytes.or(other.predicted_bytes),
            limit_bytes: self.limit_bytes.or(other.limit_bytes),
            discovery_s: self.discovery_s.or(other.discovery_s),
        }
    }
}

impl Seen {
    fn take_rate(&mut self, lower: &str) {
        if OTHER_RATES.iter().any(|w| lower.contains(w)) {
            return;
        }
        let Some(rate) = rate(lower) else { return };
        if lower.trim_start().starts_with("decode ") {
            self.decode = Some(rate);
        } else {
            self.answers.push(rate);
        }
    }
}

/// `base | cpu ...` of this program, `scripts.chat_sft` of upstream; a line that names two stages
/// begins neither.
fn stage_name(lower: &str) -> Option<&'static str> {
    const SCRIPTS: [(&str, &str); 4] =
        [("base_train", "base"), ("mid_train", "mid"), ("chat_sft", "sft"), ("chat_rl", "rl")];
    let head = lower.split_once('|').map_or("", |(head, _)| head.trim());
    if let Some(name) = ["base", "sft"].into_iter().find(|n| *n == head) {
        return Some(name);
    }
    let mut named = SCRIPTS.iter().filter(|(script, _)| lower.contains(script));
    named.next().filter(|_| named.next().is_none()).map(|(_, name)| *name)
}

/// A line that tells of a batch size.
fn batch_size(line: &str, lower: &str) -> Option<BatchSize> {
    if let Some((_, json)) = line.split_once("auto-batch-size ") {
        return from_json(json);
    }
    let source = match lower {
        l if l.contains("found optimal batch_size") => "found",
        l if l.contains("using cached batch_size") => "cached",
        l if l.contains("manual batch_size override") => "given",
        _ => return None,
    };
    let after = lower.split_once("batch_size")?.1;
    let batch_size = leading(after.split_once([':', '='])?.1).filter(|b| b.is_finite());
    let discovery_s = after.split_once(" in ").and_then(|(_, t)| seconds(t));
    batch_size?;
    Some(BatchSize { batch_size, source, discovery_s, ..BatchSize::default() })
}

/// The object after `auto-batch-size `; what follows it is left.
fn from_json(text: &str) -> Option<BatchSize> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok().filter(Value::is_object)?;
    Some(BatchSize {
        batch_size: number(&value, "batch_size"),
        source: if value["cached"].as_bool() == Some(true) { "cached" } else { "found" },
        accumulation: number(&value, "accumulation"),
        predicted_bytes: number(&value, "predicted_bytes"),
        limit_bytes: number(&value, "limit_bytes"),
        discovery_s: number(&value, "discovery_s"),
    })
}
