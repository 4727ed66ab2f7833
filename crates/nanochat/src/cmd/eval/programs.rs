//! Programs that a model wrote, run in the sandbox; it is opened when the first one comes.

use std::cell::OnceCell;

use nanochat_data::tasks::Runner;
use nanochat_data::{Error, Result};
use nanochat_sandbox::{Limits, Program, Sandbox, Unavailable, Verdict};

/// Runs programs in the sandbox of this machine.
#[derive(Default)]
pub struct Sandboxed(OnceCell<std::result::Result<Sandbox, Unavailable>>);

impl Sandboxed {
    fn sandbox(&self) -> Result<&Sandbox> {
        let opened = self.0.get_or_init(|| Sandbox::open(Limits::default()));
        opened.as_ref().map_err(|why| Error::NoRunner { why: why.to_string() })
    }
}

impl Runner for Sandboxed {
    fn ready(&self) -> Result<()> {
        self.sandbox().map(drop)
    }

    fn passes(&self, program: &str, tests: &str) -> Result<bool> {
        let outcome = self.sandbox()?.run(&Program::new(program).judged_by(tests));
        match outcome.verdict {
            Verdict::Unavailable(why) => Err(Error::NoRunner { why: why.to_string() }),
            verdict => Ok(verdict == Verdict::Passed),
        }
    }
}
