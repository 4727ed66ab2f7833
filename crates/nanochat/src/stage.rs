//! What a stage of a run says of itself in summary.json, whoever ran it.

use nanochat_data::Batching;
use nanochat_train::base::Outcome;
use nanochat_train::batch_size::Choice;
use nanochat_train::step::StepMode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::batch::Wanted;
use crate::memory::Room;
use crate::pipeline::Packing;

/// Times and tokens of a stage, over all sessions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Wall clock.
    pub seconds: f64,
    /// Tokens that went through the model.
    pub tokens: f64,
    /// Of training steps; 0 where nothing is trained.
    pub tokens_per_sec: f64,
    /// Seconds of training steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_s: Option<f64>,
    /// Targets that counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<u64>,
    /// Of training steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_tokens_per_sec: Option<f64>,
    /// Share of the tokens that only filled rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding_share: Option<f64>,
    /// Median milliseconds of a step of the last session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ms: Option<f64>,
    /// Seconds spent laying out and allocating memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_s: Option<f64>,
    /// How often a step was planned in the last session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plans: Option<u64>,
}

impl Stage {
    /// A stage that trains nothing.
    pub fn untrained(seconds: f64) -> Self {
        Self { seconds, ..Self::default() }
    }

    /// What training reached.
    pub fn trained(seconds: f64, outcome: &Outcome) -> Self {
        let (totals, s) = (outcome.progress.totals, outcome.train_s.max(1e-9));
        Self {
            seconds,
            tokens: totals.tokens as f64,
            tokens_per_sec: totals.tokens as f64 / s,
            train_s: Some(outcome.train_s),
            trained_tokens: Some(totals.trained_tokens),
            trained_tokens_per_sec: Some(totals.trained_tokens as f64 / s),
            padding_share: Some(totals.padding_tokens as f64 / totals.tokens.max(1) as f64),
            step_ms: outcome.step_s.map(|s| 1e3 * s),
            plan_s: Some(totals.plan_s),
            plans: Some(outcome.plans),
        }
    }
}

/// Which of the optimizations a run had, and what they chose: the parts of summary.json that
/// comparisons read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Optimizations(Map<String, Value>);

impl Optimizations {
    /// Takes in what a stage did about its batch.
    pub fn batch(&mut self, stage: &str, wanted: Wanted, b: usize, choice: Option<&Choice>) {
        self.set("batch_size", None, json!(wanted.name()));
        self.set("device_batch_size", Some(stage), json!(b));
        if let Some(choice) = choice {
            self.set("auto_batch_size", Some(stage), json!(choice));
        }
    }

    /// Takes in how finetuning stepped.
    pub fn sft(&mut self, packing: Packing) {
        let step = match packing.step {
            StepMode::Compiled => "compiled",
            StepMode::Eager => "eager",
        };
        let batching = match packing.batching {
            Batching::Packed => "packed",
            Batching::Fixed => "fixed",
            Batching::Dynamic => "dynamic",
        };
        self.set("sft_step", None, json!(step));
        self.set("sft_batching", None, json!(batching));
    }

    /// Takes in how text was generated.
    pub fn generation(&mut self, kv_cache: bool, first_token: &str) {
        self.set("kv_cache", None, json!(kv_cache));
        self.set("first_token", None, json!(first_token));
    }

    fn set(&mut self, name: &str, stage: Option<&str>, value: Value) {
        match stage {
            None => {
                self.0.insert(name.into(), value);
            }
            Some(stage) => {
                let of = self.0.entry(name).or_insert_with(|| json!({}));
                of[stage] = value;
            }
        }
    }

    /// Writes them into a summary, over what an earlier stage said.
    pub fn write(&self, summary: &mut Map<String, Value>) {
        let mut mine = self.0.clone();
        let merge = |into: &mut Map<String, Value>, name: &str, value: Value| match (
            into.get_mut(name),
            value,
        ) {
            (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
            (_, value) => {
                into.insert(name.into(), value);
            }
        };
        if let Some(auto) = mine.remove("auto_batch_size") {
            merge(summary, "auto_batch_size", auto);
        }
        let mut all = match summary.remove("optimizations") {
            Some(Value::Object(all)) => all,
            _ => Map::new(),
        };
        for (name, value) in mine {
            merge(&mut all, &name, value);
        }
        summary.insert("optimizations".into(), Value::Object(all));
        let room = Room::now();
        summary.insert("memory_limit_bytes".into(), json!(room.held + room.free));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_to_what_a_summary_says() {
        let mut summary = Map::new();
        let mut base = Optimizations::default();
        base.batch("base", Wanted::Given(4), 4, None);
        base.write(&mut summary);
        let mut sft = Optimizations::default();
        sft.batch("sft", Wanted::Auto, 8, None);
        sft.generation(false, "broadcast");
        sft.write(&mut summary);
        let all = &summary["optimizations"];
        assert_eq!(all["device_batch_size"], json!({"base": 4, "sft": 8}));
        assert_eq!((&all["batch_size"], &all["kv_cache"]), (&json!("auto"), &json!(false)));
        assert!(summary["memory_limit_bytes"].is_u64());
    }
}
