//! The program as a person meets it: help, mistakes, and the small commands end to end.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_gpt::checkpoint::{self, Meta};
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use nanochat_tokenizer::Tokenizer;
use serde_json::Value;

/// Runs the program in `home`, which is also its base directory, with `input` on standard input.
fn nanochat(home: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(args)
        .current_dir(home)
        .env("NANOCHAT_BASE_DIR", home)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads nothing may be gone by now.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// What a run that must succeed writes to standard output.
fn ok(home: &Path, args: &[&str]) -> String {
    fed(home, args, b"")
}

fn fed(home: &Path, args: &[&str], input: &[u8]) -> String {
    let output = nanochat(home, args, input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// The error line of a run that must fail, with exit code 1.
fn refused(home: &Path, args: &[&str]) -> String {
    let output = nanochat(home, args, b"");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {errors}");
    let lines: Vec<_> = errors.lines().filter(|l| !l.starts_with("warning: ")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: {errors}");
    assert!(lines[0].starts_with("error: "), "{errors}");
    lines[0].to_owned()
}

fn last_json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Learns a tokenizer of 300 ids into `home/tokenizer`.
fn train_tokenizer(home: &Path) -> Value {
    let flags = ["tokenizer", "train", "--starter-documents", "60", "--vocab-size", "300"];
    last_json(&ok(home, &[&flags[..], &["--json"]].concat()))
}

/// A run with random weights that anybody can open: `home/runs/toy`.
fn toy_run(home: &Path) {
    train_tokenizer(home);
    let run = home.join("runs").join("toy");
    let tokenizer = Tokenizer::load(&home.join("tokenizer")).unwrap();
    tokenizer.save(&run.join("tokenizer").join("tokenizer.json")).unwrap();
    std::fs::write(run.join("run.json"), "{}").unwrap();
    let model_config = GptConfig::new(RawConfig {
        sequence_len: 64,
        vocab_size: 300,
        n_layer: 2,
        n_head: 2,
        n_kv_head: 2,
        n_embd: 32,
        window_pattern: "L".into(),
        ..RawConfig::default()
    })
    .unwrap();
    let be = Cpu::open(1, Precision::F32);
    let model = Nano::zeros(&be, model_config.clone()).unwrap();
    model.init(42).unwrap();
    for step in [10, 20] {
        let meta = Meta {
            format: checkpoint::FORMAT,
            step,
            stage: "base".into(),
            model_config: model_config.clone(),
            tokenizer: tokenizer.fingerprint(),
            val_bpb: None,
            trainer: Value::Null,
        };
        checkpoint::save(&run.join("base"), &model, &meta, Vec::new()).unwrap();
    }
}

#[test]
fn a_doctor_says_what_is_there_and_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let said = ok(home.path(), &["doctor", "--json", "--device", "cpu"]);
    for library in ["CUDA driver", "NVRTC", "cuBLASLt"] {
        assert!(said.contains(library), "{library} is named: {said}");
    }
    let figures: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!(figures["backend"].as_str().unwrap().starts_with("cpu "), "{figures}");
    assert_eq!(figures["libraries"].as_array().unwrap().len(), 3);
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
    if nanochat_compute::cuda::gpus().is_ok_and(|gpus| !gpus.is_empty()) {
        println!("skipped: there is a GPU");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    for args in [["speedrun", "--dry-run", "--device=cuda"], ["verify", "--device", "cuda"]] {
        let output = nanochat(home.path(), &args, b"");
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(!output.status.success() && said.contains("install NVIDIA's driver"), "{said}");
    }
    for bench in ["ops", "sft", "quick"] {
        let output = nanochat(home.path(), &["bench", bench, "--device", "cuda"], b"");
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("is for the CPU"), "{said}");
    }
    let output = nanochat(home.path(), &["bench", "gpu"], b"");
    assert!(text(&output.stderr).contains("nanochat doctor"), "{}", text(&output.stderr));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let home = tempfile::tempdir().unwrap();
    for command in [
        "chat",
        "import",
        "tokenizer train",
        "tokenizer eval",
        "tokenizer encode",
        "tokenizer decode",
        "tokenizer export",
        "data list",
        "data download",
        "data stats",
        "data verify",
        "data starter",
        "checkpoint ls",
        "checkpoint verify",
        "checkpoint prune",
        "report compare",
        "report from-log",
    ] {
        let mut args: Vec<_> = command.split(' ').collect();
        args.push("--help");
        let help = ok(home.path(), &args);
        assert!(
            help.contains("Example") && help.contains(&format!("  nanochat {command}")),
            "{help}"
        );
    }
    for command in ["speedrun", "train", "eval", "bench", "report"] {
        assert!(ok(home.path(), &[command, "--help"]).contains("Usage: nanochat"));
    }
    assert!(ok(home.path(), &["--version"]).starts_with("nanochat "));
}

#[test]
fn a_mistyped_flag_or_command_is_recognised() {
    let home = tempfile::tempdir().unwrap();
    for (args, meant) in [
        (&["chat", "--temprature", "1"][..], "--temperature"),
        (&["tokenizer", "trian"], "train"),
        (&["data", "dowload"], "download"),
    ] {
        let output = nanochat(home.path(), args, b"");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
        assert!(errors.contains(meant) && errors.contains("tip:"), "{errors}");
    }
}

#[test]
fn what_is_not_there_is_named_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    std::fs::create_dir(home.join("empty")).unwrap();
    std::fs::write(home.join("bad.json"), "{").unwrap();
    for (args, names) in [
        (&["tokenizer", "encode", "x"][..], &["no tokenizer", "nanochat tokenizer train"][..]),
        (&["tokenizer", "encode", "--tokenizer", "gone", "x"], &["gone"]),
        (&["tokenizer", "encode", "--tokenizer", "bad.json", "x"], &["bad.json", "train it again"]),
        (&["tokenizer", "train", "--data", "gone.txt"], &["gone.txt"]),
        (&["tokenizer", "train", "--data", "empty"], &["no shards in empty", ".jsonl"]),
        (&["tokenizer", "train", "--vocab-size", "9"], &["9 is outside"]),
        (&["tokenizer", "train", "--pattern", "("], &["--pattern"]),
        (&["data", "stats", "gone.parquet"], &["gone.parquet"]),
        (&["data", "stats", "bad.json"], &["bad.json", ".jsonl"]),
        (&["data", "verify", "empty"], &["empty", "SHA256SUMS"]),
        (&["data", "download", "--preset", "books"], &["books", "climbmix"]),
        (&["data", "starter", "--out", "gone/a.jsonl"], &["gone/a.jsonl"]),
        (&["chat", "-p", "x"], &["nanochat speedrun"]),
        (&["chat", "--run", "gone", "-p", "x"], &["gone does not exist"]),
        (&["chat", "-t", "7", "-p", "x"], &["temperature is 7", "0 to 2"]),
        (&["checkpoint", "ls", "gone"], &["gone"]),
        (&["checkpoint", "verify", "empty"], &["no checkpoint in empty"]),
        (&["import", "gone", "--out", "run"], &["gone does not exist"]),
        (&["report", "compare", "gone", "empty"], &["gone does not exist"]),
        (&["report", "from-log", "gone.txt"], &["gone.txt"]),
        (&["import", "empty", "--out", "run"], &["empty", "safetensors"]),
    ] {
        let line = refused(home, args);
        assert!(names.iter().all(|n| line.contains(n)), "{args:?}: {line}");
    }
}

#[test]
fn a_tokenizer_is_learned_used_and_exported() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let learned = train_tokenizer(home);
    assert_eq!((&learned["vocab_size"], &learned["documents"]), (&300.into(), &60.into()));
    assert!(learned["bytes_per_token"].as_f64().unwrap() > 1.0);

    let text = "Hello, wörld! 1234\n\n<|bos|> stays text.";
    let ids = fed(home, &["tokenizer", "encode"], text.as_bytes());
    assert_eq!(fed(home, &["tokenizer", "decode"], ids.as_bytes()), text);
    assert_eq!(ok(home, &["tokenizer", "encode", text]), ids);
    let told = last_json(&ok(home, &["tokenizer", "encode", "--bos", "--json", "a b"]));
    assert_eq!(told["ids"][0], 291);
    assert!(refused(home, &["tokenizer", "decode", "1", "300"]).contains("token id 300"));

    let table = ok(home, &["tokenizer", "eval", "--against", "tokenizer", "--json"]);
    let texts = &last_json(&table)["texts"];
    assert_eq!(texts[0]["name"], "news");
    assert_eq!(texts[0]["tokens"], texts[0]["against_tokens"]);

    ok(home, &["tokenizer", "export", "--format", "tiktoken", "--out", "out/v.tiktoken"]);
    let ranks = std::fs::read_to_string(home.join("out/v.tiktoken")).unwrap();
    assert_eq!(ranks.lines().count(), 300 - 9);
    ok(home, &["tokenizer", "export", "--format", "huggingface", "--out", "out/t.json"]);
    let json = std::fs::read_to_string(home.join("out/t.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["model"]["type"], "BPE");
}

#[test]
fn the_starter_corpus_comes_out_and_goes_in() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let both = ["--documents", "30", "--conversations", "4", "--out", "s.jsonl"];
    ok(home, &[&["data", "starter"], &both[..]].concat());
    let talks = std::fs::read_to_string(home.join("s-conversations.jsonl")).unwrap();
    assert_eq!(talks.lines().count(), 4);
    assert!(talks.starts_with("{\"messages\":[{\"role\":\"user\""), "{talks}");
    let counted = last_json(&ok(home, &["data", "stats", "s.jsonl", "--json"]));
    assert_eq!((&counted["files"], &counted["documents"]), (&1.into(), &30.into()));
    let flags = ["tokenizer", "train", "--data", "s.jsonl", "--vocab-size", "270", "--out", "t"];
    ok(home, &flags);
    assert!(home.join("t/tokenizer.json").exists());
    let shown = ok(home, &["data", "starter", "--documents", "2"]);
    assert!(shown.lines().all(|l| l.starts_with("{\"text\":")), "{shown}");
    let other = ok(home, &["data", "starter", "--documents", "2", "--seed", "7"]);
    assert_ne!(shown, other);
}

#[test]
fn a_run_answers_once_or_line_by_line() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    toy_run(home);
    let once = ["chat", "-p", "hello", "-m", "8"];
    let output = nanochat(home, &once, b"");
    let speed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && speed.contains(" token"), "{speed}");
    let answer = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ok(home, &once), answer, "the seed decides");
    // What a question begins with is the user's matter.
    ok(home, &["chat", "-p", "-5 + 3 = ?", "-m", "2"]);
    ok(home, &["eval", "sample", "--prompt", "- a list", "-m", "2"]);
    let stage = ["--run", "runs/toy/base", "--step", "10"];
    assert_eq!(ok(home, &[&once[..], &stage].concat()), answer, "a stage's folder is enough");

    let lines = b"hello\n\n/topk 5\n/nonsense\nclear\nhello again\nquit\nnever said\n";
    let talk = fed(home, &["chat", "-m", "8", "--json"], lines);
    for part in
        ["You: hello\nnanochat: ", "top-k 5\n", "no /nonsense", "forgotten\nYou: hello again"]
    {
        assert!(talk.contains(part), "{part}: {talk}");
    }
    assert!(!talk.contains("never said") && !talk.contains('\u{1b}'), "{talk}");
    assert_eq!(last_json(&talk)["messages"][0]["content"], "hello again");

    let long = "word ".repeat(200);
    assert!(refused(home, &["chat", "-p", &long]).contains("shorten it"));
    assert!(refused(home, &["chat", "--step", "7", "-p", "x"]).contains("checkpoint ls"));
    // Another tokenizer of the same size: answers would be nonsense.
    let other = ["tokenizer", "train", "--starter-documents", "60", "--vocab-size", "300"];
    ok(home, &[&other[..], &["--seed", "1", "--out", "runs/toy/tokenizer"]].concat());
    assert!(refused(home, &once).contains("was trained with tokenizer"));
}

