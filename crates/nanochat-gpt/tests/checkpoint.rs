//! Checkpoints come back bit for bit; a folder of them survives crashes and clearing out.

mod tiny;

use std::fs;

use nanochat_compute::reference::Reference;
use nanochat_gpt::checkpoint::{self, FORMAT, Keep, Meta};
use nanochat_gpt::{Error, Generation};
use serde_json::json;
use tiny::{Draws, GENERATIONS, dir, entries, meta, params, save, small};

#[test]
fn what_is_saved_comes_back_bit_for_bit() {
    let dir = dir();
    for generation in GENERATIONS {
        let model = small(generation);
        // Bits that a detour over decimal numbers or f64 could lose.
        let mut values = model.params().to_vec_f32().expect("f32");
        values[..5].copy_from_slice(&[-0.0, f32::MIN_POSITIVE / 8.0, f32::MAX, 0.1, -1e-30]);
        model.params().write_f32(&values).expect("as many");
        let at = save(dir.path(), &model, 3);
        assert_eq!(at, checkpoint::step_dir(dir.path(), 3));
        checkpoint::verify(&at).expect("a valid step");
        let (loaded, meta) = checkpoint::load(&Reference, &at).expect("a valid step");
        assert!(params(&loaded) == params(&model), "{generation:?}");
        assert_eq!(loaded.config(), model.config());
        assert_eq!((meta.format, meta.step, meta.stage.as_str()), (FORMAT, 3, "base"));
        assert_eq!(meta.val_bpb.map(f64::to_bits), Some(1.234_567_890_123_456_7f64.to_bits()));
        assert_eq!(meta.trainer, json!({"ema": 0.1, "note": "\u{1F600}"}));
        let extra = checkpoint::extra(&at, "optimizer.safetensors").expect("an extra");
        assert_eq!(extra, (0..=255).collect::<Vec<u8>>());
        assert!(checkpoint::extra(&at, "loader.bin").expect("an extra").is_empty());
    }
}

#[test]
fn numbers_of_the_trainer_come_back_bit_for_bit() {
    let dir = dir();
    let model = small(Generation::G1);
    let mut draws = Draws(99);
    let mut draw = || f64::from(draws.next()) * f64::from(draws.next()).exp2() / 3.0;
    let numbers: Vec<f64> = (0..5000).map(|_| draw()).collect();
    let mut meta = meta(&model, 1);
    meta.trainer = json!(numbers);
    for &number in &numbers[..200] {
        meta.val_bpb = Some(number);
        let text = serde_json::to_vec(&meta).expect("plain");
        let again: Meta = serde_json::from_slice(&text).expect("its own text");
        assert_eq!(again.val_bpb.map(f64::to_bits), Some(number.to_bits()), "{number}");
    }
    let at = checkpoint::save(dir.path(), &model, &meta, vec![]).expect("a writable folder");
    let again = checkpoint::meta(&at).expect("a valid step").trainer;
    let again: Vec<f64> = serde_json::from_value(again).expect("numbers");
    let off = again.iter().zip(&numbers).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(off, 0, "of {}", numbers.len());
}

#[test]
fn the_latest_falls_back_and_says_what_it_refused() {
    let dir = dir();
    let model = small(Generation::G1);
    for step in [5, 10, 9, 1_000_000] {
        save(dir.path(), &model, step);
    }
    let step = |n| checkpoint::step_dir(dir.path(), n);
    let latest = || checkpoint::latest(dir.path());
    let (path, none) = latest().expect("four valid steps");
    assert_eq!((path, none.len()), (step(1_000_000), 0), "numbers are compared, not names");
    fs::write(step(1_000_000).join("meta.json"), "{}").expect("a writable folder");
    fs::remove_file(step(10).join("manifest.json")).expect("a file");
    let (path, refused) = latest().expect("two valid steps");
    assert_eq!(path, step(9));
    let refused: Vec<String> = refused.iter().map(Error::to_string).collect();
    assert_eq!(refused.len(), 2);
    assert!(refused[0].contains("step-1000000") && refused[0].contains("meta.json"));
    assert!(refused[1].contains("step-000010") && refused[1].contains("manifest.json"));
    // A step can be asked for by its own folder.
    assert_eq!(checkpoint::latest(&step(5)).expect("a valid step").0, step(5));
    assert!(checkpoint::latest(&step(1_000_000)).is_err());
    for n in [5, 9] {
        fs::write(step(n).join("model.safetensors"), "").expect("a writable folder");
    }
    let message = latest().expect_err("no valid step").to_string();
    assert!(message.contains("no usable checkpoint; refused"), "{message}");
    assert!(["000005", "000009", "000010"].iter().all(|n| message.contains(n)), "{message}");
}

#[test]
fn a_folder_without_steps_has_no_checkpoint() {
    let dir = dir();
    fs::create_dir(dir.path().join("step-abc")).expect("a writable folder");
    fs::write(dir.path().join("notes.txt"), "x").expect("a writable folder");
    for at in [dir.path().to_path_buf(), dir.path().join("absent"), dir.path().join("notes.txt")] {
        assert!(matches!(checkpoint::latest(&at), Err(Error::NoCheckpoint { .. })), "{at:?}");
    }
}

