//! The launcher waits for pid 1, pid 1 waits for Python.

use super::{Missing, PYTHONS, Step, capabilities, last_error, report, sys};
use crate::spec::Status;

/// Blocks the two signals that [`run`] waits for: a child's end, and the parent's "enough" (SIGTERM).
pub fn watch_signals() -> Step<()> {
    let rc = with_signals(|set| {
        // SAFETY: `set` is initialised; the old mask is not asked for.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, set, std::ptr::null_mut()) }
    });
    if rc == 0 { Ok(()) } else { Err(last_error("launcher", "sigprocmask")) }
}

fn with_signals<T>(act: impl FnOnce(&libc::sigset_t) -> T) -> T {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `sigemptyset` initialises the set that it is given; the others add valid signals to it.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        set.assume_init()
    };
    act(&set)
}

fn fork() -> Step<i32> {
    // SAFETY: this process has one thread, so the child may do all that the parent may.
    let pid = unsafe { libc::fork() };
    if pid >= 0 { Ok(pid) } else { Err(last_error("namespaces", "fork")) }
}

/// Forks pid 1, which forks the process that runs `child`, and waits for them. On SIGTERM all end.
pub fn run(child: impl FnOnce() -> Step<std::convert::Infallible>) -> Step<()> {
    let launcher = std::process::id();
    let init = fork()?;
    if init == 0 {
        let Missing { layer, why } = match first(launcher, child) {
            Ok(()) => std::process::exit(0),
            Err(missing) => missing,
        };
        report(&Status::Missing(layer.into(), why));
        std::process::exit(1);
    }
    PYTHONS.into_iter().for_each(sys::close);
    loop {
        let signal = with_signals(|set| {
            // SAFETY: `set` is initialised, and no details of the signal are asked for.
            unsafe { libc::sigwaitinfo(set, std::ptr::null_mut()) }
        });
        if signal == libc::SIGTERM {
            // SAFETY: takes integers; `init` is our child and not yet waited for.
            unsafe { libc::kill(init, libc::SIGKILL) };
        }
        if let Some((pid, _)) = reap(libc::WNOHANG)
            && pid == init
        {
            return Ok(());
        }
    }
}

/// Pid 1 of the namespace.
fn first(launcher: u32, child: impl FnOnce() -> Step<std::convert::Infallible>) -> Step<()> {
    // The parent is outside of the namespace and has no number here.
    let _ = launcher;
    sys::die_with_parent(0)?;
    let python = fork()?;
    if python == 0 {
        with_signals(|set| {
            // SAFETY: `set` is initialised; the old mask is not asked for.
            unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, set, std::ptr::null_mut()) }
        });
        let Err(Missing { layer, why }) = child();
        report(&Status::Missing(layer.into(), why));
        std::process::exit(1);
    }
    PYTHONS.into_iter().for_each(sys::close);
    capabilities::empty()?;
    loop {
        match reap(0) {
            Some((pid, status)) if pid == python => {
                report(&status);
                return Ok(());
            }
            Some(_) => {}
            None => return Err(last_error("launcher", "waitpid")),
        }
    }
}

/// One child that has ended, and how; None where there is none.
fn reap(flags: i32) -> Option<(i32, Status)> {
    let mut status = 0;
    // SAFETY: `status` is a live integer that the call writes.
    let pid = unsafe { libc::waitpid(-1, &mut status, flags) };
    if pid <= 0 {
        return None;
    }
    let ended = if libc::WIFSIGNALED(status) {
        Status::Signal(libc::WTERMSIG(status))
    } else {
        Status::Exit(libc::WEXITSTATUS(status))
    };
    Some((pid, ended))
}
