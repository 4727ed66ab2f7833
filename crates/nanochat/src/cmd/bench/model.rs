//! The models that benchmarks build: sizes on the command line, or one by name.

use anyhow::Result;
use clap::{Args, ValueEnum};
use nanochat_gpt::{Generation, GptConfig, RawConfig};

/// Sizes of a model that only a benchmark needs.
#[derive(Args, Clone, Debug)]
pub struct ModelFlags {
    /// A model by name; the sizes below are then not looked at, but --max-seq-len.
    #[arg(long, value_enum)]
    pub model: Option<Named>,
    /// Layers.
    #[arg(long, default_value_t = 6)]
    pub depth: usize,
    /// Width per layer.
    #[arg(long, default_value_t = 64)]
    pub aspect_ratio: usize,
    /// Channels of a head.
    #[arg(long, default_value_t = 64)]
    pub head_dim: usize,
    /// Letters S and L.
    #[arg(long, default_value = "L")]
    pub window_pattern: String,
    /// T.
    #[arg(long, default_value_t = 512)]
    pub max_seq_len: usize,
    /// V.
    #[arg(long, default_value_t = 32768)]
    pub vocab_size: usize,
}

/// Models of benchmarks that others published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Named {
    /// 12 layers, 768 wide, 12 heads over 6, 65,536 tokens: 178.5 million parameters of October 2025.
    SeedD12,
}

impl ModelFlags {
    /// The sizes, checked.
    pub fn config(&self) -> Result<GptConfig> {
        if self.model == Some(Named::SeedD12) {
            return Ok(seed_d12(self.max_seq_len)?);
        }
        Ok(GptConfig::from_depth(
            self.depth,
            self.aspect_ratio,
            self.head_dim,
            self.max_seq_len,
            self.vocab_size,
            &self.window_pattern,
        )?)
    }

    /// How the model is called in tables.
    pub fn name(&self) -> String {
        match self.model {
            Some(Named::SeedD12) => "seed-d12".into(),
            None => format!("depth {}", self.depth),
        }
    }

    /// The flags that make this model in another process.
    pub fn arguments(&self) -> Vec<String> {
        let mut all = vec![format!("--max-seq-len={}", self.max_seq_len)];
        match self.model {
            Some(Named::SeedD12) => all.push("--model=seed-d12".into()),
            None => all.extend([
                format!("--depth={}", self.depth),
                format!("--aspect-ratio={}", self.aspect_ratio),
                format!("--head-dim={}", self.head_dim),
                format!("--window-pattern={}", self.window_pattern),
                format!("--vocab-size={}", self.vocab_size),
            ]),
        }
        all
    }
}

fn seed_d12(sequence_len: usize) -> nanochat_gpt::Result<GptConfig> {
    GptConfig::new(RawConfig {
        sequence_len,
        vocab_size: 65_536,
        n_layer: 12,
        n_head: 12,
        n_kv_head: 6,
        n_embd: 768,
        window_pattern: "L".into(),
        generation: Generation::G1,
        ..RawConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use nanochat_gpt::nano::count::ParamCount;

    use super::*;

    #[test]
    fn the_named_model_has_its_parameters() {
        let config = seed_d12(512).expect("sizes");
        assert_eq!(ParamCount::of(&config).total, 178_520_064, "178.5 million");
    }
}
