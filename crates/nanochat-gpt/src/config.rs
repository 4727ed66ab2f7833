//! What a nanochat GPT is: sizes and generation, parsed once and valid ever after.

use nanochat_compute::ops::NORM_EPS;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The five architectures that nanochat's GPT has had. What differs is in [`Generation::rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Generation {
    /// October 2025; the Hugging Face `NanoChatForCausalLM` class.
    G1,
    /// January 11, 2026: residual lambdas, windows.
    G2,
    /// January 16, 2026: value embeddings.
    G3,
    /// March 9, 2026: rope base, QK scale 1.15, narrower gate.
    G4,
    /// March 14, 2026 until July: smear, backout, QK scale 1.2.
    G5,
}

impl TryFrom<u8> for Generation {
    type Error = String;

    fn try_from(n: u8) -> std::result::Result<Self, String> {
        match n {
            1 => Ok(Self::G1),
            2 => Ok(Self::G2),
            3 => Ok(Self::G3),
            4 => Ok(Self::G4),
            5 => Ok(Self::G5),
            _ => Err(format!("generation {n} does not exist: give 1, 2, 3, 4 or 5")),
        }
    }
}

impl From<Generation> for u8 {
    fn from(g: Generation) -> u8 {
        g as u8 + 1
    }
}

/// The constants and parts of one generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Multiplies normalised queries and keys, each.
    pub qk_scale: f32,
    /// Logits are `cap tanh(z / cap)`. Between March 2 and 9, 2026 (late generation 3) it was 20.
    pub softcap: f32,
    /// Added to the mean square of every norm.
    pub norm_eps: f32,
    /// Numerator and denominator of a short window as a share of T, and its rounding multiple;
    /// none: every layer sees everything.
    pub short_window: Option<(usize, usize)>,
    /// Value embeddings: gate channels and the gate's largest value.
    pub value_gate: Option<(usize, f32)>,
    /// Learned residual mixes `x = resid_lambda x + x0_lambda x0`.
    pub lambdas: bool,
    /// Smear after the embedding, and backout of the middle layer before the head.
    pub smear_backout: bool,
}

/// The smear gate reads this many channels.
pub const SMEAR_CHANNELS: usize = 24;

impl Generation {
    /// Constants and parts. Source: the history of nanochat's `gpt.py`.
    pub fn rules(self) -> Rules {
        let g = self;
        Rules {
            rope_base: if g >= Self::G4 { 100_000.0 } else { 10_000.0 },
            qk_scale: match g {
                Self::G5 => 1.2,
                Self::G4 => 1.15,
                _ => 1.0,
            },
            softcap: 15.0,
            norm_eps: NORM_EPS,
            // (share of T as a divisor, multiple that it is rounded up to)
            short_window: match g {
                Self::G1 => None,
                Self::G2 | Self::G3 => Some((2, 1)),
                Self::G4 => Some((3, 128)),
                Self::G5 => Some((4, 128)),
            },
            value_gate: match g {
                Self::G1 | Self::G2 => None,
                Self::G3 => Some((32, 2.0)),
                Self::G4 | Self::G5 => Some((12, 3.0)),
            },
            lambdas: g >= Self::G2,
            smear_backout: g == Self::G5,
        }
    }
}

/// Sizes of a model as they stand in a file or on a command line; not checked yet.
///
/// Field names are those of upstream's `model_config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawConfig {
    /// T that the model is made for; windows are shares of it.
    pub sequence_len: usize,
    /// V.
    pub vocab_size: usize,
    /// L.
    pub n_layer: usize,
    /// H.
    pub n_head: usize,
    /// Hkv.
    pub n_kv_head: usize,
    /// C.
    pub n_embd: usize,
    /// Letters S (short) and L (long), tiled over the layers; the last layer is always L.
    #[serde(default = "all_long")]
    pub window_pattern: String,
    /// Architecture; upstream's files do not say.
    #[serde(default = "newest")]
    pub generation: Generation,
    /// Another base of the rotary frequencies than the generation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_base: Option<f32>,
    /// Another softcap than the generation's (20 in late generation 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softcap: Option<f32>,
    /// Another epsilon of the norms (1e-6 in Hugging Face's class).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f32>,
}

impl Default for RawConfig {
    /// Upstream's defaults; most sizes still have to be given.
    fn default() -> Self {
        Self {
            sequence_len: 2048,
            vocab_size: 32768,
            n_layer: 12,
            n_head: 6,
            n_kv_head: 6,
            n_embd: 768,
            window_pattern: "SSSL".into(),
            generation: Generation::G5,
            rope_base: None,
            softcap: None,
            norm_eps: None,
        }
    }
}

fn all_long() -> String {
    "L".into()
}

fn newest() -> Generation {
    Generation::G5
}

/// Sizes of a model, checked: whoever holds one checks nothing again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawConfig", into = "RawConfig")]
pub struct GptConfig {
    raw: RawConfig,
    rules: Rules,
}

impl From<GptConfig> for RawConfig {
    fn from(c: GptConfig) -> RawConfig {
        c.raw
    }
}

impl TryFrom<RawConfig> for GptConfig {
    type Error = Error;

    fn try_from(raw: RawConfig) -> Result<Self> {
        Self::new(raw)
    }
}

impl std::ops::Deref for GptConfig {
    type Target = RawConfig;

    fn deref(&self) -> &RawConfig {
        &self.raw
    }
}

