//! Pairs of run directories: full, failing, empty, broken.

use serde_json::json;

use super::*;
use crate::report::tests::{Dir, step};

fn summary(optimized: bool) -> Value {
    let pick = |a: f64, b: f64| if optimized { b } else { a };
    let words = |a: &'static str, b: &'static str| if optimized { b } else { a };
    let stage = |train_s: f64, tokens: f64| {
        json!({ "seconds": train_s + 5.0, "tokens": tokens, "tokens_per_sec": tokens / train_s,
                "train_s": train_s })
    };
    let mut sft = stage(pick(180.0, 100.0), 1_000_000.0);
    sft["trained_tokens_per_sec"] = json!(pick(2000.0, 9000.0));
    sft["padding_share"] = json!(pick(0.45, 0.02));
    sft["step_ms"] = json!(pick(900.0, 500.0));
    if optimized {
        sft["plans"] = json!(1);
    }
    json!({
        "wall_s": pick(700.0, 500.0), "peak_rss_bytes": pick(3e9, 2e9),
        "memory_limit_bytes": 8e9, "val_bpb": pick(1.2, 1.176), "parameters": 1e6,
        "decode_tokens_per_sec": pick(300.0, 2250.0),
        "stages": { "base": stage(pick(400.0, 320.0), 8_000_000.0), "sft": sft },
        "optimizations": {
            "batch_size": words("off", "auto"), "kv_cache": optimized,
            "device_batch_size": { "base": pick(4.0, 16.0), "sft": pick(4.0, 8.0) },
            "sft_step": words("eager", "compiled"), "sft_batching": words("dynamic", "packed"),
            "first_token": words("broadcast", "independent") },
    })
}

fn verify(pass: bool) -> Value {
    json!({ "pass": pass, "checks": [
        { "name": "sft step: compiled equals eager", "pass": true, "figure": "0 of 40 differ" },
        { "name": "KV cache: tokens equal", "pass": pass, "figure": "token 17 of 200" }] })
}

fn quick() -> Value {
    json!({
        "machine": { "cpu": "Some CPU", "threads": 2 }, "model": "d6", "parameters": 9_830_400,
        "batch_size": { "batch_size": 8, "baseline": 4, "discovery_s": 1.2,
                        "tokens_per_sec": 21_000.0, "baseline_tokens_per_sec": 17_500.0 },
        "kv_cache": [
            { "batch_size": 1, "tokens_per_sec": 2244.0, "no_cache_tokens_per_sec": 310.0 },
            { "batch_size": 8, "tokens_per_sec": 7700.0, "no_cache_tokens_per_sec": 430.0 }],
        "sft": [
            { "step": "eager", "batching": "dynamic", "trained_tokens_per_sec": 5600.0,
              "padding_share": 0.47, "step_ms": 900.0 },
            { "step": "compiled", "batching": "packed", "trained_tokens_per_sec": 21_840.0,
              "padding_share": 0.02, "step_ms": 560.0 }],
        "sampling": { "independent": { "first_tokens": 13, "p_value": 0.41 },
                      "broadcast": { "first_tokens": 1, "p_value": 0.0 } },
    })
}

/// A baseline and an optimized run with all their files.
fn pair(name: &str) -> [Dir; 2] {
    [false, true].map(|optimized| {
        let dir = Dir::new(&format!("{name}-{optimized}"));
        let rows = |stage: &str, n| (1..=n).map(|i| step(stage, i, 5.0 / f64::from(i))).collect();
        let (base, sft): (String, String) = (rows("base", 300), rows("sft", 100));
        dir.write("metrics.jsonl", &(base + &sft));
        dir.write("summary.json", &summary(optimized).to_string());
        let settings = json!({ "settings": { "plan": { "batch": optimized } } });
        dir.write("run.json", &settings.to_string());
        if optimized {
            dir.write("verify.json", &verify(true).to_string());
            dir.write("quick.json", &quick().to_string());
        }
        dir
    })
}

