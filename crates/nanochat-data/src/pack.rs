//! Conversations to batches: packed rows, or one conversation a row.
//!
//! A rendered conversation is ids with a mask (1 = trained). The target of position `i` is
//! `ids[i + 1]` where `mask[i + 1]` is 1, else [`IGNORE`]. A conversation with no such target is
//! passed over and counted, so every row has at least one: a loss over it is never 0 / 0.

pub use nanochat_tokenizer::Rendered;
use nanochat_tokenizer::{Conversation, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Batches, IGNORE};
use crate::error::{Error, Result};
use crate::loader::pick;
use crate::mixture::Mixture;
use crate::wire::{Reader, Writer};

/// What packing needs of a tokenizer.
pub trait Render: Send + Sync {
    /// The id that fills what is left of a row.
    fn bos(&self) -> u32;

    /// Ids and mask of a whole conversation; an error says what is wrong with it.
    fn render(&self, conversation: &Conversation) -> Result<Rendered, String>;

    /// Names the vocabulary, merges and specials.
    fn fingerprint(&self) -> String;
}

impl Render for Tokenizer {
    fn bos(&self) -> u32 {
        Tokenizer::bos(self)
    }

    fn render(&self, conversation: &Conversation) -> Result<Rendered, String> {
        nanochat_tokenizer::render(self, conversation, None).map_err(|e| e.to_string())
    }

    fn fingerprint(&self) -> String {
        Tokenizer::fingerprint(self)
    }
}

impl<R: Render + ?Sized> Render for std::sync::Arc<R> {
    fn bos(&self) -> u32 {
        (**self).bos()
    }

    fn render(&self, conversation: &Conversation) -> Result<Rendered, String> {
        (**self).render(conversation)
    }

    fn fingerprint(&self) -> String {
        (**self).fingerprint()
    }
}

/// How conversations become rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Batching {
    /// Rows of T+1 filled from a buffer: the largest conversation that fits (the first of equals);
    /// when none fits, BOS to the end, masked.
    #[default]
    Packed,
    /// One conversation a row, in order, filled with BOS to T.
    Fixed,
    /// One conversation a row, in order, filled with BOS to the longest of the batch.
    Dynamic,
}

/// What happens to a conversation of more tokens than a row takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// It is cut at the end, and counted.
    #[default]
    Truncate,
    /// It is passed over, and counted.
    Skip,
}

/// Sizes and choices of a [`Packer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackConfig {
    /// Rows a batch, B.
    pub b: usize,
    /// Tokens a row, T; of [`Batching::Dynamic`] the most.
    pub t: usize,
    /// This process: it takes conversations `rank, rank + world, ...`.
    pub rank: usize,
    /// How many processes share the mixture.
    pub world: usize,
    /// How rows are made.
    pub batching: Batching,
    /// What happens to long conversations.
    pub too_long: TooLong,
    /// The most tokens of a conversation, if fewer than T+1; nanochat has 2048 for every T.
    pub max_tokens: Option<usize>,
    /// Conversations buffered before every pick of [`Batching::Packed`]; 100 in nanochat.
    pub buffer: usize,
}

impl PackConfig {
    /// Packed rows for one process, long conversations truncated to T+1.
    pub fn new(b: usize, t: usize) -> Self {
        PackConfig {
            b,
            t,
            rank: 0,
            world: 1,
            batching: Batching::Packed,
            too_long: TooLong::Truncate,
            max_tokens: None,
            buffer: 100,
        }
    }

    fn limit(&self) -> usize {
        self.max_tokens.unwrap_or(usize::MAX).min(self.t + 1)
    }
}

/// What a [`Packer`] did since it was made, of this rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackStats {
    /// Conversations placed in rows.
    pub conversations: u64,
    /// Of those looked at, cut to fit.
    pub truncated: u64,
    /// Passed over by [`TooLong::Skip`].
    pub skipped_long: u64,
    /// Passed over because nothing of them (or of what was left of them) is trained.
    pub skipped_untrained: u64,
    /// Positions of batches filled with BOS.
    pub padding_tokens: u64,
    /// Targets that are trained.
    pub trained_tokens: u64,
    /// Tokens of every conversation looked at, before any was cut or passed over.
    pub raw_tokens: u64,
}

/// Batches of a mixture.
pub struct Packer<R> {
    config: PackConfig,
    mixture: Mixture,
    renderer: R,
    /// Hash of mixture and tokenizer, and the choices that decide the rows.
    source: String,
    /// Next conversation of the mixture to look at.
    cursor: usize,
    /// Conversations placed or passed over.
    consumed: u64,
    held: Vec<Rendered>,
    stats: PackStats,
}

