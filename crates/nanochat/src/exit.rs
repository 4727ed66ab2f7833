//! What the program's exit code says.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | an error, or a check that did not hold |
//! | 2 | flags that do not parse |
//! | 65 | training stopped for good: bad steps came again after going back |
//! | 69 | another rank was lost: go on with `--resume` |
//! | 75 | training was asked to stop and saved: go on with `--resume` |
//! | 130 | a second Ctrl-C: stopped at once |

use nanochat_train::Error;

/// Asked to stop, and saved (`EX_TEMPFAIL`): go on later.
pub const RESUME: u8 = 75;
/// To go on leads to the same end (`EX_DATAERR`).
pub const DIVERGED: u8 = 65;
/// Another rank was lost (`EX_UNAVAILABLE`).
pub const RANK_LOST: u8 = 69;
/// At once.
pub const AT_ONCE: i32 = 130;

/// The code of an error, and how its line begins.
pub fn code(e: &anyhow::Error) -> (u8, &'static str) {
    match e.chain().find_map(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::Stopped { .. }) => (RESUME, ""),
        Some(Error::Compute(nanochat_compute::Error::Rank { .. })) => (RANK_LOST, "error: "),
        Some(Error::Diverged { .. }) => (DIVERGED, "error: "),
        _ => (1, "error: "),
    }
}
