//! The four optimizations through the program: checks that notice when one is missing, benchmarks that
//! end with their object, a baseline run compared, and memory that is respected.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn nanochat(base: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(args)
        .args(["--threads", "2"])
        .env("NANOCHAT_BASE_DIR", base)
        .output()
        .expect("the program starts")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The object on the last line of standard output of a run that ended well.
fn figures(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    last_object(output)
}

fn last_object(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(out.lines().last().expect("a line")).expect("a JSON object")
}

fn name(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

#[test]
fn verify_passes_and_leaves_its_results() {
    let base = tempfile::tempdir().expect("a folder");
    let found = nanochat(base.path(), &["verify", "--run", name(base.path())]);
    let found = figures(&found);
    assert_eq!((&found["pass"], found["checks"].as_array().map(Vec::len)), (&true.into(), Some(5)));
    let kept = std::fs::read_to_string(base.path().join("verify.json")).expect("verify.json");
    assert_eq!(serde_json::from_str::<Value>(&kept).expect("JSON")["pass"], true);
}

#[test]
fn verify_fails_when_an_optimization_is_missing() {
    let base = tempfile::tempdir().expect("a folder");
    for (instead, failing) in [
        ("batch-size", "automatic batch size"),
        ("sft-step", "compiled SFT step"),
        ("kv-cache", "KV cache"),
        ("sampling", "independent sampling"),
    ] {
        let found = nanochat(base.path(), &["verify", "--instead", instead]);
        assert_eq!(found.status.code(), Some(1), "{instead}: {}", text(&found));
        assert!(text(&found).contains("error: 1 of 5 checks failed"), "{}", text(&found));
        for check in last_object(&found)["checks"].as_array().expect("a list") {
            assert_eq!(check["pass"], check["name"] != failing, "{instead}: {check}");
        }
    }
}

/// A model that is measured in no time.
const SMALL: [&str; 8] =
    ["--depth", "2", "--aspect-ratio", "32", "--head-dim", "32", "--vocab-size", "512"];

#[test]
fn a_sweep_of_batches_is_measured_and_drawn() {
    let base = tempfile::tempdir().expect("a folder");
    let plot = base.path().join("sweep.html");
    let once = ["--sweep", "--rounds", "1", "--plot", name(&plot)];
    let sizes = ["bench", "batch-size", "--max-seq-len", "64", "--total-batch-size", "512"];
    let run = || nanochat(base.path(), &[&sizes[..], &SMALL, &once].concat());
    let first = figures(&run());
    let sweep = first["sweep"].as_array().expect("a list");
    let batches: Vec<_> = sweep.iter().filter_map(|m| m["batch_size"].as_u64()).collect();
    assert_eq!(batches, [1, 2, 4, 8]);
    assert!(batches.contains(&first["batch_size"].as_u64().expect("a number")));
    assert!(sweep.iter().all(|m| m["tokens_per_sec"].as_f64() > Some(0.0)));
    assert_eq!(first["cached"], false);
    let page = std::fs::read_to_string(&plot).expect("the plot");
    assert!(page.contains("<svg") && !page.contains("NaN"));
    let again = figures(&run());
    assert_eq!((&again["cached"], &again["batch_size"]), (&true.into(), &first["batch_size"]));
}

#[test]
fn generation_is_measured_with_a_cache_and_without() {
    let base = tempfile::tempdir().expect("a folder");
    let rows = ["--batch-sizes", "1,3", "--prompts", "5,20", "--new-tokens", "8"];
    let found = nanochat(base.path(), &[&["bench", "infer"], &SMALL[..], &rows].concat());
    let found = figures(&found);
    let sweep = found["sweep"].as_array().expect("a list");
    assert_eq!(sweep.len(), 8, "two prompts, two batches, two ways");
    for cell in sweep {
        for key in ["tokens_per_sec", "ttft_ms", "step_ms_p50", "step_ms_p95", "peak_bytes"] {
            assert!(cell[key].as_f64().is_some_and(|x| x > 0.0), "{key} of {cell}");
        }
    }
}

#[test]
fn many_streams_and_a_known_prompt_are_measured() {
    let base = tempfile::tempdir().expect("a folder");
    let rows = ["--streams", "1,3", "--prompt", "5", "--prefix", "130", "--rounds", "1"];
    let few = ["--new-tokens", "4"];
    let found = nanochat(base.path(), &[&["bench", "streams"], &SMALL[..], &rows, &few].concat());
    let found = figures(&found);
    let streams = found["streams"].as_array().expect("a list");
    assert_eq!(streams.len(), 2);
    assert!(streams.iter().all(|s| s["tokens_per_sec"].as_f64() > Some(0.0)), "{found}");
    for key in ["cold_first_token_ms", "known_first_token_ms", "known_share"] {
        assert!(found[key].as_f64().is_some_and(|x| x > 0.0), "{key} of {found}");
    }
}

#[test]
fn finetuning_is_measured_in_all_its_ways() {
    let base = tempfile::tempdir().expect("a folder");
    let once = ["--max-seq-len", "128", "--rows", "8", "--rounds", "1", "--steps", "1"];
    let found = nanochat(base.path(), &[&["bench", "sft"], &SMALL[..], &once].concat());
    let found = figures(&found);
    let all = found["sft"].as_array().expect("a list");
    let ways: Vec<_> = all.iter().map(|w| format!("{}/{}", w["step"], w["batching"])).collect();
    assert_eq!(ways.len(), 5, "{ways:?}");
    let plans = |i: usize| all[i]["plans"].as_f64().expect("a number");
    assert_eq!((plans(0), plans(3), plans(4)), (1.0, 0.0, 0.0), "eager, fixed, packed");
    let padding = |i: usize| all[i]["padding_share"].as_f64().expect("a number");
    assert!(padding(4) < padding(0) && padding(0) < padding(3), "packed, dynamic, fixed");
}

#[test]
fn the_quick_benchmark_fills_its_object() {
    let base = tempfile::tempdir().expect("a folder");
    let sizes = ["--max-seq-len", "64", "--batch-sizes", "1,2", "--run", name(base.path())];
    let found = nanochat(base.path(), &[&["bench", "quick"], &SMALL[..], &sizes].concat());
    let found = figures(&found);
    assert_eq!(found["kv_cache"].as_array().map(Vec::len), Some(2));
    assert_eq!(found["sft"].as_array().map(Vec::len), Some(5));
    assert_eq!(found["sampling"]["broadcast"]["first_tokens"], 1);
    assert!(found["sampling"]["independent"]["p_value"].as_f64() > Some(0.001));
    assert!(found["batch_size"]["tokens_per_sec"].as_f64() > Some(0.0));
    assert!(base.path().join("quick.json").exists());
}

#[test]
fn a_baseline_is_compared_with_an_optimized_run() {
    let base = tempfile::tempdir().expect("a folder");
    let dirs = ["base", "opt"].map(|d| base.path().join(d));
    let speedrun = |dir: &Path, more: &[&str]| {
        let args = [&["speedrun", "--preset", "tiny", "--run", name(dir)], more].concat();
        let done = nanochat(base.path(), &args);
        assert!(done.status.success(), "{}", text(&done));
        let summary = std::fs::read_to_string(dir.join("summary.json")).expect("a summary");
        serde_json::from_str::<Value>(&summary).expect("JSON")
    };
    let (slow, fast) = (speedrun(&dirs[0], &["--baseline"]), speedrun(&dirs[1], &[]));
    let used = |s: &Value| {
        ["batch_size", "sft_step", "sft_batching", "kv_cache", "first_token"]
            .map(|key| s["optimizations"][key].to_string().replace('"', ""))
    };
    assert_eq!(used(&slow), ["off", "eager", "dynamic", "false", "broadcast"]);
    assert_eq!(used(&fast), ["auto", "compiled", "packed", "true", "independent"]);
    assert_eq!(slow["optimizations"]["device_batch_size"]["sft"], 4);
    assert_eq!(slow["diversity"]["first_tokens"], 1);
    assert!(fast["diversity"]["first_tokens"].as_u64() > Some(1));
    assert!(fast["auto_batch_size"]["base"]["predicted_bytes"].is_u64());
    assert_eq!(fast["stages"]["sft"]["plans"], 1);
    assert!(slow["stages"]["sft"]["plans"].as_u64() > Some(1));

    let compared = nanochat(base.path(), &["report", "compare", name(&dirs[0]), name(&dirs[1])]);
    assert!(compared.status.success(), "{}", text(&compared));
    for file in ["compare.md", "compare.html"] {
        let page = std::fs::read_to_string(dirs[1].join(file)).expect(file);
        assert!(page.contains("Base training tokens/sec") && !page.contains("NaN"), "{file}");
    }
    let log = dirs[1].join("log.txt");
    let read = last_object(&nanochat(base.path(), &["report", "from-log", name(&log)]));
    assert!(read["steps"].as_u64() == Some(30), "{read}");
}

/// A step whose 128 rows do not fit into what a limit leaves.
const WIDE: [&str; 14] = [
    "--max-seq-len",
    "512",
    "--total-batch-size",
    "65536",
    "--depth",
    "2",
    "--head-dim",
    "64",
    "--num-iterations",
    "1",
    "--eval-tokens",
    "512",
    "--warmup-steps",
    "0",
];

#[test]
#[cfg(target_os = "linux")]
fn a_limit_on_memory_is_respected() {
    let base = tempfile::tempdir().expect("a folder");
    let dir = base.path().join("run");
    let tokenizer = base.path().join("tokenizer");
    let learn = ["tokenizer", "train", "--vocab-size", "300", "--out", name(&tokenizer)];
    assert!(nanochat(base.path(), &learn).status.success());
    let under_limit = |more: &[&str]| {
        let train = ["train", "base", "--run", name(&dir), "--tokenizer", name(&tokenizer)];
        Command::new("sh")
            .args(["-c", "ulimit -v 700000 && exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_nanochat"))
            .args(train)
            .args(WIDE)
            .args(more)
            .args(["--threads", "2"])
            .env("NANOCHAT_BASE_DIR", base.path())
            .output()
            .expect("a shell")
    };
    let refused = under_limit(&["--device-batch-size", "128"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("ulimit -v lets this process have"), "{}", text(&refused));
    let trained = under_limit(&[]);
    assert!(trained.status.success(), "{}", text(&trained));
    assert!(text(&trained).contains("auto-batch-size {\"batch_size\":"), "{}", text(&trained));
}
