//! How programs end, what is kept of what they say, and what they leave behind: nothing.

mod common;

use std::time::{Duration, Instant};

use nanochat_sandbox::{Limits, Program, Verdict};

#[test]
fn a_program_that_ends_passes() {
    let Some(sandbox) = common::sandbox() else { return };
    for source in [
        "",
        "pass",
        "assert 1 + 1 == 2",
        "def f(x):\n    return x * 2\nassert f(2) == 4\nprint('done')",
        "if __name__ == '__main__':\n    import sys\n    assert sys.argv == ['program.py']",
        "import os\nassert os.getcwd() == '/tmp' and os.listdir() == []\nopen('a', 'w').write('b')",
        "import threading\nt = threading.Thread(target=print, args=('x',))\nt.start()\nt.join()",
        "import threading, time\ndef loop():\n    while True: time.sleep(0.001)\n\
         threading.Thread(target=loop, daemon=True).start()\ntime.sleep(0.01)",
        "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(b'x')",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.alarm(1)",
        "from collections import namedtuple\nassert namedtuple('P', 'a b')(1, 2).b == 2",
        "def f():\n    '''\n    >>> f()\n    1\n    '''\n    return 1\nimport doctest\n\
         assert doctest.testmod().failed == 0",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p:\n    \
         assert list(p.map(abs, [-1, 2])) == [1, 2]",
    ] {
        let outcome = common::run(&sandbox, source);
        assert_eq!(outcome.verdict, Verdict::Passed, "{source}\n{outcome:?}");
        assert_eq!(outcome.exit, Some(0));
    }
}

#[test]
fn the_usual_modules_are_there() {
    let Some(sandbox) = common::sandbox() else { return };
    let names = "abc array ast asyncio base64 bisect bz2 calendar cmath collections copy csv \
                 dataclasses datetime decimal difflib enum fractions functools gzip hashlib heapq \
                 html inspect io itertools json lzma math operator os pathlib pickle pprint queue \
                 random re secrets shutil statistics string struct sys tempfile textwrap threading \
                 time traceback types typing unicodedata unittest uuid xml.etree.ElementTree zlib";
    let source = format!("import {}", names.split_whitespace().collect::<Vec<_>>().join(", "));
    let outcome = common::run(&sandbox, &source);
    assert_eq!(outcome.verdict, Verdict::Passed, "{outcome:?}");
}

#[test]
fn each_end_has_its_verdict() {
    let Some(sandbox) = common::sandbox() else { return };
    let name = |source: &str| common::run(&sandbox, source).verdict.name();
    assert_eq!(name("assert False"), "failed");
    assert_eq!(name("def f(:"), "failed");
    assert_eq!(name("bytearray(1 << 40)"), "memory");
    assert_eq!(name("while True: print('x' * 10000)"), "output_limit");
    assert_eq!(name("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"), "killed");
    let outcome =
        sandbox.run(&Program::new("while True: pass").timeout(Duration::from_millis(700)));
    assert_eq!(outcome.verdict, Verdict::Timeout);
}

#[test]
fn a_failure_says_why_and_where() {
    let Some(sandbox) = common::sandbox() else { return };
    let outcome = common::run(&sandbox, "def f():\n    return 1 // 0\n\nf()\n");
    let why = "ZeroDivisionError: integer division or modulo by zero";
    assert_eq!(outcome.verdict, Verdict::Failed(why.into()));
    assert_eq!(outcome.exit, Some(1));
    for part in ["File \"program.py\", line 4", "File \"program.py\", line 2, in f"] {
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
    // The harness shows nothing of itself.
    assert!(!outcome.stderr.contains("<string>"), "{}", outcome.stderr);
}

#[test]
fn output_comes_back_and_is_cut() {
    let limits = Limits { output_bytes: 1000, ..Limits::default() };
    let Some(sandbox) = common::with_limits(limits) else { return };
    let outcome = common::run(&sandbox, "import sys\nprint('é')\nprint('b', file=sys.stderr)");
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("é\n", "b\n"));
    let outcome = common::run(&sandbox, "import os\nos.write(1, b'\\xff\\x00a')");
    assert_eq!(outcome.stdout, "\u{fffd}\0a");
    let outcome = common::run(&sandbox, "print('x' * 999)");
    assert_eq!((outcome.verdict, outcome.stdout.len()), (Verdict::Passed, 1000));
    let outcome = common::run(&sandbox, "print('x' * 1000)");
    assert_eq!((outcome.verdict, outcome.stdout.len()), (Verdict::OutputLimit, 1000));
}

#[test]
fn runs_do_not_see_each_other_and_are_repeatable() {
    let Some(sandbox) = common::sandbox() else { return };
    let source = "import os\nassert not os.path.exists('mark')\nopen('mark', 'w').close()\n\
                  print({'a', 'b', 'c', 'd', 'e'})";
    let first = common::run(&sandbox, source);
    let second = common::run(&sandbox, source);
    assert!(first.passed() && second.passed(), "{first:?} {second:?}");
    assert_eq!(first.stdout, second.stdout, "sets have an order that is the same each time");
}

#[test]
fn the_deadline_holds_whatever_the_program_does() {
    let Some(sandbox) = common::sandbox() else { return };
    let program = Program::new("import time\ntime.sleep(100)").timeout(Duration::from_millis(500));
    let start = Instant::now();
    let outcome = sandbox.run(&program);
    assert_eq!(outcome.verdict, Verdict::Timeout);
    // Two seconds are given to the launcher to clean up, the rest to a busy machine.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// Open files, children and peak memory (KiB) of this process.
#[cfg(target_os = "linux")]
fn footprint() -> (usize, String, u64) {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let children = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .collect();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    (files, children, peak.trim().trim_end_matches(" kB").parse().unwrap())
}

/// In a process of its own, as other tests of this file open files at the same time.
#[cfg(target_os = "linux")]
#[test]
fn nothing_is_left_behind() {
    const NAME: &str = "nothing_is_left_behind";
    if std::env::args().all(|a| a != "--exact") {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{text}{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    let Some(sandbox) = common::sandbox() else { return };
    let (files, children, peak) = footprint();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for source in [
                    "pass",
                    "import os\nwhile True: os.write(1, b'x' * 65536)",
                    "import os\nwhile True: os.write(2, b'x' * 65536)",
                    "import os\nos._exit(3)",
                    "while True: pass",
                    "import os\nos.abort()",
                ] {
                    sandbox.run(&Program::new(source).timeout(Duration::from_secs(1)));
                }
            });
        }
    });
    let (files_after, children_after, peak_after) = footprint();
    assert_eq!((files_after, children_after), (files, children));
    assert!(peak_after - peak < 64 << 10, "{peak} KiB became {peak_after} KiB");
}
