//! `nanochat bench serve`: a server under load, over numbers of clients.
//!
//! Each client is a thread with a connection of its own for each request, as a browser or a script
//! would have. It asks for an answer of a fixed length in events and notes when each came: the first
//! (ttft) and the gaps between the others (itl). Without `--url` the server runs in this process, over
//! a real socket: its clients then share the machine with it, and both are in the figures.

mod client;
mod faults;
mod process;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use nanochat_serve::{Config, Server};
use serde::Serialize;
use serde_json::json;

use crate::cli::Global;
use crate::cmd::serve::{Which, model};
use client::{Ask, Heard, Target};

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
    /// Instead: what others do wrong, against a process of its own (Linux); `all` runs all cases.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "CASE,...",
        conflicts_with = "url"
    )]
    faults: Vec<faults::Case>,
    /// Requests of the fault case `soak`.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    soak: usize,
}

impl ServeBench {
    fn ask(&self) -> Ask {
        Ask { max_tokens: self.max_tokens, words: self.words }
    }
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
    if !args.faults.is_empty() {
        return faults::run(args, global);
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
    client::one(&target, args.ask(), 0).context("the server does not answer")?;
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

/// What `clients` that asked at once heard: of each its answers, or what went wrong, and the seconds in all.
fn crowd(
    target: &Arc<Target>,
    ask: Ask,
    clients: usize,
    requests: usize,
) -> Result<(Vec<Result<Heard>>, f64)> {
    let next = Arc::new(AtomicUsize::new(1));
    let began = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            let (target, next) = (Arc::clone(target), Arc::clone(&next));
            let work = move || {
                let one = |_| client::one(&target, ask, next.fetch_add(1, Ordering::Relaxed));
                (0..requests).map(one).collect::<Vec<_>>()
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn(work)
        })
        .collect::<std::io::Result<_>>()
        .context("cannot start so many clients")?;
    let mut heard = Vec::new();
    for thread in threads {
        heard.extend(thread.join().map_err(|_| anyhow!("a client panicked"))?);
    }
    Ok((heard, began.elapsed().as_secs_f64()))
}

/// Lets `clients` ask at once and gathers what they heard.
fn load(target: &Arc<Target>, args: &ServeBench, clients: usize) -> Result<Row> {
    let (heard, seconds) = crowd(target, args.ask(), clients, args.requests)?;
    let good: Vec<&Heard> = heard.iter().flatten().collect();
    let errors = heard.len() - good.len();
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
}
