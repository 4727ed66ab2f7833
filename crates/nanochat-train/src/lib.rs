//! Batches to checkpoint: one train step, driven by the base, the SFT and the RL loop.
//!
//! | room | what |
//! |---|---|
//! | [`step`] | THE PAGE: gradients of the micro batches, then the optimizer |
//! | [`recipe`] | every value of a base run, from `--depth` and the scaling laws |
//! | [`batch_size`] | rows of a micro batch: memory by arithmetic, speed by a short probe |
//! | [`schedule`] | learning rate, momentum and weight decay over the steps |
//! | [`optim`] | parameter groups, rates, state |
//! | [`base`], [`sft`], [`rl`] | what feeds the step, and what happens between steps |
//! | [`ranks`] | one run on several ranks: who steps what, and what all decide together |
//! | [`resume`] | a trainer's state to and from a checkpoint |
//! | [`survival`], [`guard`], [`stop`] | full disks, steps that must not reach the weights, being asked to stop |
//! | [`metrics`] | step lines and `metrics.jsonl` |
//! | [`answers`] | many prompts answered at once, for [`rl`] and [`eval`] |
//! | [`eval`] | bits per byte, CORE, chat tasks, held-out questions |
#![forbid(unsafe_code)]

pub mod answers;
pub mod base;
pub mod batch_size;
pub mod error;
pub mod eval;
mod finite;
pub mod guard;
pub mod metrics;
pub mod optim;
pub mod ranks;
pub mod recipe;
mod replay;
pub mod resume;
pub mod rl;
pub mod schedule;
pub mod sft;
pub mod step;
pub mod stop;
pub mod survival;

pub use error::{Error, Result};
