//! Graded items of a run's evaluations: the same questions to every stage, and what went wrong at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use serde_json::Value;

use super::figures::clip;
use super::frame::{columns, escape};
use super::markdown::{inline, table as markdown_table};
use super::record::{list, number, text};
use super::sections::kind_name;
use crate::run_dir::RunDir;

/// Stages in the order of the pipeline.
const STAGES: [&str; 4] = ["base", "mid", "sft", "rl"];
/// Files of items, in the order of the page.
const FILES: [&str; 3] = ["held_out.jsonl", "core.jsonl", "chat.jsonl"];
/// Most bytes of a file that are read, and items of a task that are kept.
const MOST_BYTES: u64 = 64 << 20;
const MOST_ITEMS: usize = 20_000;
/// Questions shown of a task of the corpus, wrong items shown of any task, tasks shown.
const SAMPLES: usize = 2;
const WORST: usize = 5;
const TASKS: usize = 32;
/// Most characters of a cell.
const CHARS: usize = 260;
/// The same of an answer that stands beside those of other stages.
const LINE_CHARS: usize = 140;

/// A graded item, as far as it is shown.
#[derive(Clone, Debug, Default)]
pub struct Item {
    id: String,
    prompt: String,
    answer: String,
    gold: String,
    why: String,
    right: bool,
    /// How far the right choice is behind the best, nats per token; 0 where nothing was compared.
    behind: f64,
}

/// Items of a task, by stage.
#[derive(Debug, Default)]
pub struct Task {
    name: String,
    /// `held_out.jsonl`: what the corpus teaches, and so what stages are compared by.
    is_held_out: bool,
    stages: BTreeMap<usize, Vec<Item>>,
}

/// Reads the items of every stage; what cannot be read is not there.
pub fn read(run: &RunDir) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for (stage, name) in STAGES.iter().enumerate() {
        for file in FILES {
            let Ok(file_of) = File::open(run.join("evals").join(name).join(file)) else { continue };
            for line in BufReader::new(file_of.take(MOST_BYTES)).lines().map_while(Result::ok) {
                let Ok(row) = serde_json::from_str::<Value>(&line) else { continue };
                let task = text(&row, "task");
                let at = tasks.iter().position(|t| t.name == task).unwrap_or_else(|| {
                    let is_held_out = file == FILES[0];
                    tasks.push(Task { name: task, is_held_out, stages: BTreeMap::new() });
                    tasks.len() - 1
                });
                let items = tasks[at].stages.entry(stage).or_default();
                if items.len() < MOST_ITEMS {
                    items.push(item(&row));
                }
            }
        }
    }
    tasks
}

fn item(row: &Value) -> Item {
    let losses: Vec<f64> = list(&row["losses"]).iter().filter_map(Value::as_f64).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let gold = row["gold"].as_str().and_then(|g| g.parse::<usize>().ok());
    let behind = gold.and_then(|g| losses.get(g)).map_or(0.0, |l| l - best);
    Item {
        id: text(row, "id"),
        prompt: text(row, "prompt"),
        answer: list(&row["answers"]).first().and_then(Value::as_str).unwrap_or_default().into(),
        gold: text(row, "gold"),
        why: text(row, "why"),
        right: number(row, "right").is_some_and(|r| r > 0.0),
        behind: if behind.is_finite() { behind } else { 0.0 },
    }
}

impl Task {
    /// The first questions with each stage's item, where more than one stage was asked.
    fn samples(&self) -> Vec<Vec<(usize, &Item)>> {
        if self.stages.len() < 2 || !self.is_held_out {
            return Vec::new();
        }
        let Some(last) = self.stages.values().last() else { return Vec::new() };
        let of = |id: &str| {
            let one = |(stage, items): (&usize, &'_ Vec<Item>)| {
                items.iter().position(|i| i.id == id).map(|at| (*stage, at))
            };
            let found: Vec<(usize, usize)> = self.stages.iter().filter_map(one).collect();
            found.into_iter().map(|(s, at)| (s, &self.stages[&s][at])).collect()
        };
        last.iter().take(SAMPLES).map(|item| of(&item.id)).collect()
    }

    /// Wrong items of the last stage, those furthest from right first.
    fn worst(&self) -> Vec<&Item> {
        let Some(last) = self.stages.values().last() else { return Vec::new() };
        let mut wrong: Vec<&Item> = last.iter().filter(|i| !i.right).collect();
        wrong.sort_by(|a, b| b.behind.total_cmp(&a.behind));
        wrong.truncate(WORST);
        wrong
    }

    fn last(&self) -> Option<(&'static str, &Vec<Item>)> {
        self.stages.iter().next_back().map(|(stage, items)| (STAGES[*stage], items))
    }
}

fn short(cell: &str) -> String {
    clip(cell.trim(), CHARS)
}

/// An answer beside others: on one line, and not longer than a model's that knows when to stop.
fn line(answer: &str) -> String {
    clip(&answer.split_whitespace().collect::<Vec<_>>().join(" "), LINE_CHARS)
}

fn mark(right: bool) -> &'static str {
    if right { "✓" } else { "✗" }
}

/// Both sections in HTML; nothing where nothing was graded.
pub fn html(out: &mut String, tasks: &[Task]) {
    samples_html(out, tasks);
    let wrong = tasks.iter().filter(|t| !t.is_held_out && !t.worst().is_empty());
    let mut said = false;
    for task in wrong.take(TASKS) {
        if !std::mem::replace(&mut said, true) {
            *out += "<h2>Worst items</h2>\n";
        }
        worst_html(out, task);
    }
}

