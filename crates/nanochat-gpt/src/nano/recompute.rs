//! Generation without a KV cache: every call runs the plain forward pass over the whole of every row.
//! The reference of [`super::decode`], and the baseline of its speed.

use nanochat_compute::ops::{LOSS_ROWS, WeightFormat};
use nanochat_compute::{Backend, DType, Tensor};

use super::Nano;
use super::buffers::{Mode, StepPlan};
use super::packed::PackedWeights;
use crate::model::Decoder;
use crate::{Error, Result};

/// Tokens that run through the layers together: bounds the memory of many long rows, and a group's
/// rows, whose logits come together, by `LOSS_ROWS`.
const TOKENS: usize = 4096;

/// A model that remembers ids and nothing else.
pub struct Recompute<'a> {
    be: &'a dyn Backend,
    model: &'a Nano,
    max_len: usize,
    weights: PackedWeights,
    rows: Vec<Vec<u32>>,
    arena: Tensor,
}

impl<'a> Recompute<'a> {
    /// One empty row that can hold `max_len` tokens (at most the reach of the rotary tables). The model's
    /// weights are packed now, as with a cache.
    pub fn new(be: &'a dyn Backend, model: &'a Nano, max_len: usize) -> Result<Self> {
        Self::with_weights(be, model, max_len, WeightFormat::Auto)
    }

    /// The same, reading weights in a format of one's choice.
    pub fn with_weights(
        be: &'a dyn Backend,
        model: &'a Nano,
        max_len: usize,
        format: WeightFormat,
    ) -> Result<Self> {
        let max_len = max_len.clamp(1, super::rope::reach(&model.config));
        let weights = PackedWeights::new(be, model, format)?;
        let arena = be.alloc(0, DType::F32)?;
        Ok(Self { be, model, max_len, weights, rows: vec![Vec::new()], arena })
    }

    /// The weights as they are read.
    pub fn weights(&self) -> &PackedWeights {
        &self.weights
    }

    /// Appends one id to each row without computing anything: for measuring some steps of many.
    ///
    /// Errors: as [`Decoder::decode`].
    pub fn remember(&mut self, ids: &[u32]) -> Result<()> {
        if ids.len() != self.rows.len() {
            let detail = format!("{} ids for {} rows", ids.len(), self.rows.len());
            return Err(Error::Config { field: "decode", detail });
        }
        self.check(ids, 1)?;
        for (row, id) in self.rows.iter_mut().zip(ids) {
            row.push(*id);
        }
        Ok(())
    }

    fn check(&self, ids: &[u32], asked: usize) -> Result<()> {
        let vocab_size = self.model.config.vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id, vocab_size });
        }
        if self.len() + asked > self.max_len {
            return Err(Error::ContextFull { have: self.len(), asked, limit: self.max_len });
        }
        Ok(())
    }

    /// Logits (rows, V) after the last token of every row.
    fn forward(&mut self) -> Result<Vec<f32>> {
        let t = self.len();
        let rows = std::mem::take(&mut self.rows);
        let groups = rows.chunks((TOKENS / t).clamp(1, LOSS_ROWS));
        let logits = groups.map(|rows| self.group(rows, t)).collect::<Result<Vec<_>>>();
        self.rows = rows;
        Ok(logits?.concat())
    }

    fn group(&mut self, rows: &[Vec<u32>], t: usize) -> Result<Vec<f32>> {
        let plan = StepPlan::on(self.be, &self.model.config, rows.len(), t, Mode::Eval);
        if plan.bytes() > self.arena.bytes() {
            // Rows get longer by one token at a time: leave room for more.
            self.arena = self.be.alloc((plan.bytes() / 4).next_power_of_two(), DType::F32)?;
        }
        let bufs = plan.views(&self.arena);
        let ids: Vec<i32> = rows.iter().flatten().map(|&id| id as i32).collect();
        bufs.tokens.write_i32(&ids)?;
        self.model.forward_body(self.be, &bufs, &self.weights)?;
        let (n, c) = (rows.len(), self.model.config.n_embd);
        let last: Vec<i32> = (1..=n).map(|r| (r * t - 1) as i32).collect();
        let x = self.be.alloc(n * c, bufs.yf.dtype())?;
        self.be.embedding(&x, &bufs.yf, &self.be.place_i32(&last)?, c)?;
        self.model.head(self.be, &bufs, &self.weights, &x, n)
    }
}

impl Decoder for Recompute<'_> {
    fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
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
        self.rows = vec![Vec::new()];
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        if self.rows.len() != 1 || ids.is_empty() {
            let rows = self.rows.len();
            let detail = format!("{} ids for {rows} rows: prefill feeds one row", ids.len());
            return Err(Error::Config { field: "prefill", detail });
        }
        self.check(ids, ids.len())?;
        self.rows[0].extend_from_slice(ids);
        self.forward()
    }

    fn fork(&mut self, n: usize) -> Result<()> {
        if self.rows.len() != 1 || n == 0 {
            let detail = format!("{n} copies of {} rows: fork copies one row", self.rows.len());
            return Err(Error::Config { field: "fork", detail });
        }
        self.rows = vec![self.rows[0].clone(); n];
        Ok(())
    }

    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.remember(ids)?;
        self.forward()
    }
}
