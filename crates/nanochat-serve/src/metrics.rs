//! What Prometheus scrapes at `/metrics`; the names keep the meanings that vLLM gave them.

use std::sync::Mutex;
use std::time::Instant;

use nanochat_engine::Finish;
use nanochat_engine::batch::{Generator, Refused, Update};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// Bounds of buckets in seconds, from a token of a tiny model to a long answer.
const BUCKETS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0,
    600.0,
];

/// All counters of a server.
pub(crate) struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    cache_usage: Gauge,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    success: IntCounterVec,
    failed: IntCounter,
    cancelled: IntCounter,
    rejected: IntCounterVec,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    queue: Histogram,
    http: IntCounterVec,
    under_way: IntGauge,
    /// The engine's totals at the last scrape.
    seen: Mutex<(u64, u64)>,
}

/// When a request arrived and its rows last spoke.
pub(crate) struct Timer {
    arrived: Instant,
    last: Vec<Option<Instant>>,
    begun: bool,
    over: bool,
}

impl Timer {
    pub fn new(rows: usize) -> Self {
        Self { arrived: Instant::now(), last: vec![None; rows], begun: false, over: false }
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let make = Maker(&registry);
        let metrics = Self {
            running: make.gauge("requests_running", "Requests being computed."),
            waiting: make.gauge("requests_waiting", "Requests in the queue."),
            cache_usage: make
                .share("kv_cache_usage_ratio", "Pages of keys and values in use, 0 to 1."),
            prefix_queries: make.count("prefix_cache_queries_total", "Prompt tokens looked up."),
            prefix_hits: make.count("prefix_cache_hits_total", "Prompt tokens found."),
            prompt_tokens: make.count("prompt_tokens_total", "Tokens of prompts."),
            generation_tokens: make.count("generation_tokens_total", "Tokens generated."),
            success: make.counts(
                "request_success_total",
                "Answers that ended, by why; a request with n has n.",
                &["finish_reason"],
            ),
            failed: make
                .count("request_failure_total", "Requests that the engine could not answer."),
            cancelled: make.count("cancelled_total", "Requests whose client went away."),
            rejected: make.counts("rejected_total", "Requests that were not taken.", &["reason"]),
            first_token: make.seconds("time_to_first_token_seconds", "Arrival to first token."),
            between_tokens: make.seconds("inter_token_latency_seconds", "Token to token of a row."),
            whole: make.seconds("e2e_request_latency_seconds", "Arrival to the last token."),
            queue: make.seconds("request_queue_time_seconds", "Time in the queue."),
            http: make.http(),
            under_way: make
                .gauge("http_requests_under_way", "Answers that are being made or sent."),
            seen: Mutex::new((0, 0)),
            registry: registry.clone(),
        };
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            registry.register(Box::new(process)).expect("its names are its own");
        }
        metrics
    }

    /// Counts what a request says; called from the engine's thread.
    pub fn update(&self, update: &Update, timer: &mut Timer, now: Instant) {
        match update {
            Update::Began { prompt_tokens, queued_s, .. } => {
                timer.begun = true;
                self.prompt_tokens.inc_by(*prompt_tokens as u64);
                self.queue.observe(*queued_s);
            }
            Update::Token { row, .. } => {
                self.generation_tokens.inc();
                let first = timer.last.iter().all(Option::is_none);
                if first {
                    self.first_token.observe((now - timer.arrived).as_secs_f64());
                }
                let before = timer.last.get_mut(*row).and_then(|last| last.replace(now));
                if let Some(before) = before {
                    self.between_tokens.observe((now - before).as_secs_f64());
                }
            }
            Update::Ended { finish, .. } if *finish != Finish::Cancelled => {
                let reason = match finish {
                    Finish::MaxTokens | Finish::ContextFull => "length",
                    _ => "stop",
                };
                self.success.with_label_values(&[reason]).inc();
            }
            Update::Done(_) => {
                timer.over = true;
                self.whole.observe((now - timer.arrived).as_secs_f64());
            }
            Update::Failed(_) => {
                timer.over = true;
                self.failed.inc();
            }
            _ => {}
        }
    }

    /// A request's listener is no more.
    pub fn dropped(&self, timer: &Timer) {
        if timer.begun && !timer.over {
            self.cancelled.inc();
        }
    }

    pub fn rejected(&self, refused: &Refused) {
        let reason = match refused {
            Refused::Full { .. } => "queue_full",
            Refused::TooLong { .. } => "too_long",
            Refused::Option { .. } => "option",
            Refused::Closed => "stopping",
        };
        self.rejected.with_label_values(&[reason]).inc();
    }

    /// One answer over HTTP; `route` is a pattern, so that there are few.
    pub fn answered(&self, route: &str, method: &str, status: u16) {
        self.http.with_label_values(&[route, method, &status.to_string()]).inc();
    }

    /// The text of a scrape.
    pub fn text(&self, generator: &dyn Generator, under_way: usize) -> Vec<u8> {
        self.under_way.set(under_way as i64);
        let load = generator.load();
        self.running.set(load.running as i64);
        self.waiting.set(load.waiting as i64);
        self.cache_usage.set(load.pages_used as f64 / load.pages_total.max(1) as f64);
        if let Ok(mut seen) = self.seen.lock() {
            self.prefix_queries.inc_by(load.prefix_queries.saturating_sub(seen.0));
            self.prefix_hits.inc_by(load.prefix_hits.saturating_sub(seen.1));
            *seen = (load.prefix_queries, load.prefix_hits);
        }
        let mut out = Vec::new();
        // Writing to memory cannot fail, and every family has a sample.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        out
    }
}

struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        let made = made.expect("the names in this file are legal");
        self.0.register(Box::new(made.clone())).expect("the names in this file differ");
        made
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(format!("nanochat_{name}"), help))
    }

    fn share(&self, name: &str, help: &str) -> Gauge {
        self.keep(Gauge::new(format!("nanochat_{name}"), help))
    }

    fn count(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(format!("nanochat_{name}"), help))
    }

    fn counts(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(format!("nanochat_{name}"), help), labels))
    }

    fn seconds(&self, name: &str, help: &str) -> Histogram {
        let options = HistogramOpts::new(format!("nanochat_{name}"), help);
        self.keep(Histogram::with_opts(options.buckets(BUCKETS.to_vec())))
    }

    fn http(&self) -> IntCounterVec {
        let options = Opts::new("http_requests_total", "Answers over HTTP.");
        self.keep(IntCounterVec::new(options, &["route", "method", "status"]))
    }
}
