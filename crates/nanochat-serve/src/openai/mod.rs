//! OpenAI's API: fields in, JSON or events out.
//!
//! `fields` one table of what a request may say | `request` its values, checked | `messages` a
//! conversation to ids | `chat`, `completions` the two ways to ask | `logprobs` their probabilities |
//! `models`, `tokens` the small routes

pub mod chat;
pub mod completions;
pub mod fields;
pub mod logprobs;
pub mod messages;
pub mod models;
pub mod request;
pub mod tokens;
pub mod tools;
