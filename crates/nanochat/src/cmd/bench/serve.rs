//! `nanochat bench serve`: a server under load, over numbers of clients.
//!
//! Each client is a thread with a connection of its own for each request, as a browser or a script
//! would have. It asks for an answer of a fixed length in events and notes when each came: the first
//! (ttft) and the gaps between the others (itl). Without `--url` the server runs in this process, over
//! a real socket: its clients then share the machine with it, and both are in the figures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nanochat_serve::{Config, Server};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cmd::serve::{Which, model};

/// Flags of `bench serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeBench {
    #[command(flatten)]
    which: Which,
    /// A server that runs already, e.g. http://127.0.0.1:8000.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Its key.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64, 256], value_name = "N,...")]
    clients: Vec<usize>,
    /// Requests of each client, one after the other.
    #[arg(long, default_value_t = 2, value_name = "N")]
    requests: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_tokens: usize,
    /// Words of each question.
    #[arg(long, default_value_t = 8, value_name = "N")]
    words: usize,
}

/// Figures of one number of clients. Times in milliseconds.
#[derive(Debug, Serialize)]
struct Row {
    clients: usize,
    requests_per_sec: f64,
    tokens_per_sec: f64,
    ttft_ms_p50: f64,
    ttft_ms_p95: f64,
    ttft_ms_p99: f64,
    itl_ms_p50: f64,
    itl_ms_p95: f64,
    itl_ms_p99: f64,
    errors: usize,
}

/// Runs `nanochat bench serve`.
pub fn run(args: &ServeBench, global: &Global) -> Result<()> {
    if args.clients.contains(&0) || args.requests == 0 || args.max_tokens == 0 {
        bail!("--clients, --requests and --max-tokens want 1 or more");
    }
    let (target, server, what) = match &args.url {
        Some(url) => (Target::parse(url, args.api_key.clone())?, None, url.clone()),
        None => {
            let queue = args.clients.iter().copied().max().unwrap_or(1);
            let which = Which { queue: args.which.queue.max(queue), ..args.which.clone() };
            let opened = model::open(&which, global)?;
            let address = SocketAddr::from(([127, 0, 0, 1], 0));
            let config = Config { address, ..Config::new(opened.model) };
            let server = Server::start(config, opened.generator, opened.tokenizer)?;
            let host = server.address().to_string();
            (Target { host, key: None }, Some(server), opened.summary)
        }
    };
    println!("{what}; answers of {} tokens, {} requests a client", args.max_tokens, args.requests);
    println!("clients  requests/s  tokens/s  ttft p50/p95/p99 ms      itl p50/p95/p99 ms  errors");
    // The first request finds cold caches: it does not count.
    one(&target, args, 0).context("the server does not answer")?;
    let target = Arc::new(target);
    let mut sweep = Vec::new();
    for &clients in &args.clients {
        let row = load(&target, args, clients)?;
        println!(
            "{clients:>7}  {:>10.2}  {:>8.0}  {:>6.0} {:>6.0} {:>6.0}  {:>10.2} {:>6.2} {:>6.2}  {:>6}",
            row.requests_per_sec,
            row.tokens_per_sec,
            row.ttft_ms_p50,
            row.ttft_ms_p95,
            row.ttft_ms_p99,
            row.itl_ms_p50,
            row.itl_ms_p95,
            row.itl_ms_p99,
            row.errors
        );
        sweep.push(row);
    }
    if let Some(server) = server {
        server.drain();
    }
    let line = json!({
        "sweep": sweep, "server": args.url.as_deref().unwrap_or("in process"), "what": what,
        "max_tokens": args.max_tokens, "requests_per_client": args.requests,
    });
    println!("{line}");
    Ok(())
}

/// Where requests go.
struct Target {
    host: String,
    key: Option<String>,
}

impl Target {
    fn parse(url: &str, key: Option<String>) -> Result<Self> {
        let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match host.filter(|h| !h.is_empty() && !h.contains('/')) {
            Some(host) if host.contains(':') => Ok(Self { host: host.into(), key }),
            Some(host) => Ok(Self { host: format!("{host}:80"), key }),
            None => bail!("--url is {url:?}: give http://HOST:PORT, without a path"),
        }
    }
}

/// When what came of one answer.
#[derive(Default)]
struct Heard {
    /// None: nothing of the answer could be shown.
    ttft_ms: Option<f64>,
    gaps_ms: Vec<f64>,
    tokens: usize,
}

