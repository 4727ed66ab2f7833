//! A run that is killed again and again ends as one that never was.

use std::process::Stdio;

use crate::lab::{Draws, Lab, at_most, same_end, text_of};

const STEPS: u64 = 300;

#[test]
fn a_run_killed_at_random_ends_in_the_same_weights() {
    let lab = Lab::new();
    let save = "--save-every 5";
    lab.train_well("whole", STEPS, save);
    let (mut draws, kills) = (Draws(11), at_most(4, 100));
    let mut killed = 0;
    // Half of the kills while checkpoints are written beside the steps.
    let resume = format!("{save} --resume");
    let beside = format!("{resume} --async-save");
    // The first to reach the end is not the last: there are as many kills as were asked for.
    while killed < kills {
        let from = lab.newest("cut");
        let room = (2 * (STEPS as usize) / kills).max(12);
        let past = (from + draws.below(room) as u64).min(STEPS - 2);
        let how = if killed % 2 == 0 { &resume } else { &beside };
        let mut child = lab.start("cut", STEPS, how);
        if !lab.wait_past(&mut child, "cut", past) {
            let end = child.wait_with_output().expect("a child");
            assert!(end.status.success(), "after {killed} kills: {}", text_of(&end));
            std::fs::remove_dir_all(lab.at("cut")).expect("a finished run");
            continue;
        }
        child.kill().expect("it runs");
        child.wait().expect("a child");
        killed += 1;
        assert!(lab.newest("cut") >= from, "kill {killed}: a step that was committed is gone");
    }
    lab.train_well("cut", STEPS, &resume);
    same_end(&lab, "whole", "cut", STEPS);
}

#[test]
fn a_supervised_run_goes_on_after_a_kill_and_ends_a_crash_loop() {
    let lab = Lab::new();
    let save = "--save-every 5";
    lab.train_well("whole", STEPS, save);
    let mut supervisor = lab.start("cut", STEPS, &format!("{save} --supervise"));
    assert!(lab.wait_past(&mut supervisor, "cut", 7), "it trains");
    let lock = std::fs::read_to_string(lab.at("cut/lock")).expect("a lock");
    let lock: serde_json::Value = serde_json::from_str(&lock).expect("JSON");
    let trainer = lock["pid"].as_u64().expect("a number");
    assert_ne!(trainer, u64::from(supervisor.id()));
    let kill = std::process::Command::new("kill").args(["-KILL", &trainer.to_string()]).status();
    assert!(kill.expect("kill").success());
    let end = supervisor.wait_with_output().expect("a child");
    assert!(end.status.success(), "{}", text_of(&end));
    assert!(text_of(&end).contains("ALARM: the trainer ended with signal: 9"), "{}", text_of(&end));
    same_end(&lab, "whole", "cut", STEPS);
    // A run that is there is not gone on with unless that is asked for.
    let end = lab.train("cut", STEPS, "--supervise");
    assert!(text_of(&end).contains("already holds checkpoints"), "{}", text_of(&end));
    // What fails at once fails three times, and then that is said.
    let line = Lab::line("loop", STEPS, "--supervise").replace("text.txt", "missing.txt");
    let mut command = lab.program(&line);
    let end = command.stdin(Stdio::null()).output().expect("the program starts");
    let said = text_of(&end);
    assert_eq!(end.status.code(), Some(1), "{said}");
    assert!(said.contains("a crash loop: 3 times"), "{said}");
    assert_eq!(said.matches("missing.txt").count(), 3, "{said}");
    // What no start can help is passed on.
    let end = lab.train("bad", 30, "--supervise --inject-nan 3:1000");
    assert_eq!(end.status.code(), Some(65), "{}", text_of(&end));
    assert_eq!(text_of(&end).matches("stopped for good").count(), 1, "{}", text_of(&end));
}
