//! `serve --history` killed at any moment while conversations are written: what the client was told is kept, is.
//!
//! 8 kills; `NANOCHAT_THOROUGH=1` makes it 200.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nanochat_engine::rng::uniform;
use serde_json::{Value, json};

use super::{JSON, Served, ask, serve, toy_run};

/// What a client knows of a conversation: turns that the server said it keeps, and whether one more was sent
/// to which no answer came.
#[derive(Clone, Debug, Default)]
struct Known {
    rev: u64,
    turns: usize,
    is_open: bool,
}

/// A conversation with so many turns: each is long enough that a write is more than one page of the file.
fn document(id: &str, turns: usize) -> Value {
    let node = |turn| json!({"id": format!("{id}-{turn}"), "role": "user", "content": format!("{turn} ").repeat(700)});
    json!({"id": id, "title": format!("turn {turns}"), "updated": format!("2026-11-27T12:00:{:02}Z", turns % 60),
        "nodes": (0..turns).map(node).collect::<Vec<_>>()})
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("")
}

fn body(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).unwrap_or(Value::Null)
}

/// As [`ask`]; none if the connection ended before a whole answer.
fn try_ask(address: &str, method: &str, path: &str, headers: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}");
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    // A head that came whole is an answer: the server says 200 after the commit.
    answer.contains("\r\n\r\n").then_some(answer)
}

/// Adds turns to conversations until the server is gone; what it acknowledged.
fn write_on(address: &str, writer: usize, kill: usize) -> HashMap<String, Known> {
    let mut all: HashMap<String, Known> = HashMap::new();
    for turn in 0.. {
        let id = format!("k{kill}-w{writer}-c{}", turn % 3);
        let known = all.entry(id.clone()).or_default();
        let expected = match known.rev {
            0 => "If-None-Match: *\r\n".to_owned(),
            rev => format!("If-Match: {rev}\r\n"),
        };
        known.is_open = true;
        let sent = document(&id, known.turns + 1).to_string();
        let path = format!("/api/conversations/{id}");
        let Some(answer) = try_ask(address, "PUT", &path, &(expected + JSON), &sent) else { break };
        assert_eq!(status(&answer), "200", "{answer}");
        let rev = body(&answer)["rev"].as_u64().unwrap();
        *known = Known { rev, turns: known.turns + 1, is_open: false };
    }
    all
}

/// Every conversation is as it was acknowledged, or has the one turn more that was under way.
fn check(server: &Served, known: &HashMap<String, Known>) {
    for (id, known) in known {
        let answer = ask(&server.address, "GET", &format!("/api/conversations/{id}"), "", "");
        if known.turns == 0 && status(&answer) == "404" {
            continue;
        }
        assert_eq!(status(&answer), "200", "{id}, {known:?}: {answer}");
        let found = body(&answer);
        let turns = found["nodes"].as_array().unwrap().len();
        let may = known.turns..=known.turns + usize::from(known.is_open);
        assert!(may.contains(&turns), "{id}: {turns} turns, acknowledged {known:?}");
        assert_eq!(found["nodes"], document(id, turns)["nodes"], "{id} is torn");
    }
}

#[test]
fn a_kill_loses_no_turn_that_was_acknowledged() {
    let thorough = std::env::var_os("NANOCHAT_THOROUGH").is_some();
    let kills = if thorough { 200 } else { 8 };
    let home = tempfile::tempdir().unwrap();
    toy_run(home.path());
    let (mut acknowledged, mut under_way) = (0, 0);
    for kill in 0..kills {
        let mut server = serve(home.path(), &["--history"]);
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let address = server.address.clone();
                std::thread::spawn(move || write_on(&address, writer, kill))
            })
            .collect();
        // Any moment of the first 60 ms of writing, some before the first write.
        std::thread::sleep(Duration::from_secs_f64(0.06 * uniform(5, kill as u64, 0)));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let known: HashMap<String, Known> =
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        acknowledged += known.values().map(|known| known.turns).sum::<usize>();
        under_way += known.values().filter(|known| known.is_open).count();
        check(&serve(home.path(), &["--history"]), &known);
    }
    let set_aside = std::fs::read_dir(home.path()).unwrap().flatten();
    let names: Vec<_> = set_aside.map(|e| e.file_name().into_string().unwrap()).collect();
    let history = |name: &&String| name.starts_with("history");
    let kept = ["history.sqlite", "history.sqlite-wal", "history.sqlite-shm"];
    let others: Vec<_> =
        names.iter().filter(history).filter(|n| !kept.contains(&n.as_str())).collect();
    assert!(others.is_empty(), "the database was taken for broken: {others:?}");
    println!("{kills} kills: {acknowledged} turns acknowledged, {under_way} under way, none lost");
    assert!(acknowledged > 0, "nothing was written before a kill");
}