#[test]
fn leftovers_of_a_crash_are_ignored_and_removed_by_the_next_save() {
    let dir = dir();
    let model = small(Generation::G1);
    let at = save(dir.path(), &model, 1);
    for name in [".tmp-000002-77", ".trash-000001-78"] {
        let left = dir.path().join(name);
        fs::create_dir(&left).expect("a writable folder");
        fs::copy(at.join("meta.json"), left.join("meta.json")).expect("a file");
    }
    assert_eq!(checkpoint::latest(dir.path()).expect("a valid step").0, at);
    assert_eq!(checkpoint::steps(dir.path()).expect("a folder").len(), 1);
    save(dir.path(), &model, 2);
    assert_eq!(entries(dir.path()), ["step-000001", "step-000002"]);
}

#[test]
fn the_same_step_can_be_saved_again() {
    let dir = dir();
    let model = small(Generation::G1);
    save(dir.path(), &model, 4);
    model.init(2).expect("f32");
    let at = save(dir.path(), &model, 4);
    assert_eq!(entries(dir.path()), ["step-000004"]);
    checkpoint::verify(&at).expect("a valid step");
    let (loaded, _) = checkpoint::load(&Reference, &at).expect("a valid step");
    assert!(params(&loaded) == params(&model));
}

#[test]
fn pruning_keeps_the_newest() {
    let dir = dir();
    let model = small(Generation::G1);
    checkpoint::prune(dir.path(), Keep::last(1)).expect("nothing to do");
    for step in [1, 2, 3, 30, 4] {
        save(dir.path(), &model, step);
    }
    checkpoint::prune(dir.path(), Keep::last(9)).expect("nothing to do");
    assert_eq!(checkpoint::steps(dir.path()).expect("a folder").len(), 5);
    checkpoint::prune(dir.path(), Keep::last(3)).expect("valid steps");
    assert_eq!(entries(dir.path()), ["step-000003", "step-000004", "step-000030"]);
    checkpoint::prune(dir.path(), Keep::last(0)).expect("valid steps");
    assert_eq!(entries(dir.path()), ["step-000030"], "one is always kept");
}

#[test]
fn pruning_never_counts_a_damaged_step_as_kept() {
    let dir = dir();
    let model = small(Generation::G1);
    for step in [1, 2, 3, 4] {
        save(dir.path(), &model, step);
    }
    // A run that fell back from step 4 to 3 saves before it reaches 4 again.
    fs::write(dir.path().join("step-000004/model.safetensors"), "").expect("a writable folder");
    checkpoint::prune(dir.path(), Keep::last(2)).expect("step 3 is valid");
    assert_eq!(entries(dir.path()), ["step-000002", "step-000003", "step-000004"]);
    // With no valid step at all nothing is removed.
    for step in ["step-000002", "step-000003"] {
        fs::remove_file(dir.path().join(step).join("manifest.json")).expect("a file");
    }
    assert!(checkpoint::prune(dir.path(), Keep::last(1)).is_err());
    assert_eq!(entries(dir.path()).len(), 3);
}

#[test]
fn the_best_step_and_every_mth_stay_for_ever() {
    let dir = dir();
    let model = small(Generation::G1);
    // Measured at steps 2 and 5: what stands in the steps between is the value before.
    for (step, bpb) in [(1, 1.5), (2, 1.1), (3, 1.1), (4, 1.1), (5, 1.4), (6, 1.4), (7, 1.4)] {
        let meta = Meta { val_bpb: Some(bpb), ..meta(&model, step) };
        checkpoint::save(dir.path(), &model, &meta, vec![]).expect("a writable folder");
    }
    let keep = Keep { last: 2, every: 4, best: true };
    let gone = checkpoint::prune(dir.path(), keep).expect("valid steps");
    let stayed = ["step-000002", "step-000004", "step-000006", "step-000007"];
    assert_eq!(entries(dir.path()), stayed, "the first of the best, and the fourth");
    assert_eq!(gone.len(), 3);
}

#[test]
fn the_hint_names_the_newest_step_and_nobody_needs_it() {
    let dir = dir();
    let model = small(Generation::G1);
    for step in [1, 2] {
        save(dir.path(), &model, step);
        let hint = fs::read_to_string(dir.path().join("LATEST")).expect("a hint");
        assert_eq!(hint, format!("step-{step:06}\n"));
    }
    fs::write(dir.path().join("LATEST"), "step-000777\n").expect("a writable folder");
    assert_eq!(
        checkpoint::latest(dir.path()).expect("a valid step").0,
        dir.path().join("step-000002")
    );
}

#[test]
fn what_differs_between_two_steps_is_named() {
    let dir = dir();
    let model = small(Generation::G1);
    let a = save(dir.path(), &model, 1);
    assert!(checkpoint::diff(&a, &a).expect("valid steps").is_empty());
    let view = model.params().slice(5..6);
    let before = view.to_vec_f32().expect("f32")[0];
    view.write_f32(&[before + 2.0]).expect("one value");
    let b = save(dir.path(), &model, 2);
    let diff = checkpoint::diff(&a, &b).expect("valid steps");
    assert_eq!(diff.meta, [("step".into(), json!(1), json!(2))]);
    assert_eq!(diff.files, ["model.safetensors"]);
    let [tensor] = &diff.tensors[..] else { panic!("{:?}", diff.tensors) };
    assert_eq!((tensor.name.as_str(), tensor.differ), (model.table().rows()[0].name.as_str(), 1));
    assert!((tensor.max.expect("of one shape") - 2.0).abs() < 1e-6);
}
