//! Checkpoints: a step is one directory, written aside, made durable, renamed into place.
//!
//! `<dir>/step-000300/` holds `model.safetensors`, `meta.json`, whatever else a trainer gives (its
//! optimizer and loader), and `manifest.json` last: the size and SHA-256 of every other file. A step
//! is valid when its manifest parses, vouches for itself, and every file matches. `docs/FORMAT.md`
//! describes the format.
//!
//! `commit` writes, `check` verifies, `keep` thins out, `diff` compares, `stamp` notes what was checked.
//! [`verify`] and [`latest`] read and hash every byte, each time: before training goes on, and when
//! somebody asks. [`verify_once`] and [`latest_once`] do so the first time only, for those who open a
//! step again and again to read it: `stamp` says what is looked at from then on.

mod check;
mod commit;
mod diff;
mod keep;
mod stamp;

use std::fs;
use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::weights::{self, Named, Reader, io};
use crate::{Error, GptConfig, Nano, Result};

pub use check::{verify, verify_once};
pub use commit::{save, save_files};
pub use diff::{Diff, TensorDiff, diff, fields};
pub use keep::{Keep, prune};

/// Names the newest step, for people; nothing here reads it.
const LATEST: &str = "LATEST";
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

/// Steps under `dir`, oldest first, valid or not. A step whose place is being taken, on a system that
/// cannot exchange two names, is found under the name that it has meanwhile.
pub fn steps(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let (mut found, mut aside) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("step-").and_then(|n| n.parse().ok()) {
            found.push((step, path));
        } else if let Some(step) = aside_of(&name) {
            aside.push((step, path));
        }
    }
    let missing = |step: u64| !found.iter().any(|(s, _)| *s == step);
    aside.retain(|(step, _)| missing(*step));
    found.append(&mut aside);
    found.sort();
    Ok(found)
}

/// The step of a directory that has stepped aside: `.old-000300-<pid>`.
fn aside_of(name: &str) -> Option<u64> {
    name.strip_prefix(".old-")?.split('-').next()?.parse().ok()
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
