//! The process that locks itself in, layer by layer, and becomes Python.
//!
//! It starts with an empty environment and seven files ([`crate::spec::fd`]), and is single-threaded.
//! In order:
//!
//! 1. the launcher: other files closed; as root, a mount namespace and the new root directory are
//!    made first (an interpreter in root's home is out of reach later), then root is dropped for
//!    good: root would void the limit on threads, and owns the host's files;
//! 2. `namespaces`: user, pid, net, ipc, uts, cgroup, mount; without root, the new root directory
//!    is made here;
//! 3. `init`: pid 1 of the new pid namespace. It reaps, reports how Python ended and ends: with it
//!    dies whatever else is left;
//! 4. its child: `rlimits`, `capabilities`, `landlock`, `filter` (seccomp), then `exec`.
//!
//! A step that fails ends everything and names its layer: there is no weaker sandbox.

mod capabilities;
mod filesystem;
mod filter;
mod init;
mod landlock;
mod namespaces;
mod rlimits;
mod sys;

use std::os::fd::RawFd;

use crate::harness::Role;
use crate::spec::{ARGUMENT, Spec, Status, fd};

/// A layer that could not be built.
pub(crate) struct Missing {
    layer: &'static str,
    why: String,
}

impl Missing {
    fn new(layer: &'static str, why: impl std::fmt::Display) -> Missing {
        Missing { layer, why: why.to_string() }
    }
}

/// `errno` of the call that just failed, as a missing `layer`; `what` names the call.
fn last_error(layer: &'static str, what: &str) -> Missing {
    Missing::new(layer, format!("{what}: {}", std::io::Error::last_os_error()))
}

type Step<T> = Result<T, Missing>;

pub use landlock::version as landlock_version;

/// Never returns in a process that was started as a launcher; see [`crate::serve_if_launcher`].
pub fn serve_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|a| a != ARGUMENT) {
        return;
    }
    let text = arguments.next().unwrap_or_default();
    let spec: Result<Spec, _> = serde_json::from_str(&text.to_string_lossy());
    let ended = match spec {
        Ok(spec) => serve(&spec),
        Err(e) => Err(Missing::new("launcher", format!("its instructions: {e}"))),
    };
    if let Err(Missing { layer, why }) = ended {
        report(&Status::Missing(layer.into(), why));
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Writes a status line for the parent.
fn report(status: &Status) {
    sys::write_all(fd::STATUS, status.line().as_bytes());
}

fn serve(spec: &Spec) -> Step<()> {
    sys::close_from(fd::SOURCE + 1)?;
    for number in 0..=fd::SOURCE {
        sys::check_open(number)?;
    }
    sys::close_on_exec(fd::STATUS)?;
    let parent = sys::parent();
    sys::leave_terminal()?;
    sys::die_with_parent(parent)?;
    init::watch_signals()?;
    let root = sys::is_root();
    if root {
        namespaces::check_nobody()?;
        namespaces::enter_mount()?;
        filesystem::build(spec, Some(namespaces::NOBODY))?;
        namespaces::drop_root()?;
        namespaces::enter_rest()?;
    } else {
        namespaces::enter_all()?;
        filesystem::build(spec, None)?;
    }
    sys::die_with_parent(parent)?;
    sys::hide_memory()?;
    init::run(spec.judged, |role| become_python(spec, role))
}

/// In the child of pid 1: the last layers, then Python. Returns only if a step fails.
fn become_python(spec: &Spec, role: Role) -> Step<std::convert::Infallible> {
    rlimits::set(spec)?;
    capabilities::drop_all()?;
    landlock::restrict(spec)?;
    let python = sys::Exec::new(spec, role)?;
    filter::install(&python)?;
    python.run()
}

/// Files that only the launcher needs, closed in pid 1: a pipe ends when its last writer is gone.
const PYTHONS: [RawFd; 6] = [0, 1, 2, fd::PROGRAM, fd::RESULT, fd::SOURCE];
