//! One token after another with a KV cache: [`Decoder`] for every generation.
//!
//! Every row of the cache holds the same number of tokens. The forward pass is that of training; only
//! attention (against the cache) and smear (against the last token fed) differ.

use nanochat_compute::ops::{CachedAttention, Smear};
use nanochat_compute::{Backend, DType, Tensor};

use super::Nano;
use super::buffers::{Buffers, LayerBuffers, Mode, StepPlan};
use super::forward::Past;
use super::table::Role;
use crate::model::Decoder;
use crate::{Error, Result};

/// Prompt tokens that run through the layers together; bounds the memory of a long prompt.
const PREFILL_TOKENS: usize = 256;

/// The cache grows by doubling from this many tokens.
const FIRST_CAPACITY: usize = 256;

/// A model with a KV cache.
pub struct NanoDecoder<'a> {
    be: &'a dyn Backend,
    model: &'a Nano,
    max_len: usize,
    len: usize,
    rows: usize,
    cache: Cache,
    buffers: Option<Buffers>,
}

/// Keys and values of every layer, and what smear remembers.
struct Cache {
    capacity: usize,
    /// a layer each: (rows, capacity, Hkv, D)
    k: Vec<Tensor>,
    v: Vec<Tensor>,
    /// (rows, 2, C): the last normalised embedding before smear, and a place for the next one
    pair: Tensor,
}

impl Cache {
    fn new(be: &dyn Backend, model: &Nano, rows: usize, capacity: usize) -> Result<Self> {
        let config = &model.config;
        let one = || be.alloc(rows * capacity * config.kv_dim(), DType::F32);
        let k = (0..config.n_layer).map(|_| one()).collect::<std::result::Result<_, _>>()?;
        let v = (0..config.n_layer).map(|_| one()).collect::<std::result::Result<_, _>>()?;
        Ok(Self { capacity, k, v, pair: be.alloc(rows * 2 * config.n_embd, DType::F32)? })
    }

    /// Copies `len` tokens of row `from` of another cache into row `to` of this one.
    fn copy_row(
        &self,
        be: &dyn Backend,
        to: usize,
        other: &Cache,
        from: usize,
        len: usize,
        kv: usize,
    ) -> Result<()> {
        let row = |t: &Tensor, r: usize, capacity: usize| {
            t.slice(r * capacity * kv..(r * capacity + len) * kv)
        };
        let pairs = self.k.iter().zip(&other.k).chain(self.v.iter().zip(&other.v));
        for (a, b) in pairs {
            be.copy(&row(a, to, self.capacity), &row(b, from, other.capacity))?;
        }
        let c = self.pair.len() / (self.k[0].len() / (self.capacity * kv)) / 2;
        let last = |t: &Tensor, r: usize| t.slice(2 * r * c..(2 * r + 1) * c);
        Ok(be.copy(&last(&self.pair, to), &last(&other.pair, from))?)
    }
}

impl<'a> NanoDecoder<'a> {
    /// An empty cache of one row that can hold `max_len` tokens (at most 10 times the sequence length
    /// that the model is made for: the reach of its rotary tables).
    pub fn new(be: &'a dyn Backend, model: &'a Nano, max_len: usize) -> Result<Self> {
        let max_len = max_len.clamp(1, super::rope_reach(&model.config));
        let cache = Cache::new(be, model, 1, FIRST_CAPACITY.min(max_len))?;
        Ok(Self { be, model, max_len, len: 0, rows: 1, cache, buffers: None })
    }

    /// Bytes that the cache holds on the device.
    pub fn kv_bytes(&self) -> usize {
        self.cache.k.iter().chain(&self.cache.v).map(Tensor::bytes).sum()
    }

    fn check(&self, ids: &[u32], asked: usize) -> Result<()> {
        let vocab_size = self.model.config.vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id, vocab_size });
        }
        if self.len + asked > self.max_len {
            return Err(Error::ContextFull { have: self.len, asked, limit: self.max_len });
        }
        Ok(())
    }

    /// Makes room for `more` tokens a row.
    fn reserve(&mut self, more: usize) -> Result<()> {
        let need = self.len + more;
        if need <= self.cache.capacity {
            return Ok(());
        }
        let capacity = (2 * self.cache.capacity).max(need).min(self.max_len);
        let wider = Cache::new(self.be, self.model, self.rows, capacity)?;
        for r in 0..self.rows {
            wider.copy_row(self.be, r, &self.cache, r, self.len, self.model.config.kv_dim())?;
        }
        self.cache = wider;
        Ok(())
    }

    /// Feeds (rows, t) ids; returns the logits (rows, V) after the last column.
    fn feed(&mut self, ids: &[u32], t: usize) -> Result<Vec<f32>> {
        self.reserve(t)?;
        if self.buffers.as_ref().is_none_or(|b| (b.b, b.t) != (self.rows, t)) {
            self.buffers = None;
            let plan = StepPlan::new(&self.model.config, self.rows, t, Mode::Eval);
            let arena = plan.layout().allocate(self.be)?;
            self.buffers = Some(plan.views(&arena));
        }
        let bufs = self.buffers.as_ref().expect("made above");
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        bufs.tokens.write_i32(&ids)?;
        self.model.forward_body(self.be, bufs, self)?;
        let n = self.rows * t;
        self.len += t;
        // More than one row means one column; one row means that its last column is the last of all.
        self.model.logits(self.be, bufs, n - self.rows..n)
    }
}

