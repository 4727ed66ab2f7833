//! Clients that go away: while they wait, while their prompt is computed, in the middle of their answer.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::super::client::{Ask, one};
use super::super::process::{Held, Process};
use super::super::quantile;
use super::{Setting, Verdict};

/// Clients that go away in each stage; half of them read a stream.
const TIMES: usize = 200;
/// As many again beside a client that does nothing wrong.
const BESIDE: usize = 60;
const ROWS: usize = 4;
/// From the end of the last client until the server is at rest.
const MOST_MS: f64 = 100.0;

pub(super) fn run(setting: &Setting<'_>) -> Result<Verdict> {
    let server = Process::start(&setting.which(ROWS, TIMES), setting.global)?;
    let ask = Ask { max_tokens: 32, words: 4 };
    let alone = one(&server.target, ask, 7)?.text;
    let context = context(&server)?;
    let long = Long { prompt: context / 4 * 3, answer: context / 4 };
    // A client that does nothing wrong asks the same all the time and must hear the same.
    let over = Arc::new(AtomicBool::new(false));
    let neighbour = |over: Arc<AtomicBool>| {
        let target = Arc::clone(&server.target);
        std::thread::spawn(move || {
            let mut texts = Vec::new();
            while !over.load(Ordering::Relaxed) {
                texts.push(one(&target, ask, 7).map(|heard| heard.text));
            }
            texts
        })
    };
    let idle = server.idle()?;
    let mut stages = serde_json::Map::new();
    let mut verdict = Verdict::new(String::new(), Value::Null);
    let mut said = Vec::new();
    for stage in [Stage::Queue, Stage::Prompt, Stage::Answer] {
        let freed = stage.go(&server, &long, Run { times: TIMES, others: 0.0 })?;
        over.store(false, Ordering::Relaxed);
        let texts = neighbour(Arc::clone(&over));
        stage.go(&server, &long, Run { times: BESIDE, others: 1.0 })?;
        over.store(true, Ordering::Relaxed);
        let texts = texts.join().map_err(|_| anyhow!("the neighbour panicked"))?;
        let other = texts.iter().filter(|t| t.as_ref().ok() != Some(&alone)).count();
        let (held, _) = server.settles(idle, Duration::from_secs(5))?;
        let [p50, p99] = [0.5, 0.99].map(|q| quantile(&freed.ms, q));
        said.push(format!(
            "{stage:?} {TIMES} times ({} there when they left), freed in p50 {p50:.1}, p99 {p99:.1} ms, a \
             neighbour's {} answers, {other} of them other than alone",
            freed.caught,
            texts.len()
        ));
        stages.insert(
            format!("{stage:?}").to_lowercase(),
            json!({"times": TIMES, "caught": freed.caught, "freed_ms_p50": p50, "freed_ms_p99": p99,
                "neighbour": texts.len(), "neighbour_other": other, "after": held}),
        );
        verdict = verdict
            .wants(
                held.is_within(idle),
                format!("{stage:?}: at rest afterwards: {held:?}, before {idle:?}"),
            )
            .wants(other == 0, format!("{stage:?}: a neighbour hears what it hears alone"))
            .wants(p99 <= MOST_MS, format!("{stage:?}: freed within {MOST_MS} ms (p99)"))
            .wants(
                freed.caught * 2 > TIMES,
                format!("{stage:?}: most clients left in this stage: {}", freed.caught),
            );
    }
    verdict.said = format!("{}; at rest {idle:?} before and after", said.join("; "));
    verdict.figures = json!({"idle": idle, "stages": stages});
    Ok(verdict)
}

/// Most ids of a sequence, as the server says.
fn context(server: &Process) -> Result<usize> {
    let models: Value = serde_json::from_str(&server.target.ask("GET", "/v1/models", "")?.body)?;
    let context = models["data"][0]["max_model_len"].as_u64().context("no max_model_len")?;
    ensure!(context >= 64, "a context of {context} is too short for this case: 64 or more");
    Ok(context as usize)
}

/// A question that takes long.
struct Long {
    /// Ids.
    prompt: usize,
    /// Ids.
    answer: usize,
}

impl Long {
    /// No two begin alike.
    fn body(&self, number: usize, is_stream: bool, max_tokens: usize) -> String {
        let ids: Vec<usize> = (0..self.prompt).map(|i| (number * 31 + i * 7) % 250).collect();
        json!({"prompt": ids, "max_tokens": max_tokens, "ignore_eos": true, "stream": is_stream,
            "temperature": 1, "seed": number})
        .to_string()
    }
}

