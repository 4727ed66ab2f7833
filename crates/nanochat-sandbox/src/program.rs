//! What is run.

use std::time::Duration;

/// A Python program: its source, and how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Program {
    /// One module: definitions, and with [`Program::new`] alone the tests after them.
    pub source: String,
    /// Tests in a process of their own; see [`Program::judged_by`].
    pub tests: Option<String>,
    /// Wall time, from before the first layer of the sandbox is built.
    pub timeout: Duration,
}

impl Program {
    /// Wall time where nothing else is said: that of HumanEval's own harness.
    pub const TIMEOUT: Duration = Duration::from_secs(3);

    /// A program with the usual time.
    pub fn new(source: impl Into<String>) -> Program {
        Program { source: source.into(), tests: None, timeout: Program::TIMEOUT }
    }

    /// The same program, with tests that run in another process and ask it.
    ///
    /// A pass then says that the tests ran to their end, whatever the program did: it cannot reach
    /// them. Names that the tests do not define are the program's. Arguments and results cross as
    /// plain values (numbers, strings, lists, tuples, sets, dictionaries, None); any other object
    /// of the program stays there and equals nothing but itself, whatever its `__eq__` says.
    #[must_use]
    pub fn judged_by(mut self, tests: impl Into<String>) -> Program {
        self.tests = Some(tests.into());
        self
    }

    /// The same program with another time.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Program {
        self.timeout = timeout;
        self
    }
}
