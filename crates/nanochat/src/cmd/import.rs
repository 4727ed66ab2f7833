//! `nanochat import`: a model of another program becomes a run that `nanochat chat` opens.
//!
//! In: a Hugging Face folder, or upstream's state dict as safetensors beside its meta JSON. Out:
//! `OUT/base/step-000000`, and `OUT/tokenizer` when a tokenizer is given.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use nanochat_gpt::checkpoint::{self, Meta};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::{Generation, GptConfig};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use serde_json::json;

use crate::cli::Global;
use crate::figures::thousands;

/// Flags of `import`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    nanochat import hf/nanochat-d32 --out runs/d32 --tokenizer vocab.tiktoken\n  \
    nanochat import model_000650.safetensors --out runs/d20 --generation 1\n\n\
    docs/FORMAT.md shows how to make .safetensors from upstream's .pt.")]
pub struct ImportArgs {
    /// Hugging Face folder, or upstream's .safetensors (or its folder) beside meta*.json.
    #[arg(value_name = "SRC")]
    src: PathBuf,
    /// Run to make; its base/step-000000 must not exist yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Architecture, 1 to 5, instead of the one that the tensors show.
    #[arg(long, value_name = "N", value_parser = generation)]
    generation: Option<Generation>,
    /// The model's tokenizer: tokenizer.json of this program, its folder, or a .tiktoken rank file.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

fn generation(text: &str) -> std::result::Result<Generation, String> {
    let n: u8 = text.parse().map_err(|_| "give 1, 2, 3, 4 or 5".to_owned())?;
    Generation::try_from(n)
}

/// Runs `nanochat import`.
pub fn run(args: &ImportArgs, global: &Global) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let dir = args.out.join("base");
    let to = checkpoint::step_dir(&dir, 0);
    if to.exists() {
        bail!("{} exists: give another --out, or remove it first", to.display());
    }
    if !args.src.exists() {
        bail!(
            "{} does not exist: give a Hugging Face folder or a .safetensors",
            args.src.display()
        );
    }
    let tokenizer = args.tokenizer.as_deref().map(open_tokenizer).transpose()?;
    let model = nanochat_gpt::import::import(&*global.backend()?, &args.src, args.generation)?;
    let config = model.config();
    if let Some(tokenizer) = &tokenizer {
        let (have, want) = (tokenizer.vocab_size(), config.vocab_size);
        if have != want {
            bail!(
                "the tokenizer has {have} ids, the model {want}: give the one it was trained with"
            );
        }
        tokenizer.save(&args.out.join("tokenizer").join("tokenizer.json"))?;
    }
    let meta = Meta {
        format: checkpoint::FORMAT,
        step: 0,
        stage: "base".into(),
        model_config: config.clone(),
        tokenizer: tokenizer.as_ref().map(Tokenizer::fingerprint).unwrap_or_default(),
        val_bpb: None,
        trainer: serde_json::Value::Null,
    };
    checkpoint::save(&dir, &model, &meta, Vec::new())?;

    writeln!(out, "{}", sizes(config))?;
    let n = ParamCount::of(config);
    for (key, value) in n.rows() {
        writeln!(out, "{key:24}: {}", thousands(value as u64))?;
    }
    writeln!(out, "saved {}", to.display())?;
    if tokenizer.is_none() {
        let place = args.out.join("tokenizer");
        writeln!(out, "no tokenizer: to chat, put its tokenizer.json into {}", place.display())?;
    }
    if global.json {
        let path = to.display().to_string();
        let row = json!({
            "path": path, "model_config": config, "parameters": n.total,
            "tokenizer": meta.tokenizer,
        });
        writeln!(out, "{row}")?;
    }
    Ok(())
}

/// Ours, or a rank file split by upstream's pattern.
fn open_tokenizer(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_none_or(|e| e != "tiktoken") {
        return super::tokenizer::open(path);
    }
    let ranks =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Tokenizer::import_tiktoken(&ranks, DEFAULT_PATTERN)
        .with_context(|| format!("cannot use {}", path.display()))
}

/// `generation 5: 12 layers, 768 wide, 6 heads (6 for keys), 32,768 ids, context 2,048`.
fn sizes(c: &GptConfig) -> String {
    format!(
        "generation {}: {} layers, {} wide, {} heads ({} for keys), {} ids, context {}",
        u8::from(c.generation),
        c.n_layer,
        thousands(c.n_embd as u64),
        c.n_head,
        c.n_kv_head,
        thousands(c.vocab_size as u64),
        thousands(c.sequence_len as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_numbers_from_one_to_five() {
        assert_eq!(generation("5"), Ok(Generation::G5));
        for text in ["0", "6", "x", ""] {
            assert!(generation(text).unwrap_err().contains('5'), "{text}");
        }
    }

    #[test]
    fn the_parameter_block_adds_up() {
        let config = GptConfig::from_depth(12, 64, 128, 2048, 32768, "SSSL").unwrap();
        let rows = ParamCount::of(&config).rows();
        assert_eq!(rows[0], ("wte", 25_165_824));
        assert_eq!(rows[5].1, rows[..5].iter().map(|r| r.1).sum::<usize>());
        assert!(sizes(&config).starts_with("generation 5: 12 layers, 768 wide, 6 heads"));
    }
}
