//! [`Summary`] -> the benchmark's table `Metric | Value`, in Markdown.

use super::{BatchSize, Summary};
use crate::report::figures::{NOT_MEASURED, bytes, commas, four, known, share, span, wall};

const MIB: f64 = 1024.0 * 1024.0;

impl Summary {
    /// The rows of the benchmark document, and what else a log tells.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let rate = |x: Option<f64>| known(x, |x| format!("{} tokens/sec", commas(x)));
        // Upstream writes zero where it has no GPU.
        let peak = self.peak_memory_mib.filter(|mib| *mib > 0.0);
        let bpb = self.stage_named("base").and_then(|s| s.val_bpb).or(self.val_bpb);
        vec![
            ("Total training time", self.training()),
            ("Total wall clock time", known(self.wall_s, wall)),
            ("Base training tokens/sec", known(self.base_tokens_per_sec, commas)),
            ("SFT training step time", known(self.sft_step_ms, |ms| span(ms / 1e3))),
            ("Final inference speed", rate(self.decode_tokens_per_sec)),
            ("Memory utilization", known(self.memory_utilization, share)),
            ("Peak memory", known(peak, |mib| bytes(mib * MIB))),
            ("Batch size", self.batch_sizes()),
            ("Validation bpb", known(bpb, four)),
        ]
    }

    /// The rows as a table.
    pub fn table(&self) -> String {
        let row = |(metric, value): (&str, String)| format!("| {metric} | {value} |\n");
        let rows: String = self.rows().into_iter().map(row).collect();
        format!("| Metric | Value |\n|---|---|\n{rows}")
    }

    /// All stages together; the wall clock where the log has nothing better, as the benchmark
    /// reads it.
    fn training(&self) -> String {
        let silent = self.stages.iter().filter(|s| s.training_s.is_none()).count();
        match (self.training_s, self.wall_s) {
            (Some(s), _) if silent == 0 || silent == self.stages.len() => span(s),
            (_, Some(s)) => format!("{} (wall clock)", wall(s)),
            (Some(s), None) => {
                let n = self.stages.len();
                format!("{} ({} of {n} stages)", span(s), n - silent)
            }
            (None, None) => NOT_MEASURED.into(),
        }
    }

    /// One batch size, or each stage's.
    fn batch_sizes(&self) -> String {
        let of = |b: &BatchSize| {
            let rows = known(b.batch_size, |n| format!("{} rows", commas(n)));
            let took = b.discovery_s.map_or(String::new(), |s| format!(" in {}", span(s)));
            match b.source {
                "found" => format!("{rows}, found{took}"),
                "cached" => format!("{rows}, from the cache"),
                other => format!("{rows}, {other}"),
            }
        };
        let stages = self.stages.iter().filter_map(|s| {
            let size = s.batch_size.as_ref()?;
            Some(s.name.map_or_else(|| of(size), |name| format!("{name}: {}", of(size))))
        });
        let told: Vec<String> = stages.collect();
        match (&self.batch_size, told.is_empty()) {
            (_, false) => told.join("; "),
            (Some(size), true) => of(size),
            (None, true) => NOT_MEASURED.into(),
        }
    }
}
