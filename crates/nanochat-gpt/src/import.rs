//! Models of others: a Hugging Face `NanoChatForCausalLM` folder, and upstream's state dict saved as
//! safetensors beside its meta JSON.

use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use serde_json::Value;

use crate::config::{Generation, GptConfig, RawConfig};
use crate::nano::table::Row;
use crate::weights::{self, Reader};
use crate::{Error, Nano, Result};

fn json(file: &Path) -> Result<Value> {
    serde_json::from_slice(&weights::read(file)?)
        .map_err(|e| Error::File { file: file.into(), detail: format!("not JSON ({e})") })
}

fn bad<T>(file: &Path, detail: impl Into<String>) -> Result<T> {
    Err(Error::File { file: file.into(), detail: detail.into() })
}

/// Opens either kind: a folder with `config.json` that names `NanoChatForCausalLM` (its
/// `model.safetensors`), else upstream's `model*.safetensors` beside `meta*.json`.
///
/// `generation` overrides what the tensors show. Errors name the file and what it lacks.
pub fn import(be: &dyn Backend, dir: &Path, generation: Option<Generation>) -> Result<Nano> {
    let config = dir.join("config.json");
    if config.exists() && json(&config)?.get("model_type").and_then(Value::as_str).is_some() {
        return hugging_face(be, dir);
    }
    upstream(be, dir, generation)
}

/// A Hugging Face folder: generation 1.
fn hugging_face(be: &dyn Backend, dir: &Path) -> Result<Nano> {
    let file = dir.join("config.json");
    let config = json(&file)?;
    let number = |names: &[&str]| names.iter().find_map(|n| config.get(n).and_then(Value::as_f64));
    let size = |name: &'static str| match number(&[name]) {
        Some(x) if x >= 1.0 => Ok(x as usize),
        _ => bad(&file, format!("{name} is missing")),
    };
    if config["model_type"] != "nanochat" {
        return bad(&file, format!("model_type {} is not nanochat", config["model_type"]));
    }
    let c = size("hidden_size")?;
    if size("intermediate_size")? != 4 * c {
        return bad(&file, format!("intermediate_size is not 4 x hidden_size {c}"));
    }
    for flag in ["attention_bias", "qkv_bias"] {
        if config.get(flag).and_then(Value::as_bool) == Some(true) {
            return bad(&file, format!("{flag} is true: nanochat has no biases"));
        }
    }
    if let Some(act) = config.get("hidden_act").and_then(Value::as_str)
        && act != "relu2"
    {
        return bad(&file, format!("hidden_act {act} is not relu2"));
    }
    let rope = &config["rope_parameters"];
    let rope_base = rope.get("rope_theta").and_then(Value::as_f64).or(number(&["rope_theta"]));
    let cap = number(&["final_logit_softcapping", "logits_soft_cap"]);
    if cap.is_none() && config.get("final_logit_softcapping").is_some() {
        return bad(&file, "final_logit_softcapping is null: nanochat always caps its logits");
    }
    let config = GptConfig::new(RawConfig {
        sequence_len: size("max_position_embeddings")?,
        vocab_size: size("vocab_size")?,
        n_layer: size("num_hidden_layers")?,
        n_head: size("num_attention_heads")?,
        n_kv_head: number(&["num_key_value_heads"])
            .map_or_else(|| size("num_attention_heads"), |n| Ok(n as usize))?,
        n_embd: c,
        window_pattern: "L".into(),
        generation: Generation::G1,
        rope_base: rope_base.map(|x| x as f32),
        softcap: cap.map(|x| x as f32),
        norm_eps: Some(number(&["rms_norm_eps"]).unwrap_or(1e-6) as f32),
    })?;
    let tied = json(&file)?["tie_word_embeddings"].as_bool() == Some(true);
    let weights_file = dir.join("model.safetensors");
    if !weights_file.exists() && dir.join("model.safetensors.index.json").exists() {
        return bad(&weights_file, "is split into shards: save it again as one file");
    }
    let model = Nano::zeros(be, config)?;
    let rename = |row: &Row| hugging_face_name(row, tied);
    weights::load(&Reader::open(&weights_file)?, &model, &rename)?;
    Ok(model)
}

