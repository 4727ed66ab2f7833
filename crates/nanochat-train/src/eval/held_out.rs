//! Held-out questions of the starter corpus: the model answers greedily, the item grades.

use nanochat_data::starter::{TestItem, TestKind};
use nanochat_engine::sample::SampleOptions;
use nanochat_tokenizer::{Special, Tokenizer, chat};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::answers::{Asked, Writer, Writing};

/// Most tokens of an answer.
const ANSWER_TOKENS: usize = 64;

/// One graded answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked.
    pub question: String,
    /// What the model said.
    pub answer: String,
    /// True when the item's grade accepts it.
    pub right: bool,
}

/// Answers of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Score {
    /// `arithmetic`, `facts`, ...
    pub kind: String,
    /// Share of right answers.
    pub score: f64,
    /// Every answer.
    pub answers: Vec<Answer>,
}

/// Asks every item of a kind, greedily, with tools on.
///
/// An arithmetic answer counts only when the calculator was called for it, a mental one only without.
pub fn evaluate(
    writer: &mut dyn Writer,
    tokenizer: &Tokenizer,
    kind: TestKind,
    items: &[TestItem],
) -> Result<Score> {
    let asked = items.iter().map(|item| {
        let prompt = chat::render_for_completion(tokenizer, &item.conversation)
            .map_err(nanochat_engine::Error::from)?;
        Ok(Asked { prompt, sample: SampleOptions::greedy() })
    });
    let asked = asked.collect::<Result<Vec<_>>>()?;
    let writing = Writing { num_samples: 1, max_tokens: ANSWER_TOKENS, tools: true };
    let mut answers = Vec::with_capacity(items.len());
    writer.write(tokenizer, &asked, &writing, &mut |at, rows| {
        let (item, row) = (&items[at], &rows[0]);
        let answer = row.text();
        let called = row.ids.contains(&tokenizer.special(Special::OutputStart));
        let right = item.grade(&answer) && item.allows_tool_use(called);
        answers.push(Answer { question: item.question().to_owned(), answer, right });
        Ok(())
    })?;
    let right = answers.iter().filter(|a| a.right).count();
    let score = right as f64 / answers.len().max(1) as f64;
    Ok(Score { kind: kind.name().into(), score, answers })
}