impl Past for NanoDecoder<'_> {
    fn start(&self) -> usize {
        self.len
    }

    /// Smear, with the last embedding fed before as the neighbour of the first column: exact also for a
    /// prompt fed in pieces. Each row runs as a sequence of 1 + t positions whose first is dropped.
    fn smear(&self, model: &Nano, be: &dyn Backend, bufs: &Buffers) -> Result<()> {
        let (c, t) = (model.config.n_embd, bufs.t);
        let (w, lambda) = (model.param(Role::SmearGate), model.param(Role::SmearLambda));
        let gate = bufs.smear_gate.as_ref().expect("the generation smears");
        let run = |out: &Tensor, gate: &Tensor, x: &Tensor, t: usize| {
            let s = Smear { t, b: 1, ..model.smear_shape(bufs) };
            be.smear(out, gate, x, &w, &lambda, &s)
        };
        let two = be.alloc(2 * c + 2, DType::F32)?;
        for r in 0..self.rows {
            let (e, x0) = (bufs.e.slice(r * t * c..(r + 1) * t * c), r * t * c);
            let pair = self.cache.pair.slice(2 * r * c..2 * (r + 1) * c);
            // Inside the row, as in training ...
            let out = bufs.x0.slice(x0..x0 + t * c);
            run(&out, &gate.slice(r * t..(r + 1) * t), &e, t)?;
            // ... but its first position has a neighbour unless the cache was empty.
            if self.len > 0 {
                be.copy(&pair.slice(c..2 * c), &e.slice(0..c))?;
                run(&two.slice(0..2 * c), &two.slice(2 * c..2 * c + 2), &pair, 2)?;
                be.copy(&bufs.x0.slice(x0..x0 + c), &two.slice(c..2 * c))?;
            }
            be.copy(&pair.slice(0..c), &e.slice((t - 1) * c..t * c))?;
        }
        Ok(())
    }

    fn attend(
        &self,
        model: &Nano,
        be: &dyn Backend,
        bufs: &Buffers,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let (kv, t) = (model.config.kv_dim(), bufs.t);
        for r in 0..self.rows {
            let (from, to) = (r * t * kv, (r * self.cache.capacity + self.len) * kv);
            for (cache, new) in [(&self.cache.k[i], &layer.k), (&self.cache.v[i], &layer.v)] {
                be.copy(&cache.slice(to..to + t * kv), &new.slice(from..from + t * kv))?;
            }
        }
        let a = model.attention_shape(bufs, i);
        let s = CachedAttention {
            rows: self.rows,
            t,
            start: self.len,
            capacity: self.cache.capacity,
            h: a.h,
            hkv: a.hkv,
            d: a.d,
            window: a.window,
            scale: a.scale,
        };
        let (k, v) = (&self.cache.k[i], &self.cache.v[i]);
        Ok(be.attention_cached(&layer.o, &layer.q, k, v, &s)?)
    }
}

impl Decoder for NanoDecoder<'_> {
    fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn len(&self) -> usize {
        self.len
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn reset(&mut self) {
        self.len = 0;
        if self.rows != 1 {
            // One row of the cache is a prefix of many: the memory stays, its shape changes.
            let kv = self.model.config.kv_dim();
            let row = self.cache.capacity * kv;
            for t in self.cache.k.iter_mut().chain(&mut self.cache.v) {
                *t = t.slice(0..row);
            }
            self.cache.pair = self.cache.pair.slice(0..2 * self.model.config.n_embd);
            self.rows = 1;
        }
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        if self.rows != 1 || ids.is_empty() {
            let detail = format!("{} ids for {} rows: prefill feeds one row", ids.len(), self.rows);
            return Err(Error::Config { field: "prefill", detail });
        }
        self.check(ids, ids.len())?;
        let mut logits = Vec::new();
        for piece in ids.chunks(PREFILL_TOKENS) {
            logits = self.feed(piece, piece.len())?;
        }
        Ok(logits)
    }

    fn fork(&mut self, n: usize) -> Result<()> {
        if self.rows != 1 || n == 0 {
            let detail = format!("{n} copies of {} rows: fork copies one row", self.rows);
            return Err(Error::Config { field: "fork", detail });
        }
        if n > 1 {
            let many = Cache::new(self.be, self.model, n, self.cache.capacity)?;
            for r in 0..n {
                many.copy_row(self.be, r, &self.cache, 0, self.len, self.model.config.kv_dim())?;
            }
            self.cache = many;
            self.rows = n;
        }
        Ok(())
    }

    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.len() != self.rows {
            let detail = format!("{} ids for {} rows", ids.len(), self.rows);
            return Err(Error::Config { field: "decode", detail });
        }
        self.check(ids, 1)?;
        self.feed(ids, 1)
    }
}
