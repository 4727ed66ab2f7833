//! The root directory of a program: its interpreter, read-only, and one scratch folder in memory.
//!
//! No `/proc`, no `/etc`, no home, no device but null, zero and urandom. The host's mounts are gone
//! from the namespace when this is done.

use std::ffi::CStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::sys::c_string;
use super::{Missing, Step, last_error};
use crate::spec::Spec;

const LAYER: &str = "filesystem";
/// Where the new root is put together: any folder that holds nothing which is needed meanwhile.
const BASE: &str = "/proc";
/// The only folder that can be written.
pub const SCRATCH: &str = "/tmp";
/// Device files.
pub const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];

/// Builds it and moves there. `owner` of the scratch folder, where it is not the caller.
pub fn build(spec: &Spec, owner: Option<u32>) -> Step<()> {
    // What is mounted here must not appear outside.
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE, "")?;
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some("tmpfs"), BASE, Some("tmpfs"), quiet, "size=1m,nr_inodes=1024,mode=755")?;
    for folder in &spec.python.folders {
        make_folder(&inside(folder))?;
        bind(folder, true)?;
    }
    for folder in &spec.python.hidden {
        cover(&inside(folder))?;
    }
    for file in &spec.python.files {
        make_file(&inside(file))?;
        bind(file, true)?;
    }
    for (link, target) in &spec.python.links {
        make_parent(&inside(link))?;
        symlink(target, inside(link)).map_err(|e| failed(link, e))?;
    }
    for device in DEVICES.map(Path::new) {
        make_file(&inside(device))?;
        bind(device, false)?;
    }
    let scratch = inside(Path::new(SCRATCH));
    make_folder(&scratch)?;
    let (size, files) = (spec.limits.scratch_bytes, spec.limits.scratch_files);
    let owner = owner.map_or(String::new(), |id| format!(",uid={id},gid={id}"));
    let options = format!("size={size},nr_inodes={files},mode=700{owner}");
    mount(Some("tmpfs"), &scratch, Some("tmpfs"), quiet, &options)?;
    pivot()?;
    mount(None, "/", None, quiet | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, "")?;
    std::env::set_current_dir(SCRATCH).map_err(|e| failed(Path::new(SCRATCH), e))
}

/// `path` of the program, as it is called before the move.
fn inside(path: &Path) -> PathBuf {
    Path::new(BASE).join(path.strip_prefix("/").unwrap_or(path))
}

fn failed(path: &Path, e: std::io::Error) -> Missing {
    Missing::new(LAYER, format!("{}: {e}", path.display()))
}

fn make_folder(path: &Path) -> Step<()> {
    std::fs::create_dir_all(path).map_err(|e| failed(path, e))
}

fn make_parent(path: &Path) -> Step<()> {
    path.parent().map_or(Ok(()), make_folder)
}

fn make_file(path: &Path) -> Step<()> {
    make_parent(path)?;
    std::fs::File::create(path).map(drop).map_err(|e| failed(path, e))
}

/// The host's `path` at the same place inside, without setuid; read-only and without devices unless
/// it is one.
fn bind(path: &Path, read_only: bool) -> Step<()> {
    let target = inside(path);
    mount(path.to_str(), &target, None, libc::MS_BIND, "")?;
    let mut flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID | kept_flags(&target)?;
    if read_only {
        flags |= libc::MS_RDONLY | libc::MS_NODEV;
    }
    mount(None, &target, None, flags, "")
}

/// An empty read-only folder over `path`.
fn cover(path: &Path) -> Step<()> {
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, "size=4k,nr_inodes=2,mode=755")
}

/// Flags of the host's mount, which a user namespace may not take away.
fn kept_flags(path: &Path) -> Step<libc::c_ulong> {
    let name = c_string(path)?;
    let mut figures = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a path that ends in NUL, and room for one `statvfs`.
    if unsafe { libc::statvfs(name.as_ptr(), figures.as_mut_ptr()) } != 0 {
        return Err(last_error(LAYER, "statvfs"));
    }
    // SAFETY: all bytes were zero, which is a valid `statvfs`, and the call has filled them in.
    let has = unsafe { figures.assume_init() }.f_flag;
    let pairs = [
        (libc::ST_RDONLY, libc::MS_RDONLY),
        (libc::ST_NODEV, libc::MS_NODEV),
        (libc::ST_NOEXEC, libc::MS_NOEXEC),
        (libc::ST_NOATIME, libc::MS_NOATIME),
        (libc::ST_NODIRATIME, libc::MS_NODIRATIME),
        (libc::ST_RELATIME, libc::MS_RELATIME),
    ];
    Ok(pairs.iter().filter(|(st, _)| has & st != 0).fold(0, |all, (_, ms)| all | ms))
}

fn mount(
    source: Option<&str>,
    target: impl AsRef<Path>,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: &str,
) -> Step<()> {
    let target = target.as_ref();
    let (to, data) = (c_string(target)?, c_string(options)?);
    let from = source.map(c_string).transpose()?;
    let kind = kind.map(c_string).transpose()?;
    let pointer =
        |text: &Option<std::ffi::CString>| text.as_deref().map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null, where mount(2) permits it, or a string that ends in NUL and lives
    // to the end of this function.
    let rc = unsafe {
        libc::mount(pointer(&from), to.as_ptr(), pointer(&kind), flags, data.as_ptr().cast())
    };
    if rc == 0 {
        return Ok(());
    }
    let what = format!("mount {} {}", source.unwrap_or(""), target.display());
    Err(last_error(LAYER, &what))
}

/// [`BASE`] becomes `/`, and everything else is unmounted.
fn pivot() -> Step<()> {
    std::env::set_current_dir(BASE).map_err(|e| failed(Path::new(BASE), e))?;
    let here = c".";
    // SAFETY: two strings that end in NUL. Old and new root are the same folder: the old one then
    // lies on top of the new, and the next call takes it away.
    if unsafe { libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()) } != 0 {
        return Err(last_error(LAYER, "pivot_root"));
    }
    // SAFETY: a string that ends in NUL, and a flag.
    if unsafe { libc::umount2(here.as_ptr(), libc::MNT_DETACH) } != 0 {
        return Err(last_error(LAYER, "umount2"));
    }
    std::env::set_current_dir("/").map_err(|e| failed(Path::new("/"), e))
}
