//! [`Record`] -> `report.html`: one page without scripts that loads nothing.

use std::fmt::Write;

use super::chart::{Chart, Mark, Series};
use super::curve::{MOST_POINTS, Point, calm, median, thin};
use super::figures::{NOT_MEASURED, clip, commas, four, known, percent, span};
use super::frame::{self, MISSING, card, columns, escape, facts};
use super::record::{Answer, Record, Score};
use super::stage::Stage;
use super::{evals, items, optimizations, sections};

/// Answers of a kind that are shown, right and wrong each; kinds whose answers are shown.
const ANSWERS: usize = 20;
const KINDS: usize = 24;
/// Most characters of an answer, of a turn of the conversation; most turns.
const ANSWER_CHARS: usize = 400;
const TURN_CHARS: usize = 2000;
const TURNS: usize = 16;
/// Most tool calls of a turn, and characters of each side of one.
const CALLS: usize = 8;
const CALL_CHARS: usize = 200;
/// Most stages with curves.
const CURVES: usize = 8;
/// Bytes of page after which no more answers follow: escaping makes a character six.
const ANSWERS_UNTIL: usize = 1_200_000;

/// The whole page.
pub fn page(record: &Record) -> String {
    let mut out = frame::open(&format!("{}: nanochat run", record.name));
    head(&mut out, record);
    out += "<main>\n";
    tiles(&mut out, record);
    stages(&mut out, record);
    scores(&mut out, record);
    evals::html(&mut out, record);
    conversation(&mut out, record);
    curves(&mut out, record);
    items::html(&mut out, &record.items);
    answers(&mut out, record);
    let used = optimizations::rows(record);
    if !used.is_empty() {
        out += &facts("Optimizations", &used);
    }
    circumstances(&mut out, record);
    frame::close(&mut out, &sections::wall_line(record));
    out
}

fn head(out: &mut String, record: &Record) {
    let version = record.version();
    let version = if version.is_empty() { String::new() } else { format!("nanochat {version}") };
    let started = record.started().map_or(String::new(), |s| format!("started {s}"));
    let machine = sections::machine(record);
    let backend = machine[1].1.replace(NOT_MEASURED, "");
    let facts: Vec<_> = [started, version, backend].into_iter().filter(|t| !t.is_empty()).collect();
    let _ = writeln!(
        out,
        "<header>\n<p class=\"over\">nanochat run</p>\n<h1>{}</h1>\n\
         <p class=\"verdict\">{}</p>\n<p class=\"soft\">{}</p>",
        escape(&record.name),
        escape(&sections::verdict(record)),
        escape(&facts.join(" · "))
    );
    for note in &record.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(note));
    }
    *out += "</header>\n";
}

fn tiles(out: &mut String, record: &Record) {
    let trained = record.stages.iter().find(|s| s.name == "base" || !s.dt_ms.is_empty());
    let rate = trained.and_then(|s| s.tokens_per_sec);
    let tiles = [
        ("Held-out bits per byte", known(record.val_bpb(), four)),
        ("Training, tokens/sec", known(rate, commas)),
        ("Decoding, tokens/sec", known(record.figure("decode_tokens_per_sec"), commas)),
        ("Wall clock", known(record.figure("wall_s"), span)),
    ];
    *out += "<dl class=\"tiles\">\n";
    for (name, value) in tiles {
        let class = if value == NOT_MEASURED { " class=\"none\"" } else { "" };
        let _ = writeln!(out, "<div><dt>{name}</dt><dd{class}>{value}</dd></div>");
    }
    *out += "</dl>\n";
}

fn stages(out: &mut String, record: &Record) {
    *out += "<h2>Stages</h2>\n";
    if record.stages.is_empty() {
        *out += MISSING;
        return;
    }
    let mut table = columns(&sections::STAGE_COLUMNS, 1) + "<tbody>\n";
    for row in sections::stage_rows(record) {
        let _ = write!(table, "<tr><th scope=\"row\">{}</th>", escape(&row[0]));
        for cell in &row[1..] {
            let _ = write!(table, "<td class=\"num\">{cell}</td>");
        }
        table += "</tr>\n";
    }
    card(out, "Stages", "stages", &(table + "</tbody>\n"));
}

fn scores(out: &mut String, record: &Record) {
    if evals::has_held_out(record) {
        return;
    }
    *out += "<h2>Scores on held-out questions</h2>\n";
    if record.scores.is_empty() {
        *out += MISSING;
        return;
    }
    let mut table = columns(&["kind", "share", "score", "right"], 2) + "<tbody>\n";
    for score in &record.scores {
        let width = 100.0 * score.score.unwrap_or(0.0).clamp(0.0, 1.0);
        let count = match score.answers.len() {
            0 => NOT_MEASURED.into(),
            n => format!("{} of {n}", score.right()),
        };
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{}</th>\
             <td class=\"bar\"><span><span style=\"width:{width:.1}%\"></span></span></td>\
             <td class=\"num\">{}</td><td class=\"num\">{count}</td></tr>",
            escape(&sections::kind_name(&score.kind)),
            known(score.score, percent)
        );
    }
    card(out, "Scores", "bars", &(table + "</tbody>\n"));
}

