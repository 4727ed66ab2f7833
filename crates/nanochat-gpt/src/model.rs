//! What an engine needs of a model: prefill one prompt, fork it, decode a column at a time.

use crate::{Error, Result};

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
    /// As [`Decoder::decode`]; returns the id of each row's largest logit, the lowest of equals: all
    /// that greedy generation needs, and on a GPU all that is copied.
    fn decode_likeliest(&mut self, ids: &[u32]) -> Result<Vec<u32>> {
        Ok(likeliest(&self.decode(ids)?, self.rows()))
    }
    /// Feeds one id to each row, then what [`Decoder::decode_likeliest`] finds, `steps` columns in all;
    /// returns the ids found (steps, rows). A GPU is not waited for between the steps.
    ///
    /// Errors: [`crate::Error::ContextFull`] before the first step.
    fn decode_likeliest_ahead(&mut self, ids: &[u32], steps: usize) -> Result<Vec<u32>> {
        likeliest_ahead(self, ids, steps)
    }
}

/// [`Decoder::decode_likeliest_ahead`], one step after the other.
pub(crate) fn likeliest_ahead(
    decoder: &mut (impl Decoder + ?Sized),
    ids: &[u32],
    steps: usize,
) -> Result<Vec<u32>> {
    let (have, limit) = (decoder.len(), decoder.max_len());
    if have + steps > limit {
        return Err(Error::ContextFull { have, asked: steps, limit });
    }
    let (mut column, mut all) = (ids.to_vec(), Vec::new());
    for _ in 0..steps {
        column = decoder.decode_likeliest(&column)?;
        all.extend_from_slice(&column);
    }
    Ok(all)
}

/// The likeliest id of each of `n` rows of logits, the lowest of equals.
pub fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    // The largest in lanes, which the compiler makes vectors of, then where it stands first.
    let best = |row: &[f32]| {
        let mut lanes = [f32::NEG_INFINITY; 16];
        for piece in row.chunks(lanes.len()) {
            for (largest, x) in lanes.iter_mut().zip(piece) {
                *largest = if x > largest { *x } else { *largest };
            }
        }
        let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        row.iter().position(|x| *x == largest).unwrap_or(0) as u32
    };
    logits.chunks(logits.len() / n).map(best).collect()
}
