//! Whether there is room for the checkpoints of a run, before it begins.

use std::path::Path;

use anyhow::{Result, bail};

use crate::figures::size;

/// Room that a run should have, in checkpoints: the new one beside the old, and a little.
const WANTED: f64 = 2.2;

/// A warning when room is short. Errors: not even one checkpoint of `bytes` fits, unless `force`.
pub fn room(dir: &Path, bytes: u64, force: bool) -> Result<Option<String>> {
    judge(dir, free(dir), bytes, force)
}

fn judge(dir: &Path, free: Option<u64>, bytes: u64, force: bool) -> Result<Option<String>> {
    let Some(free) = free.filter(|free| (*free as f64) < WANTED * bytes as f64) else {
        return Ok(None);
    };
    let text = format!(
        "{} is free at {}, a checkpoint takes {}",
        size(free as f64),
        dir.display(),
        size(bytes as f64)
    );
    if free < bytes && !force {
        bail!("{text}: make room or choose another --run (--force trains all the same)");
    }
    Ok(Some(format!("warning: {text}; {} would be safe", size(WANTED * bytes as f64))))
}

/// Bytes that this user may still write where `dir` is; none where the system does not say.
#[cfg(unix)]
fn free(dir: &Path) -> Option<u64> {
    let at = dir.ancestors().find(|p| p.exists())?;
    let of = rustix::fs::statvfs(at).ok()?;
    Some(of.f_bavail * of.f_frsize)
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_refused_and_a_little_is_said() {
        let judge = |free, force| judge(Path::new("runs"), free, 1000, force);
        assert_eq!(judge(Some(2200), false).expect("enough"), None);
        assert_eq!(judge(None, false).expect("unknown"), None);
        let warning = judge(Some(2199), false).expect("one fits").expect("a warning");
        assert!(warning.starts_with("warning: ") && warning.contains("runs"), "{warning}");
        assert!(judge(Some(999), false).expect_err("none fits").to_string().contains("--force"));
        assert!(judge(Some(999), true).expect("forced").is_some());
    }
}
