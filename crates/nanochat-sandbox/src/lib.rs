//! Runs Python that a model wrote, and says whether it ran to its end.
//!
//! A program comes in, a [`Verdict`] goes out, and the machine is as it was. `docs/SANDBOX.md` says
//! what is promised and what is not.
//!
//! `sandbox` the public thing | `program` what is run | `limits` how much it may use | `verdict` how
//! it ended | `python` which interpreter | `supervise` the parent's watch: clocks and caps | `spawn`
//! a child with chosen files | `spec` what the launcher is told | `harness` the Python around a
//! program | `launcher` the process that locks itself in, layer by layer, and becomes Python
//!
//! The program that uses this crate starts itself again as the launcher, so its `main` begins with
//! [`serve_if_launcher`]:
//!
//! ```no_run
//! use nanochat_sandbox::{Limits, Program, Sandbox, Verdict, serve_if_launcher};
//!
//! serve_if_launcher(); // first: returns at once unless this process is a launcher
//! let sandbox = Sandbox::open(Limits::default())?;
//! let outcome = sandbox.run(&Program::new("assert sum([1, 2]) == 3"));
//! assert_eq!(outcome.verdict, Verdict::Passed);
//! // Tests apart run in another process, which the program cannot reach.
//! let program = Program::new("def f(x): return 2 * x").judged_by("assert f(2) == 4");
//! assert!(sandbox.run(&program).passed());
//! // Leaving early is no pass, whatever the exit code.
//! let outcome = sandbox.run(&Program::new("import os; os._exit(0)"));
//! assert!(!outcome.passed());
//! # Ok::<(), nanochat_sandbox::Unavailable>(())
//! ```

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod harness;
mod limits;
mod program;
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
mod python;
mod sandbox;
mod verdict;

#[cfg(target_os = "linux")]
mod launcher;
#[cfg(target_os = "linux")]
mod spawn;
#[cfg(target_os = "linux")]
mod spec;
#[cfg(target_os = "linux")]
mod supervise;

pub use limits::Limits;
pub use program::Program;
pub use sandbox::{Report, Sandbox, probe};
pub use verdict::{Outcome, Unavailable, Verdict};

/// Becomes the launcher, and never returns, where this process was started as one; else returns at
/// once. Call it first thing in `main`, before any thread is started: a launcher is single-threaded.
pub fn serve_if_launcher() {
    #[cfg(target_os = "linux")]
    launcher::serve_if_asked();
}