/// The name that Hugging Face's class gives to a row of the table; nothing is permuted or negated.
fn hugging_face_name(row: &Row, tied: bool) -> String {
    let name = match row.name.as_str() {
        "lm_head.weight" if tied => "transformer.wte.weight",
        name => name,
    };
    let mut to = name.replace("transformer.wte.", "model.embed_tokens.");
    for (ours, theirs) in [
        ("transformer.h.", "model.layers."),
        (".attn.c_proj.", ".self_attn.o_proj."),
        (".attn.c_q.", ".self_attn.q_proj."),
        (".attn.c_k.", ".self_attn.k_proj."),
        (".attn.c_v.", ".self_attn.v_proj."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    ] {
        to = to.replace(ours, theirs);
    }
    to
}

/// The one file of `dir` whose name begins and ends so; a file may be given instead of a folder.
fn one_file(dir: &Path, begin: &str, end: &str) -> Result<PathBuf> {
    let entries =
        std::fs::read_dir(dir).map_err(|source| Error::Io { file: dir.into(), source })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(begin) && name.ends_with(end)
        })
        .collect();
    found.sort();
    match found.pop() {
        Some(file) => Ok(file),
        None => bad(
            dir,
            format!("holds no {begin}*{end}; docs/FORMAT.md shows how to make one from a .pt file"),
        ),
    }
}

/// The meta JSON of `weights_file`: the one with the same step in its name (`model_000650` and
/// `meta_000650`), else the last.
fn meta_beside(dir: &Path, weights_file: &Path) -> Result<PathBuf> {
    let stem = weights_file.file_stem().unwrap_or_default().to_string_lossy();
    let step = stem.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let same_step = dir.join(format!("meta_{step}.json"));
    if same_step.exists() {
        return Ok(same_step);
    }
    one_file(dir, "meta", ".json").or_else(|_| one_file(dir, "config", ".json"))
}

/// Upstream's state dict as safetensors, beside its meta JSON (`model_config` inside, or the fields
/// themselves).
fn upstream(be: &dyn Backend, dir: &Path, generation: Option<Generation>) -> Result<Nano> {
    let (dir, weights_file) = if dir.is_file() {
        (dir.parent().unwrap_or(Path::new(".")), dir.to_path_buf())
    } else {
        (dir, one_file(dir, "", ".safetensors")?)
    };
    let meta_file = meta_beside(dir, &weights_file)?;
    let meta = json(&meta_file)?;
    let fields = meta.get("model_config").unwrap_or(&meta).clone();
    let given = fields.get("generation").and_then(Value::as_u64);
    let mut raw: RawConfig = serde_json::from_value(fields).map_err(|e| Error::File {
        file: meta_file.clone(),
        detail: format!("model_config: {e}"),
    })?;
    let tensors = Reader::open(&weights_file)?;
    if generation.is_some() || given.is_none() {
        raw.generation = generation.unwrap_or_else(|| recognise(&tensors));
    }
    let model = Nano::zeros(be, GptConfig::new(raw)?)?;
    let prefix =
        if tensors.names().iter().any(|n| n.starts_with("_orig_mod.")) { "_orig_mod." } else { "" };
    let rename = |row: &Row| format!("{prefix}{}", row.name);
    weights::load(&tensors, &model, &rename)?;
    Ok(model)
}

/// The generation that a state dict belongs to, by what it holds. Generation 3 of March 2 to 9, 2026
/// needs `"softcap": 20` in its meta JSON: tensors do not show it.
fn recognise(tensors: &Reader) -> Generation {
    let names = tensors.names();
    let has = |part: &str| names.iter().any(|n| n.contains(part));
    let gate_channels = names
        .iter()
        .find(|n| n.ends_with("attn.ve_gate.weight"))
        .map(|n| tensors.shape(n).ok().and_then(|s| s.last().copied()).unwrap_or(0));
    match gate_channels {
        _ if has("smear_gate") => Generation::G5,
        Some(12) => Generation::G4,
        Some(_) => Generation::G3,
        None if has("resid_lambdas") => Generation::G2,
        None => Generation::G1,
    }
}
