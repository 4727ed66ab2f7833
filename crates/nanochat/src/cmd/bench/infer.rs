//! `nanochat bench infer`: generation with a KV cache and without one, over batch sizes.
//!
//! Both ways draw the likeliest id of n rows that go on from one prompt; the rows' first ids differ.
//! Without a cache every step runs the plain forward pass over whole rows, and where that would take
//! too long, only some steps spread evenly are run and timed: the rows are then those that the cache
//! made, and the ids found must be theirs.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use nanochat_compute::cpu::peak;
use nanochat_compute::{Backend, DType};
use nanochat_gpt::model::{Decoder, likeliest};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::nano::packed::PackedWeights;
use nanochat_gpt::nano::recompute::Recompute;
use nanochat_gpt::{GptConfig, Nano};
use serde::Serialize;
use serde_json::json;

use super::model::ModelFlags;
use crate::cli::{Global, Weights};
use crate::figures::size;
use crate::machine;

/// Flags of `bench infer`.
#[derive(Args, Clone, Debug)]
pub struct InferBench {
    /// What generates: random weights, as speed does not depend on them.
    #[command(flatten)]
    pub model: ModelFlags,
    /// Rows that are generated together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 8, 16, 32, 64, 93])]
    pub batch_sizes: Vec<usize>,
    /// Tokens of the prompt; several: a table each.
    #[arg(long, value_delimiter = ',', default_values_t = [50])]
    pub prompts: Vec<usize>,
    /// In what form weights are read; several: in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Weights::Auto])]
    pub weights: Vec<Weights>,
    /// New tokens of a row.
    #[arg(long, default_value_t = 200)]
    pub new_tokens: usize,
    /// Seconds for a cell without a cache; then its steps are timed in part.
    #[arg(long, default_value_t = 8.0)]
    pub budget: f64,
}

/// One way of generating one batch.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Rows.
    pub batch_size: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// With a cache.
    pub kv_cache: bool,
    /// How weights are read: `f32`, `bf16` or `int8`.
    pub weights: &'static str,
    /// Bytes of weights that a step reads.
    pub weight_bytes: usize,
    /// New tokens of all rows a second, prompt included.
    pub tokens_per_sec: f64,
    /// Milliseconds to the first column.
    pub ttft_ms: f64,
    /// Milliseconds of a step: median.
    pub step_ms_p50: f64,
    /// Milliseconds of a step: 95 of 100 are faster.
    pub step_ms_p95: f64,
    /// Steps timed, of those that it takes.
    pub steps_timed: usize,
    /// Bytes of keys and values at the end.
    pub kv_bytes: usize,
    /// Share of the speed at which as many bytes as the weights have are read: weights and cache once a
    /// step.
    pub bandwidth_share: Option<f64>,
    /// Bytes that a step reads, weights and cache, a row.
    pub bytes_per_token: usize,
    /// Tokens a second if nothing but reading them took time.
    pub limit_tokens_per_sec: Option<f64>,
    /// Most memory of the process so far.
    pub peak_bytes: u64,
    /// Milliseconds of a step where a GPU is not waited for between them, its own time: mean.
    pub step_ms_ahead: Option<f64>,
    /// Milliseconds of a step by operation, the largest first.
    pub breakdown: Vec<(&'static str, f64)>,
}

/// What a batch is generated from.
pub struct Job<'a> {
    /// Device.
    pub be: &'a dyn Backend,
    /// Model.
    pub model: &'a Nano,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// New tokens of a row, at least 2.
    pub new_tokens: usize,
    /// In what form weights are read.
    pub weights: Weights,
    /// How fast memory is read, bytes a second of so many bytes: measured for each cell, if given.
    pub read_speed: Option<&'a dyn Fn(usize) -> f64>,
}

