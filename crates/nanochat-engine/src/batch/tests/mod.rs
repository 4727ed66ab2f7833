//! A batch over a model that is a function of a row's ids, on the thread of the test or on its own.

mod faults;
mod order;
mod said;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nanochat_gpt::batch::{BatchDecoder, Feed, Opened, PageCount, Room, Sequence, Wanted};
use nanochat_gpt::paging::Paging;
use nanochat_gpt::{Error, Result};
use nanochat_tokenizer::Tokenizer;

use super::{Batch, BatchOptions, Generator, Listener, Load, Refused, Request, Update};
use crate::fake::{hashed_logits, tokenizer};
use crate::generate::Finish;
use crate::sample::SampleOptions;
use crate::text::Piece;

/// Positions of a page of the fake.
const PAGE: usize = 4;

/// A row's ids to its logits.
type Rule = dyn Fn(&[u32]) -> Vec<f32>;

/// Sees the feeds of a step, and may fail it.
type Watch = dyn FnMut(&[Feed<'_>]) -> Result<()>;

/// Pages hold the ids themselves: what a step computes comes from the pages alone, so a page that was
/// shared wrongly or given away too early is seen.
struct FakeBatch {
    paging: Paging,
    memory: Vec<[u32; PAGE]>,
    rule: Box<Rule>,
    vocab_size: usize,
    step_len: usize,
    /// Called before every step.
    before: Box<Watch>,
    /// Ids of each step: of rows, and of chunks.
    steps: Vec<(usize, usize)>,
}

impl FakeBatch {
    fn new(pages: usize, rule: impl Fn(&[u32]) -> Vec<f32> + 'static) -> Self {
        Self {
            paging: Paging::new(pages, PAGE, 64),
            memory: vec![[0; PAGE]; pages],
            rule: Box::new(rule),
            vocab_size: tokenizer().vocab_size(),
            step_len: 128,
            before: Box::new(|_| Ok(())),
            steps: Vec::new(),
        }
    }

    /// Logits that depend on the whole row.
    fn hashed(pages: usize) -> Self {
        let vocab_size = tokenizer().vocab_size();
        Self::new(pages, move |ids| hashed_logits(vocab_size, ids))
    }
}

impl BatchDecoder for FakeBatch {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    fn max_len(&self) -> usize {
        64
    }
    fn step_len(&self) -> usize {
        self.step_len
    }
    fn page_len(&self) -> usize {
        PAGE
    }
    fn pages(&self) -> PageCount {
        self.paging.count()
    }
    fn open(&mut self, prompt: &[u32], room: Room) -> Result<Option<Opened>> {
        self.paging.open(prompt, room)
    }
    fn fork(&mut self, sequence: Sequence) -> Result<Sequence> {
        self.paging.fork(sequence)
    }
    fn close(&mut self, sequence: Sequence) {
        self.paging.close(sequence);
    }
    fn step(&mut self, feeds: &[Feed<'_>]) -> Result<Vec<f32>> {
        (self.before)(feeds)?;
        assert!(feeds.iter().map(|feed| feed.ids.len()).sum::<usize>() <= self.step_len);
        let (rows, chunks): (Vec<_>, Vec<_>) = feeds.iter().partition(|feed| feed.ids.len() == 1);
        let ids = |feeds: &[&Feed<'_>]| feeds.iter().map(|feed| feed.ids.len()).sum();
        self.steps.push((ids(&rows), ids(&chunks)));
        let mut logits = Vec::new();
        for feed in feeds {
            let n = feed.ids.len();
            if let Some(copy) = self.paging.make_room(feed.sequence, n)? {
                self.memory[copy.to as usize] = self.memory[copy.from as usize];
            }
            let have = self.paging.ids(feed.sequence)?.len();
            let pages = self.paging.pages(feed.sequence)?.to_vec();
            for (i, id) in feed.ids.iter().enumerate() {
                let at = have + i;
                self.memory[pages[at / PAGE] as usize][at % PAGE] = *id;
            }
            let held = |at: usize| self.memory[pages[at / PAGE] as usize][at % PAGE];
            let row: Vec<u32> = (0..have + n).map(held).collect();
            self.paging.append(feed.sequence, feed.ids)?;
            assert_eq!(row, self.paging.ids(feed.sequence)?, "what the pages hold");
            match feed.wanted {
                Wanted::Nothing => {}
                Wanted::Last => logits.extend((self.rule)(&row)),
                Wanted::All => {
                    (1..=n).for_each(|i| logits.extend((self.rule)(&row[..have + i])));
                }
            }
        }
        Ok(logits)
    }
}

/// What became of a request.
#[derive(Clone, Default)]
struct Heard {
    updates: Arc<Mutex<Vec<Update>>>,
    gone: Arc<AtomicBool>,
    /// Goes after so many tokens.
    patience: Option<usize>,
}

struct Ear(Heard);

impl Listener for Ear {
    fn hear(&mut self, update: Update) {
        let mut all = self.0.updates.lock().expect("no panics here");
        all.push(update);
        let tokens = all.iter().filter(|u| matches!(u, Update::Token { .. })).count();
        if self.0.patience.is_some_and(|most| tokens >= most) {
            self.0.gone.store(true, Ordering::Relaxed);
        }
    }

    fn is_gone(&self) -> bool {
        self.0.gone.load(Ordering::Relaxed)
    }
}

impl Heard {
    fn ear(&self) -> Box<dyn Listener> {
        Box::new(Ear(self.clone()))
    }

    fn all(&self) -> Vec<Update> {
        self.updates.lock().expect("no panics here").clone()
    }

    /// Ids of a row.
    fn ids(&self, of: usize) -> Vec<u32> {
        let id = |update| match update {
            Update::Token { row, id, .. } if row == of => Some(id),
            _ => None,
        };
        self.all().into_iter().filter_map(id).collect()
    }

    fn finish(&self, of: usize) -> Option<Finish> {
        self.all().into_iter().find_map(|update| match update {
            Update::Ended { row, finish, .. } if row == of => Some(finish),
            _ => None,
        })
    }

    fn pieces(&self, of: usize) -> Vec<Piece> {
        let mut all = Vec::new();
        for update in self.all() {
            if let Update::Token { row, pieces, .. } | Update::Ended { row, pieces, .. } = update
                && row == of
            {
                pieces.iter().for_each(|piece| Piece::append(&mut all, piece));
            }
        }
        all
    }

    fn failure(&self) -> Option<String> {
        match self.all().pop() {
            Some(Update::Failed(why)) => Some(why),
            _ => None,
        }
    }

    fn usage(&self) -> Option<super::Usage> {
        match self.all().pop() {
            Some(Update::Done(usage)) => Some(usage),
            _ => None,
        }
    }

    fn reused(&self) -> Option<usize> {
        self.all().into_iter().find_map(|update| match update {
            Update::Began { reused_tokens, .. } => Some(reused_tokens),
            _ => None,
        })
    }
}

/// A request for `max_tokens` drawn ids after a prompt, whatever they mean.
fn request(prompt: &[u32], max_tokens: usize, seed: u64) -> Request {
    Request {
        prompt: prompt.to_vec(),
        n: 1,
        max_tokens,
        sample: SampleOptions::new(1.0, None, seed).expect("a temperature in range"),
        stop: Vec::new(),
        stop_at_eot: false,
        tools: false,
        logprobs: None,
        prompt_logprobs: false,
        constraint: None,
    }
}

fn submit(batch: &Batch, request: Request) -> Heard {
    let heard = Heard::default();
    batch.submit(request, heard.ear()).expect("room in the queue");
    heard
}

/// Runs what was submitted to its end.
fn drain(batch: &Batch, model: &mut FakeBatch) {
    batch.close();
    batch.run(model, &tokenizer()).expect("the vocabularies agree");
    let pages = model.pages();
    assert_eq!(pages.used, 0, "all pages came back");
    assert_eq!(batch.load().running + batch.load().waiting, 0);
}
