//! Reports of whole run directories: full, broken, empty.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

/// A directory that goes when the test ends.
pub(super) struct Dir(pub(super) PathBuf);

impl Dir {
    pub(super) fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("nanochat-report-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    pub(super) fn write(&self, file: &str, text: &str) -> &Self {
        std::fs::write(self.0.join(file), text).expect("writable");
        self
    }

    pub(super) fn run(&self) -> RunDir {
        RunDir::find(Some(&self.0)).expect("it exists")
    }

    fn pages(&self) -> [String; 2] {
        build(&self.run()).expect("a report of any directory");
        FILES.map(|f| std::fs::read_to_string(self.0.join(f)).expect("written"))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn step(stage: &str, step: u32, loss: f64) -> String {
    let row = json!({
        "kind": "step", "stage": stage, "step": step, "loss": loss, "smooth_loss": loss,
        "lr_multiplier": 1.0, "dt_ms": 100.0, "data_ms": 1.0, "tokens": 2048,
        "trained_tokens": 2048,
        "tokens_per_sec": 20_480.0, "epoch": 1, "train_s": 0.1 * f64::from(step),
    });
    format!("{row}\n")
}

fn summary(rate: f64, arithmetic: f64) -> Value {
    json!({
        "wall_s": 563.0, "peak_rss_bytes": 536_870_912u64, "val_bpb": 1.2345,
        "stages": { "tokenizer": { "seconds": 7.0, "tokens": 0.0, "tokens_per_sec": 0.0 },
                    "base": { "seconds": 300.0, "tokens": 6_144_000, "tokens_per_sec": rate } },
        "scores": { "arithmetic": arithmetic }, "decode_tokens_per_sec": 850.0,
        "command": ["nanochat", "speedrun"], "version": "0.1.0", "parameters": 1_200_000,
    })
}

fn full(dir: &Dir) -> &Dir {
    let mut metrics: String =
        (1..=3000).map(|i| step("base", i, 5.0 / f64::from(i).sqrt())).collect();
    metrics +=
        "{\"kind\":\"eval\",\"stage\":\"base\",\"step\":3000,\"val_bpb\":1.2345,\"tokens\":9}\n";
    metrics += "{\"kind\":\"moon\"}\n{\"kind\":\"step\",\"sta";
    let answers = json!([{
        "kind": "arithmetic", "score": 0.5, "answers": [
            { "question": "What is 2+2?", "answer": "4", "right": true },
            { "question": "<script>alert(1)</script>", "answer": "a | b \"q\"", "right": false },
        ],
    }]);
    let samples = json!([{
        "user": "What is 12*3?", "assistant": "<b>36</b>",
        "tools": [{ "call": "12*3", "output": "36" }],
    }]);
    let run = json!({
        "command": ["/opt/bin/nanochat", "speedrun", "--run", "my run"], "started": 1_709_210_096,
        "version": "0.1.0", "settings": { "base": { "n_layer": 4 } },
        "machine": { "cpu": "Some CPU", "backend": "cpu avx2 f32, 2 threads", "threads": 2,
                     "memory_bytes": 8_589_934_592u64, "os": "linux x86_64" },
    });
    dir.write("metrics.jsonl", &metrics)
        .write("scores.json", &answers.to_string())
        .write("samples.json", &samples.to_string())
        .write("run.json", &run.to_string())
        .write("summary.json", &summary(20_480.0, 0.5).to_string())
}

#[test]
fn a_full_run_says_everything() {
    let dir = Dir::new("full");
    let [md, html] = full(&dir).pages();
    for said in [
        "| base | 6,144,000 | 300.0 | 20,480 | 0.0913 | 1.2345 |",
        "| arithmetic | █████░░░░░ | 50% | 2 |",
        "a model of 1.2M parameters on 6.14M tokens",
        "2 lines of metrics.jsonl skipped",
        "\nnanochat speedrun --run 'my run'",
        "| tokenizer | – | 7.0 | – | – | – |",
        "- CPU: Some CPU",
        "calculator: 12\\*3 = 36",
        "Total wall clock time: 0h 9m",
    ] {
        assert!(md.contains(said), "no {said:?} in\n{md}");
    }
    for said in ["1.2345", "started 2024-02-29 12:34 UTC", "width:50.0%", "12*3 <span>=</span> 36"]
    {
        assert!(html.contains(said), "no {said:?} in the page");
    }
    assert_eq!(html.matches("<svg class=\"plot\"").count(), 4);
    assert!(html.len() < 200_000, "{} bytes", html.len());
}

#[test]
fn what_a_model_writes_is_never_markup() {
    let dir = Dir::new("escape");
    let [md, html] = full(&dir).pages();
    assert!(!html.contains("<script") && !md.contains("<script"));
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(html.contains("&lt;b&gt;36&lt;/b&gt;") && html.contains("a | b &quot;q&quot;"));
    assert!(md.contains("a \\| b"));
    // Nothing is fetched, nothing runs.
    assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("url("));
}

#[test]
fn the_worst_text_stays_below_two_megabytes() {
    let dir = Dir::new("size");
    let (text, long) = ("\"".repeat(450), "\"".repeat(2100));
    let answer = |right| json!({ "question": text, "answer": text, "right": right });
    let answers: Vec<Value> = (0..42).map(|i| answer(i % 2 == 0)).collect();
    let score = |i: u32| json!({ "kind": format!("kind_{i}"), "score": 0.5, "answers": answers });
    let tools = vec![json!({ "call": text, "output": text }); 9];
    let turn = json!({ "user": long, "assistant": long, "tools": tools });
    dir.write("scores.json", &json!((0..8).map(score).collect::<Vec<_>>()).to_string());
    dir.write("samples.json", &json!(vec![turn; 17]).to_string());
    dir.write("metrics.jsonl", &(1..=2000).map(|i| step("base", i, 5.0)).collect::<String>());
    let [_, html] = dir.pages();
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
}

#[test]
fn an_empty_run_is_not_measured() {
    let [md, html] = Dir::new("empty").pages();
    assert!(md.contains("Nothing was measured yet."));
    assert!(md.contains("Total wall clock time: not measured"));
    assert!(html.contains("not measured") && html.ends_with("</html>\n"));
}

#[test]
fn broken_files_are_named_and_left_out() {
    let dir = Dir::new("broken");
    dir.write("scores.json", "[{\"kind\":").write("samples.json", "{\"user\":3}");
    dir.write("summary.json", "[1,2]").write("run.json", "\"text\"");
    dir.write(
        "metrics.jsonl",
        "{\"kind\":\"step\",\"stage\":\"base\",\"step\":1,\"loss\":null}\n\n[]\n",
    );
    let [md, html] = dir.pages();
    assert!(md.contains("scores.json cannot be read"));
    assert!(md.contains("1 line of metrics.jsonl") && md.contains("1 step without a finite loss"));
    assert!(md.contains("the run goes on") || md.contains("Nothing was measured"));
    assert!(!html.contains("NaN"));
}

#[test]
fn a_run_without_summary_adds_its_steps_up() {
    let dir = Dir::new("open");
    let metrics: String = (1..=100).map(|i| step("sft", i, 2.0)).collect();
    dir.write("metrics.jsonl", &metrics);
    let [md, _] = dir.pages();
    assert!(md.contains("| sft | 204,800 | 10.0 | 20,480 | 2.0000 | not measured |"), "{md}");
    assert!(md.contains("There is no summary"));
}

#[test]
fn the_optimizations_of_a_run_are_said() {
    let dir = Dir::new("optimizations");
    let mut figures = summary(20_480.0, 0.5);
    figures["stages"]["sft"] = json!({ "seconds": 30.0, "tokens": 4000, "tokens_per_sec": 400.0,
        "trained_tokens_per_sec": 250.4, "padding_share": 0.021, "plans": 1 });
    figures["optimizations"] = json!({ "batch_size": "auto",
        "device_batch_size": { "base": 16, "sft": 8 }, "sft_step": "compiled",
        "sft_batching": "packed", "kv_cache": true, "first_token": "independent" });
    figures["auto_batch_size"] = json!({
        "base": { "batch_size": 16, "accumulation": 2, "predicted_bytes": 1_610_612_736u64,
                  "limit_bytes": 8_589_934_592u64, "discovery_s": 1.24, "cached": false },
        "sft": { "batch_size": 8, "cached": true } });
    figures["diversity"] =
        json!({ "n": 16, "distinct_1": 0.4, "distinct_2": 0.8, "first_tokens": 9 });
    dir.write("summary.json", &figures.to_string());
    let [md, html] = dir.pages();
    for said in [
        "automatic: 16 rows in pretraining, 8 in finetuning",
        "compiled, packed rows, 1 plan",
        "16 rows x 2, found in 1.2 s; 1.5 GiB of 8.0 GiB by plan",
        "8 rows, from the cache",
        "16 answers: 9 first tokens, distinct-1 0.40, distinct-2 0.80",
        "250 tokens/sec",
        "2.1%",
    ] {
        assert!(md.contains(said), "no {said:?} in\n{md}");
        assert!(html.contains(said), "no {said:?} in the page");
    }
    // A run that says nothing of them has no such section.
    let [md, html] = full(&Dir::new("silent")).pages();
    assert!(!md.contains("## Optimizations") && !html.contains("Optimizations"));
}

#[test]
fn a_comparison_has_differences_and_ratios() {
    let (a, b) = (Dir::new("a"), Dir::new("b"));
    let settings = |n: u32| json!({ "settings": { "base": { "n_layer": n } } }).to_string();
    a.write("summary.json", &summary(20_000.0, 0.0).to_string()).write("run.json", &settings(4));
    b.write("summary.json", &summary(25_000.0, 0.5).to_string()).write("run.json", &settings(6));
    let found = compare::compare(&a.run(), &b.run());
    let of = |name: &str| found.figures.iter().find(|f| f.name == name).expect("a figure");
    let rate = of("stages.base.tokens_per_sec");
    assert_eq!((rate.difference, rate.ratio), (Some(5000.0), Some(1.25)));
    let score = of("scores.arithmetic");
    assert_eq!((score.difference, score.ratio), (Some(0.5), None));
    assert_eq!(found.differs.len(), 1);
    assert_eq!(found.differs[0].name, "settings.base.n_layer");
    let table = found.text();
    assert!(table.contains("1.250x") && table.contains("+5000"), "{table}");
    assert!(table.contains("settings.base.n_layer: 4 -> 6"), "{table}");
    serde_json::to_string(&found).expect("it is plain data");
}
