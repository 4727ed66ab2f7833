//! A run that is asked to stop; two that want the same directory.

use std::process::{Command, ExitStatus};

use crate::lab::{Lab, at_most, same_end, text_of};

fn kill(signal: &str, pid: u32) -> ExitStatus {
    Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill")
}

#[test]
fn a_signal_saves_exits_with_75_and_says_how_to_go_on() {
    let lab = Lab::new();
    let (steps, save) = (200, "--save-every 50");
    lab.train_well("whole", steps, save);
    let mut past = 3;
    for n in 0..at_most(1, 7) {
        for (flag, name) in [("-TERM", "SIGTERM"), ("-INT", "SIGINT"), ("-USR1", "SIGUSR1")] {
            let mut child = lab.start("cut", steps, &format!("{save} --resume"));
            assert!(lab.wait_past(&mut child, "cut", past), "it trains");
            assert!(kill(flag, child.id()).success());
            let end = child.wait_with_output().expect("a child");
            let said = text_of(&end);
            assert_eq!(end.status.code(), Some(75), "{said}");
            let saved = lab.newest("cut");
            let line = said.lines().last().expect("a line");
            let want = format!("stopped by {name} after step {saved}; saved: go on with");
            assert!(line.contains(&want) && line.contains("--resume"), "{line} lacks {want}");
            let last = lab.rows("cut", "step").last().and_then(|row| row["step"].as_u64());
            assert_eq!(last, Some(saved), "no step is lost");
            past = saved + 1 + n as u64;
        }
    }
    lab.train_well("cut", steps, &format!("{save} --resume"));
    same_end(&lab, "whole", "cut", steps);
}

#[test]
fn time_that_is_over_stops_as_a_signal_does() {
    let lab = Lab::new();
    let end = lab.train("run", 1_000_000, "--exit-after 1.5s");
    let said = text_of(&end);
    assert_eq!(end.status.code(), Some(75), "{said}");
    // A machine that is busy may not come to a first step in that time.
    let saved = lab.newest("run");
    let want = match saved {
        0 => "stopped by --exit-after after step 0; no step was taken".into(),
        n => format!("stopped by --exit-after after step {n}; saved"),
    };
    assert!(said.contains(&want), "{said} lacks {want}");
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let lab = Lab::new();
    // While half a million documents of the starter corpus are made, which takes long.
    let line = Lab::line("run", 1_000_000, "").replace("--data text.txt", "");
    let mut child = lab.program(&line).spawn().expect("the program starts");
    while !lab.at("run/lock").exists() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(kill("-INT", child.id()).success());
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(kill("-INT", child.id()).success());
    assert_eq!(child.wait().expect("a child").code(), Some(130));
}

#[test]
fn a_second_trainer_and_a_prune_are_refused_while_one_trains() {
    let lab = Lab::new();
    let mut first = lab.start("run", 1_000_000, "--save-every 3");
    assert!(lab.wait_past(&mut first, "run", 4), "it trains");
    let second = lab.train("run", 1_000_000, "--resume");
    let said = text_of(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {} on ", first.id())), "{said}");
    let prune = lab.program("checkpoint prune run --keep 1").output().expect("the program starts");
    assert!(text_of(&prune).contains("in use by process"), "{}", text_of(&prune));
    assert!(kill("-TERM", first.id()).success());
    assert_eq!(first.wait().expect("a child").code(), Some(75));
    let prune = lab.program("checkpoint prune run --keep 1").output().expect("the program starts");
    assert!(prune.status.success(), "{}", text_of(&prune));
}

#[test]
fn a_supervisor_passes_a_signal_on() {
    let lab = Lab::new();
    let mut supervisor = lab.start("run", 1_000_000, "--supervise");
    assert!(lab.wait_past(&mut supervisor, "run", 3), "it trains");
    assert!(kill("-INT", supervisor.id()).success());
    let end = supervisor.wait_with_output().expect("a child");
    assert_eq!(end.status.code(), Some(75), "{}", text_of(&end));
    assert!(text_of(&end).contains("stopped by SIGINT after step"), "{}", text_of(&end));
}
