//! Many sequences of their own lengths in one step: [`BatchDecoder`] for every generation.
//!
//! All ids of a step go through the layers as rows that stand where they stand; attention takes the rows
//! of one id together, and each chunk of a prompt by itself. Keys and values lie in pages of every layer
//! ([`crate::paging`]); layers with a window read only what they see of them.
//!
//! **What a sequence's logits depend on.** On a CPU, on its ids alone, to the bit: every operation
//! computes a row in an order of sums that neither the other rows nor the number of threads changes, for
//! all families of instructions and formats of weights (`tests/batch.rs`). On a GPU no bits are promised:
//! products are the device's library's, and it may sum in another order in a step of another number of
//! rows; two likeliest ids that are all but equal may then change places.

mod pages;
mod step;

use std::collections::HashMap;

use nanochat_compute::ops::{PAGE, WeightFormat};
use nanochat_compute::{Backend, DType, Tensor};

use super::Nano;
use super::buffers::{Buffers, Mode, StepPlan};
use super::packed::PackedWeights;
use crate::batch::{BatchDecoder, Feed, Opened, PageCount, Room, Sequence, Wanted};
use crate::paging::Paging;
use crate::{Error, GptConfig, Result};
use pages::Pages;
use step::{Rows, Shape, Step};

/// Ids of a step at most: what bounds the memory of activations.
const STEP_LEN: usize = 512;
/// Layouts of steps that are kept, so that a step of a known shape is not laid out again.
const SHAPES: usize = 64;

/// What a [`NanoBatch`] may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRoom {
    /// Bytes of keys and values.
    pub kv_bytes: usize,
    /// Most ids of a sequence; no more than the rotary tables reach.
    pub max_len: usize,
}

impl BatchRoom {
    /// Room for `rows` sequences of `max_len` ids each.
    pub fn of_rows(be: &dyn Backend, config: &GptConfig, rows: usize, max_len: usize) -> Self {
        let pages = rows.saturating_mul(max_len.div_ceil(PAGE));
        Self { kv_bytes: pages.saturating_mul(pages::bytes(config, be.cache_dtype())), max_len }
    }
}

/// A model with many sequences.
pub struct NanoBatch<'a> {
    be: &'a dyn Backend,
    model: &'a Nano,
    weights: PackedWeights,
    max_len: usize,
    paging: Paging,
    pages: Pages,
    arena: Tensor,
    /// Layouts of steps over the arena, by their shape.
    ready: HashMap<Shape, (Buffers, Rows)>,
}

impl<'a> NanoBatch<'a> {
    /// A decoder whose pages are allocated now. The model's weights are packed now: later changes of them
    /// are not seen.
    ///
    /// Errors: memory that is not there; less room than a page.
    pub fn new(
        be: &'a dyn Backend,
        model: &'a Nano,
        format: WeightFormat,
        room: BatchRoom,
    ) -> Result<Self> {
        let config = model.config();
        let dtype = be.cache_dtype();
        let count = room.kv_bytes / pages::bytes(config, dtype);
        if count == 0 {
            let need = pages::bytes(config, dtype);
            let detail =
                format!("{} bytes, a page of {PAGE} positions takes {need}", room.kv_bytes);
            return Err(Error::Config { field: "kv_bytes", detail });
        }
        let max_len = room.max_len.clamp(1, super::rope::reach(config));
        Ok(Self {
            be,
            model,
            weights: PackedWeights::new(be, model, format)?,
            max_len,
            paging: Paging::new(count, PAGE, max_len),
            pages: Pages::new(be, config, dtype, count)?,
            arena: be.alloc(0, DType::F32)?,
            ready: HashMap::new(),
        })
    }

    /// Bytes of keys and values that are allocated.
    pub fn kv_bytes(&self) -> usize {
        self.pages.bytes()
    }

    /// The weights as they are read.
    pub fn weights(&self) -> &PackedWeights {
        &self.weights
    }

