//! A rank that is killed, stopped or asked to stop.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Lab, same_end, text_of};
use crate::same::{launched, line, run_well};

const STEPS: u64 = 300;

/// Ranks of a launcher, by their rank: its children, by what stands in their environment.
fn ranks_of(launcher: u32) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"));
        if parent.map(str::trim) != Some(&launcher.to_string()) {
            continue;
        }
        let environ = std::fs::read(path.join("environ")).unwrap_or_default();
        let vars = environ.split(|b| *b == 0).map(String::from_utf8_lossy);
        let rank = vars.into_iter().find_map(|v| v.strip_prefix("RANK=").map(String::from));
        found.extend(rank.map(|rank| (rank, pid)));
    }
    found.sort();
    found
}

fn send(signal: &str, pid: u32) {
    let done = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(done.expect("kill").success(), "kill {signal} {pid}");
}

fn start(lab: &Lab, line: &str) -> Child {
    let mut command = lab.program(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// A rank of a run of four under way meets with `signal`; returns seconds until the launcher has ended, and
/// what was said.
fn hit(lab: &Lab, run: &str, signal: &str, victim: &str) -> (f64, Option<i32>, String) {
    let mut launcher = start(lab, &launched(4, &line(run, 100_000, "")));
    assert!(lab.wait_past(&mut launcher, run, 3), "it trains");
    let ranks = ranks_of(launcher.id());
    assert_eq!(ranks.len(), 4, "{ranks:?}");
    let (_, pid) = ranks.iter().find(|(rank, _)| rank == victim).expect("that rank");
    let since = Instant::now();
    send(signal, *pid);
    let end = launcher.wait_with_output().expect("a child");
    let seconds = since.elapsed().as_secs_f64();
    println!("{signal} to rank {victim} of 4: all ended after {seconds:.1}s");
    (seconds, end.status.code(), text_of(&end))
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_rank_ends_the_others_by_name() {
    let lab = Lab::new();
    for victim in ["2", "0"] {
        let (seconds, code, said) = hit(&lab, &format!("kill{victim}"), "-KILL", victim);
        assert!(seconds < 10.0, "{seconds}s");
        assert!(code.is_some_and(|code| code != 0), "{said}");
        assert!(said.contains(&format!("rank {victim} ended without a word")), "{said}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_stopped_rank_ends_the_others_by_name() {
    let lab = Lab::new();
    let (seconds, code, said) = hit(&lab, "stop", "-STOP", "1");
    // 5 of silence, and 4 in which the launcher waits for the stopped one.
    assert!(seconds < 12.0, "{seconds}s");
    assert!(code.is_some_and(|code| code != 0), "{said}");
    assert!(said.contains("rank 1 is silent for 5s"), "{said}");
    assert!(said.contains("rank 1 does not end: it is killed now"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_supervised_run_of_ranks_goes_on_after_a_kill_and_ends_as_the_clean_one() {
    let lab = Lab::new();
    let save = "--save-every 20 --async-save";
    run_well(&lab, &launched(2, &line("whole", STEPS, save)));
    let supervised = launched(2, &line("cut", STEPS, &format!("{save} --supervise")));
    let mut supervisor = start(&lab, &supervised);
    assert!(lab.wait_past(&mut supervisor, "cut", 45), "it trains");
    // supervisor -> launcher -> ranks.
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", supervisor.id()));
    let launcher = children.expect("a process").trim().parse().expect("one child");
    let ranks = ranks_of(launcher);
    assert_eq!(ranks.len(), 2, "{ranks:?}");
    send("-KILL", ranks[1].1);
    let end = supervisor.wait_with_output().expect("a child");
    let said = text_of(&end);
    assert!(end.status.success(), "{said}");
    assert!(said.contains("rank 1 ended without a word"), "{said}");
    assert!(said.contains("ALARM: the trainer ended"), "{said}");
    same_end(&lab, "whole", "cut", STEPS);
}

#[test]
fn a_signal_to_the_launcher_saves_and_all_end_with_75() {
    let lab = Lab::new();
    let mut launcher = start(&lab, &launched(2, &line("asked", 100_000, "")));
    assert!(lab.wait_past(&mut launcher, "asked", 3), "it trains");
    std::thread::sleep(Duration::from_millis(50));
    send("-TERM", launcher.id());
    let end = launcher.wait_with_output().expect("a child");
    let said = text_of(&end);
    assert_eq!(end.status.code(), Some(75), "{said}");
    assert!(said.contains("stopped by SIGTERM after step"), "{said}");
    assert!(lab.newest("asked") > 3, "saved");
}
