//! A save and a prune, system call by system call: killed at each, failing at each, in the right order.
//!
//! Needs `strace`; without it one line says that these are skipped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use nanochat_gpt::checkpoint;

use crate::lab::{Lab, at_most, same_step, text_of, tool};

/// What a save and a prune do to the disk.
const CALLS: &str =
    "openat,write,fsync,close,mkdir,rename,renameat2,unlink,unlinkat,rmdir,getdents64";

fn strace() -> Option<PathBuf> {
    let found = tool("strace").filter(|strace| {
        let tried = Command::new(strace).args(["-o", "/dev/null", "true"]).status();
        tried.is_ok_and(|status| status.success())
    });
    if found.is_none() {
        println!("skipped: no strace that may trace (apt-get install strace)");
    }
    found
}

/// Runs a line of the program under strace; what it traced is in `trace`.
fn traced(lab: &Lab, strace: &PathBuf, line: &str, inject: &[String]) -> Output {
    let program = lab.program(line);
    let mut command = Command::new(strace);
    command.args(["-f", "-y", "-s", "0", "-o", "trace", "-e", &format!("trace={CALLS}")]);
    for rule in inject {
        command.args(["-e", rule]);
    }
    command.arg(program.get_program()).args(program.get_args()).current_dir(lab.dir.path());
    command.env("NANOCHAT_BASE_DIR", lab.dir.path());
    command.output().expect("strace starts")
}

/// A call of the trace: process, name, the whole line.
struct Call {
    pid: String,
    name: String,
    text: String,
}

fn calls(lab: &Lab) -> Vec<Call> {
    let text = std::fs::read_to_string(lab.at("trace")).expect("a trace");
    let call = |line: &str| {
        let (pid, text) = line.split_once(' ')?;
        let text = text.trim_start();
        let name = text.split_once('(')?.0;
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        plain.then(|| Call { pid: pid.into(), name: name.into(), text: text.into() })
    };
    text.lines().filter_map(call).collect()
}

/// The calls between the first that touches a directory of step 4 and the last that touches the folder of
/// steps, as (name, how many of that name the thread had made before and with it): what `when=` counts.
fn of_the_save(lab: &Lab) -> Vec<(String, usize)> {
    let all = calls(lab);
    let main = all[0].pid.clone();
    let main: Vec<&Call> = all.iter().filter(|call| call.pid == main).collect();
    let begin = main.iter().position(|c| c.name == "mkdir" && c.text.contains(".tmp-000004"));
    let begin = begin.expect("a save of step 4");
    let end = main.iter().rposition(|c| c.text.contains("/base")).expect("a save");
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut found = Vec::new();
    for (at, call) in main.iter().enumerate() {
        let n = seen.entry(&call.name).or_default();
        *n += 1;
        if at >= begin && at <= end {
            found.push((call.name.clone(), *n));
        }
    }
    found
}

/// Steps 1, 2 and 3 are there; the run that is traced goes on to 4, saves and prunes 1 or 2.
const SAVE: &str = "--save-every 1 --keep 2";

fn prepared() -> (Lab, PathBuf) {
    let lab = Lab::new();
    lab.train_well("made", 4, "--save-every 1 --keep 4");
    let whole = lab.at("whole");
    copy(&lab.at("made"), &whole);
    std::fs::remove_dir_all(lab.steps_dir("made").join("step-000004")).expect("a step");
    (lab, whole)
}

fn copy(from: &PathBuf, to: &PathBuf) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.expect("cp").success());
}

fn fresh(lab: &Lab) {
    let run = lab.at("run");
    if run.exists() {
        std::fs::remove_dir_all(&run).expect("a run");
    }
    copy(&lab.at("made"), &run);
}

#[test]
fn a_kill_at_any_call_of_a_save_and_a_prune_loses_nothing_committed() {
    let Some(strace) = strace() else { return };
    let (lab, whole) = prepared();
    let line = format!("{} --resume", Lab::line("run", 4, SAVE));
    fresh(&lab);
    let done = traced(&lab, &strace, &line, &[]);
    assert!(done.status.success(), "{}", text_of(&done));
    let found = of_the_save(&lab);
    assert!(found.len() > 60, "{} calls of a save and a prune", found.len());
    let every = found.len().div_ceil(at_most(12, found.len()));
    let (mut killed, mut resumed) = (0, 0);
    for (at, (name, n)) in found.iter().enumerate().filter(|(at, _)| at % every == 0) {
        fresh(&lab);
        let rule = format!("inject={name}:signal=KILL:when={n}");
        let done = traced(&lab, &strace, &line, &[rule]);
        killed += usize::from(!done.status.success());
        let what = format!("killed at call {at}, {name} number {n}");
        let newest = lab.newest("run");
        assert!(newest >= 3, "{what}: step {newest} is the newest");
        let valid = checkpoint::steps(&lab.steps_dir("run")).expect("a folder").into_iter();
        let valid = valid.filter(|(_, step)| checkpoint::verify(step).is_ok()).count();
        assert!(valid >= 2, "{what}: {valid} valid steps");
        // To the end: the same step 4.
        if at % (4 * every) == 0 {
            lab.train_well("run", 4, &format!("{SAVE} --resume"));
            same_step(&lab.steps_dir("run").join("step-000004"), &whole.join("base/step-000004"));
            resumed += 1;
        }
    }
    println!("killed {killed} times, resumed {resumed} times");
    assert!(killed > 0 && resumed > 0);
}

