//! What the launcher is told, as one JSON argument. Nothing in it is secret: the source and the
//! token come by file.

use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::python::Interpreter;

/// One run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The interpreter and its files.
    pub python: Interpreter,
    /// Bounds.
    pub limits: Limits,
    /// Whether program and tests are two processes.
    pub judged: bool,
    /// CPU seconds of each process.
    pub cpu_seconds: u64,
}

/// The hidden first argument by which a process knows that it is a launcher.
pub const ARGUMENT: &str = "nanochat-sandbox-launcher";

/// Files of a launcher, by number. 0 to 2 are the usual ones.
pub mod fd {
    /// Token and source, read by the interpreter.
    pub const PROGRAM: i32 = 3;
    /// Where the interpreter writes the token, or the name of an exception.
    pub const RESULT: i32 = 4;
    /// Where the launcher reports: a missing layer, or how the interpreter ended.
    pub const STATUS: i32 = 5;
    /// The program's source, where a judge reads [`PROGRAM`]; else the same as that.
    pub const SOURCE: i32 = 6;
}

/// What a launcher reports, one line of text.
#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    /// The interpreter ended by itself.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// A layer could not be built, and nothing ran.
    Missing(String, String),
}

impl Status {
    /// The line.
    pub fn line(&self) -> String {
        match self {
            Status::Exit(code) => format!("exit\t{code}\n"),
            Status::Signal(signal) => format!("signal\t{signal}\n"),
            Status::Missing(layer, why) => {
                format!("missing\t{layer}\t{}\n", why.replace('\n', " "))
            }
        }
    }

    /// The first line of `text`; None where there is none (the launcher was killed).
    pub fn parse(text: &str) -> Option<Status> {
        let mut words = text.lines().next()?.splitn(3, '\t');
        let (kind, word) = (words.next()?, words.next()?);
        match kind {
            "exit" => word.parse().ok().map(Status::Exit),
            "signal" => word.parse().ok().map(Status::Signal),
            "missing" => Some(Status::Missing(word.into(), words.next()?.into())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_back_from_its_line() {
        let missing = Status::Missing("seccomp".into(), "EPERM".into());
        for status in [Status::Exit(3), Status::Signal(9), missing] {
            assert_eq!(Status::parse(&status.line()), Some(status));
        }
        assert_eq!(Status::parse(""), None);
        assert_eq!(Status::parse("exit\tx\n"), None);
    }
}
