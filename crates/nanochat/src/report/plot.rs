//! A page of charts and nothing else: what benchmarks draw.

use std::path::Path;

use anyhow::{Context, Result};

use super::chart::{Chart, Mark, Series};
use super::curve::Point;
use super::frame;

/// A curve with a dot at each point.
pub struct Curve<'a> {
    /// What is shown: `Speed`.
    pub title: &'a str,
    /// Unit of y.
    pub unit: &'a str,
    /// Name of x.
    pub x: &'a str,
    /// The figure to remember.
    pub gist: String,
    /// Curves by name, x rising.
    pub series: Vec<(&'a str, Vec<Point>)>,
}

/// Writes the page. Errors: the file cannot be written.
pub fn write(file: &Path, title: &str, curves: &[Curve<'_>]) -> Result<()> {
    std::fs::write(file, page(title, curves))
        .with_context(|| format!("cannot write {}", file.display()))
}

fn page(title: &str, curves: &[Curve<'_>]) -> String {
    let mut out = frame::open(title);
    let title = frame::escape(title);
    out += &format!("<header><h1>{title}</h1></header>\n<main>\n<div class=\"charts\">\n");
    for (i, curve) in curves.iter().enumerate() {
        let chart = Chart {
            id: format!("c{i}"),
            title: curve.title,
            unit: curve.unit,
            x: curve.x,
            gist: curve.gist.clone(),
            from_zero: true,
            series: curve.series.iter().enumerate().map(|(i, s)| drawn(i, curve, s)).collect(),
        };
        out += &chart.figure();
    }
    out += "</div>\n";
    frame::close(&mut out, "");
    out
}

/// The last curve has dots, those before it lie broad below it.
fn drawn<'a>(i: usize, curve: &Curve<'_>, (name, points): &(&'a str, Vec<Point>)) -> Series<'a> {
    let mark = if i + 1 == curve.series.len() { Mark::Dots } else { Mark::Baseline };
    Series { name, mark, points: points.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_curves_and_no_markup_of_others() {
        let curve = Curve {
            title: "Speed",
            unit: "tokens per second",
            x: "rows",
            gist: "best 8".into(),
            series: vec![("all", vec![(1.0, 10.0), (2.0, 14.0)])],
        };
        let page = page("a <b>", &[curve]);
        assert!(page.contains("a &lt;b&gt;") && page.contains("Speed") && page.contains("best 8"));
        assert!(!page.contains("NaN"));
    }
}
