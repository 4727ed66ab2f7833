//! A server on a free port, and the plainest HTTP client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nanochat_serve::config::Timeouts;
use nanochat_serve::{Config, ModelInfo, Server};
use serde_json::Value;

use crate::script::{Handle, Play, Script, tokenizer};

/// A configuration for tests: any free port, short patience.
pub fn config() -> Config {
    Config {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        timeouts: Timeouts {
            head: Duration::from_millis(400),
            body: Duration::from_millis(400),
            write: Duration::from_millis(400),
            drain: Duration::from_secs(20),
            ping: Duration::from_millis(50),
            alone: Duration::from_millis(300),
            kept: Duration::from_millis(600),
            ..Timeouts::default()
        },
        ..Config::new(ModelInfo { id: "tiny".into(), parameters: 7, ..ModelInfo::default() })
    }
}

/// A server, its script, and where it listens.
pub struct Running {
    pub server: Server,
    pub script: Arc<Script>,
    pub address: SocketAddr,
}

pub fn start(play: Play) -> Running {
    start_with(config(), Script::new(play))
}

pub fn start_with(config: Config, script: Arc<Script>) -> Running {
    let server = Server::start(config, Arc::new(Handle(Arc::clone(&script))), tokenizer()).unwrap();
    let address = server.address();
    Running { server, script, address }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|l| l.split_once(": "));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The data of each event.
    pub fn events(&self) -> Vec<String> {
        events(&self.body)
    }

    /// The events that are JSON.
    pub fn chunks(&self) -> Vec<Value> {
        let events = self.events();
        let json = events.iter().filter(|e| *e != "[DONE]");
        json.map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

/// Every frame must be comments, ids and one line of data.
pub fn events(body: &str) -> Vec<String> {
    let mut events = Vec::new();
    for frame in body.split_terminator("\n\n") {
        for line in frame.lines() {
            match line.split_once(": ") {
                Some(("data", data)) => events.push(data.to_owned()),
                Some(("" | "id", _)) => {}
                _ => panic!("a frame has the line {line:?}"),
            }
        }
    }
    events
}

impl Running {
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[("Content-Type", "application/json")], &body.to_string())
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(&request(method, path, headers, body)).unwrap();
        read(&mut stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// What the server answers to these bytes, up to the end of the connection.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may have had enough before the last byte.
        let _ = stream.write_all(bytes);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    }
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head += "Host: localhost\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

pub fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let (head, mut rest) =
        text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = String::new();
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body += &after[..size];
            rest = &after[size + 2..];
        }
    } else {
        body = rest.to_owned();
    }
    Answer { status, head: head.to_owned(), body }
}

/// Waits for something that must come.
pub fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never: {what}");
}
