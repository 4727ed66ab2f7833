//! `quick.json`, what `nanochat bench quick` printed -> rows of without, with, gain.

use serde::Serialize;
use serde_json::Value;

use super::gain::{Gain, Measure, Verdict};
use crate::report::figures::{NOT_MEASURED, commas, known, share, short, span};
use crate::report::record::{list, number, text};

/// One optimization, off and on.
#[derive(Debug, Serialize)]
pub struct Row {
    /// `KV cache, 8 rows`, ...
    pub what: String,
    /// Its figures without the optimization.
    pub without: String,
    /// Its figures with it.
    pub with: String,
    /// What the difference is called.
    pub gain: Gain,
}

/// Tokens a second of decoding `rows` rows, with and without the KV cache.
pub struct Cache {
    /// Rows decoded at once.
    pub rows: f64,
    /// With the cache.
    pub cached: Option<f64>,
    /// Without it.
    pub uncached: Option<f64>,
}

/// First tokens of samples from one prompt.
pub struct Sampling {
    /// Different ones.
    pub first_tokens: f64,
    /// Of the test against the model's own distribution.
    pub p_value: Option<f64>,
}

/// The model and machine that it ran on; empty when unknown.
pub fn machine(quick: &Value) -> String {
    let of = &quick["machine"];
    let parameters = number(quick, "parameters").map(|n| format!("{} parameters", short(n)));
    let threads = number(of, "threads").map(|n| format!("{} threads", commas(n)));
    let named = of.as_str().map_or_else(|| text(of, "cpu"), String::from);
    let words =
        [text(quick, "model"), parameters.unwrap_or_default(), named, threads.unwrap_or_default()];
    words.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(", ")
}

/// All rows, in the order of the benchmark document.
pub fn rows(quick: &Value) -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(batch_size(&quick["batch_size"]));
    rows.extend(cache(quick).iter().map(|c| Row {
        what: format!("KV cache, batch {}", commas(c.rows)),
        without: known(c.uncached, |x| format!("{} tokens/sec", commas(x))),
        with: known(c.cached, |x| format!("{} tokens/sec", commas(x))),
        gain: c.gain(),
    }));
    rows.extend(sft(&quick["sft"]));
    let samples = ["broadcast", "independent"].map(|mode| sampling(quick, mode));
    if samples.iter().any(Option::is_some) {
        let [without, with] = samples.map(|s| s.map_or_else(|| NOT_MEASURED.into(), |s| s.text()));
        let gain = Gain { text: String::new(), verdict: Verdict::Neutral, times: None };
        rows.push(Row { what: "First tokens of samples".into(), without, with, gain });
    }
    rows
}

fn batch_size(of: &Value) -> Option<Row> {
    let side = |size: Option<f64>, rate: Option<f64>| {
        let rate = rate.map_or(String::new(), |r| format!(", {} tokens/sec", commas(r)));
        known(size, |n| format!("{} rows{rate}", commas(n)))
    };
    let [with, without] = ["tokens_per_sec", "baseline_tokens_per_sec"].map(|key| number(of, key));
    let found = number(of, "batch_size")?;
    let took = number(of, "discovery_s").filter(|s| *s >= 0.0);
    let took = took.map_or(String::new(), |s| format!(", found in {}", span(s)));
    Some(Row {
        what: "Automatic batch size".into(),
        without: side(number(of, "baseline"), without),
        with: side(Some(found), with) + &took,
        gain: Measure::Rate.gain(without, with),
    })
}

/// Rates by rows decoded at once.
pub fn cache(quick: &Value) -> Vec<Cache> {
    let row = |of: &Value| {
        Some(Cache {
            rows: number(of, "batch_size")?,
            cached: number(of, "tokens_per_sec"),
            uncached: number(of, "no_cache_tokens_per_sec"),
        })
    };
    list(&quick["kv_cache"]).iter().filter_map(row).collect()
}

/// The uncompiled step, of dynamic batching where there is a choice.
pub fn eager(sft: &Value) -> Option<&Value> {
    let mut eager = list(sft).iter().filter(|r| r["step"] == "eager");
    eager.clone().find(|r| r["batching"] == "dynamic").or_else(|| eager.next())
}

/// Every other way of finetuning against the uncompiled step.
fn sft(of: &Value) -> Vec<Row> {
    let Some(base) = eager(of) else { return Vec::new() };
    let name = |r: &Value| {
        let words = [text(r, "step"), text(r, "batching")];
        words.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(", ")
    };
    let rate = |r: &Value| number(r, "trained_tokens_per_sec");
    let side = |r: &Value| {
        let padding = number(r, "padding_share").map(|s| format!(", {} padding", share(s)));
        let rate = known(rate(r), |x| format!("{} trained tokens/sec", commas(x)));
        rate + &padding.unwrap_or_default()
    };
    let row = |r: &Value| Row {
        what: format!("SFT step: {}", name(r)),
        without: format!("{} ({})", side(base), name(base)),
        with: side(r),
        gain: Measure::Rate.gain(rate(base), rate(r)),
    };
    list(of).iter().filter(|r| !std::ptr::eq(*r, base)).map(row).collect()
}

/// What sampling in a mode gave.
pub fn sampling(quick: &Value, mode: &str) -> Option<Sampling> {
    let of = &quick["sampling"][mode];
    Some(Sampling { first_tokens: number(of, "first_tokens")?, p_value: number(of, "p_value") })
}

impl Cache {
    /// With the cache against without.
    pub fn gain(&self) -> Gain {
        Measure::Rate.gain(self.uncached, self.cached)
    }
}

impl Sampling {
    /// `13 different, p 0.400`.
    pub fn text(&self) -> String {
        let p = match self.p_value {
            Some(p) if p < 0.001 => ", p below 0.001".into(),
            Some(p) => format!(", p {p:.3}"),
            None => String::new(),
        };
        format!("{} different{p}", commas(self.first_tokens))
    }
}
