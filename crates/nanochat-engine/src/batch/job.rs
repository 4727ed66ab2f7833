//! One request under way: its prompt, then its rows.
//!
//! Nothing here knows of other requests; what comes in is logits, what goes out is heard by the listener.

use std::time::Instant;

use nanochat_gpt::batch::{Opened, Room, Sequence};
use nanochat_tokenizer::Tokenizer;

use super::logprobs::logprobs;
use super::queue::Waiting;
use super::request::{ConstraintState, Listener, Request, TokenLogprobs, Update, Usage};
use crate::Result;
use crate::generate::Finish;
use crate::sample::{Context, Sampler};
use crate::text::{Piece, RowText};
use crate::tool::{RowMachine, Seen};

/// A request whose pages are set aside.
pub(super) struct Job<'t> {
    pub request: Request,
    listener: Box<dyn Listener>,
    arrived: Instant,
    /// Ids of the prompt that are held.
    pub fed: usize,
    /// The prompt is being computed.
    pub has_begun: bool,
    pub rows: Vec<Row<'t>>,
    sampler: Sampler,
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub usage: Usage,
    heard_first: bool,
}

/// One sample.
pub(super) struct Row<'t> {
    /// None: not forked yet, or over.
    pub sequence: Option<Sequence>,
    /// Ids after the prompt; the last one is not in the model yet.
    pub said: Vec<u32>,
    pub is_over: bool,
    machine: RowMachine<'t>,
    text: RowText<'static>,
    form: Option<Form>,
}

/// A constraint, and the words that it marks.
struct Form {
    state: Box<dyn ConstraintState>,
    allowed: Vec<u64>,
}

/// What went wrong with a request, in words for the caller.
type Told<T> = std::result::Result<T, String>;

impl<'t> Job<'t> {
    /// A request that is admitted as `opened`.
    pub fn new(waiting: Waiting, tokenizer: &'t Tokenizer, opened: Opened) -> Self {
        let Waiting { request, listener, arrived } = waiting;
        let row = |r: usize| Row {
            sequence: (r == 0).then_some(opened.sequence),
            said: Vec::new(),
            is_over: false,
            machine: RowMachine::new(tokenizer, request.tools),
            text: RowText::new(tokenizer, request.stop.clone()),
            form: None,
        };
        let rows = (0..request.n).map(row).collect();
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let sampler = Sampler::new(request.sample.clone());
        Self {
            request,
            listener,
            arrived,
            fed: opened.reused,
            has_begun: false,
            rows,
            sampler,
            prompt_logprobs: vec![None],
            usage,
            heard_first: false,
        }
    }

    /// True when nobody listens any more.
    pub fn is_gone(&self) -> bool {
        self.listener.is_gone()
    }

    /// True while the prompt is not held.
    pub fn is_prompt(&self) -> bool {
        self.fed < self.request.prompt.len()
    }

    /// Rows that are not over.
    pub fn answering(&self) -> usize {
        self.rows.iter().filter(|row| !row.is_over).count()
    }

    /// True when all rows are over.
    pub fn is_over(&self) -> bool {
        self.rows.iter().all(|row| row.is_over)
    }

    /// What is to be set aside for it.
    pub fn room(request: &Request) -> Room {
        let Request { n, max_tokens, prompt_logprobs, .. } = *request;
        Room { rows: n, len: request.prompt.len() + max_tokens, reuse: !prompt_logprobs }
    }

    /// Tells the listener that it begins, and makes the constraints of its rows.
    pub fn begin(&mut self, vocab_size: usize) {
        self.has_begun = true;
        self.usage.reused_tokens = self.fed;
        self.usage.queued_s = self.arrived.elapsed().as_secs_f64();
        self.listener.hear(Update::Began {
            prompt_tokens: self.usage.prompt_tokens,
            reused_tokens: self.usage.reused_tokens,
            queued_s: self.usage.queued_s,
        });
        if let Some(constraint) = &self.request.constraint {
            for row in &mut self.rows {
                let allowed = vec![0; vocab_size.div_ceil(64)];
                row.form = Some(Form { state: constraint.begin(), allowed });
            }
        }
    }

