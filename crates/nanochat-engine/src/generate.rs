//! A prompt in, n rows of ids out, one column at a time.
//!
//! ```text
//! prefill once -> fork to n rows -> draw n first ids -> decode the column -> draw -> ...
//! ```
//! Each row draws its own first id; upstream's old bug, one first id copied to all rows, stays
//! measurable as [`FirstToken::Broadcast`]. Whether there is a KV cache is the decoder's matter.

use std::ops::ControlFlow;
use std::time::Instant;

use nanochat_gpt::model::Decoder;
use nanochat_tokenizer::Tokenizer;

use crate::sample::{Context, SampleOptions, Sampler};
use crate::text::{Piece, RowText};
use crate::tool::{RowMachine, Seen};
use crate::{Error, Result};

/// How the first column is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstToken {
    /// Each row draws for itself.
    Independent,
    /// One id, drawn for the first row, is copied to all rows (a fault, kept as a baseline).
    Broadcast,
}

impl FirstToken {
    /// Name as in flags and summaries.
    pub fn name(self) -> &'static str {
        match self {
            FirstToken::Independent => "independent",
            FirstToken::Broadcast => "broadcast",
        }
    }
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Number of rows (samples), at least 1.
    pub n: usize,
    /// Most ids a row gets, drawn, forced and its last one included.
    pub max_tokens: usize,
    /// How ids are drawn.
    pub sample: SampleOptions,
    /// A row ends before the first of these in its text.
    pub stop: Vec<String>,
    /// A row ends at assistant_end or bos.
    pub stop_at_eot: bool,
    /// Tool calls are answered.
    pub tools: bool,
    /// Number of the first row: row r of a run draws as row `first_row + r` of the seed.
    pub first_row: u64,
    /// How the first column is drawn.
    pub first_token: FirstToken,
}

impl GenerateOptions {
    /// One row of at most `max_tokens`, until the end of the turn, with tools.
    pub fn new(sample: SampleOptions, max_tokens: usize) -> Self {
        Self {
            n: 1,
            max_tokens,
            sample,
            stop: Vec::new(),
            stop_at_eot: true,
            tools: true,
            first_row: 0,
            first_token: FirstToken::Independent,
        }
    }
}

/// One id of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// The id.
    pub id: u32,
    /// True if a tool put it there, false if the model drew it.
    pub forced: bool,
}

/// One column: what each row got in this step.
#[derive(Debug)]
pub struct Step<'s> {
    /// Steps before this one.
    pub index: usize,
    /// (n); None for a row that has ended, its end-of-turn id included.
    pub ids: &'s [Option<Emitted>],
    /// (n); what a reader of each row can be shown. Empty without a tokenizer.
    pub pieces: &'s [Vec<Piece>],
}

/// Why a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// assistant_end or bos.
    Eot,
    /// A stop string.
    StopString,
    /// [`GenerateOptions::max_tokens`].
    MaxTokens,
    /// The model can hold no more.
    ContextFull,
    /// The caller had enough.
    Cancelled,
}

/// What became of one row.
#[derive(Clone, Debug)]
pub struct Row {
    /// Ids after the prompt, without the one that ended the turn.
    pub ids: Vec<u32>,
    /// 1 for each drawn id, 0 for each forced one.
    pub mask: Vec<u8>,
    /// Why it ended.
    pub finish: Finish,
    /// The id that ended the turn, if [`Finish::Eot`].
    pub terminal: Option<u32>,
    /// What it says, without stop string and special tokens. Empty without a tokenizer.
    pub pieces: Vec<Piece>,
}

impl Row {
    /// The words alone, without tool calls and their answers.
    pub fn text(&self) -> String {
        let words = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::ToolCall(_) | Piece::ToolOutput(_) => "",
        });
        words.collect()
    }
}

