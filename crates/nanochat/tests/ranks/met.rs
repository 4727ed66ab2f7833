//! Ranks that do not find each other, or were not started alike: told within 10 seconds, on every rank.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::lab::{Lab, text_of};
use crate::same::line;

fn port() -> u16 {
    let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    probe.local_addr().expect("bound").port()
}

/// One rank, started by hand.
fn rank(lab: &Lab, (rank, world, port): (usize, usize, u16), line: &str) -> Command {
    let mut command = lab.program(line);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What all of them said, none of which may succeed or take 10 seconds.
fn refused(ranks: Vec<Command>) -> Vec<String> {
    let since = Instant::now();
    let started: Vec<Child> =
        ranks.into_iter().map(|mut c| c.spawn().expect("the program starts")).collect();
    let mut said = Vec::new();
    for child in started {
        let end = child.wait_with_output().expect("a child");
        assert!(!end.status.success(), "{}", text_of(&end));
        said.push(text_of(&end));
    }
    let seconds = since.elapsed().as_secs_f64();
    println!("refused after {seconds:.1}s: {}", said[0].trim());
    assert!(seconds < 10.0, "{seconds}s");
    said
}

#[test]
fn a_missing_rank_is_named() {
    let lab = Lab::new();
    let port = port();
    // Three seconds instead of nine: a machine that is busy starts processes late.
    let line = line("missing", 4, "--rank-wait 3s");
    let said = refused([0, 1, 3].map(|r| rank(&lab, (r, 4, port), &line)).into());
    for text in said {
        assert!(text.contains("rank 2 of 4 did not come to 127.0.0.1"), "{text}");
    }
    // Without rank 0 there is nobody to go to.
    let said = refused(vec![rank(&lab, (1, 2, self::port()), &line)]);
    assert!(said[0].contains("rank 1 cannot reach rank 0 at 127.0.0.1"), "{said:?}");
}

#[test]
fn another_world_another_command_and_a_twin_are_named() {
    let lab = Lab::new();
    let plain = line("odd", 4, "");
    let p = port();
    for text in refused(vec![rank(&lab, (0, 2, p), &plain), rank(&lab, (1, 3, p), &plain)]) {
        assert!(text.contains("rank 1 was started for 3 ranks, rank 0 for 2"), "{text}");
    }
    let (p, other) = (port(), line("odd", 5, ""));
    for text in refused(vec![rank(&lab, (0, 2, p), &plain), rank(&lab, (1, 2, p), &other)]) {
        assert!(text.contains("rank 1 was started with other flags"), "{text}");
        assert!(text.contains("--num-iterations 5"), "{text}");
    }
    let p = port();
    let twins = [0, 1, 1].map(|r| rank(&lab, (r, 3, p), &plain));
    for text in refused(twins.into()) {
        assert!(text.contains("two processes that call themselves rank 1"), "{text}");
    }
    // What the environment says must make sense.
    let said = refused(vec![rank(&lab, (4, 4, p), &plain)]);
    assert!(said[0].contains("RANK=4 is outside of WORLD_SIZE=4"), "{said:?}");
}

#[test]
fn launch_says_what_it_cannot_start() {
    let lab = Lab::new();
    for (line, why) in [
        ("launch --nproc 0 -- train base".to_owned(), "--nproc 0 starts nothing"),
        ("launch --nproc 2 -- chat".to_owned(), "not \"chat\""),
        ("launch --nproc 2 -- train base --supervise".to_owned(), "give the run with --run"),
        (line("x", 4, "--comm tcp"), "no launcher says that there are"),
    ] {
        let end = lab.program(&line).output().expect("the program starts");
        assert_eq!(end.status.code(), Some(1), "{}", text_of(&end));
        assert!(text_of(&end).contains(why), "{}", text_of(&end));
    }
    // Rows that ranks cannot share.
    let end = lab.program(&format!("launch --nproc 3 -- {}", line("x", 4, ""))).output();
    let end = end.expect("the program starts");
    assert!(!end.status.success());
    assert!(text_of(&end).contains("cannot be shared by 3 ranks"), "{}", text_of(&end));
}
