//! Whether a step is what was written: every file against the manifest, the manifest against itself.
//!
//! In: a step's directory. Out: nothing, or the file that is missing, cut, altered or unlisted.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Entry, FORMAT, MANIFEST, META, MODEL, Manifest, hex, hex_of, meta, stamp};
use crate::weights::{self, Reader, io};
use crate::{Error, Result};

/// Checks every file of a step against its manifest, reading all of them.
///
/// Errors: [`Error::File`] naming the file that is missing, cut, altered, or unlisted.
pub fn verify(step: &Path) -> Result<()> {
    let checked = manifest(step).and_then(|manifest| check_files(step, &manifest));
    if checked.is_err() {
        // A disk may have lost what was whole when it was checked before.
        stamp::remove(step);
    }
    checked
}

/// [`verify`] the first time; afterwards only that no file of the step has changed since, as far as
/// the system's notes on it go (size, times, inode): a few microseconds in place of reading it all.
///
/// The first time is noted in the step's directory (`verified.json`), if it can be written and the
/// parameters are finite. Errors: as [`verify`].
pub fn verify_once(step: &Path) -> Result<()> {
    if stamp::holds(step) {
        return Ok(());
    }
    let names = manifest(step).map(|m| m.files.into_iter().map(|e| e.name).collect::<Vec<_>>());
    let pending = names.ok().and_then(|names| stamp::Pending::begin(step, names));
    verify(step)?;
    if let Some(pending) = pending
        && is_finite(step)
    {
        pending.write();
    }
    Ok(())
}

/// True when a step's parameters lie as they can be mapped and are finite.
fn is_finite(step: &Path) -> bool {
    let check = || -> Result<bool> {
        let (file, meta) = (Reader::open(&step.join(MODEL))?, meta(step)?);
        let model = weights::map(&file, &meta.model_config);
        model.map_or(Ok(false), |model| weights::check_finite(&file, &model).map(|()| true))
    };
    check().unwrap_or(false)
}

/// Reads a step's manifest, which must vouch for itself and list the model and its meta data.
pub(super) fn manifest(step: &Path) -> Result<Manifest> {
    let at = step.join(MANIFEST);
    let bad = |file: PathBuf, detail: String| Err(Error::File { file, detail });
    let manifest: Manifest = match serde_json::from_slice(&weights::read(&at)?) {
        Ok(m) => m,
        Err(e) => return bad(at, format!("not a manifest ({e})")),
    };
    if manifest.format > FORMAT {
        return bad(at, format!("format {} is newer than this program", manifest.format));
    }
    if manifest.format == 0 {
        return bad(at, "format 0 does not exist: it was altered".into());
    }
    let list = serde_json::to_vec(&manifest.files).expect("entries are plain");
    if hex_of(&list) != manifest.sha256 {
        return bad(at, "its own checksum does not match: it was altered".into());
    }
    for name in [MODEL, META] {
        if !manifest.files.iter().any(|e| e.name == name) {
            return bad(at, format!("does not list {name}"));
        }
    }
    Ok(manifest)
}

/// Holds every listed file against its entry, a thread each: a hash is as fast as one core.
fn check_files(step: &Path, manifest: &Manifest) -> Result<()> {
    std::thread::scope(|scope| {
        let check = |entry| scope.spawn(move || check_file(step, entry));
        let running: Vec<_> = manifest.files.iter().map(check).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // All of them, then the first error in the order of the list.
        running.into_iter().map(join).collect::<Vec<_>>().into_iter().collect()
    })
}

fn check_file(step: &Path, entry: &Entry) -> Result<()> {
    let file = step.join(&entry.name);
    let bad = |detail: String| Err(Error::File { file: file.clone(), detail });
    if entry.name.contains(['/', '\\']) {
        return bad("a name that leaves the step's directory".into());
    }
    let content = File::open(&file).map_err(io(&file))?;
    let bytes = content.metadata().map_err(io(&file))?.len();
    if bytes != entry.bytes {
        return bad(format!("{bytes} bytes, should be {}", entry.bytes));
    }
    if hash(content.take(bytes)).map_err(io(&file))? != entry.sha256 {
        return bad("checksum does not match: it was altered".into());
    }
    Ok(())
}

/// SHA-256 of what is read, a piece at a time.
fn hash(from: impl Read) -> std::io::Result<String> {
    let mut sha256 = Sha256::new();
    std::io::copy(&mut BufReader::with_capacity(1 << 20, from), &mut sha256)?;
    Ok(hex(sha256))
}
