//! Many requests at once: rows join and leave at any step.
//!
//! ```text
//! submit -> queue -> admitted when its pages can be set aside -> prompt, in chunks -> rows, an id a step
//! ```
//! | room | what |
//! |---|---|
//! | [`request`] | what is asked, and what is said back |
//! | `queue` | the handle that a server holds |
//! | `run` | the loop: admission, one step after another |
//! | `job` | one request under way |
//! | `logprobs` | logits to log probabilities |
//!
//! **Order.** First come, first admitted: a request that does not fit keeps those behind it waiting, so
//! none starves. What an admitted request may need, prompt and answer of all its rows, is set aside at
//! once; nothing is ever preempted.
//!
//! **A step** takes one id of every row that is answering, then chunks of prompts, oldest first, up to
//! [`BatchOptions::step_tokens`]: a long prompt delays the others by chunks.
//!
//! **Faults** stay where they are. What belongs to one request - its listener, constraint, text, draws -
//! runs by itself, and a panic there ends that request alone: everything that the panic may have left
//! half done is dropped with it, and what is shared was only read. A step of the model that fails ends the
//! requests that were in it.

mod job;
mod logprobs;
mod queue;
pub mod request;
mod run;
#[cfg(test)]
mod tests;

pub use queue::{Batch, BatchOptions};
pub use request::{
    Constraint, ConstraintState, Generator, Limits, Listener, Load, Refused, Request,
    TokenLogprobs, Update, Usage,
};
