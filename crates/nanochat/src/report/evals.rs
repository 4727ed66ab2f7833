//! What evaluations found, task by task, beside each other for the stages of a run: BASE | SFT | RL.

use std::fmt::Write;

use serde_json::Value;

use super::figures::{four, percent};
use super::frame::{card, columns, escape};
use super::markdown::{inline, table as markdown_table};
use super::record::{Record, number};
use super::sections::kind_name;

/// Stages in the order of the pipeline; others follow by name.
const STAGES: [&str; 4] = ["base", "mid", "sft", "rl"];

/// One task, or the mean of an evaluation's tasks above guessing.
#[derive(Debug, PartialEq)]
struct Row {
    task: String,
    /// By stage.
    scores: Vec<Option<f64>>,
    /// CORE and ChatCORE: no share of anything.
    is_metric: bool,
    n: Option<f64>,
}

impl Row {
    fn text(&self, score: Option<f64>) -> String {
        score.map_or_else(|| "–".into(), if self.is_metric { four } else { percent })
    }

    /// The furthest stage's.
    fn last(&self) -> f64 {
        self.scores.iter().rev().flatten().next().copied().unwrap_or(0.0).clamp(0.0, 1.0)
    }

    fn n(&self) -> String {
        self.n.map_or_else(String::new, |n| format!("{n:.0}"))
    }
}

/// Stages and rows: CORE and its tasks, chat tasks, ChatCORE last. None when nothing was evaluated.
fn rows(record: &Record) -> Option<(Vec<&str>, Vec<Row>)> {
    let mut stages: Vec<&str> = record.evals.iter().filter_map(|e| e["stage"].as_str()).collect();
    let rank = |stage: &str| STAGES.iter().position(|s| *s == stage).unwrap_or(STAGES.len());
    stages.sort_by_key(|stage| (rank(stage), *stage));
    stages.dedup();
    let mut rows: Vec<Row> = Vec::new();
    let mut put = |task: &str, stage: &str, score: f64, n: Option<f64>, is_metric: bool| {
        let at = rows.iter().position(|r| r.task == task).unwrap_or_else(|| {
            let scores = vec![None; stages.len()];
            rows.push(Row { task: task.into(), scores, is_metric, n: None });
            rows.len() - 1
        });
        // A later evaluation of the same stage takes the place of an earlier one.
        if let Some(column) = stages.iter().position(|s| *s == stage) {
            rows[at].scores[column] = Some(score);
        }
        rows[at].n = n.or(rows[at].n);
    };
    for eval in &record.evals {
        let Some(stage) = eval["stage"].as_str() else { continue };
        if let Some(core) = number(eval, "core") {
            put("CORE", stage, core, None, true);
        }
        let is_ours = eval["eval"] == HELD_OUT;
        for (task, score) in eval["scores"].as_object().into_iter().flatten() {
            if let Some(score) = score.as_f64().filter(|x| x.is_finite()) {
                let name = if is_ours { kind_name(task) } else { task.clone() };
                put(&name, stage, score, number(&eval["n"], task), false);
            }
        }
        if let Some(core) = number(eval, "chatcore") {
            put("ChatCORE", stage, core, None, true);
        }
    }
    let place = |row: &Row| match row.task.as_str() {
        "CORE" => 0,
        "ChatCORE" => 2,
        _ => 1,
    };
    rows.sort_by_key(place);
    (!rows.is_empty()).then_some((stages, rows))
}

fn header(stages: &[&str], bar_at_end: bool, text: fn(&str) -> String) -> Vec<String> {
    let mut names = vec!["task".to_owned()];
    if !bar_at_end {
        names.push("share".into());
    }
    names.extend(stages.iter().map(|s| text(&s.to_uppercase())));
    names.push("items".into());
    if bar_at_end {
        names.push(String::new());
    }
    names
}