impl Job<'_> {
    /// Any ids do, the same in every run.
    fn prompt_ids(&self) -> Vec<u32> {
        let v = self.model.config().vocab_size as u64;
        (0..self.prompt as u64).map(|i| ((i * 7919 + 13) % v) as u32).collect()
    }

    /// First ids of the rows: all different, so that the rows are.
    fn first_ids(&self, n: usize) -> Vec<u32> {
        let v = self.model.config().vocab_size as u64;
        (0..n as u64).map(|r| ((r * 104_729 + 1) % v) as u32).collect()
    }

    fn cell(
        &self,
        n: usize,
        weights: &PackedWeights,
        cache: Option<&NanoDecoder<'_>>,
        times: &Times,
        steps: &[f64],
    ) -> Cell {
        let mut sorted = steps.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| 1e3 * sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        let kv = cache.map_or(0, NanoDecoder::kv_bytes);
        let peak_bytes = machine::peak_rss_bytes();
        // The weights' own bytes, again and again: what fits in a cache is read as fast as that is.
        let read = self.read_speed.filter(|_| cache.is_some()).map(|f| f(weights.read_bytes()));
        let bytes = (weights.read_bytes() + kv) as f64;
        Cell {
            batch_size: n,
            prompt: self.prompt,
            kv_cache: cache.is_some(),
            weights: weights.format().name(),
            weight_bytes: weights.read_bytes(),
            tokens_per_sec: (n * self.new_tokens) as f64 / times.total,
            ttft_ms: 1e3 * times.first,
            step_ms_p50: at(0.5),
            step_ms_p95: at(0.95),
            steps_timed: steps.len(),
            kv_bytes: kv,
            bandwidth_share: read.map(|read| bytes / (at(0.5) / 1e3) / read),
            bytes_per_token: bytes as usize / n,
            limit_tokens_per_sec: read.map(|read| read / bytes * n as f64),
            peak_bytes,
            step_ms_ahead: None,
            breakdown: Vec::new(),
        }
    }

    /// With a cache: the cell, and the columns it made.
    pub fn cached(&self, n: usize) -> Result<(Cell, Vec<Vec<u32>>)> {
        let len = self.prompt + self.new_tokens;
        let mut decoder =
            NanoDecoder::with_weights(self.be, self.model, len, self.weights.format())?;
        decoder.reserve(self.prompt, n, len)?;
        let first_ids = self.first_ids(n);
        if self.be.own_memory().is_some() {
            // A GPU's steps are recorded when they are run for the second time.
            self.warm(&mut decoder, n, &[&first_ids, &first_ids])?;
            decoder.reset();
        }
        let start = Instant::now();
        decoder.prefill(&self.prompt_ids())?;
        decoder.fork(n)?;
        let first = start.elapsed().as_secs_f64();
        let mut columns = vec![first_ids];
        let mut steps = Vec::new();
        // A GPU's operations are timed by marks between them, which take longer than the operations of a
        // small step; and none of a replayed step is seen.
        if self.be.own_memory().is_none() {
            self.be.profile_start();
        }
        while columns.len() < self.new_tokens {
            let step = Instant::now();
            columns.push(decoder.decode_likeliest(&columns[columns.len() - 1])?);
            steps.push(step.elapsed().as_secs_f64());
        }
        let times = Times { first, total: start.elapsed().as_secs_f64() };
        let step_ms = |s: f64| 1e3 * s / steps.len() as f64;
        let breakdown = self.be.profile_stop().into_iter().map(|(op, s)| (op, step_ms(s)));
        let breakdown = breakdown.take(8).collect();
        let mut step_ms_ahead = None;
        if self.be.own_memory().is_some() {
            // The same once more, without waiting.
            decoder.reset();
            self.warm(&mut decoder, n, &[])?;
            let start = Instant::now();
            let found = decoder.decode_likeliest_ahead(&columns[0], steps.len())?;
            step_ms_ahead = Some(step_ms(start.elapsed().as_secs_f64()));
            ensure!(found == columns[1..].concat(), "{n} rows: without waiting the ids are others");
        }
        Ok((
            Cell {
                step_ms_ahead,
                breakdown,
                ..self.cell(n, decoder.weights(), Some(&decoder), &times, &steps)
            },
            columns,
        ))
    }

    /// Feeds the prompt and some columns to an empty decoder.
    fn warm(&self, decoder: &mut NanoDecoder<'_>, n: usize, columns: &[&[u32]]) -> Result<()> {
        decoder.prefill(&self.prompt_ids())?;
        decoder.fork(n)?;
        for column in columns {
            decoder.decode_likeliest(column)?;
        }
        Ok(())
    }

    /// Without a cache, going by the columns that the cache made.
    ///
    /// Errors: another id than the cache's.
    pub fn uncached(&self, n: usize, columns: &[Vec<u32>], budget: f64) -> Result<Cell> {
        let len = self.prompt + self.new_tokens;
        let mut decoder = Recompute::with_weights(self.be, self.model, len, self.weights.format())?;
        let start = Instant::now();
        decoder.prefill(&self.prompt_ids())?;
        let first = start.elapsed().as_secs_f64();
        decoder.fork(n)?;
        let all = columns.len() - 1;
        let (mut steps, mut stride, mut next) = (Vec::new(), 1, 0);
        for (i, column) in columns[..all].iter().enumerate() {
            if i < next {
                decoder.remember(column)?;
                continue;
            }
            let step = Instant::now();
            let logits = decoder.decode(column)?;
            let found = likeliest(&logits, n);
            steps.push(step.elapsed().as_secs_f64());
            let bound = if self.be.own_memory().is_some() { NEAR_TIE } else { 0.0 };
            ensure!(
                found == columns[i + 1] || are_near_ties(&logits, &columns[i + 1], bound),
                "{n} rows, token {}: without a cache the likeliest ids are others",
                self.prompt + i
            );
            // The first step says how many there is time for.
            if steps.len() == 1 {
                stride =
                    ((all as f64 * 1.5 * steps[0] / budget).ceil() as usize).clamp(1, all / 4 + 1);
                // So that the steps timed are in the middle of their strides.
                next = stride + stride / 2;
                continue;
            }
            next = i + stride;
        }
        // With a stride the first step only told the time.
        let timed = if stride > 1 && steps.len() > 1 { &steps[1..] } else { &steps[..] };
        let mean = timed.iter().sum::<f64>() / timed.len() as f64;
        let times = Times { first, total: first + mean * all as f64 };
        Ok(self.cell(n, decoder.weights(), None, &times, timed))
    }
}

