//! What the tests share: a tiny tokenizer, a tiny model, batches by hand, and an observer that keeps
//! what it is told.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use nanochat_data::{Batch, Batches, Dataset, Loader, LoaderConfig, Policy};
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};
use nanochat_train::Result;
use nanochat_train::metrics::{LineKind, Metrics, Observer};
use serde_json::Value;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

pub fn json(name: &str) -> Value {
    let text = std::fs::read(fixture(name)).expect("the fixture is in the repository");
    serde_json::from_slice(&text).expect("JSON")
}

/// Numbers of a JSON list.
pub fn floats(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// Bytes and nine specials: V = 265.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_merges(DEFAULT_PATTERN, vec![]).expect("no merges are sound merges")
}

/// Two layers of width 32 for rows of 32.
pub fn config() -> GptConfig {
    let raw = RawConfig {
        sequence_len: 32,
        vocab_size: 265,
        n_layer: 2,
        n_head: 2,
        n_kv_head: 2,
        n_embd: 32,
        ..RawConfig::default()
    };
    GptConfig::new(raw).expect("sizes that fit")
}

pub fn model(be: &dyn Backend) -> Nano {
    let model = Nano::zeros(be, config()).expect("a small model");
    model.init(42).expect("f32 parameters");
    model
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub fn params(model: &Nano) -> Vec<u32> {
    bits(&model.params().to_vec_f32().expect("f32"))
}

/// Sums of numbers in words: enough structure for a loss to fall, no two alike.
pub fn documents(n: usize, seed: usize) -> Vec<String> {
    let line = |i: usize| format!("{} and {} are {}. ", i % 13, i % 7, i % 13 + i % 7);
    (0..n).map(|i| (0..=i % 4).map(|j| line(seed + i * 31 + j * 17)).collect()).collect()
}

pub fn dataset(seed: usize) -> Dataset {
    let lists = vec![("a".into(), documents(150, seed)), ("b".into(), documents(90, seed + 5))];
    Dataset::memory(lists, &Policy::default()).expect("two lists")
}

/// Rows of 32, two a batch, from a set that a run reads more than once.
pub fn loader(seed: usize) -> Loader<Tokenizer> {
    let config = LoaderConfig { buffer: 60, refill: 16, ..LoaderConfig::new(2, 32) };
    Loader::new(&dataset(seed), tokenizer(), config).expect("a set with documents")
}

/// The same batches in a circle.
pub struct Given {
    pub list: Vec<Batch>,
    pub at: usize,
}

impl Given {
    pub fn new(list: Vec<Batch>) -> Self {
        Self { list, at: 0 }
    }
}

/// A batch of these ids and targets.
pub fn batch(b: usize, x: Vec<i32>, y: Vec<i32>) -> Batch {
    let trained_tokens = y.iter().filter(|&&y| y >= 0).count();
    let (t, name) = (x.len() / b, "given rows".into());
    Batch { b, t, x, y, w: None, epoch: 1, name, trained_tokens, padding_tokens: 0 }
}

impl Batches for Given {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        self.at += 1;
        Ok(self.list[(self.at - 1) % self.list.len()].clone())
    }
    fn state(&self) -> Vec<u8> {
        vec![]
    }
    fn restore(&mut self, _: &[u8]) -> nanochat_data::Result<()> {
        Ok(())
    }
    fn fingerprint(&self) -> String {
        "given".into()
    }
    fn progress(&self) -> f64 {
        0.0
    }
}

/// A stream that fails for good after `left` batches, as a machine that is switched off.
pub struct Stops<B> {
    pub inner: B,
    pub left: usize,
}

impl<B: Batches> Batches for Stops<B> {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        if self.left == 0 {
            return Err(nanochat_data::Error::State { why: "the power failed".into() });
        }
        self.left -= 1;
        self.inner.next_batch()
    }
    fn state(&self) -> Vec<u8> {
        self.inner.state()
    }
    fn restore(&mut self, state: &[u8]) -> nanochat_data::Result<()> {
        self.inner.restore(state)
    }
    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
    fn progress(&self) -> f64 {
        self.inner.progress()
    }
}

/// Keeps every line and row; writes the rows on if there is a file.
#[derive(Default)]
pub struct Told {
    pub lines: Vec<String>,
    pub rows: Vec<Value>,
    pub metrics: Option<Metrics>,
}

impl Observer for Told {
    fn line(&mut self, _: LineKind, text: &str) {
        self.lines.push(text.into());
    }

    fn row(&mut self, row: Value) -> Result<()> {
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&row)?;
        }
        self.rows.push(row);
        Ok(())
    }
}

impl Told {
    /// A field of the rows of one kind.
    pub fn field(&self, kind: &str, field: &str) -> Vec<f64> {
        let of_kind = self.rows.iter().filter(|r| r["kind"] == kind);
        of_kind.map(|r| r[field].as_f64().expect("a number")).collect()
    }
}
