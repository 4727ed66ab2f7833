//! What the tests of evaluations share: models that know chosen rows, and nothing else.
#![allow(dead_code)]

use nanochat_gpt::model::Decoder;
use nanochat_gpt::{Error, Result};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use nanochat_train::eval::{Graded, Progress};

/// Bytes and special tokens, no merges.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new()).expect("no merges, none bad")
}

/// Says the next id of a row that it knows, with e^20 to one; where it knows none, every id alike.
pub struct Rigged {
    known: Vec<Vec<u32>>,
    vocab_size: usize,
    rows: Vec<Vec<u32>>,
}

impl Rigged {
    pub fn new(tokenizer: &Tokenizer, known: Vec<Vec<u32>>) -> Self {
        Self { known, vocab_size: tokenizer.vocab_size(), rows: vec![vec![]] }
    }

    fn logits(&self, row: &[u32]) -> Vec<f32> {
        let mut logits = vec![0.0; self.vocab_size];
        let known = self.known.iter().find(|k| k.len() > row.len() && k.starts_with(row));
        if let Some(known) = known {
            logits[known[row.len()] as usize] = 20.0;
        }
        logits
    }
}

impl Decoder for Rigged {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_len(&self) -> usize {
        100_000
    }

    fn len(&self) -> usize {
        self.rows[0].len()
    }

    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn reset(&mut self) {
        self.rows = vec![vec![]];
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        if self.rows.len() != 1 || ids.is_empty() {
            return Err(Error::Config { field: "prefill", detail: "one row, some ids".into() });
        }
        self.rows[0].extend_from_slice(ids);
        Ok(self.logits(&self.rows[0]))
    }

    fn fork(&mut self, n: usize) -> Result<()> {
        self.rows = vec![self.rows[0].clone(); n];
        Ok(())
    }

    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.rows.iter_mut().zip(ids).for_each(|(row, id)| row.push(*id));
        Ok(self.rows.iter().flat_map(|row| self.logits(row)).collect())
    }
}

/// Keeps what an evaluation tells.
#[derive(Default)]
pub struct Kept(pub Vec<Graded>);

impl Progress for Kept {
    fn item(&mut self, item: Graded, done: usize, of: usize) -> nanochat_train::Result<()> {
        self.0.push(item);
        assert!(done == self.0.len() && done <= of, "{done} of {of}");
        Ok(())
    }
}
