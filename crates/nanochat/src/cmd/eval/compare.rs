//! `nanochat eval compare`: two models on the same items.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use nanochat_train::eval::Graded;
use nanochat_train::eval::compare::compare;
use serde_json::json;

/// Shown after `--help`.
pub const HELP: &str = "Examples:\n  nanochat eval compare RUN_A RUN_B\n  \
    nanochat eval compare RUN/evals/base RUN/evals/sft\n\
    Intervals are a paired bootstrap over items (2,000 draws, 95 %), p McNemar's exact test.";

/// Flags.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// A run (its furthest evaluated stage), a folder of items, or a file of items.
    pub a: PathBuf,
    /// The other one.
    pub b: PathBuf,
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> Result<()> {
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let found = compare(&a, &b);
    if found.is_empty() {
        bail!(
            "{} and {} have no item in common: evaluate both on the same tasks",
            args.a.display(),
            args.b.display()
        );
    }
    println!(
        "{:<32} {:>6} {:>8} {:>8} {:>8}   {:<18} {:>9} {:>8}",
        "task", "n", "A", "B", "B - A", "95 % interval", "only A/B", "p"
    );
    for d in &found {
        let p = d.p.map_or_else(|| "-".into(), |p| format!("{p:.4}"));
        println!(
            "{:<32} {:>6} {:>7.2}% {:>7.2}% {:>+7.2}%   [{:>+6.2}, {:>+6.2}] % {:>9} {p:>8}",
            d.task,
            d.n,
            100.0 * d.a,
            100.0 * d.b,
            100.0 * d.difference,
            100.0 * d.low,
            100.0 * d.high,
            format!("{}/{}", d.only[0], d.only[1]),
        );
    }
    println!("{}", json!({"differences": found}));
    Ok(())
}

/// The files of items below a path.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.into()]);
    }
    let stages = ["rl", "sft", "mid", "base"].map(|stage| path.join("evals").join(stage));
    let folder = stages.into_iter().find(|dir| dir.is_dir()).unwrap_or_else(|| path.into());
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    found.retain(|f| f.extension().is_some_and(|e| e == "jsonl"));
    found.sort();
    if found.is_empty() {
        bail!(
            "{} holds no graded items: run \"nanochat eval core\" or \"nanochat eval chat\" first",
            path.display()
        );
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<Graded>> {
    let mut all = Vec::new();
    for file in files(path)? {
        let reading = || format!("cannot read {}", file.display());
        let lines = BufReader::new(File::open(&file).with_context(reading)?).lines();
        for (i, line) in lines.enumerate() {
            let line = line.with_context(reading)?;
            let item = serde_json::from_str(&line).with_context(|| {
                format!("{}, line {}, is no graded item", file.display(), i + 1)
            })?;
            all.push(item);
        }
    }
    Ok(all)
}
