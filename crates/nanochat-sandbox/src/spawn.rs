//! Starts a launcher with chosen files and an empty environment, and ends it.
//!
//! `posix_spawn` shares the parent's memory until the child executes: a parent of many gigabytes
//! starts one as fast as a small one, and from any thread.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// A running launcher. Dropping it ends it and waits for its end: no zombie is left.
pub struct Child {
    pid: libc::pid_t,
    waited: bool,
}

/// Starts `program` with `arguments`; `files[i]` becomes file number i of the child, and no other
/// file of this process does.
pub fn spawn(program: &Path, arguments: &[&str], files: &[&OwnedFd]) -> io::Result<Child> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(program.as_os_str().as_bytes())?;
    let words = arguments.iter().map(|a| CString::new(*a)).collect::<Result<Vec<_>, _>>()?;
    let argv: Vec<*mut libc::c_char> = std::iter::once(&path)
        .chain(&words)
        .map(|w| w.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect();
    let environment = [std::ptr::null_mut()];
    // Above all targets, so that no source is overwritten before it is copied.
    let sources = files.iter().map(|f| duplicate_above(f, 64)).collect::<io::Result<Vec<_>>>()?;
    let mut actions = FileActions::new()?;
    for (target, source) in sources.iter().enumerate() {
        actions.copy(source.as_raw_fd(), target as RawFd)?;
    }
    let mut pid = 0;
    // SAFETY: the path and the words end in NUL and live in `path` and `words`; both lists end in a
    // null pointer; posix_spawn only reads them. The actions are initialised.
    let rc = unsafe {
        libc::posix_spawn(
            &mut pid,
            path.as_ptr(),
            &actions.0,
            std::ptr::null(),
            argv.as_ptr(),
            environment.as_ptr(),
        )
    };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc));
    }
    Ok(Child { pid, waited: false })
}

impl Child {
    /// Asks it to end everything (SIGTERM), or ends it (SIGKILL).
    pub fn signal(&self, signal: i32) {
        if !self.waited {
            // SAFETY: takes integers; the pid is ours until it has been waited for.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) {
        while !self.waited {
            let mut status = 0;
            // SAFETY: `status` is a live integer that the call writes.
            let rc = unsafe { libc::waitpid(self.pid, &mut status, 0) };
            // Anything but an interruption means that there is nobody left to wait for.
            self.waited =
                rc >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<FileActions> {
        let mut actions = std::mem::MaybeUninit::uninit();
        // SAFETY: the call initialises what it is given.
        let rc = unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        // SAFETY: initialised by the call above, which returned 0.
        Ok(FileActions(unsafe { actions.assume_init() }))
    }

    fn copy(&mut self, source: RawFd, target: RawFd) -> io::Result<()> {
        // SAFETY: initialised in `new`; the rest are integers.
        match unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, source, target) } {
            0 => Ok(()),
            rc => Err(io::Error::from_raw_os_error(rc)),
        }
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, and not used after this.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

fn owned(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the callers pass what a call has just opened and nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn duplicate_above(file: &OwnedFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers; the file is open, as its owner lives.
    owned(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) })
}

/// A pipe whose reading end never blocks: (read, write), closed on exec.
pub fn pipe() -> io::Result<(File, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two integers, as the call asks.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (read, write) = (owned(ends[0])?, owned(ends[1])?);
    // SAFETY: takes integers.
    if unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((File::from(read), write))
}

/// A file in memory with these bytes, to be read from its beginning, closed on exec.
pub fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    // SAFETY: a name that ends in NUL, and a flag.
    let number = unsafe { libc::memfd_create(c"program".as_ptr(), libc::MFD_CLOEXEC) };
    let mut file = File::from(owned(number)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
