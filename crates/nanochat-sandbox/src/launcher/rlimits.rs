//! Resource limits. There is one process, so a limit of a process is the limit of the program.

use super::{Step, last_error};
use crate::spec::Spec;

/// Sets them, hard and soft, for this process and what it becomes.
pub fn set(spec: &Spec) -> Step<()> {
    let limits = &spec.limits;
    limit(libc::RLIMIT_CPU, spec.cpu_seconds)?;
    limit(libc::RLIMIT_FSIZE, limits.file_bytes)?;
    limit(libc::RLIMIT_NOFILE, limits.open_files)?;
    // Counted per user namespace, and this one has a single user: other programs do not count.
    limit(libc::RLIMIT_NPROC, limits.threads)?;
    limit(libc::RLIMIT_STACK, 8 << 20)?;
    for none in [
        libc::RLIMIT_CORE,
        libc::RLIMIT_MEMLOCK,
        libc::RLIMIT_MSGQUEUE,
        libc::RLIMIT_NICE,
        libc::RLIMIT_RTPRIO,
    ] {
        limit(none, 0)?;
    }
    limit(libc::RLIMIT_AS, limits.memory_bytes)
}

fn limit(which: libc::__rlimit_resource_t, most: u64) -> Step<()> {
    let most = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the pointer is to a live `rlimit`, which is only read.
    let rc = unsafe { libc::setrlimit(which, &most) };
    if rc == 0 { Ok(()) } else { Err(last_error("limits", "setrlimit")) }
}