/// Counts and times of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, held by the model from before.
    pub reused_tokens: usize,
    /// Drawn ids of all rows, ends of turn included.
    pub sampled_tokens: usize,
    /// Forced ids of all rows.
    pub forced_tokens: usize,
    /// Columns.
    pub steps: usize,
    /// Seconds for the prompt.
    pub prefill_s: f64,
    /// Seconds from the start to the first column: the prompt, the fork and n draws.
    pub first_token_s: f64,
    /// Ids of all columns after the first.
    pub decoded_tokens: usize,
    /// Seconds for these.
    pub decode_s: f64,
}

impl Stats {
    /// Speed after the first column, all rows together; 0 if there was no second one.
    pub fn tokens_per_sec(&self) -> f64 {
        if self.decode_s > 0.0 { self.decoded_tokens as f64 / self.decode_s } else { 0.0 }
    }
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Generation {
    /// (n)
    pub rows: Vec<Row>,
    /// Counts and times.
    pub stats: Stats,
}

/// A model with, usually, its tokenizer.
pub struct Engine<'a> {
    decoder: &'a mut dyn Decoder,
    tokenizer: Option<&'a Tokenizer>,
}

/// Rows of a run at most.
const MOST_ROWS: usize = 1 << 16;

impl<'a> Engine<'a> {
    /// An engine whose rows have text, tools and ends of turn.
    ///
    /// Errors: [`Error::Vocabulary`] if the two have different numbers of ids.
    pub fn new(decoder: &'a mut dyn Decoder, tokenizer: &'a Tokenizer) -> Result<Self> {
        let (model, vocab) = (decoder.vocab_size(), tokenizer.vocab_size());
        if model != vocab {
            return Err(Error::Vocabulary { model, tokenizer: vocab });
        }
        Ok(Self { decoder, tokenizer: Some(tokenizer) })
    }

    /// An engine for ids alone: `stop` must be empty, `stop_at_eot` and `tools` false.
    pub fn without_text(decoder: &'a mut dyn Decoder) -> Self {
        Self { decoder, tokenizer: None }
    }

    /// Generates from `prompt` to the end; `on_step` sees each column and may break off.
    ///
    /// Errors: as [`Engine::start`] and [`Run::step`].
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_step: impl FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut run = self.start(prompt, 0, options)?;
        while let Some(step) = run.step()? {
            if on_step(&step).is_break() {
                break;
            }
        }
        Ok(run.finish())
    }

    /// Computes the prompt. The first `held` ids of it are in the model already, from a run before;
    /// with 0 the model is reset.
    ///
    /// Errors: [`Error::Option`], [`Error::NoTokenizer`], [`Error::EmptyPrompt`], [`Error::Held`],
    /// [`Error::Model`]. After the last one what the model holds is void.
    pub fn start<'e>(
        &'e mut self,
        prompt: &[u32],
        held: usize,
        options: &'e GenerateOptions,
    ) -> Result<Run<'e>> {
        self.check(prompt, held, options)?;
        let began = Instant::now();
        if held == 0 {
            self.decoder.reset();
        }
        let len = prompt.len().saturating_add(options.max_tokens);
        self.decoder.reserve(prompt.len(), options.n, len)?;
        let logits = self.decoder.prefill(&prompt[held..])?;
        let prefill_s = began.elapsed().as_secs_f64();
        if options.n > 1 {
            self.decoder.fork(options.n)?;
        }
        let text = |tokenizer| TextState {
            machine: RowMachine::new(tokenizer, options.tools),
            text: RowText::new(tokenizer, &options.stop),
        };
        let row = || RowState {
            ids: prompt.to_vec(),
            mask: Vec::new(),
            finish: None,
            terminal: None,
            pieces: Vec::new(),
            text: self.tokenizer.map(text),
        };
        let mut run = Run {
            rows: (0..options.n).map(|_| row()).collect(),
            decoder: &mut *self.decoder,
            options,
            sampler: Sampler::new(options.sample.clone()),
            prompt_len: prompt.len(),
            logits,
            ids: vec![None; options.n],
            pieces: vec![Vec::new(); options.n],
            stats: Stats {
                prompt_tokens: prompt.len(),
                reused_tokens: held,
                prefill_s,
                first_token_s: began.elapsed().as_secs_f64(),
                ..Stats::default()
            },
        };
        run.end_at_limits();
        Ok(run)
    }

    fn check(&self, prompt: &[u32], held: usize, options: &GenerateOptions) -> Result<()> {
        let refuse = |name, value: String, allowed| Err(Error::Option { name, value, allowed });
        if options.n == 0 || options.n > MOST_ROWS {
            return refuse("n", options.n.to_string(), "from 1 to 65,536");
        }
        if options.stop.iter().any(String::is_empty) {
            return refuse("stop", "an empty string".into(), "strings of one character or more");
        }
        if self.tokenizer.is_none() {
            let asked = [
                ("tools", options.tools),
                ("stop_at_eot", options.stop_at_eot),
                ("stop", !options.stop.is_empty()),
            ];
            if let Some((what, _)) = asked.into_iter().find(|(_, asked)| *asked) {
                return Err(Error::NoTokenizer { what });
            }
        }
        let (rows, len) = (self.decoder.rows(), self.decoder.len());
        if held > 0 && (rows != 1 || len != held || held >= prompt.len()) {
            return Err(Error::Held { rows, len, expected: held });
        }
        if prompt.is_empty() { Err(Error::EmptyPrompt) } else { Ok(()) }
    }
}