#[test]
fn a_kill_at_any_call_while_a_step_is_saved_again_finds_that_step() {
    let Some(strace) = strace() else { return };
    let (lab, _) = prepared();
    // Step 4 is there and damaged in its optimizer alone: the run goes on from 3 and saves 4 again.
    let line = format!("{} --resume", Lab::line("run", 4, SAVE));
    let damaged = |lab: &Lab| {
        fresh(lab);
        let four = lab.steps_dir("run").join("step-000004");
        copy(&lab.at("whole/base/step-000004"), &four);
        std::fs::write(four.join("optimizer.safetensors"), "x").expect("a writable folder");
    };
    damaged(&lab);
    let done = traced(&lab, &strace, &line, &[]);
    assert!(done.status.success(), "{}", text_of(&done));
    let text = std::fs::read_to_string(lab.at("trace")).expect("a trace");
    assert!(text.contains("RENAME_EXCHANGE"), "the names are exchanged in one call");
    let found = of_the_save(&lab);
    let every = found.len().div_ceil(at_most(8, found.len()));
    for (name, n) in found.iter().step_by(every) {
        damaged(&lab);
        traced(&lab, &strace, &line, &[format!("inject={name}:signal=KILL:when={n}")]);
        // At no call is there no directory of step 4.
        let steps = checkpoint::steps(&lab.steps_dir("run")).expect("a folder");
        assert!(steps.iter().any(|(step, _)| *step == 4), "{name} number {n}: {steps:?}");
        assert!(lab.newest("run") >= 3, "{name} number {n}");
    }
}

#[test]
fn a_disk_that_is_full_or_fails_is_an_alarm_and_the_next_try_succeeds() {
    let Some(strace) = strace() else { return };
    let lab = Lab::new();
    let line = Lab::line("run", 8, "--save-every 2");
    let done = traced(&lab, &strace, &line, &[]);
    assert!(done.status.success(), "{}", text_of(&done));
    let main = calls(&lab)[0].pid.clone();
    // Of each kind of call, those that the saves of step 4 make.
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut tries = Vec::new();
    for call in calls(&lab).into_iter().filter(|c| c.pid == main) {
        let n = seen.entry(call.name.clone()).or_default();
        *n += 1;
        let of_four = call.text.contains(".tmp-000004");
        for (name, error) in
            [("write", "ENOSPC"), ("fsync", "EIO"), ("mkdir", "EROFS"), ("openat", "EIO")]
        {
            if of_four && call.name == name {
                tries.push((name, error, *n));
            }
        }
    }
    assert!(tries.len() > 8, "{tries:?}");
    lab.train_well("whole", 8, "--save-every 2");
    let every = tries.len().div_ceil(at_most(5, tries.len()));
    let (mut hit, mut tried) = (0, 0);
    for (name, error, n) in tries.into_iter().step_by(every) {
        std::fs::remove_dir_all(lab.at("run")).expect("a run");
        let rule = format!("inject={name}:error={error}:when={n}");
        let done = traced(&lab, &strace, &line, &[rule]);
        let (said, what) = (text_of(&done), format!("{name} number {n}: {error}"));
        assert!(done.status.success(), "{what}: {said}");
        tried += 1;
        // Now and then a start makes a call more or less, and another one fails than was meant.
        let text = std::fs::read_to_string(lab.at("trace")).expect("a trace");
        let injected = text.lines().find(|line| line.contains("(INJECTED)"));
        if !injected.is_some_and(|line| line.contains(".tmp-000004")) {
            continue;
        }
        hit += 1;
        assert!(said.contains("ALARM: no checkpoint of step 4"), "{what}: {said}");
        assert!(said.contains("step 2 stays on disk"), "{what}: {said}");
        assert!(said.contains("checkpoints are written again"), "{what}: {said}");
        assert_eq!(lab.rows("run", "alarm").len(), 1, "{what}");
        assert_eq!(lab.rows("run", "recovered")[0]["step"], 5, "{what}: the next step tries again");
        let last = |run: &str| lab.steps_dir(run).join("step-000008");
        same_step(&last("run"), &last("whole"));
    }
    println!("{hit} of {tried} failed in the save that was meant");
    assert!(2 * hit > tried, "{hit} of {tried}");
}

#[test]
fn every_file_is_synced_before_its_name_and_every_folder_after() {
    let Some(strace) = strace() else { return };
    let lab = Lab::new();
    let done = traced(&lab, &strace, &Lab::line("run", 2, "--save-every 1"), &[]);
    assert!(done.status.success(), "{}", text_of(&done));
    // Files written since their last sync, by path; what the folder of steps owes the disk.
    let (mut dirty, mut renamed) = (BTreeMap::new(), 0);
    let (mut folder_is_dirty, mut folders_synced) = (false, Vec::new());
    let of_steps = |text: &str| text.contains("/base") && !text.contains("verified");
    for Call { name, text, .. } in calls(&lab) {
        let path = text.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
        match name.as_str() {
            "write" if path.contains("/base/.tmp-") => {
                dirty.insert(path, text);
            }
            "fsync" => {
                assert!(!text.contains("= -1"), "{text}");
                dirty.remove(&path);
                folder_is_dirty &= !path.ends_with("/base");
                folders_synced.push(path);
            }
            "rename" | "renameat2" if of_steps(&text) => {
                assert!(dirty.is_empty(), "{text} before the sync of {dirty:?}");
                let from = text.split('"').nth(1).unwrap_or_default();
                let is_synced = folders_synced.last().is_some_and(|last| last.ends_with(from));
                assert!(is_synced, "{text}: the last thing synced is {:?}", folders_synced.last());
                renamed += 1;
                folder_is_dirty = true;
            }
            "unlink" | "unlinkat" | "rmdir" if of_steps(&text) => {
                assert!(!folder_is_dirty, "{text}: before the names are on disk");
            }
            _ => {}
        }
    }
    assert!(renamed >= 4, "two steps and two hints, {renamed} renames");
    assert!(!folder_is_dirty, "the last rename is on disk");
}
