//! What evaluations ask of a model: how likely continuations are, what comes next, and to generate.
//!
//! [`Plain`] answers with any decoder, one token at a time: the reference. [`Batched`] answers with
//! nanochat's: what the candidates of an item have in common is computed once (its KV pages are
//! shared), short items run together, sorted by length, and the head sees only what is asked for;
//! answers are written many at once, if it is told how.

use nanochat_gpt::model::{Decoder, likeliest};
use nanochat_gpt::nano::decode::{NanoDecoder, Scored, Wanted};
use nanochat_tokenizer::Tokenizer;

use crate::Result;
use crate::answers::{Asked, OneByOne, Taken, Together, Writer, Writing};

/// Ids, of which those from `from` on are asked for (`from >= 1`: something must come before).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The whole row, bos first.
    pub ids: Vec<u32>,
    /// Where the continuation begins.
    pub from: usize,
}

impl Candidate {
    /// The last `most` ids, as upstream crops for models that take no more.
    pub fn crop(mut self, most: usize) -> Self {
        let cut = self.ids.len().saturating_sub(most);
        self.ids.drain(..cut);
        // Where even the continuation is too long, what is left of it is asked for.
        self.from = self.from.saturating_sub(cut).max(1);
        self
    }

    fn len(&self) -> usize {
        self.ids.len()
    }
}

/// What the model thinks of a continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Nats of each of its tokens.
    pub losses: Vec<f32>,
    /// True if every token is the likeliest in its place.
    pub greedy: bool,
}

impl Span {
    /// Mean nats per token; not a number for an empty continuation.
    pub fn mean(&self) -> f64 {
        let sum: f64 = self.losses.iter().map(|x| f64::from(*x)).sum();
        sum / self.losses.len() as f64
    }
}

/// Takes the spans of item `i`, in the order of its candidates.
pub type Done<'d> = dyn FnMut(usize, Vec<Span>) -> Result<()> + 'd;

/// A model under evaluation.
pub trait EvalModel {
    /// The model as generation sees it.
    fn decoder(&mut self) -> &mut dyn Decoder;

    /// Scores the candidates of every item; `done` is told of items as they are ready, in any order.
    fn score(&mut self, items: &[Vec<Candidate>], done: &mut Done<'_>) -> Result<()>;

    /// Writes the answers to prompts.
    ///
    /// Errors: as [`Writer::write`].
    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        asked: &[Asked],
        writing: &Writing,
        done: &mut Taken<'_>,
    ) -> Result<()> {
        OneByOne(self.decoder()).write(tokenizer, asked, writing, done)
    }

    /// Logits (V) after each prompt.
    fn next_logits(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>>;
}

/// Any decoder, one token at a time. The reference; never optimise it.
pub struct Plain<D>(pub D);

impl<D: Decoder> EvalModel for Plain<D> {
    fn decoder(&mut self) -> &mut dyn Decoder {
        &mut self.0
    }

    fn score(&mut self, items: &[Vec<Candidate>], done: &mut Done<'_>) -> Result<()> {
        for (i, candidates) in items.iter().enumerate() {
            let mut spans = Vec::new();
            for candidate in candidates {
                let (before, asked) = candidate.ids.split_at(candidate.from);
                let mut span = Span { losses: Vec::new(), greedy: true };
                self.0.reset();
                let mut logits = self.0.prefill(before)?;
                for (at, &id) in asked.iter().enumerate() {
                    span.losses.push(loss(&logits, id));
                    span.greedy &= likeliest(&logits, 1)[0] == id;
                    if at + 1 < asked.len() {
                        logits = self.0.decode(&[id])?;
                    }
                }
                spans.push(span);
            }
            done(i, spans)?;
        }
        self.0.reset();
        Ok(())
    }

    fn next_logits(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let logits = prompts.iter().map(|prompt| {
            self.0.reset();
            Ok(self.0.prefill(prompt)?)
        });
        logits.collect()
    }
}

/// `ln sum_j exp(z_j) - z_id`.
fn loss(logits: &[f32], id: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| f64::from(z - max).exp()).sum();
    (sum.ln() + f64::from(max) - f64::from(logits[id as usize])) as f32
}

