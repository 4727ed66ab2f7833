//! What makes an answer right: a letter, a number, words, or a program that passes its tests.

use super::{gsm8k, humaneval};
use crate::error::{Error, Result};
use crate::starter::Grade;

/// Runs programs that a model wrote, where they can do no harm.
pub trait Runner {
    /// Whether programs can be run here at all.
    ///
    /// Errors: why not, and what to do.
    fn ready(&self) -> Result<()>;

    /// True if the tests, which use names of the program, ran to their end without an error.
    ///
    /// Errors: programs cannot be run here.
    fn passes(&self, program: &str, tests: &str) -> Result<bool>;
}

/// Runs nothing.
pub struct NoRunner;

impl Runner for NoRunner {
    fn ready(&self) -> Result<()> {
        Err(Error::NoRunner { why: "this command has no sandbox".into() })
    }

    fn passes(&self, _: &str, _: &str) -> Result<bool> {
        self.ready().map(|()| false)
    }
}

/// What makes an answer right.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// One of some letters. Not generated: the model's likeliest letter counts.
    Letter {
        /// The letters of the choices.
        letters: Vec<String>,
        /// Which is right.
        gold: usize,
    },
    /// The number after the first `#### `, as [`gsm8k::number`] reads it.
    Number(String),
    /// Words or a number anywhere in the answer.
    Words(Grade),
    /// The answer's code passes tests.
    Program {
        /// Put before it.
        imports: String,
        /// Defines `check`.
        tests: String,
        /// What is checked.
        entry_point: String,
    },
}

/// How an answer was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Right.
    pub right: bool,
    /// Why, in a few words.
    pub why: String,
}

impl Answer {
    /// True where the model chooses a letter and writes nothing.
    pub fn is_categorical(&self) -> bool {
        matches!(self, Answer::Letter { .. })
    }

    /// Judges what a model wrote.
    ///
    /// Errors: those of the runner.
    pub fn grade(&self, answer: &str, runner: &dyn Runner) -> Result<Verdict> {
        let verdict = |right, why| Ok(Verdict { right, why });
        match self {
            Answer::Letter { letters, gold } => {
                let right = answer.trim() == letters[*gold];
                verdict(right, format!("the letter is {}", letters[*gold]))
            }
            Answer::Number(gold) => match gsm8k::number(answer) {
                None => verdict(false, format!("no number after \"#### \"; it is {gold}")),
                Some(said) => verdict(said == *gold, format!("said {said}, it is {gold}")),
            },
            Answer::Words(grade) => verdict(grade.accepts(answer), format!("{grade:?}")),
            Answer::Program { imports, tests, entry_point } => {
                let code = humaneval::code(answer);
                let program = format!("{imports}\n\n{code}");
                let passed = runner.passes(&program, &format!("{tests}\ncheck({entry_point})"))?;
                let why = if passed { "the tests pass" } else { "the tests fail" };
                verdict(passed, why.into())
            }
        }
    }
}
