//! Questions of one's own, without code: a JSONL (or parquet) file, one question a line.
//!
//! | keys | the model | right is |
//! |---|---|---|
//! | `question`, `choices`, `answer` (index or letter) | chooses a letter | that letter |
//! | `question`, `answer` | writes | by `grade`, or by what the answer looks like |
//! | `messages` (the last one of the assistant) | writes | the same, against that message |
//! | `prompt`, `test`, `entry_point` | writes code | the tests pass |
//!
//! `answer` may be a list: any of them is right. `grade` is `number` (the last number in the answer
//! has this value), `hashes` (the number after `#### `), `contains` (these words stand in it) or
//! `letter`. Without it, a reference with `#### ` is graded by `hashes`, a number by `number`, all else by `contains`.
//! `id` names the question; without it the line's number does.

use std::path::Path;

use nanochat_tokenizer::chat::{Content, Conversation, Message, Role};
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, ChatTask, Question, arc, files, gsm8k, humaneval, text, texts};
use crate::error::{Error, Result};
use crate::starter::Grade;

/// Reads a file of questions, in its order; its name, without the ending, becomes the task's.
///
/// Errors: [`Error::BadRecord`] names the line and what is wrong with it.
pub fn load(path: &Path) -> Result<ChatTask> {
    let records = files::records(path)?;
    let question = |(i, record): (usize, &Value)| {
        read(i, record).map_err(|why| Error::BadRecord {
            place: format!("{}, record {i}", path.display()),
            why,
        })
    };
    let questions = records.iter().enumerate().map(question).collect::<Result<Vec<_>>>()?;
    if questions.is_empty() {
        let why = "no questions: give one JSON object a line".into();
        return Err(Error::BadRecord { place: path.display().to_string(), why });
    }
    // Guessing gives one in the number of choices, on average.
    let guess = |q: &Question| match &q.answer {
        Answer::Letter { letters, .. } => 1.0 / letters.len() as f64,
        _ => 0.0,
    };
    let baseline = questions.iter().map(guess).sum::<f64>() / questions.len() as f64;
    let name =
        path.file_stem().map_or_else(|| "custom".into(), |n| n.to_string_lossy().into_owned());
    Ok(ChatTask { name, baseline, questions })
}

fn read(i: usize, record: &Value) -> Result<Question, String> {
    let id = match record.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(id @ Value::Number(_)) => id.to_string(),
        _ => i.to_string(),
    };
    if record.get("choices").is_some() {
        return arc::choice(id, record);
    }
    if record.get("test").is_some() {
        let prompt = text(record, "prompt")?;
        let answer = Answer::Program {
            imports: humaneval::imports(prompt),
            tests: text(record, "test")?.into(),
            entry_point: text(record, "entry_point")?.into(),
        };
        return Ok(Question::new(id, prompt.into(), Content::Text(String::new()), answer));
    }
    if let Some(messages) = record.get("messages") {
        let messages: Vec<Message> =
            Vec::<Message>::deserialize(messages).map_err(|e| format!("messages: {e}"))?;
        if messages.last().is_none_or(|m| m.role != Role::Assistant) || messages.len() < 2 {
            return Err("messages must end with the assistant's reference answer".into());
        }
        let conversation = Conversation { messages };
        let mut question = Question { id, conversation, answer: Answer::Number(String::new()) };
        question.answer = answer(record, vec![question.reference()])?;
        return Ok(question);
    }
    let user = text(record, "question").map_err(|_| {
        "no known form: give question + answer, question + choices + answer, messages, or prompt + \
         test + entry_point"
            .to_owned()
    })?;
    let right = match record.get("answer") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Number(one)) => vec![one.to_string()],
        Some(list) => texts(list).filter(|l| !l.is_empty()).ok_or("answer is no text")?,
        None => return Err("answer is missing".into()),
    };
    let reference = Content::Text(right[0].clone());
    Ok(Question::new(id, user.into(), reference, answer(record, right)?))
}

/// How a free answer is judged.
fn answer(record: &Value, right: Vec<String>) -> Result<Answer, String> {
    let is_number = |t: &str| t.trim().replace(',', "").parse::<f64>().is_ok_and(f64::is_finite);
    let grade = match record.get("grade").map(|g| g.as_str().ok_or("grade is no text")) {
        Some(given) => given?,
        None if gsm8k::number(&right[0]).is_some() => "hashes",
        None if right.len() == 1 && is_number(&right[0]) => "number",
        None => "contains",
    };
    let first = right[0].trim().to_owned();
    match grade {
        "hashes" => gsm8k::number(&first)
            .map(Answer::Number)
            .ok_or_else(|| format!("grade hashes: {first:?} has no number after \"#### \"")),
        "number" if is_number(&first) => Ok(Answer::Words(Grade::Number(first))),
        "number" => Err(format!("grade number: {first:?} is none")),
        "contains" => Ok(Answer::Words(Grade::Contains(right))),
        "letter" => match (first.chars().next(), first.chars().count()) {
            (Some(letter), 1) => Ok(Answer::Words(Grade::Letter(letter))),
            _ => Err(format!("grade letter: {first:?} is none")),
        },
        other => Err(format!("grade {other:?}: give number, hashes, contains or letter")),
    }
}
