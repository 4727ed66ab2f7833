//! How likely given tokens are: the head runs on the positions that are asked for, and on no others.
//!
//! Two ways to the same numbers: [`NanoDecoder::score`] continues rows that share what they hold (a
//! prompt is computed once, its pages are shared), [`NanoDecoder::score_batch`] runs whole rows, padded
//! to one length, through the plain forward pass.

use nanochat_compute::DType;
use nanochat_compute::ops::{LOSS_ROWS, MatMul};

use super::super::Nano;
use super::super::buffers::{Buffers, Mode, StepPlan};
use super::super::forward::Past;
use super::super::table::Role;
use super::NanoDecoder;
use crate::{Error, Result};

/// What the model thinks of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// `-ln p(token | those before)`, in nats.
    pub loss: f32,
    /// The id that the model thinks likeliest in its place, the lowest of equals.
    pub likeliest: u32,
}

/// A token whose likelihood is asked for: in `row`, after the row's first `at` ids (so `at >= 1`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Row.
    pub row: usize,
    /// Position of the token in the row.
    pub at: usize,
    /// The token.
    pub id: u32,
}

impl NanoDecoder<'_> {
    /// Appends `t` ids to every row, (rows, t), and scores those whose target is given.
    ///
    /// `targets` (rows, t): what should follow each id, or a negative number where nobody asks. Returns
    /// the scores of those that are asked, in order. Afterwards every row holds `t` more tokens.
    /// Errors: [`Error::ContextFull`], [`Error::TokenId`], [`Error::Config`] for lengths that do not
    /// agree. On an error nothing was appended.
    pub fn score(&mut self, ids: &[u32], targets: &[i32]) -> Result<Vec<Scored>> {
        if ids.is_empty() || !ids.len().is_multiple_of(self.rows) || ids.len() != targets.len() {
            let (n, m, rows) = (ids.len(), targets.len(), self.rows);
            let detail = format!("{n} ids and {m} targets for {rows} rows");
            return Err(Error::Config { field: "score", detail });
        }
        let t = ids.len() / self.rows;
        self.check(ids, t)?;
        let asked = |(i, &id): (usize, &i32)| Some((i as i32, u32::try_from(id).ok()?));
        let asked: Vec<(i32, u32)> = targets.iter().enumerate().filter_map(asked).collect();
        self.check_targets(asked.iter().map(|a| a.1))?;
        self.plan(t)?;
        self.cache.begin(self.be, self.len, t, t)?;
        let (bufs, _) = self.buffers.as_ref().expect("planned above");
        bufs.tokens.write_i32(&ids.iter().map(|&id| id as i32).collect::<Vec<_>>())?;
        self.model.forward_body(self.be, bufs, self)?;
        let scored = score_rows(self, bufs, self, &asked)?;
        self.model.count(ids.len());
        self.len += t;
        self.cache.end(self.len);
        Ok(scored)
    }

    /// Scores tokens of whole rows, which share nothing; what the decoder held is forgotten.
    ///
    /// Rows may differ in length; shorter ones are filled up at their end, where nothing looks.
    /// Errors: as [`NanoDecoder::score`]; [`Error::Config`] for a place outside its row.
    pub fn score_batch(&mut self, rows: &[&[u32]], wanted: &[Wanted]) -> Result<Vec<Scored>> {
        let bufs = self.forward_batch(rows)?;
        if let Some(bad) = wanted.iter().find(|w| w.at == 0 || w.at > bufs.t || w.row >= bufs.b) {
            let detail = format!("row {}, position {}: outside the batch", bad.row, bad.at);
            return Err(Error::Config { field: "score_batch", detail });
        }
        self.check_targets(wanted.iter().map(|w| w.id))?;
        let asked: Vec<(i32, u32)> =
            wanted.iter().map(|w| ((w.row * bufs.t + w.at - 1) as i32, w.id)).collect();
        score_rows(self, &bufs, &self.weights, &asked)
    }

    /// Logits (V) after the last id of each row, as [`NanoDecoder::score_batch`] runs them.
    pub fn logits_batch(&mut self, rows: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let bufs = self.forward_batch(rows)?;
        let (c, v) = (self.model.config.n_embd, self.model.config.vocab_size);
        let mut all = Vec::with_capacity(rows.len());
        for (first, some) in rows.chunks(LOSS_ROWS).enumerate() {
            let at = |(i, row): (usize, &&[u32])| {
                ((first * LOSS_ROWS + i) * bufs.t + row.len() - 1) as i32
            };
            let at: Vec<i32> = some.iter().enumerate().map(at).collect();
            let x = self.be.alloc(at.len() * c, bufs.yf.dtype())?;
            self.be.embedding(&x, &bufs.yf, &self.be.place_i32(&at)?, c)?;
            let logits = self.model.head(self.be, &bufs, &self.weights, &x, at.len())?;
            all.extend(logits.chunks_exact(v).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// The forward pass of whole rows in the decoder's own arena.
    fn forward_batch(&mut self, rows: &[&[u32]]) -> Result<Buffers> {
        use crate::model::Decoder;
        self.reset();
        let t = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        if t == 0 || rows.iter().any(|r| r.is_empty()) {
            let detail = format!("{} rows, one of them empty", rows.len());
            return Err(Error::Config { field: "score_batch", detail });
        }
        for row in rows {
            self.check(row, row.len())?;
        }
        // The arena is shared with decoding, whose next step is laid out anew.
        self.buffers = None;
        let plan = StepPlan::on(self.be, &self.model.config, rows.len(), t, Mode::Eval);
        if plan.bytes() > self.arena.bytes() {
            self.arena = self.be.alloc(plan.bytes().div_ceil(4), DType::F32)?;
        }
        let bufs = plan.views(&self.arena);
        let mut ids = vec![0i32; rows.len() * t];
        for (to, row) in ids.chunks_exact_mut(t).zip(rows) {
            to.iter_mut().zip(*row).for_each(|(to, &id)| *to = id as i32);
        }
        bufs.tokens.write_i32(&ids)?;
        self.model.forward_body(self.be, &bufs, &self.weights)?;
        Ok(bufs)
    }

    fn check_targets(&self, mut ids: impl Iterator<Item = u32>) -> Result<()> {
        let vocab_size = self.model.config.vocab_size;
        match ids.find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::TokenId { id, vocab_size }),
            None => Ok(()),
        }
    }
}

