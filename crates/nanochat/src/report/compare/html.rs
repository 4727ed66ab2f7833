//! [`Comparison`] -> `compare.html`: one page without scripts that loads nothing.

use std::fmt::Write;

use super::gain::{Gain, Verdict};
use super::{Comparison, ONE_RUN, curves, table};
use crate::report::frame::{self, MISSING, card, columns, escape};
use crate::report::sections;

/// The whole page.
pub fn page(c: &Comparison) -> String {
    let mut out = frame::open(&format!("{} against {}: nanochat", c.b, c.a));
    head(&mut out, c);
    out += "<main>\n";
    tiles(&mut out, c);
    comparison(&mut out, c);
    bars(&mut out, c);
    used(&mut out, c);
    loss(&mut out, c);
    quick(&mut out, c);
    checklist(&mut out, c);
    differs(&mut out, c);
    frame::close(&mut out, "Written by \"nanochat report compare\" from the files of both runs.");
    out
}

fn head(out: &mut String, c: &Comparison) {
    let _ = writeln!(
        out,
        "<header>\n<p class=\"over\">nanochat comparison</p>\n\
         <h1>{} <span class=\"soft\">against</span> {}</h1>\n\
         <p class=\"verdict\">{}</p>",
        escape(&c.b),
        escape(&c.a),
        escape(&c.verdict())
    );
    for caution in &c.cautions {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(caution));
    }
    *out += "</header>\n";
}

fn tiles(out: &mut String, c: &Comparison) {
    let tiles = [
        ("Training", table::TRAINING),
        ("Finetuning, tokens/sec", table::SFT_RATE),
        ("Decoding", table::DECODING),
        ("Held-out bits per byte", table::BPB),
    ];
    *out += "<dl class=\"tiles\">\n";
    for (name, metric) in tiles {
        let row = c.table.iter().find(|r| r.metric == metric);
        let gain = row.map_or_else(String::new, |r| r.gain.text.clone());
        let unknown = row.is_none_or(|r| r.gain.verdict == Verdict::Unknown);
        let class = if unknown { " class=\"none\"" } else { "" };
        let _ = writeln!(out, "<div><dt>{name}</dt><dd{class}>{}</dd></div>", escape(&gain));
    }
    *out += "</dl>\n";
}

/// A cell with a gain, in the colour of its verdict.
fn gain_cell(gain: &Gain) -> String {
    let class = match gain.verdict {
        Verdict::Better => " right",
        Verdict::Worse => " wrong",
        Verdict::Unknown => " none",
        Verdict::Same | Verdict::Neutral => "",
    };
    format!("<td class=\"num{class}\">{}</td>", words(&gain.text))
}

/// A cell; a missing figure is paler.
fn cell(text: &str, class: &str) -> String {
    let none = if text.starts_with("not ") { " none" } else { "" };
    format!("<td class=\"{class}{none}\">{}</td>", words(text))
}

/// Text whose percent signs stay beside their numbers.
fn words(text: &str) -> String {
    escape(text).replace(" %", "\u{a0}%")
}

/// `settings.recipe.n_layer`, which may break after its signs.
fn path(name: &str) -> String {
    escape(name).replace('.', ".<wbr>").replace('_', "_<wbr>")
}

fn comparison(out: &mut String, c: &Comparison) {
    *out += "<h2>Comparison</h2>\n";
    let mut table = columns(&["Metric", "Baseline", "Optimized", "Improvement"], 1) + "<tbody>\n";
    for row in &c.table {
        let [a, b] = row.shown.each_ref().map(|text| cell(text, "num"));
        let (name, gain) = (escape(row.metric), gain_cell(&row.gain));
        let _ = writeln!(table, "<tr><th scope=\"row\">{name}</th>{a}{b}{gain}</tr>");
    }
    card(out, "Comparison", "compare", &(table + "</tbody>\n"));
    let _ = writeln!(out, "<p class=\"soft below\">{ONE_RUN}</p>");
}

/// How many times faster, as bars; a mark stands where the baseline is.
fn bars(out: &mut String, c: &Comparison) {
    let rows: Vec<_> = c.table.iter().filter_map(|r| Some((r, r.gain.times?))).collect();
    let most = rows.iter().map(|r| r.1).fold(1.0, f64::max);
    if rows.is_empty() {
        return;
    }
    *out += "<h2>Speed against the baseline</h2>\n";
    let mut table = columns(&["Metric", "Times the baseline, which is the mark", "Improvement"], 2)
        + "<tbody>\n";
    for (row, times) in rows {
        let (width, mark) = (100.0 * times / most, 100.0 / most);
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{}</th><td class=\"bar\"><div class=\"ratio\"><span>\
             <span style=\"width:{width:.1}%\"></span></span>\
             <i style=\"left:{mark:.1}%\"></i></div></td>{}</tr>",
            escape(row.metric),
            gain_cell(&row.gain)
        );
    }
    card(out, "Speed against the baseline", "bars", &(table + "</tbody>\n"));
}

