//! Questions that are graded: a folder of downloaded data in, shuffled [`Question`]s out.
//!
//! `core` the 22 tasks of CORE | `arc`, `mmlu`, `gsm8k`, `humaneval`, `spelling` one file a chat task | `starter` the built-in world's
//! sums |
//! `custom` a JSONL file of one's own | `grade` what makes an answer right | `files` where data lies
//!
//! A new ability is one file with an [`Entry`], and one line in [`ALL`].

pub mod arc;
pub mod core;
pub mod custom;
pub mod files;
pub mod grade;
pub mod gsm8k;
pub mod humaneval;
pub mod mmlu;
pub mod spelling;
pub mod starter;

use nanochat_tokenizer::chat::{Content, Conversation, Message, Part, Role};
use serde_json::Value;

use crate::Task;
use crate::error::{Error, Result};
use crate::numpy_random::permutation;
pub use files::DataDir;
pub use grade::{Answer, NoRunner, Runner, Verdict};

/// Seed of the shuffle of every question set, as in nanochat.
const SHUFFLE_SEED: u32 = 42;

/// One graded question.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Names it within its task, whatever the order: `HumanEval/7`, `1469`.
    pub id: String,
    /// The user's turn, and last the reference answer.
    pub conversation: Conversation,
    /// What makes an answer right.
    pub answer: Answer,
}

impl ChatTask {
    /// True if grading runs programs.
    pub fn runs_programs(&self) -> bool {
        self.questions.iter().any(|q| matches!(q.answer, Answer::Program { .. }))
    }
}

impl Question {
    /// A question of one turn with its reference answer.
    pub fn new(id: impl Into<String>, user: String, reference: Content, answer: Answer) -> Self {
        let message = |role, content| Message { role, content };
        let messages =
            vec![message(Role::User, Content::Text(user)), message(Role::Assistant, reference)];
        Self { id: id.into(), conversation: Conversation { messages }, answer }
    }

    /// The text of the last user turn.
    pub fn text(&self) -> &str {
        let user = self.conversation.messages.iter().rev().find(|m| m.role == Role::User);
        match user.map(|m| &m.content) {
            Some(Content::Text(text)) => text,
            _ => "",
        }
    }

    /// The reference answer as one text, tool calls left out.
    pub fn reference(&self) -> String {
        match self.conversation.messages.last().map(|m| &m.content) {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                let texts = parts.iter().filter_map(|p| match p {
                    Part::Text(text) => Some(text.as_str()),
                    Part::Python(_) | Part::PythonOutput(_) => None,
                });
                texts.collect()
            }
            None => String::new(),
        }
    }
}

/// Questions of one kind.
#[derive(Clone, Debug)]
pub struct ChatTask {
    /// As on the command line and in reports: `ARC-Easy`.
    pub name: String,
    /// Share of right answers that guessing gives; 0 where guessing is hopeless.
    pub baseline: f64,
    /// The questions, in nanochat's shuffled order.
    pub questions: Vec<Question>,
}

/// A task can be trained on as well: its conversations hold the reference answers.
impl Task for ChatTask {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.questions.len()
    }

    fn get(&self, i: usize) -> Result<Conversation> {
        Ok(self.questions[i].conversation.clone())
    }
}

/// Where the questions of a task come from.
pub enum Source {
    /// Records of files: one question each.
    Records {
        /// Files or folders below a data folder, the first that exists is read.
        test: &'static [&'static str],
        /// The same for training questions; empty where there are none.
        train: &'static [&'static str],
        /// A record's number and the record to a question. The error says what is wrong with it.
        read: fn(usize, &Value) -> Result<Question, String>,
    },
    /// Made from a list of words.
    Words {
        /// Test questions.
        n: usize,
        /// The words and the number of a question to the question; the second list of numbers, from
        /// [`spelling::TEST_SEED`] on, is for tests.
        make: fn(&[String], u64) -> Question,
    },
}

/// A task that the program knows.
pub struct Entry {
    /// As on the command line and in reports.
    pub name: &'static str,
    /// Share of right answers that guessing gives.
    pub baseline: f64,
    /// The files' origin, for those who have none yet.
    pub from: &'static str,
    /// What the questions are made of.
    pub source: Source,
}

/// Every task, in the order of reports.
pub const ALL: [&Entry; 7] = [
    &arc::EASY,
    &arc::CHALLENGE,
    &mmlu::ENTRY,
    &gsm8k::ENTRY,
    &humaneval::ENTRY,
    &spelling::BEE,
    &spelling::SIMPLE,
];

/// The tasks of ChatCORE.
pub const CHAT_CORE: [&str; 6] =
    ["ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SpellingBee"];

/// Which questions of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those nobody trains on.
    Test,
    /// Those for training.
    Train,
}

/// The task of a name; case, `-` and `_` do not matter.
///
/// Errors: [`Error::UnknownTask`] lists the names.
pub fn entry(name: &str) -> Result<&'static Entry> {
    let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
    ALL.into_iter().find(|e| plain(e.name) == plain(name)).ok_or_else(|| Error::UnknownTask {
        name: name.into(),
        known: ALL.map(|e| e.name).join(", "),
    })
}

impl Entry {
    /// Reads the questions and shuffles them as nanochat does.
    ///
    /// Errors: [`Error::TaskFiles`] when nothing is there, [`Error::BadRecord`] for a record that cannot
    /// be used, those of reading.
    pub fn load(&self, data: &DataDir, which: Which) -> Result<ChatTask> {
        let questions = match &self.source {
            Source::Records { test, train, read } => {
                let files = if which == Which::Test { test } else { train };
                let path = data.find(self.name, files, self.from)?;
                let records = files::records(&path)?;
                let question = |(i, record): (usize, &Value)| {
                    read(i, record).map_err(|why| Error::BadRecord {
                        place: format!("{}, record {i}", path.display()),
                        why,
                    })
                };
                let all = records.iter().enumerate().map(question).collect::<Result<Vec<_>>>()?;
                let mut all: Vec<Option<Question>> = all.into_iter().map(Some).collect();
                let order = permutation(SHUFFLE_SEED, all.len());
                order.into_iter().filter_map(|i| all[i].take()).collect()
            }
            Source::Words { n, make } => {
                let path = data.find(
                    self.name,
                    &["wordlists/american-english.txt", "words.txt"],
                    self.from,
                )?;
                let words = spelling::words(&path)?;
                let first = if which == Which::Test { spelling::TEST_SEED } else { 0 };
                (first..first + *n as u64).map(|i| make(&words, i)).collect()
            }
        };
        Ok(ChatTask { name: self.name.into(), baseline: self.baseline, questions })
    }
}

/// A text field of a record.
fn text<'a>(record: &'a Value, key: &str) -> Result<&'a str, String> {
    record.get(key).and_then(Value::as_str).ok_or_else(|| format!("{key} is no text"))
}

/// The letters from A on, of `n` choices.
fn letters(n: usize) -> Vec<String> {
    (b'A'..=b'Z').take(n).map(|l| char::from(l).to_string()).collect()
}

/// A list of texts.
fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|t| t.as_str().map(String::from)).collect()
}
