//! A step that is opened for reading: its weights stay in the file, and nothing else is different.

mod tiny;

use std::fs;
use std::path::Path;

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, Tensor};
use nanochat_gpt::checkpoint;
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::{Error, Generation, Nano};
use tiny::{GENERATIONS, bits, dir, entries, model, params, save, small};

/// Logits after a prompt and after each of some more tokens.
fn logits(be: &dyn Backend, model: &Nano) -> Vec<Vec<u32>> {
    let mut decoder = NanoDecoder::new(be, model, 200).expect("a small cache");
    let prompt: Vec<u32> = (0..70).map(|i| i * 7 % 90).collect();
    let mut all = vec![bits(&decoder.prefill(&prompt).expect("a prompt that fits"))];
    all.extend((0..80).map(|i| bits(&decoder.decode(&[i * 11 % 90]).expect("room"))));
    all
}

#[test]
fn a_mapped_model_gives_the_bits_of_one_that_was_read() {
    let dir = dir();
    for generation in GENERATIONS {
        let made = model(&Reference, tiny::config(generation), 3);
        let at = save(dir.path(), &made, 1);
        let (read, _) = checkpoint::load(&Reference, &at).expect("a valid step");
        let (mapped, meta) = checkpoint::open(&Reference, &at).expect("a valid step");
        assert_eq!((mapped.is_mapped(), read.is_mapped()), (cfg!(unix), false));
        assert_eq!((mapped.config(), meta.step), (read.config(), 1));
        for row in read.table().rows() {
            let values = |m: &Nano| m.table().view(m.params(), row.role).to_vec_f32();
            assert!(values(&read).expect("f32") == values(&mapped).expect("f32"), "{}", row.name);
        }
        // Packed weights, weights read where they lie, and the plain reference.
        let bf16 = Cpu::open(2, Precision::Bf16);
        let f32s = Cpu::every_f32(2);
        let all = f32s.iter().chain([&bf16]).map(|be| be as &dyn Backend);
        for be in all.chain([&Reference as &dyn Backend]) {
            assert!(logits(be, &read) == logits(be, &mapped), "{generation:?} {}", be.name());
        }
        // And what is saved of it is the same step.
        let again = save(dir.path(), &mapped, 2);
        let (again, _) = checkpoint::load(&Reference, &again).expect("a valid step");
        assert!(params(&again) == params(&made), "{generation:?}");
    }
}

#[test]
fn a_mapped_model_cannot_be_written() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G5), 1);
    let before = fs::read(at.join("model.safetensors")).expect("a file");
    let (model, _) = checkpoint::open(&Reference, &at).expect("a valid step");
    if model.is_mapped() {
        let said = model.init(1).expect_err("it is only read").to_string();
        assert!(said.contains("opened for reading"), "{said}");
        assert!(model.set_smear_lambda(0.5).is_err());
        assert!(Reference.fill(model.params(), 1.0).is_err());
    }
    drop(model);
    assert!(fs::read(at.join("model.safetensors")).expect("a file") == before);
}

#[test]
fn a_step_that_is_saved_again_or_removed_stays_whole_for_who_has_it_open() {
    let dir = dir();
    let (old, new) = (small(Generation::G5), small(Generation::G5));
    new.init(9).expect("f32");
    let at = save(dir.path(), &old, 4);
    let (open, _) = checkpoint::open(&Reference, &at).expect("a valid step");
    assert_eq!(save(dir.path(), &new, 4), at);
    let same = |a: &Nano, b: &Nano| {
        let all = |m: &Nano| -> Vec<Vec<u32>> {
            let one = |t: Tensor| bits(&t.to_vec_f32().expect("f32"));
            m.table().rows().iter().map(|r| one(m.table().view(m.params(), r.role))).collect()
        };
        all(a) == all(b)
    };
    assert!(same(&open, &old) && !same(&open, &new));
    let (second, _) = checkpoint::open(&Reference, &at).expect("a valid step");
    assert!(same(&second, &new));
    save(dir.path(), &old, 5);
    checkpoint::prune(dir.path(), checkpoint::Keep::last(1)).expect("a valid step");
    assert_eq!(entries(dir.path()), ["step-000005"]);
    assert!(same(&open, &old) && same(&second, &new));
}

