//! What the tests share: a tiny model of every generation in which nothing is zero, and checkpoints of
//! a smaller one.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, Tensor};
use nanochat_gpt::checkpoint::{self, Content, Extra, FORMAT, Meta};
use nanochat_gpt::weights::{self, Named};
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig};
use serde_json::json;

pub const GENERATIONS: [Generation; 5] =
    [Generation::G1, Generation::G2, Generation::G3, Generation::G4, Generation::G5];

/// Uniform draws in [-1, 1), the same for the same seed: a linear congruential generator.
pub struct Draws(pub u64);

impl Draws {
    pub fn next(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub fn ids(&mut self, n: usize, vocab_size: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab_size) as u32).collect()
    }
}

/// Four layers, two query heads a key head, V = 90 padded to 128; short windows are 128 of 256.
pub fn config(generation: Generation) -> GptConfig {
    let raw = RawConfig {
        sequence_len: 256,
        vocab_size: 90,
        n_layer: 4,
        n_head: 4,
        n_kv_head: 2,
        n_embd: 48,
        window_pattern: "SSSL".into(),
        generation,
        ..RawConfig::default()
    };
    GptConfig::new(raw).expect("sizes that fit")
}

/// The training init and a draw on top of every parameter, so that a wrong term cannot hide behind
/// a zero projection.
pub fn model(be: &dyn Backend, config: GptConfig, seed: u64) -> Nano {
    let model = Nano::zeros(be, config).expect("a small model");
    model.init(seed).expect("f32 parameters");
    let mut draws = Draws(seed);
    for row in model.table().rows() {
        let view = model.table().view(model.params(), row.role);
        let mut values = view.to_vec_f32().expect("f32");
        values.iter_mut().for_each(|x| *x += 0.15 * draws.next());
        view.write_f32(&values).expect("as many");
    }
    model
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Small enough for thousands of checksums in a debug build.
pub fn small(generation: Generation) -> Nano {
    let raw = RawConfig {
        sequence_len: 16,
        vocab_size: 20,
        n_layer: 2,
        n_head: 2,
        n_kv_head: 1,
        n_embd: 32,
        generation,
        ..RawConfig::default()
    };
    model(&Reference, GptConfig::new(raw).expect("sizes that fit"), 1)
}

pub fn meta(model: &Nano, step: u64) -> Meta {
    Meta {
        format: FORMAT,
        step,
        stage: "base".into(),
        model_config: model.config().clone(),
        tokenizer: "abc".into(),
        val_bpb: Some(1.234_567_890_123_456_7),
        trainer: json!({"ema": 0.1, "note": "\u{1F600}"}),
    }
}

pub fn save(dir: &Path, model: &Nano, step: u64) -> PathBuf {
    let extras = vec![
        Extra { name: "optimizer.safetensors", content: Content::Bytes((0..=255).collect()) },
        Extra { name: "loader.bin", content: Content::Bytes(vec![]) },
    ];
    checkpoint::save(dir, model, &meta(model, step), extras).expect("a writable folder")
}

/// The parameters in memory of their own: a test may change them.
pub fn copies(model: &Nano) -> Vec<Named> {
    let copy = |t: Named| {
        let data = Tensor::from_f32(&t.data.to_vec_f32().expect("f32")).expect("a small copy");
        Named { data, ..t }
    };
    weights::named(model.table(), model.params()).into_iter().map(copy).collect()
}

/// Writes a `.safetensors` file.
pub fn write_tensors(file: &Path, tensors: &[Named]) {
    let mut out = fs::File::create(file).expect("a writable folder");
    weights::write(file, &mut out, tensors).expect("tensors that fit their shapes");
}

pub fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a writable folder")
}

pub fn params(model: &Nano) -> Vec<u32> {
    bits(&model.params().to_vec_f32().expect("f32"))
}

/// Names in a folder, but for the hint that every save leaves.
pub fn entries(dir: &Path) -> Vec<String> {
    let name = |e: std::io::Result<fs::DirEntry>| e.expect("an entry").file_name();
    let read = fs::read_dir(dir).expect("a folder");
    let mut names: Vec<String> = read.map(|e| name(e).to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "LATEST");
    names.sort();
    names
}