    /// Takes in the logits (n, V) of a chunk of `n` ids of the prompt, if they were asked for.
    pub fn take_prompt(&mut self, n: usize, logits: &[f32], vocab_size: usize) {
        if self.request.prompt_logprobs {
            let top = self.request.logprobs.unwrap_or(0);
            // The logits after an id are about the next one.
            let next = self.request.prompt.iter().skip(self.fed + 1);
            let each = next.zip(logits.chunks(vocab_size)).take(n);
            self.prompt_logprobs.extend(each.map(|(id, x)| Some(logprobs(x, *id, top))));
        }
        self.fed += n;
        if !self.is_prompt() && self.request.prompt_logprobs {
            self.listener.hear(Update::Prompt(std::mem::take(&mut self.prompt_logprobs)));
        }
    }

    /// The prompt is all that was asked for.
    pub fn end_without_answer(&mut self) {
        for row in 0..self.rows.len() {
            self.end(row, (Finish::MaxTokens, None), Vec::new());
        }
    }

    /// Gives row `r` its next id: forced, or drawn from its logits (V).
    ///
    /// Errors: damaged logits; what its constraint says.
    pub fn advance(&mut self, r: usize, logits: &[f32]) -> Told<()> {
        let step = self.rows[r].said.len() as u64;
        let forced = self.rows[r].machine.take_forced();
        let id = match forced {
            Some(id) => id,
            None => self.draw(r, step, logits)?,
        };
        let own = self.request.logprobs.filter(|_| forced.is_none());
        let own = own.map(|top| logprobs(logits, id, top));
        let mut pieces = Vec::new();
        let is_forced = forced.is_some();
        match self.take_in(r, (id, is_forced), &mut pieces).map_err(|e| e.to_string())? {
            Some(Finish::Eot) => self.end(r, (Finish::Eot, Some(id)), pieces),
            finish => {
                if let (Some(form), false) = (&mut self.rows[r].form, is_forced) {
                    form.state.accept(id)?;
                }
                self.say(Update::Token { row: r, id, forced: is_forced, pieces, logprobs: own });
                let full = self.rows[r].said.len() >= self.request.max_tokens;
                if let Some(finish) = finish.or(full.then_some(Finish::MaxTokens)) {
                    let mut held = Vec::new();
                    self.rows[r].text.flush(&mut held);
                    self.end(r, (finish, None), held);
                }
            }
        }
        Ok(())
    }

    fn draw(&mut self, r: usize, step: u64, logits: &[f32]) -> Told<u32> {
        let row = &mut self.rows[r];
        let allowed = match &mut row.form {
            Some(form) => {
                form.allowed.fill(u64::MAX);
                form.state.mask(&mut form.allowed)?;
                Some(&form.allowed[..])
            }
            None => None,
        };
        let context = Context { prompt: &self.request.prompt, said: &row.said, allowed };
        self.sampler.draw(logits, context, r as u64, step).map_err(|e| e.to_string())
    }

    /// Appends an id to its row; adds to `pieces` what can be shown. How the row ends by it, if it does.
    fn take_in(
        &mut self,
        r: usize,
        (id, forced): (u32, bool),
        pieces: &mut Vec<Piece>,
    ) -> Result<Option<Finish>> {
        let row = &mut self.rows[r];
        let mut seen = row.machine.accept(id, forced)?;
        if seen == Seen::End && !self.request.stop_at_eot {
            seen = Seen::Mark;
        }
        let stopped = row.text.push(id, &seen, pieces)?;
        if seen == Seen::End {
            return Ok(Some(Finish::Eot));
        }
        row.said.push(id);
        self.usage.generated_tokens += 1;
        Ok(stopped.then_some(Finish::StopString))
    }

    fn end(&mut self, row: usize, (finish, terminal): (Finish, Option<u32>), pieces: Vec<Piece>) {
        self.rows[row].is_over = true;
        self.say(Update::Ended { row, finish, terminal, pieces });
        if self.is_over() {
            self.usage.total_s = self.arrived.elapsed().as_secs_f64();
            self.listener.hear(Update::Done(self.usage));
        }
    }

    fn say(&mut self, update: Update) {
        if !self.heard_first {
            self.heard_first = true;
            self.usage.first_token_s = self.arrived.elapsed().as_secs_f64();
        }
        self.listener.hear(update);
    }

    /// Tells the listener that this is the end.
    pub fn fail(&mut self, why: String) {
        self.listener.hear(Update::Failed(why));
    }
}
