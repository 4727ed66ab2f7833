//! What was checked once: a note in a step's directory that all its files were hashed, and how the
//! system knew them then.
//!
//! In: a step. Out: `verified.json`, the size, times, device and inode of the manifest and of every file
//! that it lists. While these are the same, nobody has written to the files: every write, cut, rename
//! over, copy or restored backup changes the inode or its change time, which no program can set. Not seen
//! is a disk that loses bits by itself: `nanochat checkpoint verify` reads and hashes everything, always.

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{MANIFEST, META, MODEL};

const STAMP: &str = "verified.json";
const FORMAT: u32 = 1;

/// A file as the system knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    name: String,
    bytes: u64,
    device: u64,
    inode: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl Known {
    fn of(step: &Path, name: &str) -> Option<Self> {
        let file = fs::metadata(step.join(name)).ok()?;
        let (bytes, (device, inode, modified_ns, changed_ns)) = (file.len(), notes(&file)?);
        Some(Self { name: name.into(), bytes, device, inode, modified_ns, changed_ns })
    }
}

/// Device, inode, time of the last write and of the last change of any kind; none where the system keeps
/// no such notes.
#[cfg(unix)]
fn notes(file: &Metadata) -> Option<(u64, u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let ns = |s: i64, ns: i64| s.checked_mul(1_000_000_000)?.checked_add(ns);
    let (modified, changed) =
        (ns(file.mtime(), file.mtime_nsec())?, ns(file.ctime(), file.ctime_nsec())?);
    Some((file.dev(), file.ino(), modified, changed))
}

#[cfg(not(unix))]
fn notes(_: &Metadata) -> Option<(u64, u64, i64, i64)> {
    None
}

#[derive(Serialize, Deserialize)]
struct Stamp {
    format: u32,
    /// When the check began, by the clock that writes the files' times.
    began_ns: i64,
    files: Vec<Known>,
}

impl Stamp {
    /// True when every file was last changed before the check began: clocks of file systems tick, and a
    /// change within the same tick would not show.
    fn is_settled(&self) -> bool {
        self.files.iter().all(|f| f.changed_ns < self.began_ns)
    }

    fn is_of(&self, step: &Path) -> bool {
        let lists = |name: &str| self.files.iter().any(|f| f.name == name);
        self.format == FORMAT
            && self.is_settled()
            && [MANIFEST, MODEL, META].into_iter().all(lists)
            && self.files.iter().all(|f| Known::of(step, &f.name).as_ref() == Some(f))
    }
}

/// True when the step was checked and no file of it has changed since.
pub(super) fn holds(step: &Path) -> bool {
    let read = || serde_json::from_slice::<Stamp>(&fs::read(step.join(STAMP)).ok()?).ok();
    read().is_some_and(|stamp| stamp.is_of(step))
}

/// Takes the note away.
pub(super) fn remove(step: &Path) {
    // There may be none, or no right to: then a check that fails says so again.
    let _ = fs::remove_file(step.join(STAMP));
}

/// A check that is under way.
pub(super) struct Pending {
    step: PathBuf,
    /// Made at the start, for its time; becomes the note at the end.
    aside: PathBuf,
    stamp: Stamp,
}

impl Pending {
    /// To be called before the first byte is read. `None` where nothing can be noted.
    pub fn begin(step: &Path, mut names: Vec<String>) -> Option<Self> {
        let aside = step.join(format!(".verified-{}", std::process::id()));
        fs::write(&aside, b"").ok()?;
        let mut pending = Self {
            step: step.into(),
            aside,
            stamp: Stamp { format: FORMAT, began_ns: 0, files: Vec::new() },
        };
        pending.stamp.began_ns = notes(&fs::metadata(&pending.aside).ok()?)?.3;
        names.push(MANIFEST.into());
        pending.stamp.files =
            names.iter().map(|name| Known::of(step, name)).collect::<Option<_>>()?;
        Some(pending)
    }

