//! What can go wrong between a batch and a checkpoint.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loss is not a finite number.
    #[error(
        "step {step}: the loss is {loss} on micro step {micro_step}, batch {batch}: the run stopped \
         before the optimizer step; the last checkpoint is untouched (a lower learning rate often helps)"
    )]
    NotFinite {
        /// Step.
        step: u64,
        /// Micro step within the step.
        micro_step: usize,
        /// Name of the batch.
        batch: String,
        /// The loss.
        loss: f64,
    },
    /// Values of a recipe that do not go together.
    #[error("{what}: {detail}")]
    Recipe {
        /// Flag or value.
        what: &'static str,
        /// What is wrong, and what would do.
        detail: String,
    },
    /// Not even the smallest micro batch fits.
    #[error(
        "training needs {need} bytes with {batch_size} row(s) a micro batch, {budget} may be used: \
         free memory, raise the limit, or take a smaller model or a shorter --max-seq-len"
    )]
    Memory {
        /// The smallest micro batch.
        batch_size: usize,
        /// Bytes of training with it.
        need: u64,
        /// Bytes that may be planned for.
        budget: u64,
    },
    /// A checkpoint that does not belong to this run.
    #[error("cannot resume: {what} differs: the checkpoint has {have}, this run {want}")]
    Resume {
        /// What differs.
        what: String,
        /// In the checkpoint.
        have: String,
        /// In this run.
        want: String,
    },
    /// A letter of a choice that the model cannot say in one token.
    #[error(
        "the tokenizer has no single token for the letter {letter:?}: the model cannot choose it by \
         its logits"
    )]
    Letter {
        /// The letter.
        letter: String,
    },
    /// A question that the model cannot hold.
    #[error("question {id} is {tokens} tokens long, the model holds {most}: leave its task out")]
    LongPrompt {
        /// The question.
        id: String,
        /// Its tokens.
        tokens: usize,
        /// What the model holds.
        most: usize,
    },
    /// Metrics or a log cannot be written.
    #[error("{file}: {source}")]
    Io {
        /// File.
        file: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// From the data.
    #[error(transparent)]
    Data(#[from] nanochat_data::Error),
    /// From the model.
    #[error(transparent)]
    Gpt(#[from] nanochat_gpt::Error),
    /// From a kernel.
    #[error(transparent)]
    Compute(#[from] nanochat_compute::Error),
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] nanochat_engine::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
