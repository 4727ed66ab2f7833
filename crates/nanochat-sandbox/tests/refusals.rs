//! A layer that is missing is named, and nothing runs without it.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use nanochat_sandbox::{Limits, Program, Sandbox, Unavailable, Verdict};

/// What opening a sandbox says in a process where system call `number` fails with EPERM.
#[cfg(target_os = "linux")]
fn without(number: i64) -> Result<Sandbox, Unavailable> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    // Found before the filter, which would hinder the search too.
    common::sandbox();
    let filter: BpfProgram = SeccompFilter::new(
        BTreeMap::from([(number, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(1),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap()
    .try_into()
    .unwrap();
    // A filter holds for a thread and the processes that it starts.
    let attempt = move || {
        apply_filter(&filter).unwrap();
        Sandbox::open_with(common::launcher(), None, Limits::default())
    };
    std::thread::spawn(attempt).join().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_missing_layer_is_named() {
    if common::sandbox().is_none() {
        return;
    }
    let namespaces = ["user namespace", "mount namespace"];
    for (number, layers) in [
        (libc::SYS_unshare, namespaces.as_slice()),
        (libc::SYS_mount, &["filesystem"]),
        (libc::SYS_pivot_root, &["filesystem"]),
        (libc::SYS_prlimit64, &["limits"]),
        (libc::SYS_capset, &["capabilities"]),
        (libc::SYS_landlock_create_ruleset, &["landlock"]),
        (libc::SYS_landlock_restrict_self, &["landlock"]),
        (libc::SYS_seccomp, &["seccomp"]),
        (libc::SYS_close_range, &["launcher"]),
    ] {
        let refusal = without(number).map(drop).unwrap_err();
        assert!(layers.contains(&refusal.layer.as_str()), "call {number}: {refusal}");
        assert!(!refusal.why.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    }
}

#[test]
fn a_program_that_is_no_launcher_is_refused() {
    if common::sandbox().is_none() {
        return;
    }
    for launcher in ["/bin/true", "/bin/cat", "/nowhere/launcher"] {
        let open = Sandbox::open_with(Path::new(launcher), None, Limits::default());
        let refusal = open.map(drop).unwrap_err();
        assert_eq!(refusal.layer, "launcher", "{refusal}");
    }
}

#[test]
fn an_interpreter_that_is_not_there_is_refused() {
    for python in ["/nowhere/python3", "/bin/true"] {
        let open =
            Sandbox::open_with(common::launcher(), Some(Path::new(python)), Limits::default());
        let refusal = open.map(drop).unwrap_err();
        assert_eq!(refusal.layer, if cfg!(target_os = "linux") { "python" } else { "linux" });
    }
}

#[test]
fn a_refusal_is_a_verdict_too() {
    let Some(sandbox) = common::sandbox() else { return };
    // Too little memory for the interpreter itself: not the program's fault, and never a pass.
    let tight = Limits { memory_bytes: 1 << 20, ..sandbox.limits().clone() };
    match Sandbox::open_with(common::launcher(), None, tight) {
        Ok(_) => panic!("1 MiB is no room for Python"),
        Err(refusal) => assert!(!refusal.why.is_empty(), "{refusal}"),
    }
    let outcome = sandbox.run(&Program::new("x = 1"));
    assert!(!matches!(outcome.verdict, Verdict::Unavailable(_)), "{:?}", outcome.verdict);
}
