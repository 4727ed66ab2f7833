//! What can go wrong between a batch and a checkpoint.

use serde::Serialize;

use crate::stop::Why;

/// Something that a checkpoint and the run that would go on from it do not agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What differs.
    pub what: String,
    /// In the checkpoint.
    pub have: String,
    /// In this run.
    pub want: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, have, want } = self;
        write!(f, "{what} differs: the checkpoint has {have}, this run {want}")
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

fn hint(can_force: bool) -> &'static str {
    if can_force {
        " (give what the checkpoint has, or go on all the same with --force, which is put on record)"
    } else {
        " (this is not the same run: begin a new one)"
    }
}

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loss or a gradient is not a finite number.
    #[error(
        "step {step}: {tensor} is not finite (loss {loss}, micro step {micro_step}, batch {batch}): the \
         optimizer did not step and the last checkpoint is untouched (a lower learning rate often helps)"
    )]
    NotFinite {
        /// Step.
        step: u64,
        /// Micro step within the step; the last one when a gradient is meant, which is of all.
        micro_step: usize,
        /// Name of the batch, or of all batches of the step.
        batch: String,
        /// The loss.
        loss: f64,
        /// The first tensor that is not finite: a parameter, a gradient, or the loss itself.
        tensor: String,
    },
    /// The loss is far above those before it.
    #[error(
        "step {step}: the loss is {loss:.4}, above {limit:.4}, the limit that the steps before give \
         (batch {batch}): the optimizer did not step"
    )]
    Spike {
        /// Step.
        step: u64,
        /// Names of the batches.
        batch: String,
        /// The loss.
        loss: f64,
        /// The most that is no spike.
        limit: f64,
    },
    /// Bad steps that going back did not cure.
    #[error(
        "stopped for good: {cause}; {skipped} bad steps in all, {tried}: look at that data and lower the \
         learning rate; step {checkpoint} is the last good checkpoint"
    )]
    Diverged {
        /// The last bad step.
        cause: Box<Error>,
        /// Bad steps so far.
        skipped: u64,
        /// What was tried, in words.
        tried: String,
        /// The checkpoint that stays.
        checkpoint: u64,
    },
    /// A run that was asked to stop, within a step; the driver turns it into [`Error::Stopped`].
    #[error("{why} within step {step}")]
    Interrupted {
        /// Step.
        step: u64,
        /// Why.
        why: Why,
    },
    /// A run that was asked to stop, and did.
    #[error("stopped by {why} after step {step}; {saved}")]
    Stopped {
        /// Why.
        why: Why,
        /// Steps taken.
        step: u64,
        /// What is on disk, and how to go on.
        saved: String,
    },
    /// The run is at its end and cannot be saved.
    #[error(
        "all {step} steps are taken, but the last checkpoint cannot be written ({cause}): make room, then \
         go on with --resume; step {checkpoint} is the last that was saved"
    )]
    Unsaved {
        /// Steps taken.
        step: u64,
        /// What the system said.
        cause: Box<Error>,
        /// The checkpoint that stays; 0: none.
        checkpoint: u64,
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
    #[error("cannot resume: {}{}", list(differences), hint(*can_force))]
    Resume {
        /// All that differs.
        differences: Vec<Difference>,
        /// False when `--force` would not help.
        can_force: bool,
    },
    /// Ranks that were not started alike.
    #[error(
        "the ranks do not agree on {what}: rank {rank} has {mine}, rank 0 has {rank_0}: start all of them \
         with the same command, files and program"
    )]
    Disagree {
        /// What differs.
        what: &'static str,
        /// This rank.
        rank: usize,
        /// What it has.
        mine: String,
        /// What rank 0 has; the same, when it is another rank that differs.
        rank_0: String,
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
    /// An answer that was not written to its end.
    #[error("an answer could not be written: {why}")]
    Answer {
        /// What the batch said.
        why: String,
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
