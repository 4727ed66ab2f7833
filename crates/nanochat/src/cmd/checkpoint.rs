//! `nanochat checkpoint`: lists, checks, compares and thins out the saved steps of a run.
//!
//! In: a run, a folder of steps, or one step. Out: a table, a verdict, fewer steps.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nanochat_gpt::checkpoint::{self, Keep, Meta};
use nanochat_gpt::nano::count::ParamCount;
use serde_json::json;

use crate::cli::Global;
use crate::figures::{count, parameters, size, thousands};
use crate::run_lock::RunLock;

/// What to do with checkpoints.
#[derive(Subcommand)]
pub enum CheckpointCommand {
    /// The steps that are there, oldest first; nothing is checked.
    #[command(after_help = "Example:\n  nanochat checkpoint ls ~/.cache/nanochat/runs/d4")]
    Ls(DirArgs),
    /// Compare every file of every step with its checksum.
    #[command(after_help = "Examples:\n  \
        nanochat checkpoint verify runs/d4\n  \
        nanochat checkpoint verify runs/d4/base/step-001000 --json\n\n\
        Exit code 1 says that a step is damaged.")]
    Verify(DirArgs),
    /// Remove all but the newest steps of each stage, if the newest is whole.
    #[command(after_help = "Example:\n  nanochat checkpoint prune runs/d4 --keep 2")]
    Prune(PruneArgs),
    /// What differs between two steps: settings, files, tensors.
    #[command(after_help = "Examples:\n  \
        nanochat checkpoint diff runs/a/base/step-000100 runs/b/base/step-000100\n\n\
        Exit code 1 says that they differ.")]
    Diff(DiffArgs),
}

/// Where to look.
#[derive(Args)]
pub struct DirArgs {
    /// A run, a folder of steps, or one step.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Flags of `checkpoint prune`.
#[derive(Args)]
pub struct PruneArgs {
    /// A run, or a folder of steps.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Steps that stay in each stage, at least 1.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    keep: u64,
    /// Steps that are a multiple of this stay too; 0: none.
    #[arg(long, value_name = "M", default_value_t = 0)]
    keep_every: u64,
    /// The step that validated best stays too.
    #[arg(long)]
    keep_best: bool,
}

/// Flags of `checkpoint diff`.
#[derive(Args)]
pub struct DiffArgs {
    /// A run, a folder of steps (its newest valid one), or one step.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Another.
    #[arg(value_name = "B")]
    b: PathBuf,
}

/// Runs `nanochat checkpoint`.
pub fn run(command: &CheckpointCommand, global: &Global) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        CheckpointCommand::Ls(args) => ls(&args.dir, global, &mut out),
        CheckpointCommand::Verify(args) => verify(&args.dir, global, &mut out),
        CheckpointCommand::Prune(args) => prune(args, global, &mut out),
        CheckpointCommand::Diff(args) => diff(args, global, &mut out),
    }
}

/// The folders that hold steps: `dir` itself, or those in it.
fn stages(dir: &Path) -> Result<Vec<PathBuf>> {
    if !checkpoint::steps(dir)?.is_empty() {
        return Ok(vec![dir.into()]);
    }
    let cannot = || format!("cannot list {}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.is_dir() && checkpoint::steps(&path).is_ok_and(|steps| !steps.is_empty()) {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() {
        bail!(
            "no checkpoint in {}: give a run, its base or sft folder, or one step",
            dir.display()
        );
    }
    Ok(found)
}

/// The steps of `dir`, which may be one itself.
fn steps(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.join("manifest.json").exists() || dir.join("meta.json").exists() {
        return Ok(vec![dir.into()]);
    }
    let mut all = Vec::new();
    for stage in stages(dir)? {
        all.extend(checkpoint::steps(&stage)?.into_iter().map(|(_, path)| path));
    }
    Ok(all)
}

