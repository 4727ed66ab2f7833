//! Flags of `serve`, and the server's configuration from them.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use nanochat_serve::auth::Keys;
use nanochat_serve::config::{Defaults, Timeouts};
use nanochat_serve::{Config, ModelInfo};

use crate::cli::Weights;
use crate::cmd::chat::ModelSource;
use crate::machine::VERSION;
use crate::run_dir::base_dir;

/// Flags of `serve`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    nanochat serve\n  \
    nanochat serve runs/d4 --port 9000 --history\n  \
    nanochat serve --host 0.0.0.0 --api-key-file key.txt --allow-host chat.example\n  \
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n       \
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub struct ServeArgs {
    #[command(flatten)]
    pub which: Which,
    /// Address to listen on; any other than this machine's own asks for a key.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(short, long, default_value_t = 8000, value_name = "PORT")]
    port: u16,
    /// Key that clients must show; other users of this machine can see it in the process list.
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// File of keys, one a line.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Name that this server is reached by, beside localhost and plain addresses.
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Web page that may ask from a browser, such as `https://chat.example`.
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Keep the page's conversations on this machine, not in the browser [default FILE:
    /// history.sqlite in the base directory].
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    history: Option<Option<PathBuf>>,
    /// Directory of training runs that the page shows (default: runs in the base directory).
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Most tokens of an answer whose request does not say.
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_tokens: usize,
    /// Temperature of a request that does not say.
    #[arg(short, long, default_value_t = 0.6, value_name = "T")]
    temperature: f32,
    /// Top-k of a request that does not say; 0: all.
    #[arg(short = 'k', long, default_value_t = 50, value_name = "K")]
    top_k: usize,
    /// Seconds that an answer may take, waiting included.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    request_timeout: u64,
    /// Seconds that requests under way get when the server is told to stop.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    drain_timeout: u64,
    /// Open the page in a browser.
    #[arg(long)]
    pub open: bool,
    /// One line a request on standard error, without what was said.
    #[arg(long)]
    log_requests: bool,
}

/// Which model is opened, and how.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// A run, a stage of it, or a checkpoint (default: the run that changed last).
    #[arg(value_name = "RUN|CHECKPOINT")]
    pub run: Option<PathBuf>,
    /// Which model of the run (default: rl, else sft, else base).
    #[arg(short = 'i', long, value_enum)]
    pub source: Option<ModelSource>,
    /// Step to open (default: the newest whole one).
    #[arg(short, long, value_name = "N")]
    pub step: Option<u64>,
    /// In what form the weights of the linear layers and the head are read; int8 answers fastest.
    #[arg(long, value_enum, default_value_t = Weights::Auto)]
    pub weights: Weights,
    /// Tokens of prompt and answer together (default: what the model was trained with).
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Name of the model in the API (default: the run's name).
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Answers that are generated at once; memory for this many whole contexts is taken at the start.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub rows: usize,
    /// Requests that may wait; more get 429.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub queue: usize,
}

impl Which {
    /// The flags that give another process the same.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: Option<String>| {
            all.extend(value.map(|value| format!("--{name}={value}").into()));
        };
        let name = |value: Option<PossibleValue>| value.map(|v| v.get_name().to_owned());
        flag("source", self.source.and_then(|source| name(source.to_possible_value())));
        flag("step", self.step.map(|step| step.to_string()));
        flag("weights", name(self.weights.to_possible_value()));
        flag("context", self.context.map(|context| context.to_string()));
        flag("model-name", self.model_name.clone());
        flag("rows", Some(self.rows.to_string()));
        flag("queue", Some(self.queue.to_string()));
        all.extend(self.run.iter().map(|run| run.clone().into_os_string()));
        all
    }
}

impl ServeArgs {
    /// What the server is told; the model is filled in when it is open.
    ///
    /// Errors: flags that cannot be used.
    pub fn config(&self) -> Result<Config> {
        let host = match self.host.as_str() {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            given => given.parse().with_context(|| {
                format!("--host is {given:?}: give an address such as 127.0.0.1 or 0.0.0.0")
            })?,
        };
        if self.max_tokens == 0 {
            bail!("--max-tokens is 0: give 1 or more");
        }
        // Refused here rather than in each request.
        let top_k = (self.top_k > 0).then_some(self.top_k);
        nanochat_engine::SampleOptions::new(self.temperature, top_k, 0)?;
        let runs = self.runs.clone().unwrap_or_else(|| base_dir().join("runs"));
        if self.runs.is_some() && !runs.is_dir() {
            bail!("--runs {} is no directory", runs.display());
        }
        let seconds = Duration::from_secs;
        Ok(Config {
            address: SocketAddr::new(host, self.port),
            keys: self.keys()?,
            hosts: self.allow_host.clone(),
            cors_origins: self.cors_origin.clone(),
            version: VERSION.into(),
            defaults: Defaults {
                temperature: self.temperature,
                top_k,
                max_tokens: self.max_tokens,
            },
            timeouts: Timeouts {
                answer: seconds(self.request_timeout),
                drain: seconds(self.drain_timeout),
                ..Timeouts::default()
            },
            history: self
                .history
                .clone()
                .map(|file| file.unwrap_or_else(|| base_dir().join("history.sqlite"))),
            runs: runs.is_dir().then_some(runs),
            log_requests: self.log_requests,
            ..Config::new(ModelInfo::default())
        })
    }

    fn keys(&self) -> Result<Keys> {
        let mut keys = Keys::default();
        for key in &self.api_key {
            keys.add(key)?;
        }
        if let Some(file) = &self.api_key_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read --api-key-file {}", file.display()))?;
            keys.add_lines(&text).with_context(|| format!("--api-key-file {}", file.display()))?;
            if keys.is_empty() {
                bail!("--api-key-file {} holds no key: write one on a line", file.display());
            }
        }
        Ok(keys)
    }
}
