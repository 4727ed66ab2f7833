//! Capabilities: all of them go, and none comes back by executing a file.

use super::{Step, last_error, sys};

/// Empties every set of this process, and forbids new privileges.
pub fn drop_all() -> Step<()> {
    // The highest is found by asking: the kernel refuses numbers that it does not know.
    for capability in 0..64 {
        // SAFETY: takes integers; the unused arguments are zero.
        let rc = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as u64, 0u64, 0u64, 0u64) };
        if rc != 0 && capability == 0 {
            return Err(last_error("capabilities", "PR_CAPBSET_DROP"));
        }
        if rc != 0 {
            break;
        }
    }
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    empty()
}

/// Empties the effective, permitted and inheritable sets.
pub fn empty() -> Step<()> {
    // Layouts of `capset(2)`, version 3: a header, and two words a set.
    let header = [0x2008_0522_u32, 0];
    let sets = [0_u32; 6];
    // SAFETY: header and sets have the layout of version 3, live here, and are only read.
    let rc = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    if rc == 0 { Ok(()) } else { Err(last_error("capabilities", "capset")) }
}
