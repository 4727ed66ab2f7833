//! A model for tests whose logits are any function of a row's ids; it counts what it computes.

use nanochat_gpt::model::Decoder;
use nanochat_gpt::{Error, Result};
use nanochat_tokenizer::{DEFAULT_PATTERN, Special, Tokenizer};

/// Bytes and special tokens, no merges.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new()).expect("no merges, none bad")
}

/// A row's ids to its logits.
type Rule = dyn Fn(&[u32]) -> Vec<f32>;

pub(crate) struct FakeModel {
    rule: Box<Rule>,
    vocab_size: usize,
    pub(crate) max_len: usize,
    rows: Vec<Vec<u32>>,
    /// Ids that went through prefill.
    pub(crate) prefilled: usize,
    /// Columns that went through decode.
    pub(crate) decoded: usize,
}

impl FakeModel {
    pub(crate) fn new(vocab_size: usize, rule: impl Fn(&[u32]) -> Vec<f32> + 'static) -> Self {
        let rule = Box::new(rule);
        Self { rule, vocab_size, max_len: 4096, rows: vec![vec![]], prefilled: 0, decoded: 0 }
    }

    /// Logits that depend on the whole row by a hash: flat enough to sample from.
    pub(crate) fn hashed(vocab_size: usize) -> Self {
        Self::new(vocab_size, move |row| hashed_logits(vocab_size, row))
    }

    /// A model that, asked after any assistant_start, says `reply`, then assistant_end.
    ///
    /// Forced ids are part of what a row holds, so `reply` contains them too.
    pub(crate) fn scripted(tokenizer: &Tokenizer, reply: Vec<u32>) -> Self {
        let start = tokenizer.special(Special::AssistantStart);
        let end = tokenizer.special(Special::AssistantEnd);
        let vocab_size = tokenizer.vocab_size();
        Self::new(vocab_size, move |row| {
            let said = row.iter().rev().take_while(|id| **id != start).count();
            one_hot(vocab_size, reply.get(said).copied().unwrap_or(end))
        })
    }
}

/// Logits from 0 to 4 that depend on all ids of a row by a hash.
pub(crate) fn hashed_logits(vocab_size: usize, row: &[u32]) -> Vec<f32> {
    let hash = row.iter().fold(1_u64, |h, id| mix(h ^ u64::from(*id)));
    (0..vocab_size as u64).map(|i| (mix(hash ^ i) >> 40) as f32 / (1 << 22) as f32).collect()
}

/// 20 for one id, 0 for all others: e^20 to one against each.
pub(crate) fn one_hot(vocab_size: usize, id: u32) -> Vec<f32> {
    let mut logits = vec![0.0; vocab_size];
    logits[id as usize] = 20.0;
    logits
}

/// Source: the finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Decoder for FakeModel {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_len(&self) -> usize {
        self.max_len
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
        assert_eq!(self.rows.len(), 1, "prefill wants a single row");
        let (have, asked, limit) = (self.len(), ids.len(), self.max_len);
        if have + asked > limit {
            return Err(Error::ContextFull { have, asked, limit });
        }
        self.prefilled += asked;
        self.rows[0].extend_from_slice(ids);
        Ok((self.rule)(&self.rows[0]))
    }

    fn fork(&mut self, n: usize) -> Result<()> {
        assert_eq!(self.rows.len(), 1, "fork wants a single row");
        self.rows = vec![self.rows[0].clone(); n];
        Ok(())
    }

    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        assert_eq!(self.rows.len(), ids.len(), "one id for each row");
        let (have, limit) = (self.len(), self.max_len);
        if have + 1 > limit {
            return Err(Error::ContextFull { have, asked: 1, limit });
        }
        self.decoded += 1;
        for (row, id) in self.rows.iter_mut().zip(ids) {
            row.push(*id);
        }
        Ok(self.rows.iter().flat_map(|row| (self.rule)(row)).collect())
    }
}
