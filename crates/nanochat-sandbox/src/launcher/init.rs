//! The launcher waits for pid 1, pid 1 waits for Python: for the judge, where there is one.

use std::convert::Infallible;

use super::{Missing, PYTHONS, Step, capabilities, last_error, report, sys};
use crate::harness::Role;
use crate::spec::{Status, fd};

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

/// Forks pid 1, which forks one process or two that run `child`, and waits for them. On SIGTERM all
/// end.
pub fn run(judged: bool, child: impl Fn(Role) -> Step<Infallible>) -> Step<()> {
    let init = fork()?;
    if init == 0 {
        exit_with(first(judged, child));
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

/// Ends a forked process, and reports a layer that it missed.
fn exit_with(ended: Step<()>) -> ! {
    if let Err(Missing { layer, why }) = ended {
        report(&Status::Missing(layer.into(), why));
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Pid 1 of the namespace. Its parent is outside of the namespace and has the number 0 here.
fn first(judged: bool, child: impl Fn(Role) -> Step<Infallible>) -> Step<()> {
    sys::die_with_parent(0)?;
    let last = if judged {
        // Requests of the judge, answers of the candidate.
        let (requests, answers) = (sys::pipe()?, sys::pipe()?);
        start(|| {
            let files = [(fd::SOURCE, 3), (requests.0, 4), (answers.1, 6)];
            files.into_iter().try_for_each(|(from, to)| sys::copy_to(from, to))?;
            sys::close_from(7)?;
            child(Role::Candidate)
        })?;
        start(|| {
            sys::copy_to(requests.1, 6)?;
            sys::copy_to(answers.0, 7)?;
            sys::close_from(8)?;
            child(Role::Judge)
        })?
    } else {
        start(|| {
            sys::close(fd::SOURCE);
            child(Role::Whole)
        })?
    };
    PYTHONS.into_iter().for_each(sys::close);
    sys::close_from(fd::SOURCE)?;
    capabilities::empty()?;
    loop {
        match reap(0) {
            Some((pid, status)) if pid == last => {
                report(&status);
                return Ok(());
            }
            Some(_) => {}
            None => return Err(last_error("launcher", "waitpid")),
        }
    }
}

/// Forks a process that runs `act`, which returns only to say what is missing.
fn start(act: impl FnOnce() -> Step<Infallible>) -> Step<i32> {
    let pid = fork()?;
    if pid == 0 {
        with_signals(|set| {
            // SAFETY: `set` is initialised; the old mask is not asked for.
            unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, set, std::ptr::null_mut()) }
        });
        exit_with(act().map(|never| match never {}));
    }
    Ok(pid)
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
