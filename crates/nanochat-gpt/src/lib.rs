//! nanochat's GPT: ids to logits, loss and gradients; the parameter table; checkpoints.
//!
//! | room | what |
//! |---|---|
//! | [`config`] | sizes and generation, checked |
//! | [`model`] | what an engine needs of a model |
//! | [`batch`] | what a server's engine needs of one |
//! | [`paging`] | who holds which page of keys and values |
//! | [`checkpoint`] | a step on disk: written aside, checked, renamed |
//! | [`import`] | models of others |
//! | [`weights`] | parameters as safetensors |
//! | [`nano`] | the architecture: table, buffers, forward, backward, decode, count |
#![forbid(unsafe_code)]

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod import;
pub mod model;
pub mod nano;
pub mod paging;
pub mod weights;

pub use config::{Generation, GptConfig, RawConfig};
pub use error::{Error, Result};
pub use nano::Nano;