    /// Forgets every prefix that no open sequence holds: what comes is then computed.
    pub fn forget_prefixes(&mut self) {
        self.paging.forget_prefixes();
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.model.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Error::TokenId { id, vocab_size }),
            None => Ok(()),
        }
    }

    fn check_feeds(&self, feeds: &[Feed<'_>]) -> Result<()> {
        let n = feeds.iter().map(|feed| feed.ids.len()).sum::<usize>();
        let mut names: Vec<Sequence> = feeds.iter().map(|feed| feed.sequence).collect();
        names.sort_unstable();
        names.dedup();
        if n > STEP_LEN || names.len() < feeds.len() || feeds.iter().any(|f| f.ids.is_empty()) {
            let detail = format!("{n} ids in {} feeds of {} sequences", feeds.len(), names.len());
            return Err(Error::Config { field: "step", detail });
        }
        feeds.iter().try_for_each(|feed| self.check(feed.ids))
    }

    /// Lays out a step of this shape, unless one was.
    fn plan(&mut self, shape: Shape) -> Result<()> {
        if self.ready.contains_key(&shape) {
            return Ok(());
        }
        let plan = StepPlan::on(self.be, &self.model.config, shape.rows, 1, Mode::Eval);
        if plan.bytes() > self.arena.bytes() {
            self.ready.clear();
            self.arena = plan.layout().allocate(self.be)?;
        }
        if self.ready.len() >= SHAPES {
            self.ready.clear();
        }
        let rows = Rows::new(self.be, self.model, shape)?;
        self.ready.insert(shape, (plan.views(&self.arena), rows));
        Ok(())
    }

    /// True on a device that looks positions up, so that all steps of a shape are alike.
    fn is_placed(&self) -> bool {
        self.be.own_memory().is_some()
    }

    /// Runs a step that was laid out; returns the wanted logits.
    fn compute(&self, step: &Step<'_>, wanted: &[i32]) -> Result<Vec<f32>> {
        let (bufs, c, v) = (step.bufs, self.model.config.n_embd, self.model.config.vocab_size);
        // Tables that must grow do so before anything is recorded.
        let (cos, sin) = self.model.rope.tables(self.be, step.reach())?;
        if step.is_alike && self.is_placed() {
            let n = step.shape.rows;
            let run = || {
                self.model.forward_body(self.be, bufs, step)?;
                let x = bufs.yf.slice(0..n * c);
                self.model.head_on(self.be, bufs, step, &x, n)?;
                Ok(())
            };
            let mut key = self.pages.addresses();
            key.extend([cos.address(), sin.address(), self.arena.address()]);
            key.extend(step.addresses());
            key.extend([n as u64, self.model.params.address(), self.model.config.n_layer as u64]);
            key.extend([c as u64, step.pages_named() as u64]);
            key.extend(self.weights.addresses());
            super::decode::replayed(&run, &mut |run| self.be.replay(&key, run))?;
            return Ok(bufs.logits.slice(0..wanted.len() * v).to_vec_f32()?);
        }
        self.model.forward_body(self.be, bufs, step)?;
        let most = bufs.logits.len() / v;
        let all = wanted.len() == step.shape.rows;
        if all && wanted.len() <= most {
            return self.model.head(self.be, bufs, step, &bufs.yf, wanted.len());
        }
        let mut logits = Vec::with_capacity(wanted.len() * v);
        for rows in wanted.chunks(most) {
            let x = self.be.alloc(rows.len() * c, bufs.yf.dtype())?;
            self.be.embedding(&x, &bufs.yf, &self.be.place_i32(rows)?, c)?;
            logits.extend(self.model.head(self.be, bufs, step, &x, rows.len())?);
        }
        Ok(logits)
    }
}

/// The rows of a step whose logits are wanted, in order.
fn wanted_rows(feeds: &[Feed<'_>]) -> Vec<i32> {
    let (mut rows, mut end) = (Vec::new(), 0);
    for feed in feeds {
        let from = end;
        end += feed.ids.len() as i32;
        match feed.wanted {
            Wanted::Nothing => {}
            Wanted::Last => rows.push(end - 1),
            Wanted::All => rows.extend(from..end),
        }
    }
    rows
}

impl BatchDecoder for NanoBatch<'_> {
    fn vocab_size(&self) -> usize {
        self.model.config.vocab_size
    }

    fn max_len(&self) -> usize {
        self.max_len
    }

    fn step_len(&self) -> usize {
        STEP_LEN
    }

    fn page_len(&self) -> usize {
        PAGE
    }

    fn pages(&self) -> PageCount {
        self.paging.count()
    }

    fn open(&mut self, prompt: &[u32], room: Room) -> Result<Option<Opened>> {
        self.check(prompt)?;
        self.paging.open(prompt, room)
    }

    fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        self.paging.fork(sequence)
    }

    fn close(&mut self, sequence: Sequence) {
        self.paging.close(sequence);
    }

    fn step(&mut self, feeds: &[Feed<'_>]) -> Result<Vec<f32>> {
        if feeds.is_empty() {
            return Ok(Vec::new());
        }
        self.check_feeds(feeds)?;
        for feed in feeds {
            if let Some(copy) = self.paging.make_room(feed.sequence, feed.ids.len())? {
                self.pages.copy(self.be, copy)?;
            }
        }
        let shape = Shape::of(feeds, &self.paging, self.is_placed())?;
        self.plan(shape)?;
        let (bufs, mut rows) =
            self.ready.remove(&shape).ok_or_else(|| step::fault("a step was not laid out"))?;
        let logits = rows.place(self.be, feeds, &self.paging, &self.pages).and_then(|is_alike| {
            bufs.tokens.write_i32(&rows.tokens)?;
            let step = Step { batch: self, bufs: &bufs, rows: &rows, shape, is_alike };
            self.compute(&step, &wanted_rows(feeds))
        });
        self.ready.insert(shape, (bufs, rows));
        let logits = logits?;
        for feed in feeds {
            self.paging.append(feed.sequence, feed.ids)?;
        }
        self.model.count(feeds.iter().map(|feed| feed.ids.len()).sum());
        Ok(logits)
    }
}
