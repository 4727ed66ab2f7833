//! Reinforcement through the program: a finetuned run goes on with its own answers, and resumes.

use std::path::Path;
use std::process::{Command, Output};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_gpt::checkpoint::{self, Meta};
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use serde_json::Value;

/// Small sizes.
const SIZES: &str = "--examples-per-step 2 --num-samples 3 --device-batch-size 2 --max-new-tokens 4 \
                     --eval-every 2 --eval-examples 2 --save-every 1";

fn nanochat(home: &Path, flags: &[&str]) -> Output {
    let words = flags.iter().flat_map(|f| f.split_whitespace());
    Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(["train", "rl", "--run", "run", "--threads", "2"])
        .args(words)
        .current_dir(home)
        .env("NANOCHAT_BASE_DIR", home)
        .env_remove("NANOCHAT_DATA_DIR")
        .output()
        .expect("the program starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A run with random weights that calls itself finetuned.
fn toy_run(home: &Path) {
    let run = home.join("run");
    let tokenizer = Tokenizer::from_merges(DEFAULT_PATTERN, vec![]).expect("bytes");
    tokenizer.save(&run.join("tokenizer").join("tokenizer.json")).expect("a tokenizer");
    std::fs::write(run.join("run.json"), "{}").expect("run.json");
    let raw = RawConfig {
        sequence_len: 192,
        vocab_size: tokenizer.vocab_size(),
        n_layer: 1,
        n_head: 2,
        n_kv_head: 2,
        n_embd: 32,
        window_pattern: "L".into(),
        ..RawConfig::default()
    };
    let model_config = GptConfig::new(raw).expect("sizes that fit");
    let model = Nano::zeros(&Cpu::open(1, Precision::F32), model_config.clone()).expect("a model");
    model.init(1).expect("weights");
    let meta = Meta {
        format: checkpoint::FORMAT,
        step: 10,
        stage: "sft".into(),
        model_config,
        tokenizer: tokenizer.fingerprint(),
        val_bpb: None,
        trainer: Value::Null,
    };
    checkpoint::save(&run.join("sft"), &model, &meta, Vec::new()).expect("a checkpoint");
}

#[test]
fn a_finetuned_run_learns_from_its_answers_and_resumes() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    toy_run(home);
    let first = nanochat(home, &[SIZES, "--num-iterations 2"]);
    assert!(first.status.success(), "{}", said(&first));
    for part in ["step 2 | loss ", "| Average reward: ", "Pass@8: ", "Total training time: "] {
        assert!(said(&first).contains(part), "{part}: {}", said(&first));
    }
    assert!(home.join("run/rl/step-000002/model.safetensors").exists());
    let summary = std::fs::read_to_string(home.join("run/summary.json")).expect("a summary");
    assert!(summary.contains("\"rl\""), "{summary}");

    // The newest stage is what one talks to, without a word about the others.
    let chat = Command::new(env!("CARGO_BIN_EXE_nanochat"))
        .args(["chat", "--run", "run", "-p", "hi", "--max-tokens", "2", "--threads", "2"])
        .current_dir(home)
        .env("NANOCHAT_BASE_DIR", home)
        .output()
        .expect("the program starts");
    assert!(chat.status.success() && !said(&chat).contains("warning"), "{}", said(&chat));

    let again = nanochat(home, &[SIZES, "--num-iterations 2"]);
    assert!(!again.status.success() && said(&again).contains("--resume"), "{}", said(&again));
    std::fs::remove_dir_all(home.join("run/rl/step-000002")).expect("a step");
    let resumed = nanochat(home, &[SIZES, "--num-iterations 2 --resume"]);
    assert!(
        resumed.status.success() && said(&resumed).contains("resuming from"),
        "{}",
        said(&resumed)
    );
    let other = nanochat(home, &[SIZES, "--num-iterations 2 --resume --temperature 0.5"]);
    assert!(!other.status.success() && said(&other).contains("temperature"), "{}", said(&other));

    let own = "{\"question\":\"Say yes.\",\"answer\":\"yes\"}\n{\"question\":\"6 times 7?\",\"answer\":42}\n";
    std::fs::write(home.join("own.jsonl"), own).expect("questions");
    std::fs::remove_dir_all(home.join("run/rl")).expect("a stage");
    let flags = [SIZES, "--num-iterations 1 --task-file own.jsonl"];
    let learned = nanochat(home, &flags);
    assert!(learned.status.success() && said(&learned).contains("own:2"), "{}", said(&learned));
    std::fs::remove_dir_all(home.join("run/rl")).expect("a stage");
    let mental = nanochat(home, &[SIZES, "--num-iterations 1 --task mental"]);
    assert!(mental.status.success() && said(&mental).contains("mental:"), "{}", said(&mental));

    for (flags, why) in [
        ("--task-file none.jsonl", "none.jsonl"),
        ("--num-samples 1", "nothing is learned"),
        ("--examples-per-step 0", "at least 1"),
        ("--task gsm8k", "gsm8k/train.jsonl"),
    ] {
        let refused = nanochat(home, &[flags]);
        assert!(
            !refused.status.success() && said(&refused).contains(why),
            "{flags}: {}",
            said(&refused)
        );
    }
}
