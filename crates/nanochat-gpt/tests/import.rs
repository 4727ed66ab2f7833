//! Models of others: what cannot be taken over is named, generations are told from their tensors.

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use nanochat_compute::reference::Reference;
use nanochat_gpt::import::import;
use nanochat_gpt::weights::Named;
use nanochat_gpt::{Generation, Nano};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tiny::{GENERATIONS, bits, copies, write_tensors};

fn hugging_face() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gen1/hf")
}

fn params(model: &Nano) -> Vec<u32> {
    bits(&model.params().to_vec_f32().expect("f32"))
}

/// A copy of the Hugging Face folder with another config.
fn folder(change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a writable folder");
    let text = fs::read(hugging_face().join("config.json")).expect("the fixture");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).expect("a writable folder");
    let weights = "model.safetensors";
    fs::copy(hugging_face().join(weights), dir.path().join(weights)).expect("the fixture");
    dir
}

fn refused(dir: &Path, parts: &[&str]) {
    let message = import(&Reference, dir, None).map(|_| ()).expect_err("a mistake").to_string();
    assert!(parts.iter().all(|p| message.contains(p)), "{message} lacks one of {parts:?}");
}

#[test]
fn a_config_that_cannot_be_taken_over_is_named() {
    let cases: [(&str, Value, &[&str]); 13] = [
        ("attention_bias", json!(true), &["attention_bias", "no biases"]),
        ("qkv_bias", json!(true), &["qkv_bias", "no biases"]),
        ("final_logit_softcapping", Value::Null, &["final_logit_softcapping", "null"]),
        ("final_logit_softcapping", json!(-1.0), &["softcap", "positive"]),
        ("intermediate_size", json!(8192), &["intermediate_size", "4 x hidden_size 48"]),
        ("hidden_act", json!("silu"), &["hidden_act", "silu", "relu2"]),
        ("model_type", json!("llama"), &["llama", "nanochat"]),
        ("hidden_size", Value::Null, &["hidden_size is missing"]),
        ("num_attention_heads", json!(5), &["n_head", "48"]),
        ("num_key_value_heads", json!(3), &["n_kv_head"]),
        ("num_key_value_heads", json!(0), &["n_kv_head"]),
        ("num_hidden_layers", json!(3), &["model.layers.2.self_attn.q_proj.weight", "missing"]),
        ("vocab_size", json!(300), &["model.embed_tokens.weight", "[90, 48]", "[320, 48]"]),
    ];
    for (field, value, parts) in cases {
        let dir = folder(|c| c[field] = value.clone());
        refused(dir.path(), parts);
    }
}

#[test]
fn names_of_older_files_are_read_too() {
    let dir = folder(|c| {
        let c = c.as_object_mut().expect("an object");
        c.remove("final_logit_softcapping");
        c.remove("rope_parameters");
        c.remove("num_key_value_heads");
        c.insert("num_key_value_heads".into(), json!(2));
        c.insert("logits_soft_cap".into(), json!(20.0));
        c.insert("rope_theta".into(), json!(5000.0));
        c.insert("qkv_bias".into(), json!(false));
    });
    let model = import(&Reference, dir.path(), None).expect("an older file");
    let rules = model.config().rules();
    assert_eq!((rules.softcap, rules.rope_base, rules.norm_eps), (20.0, 5000.0, 1e-6));
    let newer = import(&Reference, &hugging_face(), None).expect("the fixture");
    assert!(params(&model) == params(&newer));
}

#[test]
fn a_tied_model_gets_its_head_from_the_embedding() {
    let dir = folder(|c| c["tie_word_embeddings"] = json!(true));
    let file = dir.path().join("model.safetensors");
    refused(dir.path(), &["lm_head.weight", "not a parameter"]);
    let bytes = fs::read(&file).expect("the fixture");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let without: Vec<_> =
        tensors.tensors().into_iter().filter(|(name, _)| name != "lm_head.weight").collect();
    fs::write(&file, safetensors::serialize(without, None).expect("tensors")).expect("a file");
    let model = import(&Reference, dir.path(), None).expect("a tied model");
    let of = |name| {
        let row = model.table().by_name(name).expect("every model has it");
        bits(&model.table().view(model.params(), row.role).to_vec_f32().expect("f32"))
    };
    assert!(of("lm_head.weight") == of("transformer.wte.weight"));
}

#[test]
fn weights_in_shards_or_absent_are_explained() {
    let dir = folder(|_| ());
    fs::remove_file(dir.path().join("model.safetensors")).expect("a file");
    refused(dir.path(), &["model.safetensors"]);
    fs::write(dir.path().join("model.safetensors.index.json"), "{}").expect("a writable folder");
    refused(dir.path(), &["model.safetensors", "shards"]);
    let empty = tempfile::tempdir().expect("a writable folder");
    refused(empty.path(), &["holds no", "docs/FORMAT.md"]);
    refused(&empty.path().join("absent"), &["absent"]);
}

/// Upstream's two files; the meta does not say of which generation they are.
fn state_dict(dir: &Path, model: &Nano, prefix: &str) {
    let mut tensors = copies(model);
    tensors.iter_mut().for_each(|t| t.name.insert_str(0, prefix));
    write_tensors(&dir.join("model_000100.safetensors"), &tensors);
    let mut config = serde_json::to_value(model.config()).expect("plain");
    config.as_object_mut().expect("an object").remove("generation");
    let meta = json!({"step": 100, "model_config": config});
    fs::write(dir.join("meta_000100.json"), meta.to_string()).expect("a writable folder");
}

