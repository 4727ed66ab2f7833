//! The micro batches of the step under way: kept, so that a run that stops within a step draws them again.
//!
//! In: any [`Batches`]. Out: the same batches. Between steps the state is that of the stream itself; within
//! a step it is that state and the batches drawn since, so that no batch is lost and none comes twice.

use std::collections::VecDeque;

use nanochat_data::{Batch, Batches};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"NCPD\x01\0\0\0";

/// A stream that knows what the step under way has drawn of it.
pub(crate) struct Replay<'a> {
    inner: &'a mut dyn Batches,
    /// Drawn by the step under way.
    drawn: Vec<Batch>,
    /// To be drawn before the stream goes on.
    pending: VecDeque<Batch>,
}

impl<'a> Replay<'a> {
    pub fn new(inner: &'a mut dyn Batches) -> Self {
        Self { inner, drawn: Vec::new(), pending: VecDeque::new() }
    }

    /// The step is over: what it drew is used up.
    pub fn end_step(&mut self) {
        self.drawn.clear();
    }

    /// Lets go of what a step under way has drawn, for a stream that makes a step's batches anew.
    pub fn forget(&mut self) {
        self.drawn.clear();
        self.pending.clear();
    }
}

/// A batch as it lies in a state.
#[derive(Serialize, Deserialize)]
struct Kept {
    b: usize,
    t: usize,
    x: Vec<i32>,
    y: Vec<i32>,
    #[serde(default)]
    w: Option<Vec<f32>>,
    epoch: u64,
    name: String,
    trained_tokens: usize,
    padding_tokens: usize,
}

impl From<&Batch> for Kept {
    fn from(from: &Batch) -> Self {
        let Batch { b, t, x, y, w, epoch, name, trained_tokens, padding_tokens } = from.clone();
        Self { b, t, x, y, w, epoch, name, trained_tokens, padding_tokens }
    }
}

impl From<Kept> for Batch {
    fn from(from: Kept) -> Self {
        let Kept { b, t, x, y, w, epoch, name, trained_tokens, padding_tokens } = from;
        Self { b, t, x, y, w, epoch, name, trained_tokens, padding_tokens }
    }
}

/// `magic and version (8) | length of the JSON u64 LE | JSON | state of the stream | sha256 (32)`.
fn seal(batches: &[Kept], inner: &[u8]) -> Vec<u8> {
    let text = serde_json::to_vec(batches).expect("numbers and a name");
    let mut out = MAGIC.to_vec();
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
    out.extend(inner);
    let digest = Sha256::digest(&out);
    out.extend(digest);
    out
}

fn open(state: &[u8]) -> Option<(Vec<Kept>, &[u8])> {
    let (body, digest) = state.split_at_checked(state.len().checked_sub(32)?)?;
    let rest = body.strip_prefix(MAGIC).filter(|_| Sha256::digest(body).as_slice() == digest)?;
    let (len, rest) = rest.split_at_checked(8)?;
    let len = usize::try_from(u64::from_le_bytes(len.try_into().ok()?)).ok()?;
    let (text, inner) = rest.split_at_checked(len)?;
    Some((serde_json::from_slice(text).ok()?, inner))
}

impl Batches for Replay<'_> {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        let batch = match self.pending.pop_front() {
            Some(batch) => batch,
            None => self.inner.next_batch()?,
        };
        self.drawn.push(batch.clone());
        Ok(batch)
    }

    fn state(&self) -> Vec<u8> {
        let inner = self.inner.state();
        let kept: Vec<Kept> = self.drawn.iter().chain(&self.pending).map(Kept::from).collect();
        if kept.is_empty() { inner } else { seal(&kept, &inner) }
    }

    fn restore(&mut self, state: &[u8]) -> nanochat_data::Result<()> {
        let (pending, inner) = if state.starts_with(&MAGIC[..4]) {
            let why =
                "the bytes are no whole state of a step under way: take an earlier checkpoint";
            open(state).ok_or_else(|| nanochat_data::Error::State { why: why.into() })?
        } else {
            (Vec::new(), state)
        };
        self.inner.restore(inner)?;
        self.drawn.clear();
        self.pending = pending.into_iter().map(Batch::from).collect();
        Ok(())
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }

    fn progress(&self) -> f64 {
        self.inner.progress()
    }
}