/// Lets `clients` ask at once and gathers what they heard.
fn load(target: &Arc<Target>, args: &ServeBench, clients: usize) -> Result<Row> {
    let next = Arc::new(AtomicUsize::new(1));
    let began = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let (target, args, next) = (Arc::clone(target), args.clone(), Arc::clone(&next));
            let work = move || {
                let ask = |_| one(&target, &args, next.fetch_add(1, Ordering::Relaxed)).ok();
                (0..args.requests).map(ask).collect::<Vec<_>>()
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn(work)
        })
        .collect::<std::io::Result<_>>()
        .context("cannot start so many clients")?;
    let mut heard = Vec::new();
    for thread in threads {
        heard.extend(thread.join().unwrap_or_default());
    }
    let seconds = began.elapsed().as_secs_f64();
    let errors = clients * args.requests - heard.iter().flatten().count();
    let good: Vec<&Heard> = heard.iter().flatten().collect();
    let ttft = sorted(good.iter().filter_map(|h| h.ttft_ms));
    let gaps = sorted(good.iter().flat_map(|h| h.gaps_ms.iter().copied()));
    let tokens: usize = good.iter().map(|h| h.tokens).sum();
    Ok(Row {
        clients,
        requests_per_sec: good.len() as f64 / seconds,
        tokens_per_sec: tokens as f64 / seconds,
        ttft_ms_p50: quantile(&ttft, 0.50),
        ttft_ms_p95: quantile(&ttft, 0.95),
        ttft_ms_p99: quantile(&ttft, 0.99),
        itl_ms_p50: quantile(&gaps, 0.50),
        itl_ms_p95: quantile(&gaps, 0.95),
        itl_ms_p99: quantile(&gaps, 0.99),
        errors,
    })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The value that a share `q` of all does not exceed (nearest rank); 0 of none.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Asks once and hears the answer to its end.
fn one(target: &Target, args: &ServeBench, number: usize) -> Result<Heard> {
    // Each question differs from its first words on: no cache of prompts answers for the model.
    let words: String = (0..args.words).map(|i| format!(" {}", (number + 1) * (i + 7))).collect();
    let body = json!({
        "messages": [{"role": "user", "content": format!("{number}:{words}. Tell me a story.")}],
        "max_tokens": args.max_tokens, "ignore_eos": true, "temperature": 1, "seed": number,
        "nanochat": {"tools": false}, "stream": true, "stream_options": {"include_usage": true},
    })
    .to_string();
    let key =
        target.key.as_ref().map_or(String::new(), |k| format!("Authorization: Bearer {k}\r\n"));
    let began = Instant::now();
    let mut stream = TcpStream::connect(&target.host)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(600)))?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{key}\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        target.host,
        body.len()
    )?;
    hear(BufReader::new(stream), began)
}

/// Reads the events of an answer.
fn hear(mut stream: impl BufRead, began: Instant) -> Result<Heard> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    if line.split(' ').nth(1) != Some("200") {
        bail!("the server answers {:?}", line.trim());
    }
    let mut chunked = false;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
    }
    let body: Box<dyn BufRead + '_> = match chunked {
        true => Box::new(BufReader::new(Chunked { stream, left: 0 })),
        false => Box::new(stream),
    };
    let mut heard = Heard::default();
    let mut last: Option<Instant> = None;
    for line in body.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(heard);
        }
        let event: Value = serde_json::from_str(data)?;
        if let Some(error) = event.get("error") {
            bail!("the server breaks off: {error}");
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            heard.tokens = tokens as usize;
        }
        if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
            let now = Instant::now();
            match last.replace(now) {
                None => heard.ttft_ms = Some((now - began).as_secs_f64() * 1e3),
                Some(before) => heard.gaps_ms.push((now - before).as_secs_f64() * 1e3),
            }
        }
    }
    bail!("the answer ended before [DONE]")
}

/// The bytes of a body in chunks: `size in hex CRLF bytes CRLF`, 0 at the end.
struct Chunked<R> {
    stream: R,
    /// Bytes of the chunk that are not read.
    left: usize,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            // The line break behind the chunk before is an empty line.
            while line.trim().is_empty() {
                line.clear();
                if self.stream.read_line(&mut line)? == 0 {
                    return Ok(0);
                }
            }
            let size = line.trim().split(';').next().unwrap_or("");
            self.left = usize::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = out.len().min(self.left);
        let read = self.stream.read(&mut out[..most])?;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rank_is_the_quantile() {
        let values = sorted((1..=100).rev().map(f64::from));
        assert_eq!([0.5, 0.95, 0.99].map(|q| quantile(&values, q)), [50.0, 95.0, 99.0]);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn an_answer_in_chunks_is_read_whatever_their_borders() {
        let body = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n: ping\n\n\
                    data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n\
                    data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        for size in [1, 7, 1000] {
            let mut answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
            for part in body.as_bytes().chunks(size) {
                let text = std::str::from_utf8(part).unwrap();
                answer += &format!("{:x}\r\n{text}\r\n", part.len());
            }
            answer += "0\r\n\r\n";
            let heard = hear(answer.as_bytes(), Instant::now()).unwrap();
            assert_eq!((heard.tokens, heard.gaps_ms.len()), (2, 1));
        }
        assert!(hear(&b"HTTP/1.1 429 Too Many\r\n\r\n"[..], Instant::now()).is_err());
        assert!(hear(&b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n"[..], Instant::now()).is_err());
    }

    #[test]
    fn a_url_is_an_address() {
        assert_eq!(Target::parse("http://127.0.0.1:8000/", None).unwrap().host, "127.0.0.1:8000");
        assert_eq!(Target::parse("http://chat.example", None).unwrap().host, "chat.example:80");
        for url in ["127.0.0.1:8000", "https://x", "http://", "http://x/v1"] {
            assert!(Target::parse(url, None).is_err(), "{url}");
        }
    }
}
