//! `nanochat serve` and `bench serve` as a person meets them: start, mistakes, signals.

#[cfg(unix)]
mod kills;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_gpt::checkpoint::{self, Meta};
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use serde_json::Value;

fn nanochat(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nanochat"));
    command.args(args).current_dir(home).env("NANOCHAT_BASE_DIR", home).stdin(Stdio::null());
    command
}

fn run(home: &Path, args: &[&str]) -> (Output, String) {
    let output = nanochat(home, args).output().unwrap();
    let errors = String::from_utf8(output.stderr.clone()).unwrap();
    (output, errors)
}

/// A run with random weights in `home/runs/toy`: bytes and specials.
fn toy_run(home: &Path) {
    let run = home.join("runs").join("toy");
    let tokenizer = Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new()).unwrap();
    tokenizer.save(&run.join("tokenizer").join("tokenizer.json")).unwrap();
    std::fs::write(run.join("run.json"), "{}").unwrap();
    let config = GptConfig::new(RawConfig {
        sequence_len: 128,
        vocab_size: tokenizer.vocab_size(),
        n_layer: 2,
        n_head: 2,
        n_kv_head: 2,
        n_embd: 32,
        window_pattern: "L".into(),
        ..RawConfig::default()
    })
    .unwrap();
    let be = Cpu::open(1, Precision::F32);
    let model = Nano::zeros(&be, config.clone()).unwrap();
    model.init(42).unwrap();
    let meta = Meta {
        format: checkpoint::FORMAT,
        step: 10,
        stage: "base".into(),
        model_config: config,
        tokenizer: tokenizer.fingerprint(),
        val_bpb: None,
        trainer: Value::Null,
    };
    checkpoint::save(&run.join("base"), &model, &meta, Vec::new()).unwrap();
}

/// A server that said where it listens; ended when it is dropped.
struct Served {
    child: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(home: &Path, more: &[&str]) -> Served {
    let args = [&["serve", "--port", "0", "--device", "cpu", "--threads", "1"], more].concat();
    let mut child =
        nanochat(home, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.find_map(|line| {
        let line = line.unwrap();
        line.strip_prefix("chat: http://").map(|rest| rest.split(' ').next().unwrap().to_owned())
    });
    let Some(address) = said else {
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("it did not start: {errors}");
    };
    Served { child, address }
}

fn ask(address: &str, method: &str, path: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn a_run_answers_over_http_and_the_same_seed_says_the_same() {
    let home = tempfile::tempdir().unwrap();
    toy_run(home.path());
    let server = serve(home.path(), &["--history"]);
    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "seed": 7, "logit_bias": {"260": -100}}"#;
    let chat = || ask(&server.address, "POST", "/v1/chat/completions", JSON, body);
    let (first, second) = (chat(), chat());
    assert!(first.starts_with("HTTP/1.1 200 OK"), "{first}");
    let said = |answer: &str| -> Value {
        let json: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        json["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(said(&first), said(&second));
    let models = ask(&server.address, "GET", "/v1/models", "", "");
    assert!(
        models.contains("\"id\":\"toy\"") && models.contains("\"max_model_len\":128"),
        "{models}"
    );
    let info = ask(&server.address, "GET", "/api/info", "", "");
    assert!(info.contains("\"history\":true") && info.contains("\"runs\":true"), "{info}");
    assert!(home.path().join("history.sqlite").exists());
    assert!(ask(&server.address, "GET", "/", "", "").contains("nanochat"));
}

#[test]
fn mistakes_are_told_before_anything_is_opened() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    std::fs::write(home.path().join("empty"), "# nothing\n").unwrap();
    for (args, says) in [
        (&["--host", "0.0.0.0"][..], "--api-key-file"),
        (&["--host", "nowhere"], "--host"),
        (&["--port", &port], "--port"),
        (&["--api-key", "short"], "8 characters"),
        (&["--api-key-file", "none"], "--api-key-file"),
        (&["--api-key-file", "empty"], "no key"),
        (&["--cors-origin", "*"], "--cors-origin"),
        (&["--temperature", "9"], "temperature"),
        (&["--max-tokens", "0"], "--max-tokens"),
        (&["--runs", "none"], "--runs"),
        (&["--port", "0"], "nanochat speedrun"),
        (&["--port", "0", "none"], "none does not exist"),
    ] {
        let (output, errors) = run(home.path(), &[&["serve"], args].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(says), "{args:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_lets_what_is_under_way_finish_and_ends_with_0() {
    let home = tempfile::tempdir().unwrap();
    toy_run(home.path());
    for signal in ["-TERM", "-INT"] {
        let mut server =
            serve(home.path(), &["--api-key", "a-key-of-some-length", "runs/toy/base"]);
        let health = ask(&server.address, "GET", "/health", "", "");
        assert!(health.starts_with("HTTP/1.1 200"), "{health}");
        let refused = ask(&server.address, "GET", "/v1/models", "", "");
        assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
        let pid = server.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        assert!(TcpStream::connect(&server.address).is_err());
    }
}

#[test]
fn a_bench_asks_its_own_server_and_one_that_runs() {
    let home = tempfile::tempdir().unwrap();
    toy_run(home.path());
    let flags = ["--clients", "1,3", "--requests", "2", "--max-tokens", "5", "--words", "2"];
    let server = serve(home.path(), &[]);
    let url = format!("http://{}", server.address);
    for more in [&["--device", "cpu", "--threads", "1"][..], &["--url", &url]] {
        let (output, errors) = run(home.path(), &[&["bench", "serve"], &flags[..], more].concat());
        assert!(output.status.success(), "{errors}");
        let text = String::from_utf8(output.stdout).unwrap();
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let sweep = line["sweep"].as_array().unwrap();
        assert_eq!((sweep.len(), &sweep[1]["clients"]), (2, &Value::from(3)));
        for row in sweep {
            assert_eq!(row["errors"], 0, "{row}");
            for key in ["requests_per_sec", "tokens_per_sec", "ttft_ms_p50", "ttft_ms_p99"] {
                assert!(row[key].as_f64().unwrap() > 0.0, "{key}: {row}");
            }
        }
    }
    let (output, errors) = run(home.path(), &["bench", "serve", "--url", "http://127.0.0.1:9"]);
    assert!(!output.status.success() && errors.contains("does not answer"), "{errors}");
}

#[test]
#[cfg(target_os = "linux")]
fn requests_of_every_kind_leave_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    toy_run(home.path());
    let flags = ["--device", "cpu", "--threads", "1"];
    let case = ["bench", "serve", "--faults", "soak", "--soak", "60"];
    let (output, errors) = run(home.path(), &[&case[..], &flags].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let soak = &last["faults"]["soak"];
    assert_eq!(soak["figures"]["wrong"], 0, "{said}{errors}");
    assert_eq!(soak["figures"]["after"]["kv_usage"], 0.0, "{said}");
    assert!(output.status.success(), "{said}{errors}");
}
