//! [`Comparison`] -> lines for the terminal.

use std::fmt::Write;

use super::Comparison;

impl Comparison {
    /// The benchmark's table and checklist, then every figure of both runs and what else differs.
    pub fn text(&self) -> String {
        let mut out = format!("baseline A: {}\noptimized B: {}\n\n", self.a, self.b);
        let head = ["", "baseline", "optimized", "improvement"].map(String::from);
        let row = |r: &super::table::Row| {
            let [a, b] = r.shown.clone();
            [r.metric.into(), a, b, r.gain.text.clone()]
        };
        out += &aligned(std::iter::once(head).chain(self.table.iter().map(row)).collect());
        out += "\nOptimizations in use:\n";
        for used in &self.optimizations {
            let _ = writeln!(out, "  {}: {} -> {}", used.name, used.a, used.b);
        }
        out.push('\n');
        for check in &self.checklist {
            let mark = if check.passed { 'x' } else { ' ' };
            let _ = writeln!(out, "[{mark}] {}: {}", check.name, check.note);
        }
        for caution in &self.cautions {
            let _ = writeln!(out, "note: {caution}");
        }
        let head = ["figure", "A", "B", "B - A", "B / A"].map(String::from);
        let row = |f: &super::figures::Figure| {
            let [a, b, difference, ratio] = f.cells();
            [f.name.clone(), a, b, difference, ratio]
        };
        if !self.figures.is_empty() {
            out.push('\n');
            out += &aligned(std::iter::once(head).chain(self.figures.iter().map(row)).collect());
        }
        if !self.differs.is_empty() {
            out += "\nWhat else differs:\n";
        }
        for setting in &self.differs {
            let [a, b] = setting.cells();
            let _ = writeln!(out, "  {}: {a} -> {b}", setting.name);
        }
        out
    }
}

/// Columns as wide as their widest cell, the first one to the left.
fn aligned<const N: usize>(rows: Vec<[String; N]>) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let mut line = format!("{:<1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(widths).skip(1) {
            let _ = write!(line, "  {cell:>width$}");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}
