//! What the train crate asks for: batches of rows, and a state that resumes them bit for bit.

use nanochat_tokenizer::Tokenizer;

use crate::error::Result;

/// The target that is not trained.
pub const IGNORE: i32 = -1;

/// `b` rows of `t` tokens with their targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Rows, B.
    pub b: usize,
    /// Tokens a row, T. The same for every batch but under [`crate::pack::Batching::Dynamic`].
    pub t: usize,
    /// (B, T) inputs.
    pub x: Vec<i32>,
    /// (B, T) targets: the token after each input, or [`IGNORE`].
    pub y: Vec<i32>,
    /// (B, T) factor of each target's gradient; none: 1. A policy gradient has its advantages here.
    pub w: Option<Vec<f32>>,
    /// Pass over the data, from 1.
    pub epoch: u64,
    /// Where it came from, for messages: `shard_00003.parquet row group 5, epoch 1`.
    pub name: String,
    /// Targets that are not [`IGNORE`].
    pub trained_tokens: usize,
    /// Inputs that only fill a row.
    pub padding_tokens: usize,
}

/// An endless stream of batches.
pub trait Batches: Send {
    /// The next batch.
    fn next_batch(&mut self) -> Result<Batch>;

    /// All that decides the batches to come: position and packing buffer, with a checksum.
    fn state(&self) -> Vec<u8>;

    /// Goes on as the stream did that gave this state.
    ///
    /// Errors: [`crate::Error::State`] for bytes that are damaged or of another stream; the stream
    /// is then as it was.
    fn restore(&mut self, state: &[u8]) -> Result<()>;

    /// Names data, tokenizer, T and B.
    fn fingerprint(&self) -> String;

    /// Share of the current epoch in [0, 1], best effort.
    fn progress(&self) -> f64;
}

/// What the loader needs of a tokenizer.
pub trait Encode: Send + Sync {
    /// The id before every document.
    fn bos(&self) -> u32;

    /// The ids of each text, without specials, in order.
    fn encode_batch(&self, texts: &[&str]) -> Vec<Vec<u32>>;

    /// Names the vocabulary and merges.
    fn fingerprint(&self) -> String;
}

impl Encode for Tokenizer {
    fn bos(&self) -> u32 {
        Tokenizer::bos(self)
    }

    fn encode_batch(&self, texts: &[&str]) -> Vec<Vec<u32>> {
        Tokenizer::encode_batch(self, texts)
    }

    fn fingerprint(&self) -> String {
        Tokenizer::fingerprint(self)
    }
}

impl<E: Encode + ?Sized> Encode for std::sync::Arc<E> {
    fn bos(&self) -> u32 {
        (**self).bos()
    }

    fn encode_batch(&self, texts: &[&str]) -> Vec<Vec<u32>> {
        (**self).encode_batch(texts)
    }

    fn fingerprint(&self) -> String {
        (**self).fingerprint()
    }
}
