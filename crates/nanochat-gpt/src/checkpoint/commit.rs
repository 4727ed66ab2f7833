//! Writing a step so that a crash at any moment leaves the steps before it as they were.
//!
//! In: a model and what a trainer keeps beside it. Out: `step-<N>`, whole, or nothing. The order is what
//! makes it so: every file is synced, the manifest is the last of them, the folder is synced, the name
//! is changed in one system call, and the folder above is synced. `LATEST` is a hint for people.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{
    Content, Entry, Extra, FORMAT, LATEST, MANIFEST, META, MODEL, Manifest, Meta, aside_of, hex,
    hex_of, step_dir,
};
use crate::weights::{self, io};
use crate::{Nano, Result};

/// Writes a checkpoint of `model` under `dir`; returns the step's directory.
///
/// A crash at any moment leaves the earlier steps as they were, also when the step is there already and
/// takes the place of the old one. Errors: [`crate::Error::Io`]; then nothing of the new step is left
/// but, at worst, a `.tmp-` directory, which the next save removes.
pub fn save(dir: &Path, model: &Nano, meta: &Meta, extras: Vec<Extra<'_>>) -> Result<PathBuf> {
    let tensors = weights::named(model.table(), model.params());
    let mut files = vec![Extra { name: MODEL, content: Content::Tensors(tensors) }];
    files.extend(extras);
    save_files(dir, meta, files)
}

/// [`save`] of a model whose weights are a file like the others, `model.safetensors`, the first of them:
/// with contents that are [`Content::into_bytes`] it can be done on a thread of its own.
pub fn save_files(dir: &Path, meta: &Meta, files: Vec<Extra<'_>>) -> Result<PathBuf> {
    make_dir(dir)?;
    remove_leftovers(dir)?;
    let tmp = dir.join(format!(".tmp-{:06}-{}", meta.step, std::process::id()));
    let to = step_dir(dir, meta.step);
    let named = write_step(&tmp, meta, files).and_then(|()| put_in_place(dir, &tmp, &to));
    if let Err(e) = named {
        // On a full disk the room is wanted back. What cannot be removed is left to the next save.
        let _ = fs::remove_dir_all(&tmp);
        return Err(e);
    }
    sync_dir(dir)?;
    if tmp.exists() {
        // The step that this one took the place of.
        fs::remove_dir_all(&tmp).map_err(io(&tmp))?;
    }
    remove_leftovers(dir)?;
    // The step is valid with or without the hint.
    let _ = point_to(dir, &to);
    Ok(to)
}

fn write_step(tmp: &Path, meta: &Meta, files: Vec<Extra<'_>>) -> Result<()> {
    fs::create_dir(tmp).map_err(io(tmp))?;
    let mut entries = Vec::new();
    let mut write = |name: &str, content: Content| -> Result<()> {
        let (bytes, sha256) = write_durably(&tmp.join(name), &content)?;
        entries.push(Entry { name: name.into(), bytes, sha256 });
        Ok(())
    };
    for file in files {
        write(file.name, file.content)?;
    }
    let text = serde_json::to_vec_pretty(meta).expect("a Meta has only string keys");
    write(META, Content::Bytes(text))?;
    let list = serde_json::to_vec(&entries).expect("entries are plain");
    let manifest = Manifest { format: FORMAT, files: entries, sha256: hex_of(&list) };
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain");
    write_durably(&tmp.join(MANIFEST), &Content::Bytes(text))?;
    sync_dir(tmp)
}

impl Content {
    /// The same bytes, copied out of the tensors, which may change from then on.
    pub fn into_bytes(self) -> Result<Vec<u8>> {
        match self {
            Content::Bytes(bytes) => Ok(bytes),
            Content::Tensors(tensors) => {
                let len: usize = tensors.iter().map(|t| t.data.bytes()).sum();
                let mut bytes = Vec::with_capacity(len + (1 << 16));
                weights::write(Path::new("memory"), &mut bytes, &tensors)?;
                Ok(bytes)
            }
        }
    }
}

