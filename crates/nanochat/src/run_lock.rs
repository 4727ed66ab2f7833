//! One trainer a run: a lock on `<run>/lock` that the system gives back however the trainer ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::machine;
use crate::run_dir::RunDir;

/// Held as long as it lives.
pub struct RunLock {
    _file: File,
}

const NAME: &str = "lock";

impl RunLock {
    /// Takes the lock of a run. Errors: another process has it, with its number, host and start.
    pub fn take(run: &RunDir) -> Result<Self> {
        Self::at(&run.join(NAME), run.root())
    }

    /// Takes the lock of the run that a folder of steps belongs to, when there is one.
    pub fn of_steps(dir: &Path) -> Result<Option<Self>> {
        let roots = [Some(dir), dir.parent()].into_iter().flatten();
        match roots.map(|root| (root.join(NAME), root)).find(|(file, _)| file.exists()) {
            Some((file, root)) => Ok(Some(Self::at(&file, root)?)),
            None => Ok(None),
        }
    }

    fn at(path: &Path, run: &Path) -> Result<Self> {
        let cannot = || format!("cannot lock {}", path.display());
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.as_mut().map_err(|e| std::io::Error::new(e.kind(), e.to_string()));
        let file = file.with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let by: Value = serde_json::from_str(&text).unwrap_or_default();
                bail!(
                    "{} is in use by process {} on {} (since {}): wait for it, stop it (kill -TERM), or \
                     choose another --run",
                    run.display(),
                    by["pid"],
                    by["host"].as_str().unwrap_or("?"),
                    by["since"]
                );
            }
            // A file system without locks must not keep anybody from training.
            Err(TryLockError::Error(e)) => {
                eprintln!("warning: {} ({e}): nothing keeps a second trainer out", cannot());
            }
        }
        let text = json!({
            "pid": std::process::id(), "host": machine::host(), "since": machine::unix_seconds(),
        });
        // What stands in it is for people; the lock holds without.
        let _ =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{text}"));
        Ok(Self { _file: file.try_clone().with_context(cannot)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_trainer_is_told_who_has_the_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let run = RunDir::open_or_create(Some(dir.path()), "").expect("a folder");
        let lock = RunLock::take(&run).expect("free");
        let message = RunLock::take(&run).map(|_| ()).expect_err("taken").to_string();
        let me = format!("process {} on {}", std::process::id(), machine::host());
        assert!(message.contains(&me), "{message} lacks {me}");
        let steps = RunLock::of_steps(&dir.path().join("base")).map(|_| ());
        assert!(steps.is_err(), "its steps are not thinned out meanwhile");
        drop(lock);
        RunLock::take(&run).expect("free again");
    }
}
