//! Which steps stay, and how the others go: renamed first, then removed.

use std::fs;
use std::path::{Path, PathBuf};

use super::{commit, latest, meta, steps};
use crate::Result;
use crate::weights::io;

/// Which steps stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many, at least 1.
    pub last: usize,
    /// Every step whose number is a multiple of this, for ever; 0: none.
    pub every: u64,
    /// The one with the least validation loss.
    pub best: bool,
}

impl Keep {
    /// The newest so many, and no others.
    pub fn last(last: usize) -> Self {
        Self { last, every: 0, best: false }
    }
}

/// Removes the steps that are not to be kept; returns where they were.
///
/// The newest count from the newest valid one, every byte of which is read first: a damaged step after it
/// stays, for a person to look at. Errors: [`crate::Error::NoCheckpoint`] when no step is valid; then
/// nothing is removed.
pub fn prune(dir: &Path, keep: Keep) -> Result<Vec<PathBuf>> {
    let found = steps(dir)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let (newest, _) = latest(dir)?;
    let end = found.iter().position(|(_, path)| *path == newest).map_or(0, |at| at + 1);
    let old = &found[..end.saturating_sub(keep.last.max(1))];
    let best = if keep.best { best(&found[..end]) } else { None };
    let stays =
        |step: u64| (keep.every > 0 && step.is_multiple_of(keep.every)) || best == Some(step);
    let mut gone = Vec::new();
    for (step, path) in old.iter().filter(|(step, _)| !stays(*step)) {
        let trash = dir.join(format!(".trash-{step:06}-{}", std::process::id()));
        fs::rename(path, &trash).map_err(io(path))?;
        gone.push((path.clone(), trash));
    }
    if !gone.is_empty() {
        commit::sync_dir(dir)?;
    }
    for (_, trash) in &gone {
        fs::remove_dir_all(trash).map_err(io(trash))?;
    }
    Ok(gone.into_iter().map(|(path, _)| path).collect())
}

/// The step with the least validation loss, the first of equals: what was measured at one step stands in
/// the steps after it until it is measured again.
fn best(found: &[(u64, PathBuf)]) -> Option<u64> {
    let measured = found.iter().filter_map(|(step, path)| Some((meta(path).ok()?.val_bpb?, *step)));
    measured.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, step)| step)
}