impl<R: Render> Packer<R> {
    /// A packer at the start of epoch 1.
    ///
    /// Errors: [`Error::Setting`] for zeros, a rank outside the world, or a limit of 1 token.
    pub fn new(mixture: Mixture, renderer: R, config: PackConfig) -> Result<Self> {
        let zero = [("b", config.b), ("t", config.t), ("buffer", config.buffer)];
        if let Some((name, _)) = zero.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::Setting { name, value: "0".into(), must: "at least 1" });
        }
        if config.rank >= config.world {
            let value = format!("{} of {}", config.rank, config.world);
            return Err(Error::Setting { name: "rank", value, must: "below the world size" });
        }
        if config.limit() < 2 {
            let value = config.limit().to_string();
            return Err(Error::Setting { name: "max_tokens", value, must: "at least 2" });
        }
        let source = format!(
            "{}+{} {:?} {:?} {}",
            mixture.fingerprint(),
            renderer.fingerprint(),
            config.batching,
            config.too_long,
            config.limit()
        );
        let cursor = config.rank % mixture.len();
        let (held, stats) = (Vec::new(), PackStats::default());
        Ok(Packer { config, mixture, renderer, source, cursor, consumed: 0, held, stats })
    }

    /// What was done so far.
    pub fn stats(&self) -> PackStats {
        self.stats
    }

    /// Conversations of one pass over the mixture, of all ranks.
    pub fn mixture_len(&self) -> usize {
        self.mixture.len()
    }

    /// Passes over the mixture done, e.g. 1.25: what an SFT run compares with its epochs.
    pub fn epochs_done(&self) -> f64 {
        (self.consumed * self.config.world as u64) as f64 / self.mixture.len() as f64
    }

    /// The next conversation with a trained target that fits.
    fn fetch(&mut self) -> Result<Rendered> {
        let limit = self.config.limit();
        for _ in 0..=self.mixture.len() {
            let i = self.cursor;
            self.cursor = (self.cursor + self.config.world) % self.mixture.len();
            let mut rendered = self.render(i)?;
            self.stats.raw_tokens += rendered.ids.len() as u64;
            if rendered.ids.len() > limit {
                if self.config.too_long == TooLong::Skip {
                    self.stats.skipped_long += 1;
                    self.consumed += 1;
                    continue;
                }
                self.stats.truncated += 1;
                rendered.ids.truncate(limit);
                rendered.mask.truncate(limit);
            }
            if rendered.mask.iter().skip(1).any(|&m| m == 1) {
                return Ok(rendered);
            }
            self.stats.skipped_untrained += 1;
            self.consumed += 1;
        }
        Err(Error::Untrained { name: self.mixture.name(), limit, tried: self.mixture.len() })
    }

    fn render(&self, i: usize) -> Result<Rendered> {
        let place = || self.mixture.place(i);
        let rendered = self
            .renderer
            .render(&self.mixture.get(i)?)
            .map_err(|why| Error::Render { place: place(), why })?;
        if rendered.ids.len() != rendered.mask.len() {
            let why = format!("{} ids, {} masks", rendered.ids.len(), rendered.mask.len());
            return Err(Error::Render { place: place(), why });
        }
        Ok(rendered)
    }

    /// One row of [`Batching::Packed`], T+1 long, and how much of it is padding.
    fn packed_row(&mut self) -> Result<(Rendered, usize)> {
        let capacity = self.config.t + 1;
        let (mut row, mut padding) = (Rendered::default(), 0);
        while row.ids.len() < capacity {
            while self.held.len() < self.config.buffer {
                let next = self.fetch()?;
                self.held.push(next);
            }
            let space = capacity - row.ids.len();
            let (i, fits) = pick(self.held.iter().map(|h| h.ids.len()), space);
            if !fits {
                padding = self.pad(&mut row, capacity);
                break;
            }
            let conversation = self.held.remove(i);
            row.ids.extend(conversation.ids);
            row.mask.extend(conversation.mask);
            self.placed();
        }
        Ok((row, padding))
    }

    fn placed(&mut self) {
        self.stats.conversations += 1;
        self.consumed += 1;
    }

    /// Fills a row up; returns by how much.
    fn pad(&mut self, row: &mut Rendered, len: usize) -> usize {
        let padding = len - row.ids.len();
        self.stats.padding_tokens += padding as u64;
        row.ids.resize(len, self.renderer.bos());
        row.mask.resize(len, 0);
        padding
    }

    /// B rows of one length, and the padding of each.
    fn rows(&mut self) -> Result<Vec<(Rendered, usize)>> {
        let b = self.config.b;
        if self.config.batching == Batching::Packed {
            return (0..b).map(|_| self.packed_row()).collect();
        }
        let mut rows = Vec::with_capacity(b);
        for _ in 0..b {
            rows.push(self.fetch()?);
            self.placed();
        }
        let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(2);
        let len = match self.config.batching {
            Batching::Dynamic => longest,
            _ => self.config.t + 1,
        };
        let padded = |mut row| {
            let padding = self.pad(&mut row, len);
            (row, padding)
        };
        Ok(rows.into_iter().map(padded).collect())
    }
}

