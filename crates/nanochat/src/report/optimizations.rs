//! Which of the four optimizations a run used: `optimizations`, `auto_batch_size` and `diversity`
//! of `summary.json` -> rows of text.

use serde_json::Value;

use super::figures::{bytes, commas, known, percent, span};
use super::record::{Record, number, text};
use super::sections::stage_name;
use super::stage::Stage;

/// What stands where a summary does not say.
const NOT_RECORDED: &str = "not recorded";

/// Batch size, SFT step, KV cache, first token: what the run used of each.
pub fn used(record: &Record) -> [(&'static str, String); 4] {
    let of = &record.summary["optimizations"];
    let said = |words: String| if words.is_empty() { NOT_RECORDED.into() } else { words };
    let cache = match of["kv_cache"].as_bool() {
        Some(true) => "on".into(),
        Some(false) => "off".into(),
        None => String::new(),
    };
    [
        ("Batch size", said(batch_size(of))),
        ("SFT step", said(sft_step(record, of))),
        ("KV cache", said(cache)),
        ("First token", said(text(of, "first_token"))),
    ]
}

/// All that is known of the optimizations of one run; empty when the summary has nothing.
pub fn rows(record: &Record) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    if record.summary["optimizations"].is_object() {
        rows.extend(used(record).map(|(name, words)| (name.into(), words)));
    }
    for stage in ["base", "sft"] {
        let chosen = chosen(&record.summary["auto_batch_size"][stage]);
        let name = format!("Batch size of {}", stage_name(stage).to_lowercase());
        rows.extend(chosen.map(|words| (name, words)));
    }
    rows.extend(diversity(record).map(|words| ("Diversity".into(), words)));
    rows
}

/// Targets trained a second and padding of finetuning, where they are known.
pub fn sft_rates(sft: &Stage) -> Vec<(String, String)> {
    let trained = sft.trained_tokens_per_sec.map(|x| format!("{} tokens/sec", commas(x)));
    let rows = [("Trained in sft", trained), ("Padding of sft", sft.padding_share.map(percent))];
    rows.into_iter().filter_map(|(name, x)| Some((name.into(), x?))).collect()
}

/// `automatic: 8 rows in pretraining, 8 in finetuning`.
fn batch_size(of: &Value) -> String {
    let mode = match of["batch_size"].as_str() {
        Some("auto") => "automatic",
        Some("given") => "given",
        Some("off") => "fixed",
        Some(other) => other,
        None => "",
    };
    let rows = &of["device_batch_size"];
    let stage = |name: &str| {
        let rows = number(rows, name)?;
        Some(format!("{} in {}", commas(rows), stage_name(name).to_lowercase()))
    };
    let mut sizes: Vec<String> = ["base", "sft"].into_iter().filter_map(stage).collect();
    sizes.extend(rows.as_f64().map(commas));
    let sizes = sizes.join(", ").replacen(" in", " rows in", 1);
    match (mode.is_empty(), sizes.is_empty()) {
        (true, _) => sizes,
        (false, true) => mode.into(),
        (false, false) => format!("{mode}: {sizes}"),
    }
}

/// `compiled, packed rows, 1 plan`.
fn sft_step(record: &Record, of: &Value) -> String {
    let mut words = vec![text(of, "sft_step")];
    words.push(text(of, "sft_batching") + " rows");
    words.retain(|w| !w.is_empty() && w != " rows");
    let plans = record.stage_named("sft").and_then(|s| s.plans);
    words.extend(plans.map(|n| format!("{} plan{}", commas(n), if n == 1.0 { "" } else { "s" })));
    words.join(", ")
}

/// `8 rows x 2, found in 1.2 s; 1.5 GiB of 8.0 GiB by plan`.
fn chosen(of: &Value) -> Option<String> {
    let mut words = commas(number(of, "batch_size")?) + " rows";
    if let Some(n) = number(of, "accumulation") {
        words += &format!(" x {}", commas(n));
    }
    let cached = of["cached"].as_bool() == Some(true);
    match number(of, "discovery_s").filter(|s| *s >= 0.0) {
        _ if cached => words += ", from the cache",
        Some(s) => words += &format!(", found in {}", span(s)),
        None => {}
    }
    if let Some(plan) = number(of, "predicted_bytes") {
        words +=
            &format!("; {} of {} by plan", bytes(plan), known(number(of, "limit_bytes"), bytes));
    }
    Some(words)
}

/// `16 answers: 9 first tokens, distinct-1 0.40, distinct-2 0.80`.
fn diversity(record: &Record) -> Option<String> {
    let of = &record.summary["diversity"];
    let n = number(of, "n")?;
    let mut words = Vec::new();
    words.extend(number(of, "first_tokens").map(|x| format!("{} first tokens", commas(x))));
    for (key, name) in [("distinct_1", "distinct-1"), ("distinct_2", "distinct-2")] {
        words.extend(number(of, key).map(|x| format!("{name} {x:.2}")));
    }
    Some(format!("{} answers: {}", commas(n), words.join(", ")))
}
