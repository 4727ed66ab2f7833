//! A model and a tokenizer to text: sampling, generation, the calculator tool, chat sessions.
//!
//! | in | out | room |
//! |---|---|---|
//! | logits | one id | [`sample`] (numbers from [`rng`]) |
//! | a prompt of ids | n rows of ids, step by step | [`generate`] |
//! | ids of one row | text, tool calls, tool answers | [`tool`], [`text`] |
//! | an expression | its value as Python writes it | [`calculator`] |
//! | a person's turns | the assistant's turns | [`session`] |
//! | rows of ids | how different they are, and whether they are drawn fairly | [`diversity`] |
#![forbid(unsafe_code)]

pub mod batch;
pub mod calculator;
pub mod diversity;
pub mod error;
pub mod generate;
pub mod rng;
pub mod sample;
pub mod session;
pub mod text;
pub mod tool;

#[cfg(test)]
mod fake;
mod number;

pub use diversity::{ChiSquare, Diversity, chi_square};
pub use error::{Error, Result};
pub use generate::{
    Emitted, Engine, Finish, FirstToken, GenerateOptions, Generation, Row, Stats, Step,
};
pub use sample::{SampleOptions, Sampler};
pub use session::{ChatOptions, Event, Session};
pub use text::Piece;
