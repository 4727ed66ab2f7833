//! `nanochat sandbox run` as a person and a script meet it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs the program with `input` on standard input: what it wrote, and its last line.
fn sandbox(args: &[&str], input: &str) -> (Output, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(["sandbox", "run"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let last = text.lines().last().unwrap_or("null");
    let json = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {text}"));
    (output, json)
}

/// Whether this machine has a sandbox; said in a line where it has none.
fn refused(json: &Value) -> bool {
    let refused = json["verdict"] == "unavailable";
    if refused {
        assert_eq!(json["passed"], false);
        println!("skipped, as it refuses here: {}", json["reason"]);
    }
    refused
}

#[test]
fn the_last_line_says_how_it_ended() {
    let long = ["/dev/stdin", "--timeout", "60"];
    let (output, json) = sandbox(&long, "print('hello')\nassert 1 + 1 == 2");
    if refused(&json) {
        return;
    }
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"hello\n"));
    assert_eq!((&json["passed"], &json["verdict"]), (&true.into(), &"passed".into()));
    assert_eq!((&json["exit"], &json["timed_out"]), (&0.into(), &false.into()));
    assert_eq!((&json["stdout"], &json["stderr"]), (&"hello\n".into(), &"".into()));
    assert!(json["wall_ms"].as_f64().unwrap() > 0.0);

    let (output, json) = sandbox(&long, "import os\nos._exit(0)");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&json["passed"], &json["exit"]), (&false.into(), &0.into()));

    let (_, json) = sandbox(&["-", "--timeout", "0.5"], "while True: pass");
    assert_eq!((&json["timed_out"], &json["verdict"]), (&true.into(), &"timeout".into()));
}

#[test]
fn tests_in_a_file_of_their_own_judge_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let tests = folder.path().join("tests.py");
    std::fs::write(&tests, "assert double(4) == 8\n").unwrap();
    let args = ["-", "--tests", tests.to_str().unwrap(), "--timeout", "60"];
    let (_, json) = sandbox(&args, "def double(x): return 2 * x");
    if refused(&json) {
        return;
    }
    assert_eq!(json["passed"], true, "{json}");
    let equal = "class E:\n    __eq__ = lambda *_: True\ndef double(x): return E()";
    let (_, json) = sandbox(&args, equal);
    assert_eq!(json["passed"], false, "{json}");
}

#[test]
fn mistakes_are_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(["sandbox", "run", "nowhere.py"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("cannot read the program nowhere.py"), "{errors}");
    let output = Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(["sandbox", "run", "-", "--timeout", "0"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("--timeout 0"), "{errors}");
}
