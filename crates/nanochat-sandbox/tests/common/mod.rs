//! What the tests of the sandbox share.
#![allow(dead_code)]

use std::path::Path;
use std::time::Duration;

use nanochat_sandbox::{Limits, Outcome, Program, Sandbox};

/// Time for a program whose end is not in question: a busy machine must not fail a test.
pub const PATIENT: Duration = Duration::from_secs(60);

/// The launcher of this crate: a test's `main` is not its own.
pub fn launcher() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sandbox-launcher"))
}

/// A sandbox; None, said in a line, where a layer is missing. That it then refuses, and names the
/// layer, is what opening it has just shown.
pub fn sandbox() -> Option<Sandbox> {
    with_limits(Limits::default())
}

/// A sandbox with other limits.
pub fn with_limits(limits: Limits) -> Option<Sandbox> {
    match Sandbox::open_with(launcher(), None, limits) {
        Ok(sandbox) => Some(sandbox),
        Err(refusal) => {
            assert!(!refusal.layer.is_empty() && !refusal.hint.is_empty());
            println!("skipped, as it refuses here: {refusal}");
            None
        }
    }
}

/// Runs a program that has all the time it needs.
pub fn run(sandbox: &Sandbox, source: &str) -> Outcome {
    sandbox.run(&Program::new(source).timeout(PATIENT))
}
