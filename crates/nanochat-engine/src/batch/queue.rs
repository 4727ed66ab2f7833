//! The handle of a batch: requests come in from any thread, and the loop takes them out.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nanochat_gpt::batch::{BatchDecoder, pages_needed};

use super::request::{Generator, Limits, Listener, Load, Refused, Request};

/// How large a batch may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Most rows computed at once.
    pub rows: usize,
    /// Most requests that wait.
    pub queue: usize,
    /// Ids of a step: those of answering rows, and as many of prompts as there is room for, but at
    /// least [`BatchOptions::LEAST_PROMPT`].
    pub step_tokens: usize,
}

impl BatchOptions {
    /// Ids of prompts that a step takes however many rows are answering.
    pub const LEAST_PROMPT: usize = 32;
}

impl Default for BatchOptions {
    /// 64 rows, 128 waiting, 256 ids a step.
    fn default() -> Self {
        Self { rows: 64, queue: 128, step_tokens: 256 }
    }
}

/// A batch: clones are the same one. [`Batch::run`] computes, on the thread that has the model.
#[derive(Clone)]
pub struct Batch {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub state: Mutex<State>,
    /// Something came in, or no more will.
    pub wake: Condvar,
    pub options: BatchOptions,
    pub limits: Limits,
    page_len: usize,
    pages: usize,
}

#[derive(Default)]
pub(super) struct State {
    /// Came in since the last step.
    pub inbox: Vec<Waiting>,
    pub closed: bool,
    /// As of the last step; `waiting` without the inbox.
    pub load: Load,
    /// Seconds that a request took, lately.
    pub mean_s: f64,
}

/// A request in the queue.
pub(super) struct Waiting {
    pub request: Request,
    pub listener: Box<dyn Listener>,
    pub arrived: Instant,
}

impl Batch {
    /// A batch for a decoder of this shape: the one that [`Batch::run`] will be given.
    pub fn new(decoder: &dyn BatchDecoder, options: BatchOptions) -> Self {
        let most = decoder.step_len().max(1);
        let rows = options.rows.clamp(1, most.saturating_sub(BatchOptions::LEAST_PROMPT).max(1));
        let step_tokens = options.step_tokens.clamp(1, most);
        let options = BatchOptions { rows, step_tokens, ..options };
        let pages = decoder.pages().total;
        let limits = Limits {
            context: decoder.max_len().min(pages.saturating_mul(decoder.page_len())),
            vocab_size: decoder.vocab_size(),
            rows,
            queue: options.queue,
        };
        let load = Load { pages_total: pages, ..Load::default() };
        let state = Mutex::new(State { load, ..State::default() });
        let (wake, page_len) = (Condvar::new(), decoder.page_len());
        Self { shared: Arc::new(Shared { state, wake, options, limits, page_len, pages }) }
    }
}

impl Shared {
    /// Nothing that holds the lock can be left half done, so a panic there does no harm.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what can never be served.
    fn check(&self, request: &Request) -> Result<(), Refused> {
        let refuse = |name, value: String, allowed: &str| {
            Err(Refused::Option { name, value, allowed: allowed.to_string() })
        };
        let Limits { context, vocab_size, rows, .. } = self.limits;
        let (prompt, n, max_tokens) = (request.prompt.len(), request.n, request.max_tokens);
        if prompt == 0 {
            return refuse("prompt", "empty".into(), "at least one token");
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= vocab_size) {
            let allowed = format!("token ids below {vocab_size}");
            return refuse("prompt", format!("token id {id}"), &allowed);
        }
        if n == 0 || n > rows {
            return refuse("n", n.to_string(), &format!("from 1 to {rows}"));
        }
        if request.stop.iter().any(String::is_empty) {
            return refuse("stop", "an empty string".into(), "strings of one character or more");
        }
        let len = prompt.saturating_add(max_tokens);
        if len > context {
            return Err(Refused::TooLong { prompt, max_tokens, limit: context });
        }
        if pages_needed(self.page_len, prompt, n, len) > self.pages {
            let limit = self.pages / n * self.page_len;
            return Err(Refused::TooLong { prompt, max_tokens, limit });
        }
        Ok(())
    }
}

impl Generator for Batch {
    fn submit(&self, request: Request, listener: Box<dyn Listener>) -> Result<(), Refused> {
        self.shared.check(&request)?;
        let arrived = Instant::now();
        let mut state = self.shared.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let (waiting, limit) = (state.load.waiting + state.inbox.len(), self.shared.options.queue);
        if waiting >= limit {
            let running = state.load.running.max(1) as f64;
            let retry_after_s = (state.mean_s * waiting as f64 / running).ceil().clamp(1.0, 60.0);
            return Err(Refused::Full { waiting, limit, retry_after_s: retry_after_s as u64 });
        }
        state.inbox.push(Waiting { request, listener, arrived });
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn load(&self) -> Load {
        let state = self.shared.lock();
        Load { waiting: state.load.waiting + state.inbox.len(), ..state.load }
    }

    fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }
}