/// What `load` says of a step, which `open` must say as well.
fn refused(step: &Path) -> String {
    let say = |e: Error| e.to_string();
    let load = checkpoint::load(&Reference, step).map(|_| ()).map_err(say).expect_err("unfit");
    let open = checkpoint::open(&Reference, step).map(|_| ()).map_err(say).expect_err("unfit");
    assert_eq!(load, open);
    load
}

#[test]
fn what_does_not_fit_is_refused_in_the_same_words() {
    let dir = dir();
    let model = small(Generation::G5);
    let at = save(dir.path(), &model, 1);
    let file = at.join("model.safetensors");
    let good = fs::read(&file).expect("a file");
    let whole = "not a whole safetensors file";
    for (bytes, says) in [
        (&good[..good.len() - 4], whole),
        (&good[..200], whole),
        (&good[..0], whole),
        (b"<!DOCTYPE html><html>", whole),
        // Whole, and of nothing that the model has.
        (b"\x08\0\0\0\0\0\0\0{}      ", "is missing"),
    ] {
        fs::write(&file, bytes).expect("a writable folder");
        let said = refused(&at);
        assert!(said.contains("model.safetensors") && said.contains(says), "{said}");
    }
    fs::remove_file(&file).expect("a file");
    assert!(refused(&at).contains("model.safetensors"));
    let with = tiny::copies(&model);
    with[2].data.slice(5..6).write_f32(&[f32::NAN]).expect("one value");
    tiny::write_tensors(&file, &with);
    assert!(refused(&at).contains("element 5 is NaN"));
    let mut with = tiny::copies(&model);
    with[0].name = "other".into();
    tiny::write_tensors(&file, &with);
    assert!(refused(&at).contains("is missing"));
    let mut with = tiny::copies(&model);
    with.push(nanochat_gpt::weights::Named {
        name: "other".into(),
        shape: vec![1],
        data: Tensor::from_f32(&[1.0]).expect("one value"),
    });
    tiny::write_tensors(&file, &with);
    assert!(refused(&at).contains("is not a parameter of this model"));
}

#[test]
fn a_step_that_was_checked_once_is_checked_again_when_a_file_changed() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G2), 1);
    let once = || checkpoint::verify_once(&at);
    once().and_then(|()| once()).expect("a valid step");
    for name in ["model.safetensors", "meta.json", "optimizer.safetensors", "manifest.json"] {
        let file = at.join(name);
        let good = fs::read(&file).expect("a file");
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(&file, &bad).expect("a writable folder");
        let said = once().expect_err("a bad step").to_string();
        assert!(said.contains(name), "{said}");
        assert!(checkpoint::latest_once(dir.path()).is_err());
        // A check that failed leaves no note of one that did not.
        assert!(!at.join("verified.json").exists());
        fs::write(&file, &good).expect("a writable folder");
        once().expect("all is as it was");
    }
    fs::write(at.join("model.safetensors"), "").expect("a writable folder");
    assert!(once().is_err());
    // Nothing of a check is left behind beside the note.
    assert!(entries(&at).iter().all(|n| !n.starts_with(".verified")));
}

#[test]
fn parameters_that_are_not_finite_are_never_noted_as_checked() {
    let dir = dir();
    let model = small(Generation::G1);
    model.params().slice(3..4).write_f32(&[f32::INFINITY]).expect("one value");
    let at = save(dir.path(), &model, 1);
    for _ in 0..2 {
        checkpoint::verify_once(&at).expect("the bytes are those that were saved");
        assert!(!at.join("verified.json").exists());
        assert!(refused(&at).contains("element 3 is inf"));
    }
}