fn conversation(out: &mut String, record: &Record) {
    *out += "<h2>A conversation</h2>\n";
    if record.sample.is_empty() {
        *out += MISSING;
        return;
    }
    let bubble = |out: &mut String, text: &str| {
        let _ = write!(
            out,
            "<div class=\"bubble\" dir=\"auto\">{}</div>",
            escape(&clip(text, TURN_CHARS))
        );
    };
    *out += "<ol class=\"card chat\">\n";
    for turn in record.sample.iter().take(TURNS) {
        *out += "<li class=\"user\"><span class=\"who\">user</span>";
        bubble(out, &turn.user);
        *out += "</li>\n<li><span class=\"who\">nanochat</span>";
        for (call, output) in turn.tools.iter().take(CALLS) {
            let side = |text: &str| escape(&clip(text, CALL_CHARS));
            let (call, output) = (side(call), side(output));
            let _ = write!(
                out,
                "<div class=\"tool\"><span>calculator</span> {call} <span>=</span> {output}</div>"
            );
        }
        bubble(out, &turn.assistant);
        *out += "</li>\n";
    }
    *out += "</ol>\n";
    let more = record.sample.len().saturating_sub(TURNS);
    if more > 0 {
        let _ = writeln!(out, "<p class=\"soft\">{more} more turns are in samples.json.</p>");
    }
}

fn curves(out: &mut String, record: &Record) {
    *out += "<h2>Training curves</h2>\n";
    let trained: Vec<&Stage> = record.stages.iter().filter(|s| !s.loss.is_empty()).collect();
    if trained.is_empty() {
        *out += MISSING;
    }
    for (i, stage) in trained.into_iter().take(CURVES).enumerate() {
        let name = escape(&sections::stage_name(&stage.name));
        let _ = writeln!(out, "<h3>{name}</h3>\n<div class=\"charts\">");
        for chart in charts(stage, i) {
            *out += &chart.figure();
        }
        *out += "</div>\n";
        stage.rewards.samples(out);
    }
}

fn charts(stage: &Stage, index: usize) -> Vec<Chart<'static>> {
    let series =
        |name, mark, points: &[Point]| Series { name, mark, points: thin(points, MOST_POINTS) };
    let chart = |key: &str, title, unit, gist, series| Chart {
        id: format!("c{index}-{key}"),
        title,
        unit,
        x: "step",
        gist,
        from_zero: matches!(key, "lr" | "rate"),
        series,
    };
    let mut loss = vec![series("each step", Mark::Faint, &stage.loss)];
    if !stage.smooth_loss.is_empty() {
        loss.push(series("smoothed", Mark::Line, &stage.smooth_loss));
    }
    let bpb = vec![series("held-out text", Mark::Dots, &stage.val_bpb)];
    let rate = vec![
        series("each step", Mark::Faint, &stage.rate),
        series("median", Mark::Line, &calm(&stage.rate)),
    ];
    let lrm = vec![series("multiplier", Mark::Line, &stage.lr_multiplier)];
    let last = |x: Option<f64>| x.map_or(String::new(), |x| format!("last {}", four(x)));
    let typical = median(stage.rate.iter().map(|p| p.1));
    let typical = typical.map_or(String::new(), |x| format!("median {}", commas(x)));
    let lr = chart("lr", "Learning rate", "share of its peak", String::new(), lrm);
    if stage.rewards.is_there() {
        // The loss of a policy gradient says nothing: its zero is where answers are all alike.
        let mut all = stage.rewards.charts(index);
        all.push(lr);
        return all;
    }
    vec![
        chart("loss", "Loss", "nats per token", last(stage.final_loss()), loss),
        chart("bpb", "Held-out text", "bits per byte", last(stage.last_bpb()), bpb),
        lr,
        chart("rate", "Speed", "tokens per second", typical, rate),
    ]
}

fn answers(out: &mut String, record: &Record) {
    *out += "<h2>Answers</h2>\n";
    if record.scores.iter().all(|s| s.answers.is_empty()) {
        *out += MISSING;
        return;
    }
    for score in record.scores.iter().filter(|s| !s.answers.is_empty()).take(KINDS) {
        if out.len() < ANSWERS_UNTIL {
            answers_of(out, score);
        }
    }
}

fn answers_of(out: &mut String, score: &Score) {
    let (n, right) = (score.answers.len(), score.right());
    let shown = [false, true].map(|right| sections::pick(score, right, ANSWERS)).concat();
    let _ = writeln!(
        out,
        "<details><summary>{} <span>{right} right, {} wrong</span></summary>\n<table>{}<tbody>",
        escape(&sections::kind_name(&score.kind)),
        n - right,
        columns(&["verdict", "question", "answer"], 3)
    );
    let row = |a: &Answer| {
        let cell = |text: &str| escape(&clip(text.trim(), ANSWER_CHARS));
        let (class, mark) = if a.right { ("right", "✓ right") } else { ("wrong", "✗ wrong") };
        let (question, answer) = (cell(&a.question), cell(&a.answer));
        format!(
            "<tr><th scope=\"row\" class=\"{class}\">{mark}</th>\
             <td dir=\"auto\">{question}</td><td dir=\"auto\">{answer}</td></tr>\n"
        )
    };
    out.extend(shown.iter().map(|a| row(a)));
    *out += "</tbody></table>\n";
    if shown.len() < n {
        let _ = writeln!(
            out,
            "<p class=\"soft more\">{} more are in scores.json.</p>",
            n - shown.len()
        );
    }
    *out += "</details>\n";
}

/// Machine, timings, command, settings.
fn circumstances(out: &mut String, record: &Record) {
    let machine = facts("Machine", &sections::machine(record));
    let timings = facts("Timings", &sections::timings(record));
    let command = record.command();
    let command =
        if command.is_empty() { NOT_MEASURED.into() } else { escape(&clip(&command, TURN_CHARS)) };
    let _ = write!(
        out,
        "<div class=\"pair\">\n{machine}{timings}</div>\n<h2>Command and settings</h2>\n\
         <div class=\"card\"><pre>{command}</pre></div>\n"
    );
    if let Some(settings) = sections::settings(record) {
        let settings = escape(&settings);
        let _ =
            writeln!(out, "<details><summary>Settings</summary>\n<pre>{settings}</pre></details>");
    }
}
