//! The BOS-aligned best-fit loader: documents in, full rows of T+1 tokens out, no padding.
//!
//! Every document is its ids after one BOS. Rows are filled from a buffer of at least
//! [`LoaderConfig::buffer`] documents: the largest that fits the space left (the first of equals);
//! when none fits, the shortest (again the first) is cut to fill the row and its tail is dropped.
//! Source: nanochat `dataloader.py`, whose order of refills, picks and pops this follows exactly.

use crate::batch::{Batch, Batches, Encode};
use crate::dataset::Dataset;
use crate::documents::{Documents, Position};
use crate::error::{Error, Result};
use crate::wire::{Reader, Writer};

/// Sizes of a [`Loader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Rows a batch, B.
    pub b: usize,
    /// Tokens a row, T.
    pub t: usize,
    /// This process.
    pub rank: usize,
    /// How many processes share the set.
    pub world: usize,
    /// Documents buffered before every pick; 1000 in nanochat.
    pub buffer: usize,
    /// Rows of a shard a refill takes; 128 in nanochat.
    pub refill: usize,
}

impl LoaderConfig {
    /// B rows of T for one process, with nanochat's buffer and refill.
    pub fn new(b: usize, t: usize) -> Self {
        LoaderConfig { b, t, rank: 0, world: 1, buffer: 1000, refill: 128 }
    }

    /// The same for one of several processes.
    pub fn rank(self, rank: usize, world: usize) -> Self {
        LoaderConfig { rank, world, ..self }
    }
}

/// A buffered document. Only its first T+1 ids can ever be used, so only those are held; `len` is
/// the whole length, which the picks compare.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    len: usize,
    ids: Vec<u32>,
}

/// All that decides the rows to come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LoaderState {
    position: Position,
    held: Vec<Held>,
}

/// Batches of a data set. Memory: the buffer holds at most
/// `(buffer + refill) * (T + 1)` ids, beside one refill of text.
pub struct Loader<E> {
    config: LoaderConfig,
    encoder: E,
    documents: Documents,
    /// Hash of data set and tokenizer.
    source: String,
    held: Vec<Held>,
}

impl<E: Encode> Loader<E> {
    /// A loader at the start of epoch 1.
    ///
    /// Errors: [`Error::Setting`] for zeros or a rank outside the world, [`Error::Io`] when a file
    /// of the set is gone.
    pub fn new(set: &Dataset, encoder: E, config: LoaderConfig) -> Result<Self> {
        for (name, value) in
            [("b", config.b), ("t", config.t), ("buffer", config.buffer), ("refill", config.refill)]
        {
            if value == 0 {
                return Err(Error::Setting { name, value: "0".into(), must: "at least 1" });
            }
        }
        let documents = set.documents(config.rank, config.world)?;
        let source = format!("{}+{}", set.fingerprint()?, encoder.fingerprint());
        Ok(Loader { config, encoder, documents, source, held: Vec::new() })
    }

    /// What was skipped so far.
    pub fn skipped(&self) -> &crate::shard::Skipped {
        self.documents.skipped()
    }

    fn refill(&mut self) -> Result<()> {
        let texts = self.documents.next_endless(self.config.refill)?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (bos, limit) = (self.encoder.bos(), self.config.t + 1);
        for tail in self.encoder.encode_batch(&texts) {
            let len = tail.len() + 1;
            let ids = std::iter::once(bos).chain(tail).take(limit).collect();
            self.held.push(Held { len, ids });
        }
        Ok(())
    }

    /// One row of T+1 ids.
    fn row(&mut self, row: &mut Vec<u32>) -> Result<()> {
        let capacity = self.config.t + 1;
        row.clear();
        while row.len() < capacity {
            while self.held.len() < self.config.buffer {
                self.refill()?;
            }
            let space = capacity - row.len();
            let (pick, fits) = pick(self.held.iter().map(|h| h.len), space);
            let document = self.held.remove(pick);
            row.extend_from_slice(if fits { &document.ids } else { &document.ids[..space] });
        }
        Ok(())
    }
}