#[test]
fn every_operation_is_timed_beside_its_limit() {
    let base = tempfile::tempdir().expect("a temporary folder");
    let parts = ["--only", "products,attention,elementwise"];
    let flags = ["bench", "ops", "--quick", "--runs", "1", "--tokens", "512", "--dtype", "f32"];
    let found = last_json(&ok(base.path(), &[&flags[..], &parts].concat()));
    let ops = found["ops"].as_array().expect("a list");
    for name in ["linear_weight_grad", "attention_backward", "rope_norm", "adamw", "softcap"] {
        let op = ops.iter().find(|op| op["op"] == name).unwrap_or_else(|| panic!("no {name}"));
        assert!(op["share"].as_f64().is_some_and(|share| share > 0.0), "{op}");
    }
    assert!(found["summary_f32"]["linear"]["least"].as_f64().is_some_and(|x| x > 0.0));
    assert!(found["limits"]["bytes_per_sec"]["triad"].as_f64().is_some_and(|x| x > 0.0));
}

#[test]
fn the_way_to_the_first_word_is_measured_in_parts() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    toy_run(home);
    let found = last_json(&ok(home, &["bench", "start", "--model", "runs/toy", "--runs", "1"]));
    assert_eq!(found["mapped"], cfg!(unix));
    for key in ["ttft_ms", "hash_ms", "parameters"] {
        assert!(found[key].as_f64().is_some_and(|x| x > 0.0), "{key} of {found}");
    }
    for part in ["find", "tokenizer", "device", "check", "open", "pack", "first_token"] {
        assert!(found["parts_ms"][part].as_f64().is_some_and(|x| x >= 0.0), "{part} of {found}");
    }
    assert!(refused(home, &["bench", "start", "--model", "gone"]).contains("gone"));
    assert!(refused(home, &["bench", "start", "--runs", "0"]).contains("--runs"));
}

