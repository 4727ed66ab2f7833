//! Who holds which page of keys and values: sequences, forks of them, and the prefixes that are kept.
//!
//! Ids go in, numbers of pages come out; nothing is computed here, and there is no memory but the
//! tables. A page is a stretch of positions of every layer. It is *used* while a sequence holds it,
//! *cached* while only the tree of prefixes does, else free. What a sequence may still need is promised to
//! it when it is opened:
//!
//! ```text
//! promised <= free + cached        at any time, so that a page that was promised can be had
//! ```

mod prefix;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::batch::{Opened, PageCount, Room, Sequence, pages_needed};
use crate::{Error, Result};
use prefix::Prefixes;

/// The pages of one model.
pub struct Paging {
    page_len: usize,
    max_len: usize,
    /// Sequences that hold each page.
    holders: Vec<u32>,
    free: Vec<u32>,
    promised: usize,
    prefixes: Prefixes,
    open: HashMap<Sequence, Held>,
    named: u64,
}

/// What a sequence holds.
#[derive(Clone)]
struct Held {
    ids: Vec<u32>,
    /// A page for every `page_len` positions.
    pages: Vec<u32>,
    prompt: usize,
    limit: usize,
    /// Forks that may come.
    forks: usize,
    /// Its last page was shared by a fork while it was part-filled: who writes first, copies.
    owes_copy: bool,
}

/// A page to be copied before a step writes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    /// From.
    pub from: u32,
    /// To.
    pub to: u32,
}

impl Paging {
    /// `pages` free pages of `page_len` positions, for sequences of at most `max_len` ids.
    pub fn new(pages: usize, page_len: usize, max_len: usize) -> Self {
        Self {
            page_len,
            max_len,
            holders: vec![0; pages],
            free: (0..pages as u32).rev().collect(),
            promised: 0,
            prefixes: Prefixes::new(page_len, pages),
            open: HashMap::new(),
            named: 0,
        }
    }

    /// Positions of a page.
    pub fn page_len(&self) -> usize {
        self.page_len
    }

    /// Pages now.
    pub fn count(&self) -> PageCount {
        let (total, cached) = (self.holders.len(), self.prefixes.alone());
        PageCount { total, used: total - self.free.len() - cached, cached }
    }

    /// As [`crate::batch::BatchDecoder::open`].
    pub fn open(&mut self, prompt: &[u32], room: Room) -> Result<Option<Opened>> {
        let Room { rows, len, reuse } = room;
        if prompt.is_empty() || rows == 0 || len < prompt.len() {
            let detail = format!("{} ids, {rows} rows of {len}: nothing to hold", prompt.len());
            return Err(Error::Config { field: "open", detail });
        }
        if len > self.max_len {
            let (asked, limit) = (len, self.max_len);
            return Err(Error::ContextFull { have: 0, asked, limit });
        }
        // One id at least is computed: its logits are asked for.
        let known = if reuse { &prompt[..prompt.len() - 1] } else { &[] };
        let pages = self.prefixes.find(known);
        let cached = pages.iter().filter(|&&page| self.holders[page as usize] == 0).count();
        let needed = pages_needed(self.page_len, prompt.len(), rows, len) - pages.len();
        if self.promised + needed > self.free.len() + self.prefixes.alone() - cached {
            return Ok(None);
        }
        for &page in &pages {
            self.hold(page);
        }
        self.promised += needed;
        let reused = pages.len() * self.page_len;
        let held = Held {
            ids: prompt[..reused].to_vec(),
            pages,
            prompt: prompt.len(),
            limit: len,
            forks: rows - 1,
            owes_copy: rows > 1 && !prompt.len().is_multiple_of(self.page_len),
        };
        Ok(Some(Opened { sequence: self.name(held), reused }))
    }