impl GptConfig {
    /// Checks sizes against each other.
    ///
    /// Errors: [`Error::Config`] naming the field.
    pub fn new(raw: RawConfig) -> Result<Self> {
        let bad = |field: &'static str, detail: String| Err(Error::Config { field, detail });
        let (c, h, hkv) = (raw.n_embd, raw.n_head, raw.n_kv_head);
        for (field, n, most) in [
            ("sequence_len", raw.sequence_len, 1 << 20),
            ("vocab_size", raw.vocab_size, 1 << 24),
            ("n_layer", raw.n_layer, 4096),
            ("n_head", h, 1 << 16),
            ("n_kv_head", hkv, 1 << 16),
            ("n_embd", c, 1 << 20),
        ] {
            if n == 0 || n > most {
                return bad(field, format!("{n} is not between 1 and {most}"));
            }
        }
        if !c.is_multiple_of(h) {
            return bad("n_head", format!("{h} heads do not divide n_embd {c}"));
        }
        if !h.is_multiple_of(hkv) {
            return bad("n_kv_head", format!("{hkv} key/value heads do not divide {h} heads"));
        }
        if !(c / h).is_multiple_of(2) {
            return bad("n_head", format!("head_dim {} is odd: rotary pairs need even", c / h));
        }
        let mut rules = raw.generation.rules();
        for (field, given, rule) in [
            ("rope_base", raw.rope_base, &mut rules.rope_base),
            ("softcap", raw.softcap, &mut rules.softcap),
            ("norm_eps", raw.norm_eps, &mut rules.norm_eps),
        ] {
            if let Some(x) = given {
                if !(x.is_finite() && x > 0.0) {
                    return bad(field, format!("{x} is not a positive number"));
                }
                *rule = x;
            }
        }
        let channels = rules.value_gate.map_or(0, |(channels, _)| channels);
        let channels = if rules.smear_backout { channels.max(SMEAR_CHANNELS) } else { channels };
        if c < channels {
            return bad("n_embd", format!("{c} is less than the {channels} channels of a gate"));
        }
        let pattern = raw.window_pattern.as_str();
        if pattern.is_empty() || pattern.chars().any(|l| !"SLsl".contains(l)) {
            return bad("window_pattern", format!("{pattern:?} is not letters S and L"));
        }
        Ok(Self { raw, rules })
    }

    /// Width and heads from one dial: `C = ceil(depth * aspect / head_dim) * head_dim`, `H = Hkv = C / head_dim`.
    ///
    /// Errors: [`Error::Config`].
    pub fn from_depth(
        depth: usize,
        aspect_ratio: usize,
        head_dim: usize,
        sequence_len: usize,
        vocab_size: usize,
        window_pattern: &str,
    ) -> Result<Self> {
        if head_dim == 0 {
            return Err(Error::Config { field: "head_dim", detail: "0 is not a size".into() });
        }
        let n_head = (depth * aspect_ratio).div_ceil(head_dim).max(1);
        Self::new(RawConfig {
            sequence_len,
            vocab_size,
            n_layer: depth,
            n_head,
            n_kv_head: n_head,
            n_embd: n_head * head_dim,
            window_pattern: window_pattern.into(),
            ..RawConfig::default()
        })
    }

    /// Constants and parts of the generation.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// D: channels of a head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Hkv D: channels of all keys of a position.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_head * self.head_dim()
    }

    /// Vp: rows of the embedding and the head, V rounded up to a multiple of 64.
    pub fn padded_vocab(&self) -> usize {
        self.vocab_size.next_multiple_of(64)
    }

    /// Keys before itself that a query of layer `i` sees: T where long, the generation's share of T
    /// where short.
    pub fn window(&self, i: usize) -> usize {
        let t = self.sequence_len;
        let letter = self.window_pattern.as_bytes()[i % self.window_pattern.len()];
        match self.rules.short_window {
            Some((share, multiple))
                if letter.eq_ignore_ascii_case(&b'S') && i + 1 != self.n_layer =>
            {
                // Generations 2 and 3 took T/2 rounded down; later ones round up to 128.
                if multiple == 1 { t / share } else { t.div_ceil(share * multiple) * multiple }
            }
            _ => t,
        }
    }

    /// True when layer `i` has a value embedding: every second layer, the last one included.
    pub fn has_value_embedding(&self, i: usize) -> bool {
        self.rules.value_gate.is_some() && i % 2 == (self.n_layer - 1) % 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(depth: usize) -> GptConfig {
        GptConfig::from_depth(depth, 64, 128, 2048, 32768, "SSSL").expect("upstream's sizes")
    }

    #[test]
    fn widths_follow_depth_as_upstream() {
        let sizes: Vec<_> = [4, 6, 12, 20, 32].map(|n| (d(n).n_embd, d(n).n_head)).into();
        assert_eq!(sizes, [(256, 2), (384, 3), (768, 6), (1280, 10), (2048, 16)]);
    }

    #[test]
    fn windows_tile_and_the_last_layer_is_long() {
        let c = d(6);
        let windows: Vec<_> = (0..6).map(|i| c.window(i)).collect();
        assert_eq!(windows, [512, 512, 512, 2048, 512, 2048]);
        let short = GptConfig::from_depth(6, 64, 64, 512, 32768, "SSSL").expect("sizes");
        assert_eq!(short.window(0), 128);
    }

    #[test]
    fn a_field_that_does_not_fit_is_named() {
        let mut raw: RawConfig = d(4).into();
        raw.n_kv_head = 3;
        let message = GptConfig::new(raw).expect_err("3 does not divide 2").to_string();
        assert!(message.contains("n_kv_head"), "{message}");
    }
}