#[test]
fn weights_are_read_in_the_format_that_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    toy_run(home);
    let bpb = |weights: &str| {
        let flags =
            ["eval", "bpb", "--split-tokens", "2048", "--dtype", "f32", "--weights", weights];
        last_json(&ok(home, &flags))["scores"]["bpb"].as_f64().unwrap()
    };
    let exact = bpb("f32");
    assert_eq!(bpb("auto"), exact);
    for weights in ["bf16", "int8"] {
        let off = bpb(weights) - exact;
        assert!(off != 0.0 && off.abs() < 0.002, "{weights}: {off} bits a byte");
        for command in [&["chat", "-p", "hello", "-m", "4"][..], &["eval", "sample", "-m", "4"]] {
            ok(home, &[command, &["--weights", weights]].concat());
        }
        let once = ["eval", "sample", "-m", "9", "--weights", weights];
        let naive = ok(home, &[&once[..], &["--kv-cache", "off"]].concat());
        assert_eq!(ok(home, &once), naive, "the same without a cache");
        let items = ["eval", "held-out", "-x", "1", "--weights", weights];
        ok(home, &items);
    }
    for command in [&["chat", "-p", "x"][..], &["eval", "bpb"], &["bench", "infer"]] {
        let output = nanochat(home, &[command, &["--weights", "int4"]].concat(), b"");
        let why = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{why}");
        assert!(why.contains("int4") && why.contains("int8"), "{why}");
    }
}

