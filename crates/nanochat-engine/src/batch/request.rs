//! What is asked of a batch and what it says back: the one door between a server and the engine.
//!
//! Everything here is plain data and may cross threads. Who asks gives a [`Listener`]; the batch calls
//! it from its own thread and never waits for it.

use crate::generate::Finish;
use crate::sample::SampleOptions;
use crate::text::Piece;

/// One prompt and how it is to be continued.
pub struct Request {
    /// Ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// Samples, each a row of its own; they share the prompt's pages.
    pub n: usize,
    /// Most ids that a row gets. 0: none, the prompt alone is computed (for its log probabilities).
    pub max_tokens: usize,
    /// How ids are drawn: row r of the request draws as row r of the seed, whoever else is served.
    pub sample: SampleOptions,
    /// A row ends before the first of these in its text.
    pub stop: Vec<String>,
    /// A row ends at assistant_end or bos.
    pub stop_at_eot: bool,
    /// Tool calls are answered.
    pub tools: bool,
    /// With each id its log probability and those of so many likeliest ids (0: only its own).
    pub logprobs: Option<usize>,
    /// The same for the prompt's ids.
    pub prompt_logprobs: bool,
    /// Which ids may come next, for structured output; made anew for each row.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// A form that an answer must have.
pub trait Constraint: Send {
    /// A fresh state at the beginning of an answer.
    fn begin(&self) -> Box<dyn ConstraintState>;
}

/// Where in its form a row is.
pub trait ConstraintState: Send {
    /// Clears the bit of every id (bit `id % 64` of word `id / 64`) that may not come next; the words
    /// cover the vocabulary and come in with all bits set. If the answer may end here, the bit of
    /// assistant_end stays.
    ///
    /// Errors: what is wrong with the form, in words for the caller.
    fn mask(&mut self, words: &mut [u64]) -> Result<(), String>;
    /// Takes in the id that was drawn.
    ///
    /// Errors: as [`ConstraintState::mask`].
    fn accept(&mut self, id: u32) -> Result<(), String>;
}

/// Who hears what becomes of a request. Called from the batch's thread: must not block.
pub trait Listener: Send {
    /// Takes in the next update.
    fn hear(&mut self, update: Update);
    /// True when nobody listens any more; looked at before every step, the request is then cancelled.
    fn is_gone(&self) -> bool;
}

/// What happens to a request, in this order: Began, Prompt if asked, then Token and Ended of the rows in any
/// order, then Done. Failed may come at any time and is then the last.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The prompt is about to be computed.
    Began {
        /// Ids of the prompt.
        prompt_tokens: usize,
        /// How many of them were held in the prefix cache.
        reused_tokens: usize,
        /// Seconds in the queue.
        queued_s: f64,
    },
    /// Log probabilities of the prompt's ids; the first has none.
    Prompt(Vec<Option<TokenLogprobs>>),
    /// A row got an id.
    Token {
        /// Row of the request, from 0.
        row: usize,
        /// The id.
        id: u32,
        /// True if a tool put it there.
        forced: bool,
        /// What a reader can be shown now: whole characters, nothing of a stop string.
        pieces: Vec<Piece>,
        /// If asked for, and if the model drew the id.
        logprobs: Option<TokenLogprobs>,
    },
    /// A row is over.
    Ended {
        /// Row of the request, from 0.
        row: usize,
        /// Why.
        finish: Finish,
        /// The id that ended the turn, if [`Finish::Eot`].
        terminal: Option<u32>,
        /// What had been held back.
        pieces: Vec<Piece>,
    },
    /// All rows are over.
    Done(Usage),
    /// The request failed; others go on.
    Failed(String),
}

/// ln p of an id under the model's own distribution: softmax of the logits, before temperature, penalties and
/// filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The id.
    pub id: u32,
    /// Its log probability.
    pub logprob: f32,
    /// The likeliest ids, best first.
    pub top: Vec<(u32, f32)>,
}

/// Counts and times of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// Of these, held in the prefix cache.
    pub reused_tokens: usize,
    /// Ids drawn or forced in all rows; the end of turn is not counted.
    pub generated_tokens: usize,
    /// Seconds in the queue.
    pub queued_s: f64,
    /// From the request's arrival to its first id, seconds.
    pub first_token_s: f64,
    /// From the request's arrival to its end, seconds.
    pub total_s: f64,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The queue is full.
    #[error(
        "{waiting} requests are waiting, the queue holds {limit}: try again in {retry_after_s} s"
    )]
    Full {
        /// Requests in the queue.
        waiting: usize,
        /// Most that may wait.
        limit: usize,
        /// A guess of when there is room, at least 1.
        retry_after_s: u64,
    },
    /// The prompt and its answer can never be held.
    #[error(
        "the prompt has {prompt} tokens and {max_tokens} more are asked for, the context holds {limit}: shorten one of them"
    )]
    TooLong {
        /// Ids of the prompt.
        prompt: usize,
        /// Ids asked for.
        max_tokens: usize,
        /// Most that a row can hold.
        limit: usize,
    },
    /// A parameter outside its range.
    #[error("{name} is {value}: choose {allowed}")]
    Option {
        /// The parameter, as a client writes it.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        allowed: String,
    },
    /// The batch takes no more requests: it drains, or its model failed.
    #[error("no more requests are taken: the server is stopping")]
    Closed,
}

/// How busy a batch is, and totals since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests in the queue.
    pub waiting: usize,
    /// Requests being computed.
    pub running: usize,
    /// Rows being computed.
    pub rows: usize,
    /// Pages of keys and values held by requests, by the prefix cache alone, and in all.
    pub pages_used: usize,
    /// Pages that only the prefix cache holds: given up when requests need them.
    pub pages_cached: usize,
    /// Most pages there can be.
    pub pages_total: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, found.
    pub prefix_hits: u64,
    /// Prompt tokens computed.
    pub prompt_tokens: u64,
    /// Ids drawn or forced.
    pub generated_tokens: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Steps since the beginning.
    pub steps: u64,
}

/// What a batch can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most ids of a row, prompt and answer.
    pub context: usize,
    /// V.
    pub vocab_size: usize,
    /// Most rows computed at once.
    pub rows: usize,
    /// Most requests that wait.
    pub queue: usize,
}

/// Whoever generates for a server: a batch, or a script in tests.
pub trait Generator: Send + Sync {
    /// Puts a request in the queue. After Ok the listener hears [`Update::Done`] or [`Update::Failed`] at the
    /// end, unless it is gone before.
    ///
    /// Errors: [`Refused`]; nothing was queued then.
    fn submit(&self, request: Request, listener: Box<dyn Listener>) -> Result<(), Refused>;
    /// How busy it is.
    fn load(&self) -> Load;
    /// What it can hold.
    fn limits(&self) -> Limits;
    /// Takes no more requests; what was taken is finished.
    fn close(&self);
}
