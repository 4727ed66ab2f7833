//! The simplest [`Generator`]: requests wait in a queue, one is answered at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nanochat_engine::batch::{Generator, Limits, Listener, Load, Refused, Request, Update, Usage};
use nanochat_engine::{Engine, Finish, GenerateOptions, Piece, Result};
use nanochat_gpt::model::Decoder;
use nanochat_tokenizer::Tokenizer;

/// The two ends of a queue: one takes requests, the other answers them on its own thread.
pub fn queue(context: usize, vocab_size: usize, most: usize) -> (Arc<dyn Generator>, Worker) {
    let limits = Limits { context, vocab_size, rows: 8, queue: most };
    let shared = Arc::new(Shared { limits, state: Mutex::default(), wake: Condvar::new() });
    (Arc::new(Queue(Arc::clone(&shared))), Worker(shared))
}

struct Shared {
    limits: Limits,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    load: Load,
    closed: bool,
}

struct Waiting {
    request: Request,
    listener: Box<dyn Listener>,
    arrived: Instant,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Queue(Arc<Shared>);

impl Generator for Queue {
    fn submit(
        &self,
        request: Request,
        listener: Box<dyn Listener>,
    ) -> std::result::Result<(), Refused> {
        let limits = self.0.limits;
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens);
        if prompt.saturating_add(max_tokens) > limits.context {
            return Err(Refused::TooLong { prompt, max_tokens, limit: limits.context });
        }
        let cannot = [
            ("logprobs", request.logprobs.is_some() || request.prompt_logprobs),
            ("response_format", request.constraint.is_some()),
            ("max_tokens", max_tokens == 0),
        ];
        if let Some((name, _)) = cannot.into_iter().find(|(_, asked)| *asked) {
            let allowed = "another value: this engine cannot do it".into();
            return Err(Refused::Option { name, value: "set".into(), allowed });
        }
        let mut state = self.0.state();
        let waiting = state.waiting.len();
        if state.closed {
            return Err(Refused::Closed);
        }
        if waiting >= limits.queue {
            return Err(Refused::Full { waiting, limit: limits.queue, retry_after_s: 1 });
        }
        state.waiting.push_back(Waiting { request, listener, arrived: Instant::now() });
        self.0.wake.notify_one();
        Ok(())
    }

    fn load(&self) -> Load {
        let state = self.0.state();
        Load { waiting: state.waiting.len(), ..state.load }
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }

    fn close(&self) {
        self.0.state().closed = true;
        self.0.wake.notify_all();
    }
}

/// Answers what is in the queue.
pub struct Worker(Arc<Shared>);

impl Worker {
    /// Until the queue is closed and empty.
    pub fn work(&self, decoder: &mut dyn Decoder, tokenizer: &Tokenizer) {
        while let Some(next) = self.next() {
            let Waiting { request, mut listener, arrived } = next;
            if listener.is_gone() {
                continue;
            }
            if let Err(error) = answer(&request, &mut *listener, arrived, decoder, tokenizer) {
                listener.hear(Update::Failed(error.to_string()));
            }
            self.0.state().load.running = 0;
        }
    }

    fn next(&self) -> Option<Waiting> {
        let mut state = self.0.state();
        loop {
            if let Some(next) = state.waiting.pop_front() {
                state.load.running = 1;
                return Some(next);
            }
            if state.closed {
                return None;
            }
            state = self.0.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn answer(
    request: &Request,
    listener: &mut dyn Listener,
    arrived: Instant,
    decoder: &mut dyn Decoder,
    tokenizer: &Tokenizer,
) -> Result<()> {
    let options = GenerateOptions {
        n: request.n,
        stop: request.stop.clone(),
        stop_at_eot: request.stop_at_eot,
        tools: request.tools,
        ..GenerateOptions::new(request.sample.clone(), request.max_tokens)
    };
    let prompt_tokens = request.prompt.len();
    let queued_s = arrived.elapsed().as_secs_f64();
    listener.hear(Update::Began { prompt_tokens, reused_tokens: 0, queued_s });
    let mut engine = Engine::new(decoder, tokenizer)?;
    let mut run = engine.start(&request.prompt, 0, &options)?;
    let mut usage = Usage { prompt_tokens, queued_s, ..Usage::default() };
    let mut said = vec![0; request.n];
    while let Some(step) = run.step()? {
        if listener.is_gone() {
            return Ok(());
        }
        for (row, (emitted, pieces)) in step.ids.iter().zip(step.pieces).enumerate() {
            if usage.generated_tokens == 0 {
                usage.first_token_s = arrived.elapsed().as_secs_f64();
            }
            let Some(emitted) = emitted else { continue };
            said[row] += pieces.iter().map(text_len).sum::<usize>();
            usage.generated_tokens += 1;
            let (id, forced, pieces) = (emitted.id, emitted.forced, pieces.clone());
            listener.hear(Update::Token { row, id, forced, pieces, logprobs: None });
        }
    }
    for (row, state) in run.finish().rows.into_iter().enumerate() {
        // What was held back: everything that no step has shown.
        let held = state.text().get(said[row]..).map(str::to_owned).filter(|t| !t.is_empty());
        let pieces = held.map(Piece::Text).into_iter().collect();
        let finish = if state.finish == Finish::Cancelled { Finish::Eot } else { state.finish };
        listener.hear(Update::Ended { row, finish, pieces });
    }
    usage.total_s = arrived.elapsed().as_secs_f64();
    listener.hear(Update::Done(usage));
    Ok(())
}

fn text_len(piece: &Piece) -> usize {
    match piece {
        Piece::Text(text) => text.len(),
        _ => 0,
    }
}
