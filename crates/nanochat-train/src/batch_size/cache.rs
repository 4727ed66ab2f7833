//! Timings of earlier runs, so that the next one need not measure.

use std::fs;
use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use nanochat_gpt::RawConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Job, Timings};

/// Everything that timings depend on: when any of it changes, they are measured anew.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Sizes and generation.
    pub model: RawConfig,
    /// T.
    pub t: usize,
    /// Rows of a step on a rank.
    pub rows: usize,
    /// Batches that fit.
    pub fitting: Vec<usize>,
    /// Kernels, arithmetic, threads: `cpu amx bf16, 2 threads`.
    pub backend: String,
    /// The optimizer.
    pub optimizer: String,
    /// Ranks.
    pub world: usize,
    /// The CPU's or GPU's name.
    pub device: String,
    /// Memory of the device, bytes.
    pub memory: u64,
    /// Program: version, and what tells one build from another.
    pub version: String,
}

impl Key {
    /// The key of a job on this device.
    pub fn new(
        be: &dyn Backend,
        job: &Job<'_>,
        fitting: Vec<usize>,
        (device, memory): (String, u64),
        version: String,
    ) -> Self {
        let model: RawConfig = job.config.clone().into();
        let (t, rows, world) = (job.t, job.rows, 1);
        let (backend, optimizer) = (be.name(), "muon+adamw".to_owned());
        Self { model, t, rows, fitting, backend, optimizer, world, device, memory, version }
    }
}

/// What a file of the cache holds.
#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    timings: Timings,
}

/// The key of an entry alone.
#[derive(Deserialize)]
struct Named {
    key: Key,
}

/// A folder with one file a key.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// A cache in this folder, which need not be there.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// Named by what does not change from build to build: an outdated entry is overwritten.
    fn file(&self, key: &Key) -> PathBuf {
        let named = Key { version: String::new(), ..key.clone() };
        let text = serde_json::to_vec(&named).expect("a key has only string keys");
        let name: String =
            Sha256::digest(text).iter().take(8).map(|b| format!("{b:02x}")).collect();
        self.dir.join(format!("{name}.json"))
    }

    /// What was measured under this key; `warn` is told of a file that cannot be read.
    pub fn get(&self, key: &Key, warn: &mut dyn FnMut(String)) -> Option<Timings> {
        let file = self.file(key);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            Err(e) => {
                warn(format!("{} cannot be read ({e}): measuring anew", file.display()));
                return None;
            }
        };
        // Another program's entry is a miss, whatever its timings look like.
        let named = serde_json::from_slice::<Named>(&bytes);
        if named.as_ref().is_ok_and(|n| n.key != *key) {
            return None;
        }
        match named.and_then(|_| serde_json::from_slice::<Entry>(&bytes)) {
            Ok(entry) => entry.timings.are_sound().then_some(entry.timings),
            Err(e) => {
                let file = file.display();
                warn(format!("{file} is not what this program wrote ({e}): measuring anew"));
                None
            }
        }
    }

    /// Keeps timings: written aside, then renamed. A cache that cannot be written is told to `warn`.
    pub fn put(&self, key: &Key, timings: &Timings, warn: &mut dyn FnMut(String)) {
        let file = self.file(key);
        let entry = Entry { key: key.clone(), timings: timings.clone() };
        let text = serde_json::to_vec_pretty(&entry).expect("an entry has only string keys");
        let tmp = file.with_extension(format!("tmp-{}", std::process::id()));
        let written = fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(&tmp, text))
            .and_then(|()| fs::rename(&tmp, &file));
        if let Err(e) = written {
            warn(format!("{} cannot be written ({e}): the next run measures anew", file.display()));
        }
    }
}
