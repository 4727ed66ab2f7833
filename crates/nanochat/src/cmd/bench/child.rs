//! A benchmark in a process of its own: its peak memory is then its own, and nothing is warm.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cli::Global;

/// Runs this program with `bench` and these arguments; returns the object on its last line.
pub fn run(arguments: &[String], global: &Global) -> Result<Value> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let output = std::process::Command::new(program)
        .arg("bench")
        .args(arguments)
        .args(global.arguments())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start a process for a measurement")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(figures) if output.status.success() => Ok(figures),
        _ => bail!("\"bench {}\" ended with {}", arguments.join(" "), output.status),
    }
}

/// The number at `key`, or an error that names it.
pub fn number(figures: &Value, key: &str) -> Result<f64> {
    figures[key].as_f64().with_context(|| format!("a measurement lacks {key}"))
}

/// The middle of some measurements.
pub fn median(all: Vec<f64>) -> f64 {
    nanochat_train::metrics::median(all).unwrap_or(f64::NAN)
}