/// Head, loss and likeliest id of `(row of the last stream, target)` pairs.
fn score_rows(
    decoder: &NanoDecoder<'_>,
    bufs: &Buffers,
    past: &dyn Past,
    asked: &[(i32, u32)],
) -> Result<Vec<Scored>> {
    let (be, model): (_, &Nano) = (decoder.be, decoder.model);
    let (c, v) = (model.config.n_embd, model.config.vocab_size);
    let mut all = Vec::with_capacity(asked.len());
    for some in asked.chunks(LOSS_ROWS.min(bufs.b * bufs.t)) {
        let m = some.len();
        let rows: Vec<i32> = some.iter().map(|a| a.0).collect();
        let targets: Vec<i32> = some.iter().map(|a| a.1 as i32).collect();
        let x = be.alloc(m * c, bufs.yf.dtype())?;
        be.embedding(&x, &bufs.yf, &be.place_i32(&rows)?, c)?;
        let logits = bufs.logits.slice(0..m * v);
        past.linear(model, be, (&logits, &x), Role::LmHead, &MatMul::forward(m, c, v))?;
        let (losses, best) = (be.alloc(m, DType::F32)?, be.alloc(m, DType::I32)?);
        be.cross_entropy(
            &losses,
            &logits,
            &be.place_i32(&targets)?,
            v,
            model.config.rules().softcap,
        )?;
        be.argmax(&best, &logits, v)?;
        let pairs = losses.to_vec_f32()?.into_iter().zip(best.to_vec_i32()?);
        all.extend(pairs.map(|(loss, id)| Scored { loss, likeliest: id as u32 }));
    }
    Ok(all)
}
