//! What the page asks of the server: files, streams that are taken up again, history, runs.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::script::{Play, Script};
use crate::wire::{Running, config, request, start, start_with, wait_for};

#[test]
fn files_have_a_type_and_a_tag_and_nothing_from_elsewhere() {
    let server = start(Play::Text("x"));
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert!(page.body.contains("nanochat"));
    assert!(!page.body.contains("//cdn") && !page.body.contains("src=\"http"));
    let tag = page.header("etag").unwrap();
    let again = server.ask("GET", "/", &[("If-None-Match", tag)], "");
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(server.get("/assets/none.js").status, 404);
}

#[test]
fn info_says_what_the_page_shows() {
    let info = start(Play::Text("x")).get("/api/info").json();
    assert_eq!(
        info["model"],
        json!({"id": "tiny", "parameters": 7, "n_layer": 0, "n_embd": 0,
        "vocab_size": 265, "context": 256})
    );
    assert_eq!((&info["history"], &info["runs"]), (&json!(false), &json!(false)));
    assert_eq!(info["limits"], json!({"n": 8, "max_tokens": 256, "messages": 500}));
    assert_eq!(info["defaults"]["temperature"], 0.6);
}

fn resumable() -> Vec<u8> {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "stream": true,
        "stream_options": {"include_usage": true}});
    let headers = [("Content-Type", "application/json"), ("X-Nanochat-Resumable", "1")];
    request("POST", "/v1/chat/completions", &headers, &body.to_string())
}

/// Begins a stream that hangs after its first letter; its id, and what came so far.
fn broken_off(server: &Running) -> String {
    let mut connection = server.connect();
    connection.write_all(&resumable()).unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("id: 2\n") {
        let n = connection.read(&mut buffer).unwrap();
        text += std::str::from_utf8(&buffer[..n]).unwrap();
    }
    let head = text.lines().find_map(|l| l.strip_prefix("x-request-id: ")).unwrap();
    head.to_owned()
}

#[test]
fn a_stream_that_broke_off_is_taken_up_where_it_was() {
    let server = start(Play::Hang);
    let id = broken_off(&server);
    assert_eq!(server.script.gone.load(Ordering::SeqCst), 0, "it goes on with nobody listening");
    server.script.open_gate();
    let rest = server.get(&format!("/api/streams/{id}?after=1"));
    assert_eq!(rest.status, 200);
    let numbers: Vec<_> = rest.body.lines().filter_map(|l| l.strip_prefix("id: ")).collect();
    assert_eq!(numbers, ["2", "3", "4", "5"]);
    assert_eq!(rest.chunks()[0]["choices"][0]["delta"]["content"], "h");
    assert_eq!(rest.chunks()[0]["id"], id);
    assert_eq!(rest.events().last().unwrap(), "[DONE]");
    let all = server.get(&format!("/api/streams/{id}"));
    assert_eq!(all.events().len(), 5);
    wait_for("it is forgotten", || server.get(&format!("/api/streams/{id}")).status == 404);
    assert_eq!(server.get("/api/streams/none").status, 404);
}

#[test]
fn a_stream_that_nobody_takes_up_or_that_is_stopped_is_cancelled() {
    let server = start(Play::Hang);
    broken_off(&server);
    wait_for("alone for too long", || server.script.gone.load(Ordering::SeqCst) == 1);
    let id = broken_off(&server);
    let stopped = server.ask("DELETE", &format!("/api/streams/{id}"), &[], "");
    assert_eq!(stopped.status, 204);
    wait_for("it is cancelled", || server.script.gone.load(Ordering::SeqCst) == 2);
    assert_eq!(server.ask("DELETE", "/api/streams/none", &[], "").status, 404);
}

fn keeps_history(dir: &std::path::Path) -> Running {
    let mut config = config();
    config.history = Some(dir.join("history.sqlite"));
    start_with(config, Script::new(Play::Text("x")))
}

fn document(id: &str) -> Value {
    json!({"id": id, "title": "About cats", "updated": "2026-01-01T00:00:00Z", "nodes": [
        {"id": "a", "role": "user", "parts": [{"type": "text", "text": "What is a cat?"}]}]})
}

