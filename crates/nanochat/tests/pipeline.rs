//! The whole pipeline through the program: text to tokenizer to model to chat, in seconds.

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

fn json(run: &Path, name: &str) -> Value {
    let text = std::fs::read_to_string(run.join(name)).expect(name);
    serde_json::from_str(&text).expect(name)
}

fn last_line(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(out.lines().last().expect("a line")).expect("a JSON object")
}

#[test]
fn a_tiny_speedrun_trains_talks_and_reports() {
    let base = tempfile::tempdir().expect("a folder");
    let run = base.path().join("run");
    let dir = run.to_str().expect("a name in UTF-8");
    let tiny = ["speedrun", "--preset", "tiny", "--run", dir];

    let first = nanochat(base.path(), &tiny);
    assert!(first.status.success(), "{}", text(&first));
    let said = text(&first);
    assert!(said.contains("Total wall clock time: 0h "), "{said}");
    assert!(said.contains("step 20 | loss "), "{said}");
    assert!(said.contains("| tokens/sec: "), "{said}");
    for file in ["report.md", "report.html", "run.json", "metrics.jsonl", "log.txt"] {
        assert!(run.join(file).metadata().expect(file).len() > 0, "{file} is empty");
    }
    let summary = json(&run, "summary.json");
    for key in ["wall_s", "peak_rss_bytes", "stages", "val_bpb", "scores", "machine", "command"] {
        assert!(!summary[key].is_null(), "summary.json lacks {key}: {summary}");
    }
    assert!(summary["scores"]["arithmetic"].is_number());
    let rows = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let steps = rows.lines().filter(|l| l.contains("\"kind\":\"step\"")).count();
    assert_eq!(steps, 30, "20 steps of pretraining and 10 of finetuning");

    // The same directory again is refused, and nothing in it changes.
    let again = nanochat(base.path(), &tiny);
    assert!(!again.status.success());
    assert!(text(&again).contains("--resume"), "{}", text(&again));
    assert_eq!(json(&run, "summary.json"), summary);

    // Other settings do not go on with this run.
    let other =
        nanochat(base.path(), &[&tiny[..], &["--resume", "--num-iterations", "21"]].concat());
    assert!(!other.status.success());
    assert!(text(&other).contains("other settings"), "{}", text(&other));

    let answer = nanochat(base.path(), &["chat", "--run", dir, "-p", "Hello", "-t", "0"]);
    assert!(answer.status.success(), "{}", text(&answer));

    let ids = base.path().join("ids.json");
    std::fs::write(&ids, "[[1,2,3,4],[5,6]]").expect("ids");
    let ids = ids.to_str().expect("a name in UTF-8");
    let tokens = nanochat(base.path(), &["eval", "tokens", "--model", dir, "--ids", ids]);
    let tokens = last_line(&tokens);
    assert_eq!(tokens["losses"][0].as_array().map(Vec::len), Some(3));
    assert_eq!(tokens["argmax"][1].as_array().map(Vec::len), Some(1));

    let bpb = nanochat(base.path(), &["eval", "bpb", "--model", dir, "--split-tokens", "1024"]);
    assert!(last_line(&bpb)["scores"]["bpb"].as_f64().expect("a number") > 0.0);
}

#[test]
fn a_tiny_speedrun_learns_from_reward_and_asks_after_every_stage() {
    let base = tempfile::tempdir().expect("a folder");
    let run = base.path().join("run");
    let dir = run.to_str().expect("a name in UTF-8");
    let done = nanochat(base.path(), &["speedrun", "--preset", "tiny", "--rl", "--run", dir]);
    assert!(done.status.success(), "{}", text(&done));
    assert!(text(&done).contains("| Average reward: "), "{}", text(&done));
    for stage in ["base", "sft", "rl"] {
        let items = std::fs::read_to_string(run.join("evals").join(stage).join("held_out.jsonl"));
        // Seven kinds, four of each.
        assert_eq!(items.expect("graded items").lines().count(), 28, "{stage}");
    }
    let summary = json(&run, "summary.json");
    assert!(summary["scores"]["mental_arithmetic"].is_number(), "{summary}");
    assert!(summary["stages"]["rl"]["seconds"].as_f64() > Some(0.0), "{summary}");
    let report = std::fs::read_to_string(run.join("report.md")).expect("a report");
    assert!(report.contains("| task | BASE | SFT | RL | items |"), "{report}");
    assert!(report.contains("| multiple choice |") && report.contains("pass@1 from"), "{report}");
    let page = std::fs::read_to_string(run.join("report.html")).expect("a report");
    for said in ["Reinforcement", "The same questions after each stage", "Answers at step 2"] {
        assert!(page.contains(said), "no {said:?} in the page");
    }

    // A stage that is lost is made again, and the run ends the same.
    let weights = |file: &str| std::fs::read(run.join(file)).expect("weights");
    let before = weights("rl/step-000002/model.safetensors");
    std::fs::remove_dir_all(run.join("rl")).expect("a stage");
    let flags = ["speedrun", "--preset", "tiny", "--rl", "--run", dir, "--resume"];
    let again = nanochat(base.path(), &flags);
    assert!(again.status.success(), "{}", text(&again));
    assert!(weights("rl/step-000002/model.safetensors") == before, "other weights");
}