/// How often clients go away, and how many others ask meanwhile.
#[derive(Clone, Copy)]
struct Run {
    times: usize,
    others: f64,
}

/// When clients go away.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Queue,
    Prompt,
    Answer,
}

/// What became of the requests of clients that went away.
struct Freed {
    /// Requests that were in the stage when their client left.
    caught: usize,
    /// From leaving until the server held no more than before; sorted.
    ms: Vec<f64>,
}

const PATH: &str = "/v1/completions";

impl Stage {
    fn go(self, server: &Process, long: &Long, run: Run) -> Result<Freed> {
        match self {
            Self::Queue => queue(server, long, run),
            Self::Prompt => prompt(server, long, run),
            Self::Answer => answer(server, long, run),
        }
    }
}

/// Rows are held by long answers; those behind them leave while they wait.
fn queue(server: &Process, long: &Long, run: Run) -> Result<Freed> {
    let mut freed = Freed { caught: 0, ms: Vec::new() };
    let mut number = 0;
    while freed.ms.len() < run.times {
        let mut holders = Vec::new();
        for _ in 0..ROWS + 1 {
            number += 1;
            let body = long.body(number, true, long.answer);
            holders.push(server.target.send("POST", PATH, &body)?);
        }
        let mut waiting = Vec::new();
        for i in 0..20 {
            number += 1;
            let body = long.body(number, i % 2 == 0, long.answer);
            waiting.push(server.target.send("POST", PATH, &body)?);
        }
        let began = Instant::now();
        let mut seen = 0.0_f64;
        while seen < 20.0 && began.elapsed() < Duration::from_millis(100) {
            seen = seen.max(server.metric("nanochat_requests_waiting")?);
        }
        freed.caught += (seen as usize).min(20);
        let left = Instant::now();
        let n = waiting.len();
        drop(waiting);
        while server.metric("nanochat_requests_waiting")? > 2.0 {
            ensure!(
                left.elapsed() < Duration::from_secs(10),
                "requests wait that nobody waits for"
            );
        }
        freed.ms.extend((0..n).map(|_| left.elapsed().as_secs_f64() * 1e3));
        drop(holders);
        rest(server, run.others)?;
    }
    freed.ms.sort_unstable_by(f64::total_cmp);
    Ok(freed)
}

/// Clients leave at any moment of a prompt's time.
fn prompt(server: &Process, long: &Long, run: Run) -> Result<Freed> {
    let mut freed = Freed { caught: 0, ms: Vec::new() };
    for number in 0..run.times {
        let cancelled = server.metric("nanochat_cancelled_total")?;
        let body = long.body(10_000 + number, number % 2 == 0, long.answer);
        let stream = server.target.send("POST", PATH, &body)?;
        // Over the first milliseconds, which a prompt of this length takes at least.
        std::thread::sleep(Duration::from_micros(600 + (number as u64 * 37) % 2000));
        let left = Instant::now();
        drop(stream);
        rest(server, run.others)?;
        freed.ms.push(left.elapsed().as_secs_f64() * 1e3);
        freed.caught += usize::from(server.metric("nanochat_cancelled_total")? > cancelled);
    }
    freed.ms.sort_unstable_by(f64::total_cmp);
    Ok(freed)
}

/// Clients leave once they have heard something; those that read no stream, after as long.
fn answer(server: &Process, long: &Long, run: Run) -> Result<Freed> {
    let mut freed = Freed { caught: 0, ms: Vec::new() };
    for number in 0..run.times {
        let cancelled = server.metric("nanochat_cancelled_total")?;
        let is_stream = number % 2 == 0;
        let body = Long { prompt: 8, ..*long }.body(20_000 + number, is_stream, long.answer * 3);
        let mut stream = server.target.send("POST", PATH, &body)?;
        if is_stream {
            stream.read_exact(&mut [0; 400])?;
        } else {
            std::thread::sleep(Duration::from_millis(8));
        }
        let left = Instant::now();
        drop(stream);
        rest(server, run.others)?;
        freed.ms.push(left.elapsed().as_secs_f64() * 1e3);
        freed.caught += usize::from(server.metric("nanochat_cancelled_total")? > cancelled);
    }
    freed.ms.sort_unstable_by(f64::total_cmp);
    Ok(freed)
}

/// Waits until no more than these others are served.
fn rest(server: &Process, others: f64) -> Result<()> {
    let began = Instant::now();
    loop {
        let Held { running, waiting, .. } = server.held()?;
        if running + waiting <= others {
            return Ok(());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(10),
            "{running} requests run and {waiting} wait that nobody waits for"
        );
    }
}