fn put(
    server: &Running,
    id: &str,
    condition: (&str, &str),
    document: &Value,
) -> crate::wire::Answer {
    let headers = [("Content-Type", "application/json"), condition];
    server.ask("PUT", &format!("/api/conversations/{id}"), &headers, &document.to_string())
}

#[test]
fn conversations_are_kept_changed_found_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let id = "0b0e7a52-0000-4000-8000-000000000001";
    {
        let server = keeps_history(dir.path());
        assert_eq!(server.get("/api/info").json()["history"], true);
        assert_eq!(
            put(&server, id, ("If-None-Match", "*"), &document(id)).json(),
            json!({"rev": 1})
        );
        assert_eq!(put(&server, id, ("If-Match", "1"), &document(id)).json(), json!({"rev": 2}));
        let late = put(&server, id, ("If-Match", "\"1\""), &document(id));
        assert_eq!((late.status, &late.json()["rev"]), (409, &json!(2)));
        server.server.drain();
    }
    let server = keeps_history(dir.path());
    let list = server.get("/api/conversations?q=CAT%3F&limit=5").json();
    assert_eq!(list["conversations"][0]["id"], id);
    assert_eq!(list["more"], false);
    assert_eq!(server.get("/api/conversations?q=dog").json()["conversations"], json!([]));
    let path = format!("/api/conversations/{id}");
    let headers = [("Content-Type", "application/json")];
    assert_eq!(
        server.ask("PATCH", &path, &headers, "{\"title\": \"T\"}").json(),
        json!({"rev": 3})
    );
    assert_eq!(server.get(&path).json()["title"], "T");
    assert_eq!(server.ask("DELETE", &path, &[], "").status, 204);
    assert_eq!(server.get(&path).status, 404);
    assert_eq!(server.ask("PATCH", &path, &headers, "{\"title\": \"T\"}").status, 404);
    assert_eq!(put(&server, id, ("If-Match", "3"), &document(id)).status, 404);
}

#[test]
fn documents_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = keeps_history(dir.path());
    assert_eq!(put(&server, "a", ("Accept", "*/*"), &document("a")).status, 428);
    let first = ("If-None-Match", "*");
    assert_eq!(put(&server, "a", ("If-Match", "x"), &document("a")).status, 400);
    assert_eq!(put(&server, "b", first, &document("a")).json()["error"]["param"], "id");
    assert_eq!(put(&server, "a%2Fb", first, &document("a/b")).status, 400);
    for key in ["title", "updated", "nodes"] {
        for value in [json!(null), json!(7), json!({})] {
            let mut document = document("a");
            document[key] = value;
            assert_eq!(put(&server, "a", first, &document).json()["error"]["param"], key);
        }
    }
    assert_eq!(put(&server, "a", first, &json!([])).status, 400);
    assert_eq!(server.get("/api/conversations").json()["conversations"], json!([]));
    assert_eq!(start(Play::Text("x")).get("/api/conversations").status, 404);
}

#[test]
fn runs_are_read_and_their_names_lead_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("d4");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("run.json"), "{\"command\": [\"x\"]}").unwrap();
    let rows =
        "{\"kind\":\"step\",\"stage\":\"sft\",\"step\":7,\"loss\":2.5}\n{\"kind\":\"eval\"}\n";
    std::fs::write(run.join("metrics.jsonl"), rows).unwrap();
    let mut config = config();
    config.runs = Some(dir.path().into());
    let server = start_with(config, Script::new(Play::Text("x")));
    let list = server.get("/api/runs").json()["runs"].clone();
    assert_eq!(
        (&list[0]["name"], &list[0]["step"], &list[0]["loss"]),
        (&json!("d4"), &json!(7), &json!(2.5))
    );
    let whole = server.get("/api/runs/d4").json();
    assert_eq!(whole, json!({"run": {"command": ["x"]}, "summary": null}));
    let metrics = server.get("/api/runs/d4/metrics?after=0").json();
    assert_eq!(
        (metrics["rows"].as_array().unwrap().len(), &metrics["next"]),
        (2, &json!(rows.len()))
    );
    for name in ["..", "%2e%2e", "..%2fd4", "none", "d4%00"] {
        assert_eq!(server.get(&format!("/api/runs/{name}")).status, 404, "{name}");
    }
    assert_eq!(server.get("/api/runs/d4/metrics?after=-1").status, 400);
}
