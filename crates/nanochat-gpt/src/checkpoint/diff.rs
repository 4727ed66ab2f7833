//! What differs between two steps: files by their checksums, tensors by their values, meta data by field.

use std::collections::BTreeMap;
use std::path::Path;

use nanochat_compute::{DType, Tensor};
use serde::Serialize;
use serde_json::Value;

use super::check::manifest;
use super::{META, extra};
use crate::weights::Reader;
use crate::{Error, Result};

/// What differs between two steps.
#[derive(Debug, Default, Serialize)]
pub struct Diff {
    /// Fields of `meta.json`: name, value there, value here.
    pub meta: Vec<(String, Value, Value)>,
    /// Files that only one has, or that differ.
    pub files: Vec<String>,
    /// Tensors that only one has, or that differ.
    pub tensors: Vec<TensorDiff>,
}

/// A tensor that differs.
#[derive(Debug, Serialize)]
pub struct TensorDiff {
    /// File it is in.
    pub file: String,
    /// Its name.
    pub name: String,
    /// Values of it.
    pub len: usize,
    /// Values whose bits differ; all of them when only one step has it, or the shapes differ.
    pub differ: usize,
    /// Largest distance of two values; none when they cannot be paired.
    pub max: Option<f32>,
}

impl Diff {
    /// True when the two steps hold the same.
    pub fn is_empty(&self) -> bool {
        self.meta.is_empty() && self.files.is_empty() && self.tensors.is_empty()
    }
}

/// Compares two steps, which should have been verified.
///
/// Errors: a manifest or a file that cannot be read.
pub fn diff(a: &Path, b: &Path) -> Result<Diff> {
    let files = |step: &Path| -> Result<BTreeMap<String, String>> {
        Ok(manifest(step)?.files.into_iter().map(|e| (e.name, e.sha256)).collect())
    };
    let (in_a, in_b) = (files(a)?, files(b)?);
    let mut found = Diff::default();
    let names = in_a.keys().chain(in_b.keys().filter(|n| !in_a.contains_key(*n)));
    for name in names.filter(|n| in_a.get(*n) != in_b.get(*n)) {
        let both = in_a.contains_key(name) && in_b.contains_key(name);
        if name != META || !both {
            found.files.push(name.clone());
        }
        if both && name == META {
            fields("", &json(a)?, &json(b)?, &mut found.meta);
        }
        if both && name.ends_with(".safetensors") {
            tensors(a, b, name, &mut found.tensors)?;
        }
    }
    Ok(found)
}

fn json(step: &Path) -> Result<Value> {
    let file = step.join(META);
    serde_json::from_slice(&extra(step, META)?)
        .map_err(|e| Error::File { file, detail: format!("not a meta.json ({e})") })
}

/// Appends the fields that differ, `a.b.c` for those inside objects.
pub fn fields(path: &str, a: &Value, b: &Value, out: &mut Vec<(String, Value, Value)>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys().filter(|k| !x.contains_key(*k))) {
                let at = format!("{path}{}{key}", if path.is_empty() { "" } else { "." });
                let of = |m: &serde_json::Map<String, Value>| m.get(key).cloned();
                fields(&at, &of(x).unwrap_or_default(), &of(y).unwrap_or_default(), out);
            }
        }
        _ if a == b => {}
        _ => out.push((path.into(), a.clone(), b.clone())),
    }
}

fn tensors(a: &Path, b: &Path, file: &str, out: &mut Vec<TensorDiff>) -> Result<()> {
    let (a, b) = (Reader::open(&a.join(file))?, Reader::open(&b.join(file))?);
    let mut names = a.names();
    names.extend(b.names());
    names.sort();
    names.dedup();
    for name in names {
        let (x, y) = (a.shape(&name).ok(), b.shape(&name).ok());
        let len = x.or(y).map_or(0, |shape| shape.iter().product());
        let row =
            |differ, max| TensorDiff { file: file.into(), name: name.clone(), len, differ, max };
        if x.is_none() || x != y {
            out.push(row(len, None));
            continue;
        }
        let (x, y) = (values(&a, &name, len)?, values(&b, &name, len)?);
        let differ = x.iter().zip(&y).filter(|(x, y)| x.to_bits() != y.to_bits()).count();
        if differ > 0 {
            let max = x.iter().zip(&y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            out.push(row(differ, Some(max)));
        }
    }
    Ok(())
}

fn values(file: &Reader, name: &str, len: usize) -> Result<Vec<f32>> {
    let to = Tensor::zeros(len, DType::F32)?;
    file.read(name, &to)?;
    Ok(to.to_vec_f32()?)
}
