//! [`Comparison`] -> `compare.md`.

use std::fmt::Write;

use super::{Comparison, ONE_RUN};
use crate::report::curve::sparkline;
use crate::report::figures::{NOT_MEASURED, span};
use crate::report::markdown::{fenced, inline, table};
use crate::report::record::Record;
use crate::report::sections;

/// The whole document.
pub fn page(c: &Comparison) -> String {
    let (a, b) = (inline(&c.a), inline(&c.b));
    let mut out = format!(
        "# nanochat: {b} against {a}\n\nBaseline: {a}. Optimized: {b}.\n\n{}\n\n",
        inline(&c.verdict())
    );
    for caution in &c.cautions {
        let _ = writeln!(out, "> Note: {}\n", inline(caution));
    }
    out += "## Comparison\n\n";
    let row = |r: &super::table::Row| {
        vec![r.metric.into(), r.shown[0].clone(), r.shown[1].clone(), r.gain.text.clone()]
    };
    rows(&mut out, &["Metric", "Baseline", "Optimized", "Improvement"], 1, c.table.iter().map(row));
    let _ = writeln!(out, "{ONE_RUN}\n");
    out += "## Optimizations in use\n\n";
    let row = |u: &super::Used| vec![u.name.into(), u.a.clone(), u.b.clone()];
    rows(&mut out, &["Optimization", "Baseline", "Optimized"], 3, c.optimizations.iter().map(row));
    loss(&mut out, c);
    quick(&mut out, c);
    out += "## Validation checklist\n\n";
    for check in &c.checklist {
        let mark = if check.passed { 'x' } else { ' ' };
        let _ = writeln!(out, "- [{mark}] {} ({})", check.name, inline(&check.note));
    }
    out += "\n## What else differs\n\n";
    let row = |s: &super::figures::Setting| {
        let [a, b] = s.cells();
        vec![s.name.clone(), a, b]
    };
    rows(&mut out, &["Setting", "Baseline", "Optimized"], 3, c.differs.iter().map(row));
    out += "## Every figure\n\n";
    let row = |f: &super::figures::Figure| [vec![f.name.clone()], f.cells().into()].concat();
    let columns = ["Figure", "Baseline", "Optimized", "Difference", "Ratio"];
    rows(&mut out, &columns, 1, c.figures.iter().map(row));
    out.truncate(out.trim_end().len());
    out + "\n"
}

/// A table of cells of unknown origin, or that there is nothing to show.
fn rows(
    out: &mut String,
    columns: &[&str],
    right_from: usize,
    rows: impl Iterator<Item = Vec<String>>,
) {
    let cells = |row: Vec<String>| row.iter().map(|cell| inline(cell)).collect();
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    match rows.is_empty() {
        true => *out += "None.\n\n",
        false => table(out, columns, right_from, &rows),
    }
}

/// Loss on the way and at the end of each stage.
fn loss(out: &mut String, c: &Comparison) {
    let line = |stage: &str, name: &str, run: &Record| {
        let stage = run.stage_named(stage)?;
        let curve = &stage.loss_by_time;
        let (seconds, last) = *curve.last()?;
        let (name_of, blocks) = (sections::stage_name(&stage.name), sparkline(curve, 32));
        Some(format!("{name_of:<11} {name:<9} {blocks} {last:.4} after {}", span(seconds)))
    };
    let runs = || ["baseline", "optimized"].into_iter().zip(&c.records);
    let lines =
        ["base", "sft"].into_iter().flat_map(|s| runs().filter_map(move |(n, r)| line(s, n, r)));
    let lines: Vec<String> = lines.collect();
    *out += "## Loss\n\n";
    *out += &match lines.is_empty() {
        true => format!("{NOT_MEASURED}\n\n"),
        false => fenced("text", &lines.join("\n")),
    };
}

fn quick(out: &mut String, c: &Comparison) {
    *out += "## Quick benchmark\n\n";
    if c.quick.is_empty() {
        let _ = writeln!(out, "{NOT_MEASURED}\n");
        return;
    }
    if !c.quick_on.is_empty() {
        let _ = writeln!(out, "{}\n", inline(&c.quick_on));
    }
    let row = |r: &super::quick::Row| {
        vec![r.what.clone(), r.without.clone(), r.with.clone(), r.gain.text.clone()]
    };
    rows(out, &["Optimization", "Without", "With", "Improvement"], 3, c.quick.iter().map(row));
}
