//! Programs that mean harm, by class: none has its effect, and the machine is as before.
//!
//! `attacks/CLASS.py` holds many programs. `#: NAME` begins one; `= a b` after the name lists the
//! verdicts that it may end with. A program that prints ESCAPED had its effect. They run as root that
//! drops and as a user without rights, where the test is started by root; else as the user.
#![cfg(target_os = "linux")]

mod common;

use std::io::Read;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use nanochat_sandbox::{Program, Sandbox};

/// Time for an attack that is meant to run out of it.
const SHORT: Duration = Duration::from_millis(1500);
/// Processes of one attack run at a time.
const WORKERS: usize = 3;

struct Attack {
    name: String,
    /// Verdicts that are right; empty: any.
    ends: Vec<String>,
    source: String,
}

/// The programs of a file. A part named `prelude` begins each of them.
fn attacks(text: &str) -> Vec<Attack> {
    let mut found = Vec::new();
    let mut prelude = String::new();
    for part in text.split("#: ").skip(1) {
        let (head, source) = part.split_once('\n').unwrap();
        let (name, ends) = head.split_once(" = ").unwrap_or((head, ""));
        if name == "prelude" {
            prelude = source.to_owned();
            continue;
        }
        found.push(Attack {
            name: name.to_owned(),
            ends: ends.split_whitespace().map(str::to_owned).collect(),
            source: format!("{prelude}{source}"),
        });
    }
    found
}

/// What is there to be attacked: files, sockets, a port.
struct Host {
    folder: tempfile::TempDir,
    abstract_name: String,
    port: u16,
    _open: (UnixListener, UnixListener, TcpListener),
}

impl Host {
    fn new(class: &str) -> Host {
        let folder = tempfile::tempdir().unwrap();
        // Who runs the program may do all of this, were it not for the sandbox.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        for (name, text) in [("host_secret", "a secret of the host"), ("deleteme", "stays")] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        }
        let abstract_name = format!("nanochat-{class}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let hidden = UnixListener::bind_addr(&address).unwrap();
        let seen = UnixListener::bind(folder.path().join("sock")).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        Host { folder, abstract_name, port, _open: (hidden, seen, tcp) }
    }

    fn fill_in(&self, source: &str) -> String {
        source
            .replace("{dir}", self.folder.path().to_str().unwrap())
            .replace("{abstract}", &self.abstract_name)
            .replace("{port}", &self.port.to_string())
            .replace("{pid}", &std::process::id().to_string())
            .replace("{nul}", "\0")
    }

    /// Errors: something is not as it was.
    fn unharmed(&self) -> Result<(), String> {
        let mut names: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        if names != ["deleteme", "host_secret", "sock"] {
            return Err(format!("files of the host: {names:?}"));
        }
        let mut text = String::new();
        for name in ["deleteme", "host_secret"] {
            let path = self.folder.path().join(name);
            let mut file = std::fs::File::open(path).unwrap();
            file.read_to_string(&mut text).unwrap();
            if file.metadata().unwrap().nlink() != 1 {
                return Err(format!("{name} has another name"));
            }
        }
        if text == "staysa secret of the host" { Ok(()) } else { Err(format!("files say {text}")) }
    }
}

/// Runs a class of attacks; `honest` if none of them may pass.
fn hold(class: &str, text: &str, honest: bool) {
    let Some(sandbox) = common::sandbox() else { return };
    let (host, all) = (Host::new(class), attacks(text));
    let (mounts, count) = (mounts(), all.len());
    assert!(count > 0);
    let (left, broken) = (Mutex::new(all.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some(attack) = left.lock().unwrap().next() else { return };
                    if let Err(why) = held(&sandbox, &host, &attack, honest) {
                        broken.lock().unwrap().push(format!("{}: {why}", attack.name));
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{class}: {} of {count} not held: {broken:#?}", broken.len());
    host.unharmed().unwrap();
    assert_eq!(self::mounts(), mounts, "mounts of the host");
    assert!(common::run(&sandbox, "print(1 + 1)").passed(), "a harmless program afterwards");
    println!("{class}: {count} of {count} held");
}

fn held(sandbox: &Sandbox, host: &Host, attack: &Attack, honest: bool) -> Result<(), String> {
    let runs_out = attack.ends.iter().any(|e| e == "timeout");
    let timeout = if runs_out { SHORT } else { common::PATIENT };
    let source = host.fill_in(&attack.source);
    let outcome = sandbox.run(&Program::new(source).timeout(timeout));
    let verdict = outcome.verdict.name();
    let said = || format!("{} {} {}", outcome.verdict, outcome.stdout, outcome.stderr);
    if outcome.stdout.contains("ESCAPED") || verdict == "unavailable" {
        return Err(said());
    }
    if honest && outcome.passed() {
        return Err(format!("passed: {}", said()));
    }
    if !attack.ends.is_empty() && !attack.ends.iter().any(|e| e == verdict) {
        return Err(format!("ended with {verdict}: {}", said()));
    }
    host.unharmed()
}

fn mounts() -> usize {
    std::fs::read_to_string("/proc/self/mounts").unwrap().lines().count()
}

/// The same test again as a user without rights, where this one is root.
fn again_as_a_user(test: &str) {
    const USER: u32 = 65_533;
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir("/")
        .uid(USER)
        .gid(USER)
        .output();
    match child {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            print!("as a user: {text}");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "as a user: {text}{errors}");
        }
        Err(e) => println!("skipped as a user: the test program is out of reach ({e})"),
    }
}

macro_rules! classes {
    ($($name:ident: $file:literal, $honest:expr;)*) => {$(
        #[test]
        fn $name() {
            hold($file, include_str!(concat!("attacks/", $file, ".py")), $honest);
            again_as_a_user(stringify!($name));
        }
    )*};
}

classes! {
    resources_stay_bounded: "resources", false;
    files_of_the_host_are_out_of_reach: "files", false;
    processes_of_the_host_are_out_of_reach: "processes", false;
    the_kernel_offers_nothing_else: "kernel", false;
    there_is_no_network: "network", false;
    the_launcher_tells_nothing: "launcher", false;
    only_the_end_passes: "honesty", true;
}
