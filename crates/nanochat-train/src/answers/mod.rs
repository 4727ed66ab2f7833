//! Answers to many prompts, for evaluations and reinforcement.
//!
//! [`OneByOne`] asks any decoder, one prompt after another: the reference. [`Together`] writes them all at
//! once, as rows of the engine's batch. Both draw the same ids.

mod together;

use std::ops::ControlFlow;

use nanochat_engine::generate::{Engine, GenerateOptions, Row};
use nanochat_engine::sample::SampleOptions;
use nanochat_gpt::model::Decoder;
use nanochat_tokenizer::Tokenizer;

use crate::Result;
pub use together::{ROWS, Together};

/// A prompt, and how its answers are drawn.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Ids, fewer than the writer's [`Writer::max_len`].
    pub prompt: Vec<u32>,
    /// Row r of it draws as row r of the seed.
    pub sample: SampleOptions,
}

/// What holds for all prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writing {
    /// Independent samples of each prompt.
    pub num_samples: usize,
    /// Most ids of an answer.
    pub max_tokens: usize,
    /// The calculator answers.
    pub tools: bool,
}

/// Takes the answers of prompt `i`; called in the order of the prompts.
pub type Taken<'d> = dyn FnMut(usize, Vec<Row>) -> Result<()> + 'd;

/// Who writes answers.
pub trait Writer {
    /// Most ids of a prompt with its answer.
    fn max_len(&self) -> usize;

    /// Writes the answers to all prompts.
    ///
    /// Errors: those of the engine; those of `done`, after which nothing more is written.
    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        asked: &[Asked],
        writing: &Writing,
        done: &mut Taken<'_>,
    ) -> Result<()>;
}

/// Any decoder, one prompt after another. The reference; never optimise it.
pub struct OneByOne<'d>(pub &'d mut dyn Decoder);

impl Writer for OneByOne<'_> {
    fn max_len(&self) -> usize {
        self.0.max_len()
    }

    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        asked: &[Asked],
        writing: &Writing,
        done: &mut Taken<'_>,
    ) -> Result<()> {
        for (i, one) in asked.iter().enumerate() {
            let room = self.0.max_len().saturating_sub(one.prompt.len());
            let options = GenerateOptions {
                n: writing.num_samples,
                tools: writing.tools,
                ..GenerateOptions::new(one.sample.clone(), writing.max_tokens.min(room))
            };
            self.0.reset();
            let generation =
                Engine::new(self.0, tokenizer)?
                    .generate(&one.prompt, &options, |_| ControlFlow::Continue(()))?;
            done(i, generation.rows)?;
        }
        self.0.reset();
        Ok(())
    }
}