#[test]
fn checkpoints_are_listed_verified_imported_and_pruned() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    toy_run(home);
    let listed = last_json(&ok(home, &["checkpoint", "ls", "runs/toy", "--json"]));
    assert_eq!(listed["checkpoints"][1]["step"], 20);
    ok(home, &["checkpoint", "verify", "runs/toy"]);

    let weights = "runs/toy/base/step-000020/model.safetensors";
    let told = ok(home, &["import", weights, "--out", "copy", "--tokenizer", "runs/toy"]);
    assert!(told.contains("wte                     : 10,240\n"), "{told}");
    assert!(
        refused(home, &["import", weights, "--out", "copy"])
            .contains("copy/base/step-000000 exists")
    );
    let asked = |run| ok(home, &["chat", "--run", run, "-p", "hello", "-m", "8"]);
    assert_eq!(asked("copy"), asked("runs/toy"));

    let meta = home.join("runs/toy/base/step-000010/meta.json");
    std::fs::write(&meta, "{}").unwrap();
    let output = nanochat(home, &["checkpoint", "verify", "runs/toy", "--json"], b"");
    assert_eq!(output.status.code(), Some(1));
    let verdict = last_json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(verdict["valid"], false);
    assert_eq!(verdict["checkpoints"][1]["valid"], true);
    ok(home, &["checkpoint", "prune", "runs/toy", "--keep", "1"]);
    assert!(!meta.exists() && home.join(weights).exists());
    std::fs::write(home.join(weights), "x").unwrap();
    assert!(
        refused(home, &["checkpoint", "prune", "runs/toy", "--keep", "1"])
            .contains("must be whole")
    );
    assert!(
        refused(home, &["chat", "--run", "runs/toy", "-p", "x"]).contains("no usable checkpoint")
    );
}