fn used(out: &mut String, c: &Comparison) {
    *out += "<h2>Optimizations in use</h2>\n";
    let mut table = columns(&["Optimization", "Baseline", "Optimized"], 3) + "<tbody>\n";
    for used in &c.optimizations {
        let [a, b] = [&used.a, &used.b].map(|text| cell(text, "words"));
        let _ = writeln!(table, "<tr><th scope=\"row\">{}</th>{a}{b}</tr>", escape(used.name));
    }
    card(out, "Optimizations in use", "used", &(table + "</tbody>\n"));
}

fn loss(out: &mut String, c: &Comparison) {
    *out += "<h2>Loss</h2>\n";
    let before = out.len();
    for stage in ["base", "sft"] {
        let Some(charts) = curves::charts(stage, &c.records) else { continue };
        let name = escape(&sections::stage_name(stage));
        let charts: String = charts.iter().map(|chart| chart.figure()).collect();
        let _ = writeln!(out, "<h3>{name}</h3>\n<div class=\"charts\">{charts}</div>");
    }
    if out.len() == before {
        *out += MISSING;
    }
}

fn quick(out: &mut String, c: &Comparison) {
    *out += "<h2>Quick benchmark</h2>\n";
    if c.quick.is_empty() {
        *out += MISSING;
        return;
    }
    if !c.quick_on.is_empty() {
        let _ = writeln!(out, "<p class=\"soft\">{}</p>", escape(&c.quick_on));
    }
    let mut table = columns(&["Optimization", "Without", "With"], 3);
    table = table.replace("</tr>", "<th scope=\"col\" class=\"num\">Improvement</th></tr>");
    table += "<tbody>\n";
    for row in &c.quick {
        let [a, b] = [&row.without, &row.with].map(|text| cell(text, "words"));
        let (what, gain) = (escape(&row.what), gain_cell(&row.gain));
        let _ = writeln!(table, "<tr><th scope=\"row\">{what}</th>{a}{b}{gain}</tr>");
    }
    card(out, "Quick benchmark", "compare", &(table + "</tbody>\n"));
}

fn checklist(out: &mut String, c: &Comparison) {
    *out += "<h2>Validation checklist</h2>\n<ul class=\"card checks\">\n";
    for check in &c.checklist {
        let (class, mark, word) = match check.passed {
            true => ("right", "✓", "done"),
            false if check.note.starts_with("fails") => ("wrong", "✗", "fails"),
            false => ("none", "", "open"),
        };
        let (name, note) = (escape(check.name), escape(&check.note));
        let _ = writeln!(
            out,
            "<li><span class=\"box {class}\" role=\"img\" aria-label=\"{word}\">{mark}</span>\
             <span>{name} <span class=\"soft\">{note}</span></span></li>"
        );
    }
    *out += "</ul>\n";
}

fn differs(out: &mut String, c: &Comparison) {
    *out += "<h2>What else differs</h2>\n";
    if c.differs.is_empty() {
        *out += "<p class=\"none\">nothing</p>\n";
    } else {
        let mut table = columns(&["Setting", "Baseline", "Optimized"], 3) + "<tbody>\n";
        for setting in &c.differs {
            let [a, b] = setting.cells().map(|text| cell(&text, "words"));
            let _ =
                writeln!(table, "<tr><th scope=\"row\">{}</th>{a}{b}</tr>", path(&setting.name));
        }
        card(out, "What else differs", "used", &(table + "</tbody>\n"));
    }
    if c.figures.is_empty() {
        return;
    }
    let mut table =
        columns(&["Figure", "Baseline", "Optimized", "Difference", "Ratio"], 1) + "<tbody>\n";
    for figure in &c.figures {
        let cells: String = figure.cells().iter().map(|text| cell(text, "num")).collect();
        let _ = writeln!(table, "<tr><th scope=\"row\">{}</th>{cells}</tr>", path(&figure.name));
    }
    let _ = writeln!(
        out,
        "<details class=\"scroll\"><summary>Every figure <span>{} in all</span></summary>\n\
         <table>{table}</tbody></table></details>",
        c.figures.len()
    );
}
