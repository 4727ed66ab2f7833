//! Everything that flags decide; the defaults are the safe ones.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::auth::Keys;
use crate::{Error, Result};

/// Most bytes of a request's body.
pub(crate) const MOST_BODY: usize = 2 << 20;
/// Most bytes of a request's head.
pub(crate) const MOST_HEAD: usize = 32 << 10;
/// Most headers of a request.
pub(crate) const MOST_HEADERS: usize = 100;
/// Most messages of a conversation.
pub(crate) const MOST_MESSAGES: usize = 500;
/// Most samples of a request.
pub(crate) const MOST_SAMPLES: usize = 8;
/// Most prompts of a text completion.
pub(crate) const MOST_PROMPTS: usize = 64;
/// Connections held at once; more wait in the system's queue.
pub(crate) const MOST_CONNECTIONS: usize = 1024;

/// What a server is told about itself.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys that clients must show; none: whoever reaches the address may ask.
    pub keys: Keys,
    /// Names, beside localhost and plain addresses, that the Host header may have.
    pub hosts: Vec<String>,
    /// Origins whose pages may ask from a browser, e.g. `https://chat.example`.
    pub cors_origins: Vec<String>,
    /// The model, as clients see it.
    pub model: ModelInfo,
    /// What it runs on, in words.
    pub device: String,
    /// The program's version.
    pub version: String,
    /// What a request gets that does not say.
    pub defaults: Defaults,
    /// Times after which a client is given up.
    pub timeouts: Timeouts,
    /// The file of conversations, if the server keeps them.
    pub history: Option<PathBuf>,
    /// The directory of training runs, if the page may show them.
    pub runs: Option<PathBuf>,
    /// One line a request on standard error: never what was said.
    pub log_requests: bool,
}

/// The model, as clients see it.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Its name in the API.
    pub id: String,
    /// How many there are.
    pub parameters: u64,
    /// L.
    pub n_layer: usize,
    /// C.
    pub n_embd: usize,
    /// When it was trained, seconds since 1970; 0 when unknown.
    pub created: u64,
}

/// What a request gets that does not say.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// Temperature.
    pub temperature: f32,
    /// Top-k; none: all.
    pub top_k: Option<usize>,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

/// Times after which a client is given up.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the head of a request.
    pub head: Duration,
    /// For its body.
    pub body: Duration,
    /// For an answer, the queue included.
    pub answer: Duration,
    /// For a reader that takes nothing.
    pub write: Duration,
    /// For requests under way when the server is told to stop.
    pub drain: Duration,
    /// Between two signs of life on a quiet stream.
    pub ping: Duration,
    /// How long a resumable stream goes on with nobody listening, and is kept after its end.
    pub alone: Duration,
    /// See `alone`.
    pub kept: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            answer: Duration::from_secs(600),
            write: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            ping: Duration::from_secs(15),
            alone: Duration::from_secs(60),
            kept: Duration::from_secs(120),
        }
    }
}

impl Config {
    /// On 127.0.0.1:8000, for this machine alone.
    pub fn new(model: ModelInfo) -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            keys: Keys::default(),
            hosts: Vec::new(),
            cors_origins: Vec::new(),
            model,
            device: String::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            defaults: Defaults { temperature: 0.6, top_k: Some(50), max_tokens: 512 },
            timeouts: Timeouts::default(),
            history: None,
            runs: None,
            log_requests: false,
        }
    }

    /// Errors: [`Error::NoKey`] for an address that others reach, without a key; [`Error::Flag`] for an
    /// origin that is none.
    pub fn check(&self) -> Result<()> {
        if !self.address.ip().is_loopback() && self.keys.is_empty() {
            return Err(Error::NoKey { address: self.address });
        }
        for origin in &self.cors_origins {
            let after = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
            if !after.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
                let hint = "give an origin such as https://chat.example, without a path; there is no wildcard";
                return Err(Error::Flag { flag: "--cors-origin", value: origin.clone(), hint });
            }
        }
        Ok(())
    }
}
