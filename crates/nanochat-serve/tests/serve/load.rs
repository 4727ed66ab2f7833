//! Many at once, too many, gone in the middle, and the end of a server.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use crate::script::{Play, Script};
use crate::wire::{Running, config, events, parse, request, start, start_with, wait_for};

const PATH: &str = "/v1/chat/completions";

fn chat(stream: bool) -> Vec<u8> {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": stream});
    request("POST", PATH, &[("Content-Type", "application/json")], &body.to_string())
}

/// A request under way, with the first bytes of its answer if it streams.
fn begin(server: &Running, stream: bool) -> std::net::TcpStream {
    let before = server.script.prompts.lock().unwrap().len();
    let mut connection = server.connect();
    connection.write_all(&chat(stream)).unwrap();
    wait_for("the engine has it", || server.script.prompts.lock().unwrap().len() > before);
    connection
}

#[test]
fn sixty_four_streams_all_end_whole() {
    let server = start(Play::Text("a longer answer, in many events"));
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let mut connection = server.connect();
            connection.write_all(&chat(true)).unwrap();
            std::thread::spawn(move || {
                let mut all = Vec::new();
                connection.read_to_end(&mut all).unwrap();
                parse(&all)
            })
        })
        .collect();
    for client in clients {
        let answer = client.join().unwrap();
        assert_eq!((answer.status, answer.events().last().unwrap().as_str()), (200, "[DONE]"));
    }
    let metrics = server.get("/metrics").body;
    for line in [
        "nanochat_request_success_total{finish_reason=\"stop\"} 64",
        "nanochat_generation_tokens_total 1984",
        "nanochat_prompt_tokens_total 384",
        "nanochat_time_to_first_token_seconds_count 64",
        "nanochat_inter_token_latency_seconds_count 1920",
        "nanochat_e2e_request_latency_seconds_count 64",
        "nanochat_cancelled_total 0",
        "http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"} 64",
        "nanochat_requests_running 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn a_full_queue_is_429_with_a_time_to_come_back() {
    let server = start(Play::Full);
    let answer = server.post(PATH, &json!({"messages": [{"role": "user", "content": "x"}]}));
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("7")));
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    assert!(
        server.get("/metrics").body.contains("nanochat_rejected_total{reason=\"queue_full\"} 1")
    );
}

#[test]
fn those_that_were_taken_finish_while_others_are_refused() {
    let server = start_with(config(), Script::with_slots(Play::Hang, 4));
    let taken: Vec<_> = (0..4).map(|_| begin(&server, true)).collect();
    for _ in 0..8 {
        let answer = server.post(PATH, &json!({"messages": [{"role": "user", "content": "x"}]}));
        assert_eq!(answer.status, 429);
        assert_eq!(server.get("/health").status, 200);
    }
    server.script.open_gate();
    for mut connection in taken {
        let answer = crate::wire::read(&mut connection);
        assert_eq!(answer.events().last().unwrap(), "[DONE]");
    }
}

#[test]
fn a_client_that_leaves_is_noticed_in_a_stream_and_out_of_one() {
    let server = start(Play::Hang);
    for (number, stream) in [true, false, true, false].into_iter().enumerate() {
        drop(begin(&server, stream));
        wait_for("the listener is gone", || {
            server.script.gone.load(Ordering::SeqCst) == number + 1
        });
    }
    wait_for("it is counted", || {
        server.get("/metrics").body.contains("nanochat_cancelled_total 4")
    });
}

