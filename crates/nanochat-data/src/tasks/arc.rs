//! ARC: school science with lettered choices, an easy and a hard set.
//!
//! Records: `question`, `choices` and `answer` (its index); or the Hub's `choices {text, label}` and
//! `answerKey`. Source: Clark et al., arXiv:1803.05457.

use nanochat_tokenizer::chat::Content;
use serde_json::Value;

use super::{Answer, Entry, Question, Source, letters, text, texts};
use crate::conversations::render_mc;

const FROM: &str =
    "allenai/ai2_arc on the Hugging Face Hub (parquet), https://allenai.org/data/arc";

/// The easy set.
pub const EASY: Entry = Entry {
    name: "ARC-Easy",
    baseline: 0.25,
    from: FROM,
    source: Source::Records {
        test: &["arc/easy_test.jsonl", "allenai--ai2_arc/ARC-Easy/test"],
        train: &["arc/easy_train.jsonl", "allenai--ai2_arc/ARC-Easy/train"],
        read,
    },
};

/// The hard set: questions that retrieval and word statistics get wrong.
pub const CHALLENGE: Entry = Entry {
    name: "ARC-Challenge",
    baseline: 0.25,
    from: FROM,
    source: Source::Records {
        test: &["arc/challenge_test.jsonl", "allenai--ai2_arc/ARC-Challenge/test"],
        train: &["arc/challenge_train.jsonl", "allenai--ai2_arc/ARC-Challenge/train"],
        read,
    },
};

fn read(i: usize, record: &Value) -> Result<Question, String> {
    choice(i.to_string(), record)
}

/// A multiple-choice record of any of the usual forms to a question.
pub(super) fn choice(id: String, record: &Value) -> Result<Question, String> {
    let choices = record.get("choices").ok_or("choices is missing")?;
    let given =
        texts(choices.get("text").unwrap_or(choices)).ok_or("choices is no list of texts")?;
    let labels = choices.get("label").and_then(texts).unwrap_or_else(|| letters(given.len()));
    if labels.len() != given.len() || given.len() < 2 {
        return Err(format!("{} choices with {} letters", given.len(), labels.len()));
    }
    let answer = record.get("answerKey").or_else(|| record.get("answer"));
    let gold = match answer.ok_or("answer is missing")? {
        Value::String(letter) => labels.iter().position(|l| l == letter),
        index => index.as_u64().map(|i| i as usize).filter(|i| *i < labels.len()),
    };
    let gold = gold.ok_or_else(|| {
        format!("answer {} is none of the choices", answer.unwrap_or(&Value::Null))
    })?;
    let user = render_mc(text(record, "question")?, &labels, &given);
    let reference = Content::Text(labels[gold].clone());
    Ok(Question::new(id, user, reference, Answer::Letter { letters: labels, gold }))
}
