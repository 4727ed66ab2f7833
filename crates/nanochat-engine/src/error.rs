//! What can go wrong between a prompt and its answer.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option outside its range.
    #[error("{name} is {value}: choose {allowed}")]
    Option {
        /// The option, as the user writes it.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is accepted.
        allowed: &'static str,
    },
    /// A logit that is NaN or infinite, or no logits at all.
    #[error(
        "the model gave {value} as the logit of id {id} (row {row}, step {step}): its weights are \
         damaged or its training diverged; load an earlier checkpoint"
    )]
    Logit {
        /// Row of the batch.
        row: u64,
        /// Ids generated in this row before.
        step: u64,
        /// Token id of the first bad logit.
        id: usize,
        /// The logit.
        value: f32,
    },
    /// A form of the answer that no id can go on with.
    #[error("no id may come next (row {row}, step {step}): the form that is asked for has no end")]
    NothingAllowed {
        /// Row of the request.
        row: u64,
        /// Ids generated in this row before.
        step: u64,
    },
    /// The model returned another number of logits than it promised.
    #[error("the model returned {found} logits, {expected} expected: this is a fault of the model")]
    LogitCount {
        /// Logits returned.
        found: usize,
        /// Rows times V.
        expected: usize,
    },
    /// Nothing to continue.
    #[error("the prompt is empty: give at least one token (a document starts with bos)")]
    EmptyPrompt,
    /// The caller said that the model holds a prefix which it does not hold.
    #[error(
        "the model holds {rows} rows of {len} tokens, one row of {expected} expected: reset it and \
         send the whole prompt"
    )]
    Held {
        /// Rows held.
        rows: usize,
        /// Tokens held by each.
        len: usize,
        /// Tokens that the caller counts on.
        expected: usize,
    },
    /// Tools, stop strings or the end of turn asked of an engine that has no tokenizer.
    #[error("{what} needs a tokenizer: make the engine with Engine::new")]
    NoTokenizer {
        /// What was asked.
        what: &'static str,
    },
    /// Model and tokenizer do not belong together.
    #[error(
        "the model has {model} token ids, the tokenizer {tokenizer}: load the tokenizer that the \
         model was trained with"
    )]
    Vocabulary {
        /// V of the model.
        model: usize,
        /// V of the tokenizer.
        tokenizer: usize,
    },
    /// One message that the context cannot hold even alone.
    #[error("the message has {tokens} tokens, the context {limit}: shorten it")]
    MessageTooLong {
        /// Tokens of the turn, system message included.
        tokens: usize,
        /// The most that fit.
        limit: usize,
    },
    /// An empty message.
    #[error("the message is empty: write something")]
    EmptyMessage,
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] nanochat_tokenizer::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] nanochat_gpt::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