    /// To be called when every byte was found right. Nothing is written when a file changed meanwhile, or
    /// so shortly before that it may have.
    pub fn write(self) {
        let text = serde_json::to_vec_pretty(&self.stamp).expect("a stamp is plain");
        if self.stamp.is_of(&self.step) && fs::write(&self.aside, text).is_ok() {
            // Without the note the next check reads everything again.
            let _ = fs::rename(&self.aside, self.step.join(STAMP));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Gone when it became the note.
        let _ = fs::remove_file(&self.aside);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    const FILES: [&str; 3] = [MANIFEST, MODEL, META];

    /// A directory with a note on its three files that began long after they were written.
    fn noted() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a writable folder");
        for name in FILES {
            fs::write(dir.path().join(name), name).expect("a writable folder");
        }
        let files = FILES.map(|name| Known::of(dir.path(), name).expect("a file")).to_vec();
        write(dir.path(), Stamp { format: FORMAT, began_ns: i64::MAX, files });
        assert!(holds(dir.path()));
        dir
    }

    fn write(step: &Path, stamp: Stamp) {
        let text = serde_json::to_vec(&stamp).expect("plain");
        fs::write(step.join(STAMP), text).expect("a writable folder");
    }

    fn read(step: &Path) -> Stamp {
        serde_json::from_slice(&fs::read(step.join(STAMP)).expect("a note")).expect("its own text")
    }

    #[test]
    fn a_file_that_changed_in_any_way_is_noticed() {
        for name in FILES {
            let dir = noted();
            let file = dir.path().join(name);
            // Longer; the same bytes in another file; the same bytes written at another time; gone.
            let good = fs::read(&file).expect("a file");
            fs::write(&file, "other and longer").expect("a writable folder");
            assert!(!holds(dir.path()), "{name} is longer");

            let dir = noted();
            let (file, other) = (dir.path().join(name), dir.path().join("other"));
            fs::write(&other, &good).expect("a writable folder");
            fs::rename(&other, &file).expect("a file");
            assert!(!holds(dir.path()), "{name} is another file");

            let dir = noted();
            let file = fs::File::options().write(true).open(dir.path().join(name));
            let then = SystemTime::now() - Duration::from_secs(100);
            file.and_then(|f| f.set_modified(then)).expect("a file of one's own");
            assert!(!holds(dir.path()), "{name} was written");

            let dir = noted();
            fs::remove_file(dir.path().join(name)).expect("a file");
            assert!(!holds(dir.path()), "{name} is gone");
        }
    }

    #[test]
    fn a_note_that_says_too_little_counts_for_nothing() {
        let dir = noted();
        let step = dir.path();
        let with = |change: &dyn Fn(&mut Stamp)| {
            let mut stamp = read(step);
            change(&mut stamp);
            write(step, stamp);
            let held = holds(step);
            let files = FILES.map(|name| Known::of(step, name).expect("a file")).to_vec();
            write(step, Stamp { format: FORMAT, began_ns: i64::MAX, files });
            assert!(holds(step));
            held
        };
        assert!(!with(&|s| s.format = FORMAT + 1));
        assert!(!with(&|s| s.files.clear()));
        for n in 0..FILES.len() {
            assert!(!with(&|s| drop(s.files.remove(n))));
            // Changed in the tick in which the check began.
            assert!(!with(&|s| s.began_ns = s.files[n].changed_ns));
        }
        for text in ["", "{}", "null", "[1]", "{\"format\": 1"] {
            fs::write(step.join(STAMP), text).expect("a writable folder");
            assert!(!holds(step), "{text}");
        }
        remove(step);
        remove(step);
        assert!(!holds(step));
    }

    #[test]
    fn a_check_leaves_a_note_or_nothing() {
        let dir = noted();
        let step = dir.path();
        remove(step);
        let names = || vec![MODEL.to_owned(), META.to_owned()];
        // As if the files had been written long before.
        let mut pending = Pending::begin(step, names()).expect("a writable folder");
        pending.stamp.began_ns = i64::MAX;
        pending.write();
        assert!(holds(step));
        // One of them changes while it is read.
        let mut pending = Pending::begin(step, names()).expect("a writable folder");
        pending.stamp.began_ns = i64::MAX;
        fs::write(step.join(MODEL), "longer than it was").expect("a writable folder");
        pending.write();
        assert!(!holds(step));
        drop(Pending::begin(step, names()));
        let left = fs::read_dir(step).expect("a folder").count();
        assert_eq!(left, 4, "three files and the old note");
        assert!(Pending::begin(step, vec!["absent".into()]).is_none());
        assert!(Pending::begin(&step.join("absent"), names()).is_none());
        assert_eq!(fs::read_dir(step).expect("a folder").count(), 4);
    }
}
