//! A checkpoint that a program of format 1 wrote must load and go on for ever after.
//!
//! `fixtures/checkpoint-1/` was written by [`make`] below, with `NANOCHAT_GOLDEN=FOLDER cargo test -p
//! nanochat-train --test golden`, and is never written again: a new format gets a folder beside it.

mod tiny;

use std::path::{Path, PathBuf};

use nanochat_compute::reference::Reference;
use nanochat_data::{Batches, Loader, LoaderConfig, Prefetch};
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig, checkpoint};
use nanochat_tokenizer::Tokenizer;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::resume::{self, Identity, Progress};
use nanochat_train::schedule::Rates;
use nanochat_train::step::Trainer;
use serde_json::{Value, json};

/// One layer of width 8 on rows of 8: 80 kB with its moments.
fn config() -> GptConfig {
    let raw = RawConfig {
        sequence_len: 8,
        vocab_size: 265,
        n_layer: 1,
        n_head: 1,
        n_kv_head: 1,
        n_embd: 8,
        generation: Generation::G2,
        ..RawConfig::default()
    };
    GptConfig::new(raw).expect("sizes that fit")
}

fn loader() -> Prefetch<Loader<Tokenizer>> {
    let config = LoaderConfig { buffer: 20, refill: 8, ..LoaderConfig::new(2, 8) };
    let loader = Loader::new(&tiny::dataset(0), tiny::tokenizer(), config);
    Prefetch::new(loader.expect("a set with documents"), 2)
}

fn identity() -> Identity {
    let settings = json!({ "steps": 9, "rates": [0.1, 1e-7, 0.3], "name": "golden" });
    Identity { stage: "base", tokenizer: Tokenizer::fingerprint(&tiny::tokenizer()), settings }
}

fn rates() -> Rates {
    Rates { lr_multiplier: 0.5, muon_momentum: 0.9, muon_weight_decay: 0.1 }
}

fn trainer(model: &Nano) -> Trainer<'_> {
    let optim = Optimizer::new(&Reference, model, LearningRates::default()).expect("a small state");
    Trainer::new(&Reference, model, optim, 2, 8).expect("a small arena")
}

/// Two steps, a checkpoint, and what the third step sees and reaches.
fn make(dir: &Path) -> Value {
    let model = Nano::zeros(&Reference, config()).expect("a small model");
    model.init(7).expect("f32");
    let (mut trainer, mut batches) = (trainer(&model), loader());
    // Far enough that the state holds a position, a packing buffer, and batches since.
    (0..300).for_each(|_| drop(batches.next_batch().expect("a batch")));
    let mut progress = Progress { val_bpb: Some(1.25), ..Progress::default() };
    for step in 0..2 {
        let report = trainer.step(step, &mut batches, 2, &rates()).expect("a step");
        progress.smooth.push(report.loss);
        progress.totals.push(&report);
        progress.guard.good(step, report.loss);
        progress.step += 1;
    }
    resume::save(dir, &identity(), &trainer, &batches, &progress).expect("a writable folder");
    third_step(&mut trainer, &mut batches, &progress)
}

fn third_step(trainer: &mut Trainer<'_>, batches: &mut dyn Batches, progress: &Progress) -> Value {
    let report = trainer.step(2, batches, 2, &rates()).expect("a step");
    let next = batches.next_batch().expect("a batch");
    json!({
        "loss": report.loss, "grad_norm": report.grad_norm, "next_x": next.x, "step": progress.step,
        "tokens": progress.totals.tokens, "ema": progress.smooth.ema, "t": trainer.optim.t(),
    })
}

fn close(have: &Value, want: &Value, key: &str) {
    let number = |v: &Value| v[key].as_f64().expect("a number");
    // Reference kernels in f32 on any machine: its exp and sqrt may round otherwise.
    let far = (number(have) / number(want) - 1.0).abs();
    assert!(far < 1e-5, "{key}: {} should be {}", have[key], want[key]);
}

fn goes_on(step: &Path) -> Value {
    checkpoint::verify(step).expect("a valid step");
    let (model, _) = checkpoint::load(&Reference, step).expect("a model");
    let (mut trainer, mut batches) = (trainer(&model), loader());
    let restored = resume::restore(step, &identity(), &mut trainer, &mut batches, false);
    let restored = restored.expect("its own run");
    assert_eq!(restored.progress.val_bpb, Some(1.25));
    third_step(&mut trainer, &mut batches, &restored.progress)
}

#[test]
fn the_golden_checkpoint_goes_on_as_on_the_day_it_was_written() {
    let golden = tiny::fixture("checkpoint-1");
    let text =
        std::fs::read(golden.join("expected.json")).expect("the fixture is in the repository");
    let want: Value = serde_json::from_slice(&text).expect("JSON");
    let have = goes_on(&golden.join("step-000002"));
    for key in ["next_x", "step", "tokens", "t"] {
        assert_eq!(have[key], want[key], "{key}");
    }
    ["loss", "grad_norm", "ema"].iter().for_each(|key| close(&have, &want, key));
}

#[test]
fn a_checkpoint_of_today_goes_on_as_if_it_had_not_been_left() {
    let temporary = tempfile::tempdir().expect("a writable folder");
    // Kept only by whoever makes the fixture of a new format.
    let kept = std::env::var_os("NANOCHAT_GOLDEN").map(PathBuf::from);
    let dir = kept.as_deref().unwrap_or(temporary.path());
    let expected = make(dir);
    if kept.is_some() {
        let text = serde_json::to_string_pretty(&expected).expect("plain");
        std::fs::write(dir.join("expected.json"), text + "\n").expect("a writable folder");
    }
    assert_eq!(goes_on(&dir.join("step-000002")), expected);
}
