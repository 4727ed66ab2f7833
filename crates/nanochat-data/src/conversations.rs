//! Records of many shapes to conversations: `.jsonl` and `.parquet` files of SFT data.
//!
//! | keys of the record | conversation |
//! |---|---|
//! | `messages` (a list, or JSON in a string), or the record is such a list | as it is |
//! | `instruction`, `input`/`context` if any, `response`/`output` | one turn |
//! | `instruction`, `instances` of `input`, `output` (self-instruct) | one turn each |
//! | `question`, `choices`, `answer` (index or letter) | [`render_mc`], the letter answers |
//! | `question`, `answer` | one turn |
//! | `sections`, `qa` of `question`, `answers`, `sections` (FairytaleQA) | one turn each |

use std::path::Path;

use nanochat_tokenizer::chat::{Content, Conversation, Message, Role};
use parquet::record::{Field, Row};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::shard::{Line, Lines, Policy, Reason, Skipped, parquet_rows};

/// Reads every conversation of a `.jsonl` or `.parquet` file, in order.
///
/// Errors: [`Error::Record`] names the keys of a record in no known form; [`Error::BadRecord`],
/// [`Error::BadRow`], [`Error::BadShard`], [`Error::Io`], [`Error::Format`]. Bad records are
/// counted instead when the policy says to skip.
pub fn conversations(path: &Path, policy: &Policy) -> Result<(Vec<Conversation>, Skipped)> {
    let (mut out, mut skipped) = (Vec::new(), Skipped::default());
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => read_jsonl(path, policy, &mut out, &mut skipped)?,
        Some("parquet") => parquet_rows(path, policy, &mut skipped, |row, values, skipped| {
            take(path, row, &value_of_row(&values), policy, &mut out, skipped)
        })?,
        _ => return Err(Error::Format { path: path.to_path_buf() }),
    }
    if out.is_empty() && skipped.total() == 0 {
        let (path, reason) = (path.to_path_buf(), Reason::Empty);
        let error = Error::BadShard { path, reason, detail: ": no records".into() };
        skipped.settle(policy.on_bad, reason, error)?;
    }
    Ok((out, skipped))
}

fn read_jsonl(
    path: &Path,
    policy: &Policy,
    out: &mut Vec<Conversation>,
    skipped: &mut Skipped,
) -> Result<()> {
    let mut lines = Lines::open(path, policy.max_document_bytes)?;
    let (mut line, mut row) = (Vec::new(), 0);
    while let Some(found) = lines.next(&mut line)? {
        let bad = match found {
            Line::TooLong => (Reason::TooLong, String::new()),
            Line::Whole if line.iter().all(u8::is_ascii_whitespace) => continue,
            Line::Whole => match (std::str::from_utf8(&line), serde_json::from_slice(&line)) {
                (Err(e), _) => (Reason::Utf8, format!(" (byte {})", e.valid_up_to())),
                (_, Err(e)) => (Reason::Json, format!(" ({e})")),
                (_, Ok(value)) => {
                    take(path, row, &value, policy, out, skipped)?;
                    row += 1;
                    continue;
                }
            },
        };
        let (reason, detail) = bad;
        let error = Error::BadRow { path: path.to_path_buf(), row, reason, detail };
        skipped.settle(policy.on_bad, reason, error)?;
        row += 1;
    }
    Ok(())
}

/// Appends the conversations of one record, or settles what is wrong with it.
fn take(
    path: &Path,
    row: u64,
    value: &Value,
    policy: &Policy,
    out: &mut Vec<Conversation>,
    skipped: &mut Skipped,
) -> Result<()> {
    match record(value) {
        Ok(found) => out.extend(found),
        Err(wrong) => {
            let place = format!("{}, row {row}", path.display());
            let error = match wrong {
                Wrong::Keys(keys) => Error::Record { place, keys },
                Wrong::Value(why) => Error::BadRecord { place, why },
            };
            skipped.settle(policy.on_bad, Reason::Form, error)?;
        }
    }
    Ok(())
}

/// What is wrong with a record.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// Its keys are those of no known form.
    Keys(String),
    /// A value cannot be used.
    Value(String),
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Wrong::Value(why)
    }
}

