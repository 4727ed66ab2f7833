//! Checkpoints: a step is one directory, written aside, made durable, renamed into place.
//!
//! `<dir>/step-000300/` holds `model.safetensors`, `meta.json`, whatever else a trainer gives (its
//! optimizer and loader), and `manifest.json` last: the size and SHA-256 of every other file. A step
//! is valid when its manifest parses, vouches for itself, and every file matches. `docs/FORMAT.md`
//! describes the format.
//!
//! [`verify`] and [`latest`] read and hash every byte, each time: before training goes on, and when
//! somebody asks. [`verify_once`] and [`latest_once`] do so the first time only, for those who open a
//! step again and again to read it: `stamp` says what is looked at from then on.

mod stamp;

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::weights::{self, Named, Reader, io};
use crate::{Error, GptConfig, Nano, Result};

const MANIFEST: &str = "manifest.json";
const MODEL: &str = "model.safetensors";
const META: &str = "meta.json";

/// What stands beside the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the format.
    pub format: u32,
    /// Steps taken.
    pub step: u64,
    /// `base`, `sft` or `rl`.
    pub stage: String,
    /// Sizes and generation.
    pub model_config: GptConfig,
    /// Fingerprint of the tokenizer that the model was trained with.
    pub tokenizer: String,
    /// Validation bits per byte, if it was measured.
    pub val_bpb: Option<f64>,
    /// Whatever the trainer needs to go on: settings, schedule position, smoothed loss.
    #[serde(default)]
    pub trainer: serde_json::Value,
}

/// Version of the format that this program writes.
pub const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: Vec<Entry>,
    /// SHA-256 of the `files` list as compact JSON.
    sha256: String,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// One more file of a checkpoint.
pub struct Extra<'a> {
    /// File name.
    pub name: &'a str,
    /// What stands in it.
    pub content: Content,
}

/// What stands in a file of a checkpoint.
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These tensors, as safetensors; they are copied a piece at a time.
    Tensors(Vec<Named>),
}

