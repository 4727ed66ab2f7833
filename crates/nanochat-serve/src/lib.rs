//! HTTP in front of the engine: OpenAI's API, the chat page, history, metrics.
//!
//! ```text
//! bytes -> server (limits, timeouts) -> guard (host, origin, key, request id) -> router
//!   -> openai | legacy | page | history | runs -> job (one request to the Generator) -> JSON or sse
//! ```
//! | room | what |
//! |---|---|
//! | [`config`] | everything that flags decide |
//! | [`server`] | sockets, signals, draining |
//! | `guard` | who may ask: host, origin, key; request ids, panics, security headers |
//! | `router` | paths to handlers |
//! | `openai` | chat and text completions, models, tokens: fields in, JSON or events out |
//! | `job` | one request to the engine and what it says back |
//! | `sse`, `streams` | events on the wire; events kept for a reader that comes back |
//! | `structured` | JSON schemas as constraints on ids |
//! | `history`, `runs`, `page` | conversations in SQLite, training runs, the files of the page |
//! | `metrics` | what Prometheus scrapes |
//!
//! Async begins and ends in this crate; the engine is reached through
//! [`nanochat_engine::batch::Generator`] alone.
#![forbid(unsafe_code)]

mod app;
pub mod auth;
mod body;
pub mod config;
mod error;
mod guard;
mod history;
mod info;
mod job;
mod legacy;
mod metrics;
mod openai;
mod openapi;
mod page;
mod router;
mod runs;
pub mod server;
mod sse;
mod streams;
mod structured;

pub use config::{Config, ModelInfo};
pub use error::{Error, Result};
pub use server::Server;