fn record(value: &Value) -> Result<Vec<Conversation>, Wrong> {
    if value.is_array() {
        return Ok(vec![from_messages(value)?]);
    }
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    let first = |keys: &[&'static str]| keys.iter().copied().find(|k| has(k));
    if has("messages") {
        return Ok(vec![from_messages(&object["messages"])?]);
    }
    if has("instruction") && has("instances") {
        let instances = object["instances"].as_array().ok_or("instances is no list".to_string())?;
        return instances
            .iter()
            .map(|i| {
                let instance = i.as_object().ok_or("an instance is no object".to_string())?;
                let input = instance.get("input").and_then(Value::as_str);
                Ok(turn(with_input(text(object, "instruction")?, input), text(instance, "output")?))
            })
            .collect();
    }
    if let (true, Some(answer)) = (has("instruction"), first(&["response", "output"])) {
        let input = first(&["context", "input"]).and_then(|key| object[key].as_str());
        return Ok(vec![turn(
            with_input(text(object, "instruction")?, input),
            text(object, answer)?,
        )]);
    }
    if has("question") && has("choices") && has("answer") {
        return Ok(vec![multiple_choice(object)?]);
    }
    if has("question") && has("answer") {
        return Ok(vec![turn(text(object, "question")?.into(), text(object, "answer")?)]);
    }
    if has("sections") && has("qa") {
        return Ok(questions_on_sections(object)?);
    }
    let keys = object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(Wrong::Keys(keys))
}

/// The multiple-choice prompt of nanochat: question, then `- choice=LETTER` lines.
///
/// ```
/// let prompt = nanochat_data::conversations::render_mc("2+2?", &["A", "B"], &["3", "4"]);
/// assert_eq!(prompt, "Multiple Choice question: 2+2?\n- 3=A\n- 4=B\n\n\
///     Respond only with the letter of the correct answer.");
/// ```
pub fn render_mc<L: AsRef<str>, C: AsRef<str>>(
    question: &str,
    letters: &[L],
    choices: &[C],
) -> String {
    let mut prompt = format!("Multiple Choice question: {question}\n");
    for (letter, choice) in letters.iter().zip(choices) {
        prompt.push_str(&format!("- {}={}\n", choice.as_ref(), letter.as_ref()));
    }
    prompt.push_str("\nRespond only with the letter of the correct answer.");
    prompt
}

fn turn(user: String, assistant: &str) -> Conversation {
    let message = |role, text: String| Message { role, content: Content::Text(text) };
    Conversation {
        messages: vec![message(Role::User, user), message(Role::Assistant, assistant.into())],
    }
}

fn with_input(instruction: &str, input: Option<&str>) -> String {
    match input.filter(|i| !i.trim().is_empty()) {
        Some(input) => format!("{instruction}\n\n{input}"),
        None => instruction.into(),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    object.get(key).and_then(Value::as_str).ok_or_else(|| format!("{key} is no string"))
}

fn from_messages(value: &Value) -> Result<Conversation, String> {
    let parsed;
    let value = match value {
        Value::String(json) => {
            parsed = serde_json::from_str(json).map_err(|e| format!("messages is no JSON: {e}"))?;
            &parsed
        }
        other => other,
    };
    let messages: Vec<Message> =
        Vec::<Message>::deserialize(value).map_err(|e| format!("messages: {e}"))?;
    let turns = match messages.first() {
        Some(m) if m.role == Role::System => &messages[1..],
        _ => &messages[..],
    };
    if turns.is_empty() {
        return Err("messages has no turns".into());
    }
    for (i, message) in turns.iter().enumerate() {
        let expected = if i % 2 == 0 { Role::User } else { Role::Assistant };
        if message.role != expected {
            return Err(format!(
                "turn {i} is of {:?}, expected {expected:?}: user and assistant must alternate",
                message.role
            ));
        }
    }
    Ok(Conversation { messages })
}

fn multiple_choice(object: &Map<String, Value>) -> Result<Conversation, String> {
    // A plain list, or ARC's { "text": [..], "label": [..] }.
    let choices = &object["choices"];
    let list = |v: &Value| -> Option<Vec<String>> {
        v.as_array()?.iter().map(|c| c.as_str().map(String::from)).collect()
    };
    let texts =
        list(choices.get("text").unwrap_or(choices)).ok_or("choices is no list of strings")?;
    let labels = choices.get("label").and_then(list);
    let letters = labels.unwrap_or_else(|| {
        (b'A'..=b'Z').take(texts.len()).map(|l| char::from(l).to_string()).collect()
    });
    if letters.len() != texts.len() || texts.is_empty() {
        return Err(format!("{} choices with {} letters", texts.len(), letters.len()));
    }
    let answer = match &object["answer"] {
        Value::String(letter) => letters.iter().find(|l| *l == letter),
        index => index.as_u64().and_then(|i| letters.get(usize::try_from(i).ok()?)),
    };
    let answer =
        answer.ok_or_else(|| format!("answer {} is none of the choices", object["answer"]))?;
    Ok(turn(render_mc(text(object, "question")?, &letters, &texts), answer))
}

fn questions_on_sections(object: &Map<String, Value>) -> Result<Vec<Conversation>, String> {
    let sections = object["sections"].as_object().ok_or("sections is no object")?;
    let questions = object["qa"].as_array().ok_or("qa is no list")?;
    let mut out = Vec::with_capacity(questions.len());
    for item in questions {
        let item = item.as_object().ok_or("a question is no object")?;
        let wanted = item.get("sections").and_then(Value::as_array).ok_or("no sections")?;
        let mut prompt = String::new();
        for name in wanted.iter().filter_map(Value::as_str) {
            let section = sections.get(name).and_then(Value::as_str);
            prompt.push_str(section.ok_or_else(|| format!("there is no section {name:?}"))?);
            prompt.push_str("\n\n");
        }
        prompt.push_str(text(item, "question")?);
        let answers = item.get("answers").and_then(Value::as_array).ok_or("no answers")?;
        if let Some(answer) = answers.first().and_then(Value::as_str) {
            out.push(turn(prompt, answer));
        }
    }
    Ok(out)
}

/// A parquet row as JSON; values of types no conversation has become null.
pub(crate) fn value_of_row(row: &Row) -> Value {
    Value::Object(
        row.get_column_iter().map(|(name, field)| (name.clone(), value_of(field))).collect(),
    )
}

fn value_of(field: &Field) -> Value {
    match field {
        Field::Bool(b) => Value::from(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Str(s) => Value::from(s.as_str()),
        Field::Bytes(bytes) => bytes.as_utf8().map_or(Value::Null, Value::from),
        Field::Group(row) => value_of_row(row),
        Field::ListInternal(list) => list.elements().iter().map(value_of).collect(),
        _ => Value::Null,
    }
}
