//! Whatever is wrong with a checkpoint is found and named, and nothing that a file holds panics.

mod tiny;

use std::fs;
use std::path::Path;

use nanochat_compute::reference::Reference;
use nanochat_compute::{DType, Tensor};
use nanochat_gpt::checkpoint::{self, FORMAT};
use nanochat_gpt::weights::Named;
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tiny::{Draws, copies, dir, entries, save, small, write_tensors};

/// Verification fails and says so with `parts`.
fn refused(step: &Path, parts: &[&str]) {
    let message = checkpoint::verify(step).expect_err("a bad step").to_string();
    assert!(parts.iter().all(|p| message.contains(p)), "{message} lacks one of {parts:?}");
}

/// A manifest that vouches for itself, whatever it lists.
fn write_manifest(step: &Path, format: u32, files: &[(&str, &[u8])]) {
    #[derive(serde::Serialize)]
    struct Entry<'a> {
        name: &'a str,
        bytes: usize,
        sha256: String,
    }
    let hex = |b: &[u8]| Sha256::digest(b).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut list = Vec::new();
    for &(name, content) in files {
        list.push(Entry { name, bytes: content.len(), sha256: hex(content) });
    }
    let sum = hex(&serde_json::to_vec(&list).expect("plain"));
    let text = json!({"format": format, "files": list, "sha256": sum}).to_string();
    fs::write(step.join("manifest.json"), text).expect("a writable folder");
}

/// The manifest of a step whose files were changed on purpose.
fn vouch(step: &Path) {
    let names: Vec<String> = entries(step).into_iter().filter(|n| n != "manifest.json").collect();
    let files: Vec<Vec<u8>> =
        names.iter().map(|n| fs::read(step.join(n)).expect("a file")).collect();
    let list: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(files.iter().map(Vec::as_slice)).collect();
    write_manifest(step, FORMAT, &list);
}

#[test]
fn a_flipped_bit_is_found_and_its_file_named() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G2), 1);
    let mut draws = Draws(5);
    for name in ["model.safetensors", "meta.json", "optimizer.safetensors"] {
        let file = at.join(name);
        let good = fs::read(&file).expect("a file");
        let ends = [0, 1, 8, good.len() / 2, good.len() - 1];
        let drawn: Vec<usize> = (0..20).map(|_| draws.below(good.len())).collect();
        for n in ends.into_iter().chain(drawn) {
            let mut bad = good.clone();
            bad[n] ^= 1 << draws.below(8);
            fs::write(&file, &bad).expect("a writable folder");
            refused(&at, &[name, "checksum does not match"]);
        }
        fs::write(&file, &good).expect("a writable folder");
    }
    checkpoint::verify(&at).expect("all is as it was");
}

#[test]
fn a_flipped_bit_of_the_manifest_is_found() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G1), 1);
    let file = at.join("manifest.json");
    let good = fs::read(&file).expect("a manifest");
    let value: Value = serde_json::from_slice(&good).expect("JSON");
    for n in 0..good.len() {
        for bit in [n % 8, (n / 8 + 3) % 8] {
            let mut bad = good.clone();
            bad[n] ^= 1 << bit;
            // Another kind of white space says the same.
            if serde_json::from_slice::<Value>(&bad).is_ok_and(|v| v == value) {
                continue;
            }
            fs::write(&file, &bad).expect("a writable folder");
            let e = checkpoint::verify(&at).err();
            let e = e.unwrap_or_else(|| panic!("bit {bit} of byte {n} passes")).to_string();
            assert!(e.contains("manifest.json"), "{e}");
        }
    }
}

#[test]
fn a_cut_or_missing_file_is_named() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G1), 1);
    for name in ["model.safetensors", "meta.json", "optimizer.safetensors", "manifest.json"] {
        let file = at.join(name);
        let good = fs::read(&file).expect("a file");
        for len in [0, 1, good.len() / 2, good.len() - 1] {
            fs::write(&file, &good[..len]).expect("a writable folder");
            refused(&at, &[name]);
        }
        let longer: Vec<u8> = good.iter().chain(b"x").copied().collect();
        fs::write(&file, longer).expect("a writable folder");
        refused(&at, &[name]);
        fs::remove_file(&file).expect("a file");
        refused(&at, &[name]);
        fs::write(&file, &good).expect("a writable folder");
    }
    fs::remove_file(at.join("loader.bin")).expect("a file");
    refused(&at, &["loader.bin"]);
}

#[test]
fn a_manifest_lists_the_model_and_its_meta() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G1), 1);
    let read = |name: &str| fs::read(at.join(name)).expect("a file");
    let (model, meta) = (read("model.safetensors"), read("meta.json"));
    write_manifest(&at, FORMAT, &[("model.safetensors", &model), ("meta.json", &meta)]);
    checkpoint::verify(&at).expect("both are listed");
    write_manifest(&at, FORMAT, &[("meta.json", &meta)]);
    refused(&at, &["manifest.json", "does not list model.safetensors"]);
    write_manifest(&at, FORMAT, &[("model.safetensors", &model)]);
    refused(&at, &["manifest.json", "does not list meta.json"]);
}

#[test]
fn a_manifest_cannot_name_files_outside_its_step() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G1), 1);
    fs::write(dir.path().join("secret"), "x").expect("a writable folder");
    let read = |name: &str| fs::read(at.join(name)).expect("a file");
    let (model, meta) = (read("model.safetensors"), read("meta.json"));
    for name in ["../secret", "/etc/hostname", "a/b", "..\\secret", "..", ".", ""] {
        let files: [(&str, &[u8]); 3] =
            [("model.safetensors", &model), ("meta.json", &meta), (name, b"x")];
        write_manifest(&at, FORMAT, &files);
        refused(&at, &[name]);
    }
}

