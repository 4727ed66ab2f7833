//! `nanochat bench streams`: the engine of the server without HTTP. Tokens a second of 1, 4, 16 and 64
//! streams, and the time to the first token of a long prompt that is new, and of one that is known.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nanochat_engine::SampleOptions;
use nanochat_engine::batch::{Batch, BatchOptions, Generator, Listener, Request, Update, Usage};
use nanochat_gpt::nano::batch::{BatchRoom, NanoBatch};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use serde_json::json;

use super::infer::random_model;
use super::model::ModelFlags;
use crate::cli::{Global, Weights};

/// Flags of `bench streams`.
#[derive(Args, Clone, Debug)]
pub struct StreamsBench {
    /// What generates: random weights, as speed does not depend on them.
    #[command(flatten)]
    pub model: ModelFlags,
    /// Streams that are generated together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    pub streams: Vec<usize>,
    /// Tokens of a stream's prompt.
    #[arg(long, default_value_t = 50)]
    pub prompt: usize,
    /// New tokens of a stream.
    #[arg(long, default_value_t = 100)]
    pub new_tokens: usize,
    /// Tokens of the prompt that is asked twice.
    #[arg(long, default_value_t = 1000)]
    pub prefix: usize,
    /// In what form weights are read.
    #[arg(long, value_enum, default_value_t = Weights::Auto)]
    pub weights: Weights,
    /// Times that everything is run, in turn; medians are told.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

/// Hears how a request ended.
#[derive(Clone, Default)]
struct Ended(Arc<Mutex<Option<Usage>>>);

impl Listener for Ended {
    fn hear(&mut self, update: Update) {
        if let Update::Done(usage) = update
            && let Ok(mut ended) = self.0.lock()
        {
            *ended = Some(usage);
        }
    }

    fn is_gone(&self) -> bool {
        false
    }
}

/// As many ids as the model has; what they say does not matter.
fn tokenizer(vocab_size: usize) -> Result<Tokenizer> {
    let empty = Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new())?.vocab_size();
    let merges = vocab_size.checked_sub(empty).context("--vocab-size: at least that of bytes")?;
    ensure!(merges <= 1 << 16, "--vocab-size {vocab_size}: at most {}", empty + (1 << 16));
    let pair = |i: usize| (i as u32 / 256, i as u32 % 256);
    Ok(Tokenizer::from_merges(DEFAULT_PATTERN, (0..merges).map(pair).collect())?)
}

/// Runs requests of one id after these prompts, each for `new_tokens`; seconds, and how they ended.
fn serve(
    decoder: &mut NanoBatch<'_>,
    tokenizer: &Tokenizer,
    prompts: Vec<Vec<u32>>,
    new_tokens: usize,
) -> Result<(f64, Vec<Usage>)> {
    let options = BatchOptions { rows: prompts.len(), queue: prompts.len(), ..Default::default() };
    let batch = Batch::new(decoder, options);
    let mut heard = Vec::new();
    for (i, prompt) in prompts.into_iter().enumerate() {
        let request = Request {
            prompt,
            n: 1,
            max_tokens: new_tokens,
            sample: SampleOptions::new(0.8, Some(50), i as u64)?,
            stop: Vec::new(),
            stop_at_eot: false,
            tools: false,
            logprobs: None,
            prompt_logprobs: false,
            constraint: None,
        };
        let ended = Ended::default();
        batch.submit(request, Box::new(ended.clone()))?;
        heard.push(ended);
    }
    batch.close();
    let start = Instant::now();
    batch.run(decoder, tokenizer)?;
    let seconds = start.elapsed().as_secs_f64();
    let usage = |ended: Ended| ended.0.lock().ok().and_then(|usage| *usage);
    let all: Option<Vec<Usage>> = heard.into_iter().map(usage).collect();
    Ok((seconds, all.context("a request failed")?))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the command.
pub fn run(args: &StreamsBench, global: &Global) -> Result<()> {
    ensure!(args.rounds > 0 && args.new_tokens > 0 && args.prompt > 0, "0 is no size");
    ensure!(!args.streams.contains(&0), "--streams 0: at least 1");
    let be = global.backend()?;
    let be = &*be;
    let len = (args.prompt + args.new_tokens).max(args.prefix + 2);
    let max_seq_len = args.model.max_seq_len.max(len);
    let model =
        random_model(be, ModelFlags { max_seq_len, ..args.model.clone() }.config()?, global.seed)?;
    let vocab_size = model.config().vocab_size;
    let tokenizer = tokenizer(vocab_size)?;
    let most = args.streams.iter().max().copied().unwrap_or(1);
    let room = BatchRoom::of_rows(be, model.config(), most + 2, len);
    let mut decoder = NanoBatch::new(be, &model, args.weights.format(), room)?;
    let weights = decoder.weights().format().name();
    println!("{}: {}, weights in {weights}", be.name(), args.model.name());
    let ids = |n: usize, salt: usize| -> Vec<u32> {
        (0..n).map(|i| ((i * 7919 + salt * 104_729 + 13) % vocab_size) as u32).collect()
    };
    serve(&mut decoder, &tokenizer, vec![ids(args.prompt, 0); 1], 2)?;
    let mut speeds = vec![Vec::new(); args.streams.len()];
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        for (n, speeds) in args.streams.iter().zip(&mut speeds) {
            decoder.forget_prefixes();
            let prompts = (0..*n).map(|i| ids(args.prompt, i)).collect();
            let (seconds, all) = serve(&mut decoder, &tokenizer, prompts, args.new_tokens)?;
            let tokens: usize = all.iter().map(|usage| usage.generated_tokens).sum();
            speeds.push(tokens as f64 / seconds);
        }
        decoder.forget_prefixes();
        for times in [&mut cold, &mut warm] {
            let mut prompt = ids(args.prefix, 1 << 10);
            prompt.push((times.len() + 2 * round) as u32);
            let (_, all) = serve(&mut decoder, &tokenizer, vec![prompt], 1)?;
            times.push(1e3 * all[0].first_token_s);
        }
    }
    let speeds: Vec<f64> = speeds.into_iter().map(median).collect();
    println!("streams      tok/s   of {} stream(s)", args.streams[0]);
    for (n, speed) in args.streams.iter().zip(&speeds) {
        println!("{n:>7} {speed:>10.1} {:>6.2}x", speed / speeds[0]);
    }
    let (cold, warm) = (median(cold), median(warm));
    let share = warm / cold;
    println!(
        "first token of {} new ones {cold:.1} ms, of known ones {warm:.1} ms: {:.1} %",
        args.prefix,
        100.0 * share
    );
    let each = args.streams.iter().zip(&speeds);
    let table: Vec<_> =
        each.map(|(n, speed)| json!({"streams": n, "tokens_per_sec": speed})).collect();
    println!(
        "{}",
        json!({
            "model": args.model.name(), "backend": be.name(), "weights": weights, "streams": table,
            "cold_first_token_ms": cold, "known_first_token_ms": warm, "known_share": share,
        })
    );
    Ok(())
}