/// Bytes of the files of a step.
fn bytes(step: &Path) -> u64 {
    let entries = std::fs::read_dir(step).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

fn ls(dir: &Path, global: &Global, out: &mut dyn Write) -> Result<()> {
    let mut rows = Vec::new();
    for step in steps(dir)? {
        let bytes = bytes(&step);
        let meta = checkpoint::meta(&step);
        let at = step.display();
        match &meta {
            Ok(meta) => writeln!(out, "{at}  {}, {}", in_words(meta), size(bytes as f64))?,
            Err(e) => writeln!(out, "{at}  damaged: {e}")?,
        }
        rows.push(match meta {
            Ok(m) => json!({
                "path": at.to_string(), "step": m.step, "stage": m.stage, "val_bpb": m.val_bpb,
                "parameters": ParamCount::of(&m.model_config).total, "bytes": bytes,
                "model_config": m.model_config, "tokenizer": m.tokenizer,
            }),
            Err(e) => json!({ "path": at.to_string(), "error": e.to_string(), "bytes": bytes }),
        });
    }
    if global.json {
        writeln!(out, "{}", json!({ "checkpoints": rows }))?;
    }
    Ok(())
}

/// `step 1,000 of base, d4, 36.7M parameters, val bpb 0.9876`.
fn in_words(meta: &Meta) -> String {
    let config = &meta.model_config;
    let total = parameters(ParamCount::of(config).total as u64);
    let bpb = meta.val_bpb.map(|b| format!(", val bpb {b:.4}")).unwrap_or_default();
    let (step, stage, depth) = (thousands(meta.step), &meta.stage, config.n_layer);
    format!("step {step} of {stage}, d{depth}, {total} parameters{bpb}")
}

fn verify(dir: &Path, global: &Global, out: &mut dyn Write) -> Result<()> {
    let mut rows = Vec::new();
    let mut damaged = 0;
    for step in steps(dir)? {
        let result = checkpoint::verify(&step).and_then(|()| checkpoint::meta(&step));
        let error = result.err().map(|e| e.to_string());
        let at = step.display().to_string();
        match &error {
            None => writeln!(out, "whole    {at}")?,
            Some(e) => writeln!(out, "damaged  {at}: {e}")?,
        }
        damaged += usize::from(error.is_some());
        rows.push(json!({ "path": at, "valid": error.is_none(), "error": error }));
    }
    let of = rows.len();
    if global.json {
        writeln!(out, "{}", json!({ "checkpoints": rows, "valid": damaged == 0 }))?;
    }
    if damaged > 0 {
        bail!(
            "{damaged} of {} in {} damaged: remove what is, or copy it again; opening a run passes \
             over damaged steps",
            count(of as u64, "checkpoint"),
            dir.display()
        );
    }
    Ok(())
}

fn prune(args: &PruneArgs, global: &Global, out: &mut dyn Write) -> Result<()> {
    let (mut removed, mut freed) = (Vec::new(), 0);
    let keep = usize::try_from(args.keep).unwrap_or(usize::MAX);
    for stage in stages(&args.dir)? {
        let before: Vec<_> =
            checkpoint::steps(&stage)?.into_iter().map(|(_, p)| (bytes(&p), p)).collect();
        let _lock = RunLock::of_steps(&stage)?;
        let keep = Keep { last: keep, every: args.keep_every, best: args.keep_best };
        checkpoint::prune(&stage, keep).with_context(|| {
            format!("nothing is removed from {}: its newest step must be whole", stage.display())
        })?;
        for (bytes, path) in before.into_iter().filter(|(_, p)| !p.exists()) {
            writeln!(out, "removed {}", path.display())?;
            removed.push(path.display().to_string());
            freed += bytes;
        }
    }
    let n = removed.len() as u64;
    writeln!(out, "{} removed, {} freed", count(n, "step"), size(freed as f64))?;
    if global.json {
        writeln!(out, "{}", json!({ "removed": removed, "freed_bytes": freed }))?;
    }
    Ok(())
}

/// The step that is meant: `dir` itself, its newest valid one, or that of its only stage.
fn one_step(dir: &Path) -> Result<PathBuf> {
    if dir.join("manifest.json").exists() || !checkpoint::steps(dir)?.is_empty() {
        return Ok(checkpoint::latest(dir)?.0);
    }
    match &stages(dir)?[..] {
        [stage] => Ok(checkpoint::latest(stage)?.0),
        many => bail!("{} holds {} stages: give one of them", dir.display(), many.len()),
    }
}

/// Errors: they differ.
fn diff(args: &DiffArgs, global: &Global, out: &mut dyn Write) -> Result<()> {
    let (a, b) = (one_step(&args.a)?, one_step(&args.b)?);
    let diff = checkpoint::diff(&a, &b)?;
    for (name, x, y) in &diff.meta {
        writeln!(out, "meta    {name}: {x} | {y}")?;
    }
    for file in &diff.files {
        writeln!(out, "file    {file}")?;
    }
    for t in &diff.tensors {
        let far =
            t.max.map_or("one has it, or shapes differ".into(), |max| format!("by up to {max:e}"));
        writeln!(out, "tensor  {}: {} of {} values differ, {far}", t.name, t.differ, t.len)?;
    }
    if diff.is_empty() {
        writeln!(out, "the same: {} and {}", a.display(), b.display())?;
    }
    if global.json {
        let row = json!({ "a": a, "b": b, "same": diff.is_empty(), "diff": diff });
        writeln!(out, "{row}")?;
    }
    if !diff.is_empty() {
        let n = (diff.meta.len() + diff.files.len() + diff.tensors.len()) as u64;
        bail!("{} and {} differ in {}", a.display(), b.display(), count(n, "place"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nanochat_gpt::GptConfig;

    #[test]
    fn a_step_is_told_in_words() {
        let meta = Meta {
            format: checkpoint::FORMAT,
            step: 1000,
            stage: "base".into(),
            model_config: GptConfig::from_depth(4, 64, 128, 2048, 32768, "SSSL").unwrap(),
            tokenizer: String::new(),
            val_bpb: Some(0.98765),
            trainer: serde_json::Value::Null,
        };
        let words = in_words(&meta);
        assert_eq!(words, "step 1,000 of base, d4, 36.7M parameters, val bpb 0.9877");
    }
}
