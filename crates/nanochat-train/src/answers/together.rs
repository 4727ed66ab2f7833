//! Many prompts at once: rows of the engine's batch, handed over while others are being written.
//!
//! ```text
//! prompts -> queue -> rows, an id each a step; who is done makes room for who waits -> answers in order
//! ```
//! The samples of a prompt share its pages. A row's ids depend on the weights, its prompt and its seed
//! alone, on a CPU to the bit: `rows` is a matter of speed and memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use nanochat_compute::Backend;
use nanochat_compute::ops::WeightFormat;
use nanochat_engine::Piece;
use nanochat_engine::batch::{Batch, BatchOptions, Generator, Listener, Refused, Request, Update};
use nanochat_engine::generate::{Finish, Row};
use nanochat_gpt::Nano;
use nanochat_gpt::batch::{BatchDecoder, Feed, Opened, PageCount, Room, Sequence};
use nanochat_gpt::nano::batch::{BatchRoom, NanoBatch};
use nanochat_tokenizer::Tokenizer;

use super::{Asked, Taken, Writer, Writing};
use crate::{Error, Result};

/// The rows of a batch unless somebody says else.
pub const ROWS: usize = 64;

/// A model that answers many prompts in one batch.
pub struct Together<'m> {
    /// Where it runs.
    pub be: &'m dyn Backend,
    /// Its weights are read anew for each [`Writer::write`].
    pub model: &'m Nano,
    /// How they are read.
    pub format: WeightFormat,
    /// Rows that are computed at once, but never fewer than a prompt has samples.
    pub rows: usize,
    /// Most ids of a prompt with its answer; no more than the rotary tables reach.
    pub max_len: usize,
}

impl Writer for Together<'_> {
    fn max_len(&self) -> usize {
        self.max_len
    }

    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        asked: &[Asked],
        writing: &Writing,
        done: &mut Taken<'_>,
    ) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let n = writing.num_samples;
        let longest = asked.iter().map(|a| a.prompt.len()).max().unwrap_or(0);
        let len = longest.saturating_add(writing.max_tokens).min(self.max_len);
        let rows = self.rows.max(n).min(asked.len().saturating_mul(n));
        // A prompt that ends inside a page is copied once for its forks.
        let room = BatchRoom::of_rows(self.be, self.model.config(), rows + 1, len);
        let mut decoder = NanoBatch::new(self.be, self.model, self.format, room)?;
        write(&mut decoder, tokenizer, asked, (writing, rows), done)
    }
}

/// Writes the answers to all prompts with a decoder that has room for `rows`.
fn write(
    decoder: &mut dyn BatchDecoder,
    tokenizer: &Tokenizer,
    asked: &[Asked],
    (writing, rows): (&Writing, usize),
    done: &mut Taken<'_>,
) -> Result<()> {
    let options = BatchOptions { rows, queue: asked.len(), ..BatchOptions::default() };
    let batch = Batch::new(decoder, options);
    let (said, heard) = mpsc::channel();
    let gone = Arc::new(AtomicBool::new(false));
    let most = batch.limits().context;
    for (at, one) in asked.iter().enumerate() {
        let request = Request {
            prompt: one.prompt.clone(),
            n: writing.num_samples,
            max_tokens: writing.max_tokens.min(most.saturating_sub(one.prompt.len())),
            sample: one.sample.clone(),
            stop: Vec::new(),
            stop_at_eot: true,
            tools: writing.tools,
            logprobs: None,
            prompt_logprobs: false,
            constraint: None,
        };
        let ear = Ear::new(at, writing.num_samples, said.clone(), gone.clone());
        let refused = |why: Refused| Error::Answer { why: why.to_string() };
        batch.submit(request, Box::new(ear)).map_err(refused)?;
    }
    drop(said);
    batch.close();
    let mut hands = Hands { heard, waiting: BTreeMap::new(), next: 0, done, failed: None, gone };
    batch.run(&mut Watched { decoder, hands: &mut hands }, tokenizer)?;
    hands.take();
    match hands.failed {
        Some(e) => Err(e),
        None if hands.next < asked.len() => {
            Err(Error::Answer { why: format!("prompt {} was left without one", hands.next) })
        }
        None => Ok(()),
    }
}