/// A run under way: ask for columns, then for what became of the rows.
pub struct Run<'e> {
    decoder: &'e mut dyn Decoder,
    options: &'e GenerateOptions,
    sampler: Sampler,
    rows: Vec<RowState<'e>>,
    prompt_len: usize,
    /// (1, V) after the prompt, then (n, V).
    logits: Vec<f32>,
    ids: Vec<Option<Emitted>>,
    pieces: Vec<Vec<Piece>>,
    stats: Stats,
}

struct RowState<'e> {
    /// Prompt and generated ids.
    ids: Vec<u32>,
    mask: Vec<u8>,
    finish: Option<Finish>,
    terminal: Option<u32>,
    pieces: Vec<Piece>,
    text: Option<TextState<'e>>,
}

struct TextState<'e> {
    machine: RowMachine<'e>,
    text: RowText<'e>,
}

impl Run<'_> {
    /// The next column; None when all rows have ended.
    ///
    /// Errors: [`Error::Logit`], [`Error::LogitCount`], [`Error::Model`]. After one the run is
    /// void, and so is what the model holds.
    pub fn step(&mut self) -> Result<Option<Step<'_>>> {
        if self.rows.iter().all(|row| row.finish.is_some()) {
            return Ok(None);
        }
        let began = Instant::now();
        let index = self.stats.steps;
        if index > 0 {
            self.advance()?;
        }
        let tokens_before = self.stats.sampled_tokens + self.stats.forced_tokens;
        self.draw_column(index)?;
        self.stats.steps += 1;
        self.end_at_limits();
        let seconds = began.elapsed().as_secs_f64();
        if index == 0 {
            self.stats.first_token_s += seconds;
        } else {
            self.stats.decode_s += seconds;
            let tokens = self.stats.sampled_tokens + self.stats.forced_tokens;
            self.stats.decoded_tokens += tokens - tokens_before;
        }
        Ok(Some(Step { index, ids: &self.ids, pieces: &self.pieces }))
    }

    /// What became of the rows; those that have not ended count as cancelled.
    pub fn finish(mut self) -> Generation {
        self.end_all(Finish::Cancelled);
        let prompt_len = self.prompt_len;
        let rows = self.rows.into_iter().map(|mut row| Row {
            ids: row.ids.split_off(prompt_len),
            mask: row.mask,
            finish: row.finish.unwrap_or(Finish::Cancelled),
            terminal: row.terminal,
            pieces: row.pieces,
        });
        Generation { rows: rows.collect(), stats: self.stats }
    }

    /// Feeds the last column; leaves the next logits.
    fn advance(&mut self) -> Result<()> {
        let vocab = self.decoder.vocab_size();
        let expected = self.rows.len() * vocab;
        // Rows that have ended are fed their last id again: the result is not looked at.
        let column: Vec<u32> = self.rows.iter().filter_map(|r| r.ids.last().copied()).collect();
        self.logits = self.decoder.decode(&column)?;
        if self.logits.len() != expected {
            return Err(Error::LogitCount { found: self.logits.len(), expected });
        }
        Ok(())
    }

    fn draw_column(&mut self, index: usize) -> Result<()> {
        let vocab = self.decoder.vocab_size();
        if index == 0 && self.logits.len() != vocab {
            return Err(Error::LogitCount { found: self.logits.len(), expected: vocab });
        }
        let broadcast = index == 0 && self.options.first_token == FirstToken::Broadcast;
        for r in 0..self.rows.len() {
            self.ids[r] = None;
            self.pieces[r].clear();
            let row = &mut self.rows[r];
            if row.finish.is_some() {
                continue;
            }
            let forced = row.text.as_mut().and_then(|text| text.machine.take_forced());
            let id = match forced {
                Some(id) => id,
                None => {
                    let logits =
                        if index == 0 { &self.logits } else { &self.logits[r * vocab..][..vocab] };
                    let number = if broadcast { 0 } else { r as u64 };
                    let number = self.options.first_row.wrapping_add(number);
                    let (prompt, said) = row.ids.split_at(self.prompt_len);
                    let context = Context { prompt, said, allowed: None };
                    self.sampler.draw(logits, context, number, index as u64)?
                }
            };
            let emitted = Emitted { id, forced: forced.is_some() };
            *if emitted.forced {
                &mut self.stats.forced_tokens
            } else {
                &mut self.stats.sampled_tokens
            } += 1;
            self.ids[r] = row.take_in(emitted, self.options.stop_at_eot, &mut self.pieces[r])?;
        }
        Ok(())
    }

    /// Ends every row when no further column is wanted or can be held.
    fn end_at_limits(&mut self) {
        if self.stats.steps >= self.options.max_tokens {
            self.end_all(Finish::MaxTokens);
        } else if self.stats.steps > 0
            && self.prompt_len + self.stats.steps > self.decoder.max_len()
        {
            // The next column needs this one in the model.
            self.end_all(Finish::ContextFull);
        }
    }

    fn end_all(&mut self, why: Finish) {
        for (row, pieces) in self.rows.iter_mut().zip(&mut self.pieces) {
            if row.finish.is_none() {
                row.finish = Some(why);
                let from = pieces.len();
                if let Some(text) = &mut row.text {
                    text.text.flush(pieces);
                }
                row.keep(&pieces[from..]);
            }
        }
    }
}

impl RowState<'_> {
    /// Appends an id; returns it unless it ended the turn. Adds to `pieces` what can be shown.
    fn take_in(
        &mut self,
        emitted: Emitted,
        stop_at_eot: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<Option<Emitted>> {
        if let Some(state) = &mut self.text {
            let mut seen = state.machine.accept(emitted.id, emitted.forced)?;
            if seen == Seen::End && !stop_at_eot {
                seen = Seen::Mark;
            }
            let stopped = state.text.push(emitted.id, &seen, pieces)?;
            self.keep(pieces);
            if seen == Seen::End {
                self.finish = Some(Finish::Eot);
                self.terminal = Some(emitted.id);
                return Ok(None);
            }
            if stopped {
                self.finish = Some(Finish::StopString);
            }
        }
        self.ids.push(emitted.id);
        self.mask.push(u8::from(!emitted.forced));
        Ok(Some(emitted))
    }

    fn keep(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            Piece::append(&mut self.pieces, piece);
        }
    }
}

#[cfg(test)]
mod tests;