impl<R: Render> Batches for Packer<R> {
    fn next_batch(&mut self) -> Result<Batch> {
        let epoch = 1 + self.epochs_done() as u64;
        let name =
            format!("{} at conversation {}, epoch {epoch}", self.mixture.name(), self.cursor);
        let rows = self.rows()?;
        let (b, t) = (rows.len(), rows[0].0.ids.len() - 1);
        let (mut x, mut y) = (Vec::with_capacity(b * t), Vec::with_capacity(b * t));
        // The last id of a row is a target only.
        let padding_tokens = rows.iter().map(|(_, padding)| padding.saturating_sub(1)).sum();
        for (row, _) in &rows {
            x.extend(row.ids[..t].iter().map(|&id| id as i32));
            let targets = row.ids[1..].iter().zip(&row.mask[1..]);
            y.extend(targets.map(|(&id, &m)| if m == 1 { id as i32 } else { IGNORE }));
        }
        let trained_tokens = y.iter().filter(|&&y| y != IGNORE).count();
        self.stats.trained_tokens += trained_tokens as u64;
        Ok(Batch { b, t, x, y, w: None, epoch, name, trained_tokens, padding_tokens })
    }

    fn state(&self) -> Vec<u8> {
        let mut out = Writer::new(b"NCPK");
        out.bytes(self.source.as_bytes());
        for n in [self.config.t, self.config.rank, self.config.world, self.cursor] {
            out.number(n as u64);
        }
        out.number(self.consumed);
        let s = &self.stats;
        for n in [
            s.conversations,
            s.truncated,
            s.skipped_long,
            s.skipped_untrained,
            s.padding_tokens,
            s.trained_tokens,
            s.raw_tokens,
        ] {
            out.number(n);
        }
        out.number(self.held.len() as u64);
        for held in &self.held {
            out.ids(&held.ids);
            out.bytes(&held.mask);
        }
        out.seal()
    }

    /// B may differ from the saved one; all else must be the same.
    fn restore(&mut self, state: &[u8]) -> Result<()> {
        let mut from = Reader::open(state, b"NCPK", "mixture")?;
        let source = from.text()?;
        if source != self.source {
            let why = format!(
                "it was saved for mixture+tokenizer {source}, this run has {}: give the same data, \
                 settings and tokenizer",
                self.source
            );
            return Err(Error::state(why));
        }
        let PackConfig { t, rank, world, .. } = self.config;
        for (name, now) in [("T", t), ("rank", rank), ("world", world)] {
            let saved = from.size()?;
            if saved != now {
                let why = format!("it was saved with {name} {saved}, this run has {now}");
                return Err(Error::state(why));
            }
        }
        let (cursor, consumed) = (from.size()?, from.number()?);
        if cursor >= self.mixture.len() {
            return Err(Error::state("its position is past the end of the mixture"));
        }
        let stats = PackStats {
            conversations: from.number()?,
            truncated: from.number()?,
            skipped_long: from.number()?,
            skipped_untrained: from.number()?,
            padding_tokens: from.number()?,
            trained_tokens: from.number()?,
            raw_tokens: from.number()?,
        };
        let mut held = Vec::new();
        for _ in 0..from.size()? {
            let (ids, mask) = (from.ids()?, from.bytes()?.to_vec());
            if ids.len() != mask.len() || ids.len() > self.config.limit() {
                return Err(Error::state("a buffered conversation has the wrong length"));
            }
            held.push(Rendered { ids, mask });
        }
        from.end()?;
        (self.cursor, self.consumed, self.stats, self.held) = (cursor, consumed, stats, held);
        Ok(())
    }

    fn fingerprint(&self) -> String {
        format!("{} T{} B{}", self.source, self.config.t, self.config.b)
    }

    fn progress(&self) -> f64 {
        self.epochs_done().fract()
    }
}
