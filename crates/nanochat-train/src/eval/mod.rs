//! How good a model is: one file a metric.
//!
//! `bpb` bits per byte | `core` the CORE metric | `chat` questions in chat format | `held_out` the
//! starter corpus' questions | `likelihood` what they ask of a model | `compare` two runs, item by item

pub mod bpb;
pub mod chat;
pub mod compare;
pub mod core;
pub mod held_out;
pub mod likelihood;

use serde::{Deserialize, Serialize};

/// One graded item, as it stands in the file of items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graded {
    /// Task.
    pub task: String,
    /// Names the item within its task, whatever the order.
    pub id: String,
    /// What was asked, few-shot examples left out.
    pub prompt: String,
    /// Records that stood before it as examples.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shots: Vec<usize>,
    /// What the model answered, one for each sample.
    pub answers: Vec<String>,
    /// What is right.
    pub gold: String,
    /// Share of the samples that are right: of one sample, 0 or 1.
    pub right: f64,
    /// Why, in a few words.
    pub why: String,
    /// Mean loss of each choice in nats per token, where choices were compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<f64>,
}

/// The score of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Task.
    pub task: String,
    /// Share of items that are right (of several samples: any).
    pub score: f64,
    /// 0 is guessing, 1 is perfect: `(score - baseline) / (1 - baseline)`.
    pub centered: f64,
    /// Share that guessing gets right.
    pub baseline: f64,
    /// Items.
    pub n: usize,
    /// Seconds.
    pub seconds: f64,
}

/// What an evaluation tells while it goes.
pub trait Progress {
    /// An item is graded; `done` of `of` are.
    ///
    /// Errors: the item cannot be written.
    fn item(&mut self, item: Graded, done: usize, of: usize) -> crate::Result<()>;
}