/// How much less a logit may be than the largest of its row, as a share of the row's spread, to be
/// taken for it: a GPU keeps activations in bf16 and sums them in another order with a cache.
const NEAR_TIE: f32 = 0.05;

/// Whether each of the ids has a logit that is all but the largest of its row.
fn are_near_ties(logits: &[f32], ids: &[u32], bound: f32) -> bool {
    let v = logits.len() / ids.len();
    logits.chunks(v).zip(ids).all(|(row, id)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let least = row.iter().copied().fold(f32::INFINITY, f32::min);
        largest - row[*id as usize] <= bound * (largest - least)
    })
}

struct Times {
    first: f64,
    total: f64,
}

/// A model with small random weights everywhere, so that its logits are not all equal.
pub fn random_model(be: &dyn Backend, config: GptConfig, seed: u64) -> Result<Nano> {
    let model = Nano::zeros(be, config)?;
    model.init(seed)?;
    // Training begins with output projections of zero: then every token's logits are its own.
    let mut state = seed | 1;
    let mut values = model.params().to_vec_f32()?;
    for x in values.iter_mut().filter(|x| **x == 0.0) {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *x = ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.05;
    }
    model.params().write_f32(&values)?;
    Ok(model)
}

/// Bytes that the speed of reading is measured with at most.
const MOST_READ: usize = 256 << 20;

/// Bytes read and written a second when the device copies its memory.
fn copy_bandwidth(be: &dyn Backend) -> Result<f64> {
    let len = MOST_READ / 4;
    let (to, from) = (be.alloc(len, DType::F32)?, be.alloc(len, DType::F32)?);
    be.copy(&to, &from)?;
    be.synchronize()?;
    let (start, times) = (Instant::now(), 10);
    for _ in 0..times {
        be.copy(&to, &from)?;
    }
    be.synchronize()?;
    Ok((2 * times * to.bytes()) as f64 / start.elapsed().as_secs_f64())
}

/// Columns of [`row`]. `read` is the share of the memory's reading speed, `limit` the tokens a second at
/// all of it.
const HEADER: &str = "batch weights    cache tok/s     none tok/s   ratio  first ms   step ms, p50 p95   \
    read     limit   bytes/tok         KV";