/// Tokens that run through the layers together when whole rows are batched: bounds memory.
const BATCH_TOKENS: usize = 4096;

/// What a pass through the layers costs beside its tokens, in tokens: the weights are read once more,
/// and few rows use the processor badly. Sharing is worth it when it saves more. An estimate, for two cores
/// at depth 6.
const PASS_TOKENS: usize = 64;

/// nanochat's decoder, with all that makes it fast.
pub struct Batched<'a> {
    decoder: NanoDecoder<'a>,
    share: bool,
    writer: Option<Together<'a>>,
}

impl<'a> Batched<'a> {
    /// With `share` false every candidate runs whole: the baseline.
    pub fn new(decoder: NanoDecoder<'a>, share: bool) -> Self {
        Self { decoder, share, writer: None }
    }

    /// Answers are written many at once.
    pub fn writing(self, writer: Together<'a>) -> Self {
        Self { writer: Some(writer), ..self }
    }

    /// Ids that all candidates begin with, and that are not asked for by any.
    fn common(candidates: &[Candidate]) -> usize {
        let first = &candidates[0].ids;
        let most = candidates.iter().map(|c| (c.from - 1).min(c.len() - 1)).min().unwrap_or(0);
        (0..most).take_while(|&i| candidates.iter().all(|c| c.ids[i] == first[i])).count()
    }

    /// The length of the common part, if computing it once is worth it.
    fn shared(&self, candidates: &[Candidate]) -> Option<usize> {
        let (n, longest) = (candidates.len(), longest(candidates));
        let common = Self::common(candidates);
        let apart = common + n * (longest - common) + 2 * PASS_TOKENS;
        (self.share && common > 0 && apart < n * longest).then_some(common)
    }

    fn score_shared(&mut self, candidates: &[Candidate], common: usize) -> Result<Vec<Span>> {
        let (n, t) = (candidates.len(), longest(candidates) - common);
        let decoder = &mut self.decoder;
        decoder.reset();
        decoder.reserve(common, n, common + t)?;
        decoder.prefill(&candidates[0].ids[..common])?;
        decoder.fork(n)?;
        let (mut ids, mut targets) = (vec![0; n * t], vec![-1; n * t]);
        for (row, candidate) in candidates.iter().enumerate() {
            let rest = &candidate.ids[common..];
            ids[row * t..][..rest.len()].copy_from_slice(rest);
            for at in candidate.from..candidate.len() {
                targets[row * t + at - 1 - common] = candidate.ids[at] as i32;
            }
        }
        let scored = decoder.score(&ids, &targets)?;
        Ok(spans(candidates, &mut scored.into_iter()))
    }

    /// Whole rows of several items in one pass.
    fn score_whole(&mut self, items: &[&[Candidate]]) -> Result<Vec<Vec<Span>>> {
        let all: Vec<&Candidate> = items.iter().flat_map(|item| item.iter()).collect();
        let rows: Vec<&[u32]> = all.iter().map(|c| c.ids.as_slice()).collect();
        let of = |(row, c): (usize, &&Candidate)| {
            let ids = c.ids.clone();
            (c.from..c.len()).map(move |at| Wanted { row, at, id: ids[at] })
        };
        let wanted: Vec<Wanted> = all.iter().enumerate().flat_map(of).collect();
        let mut scored = self.decoder.score_batch(&rows, &wanted)?.into_iter();
        Ok(items.iter().map(|item| spans(item, &mut scored)).collect())
    }
}

fn longest(candidates: &[Candidate]) -> usize {
    candidates.iter().map(Candidate::len).max().unwrap_or(0)
}

/// Cuts scores, which come in the order of the candidates, into their spans.
fn spans(candidates: &[Candidate], scored: &mut dyn Iterator<Item = Scored>) -> Vec<Span> {
    let span = |candidate: &Candidate| {
        let asked = &candidate.ids[candidate.from..];
        let scores: Vec<Scored> = scored.take(asked.len()).collect();
        Span {
            greedy: scores.iter().zip(asked).all(|(s, id)| s.likeliest == *id),
            losses: scores.iter().map(|s| s.loss).collect(),
        }
    };
    candidates.iter().map(span).collect()
}