#[test]
fn a_generation_is_told_from_its_tensors() {
    for generation in GENERATIONS {
        for prefix in ["", "_orig_mod."] {
            let dir = tempfile::tempdir().expect("a writable folder");
            let model = tiny::model(&Reference, tiny::config(generation), 1);
            state_dict(dir.path(), &model, prefix);
            let back = import(&Reference, dir.path(), None).expect("upstream's files");
            assert_eq!(back.config(), model.config());
            assert!(params(&back) == params(&model), "{generation:?} {prefix}");
            // The weights can be asked for by their own path.
            let file = dir.path().join("model_000100.safetensors");
            let back = import(&Reference, &file, Some(generation)).expect("upstream's files");
            assert_eq!(back.config(), model.config());
        }
    }
}

#[test]
fn weights_are_read_with_the_meta_of_their_own_step() {
    let dir = tempfile::tempdir().expect("a writable folder");
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 1);
    state_dict(dir.path(), &model, "");
    // A later step of another model lies in the same folder.
    fs::write(dir.path().join("meta_000200.json"), r#"{"model_config": {"n_layer": 9}}"#)
        .expect("a writable folder");
    let file = dir.path().join("model_000100.safetensors");
    let back = import(&Reference, &file, None).expect("upstream's files");
    assert!(params(&back) == params(&model));
}

#[test]
fn a_wrong_generation_is_refused_by_a_tensor() {
    for have in GENERATIONS {
        let dir = tempfile::tempdir().expect("a writable folder");
        state_dict(dir.path(), &tiny::model(&Reference, tiny::config(have), 1), "");
        for asked in GENERATIONS.into_iter().filter(|&g| g != have) {
            let result = import(&Reference, dir.path(), Some(asked));
            let message = result.map(|_| ()).expect_err("another generation").to_string();
            assert!(message.contains("tensor "), "{have:?} as {asked:?}: {message}");
        }
    }
}

#[test]
fn a_vocabulary_without_padding_is_filled_up_with_zeros() {
    let dir = tempfile::tempdir().expect("a writable folder");
    let model = tiny::model(&Reference, tiny::config(Generation::G2), 1);
    state_dict(dir.path(), &model, "");
    // 90 of 128 rows.
    let cut = |t: Named| -> Named {
        let rows = if t.shape[0] == 128 { 90 } else { t.shape[0] };
        let shape = [&[rows], &t.shape[1..]].concat();
        Named { data: t.data.slice(0..shape.iter().product()), shape, ..t }
    };
    let small: Vec<Named> = copies(&model).into_iter().map(cut).collect();
    write_tensors(&dir.path().join("model_000100.safetensors"), &small);
    let back = import(&Reference, dir.path(), None).expect("90 rows");
    for row in model.table().rows() {
        let read = |m: &Nano| m.table().view(m.params(), row.role).to_vec_f32().expect("f32");
        let (have, mut want) = (read(&back), read(&model));
        if row.shape[0] == 128 {
            want[90 * row.shape[1]..].fill(0.0);
        }
        assert!(bits(&have) == bits(&want), "{}", row.name);
    }
}

#[test]
fn half_precision_is_widened() {
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 1);
    let tensors = copies(&model);
    let narrow = |to: fn(f32) -> [u8; 2]| -> Vec<Vec<u8>> {
        let one = |t: &Named| t.data.to_vec_f32().expect("f32").into_iter().flat_map(to).collect();
        tensors.iter().map(one).collect()
    };
    let bf16 = narrow(|x| half::bf16::from_f32(x).to_le_bytes());
    let f16 = narrow(|x| half::f16::from_f32(x).to_le_bytes());
    // Half an ulp of a significand of 8 bits, and of 11.
    for (dtype, data, ulp) in [(Dtype::BF16, bf16, 1.0 / 256.0), (Dtype::F16, f16, 1.0 / 2048.0)] {
        let dir = tempfile::tempdir().expect("a writable folder");
        state_dict(dir.path(), &model, "");
        let view = |(t, data)| {
            let t: &Named = t;
            let view = TensorView::new(dtype, t.shape.clone(), data).expect("bytes that fit");
            (t.name.clone(), view)
        };
        let views: Vec<_> = tensors.iter().zip(data.iter().map(Vec::as_slice)).map(view).collect();
        let bytes = safetensors::serialize(views, None).expect("tensors");
        fs::write(dir.path().join("model_000100.safetensors"), bytes).expect("a file");
        let back = import(&Reference, dir.path(), None).expect("half precision");
        let (have, want) = (back.params().to_vec_f32(), model.params().to_vec_f32());
        for (a, b) in have.expect("f32").into_iter().zip(want.expect("f32")) {
            // 1e-7: below 2^-14 f16 has no more bits.
            assert!((a - b).abs() <= ulp * b.abs() + 1e-7, "{dtype:?}: {a} of {b}");
        }
    }
}

#[test]
fn a_meta_that_is_no_config_is_named() {
    let dir = tempfile::tempdir().expect("a writable folder");
    state_dict(dir.path(), &tiny::model(&Reference, tiny::config(Generation::G5), 1), "");
    let meta = dir.path().join("meta_000100.json");
    for (text, part) in [
        ("{", "not JSON"),
        ("{}", "sequence_len"),
        ("{\"model_config\": 7}", "model_config"),
        ("{\"model_config\": {\"sequence_len\": -1}}", "model_config"),
    ] {
        fs::write(&meta, text).expect("a writable folder");
        refused(dir.path(), &["meta_000100.json", part]);
    }
    fs::remove_file(&meta).expect("a file");
    refused(dir.path(), &["holds no", "json"]);
}