    /// As [`crate::batch::BatchDecoder::fork`].
    pub fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        let held = self.open.get_mut(&sequence).ok_or_else(|| not_open("fork", sequence))?;
        if held.forks == 0 || held.ids.len() != held.prompt {
            let (have, forks) = (held.ids.len(), held.forks);
            let detail = format!("{forks} forks are left, {have} ids of {} held", held.prompt);
            return Err(Error::Config { field: "fork", detail });
        }
        held.forks -= 1;
        let fork = Held { forks: 0, ..held.clone() };
        for &page in &fork.pages {
            self.holders[page as usize] += 1;
        }
        Ok(self.name(fork))
    }

    /// As [`crate::batch::BatchDecoder::close`].
    pub fn close(&mut self, sequence: Sequence) {
        if let Some(held) = self.open.remove(&sequence) {
            self.promised -= self.owed(&held);
            for page in held.pages {
                self.release(page);
            }
        }
    }

    /// The ids that a sequence holds.
    ///
    /// Errors: it is not open.
    pub fn ids(&self, sequence: Sequence) -> Result<&[u32]> {
        Ok(&self.held(sequence)?.ids)
    }

    /// Its pages, one for every `page_len` positions; those made ready included.
    ///
    /// Errors: it is not open.
    pub fn pages(&self, sequence: Sequence) -> Result<&[u32]> {
        Ok(&self.held(sequence)?.pages)
    }

    /// Gives a sequence pages of its own for `n` more ids; the page to be copied before they are
    /// written, if there is one.
    ///
    /// Errors: it is not open; more ids than were set aside.
    pub fn make_room(&mut self, sequence: Sequence, n: usize) -> Result<Option<PageCopy>> {
        let mut held = self.open.remove(&sequence).ok_or_else(|| not_open("step", sequence))?;
        let made = self.make_room_of(&mut held, n);
        self.open.insert(sequence, held);
        made
    }

    fn make_room_of(&mut self, held: &mut Held, n: usize) -> Result<Option<PageCopy>> {
        let (have, limit) = (held.ids.len(), held.limit);
        if have + n > limit {
            return Err(Error::ContextFull { have, asked: n, limit });
        }
        let mut copy = None;
        if held.owes_copy && have >= held.prompt && n > 0 {
            held.owes_copy = false;
            self.promised -= 1;
            let at = have / self.page_len;
            let from = held.pages[at];
            if self.holders[from as usize] > 1 {
                let to = self.take()?;
                self.release(from);
                held.pages[at] = to;
                copy = Some(PageCopy { from, to });
            }
        }
        while held.pages.len() < (have + n).div_ceil(self.page_len) {
            let page = self.take()?;
            self.promised -= 1;
            held.pages.push(page);
        }
        Ok(copy)
    }

    /// Appends ids whose keys and values were written; whole pages are kept for later prompts.
    ///
    /// Errors: it is not open.
    pub fn append(&mut self, sequence: Sequence, ids: &[u32]) -> Result<()> {
        let page_len = self.page_len;
        let held = self.open.get_mut(&sequence).ok_or_else(|| not_open("step", sequence))?;
        let before = held.ids.len() / page_len;
        held.ids.extend_from_slice(ids);
        let whole = held.ids.len() / page_len;
        if whole > before {
            self.prefixes.keep(&held.ids[..whole * page_len], &held.pages[..whole]);
        }
        Ok(())
    }

    /// Forgets every prefix that no sequence holds.
    pub fn forget_prefixes(&mut self) {
        while let Some(freed) = self.prefixes.give_up() {
            self.free.extend(freed);
        }
    }

    fn held(&self, sequence: Sequence) -> Result<&Held> {
        self.open.get(&sequence).ok_or_else(|| not_open("step", sequence))
    }

    fn name(&mut self, held: Held) -> Sequence {
        self.named += 1;
        self.open.insert(Sequence(self.named), held);
        Sequence(self.named)
    }

    /// Pages promised to a sequence that it does not hold yet.
    fn owed(&self, held: &Held) -> usize {
        let total = held.limit.div_ceil(self.page_len);
        let forks = held.forks * (total - held.prompt / self.page_len);
        total - held.pages.len() + usize::from(held.owes_copy) + forks
    }

    fn hold(&mut self, page: u32) {
        self.holders[page as usize] += 1;
        if self.holders[page as usize] == 1 {
            self.prefixes.used(page);
        }
    }

    fn release(&mut self, page: u32) {
        self.holders[page as usize] -= 1;
        if self.holders[page as usize] == 0 && !self.prefixes.unused(page) {
            self.free.push(page);
        }
    }

    /// A free page, or that of the prefix that was asked for longest ago.
    fn take(&mut self) -> Result<u32> {
        if self.free.is_empty() {
            self.free.extend(self.prefixes.give_up().unwrap_or_default());
        }
        let Some(page) = self.free.pop() else {
            let detail = "a page that was set aside is gone: this is a fault of the paging".into();
            return Err(Error::Config { field: "pages", detail });
        };
        self.hold(page);
        Ok(page)
    }
}

fn not_open(field: &'static str, sequence: Sequence) -> Error {
    Error::Config { field, detail: format!("sequence {} is not open", sequence.0) }
}