fn hex(sha256: Sha256) -> String {
    sha256.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn hex_of(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// The directory of a step.
pub fn step_dir(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("step-{step:06}"))
}

/// Writes a checkpoint of `model` under `dir`; returns the step's directory.
///
/// A crash at any moment leaves the earlier steps as they were. Errors: [`Error::Io`]; then nothing
/// but a `.tmp-` directory is left, which the next save removes.
pub fn save(dir: &Path, model: &Nano, meta: &Meta, extras: Vec<Extra<'_>>) -> Result<PathBuf> {
    fs::create_dir_all(dir).map_err(io(dir))?;
    remove_leftovers(dir)?;
    let tmp = dir.join(format!(".tmp-{:06}-{}", meta.step, std::process::id()));
    fs::create_dir(&tmp).map_err(io(&tmp))?;
    let mut entries = Vec::new();
    let mut write = |name: &str, content: Content| -> Result<()> {
        let (bytes, sha256) = write_durably(&tmp.join(name), &content)?;
        entries.push(Entry { name: name.into(), bytes, sha256 });
        Ok(())
    };
    write(MODEL, Content::Tensors(weights::named(model.table(), model.params())))?;
    let text = serde_json::to_vec_pretty(meta).expect("a Meta has only string keys");
    write(META, Content::Bytes(text))?;
    for extra in extras {
        write(extra.name, extra.content)?;
    }
    let list = serde_json::to_vec(&entries).expect("entries are plain");
    let manifest = Manifest { format: FORMAT, files: entries, sha256: hex_of(&list) };
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain");
    write_durably(&tmp.join(MANIFEST), &Content::Bytes(text))?;
    sync_dir(&tmp)?;
    let to = step_dir(dir, meta.step);
    if to.exists() {
        // The same step again: the old one steps aside first, so that a valid one always stands.
        let aside = dir.join(format!(".trash-{:06}-{}", meta.step, std::process::id()));
        fs::rename(&to, &aside).map_err(io(&to))?;
        fs::rename(&tmp, &to).map_err(io(&to))?;
        sync_dir(dir)?;
        fs::remove_dir_all(&aside).map_err(io(&aside))?;
    } else {
        fs::rename(&tmp, &to).map_err(io(&to))?;
        sync_dir(dir)?;
    }
    Ok(to)
}

/// Writes a file and waits for the disk; returns its size and SHA-256.
fn write_durably(file: &Path, content: &Content) -> Result<(u64, String)> {
    let mut out =
        Hashed { file: File::create(file).map_err(io(file))?, sha256: Sha256::new(), bytes: 0 };
    match content {
        Content::Bytes(bytes) => out.write_all(bytes).map_err(io(file))?,
        Content::Tensors(tensors) => weights::write(file, &mut out, tensors)?,
    }
    out.file.sync_all().map_err(io(file))?;
    Ok((out.bytes, hex(out.sha256)))
}

/// A file that is hashed on its way to the disk: what the manifest vouches for is what was meant,
/// not what the disk made of it.
struct Hashed {
    file: File,
    sha256: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.sha256.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
}

fn remove_leftovers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".tmp-") || name.starts_with(".trash-") {
            fs::remove_dir_all(&path).map_err(io(&path))?;
        }
    }
    Ok(())
}

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
fn manifest(step: &Path) -> Result<Manifest> {
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

/// Steps under `dir`, oldest first, valid or not.
pub fn steps(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-").and_then(|n| n.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest valid step under `dir` (or `dir` itself when it is a step), and what was refused on the
/// way, newest first. Every byte of it is read ([`verify`]).
///
/// Errors: [`Error::NoCheckpoint`] when there is none.
pub fn latest(dir: &Path) -> Result<(PathBuf, Vec<Error>)> {
    latest_by(dir, verify)
}

/// [`latest`] by [`verify_once`]: for reading a step, not for going on with its training.
///
/// Errors: [`Error::NoCheckpoint`] when there is none.
pub fn latest_once(dir: &Path) -> Result<(PathBuf, Vec<Error>)> {
    latest_by(dir, verify_once)
}

fn latest_by(dir: &Path, verify: fn(&Path) -> Result<()>) -> Result<(PathBuf, Vec<Error>)> {
    let mut refused = Vec::new();
    if dir.join(MANIFEST).exists() {
        verify(dir)?;
        return Ok((dir.into(), refused));
    }
    let found = if dir.is_dir() { steps(dir)? } else { Vec::new() };
    for (_, path) in found.into_iter().rev() {
        match verify(&path) {
            Ok(()) => return Ok((path, refused)),
            Err(e) => refused.push(e),
        }
    }
    let why: String = refused.iter().map(|e| format!("; refused: {e}")).collect();
    Err(Error::NoCheckpoint { dir: dir.into(), why })
}

/// Removes all but the newest `keep` steps (at least 1). They count from the newest valid one: a
/// damaged step after it stays, for a person to look at.
///
/// Errors: [`Error::NoCheckpoint`] when no step is valid; then nothing is removed.
pub fn prune(dir: &Path, keep: usize) -> Result<()> {
    let found = steps(dir)?;
    if found.is_empty() {
        return Ok(());
    }
    let (newest, _) = latest(dir)?;
    let kept = found.iter().position(|(_, path)| *path == newest).map_or(0, |at| at + 1);
    for (step, path) in &found[..kept.saturating_sub(keep.max(1))] {
        let trash = dir.join(format!(".trash-{step:06}-{}", std::process::id()));
        fs::rename(path, &trash).map_err(io(path))?;
        fs::remove_dir_all(&trash).map_err(io(&trash))?;
    }
    Ok(())
}

/// Reads a step's meta data.
pub fn meta(step: &Path) -> Result<Meta> {
    let file = step.join(META);
    let meta: Meta = serde_json::from_slice(&weights::read(&file)?).map_err(|e| Error::File {
        file: file.clone(),
        detail: format!("not a meta.json ({e})"),
    })?;
    if meta.format > FORMAT {
        let detail = format!("format {} is newer than this program reads", meta.format);
        return Err(Error::File { file, detail });
    }
    Ok(meta)
}

/// Opens the model of a step to read it: its parameters stay in the file where they can ([`load`] is
/// called where not), so only what is used is read, once for all processes. Nothing can write to
/// them: training takes [`load`]. The step should have been verified, as [`latest_once`] does; unless it
/// was noted then that the parameters are finite, all of them are looked at here.
///
/// A step that is saved again, pruned or removed meanwhile stays whole for this model. A file that
/// another program changes in place does not: see [`nanochat_compute::Tensor::map`].
///
/// Errors: as [`load`].
pub fn open(be: &dyn Backend, step: &Path) -> Result<(Nano, Meta)> {
    let meta = meta(step)?;
    let file = Reader::open(&step.join(MODEL))?;
    let is_host = be.own_memory().is_none();
    match is_host.then(|| weights::map(&file, &meta.model_config)).flatten() {
        Some(model) => {
            if !stamp::holds(step) {
                weights::check_finite(&file, &model)?;
            }
            Ok((model, meta))
        }
        None => load(be, step),
    }
}

/// Opens the model of a step with parameters of its own, which may be written. The step should have
/// been verified, as [`latest`] does.
pub fn load(be: &dyn Backend, step: &Path) -> Result<(Nano, Meta)> {
    let meta = meta(step)?;
    let model = Nano::zeros(be, meta.model_config.clone())?;
    weights::load(&Reader::open(&step.join(MODEL))?, &model, &|row| row.name.clone())?;
    Ok((model, meta))
}

/// Reads another file of a step, whole; one of tensors is rather opened by a [`Reader`].
pub fn extra(step: &Path, name: &str) -> Result<Vec<u8>> {
    weights::read(&step.join(name))
}