#[test]
fn a_quiet_stream_says_that_it_lives() {
    let server = start(Play::Hang);
    let mut connection = begin(&server, true);
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(": ping\n\n") {
        let n = connection.read(&mut buffer).unwrap();
        assert!(n > 0, "the stream ended: {text}");
        text += &String::from_utf8_lossy(&buffer[..n]);
    }
    server.script.open_gate();
    connection.read_to_string(&mut text).unwrap();
    let answer = parse(text.as_bytes());
    assert_eq!(events(&answer.body).last().unwrap(), "[DONE]");
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off() {
    let mut patient = config();
    patient.timeouts.body = Duration::from_secs(20);
    let mut script = Script::new(Play::Echo);
    std::sync::Arc::get_mut(&mut script).unwrap().context = 1024;
    let server = start_with(patient, script);
    // Some 20 MB of events: more than the buffers of two sockets hold.
    let prompts = vec!["z".repeat(700); 64];
    let body = json!({"prompt": prompts, "n": 8, "echo": true, "logprobs": 5, "max_tokens": 1, "stream": true});
    let mut connection = server.connect();
    let bytes = request(
        "POST",
        "/v1/completions",
        &[("Content-Type", "application/json")],
        &body.to_string(),
    );
    connection.write_all(&bytes).unwrap();
    wait_for("it was taken", || server.script.prompts.lock().unwrap().len() == 64);
    // Only the one that asks for metrics is left.
    wait_for("it is no longer under way", || {
        server.get("/metrics").body.contains("nanochat_http_requests_under_way 1\n")
    });
    let mut all = Vec::new();
    let _ = connection.read_to_end(&mut all);
    assert!(!String::from_utf8_lossy(&all).contains("[DONE]"), "all {} bytes came", all.len());
}

#[test]
fn a_fault_of_the_server_is_a_500_and_it_lives() {
    let server = start(Play::Panic);
    for _ in 0..3 {
        let answer = server.post(PATH, &json!({"messages": [{"role": "user", "content": "x"}]}));
        assert_eq!(answer.status, 500);
        assert_eq!(answer.json()["error"]["type"], "server_error");
        assert!(answer.header("x-request-id").is_some());
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn draining_refuses_what_is_new_and_finishes_what_is_under_way() {
    let Running { server, script, address } = start(Play::Hang);
    let running = Running { server, script, address };
    let (mut streaming, mut whole) = (begin(&running, true), begin(&running, false));
    let Running { server, script, .. } = running;
    let draining = std::thread::spawn(move || server.drain());
    let ask = |path: &str| {
        let mut connection = std::net::TcpStream::connect(address).ok()?;
        connection.write_all(&request("GET", path, &[], "")).ok()?;
        let mut all = Vec::new();
        connection.read_to_end(&mut all).ok()?;
        (!all.is_empty()).then(|| parse(&all))
    };
    wait_for("the server drains", || ask("/ready").is_some_and(|a| a.status == 503));
    let refused = ask("/v1/models").unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert_eq!(ask("/health").unwrap().status, 200, "it lives until the end");
    assert!(!draining.is_finished());
    script.open_gate();
    assert_eq!(crate::wire::read(&mut streaming).events().last().unwrap(), "[DONE]");
    assert_eq!(crate::wire::read(&mut whole).json()["choices"][0]["message"]["content"], "h");
    assert_eq!(draining.join().unwrap().cut_off, 0);
    assert!(ask("/health").is_none(), "nobody listens any more");
}

#[test]
fn draining_ends_after_its_time_even_if_a_request_does_not() {
    let mut short = config();
    short.timeouts.drain = Duration::from_millis(100);
    let running = start_with(short, Script::new(Play::Hang));
    let mut connection = begin(&running, true);
    assert_eq!(running.server.drain().cut_off, 1);
    let mut all = Vec::new();
    let _ = connection.read_to_end(&mut all);
    assert!(!String::from_utf8_lossy(&all).contains("[DONE]"));
}

#[test]
fn an_answer_that_takes_too_long_ends_with_an_error() {
    let mut short = config();
    short.timeouts.answer = Duration::from_millis(100);
    let server = start_with(short, Script::new(Play::Hang));
    let whole = server.post(PATH, &json!({"messages": [{"role": "user", "content": "x"}]}));
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (504, &json!("timeout")));
    let body = json!({"messages": [{"role": "user", "content": "x"}], "stream": true});
    let last = server.post(PATH, &body).chunks().pop().unwrap();
    assert_eq!(last["error"]["code"], "timeout");
    wait_for("both were cancelled", || server.script.gone.load(Ordering::SeqCst) == 2);
}