#[test]
fn a_format_that_is_newer_or_none_is_refused() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G1), 1);
    let files = ["model.safetensors", "meta.json"];
    let files = files.map(|n| (n, fs::read(at.join(n)).expect("a file")));
    let files = [(files[0].0, &files[0].1[..]), (files[1].0, &files[1].1[..])];
    write_manifest(&at, FORMAT + 1, &files);
    refused(&at, &["manifest.json", "newer"]);
    write_manifest(&at, 0, &files);
    refused(&at, &["manifest.json", "format 0"]);
    let mut meta: Value =
        serde_json::from_slice(&fs::read(at.join("meta.json")).expect("a file")).expect("JSON");
    meta["format"] = json!(FORMAT + 1);
    fs::write(at.join("meta.json"), meta.to_string()).expect("a writable folder");
    let message = checkpoint::meta(&at).expect_err("newer").to_string();
    assert!(message.contains("meta.json") && message.contains("newer"), "{message}");
    assert!(checkpoint::load(&Reference, &at).is_err());
}

/// Loads a step whose weights are these tensors.
fn load_with(step: &Path, tensors: &[Named]) -> String {
    write_tensors(&step.join("model.safetensors"), tensors);
    vouch(step);
    checkpoint::verify(step).expect("the manifest vouches for it");
    checkpoint::load(&Reference, step).map(|_| ()).expect_err("weights that do not fit").to_string()
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let dir = dir();
    let model = small(Generation::G5);
    let at = save(dir.path(), &model, 1);
    let q = "transformer.h.1.attn.c_q.weight";
    let with = |change: &dyn Fn(&mut Named)| {
        let mut all = copies(&model);
        change(all.iter_mut().find(|t| t.name == q).expect("layer 1 has a query matrix"));
        load_with(&at, &all)
    };
    let expect = |message: String, parts: &[&str]| {
        assert!(message.contains("model.safetensors"), "{message}");
        assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    };
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let message = with(&|t| t.data.slice(17..18).write_f32(&[value]).expect("one value"));
        expect(message, &[q, "element 17", word]);
    }
    expect(with(&|t| t.shape = vec![16, 64]), &[q, "[16, 64]", "[32, 32]"]);
    expect(with(&|t| t.shape = vec![1024]), &[q, "[1024]", "[32, 32]"]);
    expect(with(&|t| t.name = "strange".into()), &[q, "missing"]);
    // Only a table of the vocabulary may lack rows, and only those of its padding.
    let cut = |t: &mut Named, rows: usize| {
        t.data = t.data.slice(0..rows * t.shape[1]);
        t.shape[0] = rows;
    };
    expect(with(&|t| cut(t, 20)), &[q, "[20, 32]", "[32, 32]"]);
    let fc = "transformer.h.0.mlp.c_fc.weight";
    for (name, rows, want) in
        [(fc, 64, "[128, 32]"), ("lm_head.weight", 19, "[64, 32]"), ("lm_head.weight", 21, "[64")]
    {
        let mut all = copies(&model);
        cut(all.iter_mut().find(|t| t.name == name).expect("every model has it"), rows);
        expect(load_with(&at, &all), &[name, &format!("[{rows}, 32]"), want]);
    }
    expect(with(&|t| t.data = t.data.cast(DType::I32)), &[q, "I32"]);
    let mut more = copies(&model);
    let data = Tensor::zeros(2, DType::F32).expect("two values");
    more.push(Named { name: "extra.bias".into(), shape: vec![2], data });
    expect(load_with(&at, &more), &["extra.bias", "not a parameter"]);
}

#[test]
fn random_bytes_never_panic() {
    let dir = dir();
    let at = save(dir.path(), &small(Generation::G1), 1);
    let mut draws = Draws(1);
    for name in ["manifest.json", "meta.json", "model.safetensors"] {
        let file = at.join(name);
        let good = fs::read(&file).expect("a file");
        for round in 0..300 {
            let bad: Vec<u8> = match round % 3 {
                // Noise.
                0 => (0..draws.below(200)).map(|_| draws.below(256) as u8).collect(),
                // The header or text with a few bytes changed: 600 covers all of it.
                1 => {
                    let mut bad = good.clone();
                    for _ in 0..=draws.below(4) {
                        let n = draws.below(good.len().min(600));
                        bad[n] = draws.below(256) as u8;
                    }
                    bad
                }
                // A piece cut out, or put in twice.
                _ => {
                    let (a, b) = (draws.below(good.len()), draws.below(good.len()));
                    good[..a].iter().chain(&good[b..]).copied().collect()
                }
            };
            fs::write(&file, &bad).expect("a writable folder");
            if bad != good && name != "manifest.json" {
                assert!(checkpoint::verify(&at).is_err());
                assert!(checkpoint::latest(dir.path()).is_err());
            }
            // A config may ask for any size that parses, so only its text is read here.
            match name {
                "meta.json" => drop(checkpoint::meta(&at)),
                "manifest.json" => drop(checkpoint::verify(&at)),
                _ => drop(checkpoint::load(&Reference, &at)),
            }
        }
        fs::write(&file, &good).expect("a writable folder");
    }
    checkpoint::verify(&at).expect("all is as it was");
}

#[test]
fn a_model_of_any_size_that_parses_is_opened_or_refused() {
    // Memory that the machine does not have is an error, not an abort.
    let raw =
        RawConfig { n_embd: 1 << 20, n_head: 1 << 10, n_kv_head: 1 << 10, ..Default::default() };
    let raw = RawConfig { vocab_size: 1 << 24, n_layer: 4096, ..raw };
    let config = GptConfig::new(raw).expect("within the limits");
    assert!(Nano::zeros(&Reference, config).is_err());
}