#[test]
fn an_interrupted_speedrun_resumes_to_the_same_model() {
    let base = tempfile::tempdir().expect("a folder");
    let (whole, cut) = (base.path().join("whole"), base.path().join("cut"));
    let name = |p: &Path| p.to_str().expect("a name in UTF-8").to_owned();
    let run = |dir: &Path, more: &[&str]| {
        let dir = name(dir);
        let args = [&["speedrun", "--preset", "tiny", "--run", &dir], more].concat();
        nanochat(base.path(), &args)
    };
    assert!(run(&whole, &[]).status.success());
    // A run that lost its power after step 10 of pretraining: that checkpoint, and no later file.
    assert!(run(&cut, &[]).status.success());
    for later in ["sft", "base/step-000020", "summary.json", "scores.json", "samples.json"] {
        let path = cut.join(later);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).expect(later);
        } else {
            std::fs::remove_file(&path).expect(later);
        }
    }
    let resumed = run(&cut, &["--resume"]);
    assert!(resumed.status.success(), "{}", text(&resumed));
    assert!(text(&resumed).contains("resuming from"), "{}", text(&resumed));
    for file in ["model.safetensors", "optimizer.safetensors", "loader.bin"] {
        for step in ["base/step-000020", "sft/step-000010"] {
            let read = |run: &Path| std::fs::read(run.join(step).join(file)).expect(file);
            assert!(read(&whole) == read(&cut), "{step}/{file} differs after a resume");
        }
    }
}

#[test]
fn a_plan_is_printed_and_nothing_is_made() {
    let base = tempfile::tempdir().expect("a folder");
    let plan = nanochat(base.path(), &["speedrun", "--dry-run", "--depth", "2"]);
    assert!(plan.status.success(), "{}", text(&plan));
    let plan = last_line(&plan);
    for key in ["parameters", "state_bytes", "arena_bytes", "tokens", "flops", "eta_s"] {
        assert!(plan[key].as_f64().expect(key) > 0.0);
    }
    assert!(!base.path().join("runs").exists());
}

#[test]
fn bad_records_stop_finetuning_or_are_counted_and_stages_are_summed_up() {
    let base = tempfile::tempdir().expect("a folder");
    let path = |name: &str| base.path().join(name).to_str().expect("a name in UTF-8").to_owned();
    let run = path("run");
    let sizes = "--depth 1 --aspect-ratio 32 --head-dim 16 --max-seq-len 32 --num-iterations 2 \
                 --device-batch-size 2 --total-batch-size 64 --eval-tokens 64";
    let tokenizer = format!("tokenizer train --vocab-size 300 --out {run}/tokenizer");
    let pretrain = format!("train base --run {run} {sizes}");
    for line in [tokenizer, pretrain] {
        let done = nanochat(base.path(), &line.split_whitespace().collect::<Vec<_>>());
        assert!(done.status.success(), "{line}: {}", text(&done));
    }
    let good =
        r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}"#;
    let records: Vec<&str> = (0..60).map(|i| if i == 7 { r#"{"x":1}"# } else { good }).collect();
    std::fs::write(path("talks.jsonl"), records.join("\n")).expect("talks");
    let talks = path("talks.jsonl");
    let tune = ["train", "sft", "--run", &run, "--data", &talks, "--num-iterations", "1"];

    let stopped = nanochat(base.path(), &tune);
    assert!(!stopped.status.success());
    assert!(text(&stopped).contains("talks.jsonl"), "{}", text(&stopped));
    let skipped = nanochat(base.path(), &[&tune[..], &["--skip-bad"]].concat());
    assert!(skipped.status.success(), "{}", text(&skipped));
    assert!(text(&skipped).contains("skipped 1"), "{}", text(&skipped));

    let summary = json(Path::new(&run), "summary.json");
    for stage in ["base", "sft"] {
        assert!(summary["stages"][stage]["tokens_per_sec"].as_f64() > Some(0.0), "{summary}");
    }
    assert!(summary["val_bpb"].is_number() && summary["machine"]["cpu"].is_string(), "{summary}");
}