/// The table in Markdown; nothing when nothing was evaluated.
pub fn markdown(out: &mut String, record: &Record) {
    let Some((stages, rows)) = rows(record) else { return };
    *out +=
        "## Evaluations\n\nShare of right answers; CORE and ChatCORE are means above guessing.\n\n";
    let line = |row: &Row| {
        let mut cells = vec![inline(&row.task)];
        cells.extend(row.scores.iter().map(|s| row.text(*s)));
        cells.push(row.n());
        let full = (10.0 * row.last() + 1e-9) as usize;
        cells.push("█".repeat(full) + &"░".repeat(10 - full));
        cells
    };
    let names = header(&stages, true, inline);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    markdown_table(out, &names, 1, &rows.iter().map(line).collect::<Vec<_>>());
}

/// The table in HTML, a bar for each task; nothing when nothing was evaluated.
pub fn html(out: &mut String, record: &Record) {
    let Some((stages, rows)) = rows(record) else { return };
    *out += "<h2>Evaluations</h2>\n";
    let names = header(&stages, false, escape);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = columns(&names, 2) + "<tbody>\n";
    for row in &rows {
        let width = 100.0 * row.last();
        let _ = write!(
            table,
            "<tr><th scope=\"row\">{}</th>\
             <td class=\"bar\"><span><span style=\"width:{width:.1}%\"></span></span></td>",
            escape(&row.task)
        );
        for score in &row.scores {
            let _ = write!(table, "<td class=\"num\">{}</td>", row.text(*score));
        }
        let _ = writeln!(table, "<td class=\"num\">{}</td></tr>", row.n());
    }
    card(out, "Evaluations", "bars", &(table + "</tbody>\n"));
}

/// The evaluation of the built-in world's questions.
const HELD_OUT: &str = "held_out";

/// True if the table of evaluations has what the table of scores would say.
pub fn has_held_out(record: &Record) -> bool {
    record.evals.iter().any(|e| e["eval"] == HELD_OUT)
}

/// True for the row of an evaluation of tasks.
pub fn is_eval(row: &Value) -> bool {
    row["kind"] == "eval" && row["eval"].is_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(evals: Vec<Value>) -> Record {
        Record { evals, ..Record::default() }
    }

    #[test]
    fn stages_stand_beside_each_other_and_the_last_evaluation_counts() {
        let chat = |stage: &str, x: f64| {
            json!({"stage": stage, "eval": "chat", "chatcore": x / 2.0, "n": {"MMLU": 14042},
                   "scores": {"MMLU": x}})
        };
        let core = json!({"stage": "base", "eval": "core", "core": 0.2219, "n": {"copa": 100},
                          "scores": {"copa": 0.62}});
        let record = record(vec![chat("sft", 0.1), chat("sft", 0.25), core, chat("rl", 0.5)]);
        let mut out = String::new();
        markdown(&mut out, &record);
        let lines: Vec<&str> = out.lines().filter(|l| l.starts_with('|')).collect();
        assert_eq!(
            lines,
            [
                "| task | BASE | SFT | RL | items |  |",
                "| --- | ---: | ---: | ---: | ---: | ---: |",
                "| CORE | 0.2219 | – | – |  | ██░░░░░░░░ |",
                "| MMLU | – | 25% | 50% | 14042 | █████░░░░░ |",
                "| copa | 62% | – | – | 100 | ██████░░░░ |",
                "| ChatCORE | – | 0.1250 | 0.2500 |  | ██░░░░░░░░ |",
            ]
        );
        let mut page = String::new();
        html(&mut page, &record);
        assert!(page.contains("width:62.0%") && page.contains(">0.2219<"), "{page}");
        assert!(!page.contains("not measured"));
    }

    #[test]
    fn nothing_evaluated_is_nothing_said() {
        let mut out = String::new();
        markdown(&mut out, &record(vec![]));
        html(&mut out, &record(vec![json!({"stage": 3, "scores": {"x": null}})]));
        assert_eq!(out, "");
    }
}
