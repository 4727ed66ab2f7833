//! A baseline and an optimized run -> the benchmark's table and checklist, filled from their files.
//!
//! `table` the rows | `gain` what a difference is called | `cautions` what makes them unequal |
//! `quick` the short benchmark | `checklist` the boxes | `figures` every figure and setting |
//! `text`, `markdown`, `html`, `curves` how it is shown

mod cautions;
mod checklist;
mod curves;
mod figures;
mod gain;
mod html;
mod markdown;
mod quick;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::optimizations;
use super::record::Record;
use crate::run_dir::RunDir;

/// File names of the comparison.
pub const FILES: [&str; 2] = ["compare.md", "compare.html"];

/// What the table cannot show.
const ONE_RUN: &str = "Each column is one run: repeat it before trusting a small difference.";

/// What distinguishes an optimized run from its baseline.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Name of the baseline.
    pub a: String,
    /// Name of the optimized run.
    pub b: String,
    /// The benchmark's table.
    pub table: Vec<table::Row>,
    /// Which of the four optimizations each run used.
    pub optimizations: Vec<Used>,
    /// What makes the runs unequal besides the optimizations, and what could not be read.
    pub cautions: Vec<String>,
    /// The short benchmark of the optimized run's directory.
    pub quick: Vec<quick::Row>,
    /// The benchmark's checklist.
    pub checklist: Vec<checklist::Check>,
    /// Figures that either run has.
    pub figures: Vec<figures::Figure>,
    /// Settings, machine and command where they differ.
    pub differs: Vec<figures::Setting>,
    /// What the short benchmark ran on; empty when unknown.
    #[serde(skip)]
    quick_on: String,
    #[serde(skip)]
    records: [Record; 2],
}

/// What each run used of one optimization.
#[derive(Debug, Serialize)]
pub struct Used {
    /// `Batch size`, ...
    pub name: &'static str,
    /// The baseline's.
    pub a: String,
    /// The optimized run's.
    pub b: String,
}

/// Compares what two runs left. `verify.json` and `quick.json` are those of `b`.
pub fn compare(a: &RunDir, b: &RunDir) -> Comparison {
    let records = [Record::read(a), Record::read(b)];
    let [of_a, of_b] = &records;
    let mut cautions = cautions::cautions(of_a, of_b);
    if a.root().canonicalize().ok() == b.root().canonicalize().ok() {
        cautions.insert(0, "Both are the same directory.".into());
    }
    let mut read = |file: &str| {
        b.read_json::<Value>(file).unwrap_or_else(|e| {
            cautions.push(format!("{file} cannot be read: {}", e.root_cause()));
            None
        })
    };
    let (verify, quick) = (read("verify.json"), read("quick.json").unwrap_or_default());
    let table = table::rows(of_a, of_b);
    let checklist = checklist::Evidence {
        verify: verify.as_ref(),
        quick: &quick,
        runs: &records,
        table: &table,
    };
    let used = optimizations::used(of_a).into_iter().zip(optimizations::used(of_b));
    Comparison {
        a: of_a.name.clone(),
        b: of_b.name.clone(),
        checklist: checklist.checks(),
        table,
        optimizations: used.map(|((name, a), (_, b))| Used { name, a, b }).collect(),
        cautions,
        quick: quick::rows(&quick),
        figures: figures::figures(of_a, of_b),
        differs: figures::differs(of_a, of_b),
        quick_on: quick::machine(&quick),
        records,
    }
}

impl Comparison {
    /// Writes `compare.md` and `compare.html`; makes the directory when it is not there.
    ///
    /// Errors: a file cannot be written.
    pub fn write(&self, out: &Path) -> Result<[PathBuf; 2]> {
        let out = RunDir::open_or_create(Some(out), "")?;
        super::write(&out, &FILES, [markdown::page(self), html::page(self)])?;
        Ok(FILES.map(|f| out.join(f)))
    }

    /// The gains in one paragraph.
    fn verdict(&self) -> String {
        let of = |metric: &str| self.table.iter().find(|r| r.metric == metric);
        let said = |metric, words: fn(&str, &str) -> String| {
            let row = of(metric).filter(|r| r.baseline.is_some() && r.optimized.is_some())?;
            Some(format!("{}: {}.", words(&row.shown[0], &row.shown[1]), row.gain.text))
        };
        let said = [
            said(table::TRAINING, |a, b| format!("Training took {b} instead of {a}")),
            said(table::SFT_RATE, |a, b| {
                format!("Finetuning trained on {b} tokens a second instead of {a}")
            }),
            said(table::DECODING, |a, b| format!("Decoding runs at {b} instead of {a}")),
            said(table::BPB, |a, b| {
                format!("Held-out text is predicted at {b} bits per byte instead of {a}")
            }),
        ];
        match said.into_iter().flatten().collect::<Vec<_>>() {
            said if said.is_empty() => "No figure was measured in both runs.".into(),
            said => said.join(" "),
        }
    }
}
