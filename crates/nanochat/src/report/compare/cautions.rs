//! What makes two runs unequal besides the optimizations, in sentences.

use super::table::memory_limit;
use crate::report::figures::{bytes, commas};
use crate::report::record::{Record, number, text};

/// Counts that differ by less are called the same.
const NEAR: f64 = 0.005;
/// Work of two steps that differs by more makes their times incomparable.
const STEP_WORK: f64 = 0.05;

/// One sentence for each.
pub fn cautions(a: &Record, b: &Record) -> Vec<String> {
    let mut out = Vec::new();
    let mut compare = |what: &str, x: Option<f64>, y: Option<f64>, text: fn(f64) -> String| {
        if let Some((x, y)) = x.zip(y).filter(|(x, y)| apart(*x, *y, NEAR)) {
            out.push(format!("{what}: {} and {}.", text(x), text(y)));
        }
    };
    let tokens = |r: &Record, stage| r.stage_named(stage)?.tokens;
    compare("Parameters differ", a.figure("parameters"), b.figure("parameters"), commas);
    compare("Tokens of pretraining differ", tokens(a, "base"), tokens(b, "base"), commas);
    compare("Tokens of finetuning differ", tokens(a, "sft"), tokens(b, "sft"), commas);
    compare("Memory that may be used differs", memory_limit(a), memory_limit(b), bytes);
    out.extend(machines(a, b));
    out.extend(step_work(a, b));
    for (name, record) in [("Baseline", a), ("Optimized", b)] {
        out.extend(record.notes.iter().map(|n| format!("{name}: {n}")));
    }
    out
}

fn apart(a: f64, b: f64, share: f64) -> bool {
    (a - b).abs() > share * a.abs().max(b.abs())
}

fn machines(a: &Record, b: &Record) -> Option<String> {
    let machine = |r: &Record| {
        let of = r.machine().into();
        let (cpu, threads) = (text(&of, "cpu"), number(&of, "threads"));
        threads.map_or(cpu.clone(), |n| format!("{cpu}, {} threads", commas(n)))
    };
    let (a, b) = (machine(a), machine(b));
    let differ = !a.is_empty() && !b.is_empty() && a != b;
    differ.then(|| format!("The machines differ: {a} and {b}."))
}

/// Packed rows put more targets into a step: its time alone then says little.
fn step_work(a: &Record, b: &Record) -> Option<String> {
    let targets = |r: &Record| {
        let sft = r.stage_named("sft")?;
        // Without rows of steps: all of their time over the time of one.
        let steps = match sft.dt_ms.len() {
            0 => sft.train_s? / sft.step_s()?,
            n => n as f64,
        };
        Some(sft.trained_tokens? / steps).filter(|x| x.is_finite())
    };
    let (a, b) = (targets(a)?, targets(b)?);
    apart(a, b, STEP_WORK).then(|| {
        format!(
            "A step of finetuning trains on about {} and {} targets: compare trained tokens/sec, \
             not step times.",
            commas(a),
            commas(b)
        )
    })
}