/// Gives the finished directory its name. Where the name is taken, the two change places in one system
/// call, so that a valid step of that number stands at every moment; the old one then has the name
/// `tmp`. Where the system cannot do that, the old one first steps aside under a name that
/// [`super::steps`] finds too.
fn put_in_place(dir: &Path, tmp: &Path, to: &Path) -> Result<()> {
    if !to.exists() {
        return fs::rename(tmp, to).map_err(io(to));
    }
    match exchange(tmp, to) {
        Ok(()) => Ok(()),
        Err(e) if is_unknown(&e) => step_aside(dir, tmp, to),
        Err(e) => Err(io(to)(e)),
    }
}

fn step_aside(dir: &Path, tmp: &Path, to: &Path) -> Result<()> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let old = dir.join(format!(".old-{}-{}", &name["step-".len()..], std::process::id()));
    fs::rename(to, &old).map_err(io(to))?;
    fs::rename(tmp, to).map_err(io(to))
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// True when the system or the file system does not know how to exchange two names.
fn is_unknown(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidInput, Unsupported};
    matches!(e.kind(), InvalidInput | Unsupported)
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

/// Makes the folder of the steps, and its name durable in the folder above.
fn make_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(io(dir))?;
    match dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
}

/// Removes what a crash left; a step that had stepped aside and was not replaced gets its name back.
fn remove_leftovers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let back = aside_of(&name).map(|step| step_dir(dir, step)).filter(|to| !to.exists());
        if let Some(to) = back {
            fs::rename(&path, &to).map_err(io(&path))?;
        } else if [".tmp-", ".trash-", ".old-"].iter().any(|p| name.starts_with(p)) {
            let gone =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.map_err(io(&path))?;
        }
    }
    Ok(())
}

/// Writes `LATEST`: the name of the newest step, for people and scripts. Nothing here reads it.
fn point_to(dir: &Path, to: &Path) -> Result<()> {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let tmp = dir.join(format!(".tmp-{LATEST}-{}", std::process::id()));
    write_durably(&tmp, &Content::Bytes(format!("{name}\n").into_bytes()))?;
    fs::rename(&tmp, dir.join(LATEST)).map_err(io(&tmp))?;
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::steps;

    #[test]
    fn a_step_that_stepped_aside_is_found_and_gets_its_name_back() {
        let dir = tempfile::tempdir().expect("a writable folder");
        let dir = dir.path();
        let (tmp, to) = (dir.join(".tmp-000007-1"), step_dir(dir, 7));
        for (path, text) in [(&tmp, "new"), (&to, "old")] {
            fs::create_dir(path).expect("a writable folder");
            fs::write(path.join("x"), text).expect("a writable folder");
        }
        let read = |path: &Path| fs::read_to_string(path.join("x")).expect("a file");
        // The moment between the two renames: no step-000007, yet step 7 is found.
        let old = dir.join(".old-000007-1");
        fs::rename(&to, &old).expect("a folder");
        assert_eq!(steps(dir).expect("a folder"), [(7, old.clone())]);
        remove_leftovers(dir).expect("a writable folder");
        assert_eq!(
            (steps(dir).expect("a folder"), read(&to)),
            (vec![(7, to.clone())], "old".into())
        );
        // To the end: the new one has the name, and the old one goes with the leftovers.
        fs::create_dir(&tmp).expect("a writable folder");
        fs::write(tmp.join("x"), "new").expect("a writable folder");
        step_aside(dir, &tmp, &to).expect("a writable folder");
        assert_eq!(
            (steps(dir).expect("a folder"), read(&to)),
            (vec![(7, to.clone())], "new".into())
        );
        remove_leftovers(dir).expect("a writable folder");
        assert_eq!(fs::read_dir(dir).expect("a folder").count(), 1);
    }
}