#[test]
fn an_imported_model_without_a_tokenizer_is_evaluated_by_its_run() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let hugging_face = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/gen1/hf");
    ok(home, &["import", hugging_face, "--out", "copy"]);
    std::fs::write(home.join("ids.json"), "[[1, 2, 3]]").unwrap();
    for model in ["copy", "copy/base", "copy/base/step-000000", hugging_face] {
        let told = ok(home, &["eval", "tokens", "--model", model, "--ids", "ids.json"]);
        assert!(told.contains("\"losses\":[["), "{model}: {told}");
    }
    // What needs words says what is missing.
    assert!(refused(home, &["chat", "--run", "copy", "-p", "hi"]).contains("tokenizer"));
}

#[test]
fn two_runs_and_a_log_fill_the_benchmarks_tables() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for (run, rate) in [("slow", 100), ("fast", 230)] {
        std::fs::create_dir(home.join(run)).unwrap();
        let summary = format!("{{\"decode_tokens_per_sec\":{rate}}}");
        std::fs::write(home.join(run).join("summary.json"), summary).unwrap();
    }
    let told = ok(home, &["report", "compare", "slow", "fast", "--json"]);
    let table = told.find("2.3x faster").unwrap();
    assert!(table < told.find("figure ").unwrap(), "every figure follows the table: {told}");
    assert!(home.join("fast/compare.html").exists() && !home.join("slow/compare.md").exists());
    assert_eq!(last_json(&told)["table"][4]["gain"]["verdict"], "better");
    ok(home, &["report", "compare", "slow", "fast", "--out", "a/b"]);
    let page = std::fs::read_to_string(home.join("a/b/compare.md")).unwrap();
    assert!(page.contains("| Final inference speed | 100 tokens/sec | 230 tokens/sec |"), "{page}");

    let log = "step 1 | loss 3.5 | tokens/sec: 125000\nTotal wall clock time: 1h 2m\n";
    std::fs::write(home.join("log.txt"), log).unwrap();
    let told = ok(home, &["report", "from-log", "log.txt"]);
    assert!(
        told.contains("| Metric | Value |\n|---|---|\n| Total training time | 1h 2m"),
        "{told}"
    );
    assert_eq!(last_json(&told)["base_tokens_per_sec"], 125_000.0);
}
