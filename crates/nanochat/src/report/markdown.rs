//! [`Record`] -> `report.md`.

use std::fmt::Write;

use super::figures::{NOT_MEASURED, clip, known, percent};
use super::record::{Answer, Record};
use super::{evals, items, optimizations, sections};

/// Answers of a kind that are shown, right and wrong each.
const ANSWERS: usize = 3;
/// Most characters of an answer, and of a turn of the conversation.
const ANSWER_CHARS: usize = 300;
const TURN_CHARS: usize = 4000;

/// The whole document.
pub fn page(record: &Record) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# nanochat run: {}\n\n{}\n",
        inline(&record.name),
        inline(&sections::verdict(record))
    );
    for note in &record.notes {
        let _ = writeln!(out, "> Note: {}\n", inline(note));
    }
    summary(&mut out, record);
    scores(&mut out, record);
    evals::markdown(&mut out, record);
    conversation(&mut out, record);
    items::markdown(&mut out, &record.items);
    answers(&mut out, record);
    let used = optimizations::rows(record);
    if !used.is_empty() {
        pairs(&mut out, "Optimizations", &used);
    }
    pairs(&mut out, "Machine", &sections::machine(record));
    out += "## Command\n\n";
    let command = record.command();
    out += &if command.is_empty() { format!("{NOT_MEASURED}\n\n") } else { fenced("sh", &command) };
    out += "## Settings\n\n";
    out += &sections::settings(record)
        .map_or_else(|| format!("{NOT_MEASURED}\n\n"), |s| fenced("json", &s));
    pairs(&mut out, "Timings", &sections::timings(record));
    let _ = writeln!(out, "{}", sections::wall_line(record));
    out
}

/// Text of unknown origin as one line of Markdown that shows it as it is.
pub fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '$' => out.extend(['\\', c]),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A code block that no run of backticks inside can close.
pub fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{text}\n{fence}\n\n")
}

/// A table; cells are Markdown already, those from the column `right_from` on stand right.
pub fn table(out: &mut String, columns: &[&str], right_from: usize, rows: &[Vec<String>]) {
    let rule = |i| if i >= right_from { "---:" } else { "---" };
    let rules: Vec<&str> = (0..columns.len()).map(rule).collect();
    let _ = writeln!(out, "| {} |\n| {} |", columns.join(" | "), rules.join(" | "));
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out.push('\n');
}

/// Names and values as a list under a heading.
pub fn pairs(out: &mut String, title: &str, rows: &[(String, String)]) {
    let _ = writeln!(out, "## {title}\n");
    for (name, value) in rows {
        let _ = writeln!(out, "- {}: {}", inline(name), inline(value));
    }
    out.push('\n');
}

fn summary(out: &mut String, record: &Record) {
    *out += "## Summary\n\n";
    if record.stages.is_empty() {
        let _ = writeln!(out, "{NOT_MEASURED}\n");
        return;
    }
    let cells = |row: [String; 6]| row.iter().map(|c| inline(c)).collect();
    let rows: Vec<Vec<String>> = sections::stage_rows(record).into_iter().map(cells).collect();
    table(out, &sections::STAGE_COLUMNS, 1, &rows);
    let lines = sections::loss_lines(record);
    if !lines.is_empty() {
        *out += "Smoothed loss from the first step to the last, nats per token:\n\n";
        *out += &fenced("text", &lines.join("\n"));
    }
}

fn scores(out: &mut String, record: &Record) {
    if evals::has_held_out(record) {
        return;
    }
    *out += "## Scores\n\n";
    if record.scores.is_empty() {
        let _ = writeln!(out, "{NOT_MEASURED}\n");
        return;
    }
    let row = |s: &super::record::Score| {
        let n = s.answers.len();
        let full = s.score.map(|x| (10.0 * x.clamp(0.0, 1.0) + 1e-9) as usize);
        vec![
            inline(&sections::kind_name(&s.kind)),
            full.map_or_else(String::new, |f| "█".repeat(f) + &"░".repeat(10 - f)),
            known(s.score, percent),
            if n == 0 { NOT_MEASURED.into() } else { n.to_string() },
        ]
    };
    table(out, &["kind", "", "score", "n"], 2, &record.scores.iter().map(row).collect::<Vec<_>>());
}

/// Lines of a quote; blank ones keep the quote open.
fn quoted(text: &str) -> String {
    text.lines().map(|l| format!("> {}\n", inline(l))).collect()
}

fn conversation(out: &mut String, record: &Record) {
    *out += "## Sample conversation\n\n";
    if record.sample.is_empty() {
        let _ = writeln!(out, "{NOT_MEASURED}\n");
    }
    for turn in &record.sample {
        *out += &format!("**user**\n\n{}\n", quoted(&clip(&turn.user, TURN_CHARS)));
        for (call, output) in &turn.tools {
            let _ = writeln!(out, "calculator: {} = {}\n", inline(call), inline(output));
        }
        *out += &format!("**assistant**\n\n{}\n", quoted(&clip(&turn.assistant, TURN_CHARS)));
    }
}

fn answers(out: &mut String, record: &Record) {
    *out += "## Answers\n\n";
    if record.scores.iter().all(|s| s.answers.is_empty()) {
        let _ = writeln!(out, "{NOT_MEASURED}\n");
        return;
    }
    let row = |a: &Answer| {
        let cell = |t: &str| inline(&clip(t.trim(), ANSWER_CHARS));
        vec![if a.right { "right" } else { "wrong" }.into(), cell(&a.question), cell(&a.answer)]
    };
    for score in record.scores.iter().filter(|s| !s.answers.is_empty()) {
        let (n, right) = (score.answers.len(), score.right());
        let kind = inline(&sections::kind_name(&score.kind));
        let _ = writeln!(out, "### {kind}\n\n{right} of {n} right.\n");
        let shown = [true, false].map(|right| sections::pick(score, right, ANSWERS));
        let rows: Vec<Vec<String>> = shown.concat().into_iter().map(row).collect();
        table(out, &["", "question", "answer"], 3, &rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_model_stays_text() {
        assert_eq!(inline("a|b\n<script>"), "a\\|b &lt;script&gt;");
        assert_eq!(inline("[x](y) `z`"), "\\[x\\](y) \\`z\\`");
        assert_eq!(quoted("one\n\n# two"), "> one\n> \n> \\# two\n");
    }

    #[test]
    fn a_fence_outlasts_backticks() {
        assert_eq!(fenced("", "a ```` b"), "`````\na ```` b\n`````\n\n");
    }
}
