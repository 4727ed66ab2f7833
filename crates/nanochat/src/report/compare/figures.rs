//! Every figure of two runs with difference and ratio; every setting that differs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::report::figures::{NOT_MEASURED, clip};
use crate::report::record::Record;

/// One figure of two runs.
#[derive(Debug, Serialize, PartialEq)]
pub struct Figure {
    /// Path in the summary: `stages.base.tokens_per_sec`.
    pub name: String,
    /// The first run's.
    pub a: Option<f64>,
    /// The second run's.
    pub b: Option<f64>,
    /// `b - a`.
    pub difference: Option<f64>,
    /// `b / a`, unless `a` is zero.
    pub ratio: Option<f64>,
}

/// One setting of two runs, as JSON text.
#[derive(Debug, Serialize, PartialEq)]
pub struct Setting {
    /// Path: `settings.base.n_layer`.
    pub name: String,
    /// The first run's; `None` when it has none.
    pub a: Option<String>,
    /// The second run's.
    pub b: Option<String>,
}

/// Figures that either run has.
pub fn figures(a: &Record, b: &Record) -> Vec<Figure> {
    let (a, b) = (found(a), found(b));
    let figure = |name: String| {
        let (a, b) = (a.get(&name).copied(), b.get(&name).copied());
        let both = a.zip(b);
        let difference = both.map(|(a, b)| b - a);
        let ratio = both.filter(|(a, _)| *a != 0.0).map(|(a, b)| b / a);
        Figure { name, a, b, difference, ratio }
    };
    merged(&a, &b).into_iter().map(figure).collect()
}

/// Settings, machine and command where the runs differ.
pub fn differs(a: &Record, b: &Record) -> Vec<Setting> {
    let (a, b) = (settings(a), settings(b));
    let setting = |name: String| {
        let (a, b) = (a.get(&name).cloned(), b.get(&name).cloned());
        Setting { name, a, b }
    };
    merged(&a, &b).into_iter().map(setting).filter(|s| s.a != s.b).collect()
}

/// Names that either has, whole-run figures before those of stages and kinds.
fn merged<T>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Vec<String> {
    let mut names: Vec<String> = a.keys().chain(b.keys()).cloned().collect();
    names.sort_by(|x, y| (x.contains('.'), x).cmp(&(y.contains('.'), y)));
    names.dedup();
    names
}

fn found(record: &Record) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    leaves("", &record.summary, &mut |path, leaf| {
        let described = path.starts_with("machine.") || path.starts_with("command.");
        if let Some(x) = leaf.as_f64().filter(|_| !described) {
            found.insert(path.into(), x);
        }
    });
    let mut add = |name: String, x: Option<f64>| {
        if let Some(x) = x.filter(|x| x.is_finite()) {
            found.entry(name).or_insert(x);
        }
    };
    add("val_bpb".into(), record.val_bpb());
    for s in &record.stages {
        add(format!("stages.{}.seconds", s.name), s.seconds);
        add(format!("stages.{}.tokens", s.name), s.tokens);
        add(format!("stages.{}.tokens_per_sec", s.name), s.tokens_per_sec);
        add(format!("stages.{}.final_loss", s.name), s.final_loss());
        add(format!("stages.{}.val_bpb", s.name), s.last_bpb());
    }
    for s in &record.scores {
        add(format!("scores.{}", s.kind), s.score);
    }
    found
}

fn settings(record: &Record) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    found.insert("command".into(), record.command());
    found.insert("version".into(), record.version());
    let mut add = |path: &str, leaf: &Value| {
        found.insert(path.into(), leaf.to_string());
    };
    leaves("machine", &Value::Object(record.machine()), &mut add);
    leaves("settings", &record.run["settings"], &mut add);
    found.retain(|_, text| !text.is_empty());
    found
}

/// Calls `take` with the path and value of each scalar.
fn leaves(path: &str, value: &Value, take: &mut dyn FnMut(&str, &Value)) {
    let join = |key: &str| if path.is_empty() { key.into() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| leaves(&join(k), v, take)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| leaves(&join(&i.to_string()), v, take));
        }
        Value::Null => {}
        scalar => take(path, scalar),
    }
}

/// Six significant digits at most, small numbers as they are.
pub fn cell(x: Option<f64>) -> String {
    match x {
        None => NOT_MEASURED.into(),
        Some(x) if x == x.trunc() && x.abs() < 1e15 => format!("{x:.0}"),
        Some(x) if (1e-3..1e3).contains(&x.abs()) => format!("{x:.4}"),
        Some(x) if (1e3..1e9).contains(&x.abs()) => format!("{x:.1}"),
        Some(x) => format!("{x:.4e}"),
    }
}

impl Figure {
    /// Both values, their difference with its sign, their ratio.
    pub fn cells(&self) -> [String; 4] {
        let difference = match self.difference {
            Some(d) if d > 0.0 => format!("+{}", cell(self.difference)),
            Some(_) => cell(self.difference),
            None => String::new(),
        };
        let ratio = self.ratio.map_or(String::new(), |r| format!("{r:.3}x"));
        [cell(self.a), cell(self.b), difference, ratio]
    }
}

impl Setting {
    /// Both values, clipped.
    pub fn cells(&self) -> [String; 2] {
        [&self.a, &self.b].map(|x| x.as_deref().map_or("absent".into(), |t| clip(t, 120)))
    }
}
