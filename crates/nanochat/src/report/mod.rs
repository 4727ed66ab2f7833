//! A run directory -> `report.md`, `report.html`; two of them -> a comparison; a log -> a summary.
//!
//! `record`, `stage` what a run left | `sections`, `optimizations`, `evals` what is said | `markdown`,
//! `html` how | `frame` the page around it | `chart`, `curve` plots | `figures` numbers as text |
//! `compare` two runs | `log` the lines of any log
//!
//! No trainer calls this: it reads files. Whatever a file lacks is "not measured".

mod chart;
pub mod compare;
mod curve;
mod evals;
mod figures;
mod frame;
mod html;
mod items;
pub mod log;
mod markdown;
mod optimizations;
pub mod plot;
mod record;
mod reward;
mod sections;
mod stage;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result};

use crate::run_dir::RunDir;

/// File names of the report in the run's directory.
pub const FILES: [&str; 2] = ["report.md", "report.html"];

/// Writes `report.md` and `report.html` from what the directory holds.
///
/// Errors: a file cannot be written. What cannot be read is "not measured".
pub fn build(run: &RunDir) -> Result<()> {
    let record = record::Record::read(run);
    write(run, &FILES, [markdown::page(&record), html::page(&record)])
}

/// Writes pages: aside, then renamed.
fn write(dir: &RunDir, names: &[&str; 2], texts: [String; 2]) -> Result<()> {
    for (name, text) in names.iter().zip(texts) {
        let (to, tmp) = (dir.join(name), dir.join(&format!("{name}.tmp")));
        std::fs::write(&tmp, text)
            .and_then(|()| std::fs::rename(&tmp, &to))
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}
