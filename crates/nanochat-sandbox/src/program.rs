//! What is run.

use std::time::Duration;

/// A Python program: its source, and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Program {
    /// One module: definitions, and the tests after them.
    pub source: String,
    /// Wall time, from before the first layer of the sandbox is built.
    pub timeout: Duration,
}

impl Program {
    /// Wall time where nothing else is said: that of HumanEval's own harness.
    pub const TIMEOUT: Duration = Duration::from_secs(3);

    /// A program with the usual time.
    pub fn new(source: impl Into<String>) -> Program {
        Program { source: source.into(), timeout: Program::TIMEOUT }
    }

    /// The same program with another time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Program {
        self.timeout = timeout;
        self
    }
}
