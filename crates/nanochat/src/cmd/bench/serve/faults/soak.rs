//! Many short requests of every kind, and the memory that they leave behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use super::super::client::Target;
use super::super::process::Process;
use super::{Setting, Verdict};

const CLIENTS: usize = 16;
/// Shares of all requests after which memory is looked at; growth counts from the second.
const LOOKS: [f64; 4] = [0.1, 0.2, 0.5, 1.0];
/// Growth between a fifth of the requests and all, MiB.
const MOST_GROWTH: f64 = 8.0;

pub(super) fn run(setting: &Setting<'_>) -> Result<Verdict> {
    let total = setting.args.soak;
    let server = Process::start(&setting.which(setting.args.which.rows, 128), setting.global)?;
    soak(&server.target, 0..KINDS * 2)?;
    let (idle, began) = (server.idle()?, Instant::now());
    let (mut looks, mut from, mut wrong) = (Vec::new(), 0, Vec::new());
    for share in LOOKS {
        let until = (share * total as f64) as usize;
        wrong.extend(soak(&server.target, from..until)?);
        looks.push((until, server.resident_mib()?));
        from = until;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (after, _) = server.settles(idle, Duration::from_secs(10))?;
    let growth = looks[3].1 - looks[1].1;
    let at: Vec<String> = looks.iter().map(|(n, mib)| format!("{mib:.1} after {n}")).collect();
    let said = format!(
        "{total} requests of {KINDS} kinds, {CLIENTS} at a time, in {seconds:.0} s: {} answered otherwise than \
         they should; resident MiB {}; {growth:+.1} from {} on; at rest {idle:?} before, {after:?} after",
        wrong.len(),
        at.join(", "),
        looks[1].0,
    );
    let figures = json!({
        "requests": total, "kinds": KINDS, "clients": CLIENTS, "seconds": seconds, "wrong": wrong.len(),
        "resident_mib": looks, "growth_mib": growth, "idle": idle, "after": after,
    });
    let first = wrong.first().cloned().unwrap_or_default();
    Ok(Verdict::new(said, figures)
        .wants(wrong.is_empty(), format!("the expected status each; the first: {first}"))
        .wants(growth <= MOST_GROWTH, format!("memory within {MOST_GROWTH} MiB"))
        .wants(after.is_within(idle), "at rest as before"))
}

/// Asks the requests of these numbers; those that were answered otherwise than they should.
fn soak(target: &Arc<Target>, numbers: std::ops::Range<usize>) -> Result<Vec<String>> {
    let next = Arc::new(AtomicUsize::new(numbers.start));
    let threads: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (target, next, end) = (Arc::clone(target), Arc::clone(&next), numbers.end);
            std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
                let mut wrong = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return wrong;
                    }
                    if let Err(error) = one(&target, number) {
                        wrong.push(format!("request {number}: {error:#}"));
                    }
                }
            })
        })
        .collect::<std::io::Result<_>>()
        .context("cannot start the clients")?;
    let mut wrong = Vec::new();
    for thread in threads {
        wrong.extend(thread.join().map_err(|_| anyhow!("a client panicked"))?);
    }
    Ok(wrong)
}

const KINDS: usize = 12;

/// One request; its number says of which kind it is, and how long.
fn one(target: &Target, number: usize) -> Result<()> {
    let tokens = 1 + number * 7 % 24;
    let mut messages = vec![json!({"role": "user", "content": format!("{number} cats")})];
    let (chat, text) = ("/v1/chat/completions", "/v1/completions");
    let (path, expected, body) = match number % KINDS {
        0 => (chat, 200, json!({"messages": messages, "max_tokens": tokens})),
        1 => (chat, 200, json!({"messages": messages, "max_tokens": tokens, "stream": true})),
        2 => (text, 200, json!({"prompt": format!("{number} dogs"), "max_tokens": tokens})),
        3 => (text, 200, json!({"prompt": ["one", "two"], "max_tokens": tokens, "stream": true})),
        4 => (chat, 200, json!({"messages": messages, "max_tokens": tokens, "n": 3})),
        5 => (
            chat,
            200,
            json!({"messages": messages, "max_tokens": tokens, "logprobs": true, "top_logprobs": 3}),
        ),
        6 => (text, 200, json!({"prompt": "a b c", "max_tokens": 0, "echo": true, "logprobs": 2})),
        7 => {
            let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {
                "type": "object", "properties": {format!("f{}", number % 50): {"type": "integer"}}}}});
            (
                chat,
                200,
                json!({"messages": messages, "max_tokens": tokens, "response_format": form}),
            )
        }
        8 => {
            messages.insert(0, json!({"role": "system", "content": "You are brief."}));
            messages.push(json!({"role": "assistant", "content": "Yes."}));
            messages.push(json!({"role": "user", "content": "And then?"}));
            (chat, 200, json!({"messages": messages, "max_tokens": tokens, "stop": ["a", "xyz"]}))
        }
        9 => (chat, 400, json!({"messages": messages, "max_tokens": -1})),
        10 => ("/tokenize", 200, json!({"prompt": format!("{number} birds")})),
        _ => {
            // Goes away in the middle; what it would have been answered is not known.
            let body = json!({"messages": messages, "max_tokens": 64, "stream": true}).to_string();
            let stream = target.send("POST", chat, &body)?;
            std::thread::sleep(Duration::from_micros((number % 50) as u64 * 100));
            drop(stream);
            return Ok(());
        }
    };
    let answer = target.ask("POST", path, &body.to_string())?;
    anyhow::ensure!(
        answer.status == expected,
        "{path} answers {}, expected {expected}: {}",
        answer.status,
        answer.body.chars().take(200).collect::<String>()
    );
    let is_stream = body["stream"] == true;
    anyhow::ensure!(
        !is_stream || answer.body.ends_with("data: [DONE]\n\n"),
        "a stream without [DONE]"
    );
    Ok(())
}
