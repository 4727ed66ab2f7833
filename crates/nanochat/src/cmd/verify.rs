//! `nanochat verify`: each of the four optimizations checked by what it does, and the environment.
//!
//! A check counts - tokens through the layers, plans, bytes, draws - and compares with the way that does
//! without; times are only told. `--instead WHAT` puts the baseline in an optimization's place: the
//! check must then fail.

mod batch;
mod cache;
mod environment;
mod samples;
mod step;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use crate::cli::Global;
use crate::run_dir::RunDir;

/// Flags of `verify`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example: nanochat verify\n  Exit code 0: all checks pass. 1: one fails, and says by how much."
)]
pub struct VerifyArgs {
    /// Checks the baseline in this optimization's place: to see that the check would notice.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub instead: Option<Optimization>,
    /// Also writes the results as verify.json into a run's directory, where `report compare` finds them.
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
}

/// What can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Optimization {
    /// The automatic batch size.
    BatchSize,
    /// The compiled, static-shape SFT step.
    SftStep,
    /// The KV cache.
    KvCache,
    /// Independent first tokens.
    Sampling,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// It holds.
    pub pass: bool,
    /// The figures, or what is wrong.
    pub figure: String,
}

/// What a check found: figures, or what is wrong.
type Finding = Result<String>;

/// A check that also fails when its work does.
fn check(name: &'static str, finding: Finding) -> Check {
    match finding {
        Ok(figure) => Check { name, pass: true, figure },
        Err(e) => Check { name, pass: false, figure: format!("{e:#}") },
    }
}

/// Runs the command.
pub fn run(args: &VerifyArgs, global: &Global) -> Result<()> {
    let start = Instant::now();
    let is_out = |what| args.instead == Some(what);
    type Run = fn(&Global, bool) -> Finding;
    let checks: [(&'static str, Run, bool); 5] = [
        ("environment", |global, _| environment::check(global), false),
        ("automatic batch size", batch::check, is_out(Optimization::BatchSize)),
        ("compiled SFT step", step::check, is_out(Optimization::SftStep)),
        ("KV cache", cache::check, is_out(Optimization::KvCache)),
        ("independent sampling", samples::check, is_out(Optimization::Sampling)),
    ];
    let mut results = Vec::new();
    for (name, run, is_out) in checks {
        let found = check(name, run(global, is_out));
        let mark = if found.pass { "pass" } else { "FAIL" };
        println!("{mark}  {name:<22} {}", found.figure);
        results.push(found);
    }
    let pass = results.iter().all(|c| c.pass);
    let failed = results.iter().filter(|c| !c.pass).count();
    let seconds = start.elapsed().as_secs_f64();
    let figures = json!({"checks": results, "pass": pass, "seconds": seconds});
    if let Some(dir) = &args.run {
        RunDir::find(Some(dir))?.write_json("verify.json", &figures)?;
    }
    println!("{figures}");
    if !pass {
        bail!("{failed} of {} checks failed", results.len());
    }
    Ok(())
}
