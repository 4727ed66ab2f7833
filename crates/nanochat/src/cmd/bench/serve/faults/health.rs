//! `/health` while many clients read streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::json;

use super::super::process::Process;
use super::super::{client, crowd, quantile, sorted};
use super::{Setting, Verdict};

const CLIENTS: usize = 256;
/// Between two looks at `/health`.
const PAUSE: Duration = Duration::from_millis(5);
const MOST_MS: f64 = 50.0;

pub(super) fn run(setting: &Setting<'_>) -> Result<Verdict> {
    let rows = setting.args.which.rows;
    let server = Process::start(&setting.which(rows, CLIENTS), setting.global)?;
    let ask = setting.args.ask();
    client::one(&server.target, ask, 0)?;
    let over = Arc::new(AtomicBool::new(false));
    let poll = {
        let (target, over) = (Arc::clone(&server.target), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut all = Vec::new();
            while !over.load(Ordering::Relaxed) {
                all.push(target.ask("GET", "/health", ""));
                std::thread::sleep(PAUSE);
            }
            all
        })
    };
    let crowd = crowd(&server.target, ask, CLIENTS, setting.args.requests);
    over.store(true, Ordering::Relaxed);
    let looks = poll.join().map_err(|_| anyhow!("the poll panicked"))?;
    let (heard, seconds) = crowd?;
    let failed = looks.iter().filter(|l| !l.as_ref().is_ok_and(|a| a.status == 200)).count();
    let ms = sorted(looks.iter().flatten().map(|answer| answer.ms));
    let errors: Vec<String> =
        heard.iter().filter_map(|h| Some(h.as_ref().err()?.to_string())).collect();
    let short = heard.iter().flatten().filter(|h| h.tokens != ask.max_tokens).count();
    let tokens: usize = heard.iter().flatten().map(|h| h.tokens).sum();
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|q| quantile(&ms, q));
    let said = format!(
        "{} streams of {CLIENTS} clients in {seconds:.1} s ({:.0} tokens/s), {} errors, {short} short; \
         /health {} times: p50 {p50:.1}, p99 {p99:.1}, most {most:.1} ms, {failed} failed",
        heard.len(),
        tokens as f64 / seconds,
        errors.len(),
        looks.len(),
    );
    let figures = json!({
        "clients": CLIENTS, "rows": rows, "streams": heard.len(), "errors": errors.len(), "short": short,
        "seconds": seconds, "tokens": tokens, "looks": looks.len(), "looks_failed": failed,
        "health_ms_p50": p50, "health_ms_p99": p99, "health_ms_most": most,
    });
    let first = errors.first().cloned().unwrap_or_default();
    Ok(Verdict::new(said, figures)
        .wants(errors.is_empty(), format!("no errors; the first: {first}"))
        .wants(short == 0, "every stream whole")
        .wants(failed == 0, "/health always answers")
        .wants(p99 <= MOST_MS, format!("/health p99 at most {MOST_MS} ms")))
}