/// Cuts a list that is sorted by cost into batches; `tokens` of an item grow along it.
fn batches(
    sorted: &[usize],
    rows: impl Fn(usize) -> usize,
    len: impl Fn(usize) -> usize,
) -> Vec<&[usize]> {
    let (mut all, mut first, mut held) = (Vec::new(), 0, 0);
    for (at, &i) in sorted.iter().enumerate() {
        // Rows are filled up to the longest, which is the newest.
        if at > first && (held + rows(i)) * len(i) > BATCH_TOKENS {
            all.push(&sorted[first..at]);
            (first, held) = (at, 0);
        }
        held += rows(i);
    }
    if first < sorted.len() {
        all.push(&sorted[first..]);
    }
    all
}

impl EvalModel for Batched<'_> {
    fn decoder(&mut self) -> &mut dyn Decoder {
        &mut self.decoder
    }

    fn write(
        &mut self,
        tokenizer: &Tokenizer,
        asked: &[Asked],
        writing: &Writing,
        done: &mut Taken<'_>,
    ) -> Result<()> {
        match &mut self.writer {
            Some(writer) => writer.write(tokenizer, asked, writing, done),
            None => OneByOne(&mut self.decoder).write(tokenizer, asked, writing, done),
        }
    }

    fn score(&mut self, items: &[Vec<Candidate>], done: &mut Done<'_>) -> Result<()> {
        let mut whole = Vec::new();
        for (i, candidates) in items.iter().enumerate() {
            match self.shared(candidates) {
                Some(common) => {
                    let spans = self.score_shared(candidates, common)?;
                    done(i, spans)?;
                }
                None => whole.push(i),
            }
        }
        whole.sort_by_key(|&i| longest(&items[i]));
        for batch in batches(&whole, |i| items[i].len(), |i| longest(&items[i])) {
            let some: Vec<&[Candidate]> = batch.iter().map(|&i| items[i].as_slice()).collect();
            for (spans, &i) in self.score_whole(&some)?.into_iter().zip(batch) {
                done(i, spans)?;
            }
        }
        self.decoder.reset();
        Ok(())
    }

    fn next_logits(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&i| prompts[i].len());
        let mut all = vec![Vec::new(); prompts.len()];
        for batch in batches(&order, |_| 1, |i| prompts[i].len()) {
            let rows: Vec<&[u32]> = batch.iter().map(|&i| prompts[i].as_slice()).collect();
            for (logits, &i) in self.decoder.logits_batch(&rows)?.into_iter().zip(batch) {
                all[i] = logits;
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crop_keeps_the_end() {
        let candidate = |from| Candidate { ids: vec![0, 1, 2, 3, 4], from };
        assert_eq!(candidate(3).crop(9), candidate(3));
        assert_eq!(candidate(3).crop(3), Candidate { ids: vec![2, 3, 4], from: 1 });
        assert_eq!(candidate(1).crop(2), Candidate { ids: vec![3, 4], from: 1 });
    }

    #[test]
    fn the_common_part_ends_before_what_is_asked() {
        let candidate = |ids: &[u32], from| Candidate { ids: ids.to_vec(), from };
        // The token at `from - 1` predicts: it must run with the rows.
        let common = |list: &[Candidate]| Batched::common(list);
        assert_eq!(common(&[candidate(&[9, 1, 2, 3], 3), candidate(&[9, 1, 2, 4], 3)]), 2);
        assert_eq!(common(&[candidate(&[9, 1, 2, 3], 3), candidate(&[9, 7, 2, 3], 3)]), 1);
        assert_eq!(common(&[candidate(&[9, 1], 1)]), 0);
    }

    #[test]
    fn batches_hold_at_most_their_tokens_or_one_item() {
        let lens = [10, 2000, 2000, 3000, 9000];
        let cut = batches(&[0, 1, 2, 3, 4], |_| 1, |i| lens[i]);
        assert_eq!(cut, [&[0, 1][..], &[2], &[3], &[4]]);
        assert!(batches(&[], |_| 1, |_| 1).is_empty());
    }
}
