//! Namespaces: what of the system a process can name at all.

use super::{Missing, Step, last_error, sys};

/// User and group id that root becomes: `nobody`, who owns nothing.
pub const NOBODY: u32 = 65534;

const REST: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

fn unshare(flags: i32, layer: &'static str) -> Step<()> {
    // SAFETY: takes an integer, and changes only this single-threaded process.
    let rc = unsafe { libc::unshare(flags) };
    if rc == 0 { Ok(()) } else { Err(last_error(layer, "unshare")) }
}

/// Errors: root cannot become [`NOBODY`], as in a user namespace that has few users.
pub fn check_nobody() -> Step<()> {
    for file in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let map = std::fs::read_to_string(file)
            .map_err(|e| Missing::new("user", format!("{file}: {e}")))?;
        if !holds(&map, NOBODY) {
            return Err(Missing::new("user", format!("id {NOBODY} is not in {file}")));
        }
    }
    Ok(())
}

/// Whether a map (lines of first id inside, first id outside, count) holds `id`.
fn holds(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        let first = first.unwrap_or(0);
        (first..first + count.unwrap_or(0)).contains(&u64::from(id))
    })
}

/// As root: a mount namespace, so that the new root directory can be made while root still reads
/// every folder.
pub fn enter_mount() -> Step<()> {
    unshare(libc::CLONE_NEWNS, "mount namespace")
}

/// Root becomes [`NOBODY`], without groups and without a way back.
pub fn drop_root() -> Step<()> {
    // SAFETY: an empty list of groups and plain integers.
    let rc = unsafe {
        libc::setgroups(0, std::ptr::null())
            | libc::setresgid(NOBODY, NOBODY, NOBODY)
            | libc::setresuid(NOBODY, NOBODY, NOBODY)
    };
    if rc != 0 {
        return Err(last_error("user", "setresuid"));
    }
    // SAFETY: takes an integer. It must fail: who is root still could come back.
    if unsafe { libc::setuid(0) } == 0 {
        return Err(Missing::new("user", "root could be taken back"));
    }
    Ok(())
}

/// After [`drop_root`]: the user namespace and the rest. Its only user needs no name in it, so no
/// map is written.
pub fn enter_rest() -> Step<()> {
    unshare(libc::CLONE_NEWUSER, "user namespace")?;
    unshare(REST, "namespaces")
}

/// Without root: all of them at once. The user keeps its number.
pub fn enter_all() -> Step<()> {
    // SAFETY: no arguments, cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    unshare(libc::CLONE_NEWUSER, "user namespace")?;
    sys::show_memory()?;
    let map = |file: &str, text: String| {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| Missing::new("user namespace", format!("{file}: {e}")))
    };
    map("setgroups", "deny".into())?;
    map("uid_map", format!("{user} {user} 1"))?;
    map("gid_map", format!("{group} {group} 1"))?;
    unshare(REST | libc::CLONE_NEWNS, "namespaces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_holds_the_ids_of_its_ranges() {
        assert!(holds("         0          0 4294967295\n", NOBODY));
        assert!(holds("0 1000 1\n1 100000 65536\n", NOBODY));
        assert!(!holds("0 1000 1\n", NOBODY));
        assert!(!holds("0 1000 1\n1 100000 1000\n", NOBODY));
        assert!(!holds("", NOBODY));
        assert!(!holds("what is this\n", NOBODY));
    }
}
