//! More requests than the queue holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use super::super::client::{self, Outcome};
use super::super::process::Process;
use super::super::{quantile, sorted};
use super::{Setting, Verdict};

const QUEUE: usize = 32;
/// Requests of each client, refused ones included.
const TRIES: usize = 20;
/// After a refusal. Shorter than any `Retry-After`: these clients do not do as they are told.
const PAUSE: Duration = Duration::from_millis(50);
const MOST_MS: f64 = 50.0;
/// Growth of memory between the first full load and the last, MiB.
const MOST_GROWTH: f64 = 16.0;

pub(super) fn run(setting: &Setting<'_>) -> Result<Verdict> {
    let rows = setting.args.which.rows;
    let clients = 2 * (rows + QUEUE);
    let server = Process::start(&setting.which(rows, QUEUE), setting.global)?;
    let ask = setting.args.ask();
    client::one(&server.target, ask, 0)?;
    let idle = server.idle()?;
    let round = || -> Result<Vec<Result<Outcome>>> {
        let next = Arc::new(AtomicUsize::new(1));
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                let (target, next) = (Arc::clone(&server.target), Arc::clone(&next));
                let one = move || {
                    let made = client::attempt(&target, ask, next.fetch_add(1, Ordering::Relaxed));
                    if matches!(made, Ok(Outcome::Full(_))) {
                        std::thread::sleep(PAUSE);
                    }
                    made
                };
                let work = move || (0..TRIES).map(|_| one()).collect::<Vec<_>>();
                std::thread::Builder::new().stack_size(256 << 10).spawn(work)
            })
            .collect::<std::io::Result<_>>()
            .context("cannot start so many clients")?;
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a client panicked"))?);
        }
        Ok(all)
    };
    let mut made = round()?;
    let before = server.resident_mib()?;
    made.extend(round()?);
    let growth = server.resident_mib()? - before;
    let (held, _) = server.settles(idle, Duration::from_secs(5))?;

    let (mut ms, mut whole, mut short, mut bare, mut errors) = (Vec::new(), 0, 0, 0, Vec::new());
    for outcome in &made {
        match outcome {
            Ok(Outcome::Whole(heard)) if heard.tokens == ask.max_tokens => whole += 1,
            Ok(Outcome::Whole(_)) => short += 1,
            Ok(Outcome::Full(answer)) => {
                ms.push(answer.ms);
                bare += usize::from(answer.retry_after.is_none_or(|seconds| seconds == 0));
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    let ms = sorted(ms.into_iter());
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|q| quantile(&ms, q));
    let said = format!(
        "{clients} clients on {rows} rows and a queue of {QUEUE}: {whole} answers whole, {short} short, {} \
         errors; {} refused with 429 in p50 {p50:.1}, p99 {p99:.1}, most {most:.1} ms, {bare} without \
         Retry-After; memory {growth:+.1} MiB in the second round",
        errors.len(),
        ms.len(),
    );
    let figures = json!({
        "clients": clients, "rows": rows, "queue": QUEUE, "whole": whole, "short": short,
        "errors": errors.len(), "refused": ms.len(), "without_retry_after": bare, "refusal_ms_p50": p50,
        "refusal_ms_p99": p99, "refusal_ms_most": most, "growth_mib": growth, "idle": idle, "after": held,
    });
    let first = errors.first().cloned().unwrap_or_default();
    Ok(Verdict::new(said, figures)
        .wants(!ms.is_empty(), "something refused")
        .wants(p99 <= MOST_MS, format!("429 within {MOST_MS} ms (p99)"))
        .wants(bare == 0, "Retry-After on every 429")
        .wants(errors.is_empty() && short == 0, format!("what was taken is finished; {first}"))
        .wants(growth <= MOST_GROWTH, format!("memory within {MOST_GROWTH} MiB"))
        .wants(held.is_within(idle), format!("at rest afterwards: {held:?}, before {idle:?}")))
}
