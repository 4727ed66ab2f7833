//! How much memory this process may still have: the machine's, its container's, its own limit.
//!
//! Everything is read from `/proc` and `/sys`; where those are not there, nothing is known and
//! nothing is limited.

use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use serde::Serialize;

/// What may be had beside what is held, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Room {
    /// Bytes held now (resident).
    pub held: u64,
    /// Bytes that may be had beside it.
    pub free: u64,
    /// Whose limit is the least: `the machine`, `a control group`, `ulimit -v`, `ulimit -d`.
    pub by: &'static str,
    /// True when going over ends in death or an error, false when the machine begins to swap first.
    pub is_hard: bool,
}

impl Room {
    /// Of this process, now.
    pub fn now() -> Self {
        Self::under(Path::new("/"))
    }

    /// Of a device: its own memory where it has some, else this process's.
    pub fn of(be: &dyn Backend) -> Self {
        match be.own_memory() {
            Some((free, all)) => {
                Self { held: (all - free) as u64, free: free as u64, by: "the GPU", is_hard: true }
            }
            None => Self::now(),
        }
    }

    fn under(root: &Path) -> Self {
        let status = read(root, "proc/self/status");
        let field = |key: &str| kib(&status, key);
        let held = field("VmRSS:").unwrap_or(0);
        let mut rooms = Vec::new();
        if let Some(free) = kib(&read(root, "proc/meminfo"), "MemAvailable:") {
            rooms.push((free, "the machine", false));
        }
        rooms.extend(control_groups(root).into_iter().map(|free| (free, "a control group", true)));
        let limits = read(root, "proc/self/limits");
        for (name, used, by) in [
            ("Max address space", "VmSize:", "ulimit -v"),
            ("Max data size", "VmData:", "ulimit -d"),
        ] {
            if let Some(limit) = soft_limit(&limits, name) {
                rooms.push((limit.saturating_sub(field(used).unwrap_or(0)), by, true));
            }
        }
        let (free, by, is_hard) =
            rooms.into_iter().min().unwrap_or((u64::MAX / 4, "nobody known", false));
        Self { held, free, by, is_hard }
    }
}

fn read(root: &Path, file: &str) -> String {
    std::fs::read_to_string(root.join(file)).unwrap_or_default()
}

/// `key   1234 kB` in a file of such lines, as bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The soft limit in a line of `/proc/self/limits`.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Room in each control group that holds this process and has a limit: its own and those around it.
fn control_groups(root: &Path) -> Vec<u64> {
    let mut rooms = Vec::new();
    for line in read(root, "proc/self/cgroup").lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let places: &[(&str, &str, &str, &str)] = match controllers {
            "" => &[
                ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
                ("sys/fs/cgroup/unified", "memory.max", "memory.current", "inactive_file"),
            ],
            c if c.split(',').any(|c| c == "memory") => &[(
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )],
            _ => continue,
        };
        for (mount, limit, usage, reclaimable) in places {
            let mount = root.join(mount);
            for group in with_parents(&mount, path) {
                let text = |file: &str| std::fs::read_to_string(group.join(file)).ok();
                let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
                let (Some(limit), Some(used)) = (number(limit), number(usage)) else { continue };
                // Version 1 says "no limit" with the largest multiple of a page.
                if limit >= 1 << 62 {
                    continue;
                }
                // Pages of files that nobody looked at lately go when memory is wanted.
                let stat = text("memory.stat").unwrap_or_default();
                let line =
                    stat.lines().find_map(|l| l.strip_prefix(reclaimable)?.strip_prefix(' '));
                let cached = line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
                rooms.push(limit.saturating_sub(used.saturating_sub(cached)));
            }
        }
    }
    rooms
}

/// A group's folder and those above it, up to the mount. Inside a container the path may be that of
/// the host; then only the mount itself is there.
fn with_parents(mount: &Path, path: &str) -> Vec<PathBuf> {
    let mut all = vec![mount.to_path_buf()];
    let mut at = mount.to_path_buf();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != "..") {
        at.push(part);
        all.push(at.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().expect("not the root")).expect("a folder");
            std::fs::write(file, text).expect("a file");
        }
        dir
    }

    const MACHINE: [(&str, &str); 2] = [
        ("proc/meminfo", "MemTotal: 24000 kB\nMemAvailable:   20000 kB\n"),
        ("proc/self/status", "VmSize:\t 5000 kB\nVmRSS:\t 1000 kB\nVmData:\t 700 kB\n"),
    ];

    fn room(more: &[(&str, &str)]) -> Room {
        let files: Vec<_> = MACHINE.iter().chain(more).copied().collect();
        Room::under(root(&files).path())
    }

    #[test]
    fn a_free_machine_says_what_is_available() {
        let want = Room { held: 1_024_000, free: 20_480_000, by: "the machine", is_hard: false };
        assert_eq!(room(&[]), want);
        let limits = "Limit Soft Hard\nMax address space  unlimited  unlimited  bytes\n";
        assert_eq!(room(&[("proc/self/limits", limits)]), want);
    }

    #[test]
    fn the_least_limit_counts() {
        let limits = "Max data size  8000000 unlimited bytes\nMax address space  6144000 x bytes\n";
        let have = room(&[("proc/self/limits", limits)]);
        assert_eq!((have.free, have.by, have.is_hard), (1_024_000, "ulimit -v", true));
        let limits = "Max data size  1716800 unlimited bytes\n";
        assert_eq!(room(&[("proc/self/limits", limits)]).free, 1_000_000);
    }

    #[test]
    fn control_groups_of_both_versions_count_and_so_do_their_parents() {
        let v2 = [
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", "9000000\n"),
            ("sys/fs/cgroup/outer/memory.current", "5000000\n"),
            ("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 2000000\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "5000000\n"),
        ];
        assert_eq!((room(&v2).free, room(&v2).by), (6_000_000, "a control group"));
        let v1 = [
            ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "3000000\n"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1000000\n"),
        ];
        assert_eq!((room(&v1).free, room(&v1).is_hard), (2_000_000, true));
        // In a container the mount is the group itself.
        let inside = [
            ("proc/self/cgroup", "0::/../../host/path\n"),
            ("sys/fs/cgroup/memory.max", "4000000\n"),
            ("sys/fs/cgroup/memory.current", "1000000\n"),
        ];
        assert_eq!(room(&inside).free, 3_000_000);
    }

    #[test]
    fn an_unknown_system_limits_nothing() {
        let none = Room::under(root(&[]).path());
        assert_eq!((none.held, none.by), (0, "nobody known"));
        assert!(none.free > 1 << 60);
        let odd =
            [("proc/self/cgroup", "::\n4:memory\nx\n"), ("proc/self/limits", "Max data size")];
        assert_eq!(room(&odd).by, "the machine");
    }

    #[test]
    fn this_process_holds_something() {
        let now = Room::now();
        if cfg!(target_os = "linux") {
            assert!(now.held > 0 && now.free > 0, "{now:?}");
        }
    }
}
