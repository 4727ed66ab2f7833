//! Bytes on the socket that no client should send: each gets an answer or an end, none harms the next.

use std::io::{Read, Write};
use std::net::Shutdown;

use serde_json::json;

use crate::script::Play;
use crate::wire::{parse, start};

const CHAT: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}";

/// The status of the first answer, 0 if the connection just ended.
fn status(bytes: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(bytes);
    text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

#[test]
fn every_kind_of_broken_head_has_its_answer() {
    let server = start(Play::Text("x"));
    let many: String = (0..200).map(|i| format!("h{i}: x\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(64 << 10));
    let path = format!("/{}", "p".repeat(64 << 10));
    let host = "Host: localhost\r\n";
    let close = "Connection: close\r\n";
    let cases: Vec<(String, &[u16])> = vec![
        ("\r\n\r\n".into(), &[0, 400]),
        ("nonsense\r\n\r\n".into(), &[0, 400]),
        ("GET\r\n\r\n".into(), &[0, 400]),
        ("GET /health\r\n\r\n".into(), &[0, 400]),
        (format!("GET /health HTTP/9.9\r\n{host}\r\n"), &[0, 400, 505]),
        (format!("GET /health HTTP/1.1\r\n{many}{host}\r\n"), &[431]),
        (format!("GET /health HTTP/1.1\r\n{long}{host}\r\n"), &[431]),
        (format!("GET {path} HTTP/1.1\r\n{host}\r\n"), &[414, 431]),
        (format!("GET /hea\0lth HTTP/1.1\r\n{host}\r\n"), &[400]),
        (format!("GET /health HTTP/1.1\r\nbad header\r\n{host}\r\n"), &[400]),
        (format!("GET /health HTTP/1.1\r\nx : y\r\n{host}\r\n"), &[400]),
        (format!("GET /health HTTP/1.1\r\nx: a\0b\r\n{host}\r\n"), &[400]),
        (format!("GET /health HTTP/1.1\r\n{close}\r\n"), &[400]),
        (format!("GET /health HTTP/1.1\r\n{host}{host}{close}\r\n"), &[400]),
        (format!("GET /health HTTP/1.0\r\n{host}\r\n"), &[200]),
        ("GET /health HTTP/1.0\r\n\r\n".into(), &[400]),
        (format!("GET http://localhost/health HTTP/1.1\r\n{host}{close}\r\n"), &[200]),
        (format!("GET http://evil.example/health HTTP/1.1\r\n{host}{close}\r\n"), &[403]),
        (format!("GET //v1/models HTTP/1.1\r\n{host}{close}\r\n"), &[404]),
        (format!("GET /assets/..%2f..%2fCargo.toml HTTP/1.1\r\n{host}{close}\r\n"), &[404]),
        (format!("GET /assets/%2e%2e HTTP/1.1\r\n{host}{close}\r\n"), &[404]),
        (format!("GET /assets/../index.html HTTP/1.1\r\n{host}{close}\r\n"), &[404]),
        (format!("GET /assets/%00 HTTP/1.1\r\n{host}{close}\r\n"), &[404]),
        (format!("GET /assets/%ff HTTP/1.1\r\n{host}{close}\r\n"), &[400, 404]),
        (format!("BREW /health HTTP/1.1\r\n{host}{close}\r\n"), &[405]),
        (format!("POST /health HTTP/1.1\r\n{host}{close}Content-Length: 0\r\n\r\n"), &[405]),
        (
            format!("GET /health HTTP/1.1\r\n{host}{close}X-HTTP-Method-Override: DELETE\r\n\r\n"),
            &[200],
        ),
        (format!("CONNECT localhost:80 HTTP/1.1\r\n{host}{close}\r\n"), &[400, 404, 405]),
        (format!("OPTIONS * HTTP/1.1\r\n{host}{close}\r\n"), &[400, 404, 405]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[0, 400]),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}".into(), &[0, 400]),
    ];
    for (bytes, allowed) in cases {
        let got = status(&server.raw(bytes.as_bytes()));
        let shown: String = bytes.chars().take(120).collect();
        assert!(allowed.contains(&got), "{got} for {shown:?}");
    }
    assert_eq!(server.get("/health").status, 200);
}

fn post(more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn every_kind_of_broken_body_has_its_answer() {
    let server = start(Play::Text("x"));
    let json = "Content-Type: application/json\r\n";
    let length = format!("Content-Length: {}\r\n", CHAT.len());
    let chunked = "Transfer-Encoding: chunked\r\n";
    let one = format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", CHAT.len());
    let big = 3 << 20;
    let deep = "[".repeat(100_000);
    let sized = |body: &str| format!("{json}Content-Length: {}\r\n", body.len());
    let cases: Vec<(String, Vec<u8>, &[u16])> = vec![
        (format!("{json}{length}"), CHAT.into(), &[200]),
        (format!("{json}{chunked}"), one.clone().into(), &[200]),
        (format!("{json}{length}Expect: 100-continue\r\n"), CHAT.into(), &[100, 200]),
        (length.clone(), CHAT.into(), &[415]),
        (format!("Content-Type: text/plain\r\n{length}"), CHAT.into(), &[415]),
        (
            format!("Content-Type: application/json; charset=utf-16\r\n{length}"),
            CHAT.into(),
            &[415],
        ),
        (
            format!("Content-Type: application/json;charset=\"UTF-8\"\r\n{length}"),
            CHAT.into(),
            &[200],
        ),
        (format!("{json}{length}Content-Encoding: gzip\r\n"), CHAT.into(), &[415]),
        (format!("{json}{length}{chunked}"), one.into(), &[200, 400]),
        (format!("{json}{length}Content-Length: 3\r\n"), CHAT.into(), &[400]),
        (format!("{json}Content-Length: -1\r\n"), CHAT.into(), &[400]),
        (format!("{json}Content-Length: 99999999999999999999\r\n"), CHAT.into(), &[400]),
        (format!("{json}{chunked}"), "zz\r\nabc\r\n0\r\n\r\n".into(), &[400]),
        (format!("{json}{chunked}"), "ffffffffffffffff\r\nabc".into(), &[400, 408, 413]),
        (format!("{json}Content-Length: {big}\r\n"), vec![b' '; 100], &[413]),
        (format!("{json}Content-Length: {big}\r\n"), vec![b' '; big], &[0, 413]),
        (sized(&deep), deep.clone().into(), &[400]),
        (sized(""), vec![], &[400]),
        (sized("\u{feff}{}"), "\u{feff}{}".into(), &[400]),
        (format!("{json}Content-Length: 3\r\n"), vec![b'"', 0xff, b'"'], &[400]),
        (sized("{} {}"), "{} {}".into(), &[400]),
        (sized("{\"messages\": [],}"), "{\"messages\": [],}".into(), &[400]),
    ];
    for (head, body, allowed) in cases {
        let got = status(&server.raw(&post(&head, &body)));
        assert!(allowed.contains(&got), "{got} for {head:?}, {} bytes", body.len());
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    let server = start(Play::Text("hello"));
    let body = format!("{}, \"n\": 2, \"n\": 1}}", &CHAT[..CHAT.len() - 1]);
    let answer =
        server.ask("POST", "/v1/chat/completions", &[("Content-Type", "application/json")], &body);
    assert_eq!(answer.json()["choices"].as_array().unwrap().len(), 1);
}

#[test]
fn requests_in_a_pipeline_are_answered_in_their_order() {
    let server = start(Play::Text("x"));
    let two = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n\
               GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let text = String::from_utf8(server.raw(two.as_bytes())).unwrap();
    let statuses: Vec<_> =
        text.match_indices("HTTP/1.1 ").map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404"]);
}

#[test]
fn whoever_sends_nothing_or_half_is_let_go() {
    let server = start(Play::Text("x"));
    let half = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n";
    let body = format!("{half}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{");
    for (bytes, allowed) in [("", [0, 408]), (half, [0, 408]), (body.as_str(), [408, 408])] {
        let got = status(&server.raw(bytes.as_bytes()));
        assert!(allowed.contains(&got), "{got} for {bytes:?}");
    }
}

#[test]
fn half_of_a_connection_is_no_connection() {
    let server = start(Play::Text("x"));
    let mut stream = server.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert!([0, 400].contains(&status(&all)));
}

#[test]
fn every_answer_says_what_browsers_may_do_with_it() {
    let server = start(Play::Text("x"));
    for path in ["/", "/health", "/nothing", "/v1/models", "/assets/none.js", "/api/conversations"]
    {
        let answer = server.get(path);
        for name in ["content-security-policy", "x-request-id", "referrer-policy"] {
            assert!(answer.header(name).is_some(), "{path} lacks {name}");
        }
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let csp = answer.header("content-security-policy").unwrap();
        assert!(csp.starts_with("default-src 'none'; script-src 'self';"), "{csp}");
    }
    let error = server.get("/nothing").json();
    assert_eq!(error["error"]["type"], "not_found_error");
    assert_eq!(error["error"]["param"], json!(null));
}

#[test]
fn an_answer_to_http_1_0_is_not_chunked() {
    let server = start(Play::Text("hello"));
    let body = format!("{}, \"stream\": true}}", &CHAT[..CHAT.len() - 1]);
    let bytes = format!(
        "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = parse(&server.raw(bytes.as_bytes()));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
}
