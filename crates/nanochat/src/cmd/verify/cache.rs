//! The KV cache: the same ids as the plain forward pass, each token through the layers once.

use std::time::Instant;

use anyhow::{Result, ensure};
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::nano::recompute::Recompute;
use nanochat_gpt::{GptConfig, Nano};

use super::Finding;
use crate::cli::Global;
use crate::cmd::bench::infer::random_model;
use nanochat_gpt::model::likeliest;

const PROMPT: usize = 200;
const NEW: usize = 40;
const ROWS: usize = 3;

/// How near two logits are that a device with products in bf16 may take for equal.
const TIE: f32 = 0.05;

/// What a decoder made of the ids it was fed.
struct Generated {
    /// (ROWS): what was fed, then the likeliest ids of each column.
    columns: Vec<Vec<u32>>,
    /// (ROWS, V) of each column but the first.
    logits: Vec<Vec<f32>>,
    /// Tokens through the layers.
    tokens: u64,
    seconds: f64,
}

/// Goes on with the likeliest ids, or with those `given`, so that one tie is not told as many differences.
fn generate(
    model: &Nano,
    decoder: &mut dyn Decoder,
    given: Option<&[Vec<u32>]>,
) -> Result<Generated> {
    let (before, start) = (model.forwarded(), Instant::now());
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 37 + 5) % 500).collect();
    decoder.reserve(PROMPT, ROWS, PROMPT + NEW)?;
    decoder.prefill(&prompt)?;
    decoder.fork(ROWS)?;
    let mut columns = vec![(0..ROWS as u32).collect::<Vec<_>>()];
    let mut all = Vec::new();
    while columns.len() < NEW {
        let last = columns.len() - 1;
        let logits = decoder.decode(&given.unwrap_or(&columns)[last])?;
        columns.push(likeliest(&logits, ROWS));
        all.push(logits);
    }
    let tokens = model.forwarded() - before;
    Ok(Generated { columns, logits: all, tokens, seconds: start.elapsed().as_secs_f64() })
}

/// Ids that differ although both logits are all but equal. Errors: an id that differs otherwise.
fn ties(want: &Generated, got: &Generated, tie: f32) -> Result<usize> {
    let mut ties = 0;
    for (i, logits) in want.logits.iter().enumerate() {
        for (row, logits) in logits.chunks(logits.len() / ROWS).enumerate() {
            let (w, g) = (want.columns[i + 1][row] as usize, got.columns[i + 1][row] as usize);
            if w != g {
                let apart = logits[w] - logits[g];
                ensure!(apart <= tie, "token {} of a row is not the plain forward pass's", i + 1);
                ties += 1;
            }
        }
    }
    Ok(ties)
}

/// Checks the cache, or decoding without one in its place.
pub fn check(global: &Global, is_out: bool) -> Finding {
    let be = global.backend()?;
    let be = &*be;
    // Windows of 128 and 256: both slide.
    let config = GptConfig::from_depth(4, 32, 32, 256, 512, "SSSL")?;
    let model = random_model(be, config, 5)?;
    let len = PROMPT + NEW;
    let mut naive = Recompute::new(be, &model, len)?;
    let want = generate(&model, &mut naive, None)?;
    let mut cached: Box<dyn Decoder + '_> = match is_out {
        false => Box::new(NanoDecoder::new(be, &model, len)?),
        true => Box::new(Recompute::new(be, &model, len)?),
    };
    let got = generate(&model, cached.as_mut(), Some(&want.columns))?;
    // A CPU gives the same bits; a GPU's few rows are added in another order than many.
    let ties = ties(&want, &got, if be.own_memory().is_some() { TIE } else { 0.0 })?;
    let (once, all, least) = (got.tokens, want.tokens, (PROMPT + ROWS * (NEW - 1)) as u64);
    ensure!(
        once == least,
        "{once} tokens went through the layers, {least} would do: they are computed again and again"
    );
    let but = if ties > 0 { format!(" but for {ties} ties") } else { String::new() };
    Ok(format!(
        "{ROWS} x {NEW} likeliest ids are the plain forward pass's{but}; {once} tokens through the layers in \
         place of {all}, {:.1}x faster",
        want.seconds / got.seconds
    ))
}
