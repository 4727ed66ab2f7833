//! Half-open connections and slow readers, and how much later others hear by them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

use super::super::client::{Ask, Target, one, question};
use super::super::process::Process;
use super::super::{crowd, quantile, sorted};
use super::{Setting, Verdict};

/// Connections of each kind: 200 half-open, 200 that read slowly.
const EACH: usize = 100;
const CLIENTS: usize = 16;
/// Answers of each client in a measurement.
const REQUESTS: usize = 24;
const PAIRS: usize = 8;
const MOST_RATIO: f64 = 1.1;

pub(super) fn run(setting: &Setting<'_>) -> Result<Verdict> {
    let rows = setting.args.which.rows;
    let server = Process::start(&setting.which(rows, 512), setting.global)?;
    let ask = setting.args.ask();
    one(&server.target, ask, 0)?;
    let idle = server.idle()?;
    let measure = || -> Result<[f64; 2]> {
        let (heard, _) = crowd(&server.target, ask, CLIENTS, REQUESTS)?;
        let heard = heard.into_iter().collect::<Result<Vec<_>>>()?;
        let ttft = sorted(heard.iter().filter_map(|h| h.ttft_ms));
        let gaps = sorted(heard.iter().flat_map(|h| h.gaps_ms.iter().copied()));
        Ok([quantile(&ttft, 0.99), quantile(&gaps, 0.99)])
    };
    measure()?;
    let mut pairs: Vec<[[f64; 2]; 2]> = Vec::new();
    let (mut most_held, mut dropped) = (0, 0);
    for pair in 0..PAIRS {
        let beside = || -> Result<([f64; 2], usize, usize)> {
            let offenders = Offenders::start(&server)?;
            let held = server.held()?.descriptors.saturating_sub(idle.descriptors);
            let with = measure();
            Ok((with?, held, offenders.end()?))
        };
        // Which comes first changes, so that a drift of the machine is in both.
        let (without, (with, held, gone)) = match pair % 2 {
            0 => (measure()?, beside()?),
            _ => {
                let with = beside()?;
                server.settles(idle, Duration::from_secs(5))?;
                (measure()?, with)
            }
        };
        server.settles(idle, Duration::from_secs(5))?;
        most_held = most_held.max(held);
        dropped += gone;
        pairs.push([without, with]);
    }
    let (after, _) = server.settles(idle, Duration::from_secs(5))?;
    let ratios = |which: usize| sorted(pairs.iter().map(|p| p[1][which] / p[0][which]));
    let middle = |which: usize, side: usize| median(&sorted(pairs.iter().map(|p| p[side][which])));
    let (ttft, gap) = (ratios(0), ratios(1));
    let said = format!(
        "{CLIENTS} clients, {PAIRS} pairs without and with {} offenders ({most_held} descriptors held, {dropped} \
         cut off): first token p99 {:.1} and {:.1} ms, {:.2} times ({:.2}-{:.2}); next ones p99 {:.2} and \
         {:.2} ms, {:.2} times ({:.2}-{:.2})",
        4 * EACH,
        middle(0, 0),
        middle(0, 1),
        median(&ttft),
        ttft[0],
        ttft[PAIRS - 1],
        middle(1, 0),
        middle(1, 1),
        median(&gap),
        gap[0],
        gap[PAIRS - 1],
    );
    let figures = json!({
        "clients": CLIENTS, "rows": rows, "offenders": 4 * EACH, "descriptors_held": most_held,
        "cut_off": dropped, "pairs_ms": pairs, "ttft_p99_ratio": median(&ttft),
        "itl_p99_ratio": median(&gap), "idle": idle, "after": after,
    });
    Ok(Verdict::new(said, figures)
        .wants(median(&ttft) <= MOST_RATIO, "first tokens' p99 within 10 % (median of pairs)")
        .wants(median(&gap) <= MOST_RATIO, "next tokens' p99 within 10 % (median of pairs)")
        .wants(after.is_within(idle), format!("at rest afterwards: {after:?}, before {idle:?}")))
}

fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// Connections that do a byte a second, on a thread of their own.
struct Offenders {
    over: Arc<AtomicBool>,
    cut_off: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

/// What a connection does slowly.
#[derive(Clone, Copy)]
enum Kind {
    /// Sends a head that never ends.
    Head,
    /// Sends a body that never ends.
    Body,
    /// Reads an answer.
    Answer,
    /// Reads files, of which more are asked for than any buffer holds.
    Files,
}

impl Offenders {
    /// Opens all and waits until their answers are computed: what they ask for is work as anybody's, and is not
    /// what is measured.
    fn start(server: &Process) -> Result<Self> {
        let mut open = Vec::new();
        for kind in [Kind::Answer, Kind::Files, Kind::Head, Kind::Body] {
            for number in 0..EACH {
                open.push((kind, kind.open(&server.target, number)?));
            }
        }
        let began = Instant::now();
        while server.metric("nanochat_requests_running")?
            + server.metric("nanochat_requests_waiting")?
            > 0.0
        {
            ensure!(
                began.elapsed() < Duration::from_secs(60),
                "the slow readers' answers take too long"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let (over, cut_off) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = {
            let (over, cut_off) = (Arc::clone(&over), Arc::clone(&cut_off));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    open.retain_mut(|(kind, stream)| kind.go_on(stream));
                    cut_off.store(4 * EACH - open.len(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_secs(1));
                }
            })
        };
        Ok(Self { over, cut_off, thread })
    }

    /// Closes all; how many the server cut off before.
    fn end(self) -> Result<usize> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the offenders panicked"))?;
        Ok(self.cut_off.load(Ordering::Relaxed))
    }
}

impl Kind {
    fn open(self, target: &Target, number: usize) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(&target.host)?;
        let text = match self {
            Self::Head => "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".to_owned(),
            Self::Body => {
                "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\
                           \r\nContent-Length: 100000\r\n\r\n{"
                    .to_owned()
            }
            Self::Answer => {
                let body = question(Ask { max_tokens: 32, words: 2 }, 1_000_000 + number);
                target.request("POST", "/v1/chat/completions", &body)
            }
            Self::Files => {
                let one = "GET /assets/vendor-markdown-it.js HTTP/1.1\r\nHost: localhost\r\n\r\n";
                one.repeat(100)
            }
        };
        stream.write_all(text.as_bytes())?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// A byte; false if the server has closed the connection.
    fn go_on(self, stream: &mut TcpStream) -> bool {
        let done = match self {
            Self::Head | Self::Body => stream.write(b" "),
            Self::Answer | Self::Files => stream.read(&mut [0]),
        };
        match done {
            Ok(n) => n > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}
