//! The loop of a batch: what came in is admitted, one step of the model follows another.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nanochat_gpt::batch::{BatchDecoder, Feed, Wanted};
use nanochat_tokenizer::Tokenizer;

use super::job::Job;
use super::queue::{Batch, BatchOptions, Shared, Waiting};
use super::request::{Listener, Load, Update};
use crate::{Error, Result};

impl Batch {
    /// Computes until the batch is closed and everything that was taken is finished.
    ///
    /// Errors: [`Error::Vocabulary`] if model and tokenizer do not belong together. However it ends, the
    /// batch is closed then, and requests that it left hear that they failed.
    pub fn run(&self, decoder: &mut dyn BatchDecoder, tokenizer: &Tokenizer) -> Result<()> {
        let (model, vocab) = (decoder.vocab_size(), tokenizer.vocab_size());
        let mut runner = Runner {
            shared: &self.shared,
            decoder,
            tokenizer,
            waiting: VecDeque::new(),
            jobs: Vec::new(),
            counts: Load::default(),
        };
        if model != vocab {
            return Err(Error::Vocabulary { model, tokenizer: vocab });
        }
        while runner.take_in() {
            runner.drop_gone();
            runner.admit();
            runner.begin();
            runner.step();
            runner.publish();
        }
        Ok(())
    }
}

struct Runner<'r> {
    shared: &'r Shared,
    decoder: &'r mut dyn BatchDecoder,
    tokenizer: &'r Tokenizer,
    waiting: VecDeque<Waiting>,
    /// Admitted, oldest first.
    jobs: Vec<Job<'r>>,
    /// Totals; the rest is filled in by [`Runner::publish`].
    counts: Load,
}

/// What a step computes for a job: a chunk of its prompt, or a row.
#[derive(Clone, Copy)]
enum Part {
    Chunk(usize),
    Row(usize),
}