/// Index of the first largest length that is at most `space`, and true; or, when none is, of the
/// first shortest, and false. The lengths are at least 1, and one at least is given.
pub(crate) fn pick(lengths: impl Iterator<Item = usize>, space: usize) -> (usize, bool) {
    let (mut best, mut best_len) = (0, 0);
    let (mut shortest, mut shortest_len) = (0, usize::MAX);
    for (i, len) in lengths.enumerate() {
        if len <= space && len > best_len {
            (best, best_len) = (i, len);
        }
        if len < shortest_len {
            (shortest, shortest_len) = (i, len);
        }
    }
    if best_len > 0 { (best, true) } else { (shortest, false) }
}

impl<E: Encode> Batches for Loader<E> {
    fn next_batch(&mut self) -> Result<Batch> {
        let LoaderConfig { b, t, .. } = self.config;
        let (mut x, mut y) = (Vec::with_capacity(b * t), Vec::with_capacity(b * t));
        let mut row = Vec::with_capacity(t + 1);
        for _ in 0..b {
            self.row(&mut row)?;
            x.extend(row[..t].iter().map(|&id| id as i32));
            y.extend(row[1..].iter().map(|&id| id as i32));
        }
        let (epoch, name) = (self.documents.position().epoch, self.documents.place());
        Ok(Batch { b, t, x, y, w: None, epoch, name, trained_tokens: b * t, padding_tokens: 0 })
    }

    fn state(&self) -> Vec<u8> {
        let position = self.documents.position();
        let mut out = Writer::new(b"NCLD");
        out.bytes(self.source.as_bytes());
        for n in [self.config.t, self.config.rank, self.config.world] {
            out.number(n as u64);
        }
        out.number(position.epoch);
        for n in [position.shard, position.block, position.row, self.held.len()] {
            out.number(n as u64);
        }
        for document in &self.held {
            out.number(document.len as u64);
            out.ids(&document.ids);
        }
        out.seal()
    }

    /// B may differ from the saved one (rows follow each other all the same); T, rank, world, data
    /// and tokenizer may not.
    fn restore(&mut self, state: &[u8]) -> Result<()> {
        let LoaderState { position, held } = self.read_state(state)?;
        self.documents.seek(position)?;
        self.held = held;
        Ok(())
    }

    fn fingerprint(&self) -> String {
        format!("{} T{} B{}", self.source, self.config.t, self.config.b)
    }

    fn progress(&self) -> f64 {
        self.documents.progress()
    }
}

impl<E: Encode> Loader<E> {
    fn read_state(&self, state: &[u8]) -> Result<LoaderState> {
        let mut from = Reader::open(state, b"NCLD", "loader")?;
        let source = from.text()?;
        if source != self.source {
            let why = format!(
                "it was saved for data+tokenizer {source}, this run reads {}: give the same files, \
                 policy and tokenizer",
                self.source
            );
            return Err(Error::state(why));
        }
        let LoaderConfig { t, rank, world, .. } = self.config;
        for (name, now) in [("T", t), ("rank", rank), ("world", world)] {
            let saved = from.size()?;
            if saved != now {
                return Err(Error::state(format!(
                    "it was saved with {name} {saved}, this run has {now}"
                )));
            }
        }
        let epoch = from.number()?;
        let (shard, block, row) = (from.size()?, from.size()?, from.size()?);
        let mut held = Vec::new();
        for _ in 0..from.size()? {
            let (len, ids) = (from.size()?, from.ids()?);
            if ids.is_empty() || ids.len() != len.min(t + 1) {
                return Err(Error::state("a buffered document has the wrong length"));
            }
            held.push(Held { len, ids });
        }
        from.end()?;
        Ok(LoaderState { position: Position { epoch, shard, block, row }, held })
    }
}
