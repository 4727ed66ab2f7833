//! Tests in a process of their own: what the program is, changes or overloads has no say there.

mod common;

use nanochat_sandbox::{Program, Sandbox, Verdict};

fn judge(sandbox: &Sandbox, source: &str, tests: &str) -> nanochat_sandbox::Outcome {
    sandbox.run(&Program::new(source).judged_by(tests).timeout(common::PATIENT))
}

#[test]
fn a_right_program_passes() {
    let Some(sandbox) = common::sandbox() else { return };
    for (source, tests) in [
        ("def f(x): return x * 2", "assert f(2) == 4\nassert f('a') == 'aa'"),
        (
            "def f(x): return x",
            "def check(c):\n    for x in (None, True, 1.5, -7, 10**40, 'é', b'a', \
         [1, (2,)], {1: 'a'}, {3}, 1j, float('inf')):\n        assert c(x) == x\n        \
         assert type(c(x)) is type(x)\ncheck(f)",
        ),
        ("def f(l): l.sort()", "l = [3, 1]\nassert f(l) is None\nassert l == [1, 3]"),
        (
            "class P:\n    def __init__(self, a): self.a = a\ndef f(ps): return max(p.a for p in ps)",
            "assert f([P(3), P(5)]) == 5\nassert P(4).a == 4",
        ),
        (
            "def f():\n    yield from [1, 2]",
            "assert list(f()) == [1, 2]\nassert tuple(f()) == (1, 2)",
        ),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'",
        ),
        (
            "from collections import Counter, namedtuple\ndef f(): return Counter('aab')\n\
          def g(): return namedtuple('T', 'a b')(1, 2)",
            "assert f() == {'a': 2, 'b': 1}\nassert g() == (1, 2)",
        ),
        (
            "import math\ndef area(r): return math.pi * r",
            "import math\nassert area(1) == math.pi\n\
         assert abs(area(2) - 6.28) < 0.01",
        ),
        ("LIMIT = 3\ndef f(a, b=1): return a + b", "assert f(1, b=LIMIT) == 4"),
        ("print('hello')", ""),
    ] {
        let outcome = judge(&sandbox, source, tests);
        assert_eq!(outcome.verdict, Verdict::Passed, "{source}\n{tests}\n{outcome:?}");
    }
}

#[test]
fn a_wrong_or_dishonest_program_fails() {
    let Some(sandbox) = common::sandbox() else { return };
    let equal = "class E:\n    def __eq__(self, other): return True\n    __ne__ = lambda *_: False\n    \
                 __hash__ = lambda _: 0\n";
    let tests = "def check(c):\n    assert c(2) == 4\ncheck(f)";
    for source in [
        "def f(x): return x + 3",
        "def f(x): return None",
        "def g(x): return 4",
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "def f(:",
        // Objects that equal everything, bare and inside.
        &format!("{equal}def f(x): return E()"),
        &format!("{equal}class F(int):\n    __eq__ = E.__eq__\ndef f(x): return F(1)"),
        // Names of the tests, replaced from below.
        "import builtins\nbuiltins.AssertionError = SystemExit\ndef f(x): return 0",
        "def check(c): pass\ndef f(x): return 0",
        "import threading\ndef patch():\n    while True:\n        globals()['check'] = print\n\
         threading.Thread(target=patch, daemon=True).start()\ndef f(x): return 0",
        // Everything that it can write to.
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'value' * 99)\n    \
         except OSError:\n        pass\ndef f(x): return 0",
        "import os\nos.write(6, bytes([255] * 8))\ndef f(x): return 4",
        "import ctypes, os\nos.kill(3, 9)\ndef f(x): return 4",
        // An open string that would swallow tests that stand below it.
        "def f(x):\n    return 0\n\"\"\"",
    ] {
        let outcome = judge(&sandbox, source, tests);
        assert_eq!(outcome.verdict.name(), "failed", "{source}\n{outcome:?}");
    }
    let inside = judge(
        &sandbox,
        &format!("{equal}def f(x): return [E(), (E(),)]"),
        "assert f(1) == [1, (2,)]",
    );
    assert_eq!(inside.verdict.name(), "failed");
}

#[test]
fn the_programs_own_error_is_told() {
    let Some(sandbox) = common::sandbox() else { return };
    let outcome = judge(&sandbox, "x = 1 / 0", "assert f(1) == 2");
    assert_eq!(outcome.verdict, Verdict::Failed("ZeroDivisionError: division by zero".into()));
    let outcome = judge(&sandbox, "def f(x): return 1", "assert f(1) == 2, 'f(1) is 2'");
    assert_eq!(outcome.verdict, Verdict::Failed("AssertionError: f(1) is 2".into()));
    assert!(outcome.stderr.contains("File \"tests.py\", line 1"), "{}", outcome.stderr);
}

#[test]
fn a_judged_program_is_bounded_too() {
    let Some(sandbox) = common::sandbox() else { return };
    let short = std::time::Duration::from_millis(1500);
    for (source, verdict) in [
        ("while True: pass", "timeout"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("def f(x):\n    while True: print('x' * 9999)", "output_limit"),
    ] {
        let program = Program::new(source).judged_by("f(1)").timeout(short);
        let outcome = sandbox.run(&program);
        // A busy machine may reach the deadline before the cap.
        let ends = [verdict, "timeout"];
        assert!(ends.contains(&outcome.verdict.name()), "{source} {:?}", outcome.verdict);
    }
    let outcome = judge(&sandbox, "def f(x): return 'x' * (200 << 20)", "f(1)");
    assert!(!outcome.passed() || outcome.stdout.is_empty());
}
