//! System calls of the launcher that belong to no layer of their own.

use std::ffi::{CString, OsStr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use super::{Missing, Step, last_error};
use crate::harness::Role;
use crate::spec::Spec;

/// Writes all of `bytes`; what fails to be written is lost (the reader is gone).
pub fn write_all(to: RawFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: pointer and length are of one live slice; the kernel only reads it.
        let n = unsafe { libc::write(to, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(n) {
            Ok(n) if n > 0 => bytes = &bytes[n..],
            _ => return,
        }
    }
}

/// Closes every file from `first` on.
pub fn close_from(first: RawFd) -> Step<()> {
    // SAFETY: takes three integers. No Rust object of this process owns a file: it has just started
    // and opened none.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if rc == 0 { Ok(()) } else { Err(last_error("launcher", "close_range")) }
}

/// Closes one file.
pub fn close(number: RawFd) {
    // SAFETY: takes an integer; the numbers closed are those of `spec::fd`, which no object owns.
    unsafe { libc::close(number) };
}

/// Errors: file `number` is not open, so this is no launcher that the library started.
pub fn check_open(number: RawFd) -> Step<()> {
    // SAFETY: takes integers.
    let rc = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if rc >= 0 { Ok(()) } else { Err(last_error("launcher", "its files")) }
}

/// Keeps a file from the program that is executed next.
pub fn close_on_exec(number: RawFd) -> Step<()> {
    // SAFETY: takes integers.
    let rc = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if rc == 0 { Ok(()) } else { Err(last_error("launcher", "fcntl")) }
}

/// A pipe: (read, write).
pub fn pipe() -> Step<(RawFd, RawFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two integers, as the call asks.
    let rc = unsafe { libc::pipe(ends.as_mut_ptr()) };
    if rc == 0 { Ok((ends[0], ends[1])) } else { Err(last_error("launcher", "pipe")) }
}

/// Makes `target` another number of the file `source`.
pub fn copy_to(source: RawFd, target: RawFd) -> Step<()> {
    // SAFETY: takes integers; no object owns either number.
    let rc = unsafe { libc::dup2(source, target) };
    if rc >= 0 { Ok(()) } else { Err(last_error("launcher", "dup2")) }
}

/// Process id of the parent.
pub fn parent() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getppid() }
}

/// A session of its own: no terminal, and a person's Ctrl-C goes to the parent alone.
pub fn leave_terminal() -> Step<()> {
    // SAFETY: no arguments.
    let rc = unsafe { libc::setsid() };
    if rc >= 0 { Ok(()) } else { Err(last_error("launcher", "setsid")) }
}

/// SIGKILL for this process when its parent ends. To be asked again after each change of user: the
/// kernel then forgets it. Errors: `parent` has ended already.
pub fn die_with_parent(parent: i32) -> Step<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64)?;
    if self::parent() == parent { Ok(()) } else { Err(Missing::new("launcher", "no parent")) }
}

/// No core dump, no ptrace, and `/proc` of this process belongs to root.
pub fn hide_memory() -> Step<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// The opposite, while this process writes its own `/proc/self/uid_map`.
pub fn show_memory() -> Step<()> {
    prctl(libc::PR_SET_DUMPABLE, 1)
}

/// One `prctl` with one value.
pub fn prctl(option: i32, value: u64) -> Step<()> {
    // SAFETY: the options used here take integers, and the unused arguments are zero, as some ask.
    let rc = unsafe { libc::prctl(option, value, 0u64, 0u64, 0u64) };
    if rc == 0 { Ok(()) } else { Err(last_error("launcher", "prctl")) }
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A path, or any text without NUL, for C.
pub fn c_string(text: impl AsRef<OsStr>) -> Step<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| Missing::new("launcher", "NUL in a path"))
}

/// Sets of strings in the same order in each run; text is UTF-8; no module of the current folder is
/// taken for one of the library; threads share one arena, whose address space would count else.
const ENVIRONMENT: [&str; 5] =
    ["HOME=/tmp", "PYTHONHASHSEED=0", "PYTHONUTF8=1", "PYTHONSAFEPATH=1", "MALLOC_ARENA_MAX=1"];

/// What is executed at the end: the interpreter and its arguments.
pub struct Exec {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Exec {
    pub fn new(spec: &Spec, role: Role) -> Step<Exec> {
        let path = c_string(&spec.python.exe)?;
        let fixed = ["-s", "-S", "-B", "-c"].map(str::to_owned);
        let words = fixed.into_iter().chain([role.script()]).chain(role.arguments()).map(c_string);
        let arguments = std::iter::once(Ok(path.clone())).chain(words).collect::<Step<_>>()?;
        let mut environment = ENVIRONMENT.iter().map(c_string).collect::<Step<Vec<_>>>()?;
        let folders: std::collections::BTreeSet<_> = spec
            .python
            .files
            .iter()
            .filter(|f| **f != spec.python.exe)
            .filter(|f| !f.starts_with("/usr/lib") && !f.starts_with("/lib"))
            .filter_map(|f| f.parent())
            .map(|f| f.as_os_str().to_owned())
            .collect();
        if !folders.is_empty() {
            // The loader's own list of folders lies in /etc.
            let list = folders.into_iter().collect::<Vec<_>>().join(OsStr::new(":"));
            let mut entry = std::ffi::OsString::from("LD_LIBRARY_PATH=");
            entry.push(list);
            environment.push(c_string(entry)?);
        }
        Ok(Exec { path, arguments, environment })
    }

    /// Where the path lies in memory: the only `execve` that the filter lets through names it. After
    /// it the address means nothing any more, and a program cannot know it.
    pub fn path_address(&self) -> u64 {
        self.path.as_ptr() as u64
    }

    /// Executes it. Returns only if that fails.
    pub fn run(&self) -> Step<std::convert::Infallible> {
        let list = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (arguments, environment) = (list(&self.arguments), list(&self.environment));
        // SAFETY: the path ends in NUL; both lists end in a null pointer, and their strings live in
        // `self`, which outlives the call.
        unsafe { libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        Err(last_error("python", "execve"))
    }
}
