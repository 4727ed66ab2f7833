//! The reference solutions of HumanEval and MBPP pass. Their data is not in the repository: the test
//! runs where `NANOCHAT_DATA_DIR` names a folder with `humaneval/HumanEval.jsonl` and
//! `mbpp/mbpp_sanitized.jsonl`.

mod common;

use std::path::PathBuf;
use std::sync::Mutex;

use nanochat_sandbox::{Program, Sandbox};
use serde_json::Value;

/// Rows of a file of JSON lines; None, said in a line, where it is not there.
fn rows(file: &str) -> Option<Vec<Value>> {
    let Some(folder) = std::env::var_os("NANOCHAT_DATA_DIR").map(PathBuf::from) else {
        println!("skipped: NANOCHAT_DATA_DIR names no folder with {file}");
        return None;
    };
    let path = folder.join(file);
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: no {}", path.display());
        return None;
    };
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A name, a solution, its tests.
type Reference = (String, String, String);

/// Runs all of them, two at a time, with the tests below the program and with the tests as its judge;
/// names those that do not pass.
fn all_pass(sandbox: &Sandbox, programs: Vec<Reference>) {
    let count = programs.len();
    let (left, failed) = (Mutex::new(programs.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((name, source, tests)) = left.lock().unwrap().next() else { return };
                    let whole = Program::new(format!("{source}\n{tests}\n"));
                    let judged = Program::new(source).judged_by(tests);
                    for (kind, program) in [("whole", whole), ("judged", judged)] {
                        let outcome = sandbox.run(&program.timeout(common::PATIENT));
                        if !outcome.passed() {
                            let why = format!("{name}, {kind}: {}", outcome.verdict);
                            failed.lock().unwrap().push(why);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {count}: {failed:#?}", failed.len());
    println!("{count} references passed, both ways");
}

#[test]
fn humaneval_references_pass() {
    let Some(sandbox) = common::sandbox() else { return };
    let Some(rows) = rows("humaneval/HumanEval.jsonl") else { return };
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let programs = rows.iter().map(|row| {
        let (prompt, body) = (text(row, "prompt"), text(row, "canonical_solution"));
        let (tests, entry) = (text(row, "test"), text(row, "entry_point"));
        (text(row, "task_id"), format!("{prompt}{body}"), format!("{tests}\ncheck({entry})\n"))
    });
    all_pass(&sandbox, programs.collect());
}

#[test]
fn mbpp_references_pass() {
    let Some(sandbox) = common::sandbox() else { return };
    let Some(rows) = rows("mbpp/mbpp_sanitized.jsonl") else { return };
    let programs = rows.iter().map(|row| {
        let tests = row["test_list"].as_array().unwrap().iter().map(|t| t.as_str().unwrap());
        let setup = row["test_setup_code"].as_str().unwrap_or("");
        let code = row["code"].as_str().unwrap();
        let tests = format!("{setup}\n{}\n", tests.collect::<Vec<_>>().join("\n"));
        (format!("MBPP/{}", row["task_id"]), code.to_owned(), tests)
    });
    all_pass(&sandbox, programs.collect());
}
