//! What a server's engine needs of a model: many sequences, each as long as it is, fed in one step.
//!
//! ```text
//! open(prompt) -> step(chunks of it) -> fork for more samples -> step(an id each) ... -> close
//! ```
//! Keys and values lie in pages, which sequences share: samples of one prompt, and requests that begin
//! with ids which some request before had ([`crate::paging`]). What a sequence may need is set aside
//! when it is opened, so no step fails for want of memory.

use crate::Result;

/// Names an open sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub(crate) u64);

/// What is set aside for the samples of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Sequences in all: the one that is opened, and `rows - 1` forks of it.
    pub rows: usize,
    /// Most ids of each, prompt included.
    pub len: usize,
    /// False: the prompt is computed even where its keys and values are held.
    pub reuse: bool,
}

/// A sequence that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its name.
    pub sequence: Sequence,
    /// Ids at the beginning of the prompt that it holds already; fewer than the prompt has.
    pub reused: usize,
}

/// Which logits a step is to give for a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: a part of a prompt.
    Nothing,
    /// (1, V) after the last id.
    Last,
    /// (ids, V) after each id.
    All,
}

/// Ids that a step appends to a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Feed<'a> {
    /// To which; named once a step.
    pub sequence: Sequence,
    /// One drawn id, or a chunk of a prompt.
    pub ids: &'a [u32],
    /// What is asked for.
    pub wanted: Wanted,
}

/// Pages of keys and values. Those neither used nor cached are free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCount {
    /// Pages in all.
    pub total: usize,
    /// Pages that open sequences hold.
    pub used: usize,
    /// Pages that are held only because a later prompt may begin with them.
    pub cached: usize,
}

/// A model with many sequences of their own lengths.
///
/// What comes out for a sequence is a function of its ids alone: of its neighbours in a step, the chunks
/// that its prompt came in and pages that were reused nothing is seen, to the bit where the device
/// promises it ([`crate::nano::batch::NanoBatch`] says where).
pub trait BatchDecoder {
    /// V: how many logits a position has.
    fn vocab_size(&self) -> usize;
    /// Most ids that a sequence can hold.
    fn max_len(&self) -> usize;
    /// Most ids of a step, all feeds together.
    fn step_len(&self) -> usize;
    /// Positions of a page.
    fn page_len(&self) -> usize;
    /// Pages now.
    fn pages(&self) -> PageCount;
    /// Opens a sequence that is to hold `prompt`; none when what it may need cannot be set aside now.
    /// What `reused` says is held; the ids after it are to be fed.
    ///
    /// Errors: [`crate::Error::ContextFull`], [`crate::Error::TokenId`], an empty prompt.
    fn open(&mut self, prompt: &[u32], room: Room) -> Result<Option<Opened>>;
    /// Another sequence with the same ids, once the prompt is held and nothing more; at most as often
    /// as [`Room::rows`] says.
    ///
    /// Errors: [`crate::Error::Config`] otherwise.
    fn fork(&mut self, sequence: Sequence) -> Result<Sequence>;
    /// Forgets a sequence; pages that nobody else holds are free, or cached, at once. A name that is
    /// not open is passed over.
    fn close(&mut self, sequence: Sequence);
    /// Appends every feed's ids to its sequence; returns the wanted logits, (any, V), in the order of
    /// the feeds.
    ///
    /// Errors: ids outside the vocabulary, more ids than were set aside, those of the device. After one,
    /// and after a panic, the sequences that were fed can only be closed; the others are as they were.
    fn step(&mut self, feeds: &[Feed<'_>]) -> Result<Vec<f32>>;
}

/// Pages that `rows` samples of a prompt of so many ids need, each of at most `len` ids, if no other
/// request shares any with them.
pub fn pages_needed(page_len: usize, prompt: usize, rows: usize, len: usize) -> usize {
    let (total, shared) = (len.div_ceil(page_len), prompt / page_len);
    let copy = usize::from(rows > 1 && !prompt.is_multiple_of(page_len));
    let forks = rows.saturating_sub(1).saturating_mul(total.saturating_sub(shared));
    total.saturating_add(copy).saturating_add(forks)
}
