//! What an engine needs of a model: prefill one prompt, fork it, decode a column at a time.

use crate::Result;

/// A model with a KV cache: one prompt is prefilled, forked to n rows, then every row is fed one id a step.
///
/// V is the vocabulary size without padding. All rows hold the same number of tokens.
pub trait Decoder {
    /// V: how many logits a row has.
    fn vocab_size(&self) -> usize;
    /// Most tokens (prompt and generated) that a row can hold.
    fn max_len(&self) -> usize;
    /// Tokens held by each row.
    fn len(&self) -> usize;
    /// True when nothing is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Forgets everything; one empty row remains.
    fn reset(&mut self);
    /// Allocates once for what is to come: a prompt of so many tokens in one row (what is held counts),
    /// then `rows` rows of `len` tokens in all. Without it, memory grows as it is needed.
    ///
    /// Errors: memory that is not there; nothing has changed then.
    fn reserve(&mut self, prompt: usize, rows: usize, len: usize) -> Result<()> {
        let _ = (prompt, rows, len);
        Ok(())
    }
    /// Appends `ids` to the single row; returns the logits (V) after the last one.
    ///
    /// Errors: [`crate::Error::ContextFull`], [`crate::Error::TokenId`]. On an error nothing was appended.
    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>>;
    /// Copies the single row `n` times (n >= 1).
    fn fork(&mut self, n: usize) -> Result<()>;
    /// Feeds one id to each row; returns the logits (rows, V), row-major.
    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>>;
}
