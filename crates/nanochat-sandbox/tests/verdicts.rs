//! How programs end.

use nanochat_sandbox::{Limits, Program, Sandbox, Verdict};
use std::path::Path;

fn sandbox() -> Option<Sandbox> {
    match Sandbox::open_with(Path::new(env!("CARGO_BIN_EXE_sandbox-launcher")), None, Limits::default()) {
        Ok(s) => Some(s),
        Err(e) => { println!("skipped: {e}"); None }
    }
}

#[test]
fn a_program_that_ends_passes() {
    let Some(s) = sandbox() else { return };
    let o = s.run(&Program::new("import os,sys\nprint(sys.version, os.getcwd(), os.getpid(), dict(os.environ), sys.path)"));
    println!("{o:?}");
    assert_eq!(o.verdict, Verdict::Passed);
}
