//! What the report says, before it is Markdown or HTML: a verdict and the rows of its tables.

use serde_json::Value;

use super::figures::{NOT_MEASURED, bytes, clip, commas, four, known, percent, short, span, wall};
use super::record::{Answer, Record, Score, number, text};
use super::stage::Stage;
use super::{curve, optimizations};

/// Most characters of a settings block.
const SETTINGS_CHARS: usize = 20_000;

/// Columns of the stage table.
pub const STAGE_COLUMNS: [&str; 6] =
    ["stage", "tokens", "seconds", "tokens/sec", "final loss", "val bpb"];

/// One row a stage.
pub fn stage_rows(record: &Record) -> Vec<[String; 6]> {
    let row = |s: &Stage| {
        // A stage that trains nothing has nothing to miss; one that learns from reward reads no
        // held-out text.
        let due = |x: Option<f64>, text: fn(f64) -> String| match x {
            None if s.dt_ms.is_empty() || s.rewards.is_there() => "–".into(),
            _ => known(x, text),
        };
        [
            s.name.clone(),
            due(s.tokens, commas),
            known(s.seconds, |x| format!("{x:.1}")),
            due(s.tokens_per_sec, commas),
            due(s.final_loss(), four),
            due(s.last_bpb(), four),
        ]
    };
    record.stages.iter().map(row).collect()
}

/// The key figures in one paragraph.
pub fn verdict(record: &Record) -> String {
    let mut said: Vec<String> = Vec::new();
    said.extend(trained(record));
    said.extend(reached(record));
    said.extend(record.stages.iter().filter_map(|s| s.rewards.line()));
    if let Some(rate) = record.figure("decode_tokens_per_sec") {
        said.push(format!("It writes {} tokens a second.", commas(rate)));
    }
    match (record.figure("wall_s"), record.figure("peak_rss_bytes").filter(|b| *b > 0.0)) {
        (Some(s), Some(b)) => said.push(format!(
            "Everything together took {} and at most {} of memory.",
            span(s),
            bytes(b)
        )),
        (Some(s), None) => said.push(format!("Everything together took {}.", span(s))),
        (None, _) if said.is_empty() => said.push("Nothing was measured yet.".into()),
        (None, _) => {
            said.push("There is no summary: the run goes on, or it ended early.".into());
        }
    }
    said.join(" ")
}

/// What was trained, on what, how long.
fn trained(record: &Record) -> Option<String> {
    let trained: Vec<_> = record.stages.iter().filter(|s| !s.dt_ms.is_empty()).collect();
    let tokens: f64 = trained.iter().filter_map(|s| s.tokens).sum();
    if tokens == 0.0 {
        return None;
    }
    let seconds: f64 = trained.iter().filter_map(|s| s.seconds).sum();
    let model = record
        .figure("parameters")
        .map_or("a model".into(), |n| format!("a model of {} parameters", short(n)));
    let machine = record.machine();
    let cpu = machine.get("cpu").and_then(Value::as_str).filter(|c| *c != "unknown");
    let place = cpu.map_or(String::new(), |c| format!(" on {c}"));
    let (tokens, time) = (short(tokens), span(seconds));
    Some(format!("This run trained {model} on {tokens} tokens in {time}{place}."))
}

/// What it reached on held-out text and questions.
fn reached(record: &Record) -> Option<String> {
    let bpb =
        record.val_bpb().map(|b| format!("predicts held-out text at {} bits per byte", four(b)));
    let of = |s: &Score| Some(format!("{} of {}", percent(s.score?), kind_name(&s.kind)));
    let mut scores: Vec<String> = record.scores.iter().filter_map(of).collect();
    let last = scores.pop();
    let scores = last.map(|last| match scores.is_empty() {
        true => format!("answers {last} right"),
        false => format!("answers {} and {last} right", scores.join(", ")),
    });
    match (bpb, scores) {
        (Some(b), Some(s)) => Some(format!("It {b} and {s}.")),
        (Some(one), None) | (None, Some(one)) => Some(format!("It {one}.")),
        (None, None) => None,
    }
}