/// The comparison, `compare.md` and `compare.html`, held to be well formed.
fn pages([a, b]: &[Dir; 2]) -> (Comparison, [String; 2]) {
    let found = compare(&a.run(), &b.run());
    let files = found.write(&b.0).expect("the directory is writable");
    let [md, html] = files.map(|f| std::fs::read_to_string(f).expect("written"));
    well_formed(&html);
    assert!(!html.contains("NaN") && !html.contains("inf%") && !md.contains("NaN"));
    assert!(!html.contains("http:") && !html.contains("https:") && !html.contains("<script"));
    serde_json::to_string(&found).expect("it is plain data");
    (found, [md, html])
}

/// Every element that is opened is closed, in order.
fn well_formed(html: &str) {
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    let mut open: Vec<&str> = Vec::new();
    for tag in html.split('<').skip(2).filter_map(|t| t.split_once('>')).map(|t| t.0) {
        let name = tag.split([' ', '\n']).next().unwrap_or("");
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes another element");
        } else if !tag.ends_with('/') && !["meta", "wbr"].contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
}

#[test]
fn a_full_pair_fills_the_table_and_the_checklist() {
    let dirs = pair("full");
    let (found, [md, html]) = pages(&dirs);
    for said in [
        "| Total training time | 9 min 40 s | 7 min 00 s | 1.4x faster |",
        "| Total wall clock time | 11 min 40 s | 8 min 20 s | 1.4x faster |",
        "| Base training tokens/sec | 20,000 | 25,000 | 1.2x faster |",
        "| SFT training step time | 900 ms | 500 ms | 1.8x faster |",
        "| Final inference speed | 300 tokens/sec | 2,250 tokens/sec | 7.5x faster |",
        "| Memory utilization | 37.5 % | 25 % | 12.5 points less |",
        "| SFT trained tokens/sec | 2,000 | 9,000 | 4.5x faster |",
        "| SFT padding share | 45 % | 2 % | 43.0 points less |",
        "| Peak memory | 2.8 GiB | 1.9 GiB | 33 % less |",
        "| Validation bpb | 1.2000 | 1.1760 | 2.0 % lower |",
        "| SFT step | eager, dynamic rows | compiled, packed rows, 1 plan |",
        "| KV cache, batch 1 | 310 tokens/sec | 2,244 tokens/sec | 7.2x faster |",
        "- [x] Verification passes all checks (2 of 2 checks)",
        "- [x] Quick benchmark confirms KV cache (7.2x faster at batch 1, 18x faster at batch 8)",
        "- [x] Quick benchmark confirms automatic batch size (found 8, 1.20x the speed of 4)",
        "- [x] Full training completed",
        "- [x] Speedup measured and documented (training 1.4x faster, decoding 7.5x faster)",
        "settings.plan.batch | false | true |",
    ] {
        assert!(md.contains(said), "no {said:?} in\n{md}");
    }
    assert!(found.checklist.iter().all(|c| c.passed), "{:?}", found.checklist);
    assert_eq!(html.matches("<svg class=\"plot\"").count(), 4);
    assert_eq!(html.matches("class=\"box right\"").count(), 8);
    let text = found.text();
    let table = text.find("Total training time").expect("the table");
    assert!(table < text.find("stages.base.tokens_per_sec").expect("every figure"), "{text}");
}

#[test]
fn empty_directories_are_not_measured() {
    let dirs = [Dir::new("none-a"), Dir::new("none-b")];
    let (found, [md, _]) = pages(&dirs);
    for row in &found.table {
        assert_eq!(row.gain.text, "not measured", "{}", row.metric);
    }
    assert_eq!(md.matches("- [ ] ").count(), 8);
    assert!(found.checklist.iter().all(|c| c.note.starts_with("not measured: ")));
    assert!(found.text().contains("[ ] Verification passes all checks: not measured"));
}

