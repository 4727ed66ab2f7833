//! MMLU: exam questions of 57 subjects, four choices each.
//!
//! Records: `question`, `choices`, `answer` (its index), `subject`. Source: Hendrycks et al.,
//! arXiv:2009.03300.

use serde_json::Value;

use super::{Entry, Question, Source, arc, text};

/// The task.
pub const ENTRY: Entry = Entry {
    name: "MMLU",
    baseline: 0.25,
    from: "cais/mmlu on the Hugging Face Hub (parquet, subset all)",
    source: Source::Records {
        test: &["mmlu/test.jsonl", "cais--mmlu/all/test"],
        train: &["cais--mmlu/all/auxiliary_train", "mmlu/dev.jsonl"],
        read,
    },
};

/// The id begins with the subject, so that scores can be told apart by it.
fn read(i: usize, record: &Value) -> Result<Question, String> {
    let subject = text(record, "subject").unwrap_or("mmlu");
    arc::choice(format!("{subject}/{i}"), record)
}