impl Runner<'_> {
    /// Takes in what was submitted, waiting for it if there is nothing to do; false at the end.
    fn take_in(&mut self) -> bool {
        let mut state = self.shared.lock();
        let idle = self.waiting.is_empty() && self.jobs.is_empty();
        while idle && state.inbox.is_empty() {
            if state.closed {
                return false;
            }
            let woken = self.shared.wake.wait(state);
            state = woken.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        self.waiting.extend(state.inbox.drain(..));
        state.load.waiting = self.waiting.len();
        true
    }

    /// Cancels requests that nobody listens to any more.
    fn drop_gone(&mut self) {
        let before = self.waiting.len() + self.jobs.len();
        self.waiting.retain(|waiting| !is_gone(|| waiting.listener.is_gone()));
        self.end_jobs(|job| is_gone(|| job.is_gone()));
        self.counts.cancelled += (before - self.waiting.len() - self.jobs.len()) as u64;
    }

    /// Admits requests in the order in which they came, as long as the next one can be held.
    fn admit(&mut self) {
        loop {
            let rows: usize = self.jobs.iter().map(Job::answering).sum();
            let Some(next) = self.waiting.front() else { return };
            let request = &next.request;
            if rows + request.n > self.shared.options.rows {
                return;
            }
            let opened = self.decoder.open(&request.prompt, Job::room(request));
            // Alone it must fit: `Shared::check` asked for no more than there is.
            let opened = match opened {
                Ok(None) if !self.jobs.is_empty() => return,
                Ok(None) => Err("the request cannot be held: ask for fewer tokens".to_string()),
                Ok(Some(opened)) => Ok(opened),
                Err(e) => Err(e.to_string()),
            };
            let Some(next) = self.waiting.pop_front() else { return };
            match opened {
                Err(why) => tell(next.listener, why),
                Ok(opened) => self.jobs.push(Job::new(next, self.tokenizer, opened)),
            }
        }
    }

    /// Begins the prompts that the next step has room for.
    fn begin(&mut self) {
        let vocab_size = self.decoder.vocab_size();
        let mut left = prompt_room(&self.jobs, &self.shared.options, self.decoder.step_len());
        let mut failed = Vec::new();
        for at in 0..self.jobs.len() {
            if left == 0 {
                break;
            }
            if !self.jobs[at].has_begun {
                let begun = self.look_again(at);
                let job = &mut self.jobs[at];
                if let Err(why) = begun.and_then(|()| alone(|| job.begin(vocab_size))) {
                    failed.push((at, why));
                    continue;
                }
                if !job.request.prompt_logprobs {
                    self.counts.prefix_queries += job.request.prompt.len() as u64;
                    self.counts.prefix_hits += job.fed as u64;
                }
            }
            let job = &self.jobs[at];
            left -= left.min(job.request.prompt.len() - job.fed);
        }
        for (at, why) in failed.into_iter().rev() {
            self.fail(at, why);
        }
    }

    /// Since a job was admitted, others may have computed what its prompt begins with: requests that
    /// come together and begin alike compute that once.
    fn look_again(&mut self, at: usize) -> std::result::Result<(), String> {
        let job = &mut self.jobs[at];
        let Some(sequence) = job.rows[0].sequence.take() else { return Ok(()) };
        // What was set aside is free for a moment, and nobody else asks for it.
        self.decoder.close(sequence);
        let opened = self.decoder.open(&job.request.prompt, Job::room(&job.request));
        let opened = opened.map_err(|e| e.to_string())?;
        let opened = opened.ok_or("what was set aside is gone: a fault of the paging")?;
        (job.rows[0].sequence, job.fed) = (Some(opened.sequence), opened.reused);
        Ok(())
    }

    /// One step of the model, and what follows from it.
    fn step(&mut self) {
        let parts = plan(&self.jobs, &self.shared.options, self.decoder.step_len());
        if parts.is_empty() {
            return;
        }
        let feed = |(job, part): &(usize, Part)| feed(&self.jobs[*job], *part);
        let feeds: Vec<Feed<'_>> = parts.iter().map(feed).collect();
        let decoder = &mut *self.decoder;
        // A decoder that failed or panicked promises that what it was fed can be closed, and that
        // the others are as they were.
        let logits = match catch_unwind(AssertUnwindSafe(|| decoder.step(&feeds))) {
            Ok(Ok(logits)) => Ok(logits),
            Ok(Err(e)) => Err(e.to_string()),
            Err(panic) => Err(format!("the model failed: {}", words(&*panic))),
        };
        self.counts.steps += 1;
        let vocab_size = self.decoder.vocab_size();
        let wanted = |feed: &Feed<'_>| match feed.wanted {
            Wanted::Nothing => 0,
            Wanted::Last => 1,
            Wanted::All => feed.ids.len(),
        };
        let rows: Vec<usize> = feeds.iter().map(wanted).collect();
        drop(feeds);
        let expected = rows.iter().sum::<usize>() * vocab_size;
        let logits = logits.and_then(|logits| match logits.len() {
            found if found == expected => Ok(logits),
            found => Err(Error::LogitCount { found, expected }.to_string()),
        });
        let mut failed: Vec<(usize, String)> = Vec::new();
        let mut from = 0;
        for ((at, part), rows) in parts.into_iter().zip(rows) {
            let until = from + rows * vocab_size;
            // The parts of a job follow each other; what one of them broke is not looked at again.
            if failed.last().is_none_or(|(last, _)| *last != at) {
                let done = match &logits {
                    Ok(logits) => self.take(at, part, &logits[from..until]),
                    Err(why) => Err(why.clone()),
                };
                failed.extend(done.err().map(|why| (at, why)));
            }
            from = until;
        }
        failed.sort_unstable_by_key(|(at, _)| *at);
        for (at, why) in failed.into_iter().rev() {
            self.fail(at, why);
        }
        self.end_jobs(|job| job.is_over());
    }

    /// What a part's logits mean for its job.
    fn take(&mut self, at: usize, part: Part, logits: &[f32]) -> std::result::Result<(), String> {
        let vocab_size = self.decoder.vocab_size();
        let job = &mut self.jobs[at];
        let before = job.usage.generated_tokens;
        match part {
            Part::Row(row) => {
                // Another row of the job may have failed in this step.
                alone(|| job.advance(row, logits)).and_then(|done| done)?;
                if let (true, Some(gone)) = (job.rows[row].is_over, job.rows[row].sequence) {
                    job.rows[row].sequence = None;
                    self.decoder.close(gone);
                }
            }
            Part::Chunk(n) => {
                self.counts.prompt_tokens += n as u64;
                alone(|| job.take_prompt(n, logits, vocab_size))?;
                if !job.is_prompt() && job.request.max_tokens == 0 {
                    alone(|| job.end_without_answer())?;
                } else if !job.is_prompt() {
                    self.fork(at)?;
                    let last = &logits[logits.len() - vocab_size..];
                    for row in 0..self.jobs[at].rows.len() {
                        self.take(at, Part::Row(row), last)?;
                    }
                    return Ok(());
                }
            }
        }
        let generated = self.jobs[at].usage.generated_tokens - before;
        self.counts.generated_tokens += generated as u64;
        Ok(())
    }

    /// The other samples of a job, from its prompt.
    fn fork(&mut self, at: usize) -> std::result::Result<(), String> {
        let rows = &mut self.jobs[at].rows;
        let Some(first) = rows[0].sequence else { return Ok(()) };
        for row in &mut rows[1..] {
            row.sequence = Some(self.decoder.fork(first).map_err(|e| e.to_string())?);
        }
        Ok(())
    }

    /// Ends a job with a reason.
    fn fail(&mut self, at: usize, why: String) {
        let mut job = self.jobs.remove(at);
        for sequence in job.rows.iter().filter_map(|row| row.sequence) {
            self.decoder.close(sequence);
        }
        // What a listener does on its last words harms nobody else.
        let _ = alone(|| job.fail(why));
        let _ = alone(|| drop(job));
    }

    /// Ends jobs of which nothing more is to be said.
    fn end_jobs(&mut self, is_ended: impl Fn(&Job<'_>) -> bool) {
        let mut ended = Vec::new();
        for at in (0..self.jobs.len()).rev() {
            if is_ended(&self.jobs[at]) {
                ended.push(self.jobs.remove(at));
            }
        }
        for job in ended {
            for sequence in job.rows.iter().filter_map(|row| row.sequence) {
                self.decoder.close(sequence);
            }
            if job.is_over() {
                let mut state = self.shared.lock();
                let old = if state.mean_s > 0.0 { state.mean_s } else { job.usage.total_s };
                state.mean_s = 0.9 * old + 0.1 * job.usage.total_s;
            }
            let _ = alone(|| drop(job));
        }
    }

    /// Tells the handles how busy the batch is.
    fn publish(&mut self) {
        let pages = self.decoder.pages();
        self.shared.lock().load = Load {
            waiting: self.waiting.len(),
            running: self.jobs.len(),
            rows: self.jobs.iter().map(Job::answering).sum(),
            pages_used: pages.used,
            pages_cached: pages.cached,
            pages_total: pages.total,
            ..self.counts
        };
    }
}

