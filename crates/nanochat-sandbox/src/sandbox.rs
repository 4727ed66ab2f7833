//! The public thing: opened once, run from any thread.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::limits::Limits;
use crate::program::Program;
use crate::python::Interpreter;
use crate::verdict::{Outcome, Unavailable, Verdict};

/// A sandbox that was tried when it was opened.
#[derive(Clone, Debug)]
pub struct Sandbox {
    limits: Limits,
    python: Interpreter,
    launcher: PathBuf,
}

impl Sandbox {
    /// Finds Python and runs an empty program in every layer. The launcher is this very program,
    /// which must call [`serve_if_launcher`](crate::serve_if_launcher) first in `main`.
    ///
    /// Errors: a layer is missing; it is named. Nothing weaker is tried.
    pub fn open(limits: Limits) -> Result<Sandbox, Unavailable> {
        Sandbox::open_with(Path::new("/proc/self/exe"), None, limits)
    }

    /// As [`Sandbox::open`], with another program as the launcher (for a process whose `main` is
    /// not one's own, as in tests), and an interpreter by name.
    pub fn open_with(
        launcher: &Path,
        python: Option<&Path>,
        limits: Limits,
    ) -> Result<Sandbox, Unavailable> {
        if !cfg!(target_os = "linux") {
            return Err(Unavailable::new("linux", "this system has none of the layers"));
        }
        let python = match python {
            None => Interpreter::find()?,
            Some(path) => Interpreter::describe(path)
                .map_err(|e| Unavailable::new("python", format!("{}: {e}", path.display())))?,
        };
        let sandbox = Sandbox { limits, python, launcher: launcher.into() };
        let trial = Program::new("").timeout(std::time::Duration::from_secs(20));
        match sandbox.run(&trial).verdict {
            Verdict::Passed => Ok(sandbox),
            Verdict::Unavailable(why) => Err(why),
            other => Err(Unavailable::new("python", format!("an empty program: {other}"))),
        }
    }

    /// Runs one program and waits for its end. Several threads may call this at a time.
    ///
    /// When it returns, no process of the program is left. It never fails otherwise than by a
    /// verdict; [`Verdict::Unavailable`] says that the program was not run.
    pub fn run(&self, program: &Program) -> Outcome {
        #[cfg(target_os = "linux")]
        let outcome = crate::supervise::run(&self.launcher, &self.python, &self.limits, program);
        #[cfg(not(target_os = "linux"))]
        let outcome: std::io::Result<Outcome> = {
            let _ = (program, crate::harness::token);
            Err(std::io::ErrorKind::Unsupported.into())
        };
        outcome.unwrap_or_else(|e| Outcome::unavailable(Unavailable::new("launcher", e)))
    }

    /// The bounds it was opened with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it is made of.
    pub fn report(&self) -> Report {
        Report {
            python: self.python.exe.clone(),
            python_version: self.python.version.clone(),
            landlock: landlock_version(),
        }
    }
}

#[cfg(target_os = "linux")]
fn landlock_version() -> i64 {
    crate::launcher::landlock_version().unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn landlock_version() -> i64 {
    0
}

/// What a sandbox is made of: every layer is there, or there is no sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The interpreter that runs the programs.
    pub python: PathBuf,
    /// Its version.
    pub python_version: String,
    /// Landlock's version in this kernel. From 4 on it shuts TCP, from 6 on also abstract sockets
    /// and signals; the other layers do that too.
    pub landlock: i64,
}

/// One line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Python {} ({}) in namespaces, limits, Landlock {} and seccomp",
            self.python_version,
            self.python.display(),
            self.landlock
        )
    }
}

/// Whether this machine can run a sandbox, by running one; the launcher is this program.
pub fn probe() -> Result<Report, Unavailable> {
    Sandbox::open(Limits::default()).map(|sandbox| sandbox.report())
}
