//! Who may ask: keys, hosts, origins.

use nanochat_serve::{Config, Server};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::script::{Handle, Play, Script, tokenizer};
use crate::wire::{Running, config, start, start_with};

const KEY: &str = "a-long-enough-key";

fn with_key(change: impl FnOnce(&mut Config)) -> Running {
    let mut config = config();
    config.keys.add(KEY).unwrap();
    change(&mut config);
    start_with(config, Script::new(Play::Text("x")))
}

/// Path and method of every route, from the server's own document; and those of the page.
fn routes(server: &Running) -> Vec<(String, String)> {
    let bearer = format!("Bearer {KEY}");
    let document = server.ask("GET", "/openapi.json", &[("Authorization", &bearer)], "").json();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", "x").replace("{name}", "x");
            routes.push((method.to_uppercase(), path));
        }
    }
    for path in ["/", "/train", "/assets/app.js", "/favicon.ico", "/nothing"] {
        routes.push(("GET".into(), path.into()));
    }
    routes
}

#[test]
fn every_route_but_health_asks_for_the_key() {
    let server = with_key(|_| {});
    let routes = routes(&server);
    assert!(routes.len() >= 25);
    let right = format!("Bearer {KEY}");
    let wrong = [
        vec![],
        vec![("Authorization", "Bearer wrong-key-entirely")],
        vec![("Authorization", "Bearer a-long-enough-ke")],
        vec![("Authorization", "Bearer a-long-enough-keyy")],
        vec![("Authorization", "Basic YS1sb25nLWVub3VnaC1rZXk=")],
        vec![("Authorization", KEY)],
        vec![("X-Api-Key", "")],
        vec![("Cookie", "nanochat_key=a-long-enough-key")],
    ];
    for (method, path) in &routes {
        for headers in &wrong {
            let answer = server.ask(method, path, headers, "");
            let expected = if path == "/health" { 200 } else { 401 };
            assert_eq!(answer.status, expected, "{method} {path} {headers:?}");
            assert!(!answer.body.contains(KEY) && !answer.head.contains(KEY));
        }
        for headers in [("Authorization", right.as_str()), ("X-Api-Key", KEY)] {
            let answer = server.ask(method, path, &[headers], "");
            assert!(![401, 403].contains(&answer.status), "{method} {path}: {}", answer.status);
        }
    }
}

#[test]
fn a_browser_gets_a_form_and_the_form_a_cookie() {
    let server = with_key(|_| {});
    let html = [("Accept", "text/html,application/xhtml+xml")];
    let form = server.ask("GET", "/", &html, "");
    assert_eq!(form.status, 401);
    assert!(form.body.contains("action=\"/login\"") && !form.body.contains("style="));
    let login = |body: &str| server.ask("POST", "/login", &[], body);
    assert_eq!(login("key=wrong-key").status, 401);
    assert_eq!(login("").status, 401);
    assert_eq!(login("key=wrong-key").header("set-cookie"), None);
    let entered = login(&format!("key={}", KEY.replace('-', "%2D")));
    assert_eq!((entered.status, entered.header("location")), (303, Some("/")));
    let cookie = entered.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
    assert!(!cookie.contains(KEY), "the key itself is in no cookie");
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(server.ask("GET", "/api/info", &[("Cookie", pair)], "").status, 200);
}

#[test]
fn a_name_that_is_not_ours_is_refused() {
    let server = with_key(|config| config.hosts = vec!["chat.example".into()]);
    let plain = start(Play::Text("x"));
    for (host, expected) in [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("nano.localhost", 200),
        ("chat.example", 200),
        ("chat.example:443", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("chat.example.evil.example", 403),
        ("", 403),
    ] {
        assert_eq!(server.ask("GET", "/health", &[("Host", host)], "").status, expected, "{host}");
    }
    let answer = plain.ask("GET", "/api/info", &[("Host", "rebound.example")], "");
    assert_eq!(answer.json()["error"]["code"], "host_not_allowed");
}

#[test]
fn pages_of_other_origins_may_ask_only_if_they_are_listed() {
    let mut listed = config();
    listed.cors_origins = vec!["https://chat.example".into()];
    let server = start_with(listed, Script::new(Play::Text("x")));
    let body = json!({"messages": [{"role": "user", "content": "x"}]}).to_string();
    let ask = |origin: &str, method: &str, kind: &str| {
        let headers = [("Origin", origin), ("Content-Type", kind)];
        server.ask(method, "/v1/chat/completions", &headers, &body)
    };
    let good = ask("https://chat.example", "POST", "application/json");
    assert_eq!(good.status, 200);
    assert_eq!(good.header("access-control-allow-origin"), Some("https://chat.example"));
    assert_eq!(good.header("access-control-allow-credentials"), None);
    let asked = ask("https://chat.example", "OPTIONS", "");
    assert_eq!(asked.status, 204);
    assert!(asked.header("access-control-allow-headers").unwrap().contains("authorization"));
    assert_eq!(ask("http://localhost", "POST", "application/json").status, 200, "the page itself");
    for origin in [
        "https://evil.example",
        "null",
        "http://chat.example",
        "https://chat.example.evil",
        "http://localhost:1",
    ] {
        for (method, kind) in
            [("POST", "application/json"), ("POST", "text/plain"), ("OPTIONS", "")]
        {
            let answer = ask(origin, method, kind);
            assert_eq!(answer.status, 403, "{origin} {method}");
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    let closed = start(Play::Text("x"));
    let answer = closed.ask("GET", "/api/info", &[("Origin", "https://chat.example")], "");
    assert_eq!((answer.status, answer.header("vary")), (403, None));
}

#[test]
fn an_address_that_others_reach_needs_a_key() {
    let script = || Arc::new(Handle(Script::new(Play::Text("x"))));
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let config = Config { address: address.parse().unwrap(), ..config() };
        let error = Server::start(config, script(), tokenizer()).err().unwrap().to_string();
        assert!(error.contains("--api-key-file"), "{error}");
    }
    for origin in ["*", "chat.example", "https://", "https://chat.example/path", "null"] {
        let config = Config { cors_origins: vec![origin.into()], ..config() };
        let error = Server::start(config, script(), tokenizer()).err().unwrap().to_string();
        assert!(error.starts_with("--cors-origin"), "{error}");
    }
}

#[test]
fn a_port_that_is_taken_says_so() {
    let first = start(Play::Text("x"));
    let config = Config { address: first.address, ..config() };
    let script = Arc::new(Handle(Script::new(Play::Text("x"))));
    let error = Server::start(config, script, tokenizer()).err().unwrap().to_string();
    assert!(error.contains("--port") && error.contains(&first.address.to_string()), "{error}");
}

#[test]
fn the_document_has_every_field_and_every_route_answers() {
    let server = with_key(|_| {});
    for (method, path) in routes(&server) {
        let headers = [("X-Api-Key", KEY), ("Content-Type", "application/json")];
        let answer = server.ask(&method, &path, &headers, "{}");
        assert_ne!(answer.status, 405, "{method} {path}");
        if answer.status == 404 {
            let error: Value = answer.json();
            let message = error["error"]["message"].as_str().unwrap();
            assert!(
                path == "/nothing" || !message.contains("nothing at this path"),
                "{method} {path}"
            );
        }
    }
}