#[test]
fn what_fails_leaves_its_box_open_and_says_why() {
    let dirs = pair("fails");
    dirs[1].write("verify.json", &verify(false).to_string());
    let mut slow = quick();
    slow["kv_cache"][0]["tokens_per_sec"] = json!(300.0);
    slow["batch_size"]["tokens_per_sec"] = json!(14_000.0);
    slow["sampling"]["independent"] = json!({ "first_tokens": 5, "p_value": 1e-9 });
    dirs[1].write("quick.json", &slow.to_string());
    let mut worse = summary(true);
    worse["stages"]["base"]["train_s"] = json!(700.0);
    worse["optimizations"]["sft_step"] = json!("eager");
    dirs[1].write("summary.json", &worse.to_string());
    let (_, [md, html]) = pages(&dirs);
    for said in [
        "(fails: 1 of 2 checks; KV cache: tokens equal (token 17 of 200))",
        "KV cache (fails: 0.97x (slower) at batch 1)",
        "automatic batch size (fails: found 8, 0.80x the speed of 4)",
        "- [ ] Compiled SFT step verified (fails: the optimized run took the eager step)",
        "sampling verified (fails: first tokens: 5 different, p below 0.001)",
        "- [x] Full training completed",
        "documented (fails: training 0.7x (slower), decoding 7.5x faster)",
        "| Total training time | 9 min 40 s | 13 min 20 s | 0.7x (slower) |",
    ] {
        assert!(md.contains(said), "no {said:?} in\n{md}");
    }
    assert_eq!(html.matches("class=\"box wrong\"").count(), 6);
}

#[test]
fn what_makes_runs_unequal_is_said() {
    let dirs = pair("unequal");
    let mut other = summary(true);
    other["parameters"] = json!(2e6);
    other["stages"]["sft"]["trained_tokens"] = json!(900_000);
    other["stages"]["base"]["tokens"] = json!(4_000_000);
    dirs[1].write("summary.json", &other.to_string());
    dirs[1].write("quick.json", "{\"kv_cache\":");
    let (found, [md, _]) = pages(&dirs);
    for said in [
        "Parameters differ: 1,000,000 and 2,000,000.",
        "Tokens of pretraining differ: 8,000,000 and 4,000,000.",
        "A step of finetuning trains on about 2,048 and 9,000 targets",
        "quick.json cannot be read",
    ] {
        assert!(md.contains(said), "no {said:?} in\n{md}");
    }
    assert!(found.quick.is_empty());
    let same = compare(&dirs[0].run(), &dirs[0].run());
    assert_eq!(same.cautions, ["Both are the same directory."]);
}

/// A summary of an earlier version has no `train_s`: its rate tells it.
#[test]
fn training_time_is_found_without_its_field() {
    let dirs = [Dir::new("old-a"), Dir::new("old-b")];
    let old = json!({ "stages": {
        "base": { "seconds": 110.0, "tokens": 100_000, "tokens_per_sec": 1000.0 },
        "sft": { "seconds": 60.0, "tokens": 50_000, "tokens_per_sec": 1000.0 } } });
    dirs[0].write("summary.json", &old.to_string());
    // A run that goes on has no total.
    dirs[1].write("metrics.jsonl", &(step("base", 1, 5.0) + &step("sft", 1, 5.0)));
    let (found, _) = pages(&dirs);
    assert_eq!(found.table[0].baseline, Some(150.0));
    assert_eq!(found.table[0].optimized, None);
}

/// Values of the wrong kind are absent, whatever they are.
#[test]
fn odd_files_are_no_harm() {
    for odd in [
        "[]",
        "3",
        "\"x\"",
        "{\"stages\":[],\"optimizations\":[1],\"checks\":{},\"sft\":3}",
        "{\"pass\":true,\"checks\":[1,null]}",
        "{\"stages\":{\"sft\":{\"train_s\":-1e308,\"step_ms\":\"x\"}}}",
    ] {
        let dirs = pair("odd");
        for file in ["summary.json", "quick.json", "verify.json", "run.json"] {
            dirs[1].write(file, odd);
        }
        let (found, _) = pages(&dirs);
        assert!(!found.checklist[0].passed, "{odd}");
    }
}
