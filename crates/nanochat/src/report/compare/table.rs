//! The benchmark's table: two runs -> rows of baseline, optimized, improvement.

use serde::Serialize;

use super::gain::{Gain, Measure};
use crate::report::record::{Record, number};
use crate::report::stage::Stage;

/// Seconds of training steps, both stages.
pub const TRAINING: &str = "Total training time";
/// Targets that counted, a second.
pub const SFT_RATE: &str = "SFT trained tokens/sec";
/// Tokens a second of the finished model.
pub const DECODING: &str = "Final inference speed";
/// Bits per byte of held-out text.
pub const BPB: &str = "Validation bpb";

/// One row.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub metric: &'static str,
    /// The benchmark document asks for it; the others say more.
    pub asked: bool,
    /// The baseline's figure: seconds, tokens a second, bytes, a share or bits per byte.
    pub baseline: Option<f64>,
    /// The optimized run's figure.
    pub optimized: Option<f64>,
    /// Both as people read them.
    pub shown: [String; 2],
    /// What the difference is called.
    pub gain: Gain,
}

type Of = fn(&Record) -> Option<f64>;

/// All rows, in the order of the benchmark document.
pub fn rows(a: &Record, b: &Record) -> Vec<Row> {
    use Measure::{Bpb, Bytes, Rate, Seconds, Share, Waste};
    let columns: [(&'static str, bool, Measure, Of); 10] = [
        (TRAINING, true, Seconds, training_s),
        ("Total wall clock time", false, Seconds, |r| positive(r.figure("wall_s"))),
        ("Base training tokens/sec", true, Rate, |r| r.stage_named("base")?.tokens_per_sec),
        ("SFT training step time", true, Seconds, |r| r.stage_named("sft")?.step_s()),
        (DECODING, true, Rate, |r| positive(r.figure("decode_tokens_per_sec"))),
        ("Memory utilization", true, Share, memory_share),
        (SFT_RATE, false, Rate, |r| r.stage_named("sft")?.trained_tokens_per_sec),
        ("SFT padding share", false, Waste, |r| r.stage_named("sft")?.padding_share),
        ("Peak memory", false, Bytes, |r| positive(r.figure("peak_rss_bytes"))),
        (BPB, false, Bpb, Record::val_bpb),
    ];
    let row = |(metric, asked, measure, of): (&'static str, bool, Measure, Of)| {
        let (baseline, optimized) = (of(a), of(b));
        let shown = [baseline, optimized].map(|x| match measure.text(x) {
            rate if metric == DECODING && x.is_some() => rate + " tokens/sec",
            text => text,
        });
        let gain = measure.gain(baseline, optimized);
        Row { metric, asked, baseline, optimized, shown, gain }
    };
    columns.into_iter().map(row).collect()
}

fn positive(x: Option<f64>) -> Option<f64> {
    x.filter(|x| *x > 0.0)
}

/// Seconds of training steps of pretraining and finetuning, once both are over.
fn training_s(record: &Record) -> Option<f64> {
    let of = |name| record.stage_named(name).filter(|s: &&Stage| s.finished)?.train_s;
    Some(of("base")? + of("sft")?)
}

/// What a run may use: its limit, else the machine's memory.
pub fn memory_limit(record: &Record) -> Option<f64> {
    let machine = || number(&record.machine().into(), "memory_bytes");
    positive(record.figure("memory_limit_bytes")).or_else(|| positive(machine()))
}

/// The most memory that was held, as a share of what the run may use.
fn memory_share(record: &Record) -> Option<f64> {
    Some(positive(record.figure("peak_rss_bytes"))? / memory_limit(record)?)
}
