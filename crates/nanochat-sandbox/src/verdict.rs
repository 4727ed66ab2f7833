//! How a program ended.

use std::fmt;
use std::time::Duration;

/// Why nothing could be run: a layer of the sandbox is missing. Never a judgement of the program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sandbox is not available: {layer}: {why}; {hint}")]
pub struct Unavailable {
    /// The layer: `user namespace`, `seccomp`, `python`, ...
    pub layer: String,
    /// What happened.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

impl Unavailable {
    pub(crate) fn new(layer: &str, why: impl fmt::Display) -> Unavailable {
        Unavailable { layer: layer.into(), why: why.to_string(), hint: hint(layer).into() }
    }
}

/// What to do when `layer` is missing.
fn hint(layer: &str) -> &'static str {
    match layer {
        "linux" => "run generated code on a Linux machine",
        "python" => "install Python 3.8 or newer as python3 on PATH",
        "launcher" => {
            "the program that uses nanochat-sandbox must call serve_if_launcher() first in main"
        }
        "user namespace" | "namespaces" | "mount namespace" => {
            "allow unprivileged user namespaces (sysctl user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns=0; in a container: a seccomp profile that \
             permits unshare)"
        }
        "user" => {
            "start it as a user without rights, or in a container whose user ids include 65534"
        }
        "filesystem" => "run where tmpfs and bind mounts are allowed in a user namespace",
        "landlock" => "use a kernel of 5.13 or newer with landlock in its list of LSMs",
        "seccomp" => "use a kernel built with CONFIG_SECCOMP_FILTER",
        _ => "see \"nanochat doctor\"",
    }
}

/// How a program ended. Only [`Verdict::Passed`] is a success.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The whole source ran to its end, and then the interpreter ended well. Nothing else passes.
    Passed,
    /// An exception, or an end before the end; the reason in one line.
    Failed(String),
    /// Wall or CPU time was over.
    Timeout,
    /// It asked for more memory than [`Limits::memory_bytes`](crate::Limits).
    Memory,
    /// It wrote more than [`Limits::output_bytes`](crate::Limits).
    OutputLimit,
    /// A signal ended it, say 11 after a crash of the interpreter.
    Killed(i32),
    /// It was not run.
    Unavailable(Unavailable),
}

impl Verdict {
    /// One word for machines: `passed`, `failed`, `timeout`, `memory`, `output_limit`, `killed`,
    /// `unavailable`.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed(_) => "failed",
            Verdict::Timeout => "timeout",
            Verdict::Memory => "memory",
            Verdict::OutputLimit => "output_limit",
            Verdict::Killed(_) => "killed",
            Verdict::Unavailable(_) => "unavailable",
        }
    }
}

/// For people.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Passed => write!(f, "passed"),
            Verdict::Failed(why) => write!(f, "failed: {why}"),
            Verdict::Timeout => write!(f, "out of time"),
            Verdict::Memory => write!(f, "out of memory"),
            Verdict::OutputLimit => write!(f, "wrote too much"),
            Verdict::Killed(signal) => write!(f, "killed by signal {signal}"),
            Verdict::Unavailable(why) => write!(f, "{why}"),
        }
    }
}

/// What is known after a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// Exit code of the interpreter, where it ended by itself. 0 is no pass.
    pub exit: Option<i32>,
    /// Standard output, cut at the limit; bytes that are not UTF-8 become U+FFFD.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Wall time of all of it, start and clean-up included.
    pub wall: Duration,
}

impl Outcome {
    /// Whether the verdict is [`Verdict::Passed`].
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    pub(crate) fn unavailable(why: Unavailable) -> Outcome {
        Outcome {
            verdict: Verdict::Unavailable(why),
            exit: None,
            stdout: String::new(),
            stderr: String::new(),
            wall: Duration::ZERO,
        }
    }
}
