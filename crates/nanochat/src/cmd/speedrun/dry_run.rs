//! What a speedrun would take: parameters, bytes, FLOPs, time.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use nanochat_compute::Backend;
use nanochat_compute::ops::MatMul;
use nanochat_gpt::nano::count::{ParamCount, state_bytes};
use nanochat_train::recipe::Recipe;
use nanochat_train::step::Bytes;
use serde_json::json;

use super::plan::Plan;
use crate::figures::thousands;

/// Share of a matrix product's rate that a whole step reaches.
const STEP_EFFICIENCY: f64 = 0.6;

/// Prints what would be done; runs a matrix product for a moment to know how long it would take.
pub fn dry_run(be: &dyn Backend, plan: &Plan, recipe: &Recipe) -> Result<()> {
    let config = &recipe.config;
    let n = ParamCount::of(config);
    let (b, t, c) = (recipe.device_batch_size, config.sequence_len, config.n_embd);
    let arena = Bytes::of(be, config, b, t).arena;
    let sft_tokens = plan.sft_iterations as f64 * recipe.total_batch_size as f64;
    let flops = recipe.flops_per_token * (recipe.tokens() + sft_tokens);
    let shape = MatMul::forward(b * t, c, 4 * c);
    let alloc = |len| be.alloc(len, nanochat_compute::DType::F32);
    let (x, w, y) =
        (alloc(shape.m * shape.k)?, alloc(shape.n * shape.k)?, alloc(shape.m * shape.n)?);
    be.matmul(&y, &x, &w, &shape)?;
    let start = Instant::now();
    let mut runs = 0.0;
    while start.elapsed().as_secs_f64() < 0.3 {
        be.matmul(&y, &x, &w, &shape)?;
        runs += 1.0;
    }
    let rate = runs * shape.flops() / start.elapsed().as_secs_f64();
    let eta_s = flops / (rate * STEP_EFFICIENCY) + 15.0;
    let data = |paths: &[PathBuf]| match paths {
        [] => format!("starter corpus, seed {}", plan.seed),
        paths => paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    let disk = 2 * plan.cadence.keep * (4 * n.total + state_bytes(config) / 2);
    println!("plan of a speedrun on {}", be.name());
    println!("  text           {}", data(&plan.data));
    println!("  conversations  {}", data(&plan.sft_data));
    println!("  tokenizer      {} tokens", plan.vocab_size);
    println!(
        "  model          depth {}, {} wide, {} heads, T {t}",
        config.n_layer, c, config.n_head
    );
    println!("  parameters     {}", thousands(n.total as u64));
    println!(
        "  pretraining    {} steps x {} tokens",
        recipe.schedule.num_iterations, recipe.total_batch_size
    );
    println!("  finetuning     {} steps x {} tokens", plan.sft_iterations, recipe.total_batch_size);
    if let Some(rl) = &plan.rl {
        let answers = rl.examples_per_step * rl.num_samples;
        println!("  reinforcement  {} steps x {answers} answers", rl.iterations);
    }
    println!("  compute        {flops:.2e} FLOPs at {:.0} GFLOP/s", rate * STEP_EFFICIENCY / 1e9);
    println!(
        "  memory         {:.2} GB state + up to {:.2} GB arena",
        state_bytes(config) as f64 / 1e9,
        arena as f64 / 1e9
    );
    println!("  disk           {:.2} GB of checkpoints", disk as f64 / 1e9);
    println!("  time           about {}", nanochat_train::metrics::duration(eta_s));
    println!(
        "{}",
        json!({
            "parameters": n.total, "state_bytes": state_bytes(config), "arena_bytes": arena,
            "tokens": recipe.tokens() + sft_tokens, "flops": flops, "eta_s": eta_s,
            "disk_bytes": disk,
        })
    );
    Ok(())
}
