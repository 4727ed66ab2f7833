//! Evaluations through the program: files in, scores, items, a report and a comparison out.

use std::path::Path;
use std::process::{Command, Output};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_gpt::checkpoint::{self, Meta};
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use serde_json::Value;

fn nanochat(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(args)
        .args(["--threads", "2", "--dtype", "f32"])
        .current_dir(home)
        .env("NANOCHAT_BASE_DIR", home)
        .env("NANOCHAT_DATA_DIR", home.join("data"))
        .output()
        .expect("the program starts")
}

fn ok(home: &Path, args: &[&str]) -> String {
    let output = nanochat(home, args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refused(home: &Path, args: &[&str]) -> String {
    let output = nanochat(home, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn last_json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("a line")).expect("a JSON object")
}

/// A run with random weights and checkpoints of two stages: `run`.
fn toy_run(home: &Path) {
    let run = home.join("run");
    let tokenizer = Tokenizer::from_merges(DEFAULT_PATTERN, vec![]).expect("bytes");
    tokenizer.save(&run.join("tokenizer").join("tokenizer.json")).expect("a tokenizer");
    std::fs::write(run.join("run.json"), "{}").expect("run.json");
    std::fs::write(
        run.join("metrics.jsonl"),
        "{\"kind\":\"step\",\"stage\":\"base\",\"step\":9,\"loss\":3.5}\n",
    )
    .expect("metrics");
    let model_config = GptConfig::new(RawConfig {
        sequence_len: 64,
        vocab_size: tokenizer.vocab_size(),
        n_layer: 2,
        n_head: 2,
        n_kv_head: 2,
        n_embd: 32,
        window_pattern: "L".into(),
        ..RawConfig::default()
    })
    .expect("sizes that fit");
    let be = Cpu::open(1, Precision::F32);
    for (stage, seed) in [("base", 1), ("sft", 2)] {
        let model = Nano::zeros(&be, model_config.clone()).expect("a model");
        model.init(seed).expect("weights");
        let meta = Meta {
            format: checkpoint::FORMAT,
            step: 10,
            stage: stage.into(),
            model_config: model_config.clone(),
            tokenizer: tokenizer.fingerprint(),
            val_bpb: None,
            trainer: Value::Null,
        };
        checkpoint::save(&run.join(stage), &model, &meta, Vec::new()).expect("a checkpoint");
    }
}

/// Two CORE tasks, one whose file is missing, and ARC-Easy.
fn data(home: &Path) {
    let dir = home.join("data/eval/core");
    std::fs::create_dir_all(&dir).expect("folders");
    std::fs::create_dir_all(home.join("data/eval/arc")).expect("folders");
    let table = "label\tfile\ticl_task_type\tnum_fewshot\tcontinuation_delimiter\trandom_baseline_percent\n\
        copa\tcopa.jsonl\tmultiple_choice\t3\t\" \"\t50\n\
        lambada\tlambada.jsonl\tlanguage_modeling\t0\t\" \"\t0\n\
        coqa\tcoqa.jsonl\tlanguage_modeling\t0\t\" \"\t0\n";
    std::fs::write(dir.join("core_tasks.tsv"), table).expect("a table");
    let words = ["river", "stone", "cloud", "meadow", "lantern", "harbour", "orchard", "saddle"];
    let (mut copa, mut lambada, mut arc) = (String::new(), String::new(), String::new());
    for (i, word) in words.iter().enumerate() {
        let other = words[(i + 3) % words.len()];
        copa += &format!(
            "{{\"query\":\"I saw a {word}, so\",\"choices\":[\"the {other} it was\",\"on I went\"],\"gold\":{}}}\n",
            i % 2
        );
        lambada +=
            &format!("{{\"context\":\"the {word} and the\",\"continuation\":\"{other}\"}}\n");
        arc += &format!(
            "{{\"question\":\"{word}?\",\"choices\":[\"{other}\",\"{word}\"],\"answer\":1}}\n"
        );
    }
    std::fs::write(dir.join("copa.jsonl"), copa).expect("copa");
    std::fs::write(dir.join("lambada.jsonl"), lambada).expect("lambada");
    std::fs::write(home.join("data/eval/arc/easy_test.jsonl"), arc).expect("arc");
}

#[test]
fn core_is_scored_item_by_item_and_sharing_changes_no_answer() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    toy_run(home);
    data(home);
    let said = ok(home, &["eval", "core", "--model", "run", "-i", "base"]);
    assert!(said.contains("coqa is left out") && said.contains("over 2 of its 22 tasks"), "{said}");
    let told = last_json(&said);
    assert_eq!((&told["n"]["copa"], &told["n"]["lambada"]), (&8.into(), &8.into()));
    assert!(told["scores"]["copa"].is_f64() && told["seconds"].as_f64() > Some(0.0), "{told}");
    assert_eq!(told["missing"][0], "coqa");
    let items = std::fs::read_to_string(home.join("run/evals/base/core.jsonl")).expect("items");
    assert_eq!(items.lines().count(), 16);
    let first: Value = serde_json::from_str(items.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        (first["shots"].as_array().map(Vec::len), first["losses"].as_array().map(Vec::len)),
        (Some(3), Some(2))
    );

    let flags =
        ["eval", "core", "--model", "run", "-i", "base", "--no-share", "--out", "whole.jsonl"];
    let whole = last_json(&ok(home, &flags));
    assert_eq!((&whole["scores"], &whole["core"]), (&told["scores"], &told["core"]));
    let same = last_json(&ok(home, &["eval", "compare", "whole.jsonl", "run/evals/base"]));
    for difference in same["differences"].as_array().expect("a list") {
        assert_eq!((&difference["difference"], &difference["only"][0]), (&0.0.into(), &0.into()));
    }
    let some = ["eval", "core", "--model", "run", "--tasks", "lambada", "--max-per-task", "3"];
    let some = last_json(&ok(home, &some));
    assert_eq!(
        (&some["n"]["lambada"], some["n"].as_object().map(|n| n.len())),
        (&3.into(), Some(1))
    );
    let why = refused(home, &["eval", "core", "--model", "run", "--tasks", "coqa"]);
    assert!(why.contains("coqa.jsonl does not exist"), "{why}");
    let why = refused(home, &["eval", "core", "--model", "run", "--tasks", "copal"]);
    assert!(why.contains("choose of copa, lambada, coqa"), "{why}");
    let why = refused(home, &["eval", "core", "--model", "run", "--data-dir", "run"]);
    assert!(why.contains("eval_bundle.zip") && why.contains("NANOCHAT_DATA_DIR"), "{why}");
}

#[test]
fn chat_tasks_and_ones_own_are_reported_beside_core() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    toy_run(home);
    data(home);
    ok(home, &["eval", "core", "--model", "run", "-i", "base", "--tasks", "copa"]);
    let said = ok(home, &["eval", "chat", "--model", "run", "-x", "4"]);
    assert!(said.contains("MMLU is left out") && said.contains("no ChatCORE"), "{said}");
    let told = last_json(&said);
    assert_eq!((&told["n"]["ARC-Easy"], &told["chatcore"]), (&4.into(), &Value::Null));

    let mine = "{\"question\":\"6 times 7?\",\"answer\":42}\n{\"question\":\"A?\",\"choices\":[\"x\",\"y\"],\"answer\":\"A\"}\n";
    std::fs::write(home.join("mine.jsonl"), mine).expect("questions");
    let flags = ["--task-file", "mine.jsonl", "-n", "3", "-t", "1.0", "-m", "8"];
    let told = last_json(&ok(home, &[&["eval", "chat", "--model", "run"], &flags[..]].concat()));
    assert_eq!(
        (&told["n"]["mine"], told["pass_at"]["mine"].as_array().map(Vec::len)),
        (&2.into(), Some(3))
    );
    let items = std::fs::read_to_string(home.join("run/evals/sft/chat.jsonl")).expect("items");
    assert!(
        items.lines().any(|l| l.contains("\"answers\":[") && l.contains("6 times 7?")),
        "{items}"
    );

    ok(home, &["report", "build", "--run", "run"]);
    let page = std::fs::read_to_string(home.join("run/report.md")).expect("a report");
    assert!(page.contains("| task | BASE | SFT | items |") && page.contains("| CORE |"), "{page}");
    assert!(!page.contains("unreadable"), "{page}");
    // What training wrote is still there.
    let metrics = std::fs::read_to_string(home.join("run/metrics.jsonl")).expect("metrics");
    assert_eq!((metrics.lines().count(), metrics.matches("\"kind\":\"step\"").count()), (4, 1));

    let nothing = refused(home, &["eval", "compare", "run/evals/base", "run/evals/sft"]);
    assert!(nothing.contains("no item in common"), "{nothing}");
    let why = refused(home, &["eval", "chat", "--model", "run", "-a", "GSM8K"]);
    assert!(why.contains("gsm8k/test.jsonl"), "{why}");
    let why = refused(home, &["eval", "chat", "--model", "run", "-a", "GSM9K"]);
    assert!(why.contains("SpellingBee"), "{why}");
    let program = "{\"prompt\":\"def f():\",\"test\":\"t\",\"entry_point\":\"f\"}\n";
    std::fs::write(home.join("code.jsonl"), program).expect("a program");
    // Graded in the sandbox where this machine has one; else refused, and nothing weaker is tried.
    let graded =
        nanochat(home, &["eval", "chat", "--model", "run", "--task-file", "code.jsonl", "-m", "4"]);
    let (said, why) =
        (String::from_utf8_lossy(&graded.stdout), String::from_utf8_lossy(&graded.stderr));
    if graded.status.success() {
        assert_eq!(last_json(&said)["scores"]["code"], 0.0, "{said}");
    } else {
        assert!(why.contains("in a sandbox alone"), "{why}");
    }
}
