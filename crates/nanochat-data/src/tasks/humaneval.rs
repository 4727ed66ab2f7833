//! HumanEval: Python functions to be completed; a program of tests decides.
//!
//! Records: `task_id`, `prompt`, `entry_point`, `canonical_solution`, `test`. Source: Chen et al.,
//! arXiv:2107.03374.

use nanochat_tokenizer::chat::Content;
use serde_json::Value;

use super::{Answer, Entry, Question, Source, text};

/// The task.
pub const ENTRY: Entry = Entry {
    name: "HumanEval",
    baseline: 0.0,
    from: "https://github.com/openai/human-eval (data/HumanEval.jsonl.gz, unpacked), or \
           openai/openai_humaneval on the Hugging Face Hub",
    source: Source::Records {
        test: &["humaneval/HumanEval.jsonl", "openai--openai_humaneval/openai_humaneval/test"],
        train: &[],
        read,
    },
};

fn read(i: usize, record: &Value) -> Result<Question, String> {
    let prompt = text(record, "prompt")?;
    let id = text(record, "task_id").map_or_else(|_| i.to_string(), str::to_owned);
    let solution = text(record, "canonical_solution")?;
    let answer = Answer::Program {
        imports: imports(prompt),
        tests: text(record, "test")?.to_owned(),
        entry_point: text(record, "entry_point")?.to_owned(),
    };
    let reference = Content::Text(format!("{prompt}\n{solution}"));
    Ok(Question::new(id, prompt.to_owned(), reference, answer))
}

/// The import lines at the beginning of a prompt: an answer need not repeat them.
pub fn imports(prompt: &str) -> String {
    let mut found = Vec::new();
    for line in prompt.split('\n').map(str::trim) {
        if line.starts_with("import ") || line.starts_with("from ") {
            found.push(line);
        } else if !line.is_empty() && !line.starts_with('#') {
            break;
        }
    }
    found.join("\n")
}

/// The code of an answer: what its first fenced block holds, else all of it.
///
/// ```
/// use nanochat_data::tasks::humaneval::code;
/// assert_eq!(code("Here:\n```python\nx = 1\n```\nDone."), "x = 1");
/// assert_eq!(code(" x = 1\n"), "x = 1");
/// ```
pub fn code(answer: &str) -> &str {
    const FENCE: &str = "```";
    for (at, _) in answer.match_indices(FENCE) {
        let rest = &answer[at + FENCE.len()..];
        let rest = rest.strip_prefix("python").unwrap_or(rest);
        // Blank up to a line's end, the last one that leaves a block behind it.
        let blank = rest.len() - rest.trim_start().len();
        for (newline, _) in rest[..blank].match_indices('\n').rev() {
            let body = &rest[newline + 1..];
            if let Some(end) = body.find("\n```") {
                return body[..end].trim();
            }
        }
    }
    answer.trim()
}