fn samples_html(out: &mut String, tasks: &[Task]) {
    let all: Vec<_> = tasks.iter().map(|t| (t, t.samples())).filter(|s| !s.1.is_empty()).collect();
    if all.is_empty() {
        return;
    }
    *out += "<h2>The same questions after each stage</h2>\n";
    for (task, samples) in all.into_iter().take(TASKS) {
        let mut rows = String::from("<tbody>\n");
        for by_stage in samples {
            let Some((_, first)) = by_stage.first() else { continue };
            let _ = writeln!(
                rows,
                "<tr class=\"asked\"><th scope=\"rowgroup\" colspan=\"3\" dir=\"auto\">{}</th></tr>",
                escape(&short(&first.prompt))
            );
            for (stage, item) in by_stage {
                let class = if item.right { "right" } else { "wrong" };
                let answer = line(&item.answer);
                let answer = if answer.is_empty() { "(nothing)".into() } else { answer };
                let _ = writeln!(
                    rows,
                    "<tr><td class=\"stage\">{}</td><td class=\"{class}\">{}</td>\
                     <td class=\"said\" dir=\"auto\">{}</td></tr>",
                    STAGES[stage].to_uppercase(),
                    mark(item.right),
                    escape(&answer)
                );
            }
        }
        let _ = writeln!(
            out,
            "<details><summary>{}</summary>\n<table class=\"samples\">{rows}</tbody></table></details>",
            escape(&kind_name(&task.name))
        );
    }
}

fn worst_html(out: &mut String, task: &Task) {
    let Some((stage, items)) = task.last() else { return };
    let wrong = items.iter().filter(|i| !i.right).count();
    let _ = writeln!(
        out,
        "<details><summary>{} <span>{wrong} of {} wrong, {}</span></summary>\n\
         <div class=\"scroll\"><table>{}<tbody>",
        escape(&task.name),
        items.len(),
        stage.to_uppercase(),
        columns(&["question", "answer", "right would be", "why"], 4)
    );
    for item in task.worst() {
        *out += "<tr>";
        for cell in [&item.prompt, &item.answer, &item.gold, &item.why] {
            let _ = write!(out, "<td dir=\"auto\">{}</td>", escape(&short(cell)));
        }
        *out += "</tr>\n";
    }
    *out += "</tbody></table></div></details>\n";
}

/// Both sections in Markdown; nothing where nothing was graded.
pub fn markdown(out: &mut String, tasks: &[Task]) {
    let mut rows = Vec::new();
    for task in tasks.iter().take(TASKS) {
        for by_stage in task.samples() {
            let Some((_, first)) = by_stage.first() else { continue };
            let said = |(stage, item): &(usize, &Item)| {
                let answer = inline(&line(&item.answer));
                format!("{} {}: {answer}", mark(item.right), STAGES[*stage].to_uppercase())
            };
            let answers: Vec<String> = by_stage.iter().map(said).collect();
            rows.push(vec![
                inline(&kind_name(&task.name)),
                inline(&short(&first.prompt)),
                answers.join("<br>"),
            ]);
        }
    }
    if !rows.is_empty() {
        *out += "## The same questions after each stage\n\n";
        markdown_table(out, &["kind", "question", "answers"], 3, &rows);
    }
    let of = |t: &Task| -> Vec<Vec<String>> {
        let row = |i: &Item| {
            let cells = [t.name.as_str(), &i.prompt, &i.answer, &i.gold, &i.why];
            cells.map(|c| inline(&short(c))).into()
        };
        t.worst().into_iter().map(row).collect()
    };
    let rows: Vec<_> = tasks.iter().filter(|t| !t.is_held_out).take(TASKS).flat_map(of).collect();
    if !rows.is_empty() {
        *out += "## Worst items\n\n";
        markdown_table(out, &["task", "question", "answer", "right would be", "why"], 5, &rows);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Dir;
    use super::*;

    fn line(task: &str, id: u32, answer: &str, right: f64) -> String {
        let row = serde_json::json!({"task": task, "id": id.to_string(), "prompt": format!("<b>{id}?"),
            "answers": [answer], "gold": "1", "right": right, "why": "a | b", "losses": [0.5, f64::from(id)]});
        format!("{row}\n")
    }

    #[test]
    fn stages_answer_the_same_questions_and_the_worst_comes_first() {
        let dir = Dir::new("items");
        for (stage, right) in [("base", 0.0), ("sft", 1.0)] {
            let folder = dir.0.join("evals").join(stage);
            std::fs::create_dir_all(&folder).expect("writable");
            let held = line("facts", 7, stage, right) + "not JSON\n";
            std::fs::write(folder.join("held_out.jsonl"), held).expect("writable");
            let core = line("copa", 1, "x", 0.0) + &line("copa", 9, "y", 0.0);
            std::fs::write(folder.join("core.jsonl"), core + &line("copa", 3, "z", 1.0))
                .expect("writable");
        }
        let tasks = read(&dir.run());
        let samples = tasks[0].samples();
        assert_eq!((samples.len(), samples[0].len()), (1, 2));
        let worst: Vec<&str> = tasks[1].worst().iter().map(|i| i.id.as_str()).collect();
        assert_eq!(worst, ["9", "1"]);
        let (mut page, mut text) = (String::new(), String::new());
        html(&mut page, &tasks);
        markdown(&mut text, &tasks);
        assert!(page.contains("&lt;b&gt;7?") && page.contains("2 of 3 wrong, SFT"), "{page}");
        assert!(text.contains("✗ BASE: base<br>✓ SFT: sft"), "{text}");
        assert!(text.contains("a \\| b") && !page.contains("<b>7"), "{text}");
    }

    #[test]
    fn a_run_without_items_says_nothing() {
        let dir = Dir::new("no-items");
        let (mut page, tasks) = (String::new(), read(&dir.run()));
        html(&mut page, &tasks);
        markdown(&mut page, &tasks);
        assert_eq!(page, "");
    }
}