impl Drop for Runner<'_> {
    /// However the loop ended, nobody is left waiting for an answer.
    fn drop(&mut self) {
        let inbox = {
            let mut state = self.shared.lock();
            state.closed = true;
            std::mem::take(&mut state.inbox)
        };
        let why = "the server is stopping";
        while !self.jobs.is_empty() {
            self.fail(self.jobs.len() - 1, why.to_string());
        }
        for waiting in self.waiting.drain(..).chain(inbox) {
            tell(waiting.listener, why.to_string());
        }
        self.publish();
    }
}

/// The parts of the next step, rows first; `most` ids at most.
fn plan(jobs: &[Job<'_>], options: &BatchOptions, most: usize) -> Vec<(usize, Part)> {
    let mut parts = Vec::new();
    for (at, job) in jobs.iter().enumerate().filter(|(_, job)| !job.is_prompt()) {
        let rows = job.rows.iter().enumerate().filter(|(_, row)| !row.is_over);
        parts.extend(rows.map(|(row, _)| (at, Part::Row(row))));
    }
    let mut left = prompt_room(jobs, options, most);
    for (at, job) in jobs.iter().enumerate().filter(|(_, job)| job.is_prompt() && job.has_begun) {
        let n = (job.request.prompt.len() - job.fed).min(left);
        if n > 0 {
            parts.push((at, Part::Chunk(n)));
            left -= n;
        }
    }
    parts
}

/// Ids of prompts that the next step takes.
fn prompt_room(jobs: &[Job<'_>], options: &BatchOptions, most: usize) -> usize {
    let answering = jobs.iter().filter(|job| !job.is_prompt());
    let rows: usize = answering.map(|job| job.rows.iter().filter(|row| !row.is_over).count()).sum();
    let least = BatchOptions::LEAST_PROMPT.min(options.step_tokens);
    options.step_tokens.saturating_sub(rows).max(least).min(most.saturating_sub(rows))
}

/// What a part feeds.
fn feed<'f>(job: &'f Job<'_>, part: Part) -> Feed<'f> {
    match part {
        Part::Row(row) => {
            let row = &job.rows[row];
            let sequence = row.sequence.expect("closed only when the row is over: `Runner::take`");
            let last = row.said.len() - 1;
            Feed { sequence, ids: &row.said[last..], wanted: Wanted::Last }
        }
        Part::Chunk(n) => {
            let sequence = job.rows[0].sequence.expect("no row is over before the prompt is held");
            let ids = &job.request.prompt[job.fed..job.fed + n];
            let wanted = match () {
                () if job.request.prompt_logprobs => Wanted::All,
                () if job.fed + n == job.request.prompt.len() => Wanted::Last,
                () => Wanted::Nothing,
            };
            Feed { sequence, ids, wanted }
        }
    }
}

/// Runs what belongs to one request. Unwind safe: the caller drops the request after a panic, and the
/// closure changes nothing else.
fn alone<T>(run: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| format!("it panicked: {}", words(&*panic)))
}

/// A listener that panics is gone.
fn is_gone(ask: impl FnOnce() -> bool) -> bool {
    alone(ask).unwrap_or(true)
}

fn tell(mut listener: Box<dyn Listener>, why: String) {
    let _ = alone(move || listener.hear(Update::Failed(why)));
}

/// What a panic says.
fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