/// Rows of a prompt, or why there are none.
type Heard = (usize, std::result::Result<Vec<Row>, String>);

/// Gathers what is said of one prompt.
struct Ear {
    at: usize,
    rows: Vec<Row>,
    said: Sender<Heard>,
    gone: Arc<AtomicBool>,
}

impl Ear {
    fn new(at: usize, n: usize, said: Sender<Heard>, gone: Arc<AtomicBool>) -> Self {
        let row = || Row {
            ids: Vec::new(),
            mask: Vec::new(),
            finish: Finish::Cancelled,
            terminal: None,
            pieces: Vec::new(),
        };
        Self { at, rows: (0..n).map(|_| row()).collect(), said, gone }
    }

    fn keep(row: &mut Row, pieces: &[Piece]) {
        pieces.iter().for_each(|piece| Piece::append(&mut row.pieces, piece));
    }
}

impl Listener for Ear {
    fn hear(&mut self, update: Update) {
        let over = match update {
            Update::Token { row, id, forced, pieces, .. } => {
                let row = &mut self.rows[row];
                row.ids.push(id);
                row.mask.push(u8::from(!forced));
                Self::keep(row, &pieces);
                return;
            }
            Update::Ended { row, finish, terminal, pieces } => {
                let row = &mut self.rows[row];
                (row.finish, row.terminal) = (finish, terminal);
                Self::keep(row, &pieces);
                return;
            }
            Update::Began { .. } | Update::Prompt(_) => return,
            Update::Done(_) => Ok(std::mem::take(&mut self.rows)),
            Update::Failed(why) => Err(why),
        };
        // Whoever asked may have gone: nobody is left to tell.
        let _ = self.said.send((self.at, over));
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// Hands finished answers over, in order.
struct Hands<'h> {
    heard: Receiver<Heard>,
    waiting: BTreeMap<usize, Vec<Row>>,
    next: usize,
    done: &'h mut Taken<'h>,
    failed: Option<Error>,
    gone: Arc<AtomicBool>,
}

impl Hands<'_> {
    fn take(&mut self) {
        for (at, rows) in self.heard.try_iter() {
            match rows {
                Ok(rows) => drop(self.waiting.insert(at, rows)),
                Err(why) if self.failed.is_none() => self.failed = Some(Error::Answer { why }),
                Err(_) => {}
            }
        }
        while self.failed.is_none()
            && let Some(rows) = self.waiting.remove(&self.next)
        {
            self.failed = (self.done)(self.next, rows).err();
            self.next += 1;
        }
        if self.failed.is_some() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
}

/// A decoder between whose steps finished answers are handed over.
struct Watched<'w, 'h> {
    decoder: &'w mut dyn BatchDecoder,
    hands: &'w mut Hands<'h>,
}

impl BatchDecoder for Watched<'_, '_> {
    fn vocab_size(&self) -> usize {
        self.decoder.vocab_size()
    }

    fn max_len(&self) -> usize {
        self.decoder.max_len()
    }

    fn step_len(&self) -> usize {
        self.decoder.step_len()
    }

    fn page_len(&self) -> usize {
        self.decoder.page_len()
    }

    fn pages(&self) -> PageCount {
        self.decoder.pages()
    }

    fn open(&mut self, prompt: &[u32], room: Room) -> nanochat_gpt::Result<Option<Opened>> {
        self.decoder.open(prompt, room)
    }

    fn fork(&mut self, sequence: Sequence) -> nanochat_gpt::Result<Sequence> {
        self.decoder.fork(sequence)
    }

    fn close(&mut self, sequence: Sequence) {
        self.decoder.close(sequence);
    }

    fn step(&mut self, feeds: &[Feed<'_>]) -> nanochat_gpt::Result<Vec<f32>> {
        self.hands.take();
        self.decoder.step(feeds)
    }
}
