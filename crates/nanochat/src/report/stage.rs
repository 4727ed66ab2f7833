//! One stage of a run: its figures in `summary.json` and its rows of `metrics.jsonl` -> [`Stage`].

use serde_json::Value;

use super::curve::{self, Point};
use super::record::number;
use super::reward::Rewards;

/// One stage: `tokenizer`, `base`, `sft`, ...
#[derive(Debug, Default)]
pub struct Stage {
    /// Its name in the files.
    pub name: String,
    /// The summary has it: it came to its end.
    pub finished: bool,
    /// Seconds, validation and checkpoints included.
    pub seconds: Option<f64>,
    /// Seconds of training steps.
    pub train_s: Option<f64>,
    /// Tokens that went through it.
    pub tokens: Option<f64>,
    /// Tokens a second.
    pub tokens_per_sec: Option<f64>,
    /// Targets that counted.
    pub trained_tokens: Option<f64>,
    /// Targets that counted, a second.
    pub trained_tokens_per_sec: Option<f64>,
    /// Share of the tokens that are padding.
    pub padding_share: Option<f64>,
    /// Step plans that were made.
    pub plans: Option<f64>,
    /// Loss of each step, nats per token.
    pub loss: Vec<Point>,
    /// Smoothed loss.
    pub smooth_loss: Vec<Point>,
    /// (seconds of training, smoothed loss).
    pub loss_by_time: Vec<Point>,
    /// Bits per byte of held-out text.
    pub val_bpb: Vec<Point>,
    /// Learning-rate multiplier.
    pub lr_multiplier: Vec<Point>,
    /// Tokens a second, by step.
    pub rate: Vec<Point>,
    /// Milliseconds a step.
    pub dt_ms: Vec<f64>,
    /// Milliseconds spent waiting for data, all steps together.
    pub data_ms: f64,
    /// What reinforcement measured.
    pub rewards: Rewards,
    /// Median milliseconds of a step, of the summary.
    step_ms: Option<f64>,
}

impl Stage {
    /// A stage of which nothing is known yet.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Takes a row of `metrics.jsonl`.
    pub fn take_step(&mut self, step: f64, row: &Value) {
        let point = |key| number(row, key).map(|v| (step, v));
        self.rewards.take_step(step, row);
        self.loss.extend(point("loss"));
        self.smooth_loss.extend(point("smooth_loss"));
        self.lr_multiplier.extend(point("lr_multiplier"));
        self.rate.extend(point("tokens_per_sec"));
        self.dt_ms.extend(number(row, "dt_ms"));
        self.data_ms += number(row, "data_ms").unwrap_or(0.0);
        if let Some(train_s) = number(row, "train_s") {
            (self.seconds, self.train_s) = (Some(train_s), Some(train_s));
            let loss = number(row, "smooth_loss").or_else(|| number(row, "loss"));
            self.loss_by_time.extend(loss.map(|l| (train_s, l)));
        }
        let add = |sum: &mut Option<f64>, key| {
            if let Some(tokens) = number(row, key) {
                *sum = Some(sum.unwrap_or(0.0) + tokens);
            }
        };
        add(&mut self.tokens, "tokens");
        add(&mut self.trained_tokens, "trained_tokens");
    }

    /// Takes the stage's part of `summary.json`, whose figures win over what the steps add up to.
    pub fn take_summary(&mut self, of: &Value) {
        // A stage that counts no tokens writes zeros.
        let counted = |key| number(of, key).filter(|x| *x > 0.0);
        self.finished = of.is_object();
        self.seconds = number(of, "seconds").or(self.seconds);
        self.tokens = counted("tokens").or(self.tokens);
        self.tokens_per_sec = counted("tokens_per_sec");
        // A summary without `train_s` has it in its rate, which is tokens over training seconds.
        let by_rate = || Some(counted("tokens")? / counted("tokens_per_sec")?);
        self.train_s = counted("train_s").or(self.train_s).or_else(by_rate);
        self.trained_tokens = counted("trained_tokens").or(self.trained_tokens);
        self.trained_tokens_per_sec = counted("trained_tokens_per_sec");
        self.padding_share = number(of, "padding_share").filter(|s| (0.0..=1.0).contains(s));
        self.plans = counted("plans");
        self.step_ms = counted("step_ms");
    }

    /// Works out the rates that no file has.
    pub fn complete(&mut self) {
        let over = |tokens: Option<f64>, seconds: Option<f64>| {
            Some(tokens? / seconds.filter(|s| *s > 0.0)?)
        };
        self.tokens_per_sec = self.tokens_per_sec.or_else(|| over(self.tokens, self.seconds));
        self.trained_tokens_per_sec =
            self.trained_tokens_per_sec.or_else(|| over(self.trained_tokens, self.train_s));
    }

    /// The last smoothed loss, else the last loss.
    pub fn final_loss(&self) -> Option<f64> {
        self.smooth_loss.last().or(self.loss.last()).map(|p| p.1)
    }

    /// The last bits per byte.
    pub fn last_bpb(&self) -> Option<f64> {
        self.val_bpb.last().map(|p| p.1)
    }

    /// Median seconds of a step.
    pub fn step_s(&self) -> Option<f64> {
        let median = || curve::median(self.dt_ms.iter().copied());
        self.step_ms.or_else(median).map(|ms| ms / 1e3)
    }

    /// Share of step time spent waiting for data.
    pub fn data_share(&self) -> Option<f64> {
        let all: f64 = self.dt_ms.iter().sum();
        (all > 0.0).then(|| self.data_ms / all)
    }
}