/// `multiple_choice` as people say it.
pub fn kind_name(kind: &str) -> String {
    kind.replace('_', " ")
}

/// A stage as people say it.
pub fn stage_name(stage: &str) -> String {
    match stage {
        "base" => "Pretraining".into(),
        "mid" => "Mid-training".into(),
        "sft" => "Finetuning".into(),
        "rl" => "Reinforcement".into(),
        other => other.into(),
    }
}

/// The right ones or the wrong ones, at most `most`.
pub fn pick(score: &Score, right: bool, most: usize) -> Vec<&Answer> {
    score.answers.iter().filter(|a| a.right == right).take(most).collect()
}

/// Time and memory.
pub fn timings(record: &Record) -> Vec<(String, String)> {
    let mut rows = vec![
        ("Started".into(), record.started().unwrap_or_else(|| NOT_MEASURED.into())),
        ("Wall clock".into(), known(record.figure("wall_s"), span)),
    ];
    for stage in &record.stages {
        rows.push((format!("Stage {}", stage.name), known(stage.seconds, span)));
        if let Some(step) = stage.step_s() {
            let wait = known(stage.data_share(), percent);
            rows.push((
                format!("Step of {}", stage.name),
                format!(
                    "{} (median of {}), {wait} of it waiting for data",
                    span(step),
                    stage.dt_ms.len()
                ),
            ));
        }
        if stage.name == "sft" {
            rows.extend(optimizations::sft_rates(stage));
        }
    }
    let rate = |x| format!("{} tokens/sec", commas(x));
    rows.push(("Decoding".into(), known(record.figure("decode_tokens_per_sec"), rate)));
    let memory = record.figure("peak_rss_bytes").filter(|b| *b > 0.0);
    rows.push(("Most memory".into(), known(memory, bytes)));
    if let Some(flops) = record.figure("flops") {
        rows.push(("Training flops".into(), format!("{flops:.3e}")));
    }
    rows
}

/// The machine and the program.
pub fn machine(record: &Record) -> Vec<(String, String)> {
    let machine = Value::Object(record.machine());
    let said = |key| Some(text(&machine, key)).filter(|t| !t.is_empty());
    let memory = number(&machine, "memory_bytes").filter(|b| *b > 0.0);
    let version = Some(record.version()).filter(|v| !v.is_empty());
    let rows = [
        ("CPU", said("cpu")),
        ("Backend", said("backend")),
        ("Threads", said("threads")),
        ("Memory", memory.map(bytes)),
        ("System", said("os")),
        ("nanochat", version),
    ];
    rows.map(|(k, v)| (k.into(), v.unwrap_or_else(|| NOT_MEASURED.into()))).into()
}

/// The settings as indented JSON; `None` when there are none.
pub fn settings(record: &Record) -> Option<String> {
    let settings = record.run.get("settings").filter(|s| !s.is_null())?;
    let text = serde_json::to_string_pretty(settings).ok()?;
    Some(clip(&text, SETTINGS_CHARS))
}

/// The line that ends a pipeline.
pub fn wall_line(record: &Record) -> String {
    format!("Total wall clock time: {}", known(record.figure("wall_s"), wall))
}

/// The loss of each trained stage in one line of block characters.
pub fn loss_lines(record: &Record) -> Vec<String> {
    let line = |s: &Stage| {
        let curve = if s.smooth_loss.is_empty() { &s.loss } else { &s.smooth_loss };
        let (first, last) = (curve.first()?.1, curve.last()?.1);
        let blocks = curve::sparkline(curve, 40);
        Some(format!("{:<5} {} {blocks} {}", s.name, four(first), four(last)))
    };
    record.stages.iter().filter_map(line).collect()
}
