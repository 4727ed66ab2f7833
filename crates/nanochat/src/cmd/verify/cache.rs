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

/// Columns of likeliest ids, tokens through the layers, seconds.
fn generate(model: &Nano, decoder: &mut dyn Decoder) -> Result<(Vec<Vec<u32>>, u64, f64)> {
    let (before, start) = (model.forwarded(), Instant::now());
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 37 + 5) % 500).collect();
    decoder.reserve(PROMPT, ROWS, PROMPT + NEW)?;
    decoder.prefill(&prompt)?;
    decoder.fork(ROWS)?;
    let mut columns = vec![(0..ROWS as u32).collect::<Vec<_>>()];
    while columns.len() < NEW {
        let logits = decoder.decode(&columns[columns.len() - 1])?;
        columns.push(likeliest(&logits, ROWS));
    }
    Ok((columns, model.forwarded() - before, start.elapsed().as_secs_f64()))
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
    let (want, all, slow) = generate(&model, &mut naive)?;
    let mut cached: Box<dyn Decoder + '_> = match is_out {
        false => Box::new(NanoDecoder::new(be, &model, len)?),
        true => Box::new(Recompute::new(be, &model, len)?),
    };
    let (got, once, fast) = generate(&model, cached.as_mut())?;
    let at = want.iter().zip(&got).position(|(w, g)| w != g);
    ensure!(at.is_none(), "token {} of a row is not the plain forward pass's", at.unwrap_or(0));
    let least = (PROMPT + ROWS * (NEW - 1)) as u64;
    ensure!(
        once == least,
        "{once} tokens went through the layers, {least} would do: they are computed again and again"
    );
    Ok(format!(
        "{ROWS} x {NEW} likeliest ids are the plain forward pass's; {once} tokens through the layers in \
         place of {all}, {:.1}x faster",
        slow / fast
    ))
}