/// A line of the table: with a cache, and beside it without.
fn row(with: &Cell, without: &Cell, ratio: f64, new_tokens: usize) -> String {
    let part = match without.steps_timed < new_tokens - 1 {
        true => format!("  (without: {} of {} steps)", without.steps_timed, new_tokens - 1),
        false => String::new(),
    };
    let ahead = with.step_ms_ahead.map_or(String::new(), |ms| {
        format!(
            "  (not waited for: {ms:.3} ms a step, {:.0} tok/s)",
            with.batch_size as f64 / ms * 1e3
        )
    });
    format!(
        "{:>5} {:<7} {:>14.1} {:>14.1} {ratio:>6.2}x {:>9.1} {:>9.3} {:>8.3} {:>5.0}% {:>9.0} {:>11} {:>10}{ahead}{part}",
        with.batch_size,
        with.weights,
        with.tokens_per_sec,
        without.tokens_per_sec,
        with.ttft_ms,
        with.step_ms_p50,
        with.step_ms_p95,
        100.0 * with.bandwidth_share.unwrap_or(0.0),
        with.limit_tokens_per_sec.unwrap_or(0.0),
        size(with.bytes_per_token as f64),
        size(with.kv_bytes as f64),
    )
}

/// Runs the command.
pub fn run(args: &InferBench, global: &Global) -> Result<()> {
    ensure!(args.new_tokens >= 2, "--new-tokens {}: at least 2", args.new_tokens);
    ensure!(!args.batch_sizes.contains(&0) && !args.prompts.contains(&0), "0 is no size");
    let be = global.backend()?;
    let be = &*be;
    let longest = args.prompts.iter().max().copied().unwrap_or(1) + args.new_tokens;
    let model =
        ModelFlags { max_seq_len: args.model.max_seq_len.max(longest), ..args.model.clone() };
    let model = random_model(be, model.config()?, global.seed)?;
    let threads = global.threads_given();
    let gpu = be.own_memory().is_some();
    let read_speed = |bytes: usize| match gpu {
        // Of a GPU: what copying reads and writes a second.
        true => copy_bandwidth(be).unwrap_or(f64::NAN),
        false => peak::read_bandwidth(threads, bytes.min(MOST_READ)),
    };
    let read = read_speed(MOST_READ);
    println!(
        "{}: {}, {} parameters; memory reads {:.1} GB/s",
        be.name(),
        args.model.name(),
        ParamCount::of(model.config()).total,
        read / 1e9
    );
    let (mut sweep, mut ratios) = (Vec::new(), Vec::new());
    if gpu {
        // Kernels are loaded when they are first used.
        let (prompt, read_speed) = (args.prompts[0], None);
        let job =
            Job { be, model: &model, prompt, new_tokens: 4, weights: args.weights[0], read_speed };
        job.cached(1)?;
    }
    for &prompt in &args.prompts {
        println!("\nprompt {prompt}, {} new tokens", args.new_tokens);
        println!("{HEADER}");
        let (new_tokens, read_speed) =
            (args.new_tokens, Some(&read_speed as &dyn Fn(usize) -> f64));
        for (&n, &weights) in args
            .batch_sizes
            .iter()
            .flat_map(|n| args.weights.iter().map(move |weights| (n, weights)))
        {
            let job = Job { be, model: &model, prompt, new_tokens, weights, read_speed };
            let (with, columns) = job.cached(n)?;
            let without = job.uncached(n, &columns, args.budget)?;
            let ratio = with.tokens_per_sec / without.tokens_per_sec;
            println!("{}", row(&with, &without, ratio, new_tokens));
            let weights = with.weights;
            ratios.push(
                json!({"batch_size": n, "prompt": prompt, "weights": weights, "ratio": ratio}),
            );
            sweep.extend([with, without]);
        }
    }
    let lowest = ratios.iter().filter_map(|r| r["ratio"].as_f64()).fold(f64::INFINITY, f64::min);
    println!(
        "{}",
        json!({
            "model": args.model.name(), "backend": be.name(), "read_bytes_per_sec": read,
            "sweep": sweep, "ratios": ratios, "lowest_ratio": lowest,
        })
    );
    Ok(())
}
