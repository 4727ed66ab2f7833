//! GSM8K: school mathematics in words; the answer ends in `#### ` and a number.
//!
//! Records: `question`, `answer` with `<<expression=result>>` where a calculator was used: these become
//! tool calls. Source: Cobbe et al., arXiv:2110.14168.

use nanochat_tokenizer::chat::{Content, Part};
use serde_json::Value;

use super::{Answer, Entry, Question, Source, text};

/// The task.
pub const ENTRY: Entry = Entry {
    name: "GSM8K",
    baseline: 0.0,
    from: "https://github.com/openai/grade-school-math (grade_school_math/data), or openai/gsm8k on \
           the Hugging Face Hub",
    source: Source::Records {
        test: &["gsm8k/test.jsonl", "openai--gsm8k/main/test"],
        train: &["gsm8k/train.jsonl", "openai--gsm8k/main/train"],
        read,
    },
};

fn read(i: usize, record: &Value) -> Result<Question, String> {
    let answer = text(record, "answer")?;
    let parts = parts(answer);
    // As upstream, the last part of the reference holds the number.
    let gold = match parts.last() {
        Some(Part::Text(last)) => number(last),
        _ => None,
    };
    let gold = gold.ok_or("the answer does not end in \"#### \" and a number")?;
    let user = text(record, "question")?.to_owned();
    Ok(Question::new(i.to_string(), user, Content::Parts(parts), Answer::Number(gold)))
}

/// The reference as text, tool calls and their outputs. A `<<...>>` is split at its last `=`.
pub fn parts(answer: &str) -> Vec<Part> {
    let (mut parts, mut rest) = (Vec::new(), answer);
    let call = |from: &str| -> Option<(usize, usize)> {
        let mut at = 0;
        loop {
            let open = at + from[at..].find("<<")?;
            // Anything but `>` inside, and at least one character.
            let inside = &from[open + 2..];
            let close = inside.find('>')?;
            if close > 0 && inside[close..].starts_with(">>") {
                return Some((open, open + 2 + close));
            }
            at = open + 1;
        }
    };
    while let Some((open, close)) = call(rest) {
        let inner = &rest[open + 2..close];
        let (expression, result) = inner.rsplit_once('=').unwrap_or((inner, ""));
        parts.push(Part::Text(rest[..open].to_owned()));
        parts.push(Part::Python(expression.to_owned()));
        parts.push(Part::PythonOutput(result.to_owned()));
        rest = &rest[close + 2..];
    }
    parts.push(Part::Text(rest.to_owned()));
    parts
}

/// The number after the first `#### ` that one follows, without its commas: compared as text.
///
/// ```
/// use nanochat_data::tasks::gsm8k::number;
/// assert_eq!(number("#### x, #### -1,234.5 apples").as_deref(), Some("-1234.5"));
/// assert_eq!(number("1234"), None);
/// ```
pub fn number(text: &str) -> Option<String> {
    text.match_indices("#### ").find_map(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let sign = usize::from(rest.starts_with('-'));
        let digits = |c: char| !(c.is_ascii_digit() || c == '.' || c == ',');
        let end = rest[sign..].find(digits).unwrap_or(rest.len() - sign);
        (end > 0).then(|| rest[..sign + end].replace(',', ""))
    })
}
