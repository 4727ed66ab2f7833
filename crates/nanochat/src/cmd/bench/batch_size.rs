//! `nanochat bench batch-size`: the automatic choice, and what it is worth: the speed of every batch in
//! turn with the others, its memory in a process of its own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use nanochat_train::batch_size::{Job, candidates};
use nanochat_train::step::Bytes;
use serde_json::{Value, json};

use super::child::{self, number};
use super::model::ModelFlags;
use super::sweep::sweep;
use crate::batch::{self, BatchFlags, Wanted};
use crate::cli::Global;
use crate::figures::{size, thousands};
use crate::memory::Room;
use crate::report::plot::{self, Curve};

/// Flags of `bench batch-size`.
#[derive(Args, Clone, Debug)]
pub struct BatchBench {
    /// What is trained.
    #[command(flatten)]
    pub model: ModelFlags,
    /// How the batch is chosen.
    #[command(flatten)]
    pub batch: BatchFlags,
    /// Tokens of a step; 0: 32 rows.
    #[arg(long, default_value_t = 0)]
    pub total_batch_size: usize,
    /// Measures every batch that fits, not only the chosen one.
    #[arg(long)]
    pub sweep: bool,
    /// Rounds, in each of which every batch is timed once; the median of their ratios counts.
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Writes the sweep as a page with a plot.
    #[arg(long, value_name = "FILE.html")]
    pub plot: Option<PathBuf>,
}

/// What one batch reached.
struct Measured {
    b: usize,
    planned: u64,
    tokens_per_sec: f64,
    /// Speed over that of the best batch.
    share: f64,
    /// Speed over that of the chosen batch in the same round: lowest, median, highest.
    ratio: [f64; 3],
    peak: f64,
}

/// Runs the command.
pub fn run(args: &BatchBench, global: &Global) -> Result<()> {
    args.batch.expect_on()?;
    let be = global.backend()?;
    let be = &*be;
    let config = args.model.config()?;
    let t = args.model.max_seq_len;
    let total = if args.total_batch_size == 0 { 32 * t } else { args.total_batch_size };
    anyhow::ensure!(
        t > 0 && total.is_multiple_of(t),
        "--total-batch-size {total} is not one or more rows of {t} tokens"
    );
    let job = Job { config: &config, t, rows: total / t };
    let (b, choice) =
        batch::settle(be, &job, Wanted::Auto, &args.batch, &mut |line| println!("{line}"))?;
    let choice = choice.expect("an automatic choice says how it was made");
    let room = Room::of(be);
    let planned = |b| Bytes::of(be, &config, b, t).total() as u64;
    let batches: Vec<usize> = match args.sweep {
        false => vec![b],
        true => candidates(job.rows).into_iter().filter(|b| planned(*b) <= room.free).collect(),
    };
    let swept = sweep(be, &job, &batches, args.rounds.max(1))?;
    let shares = swept.shares();
    let chosen = batches.iter().position(|one| *one == b).unwrap_or(0);
    let mut all = Vec::new();
    for (i, (&b, share)) in batches.iter().zip(shares).enumerate() {
        let mut arguments = vec!["train".to_owned()];
        arguments.extend(args.model.arguments());
        arguments.extend([format!("--device-batch-size={b}"), "--steps=1".to_owned()]);
        let figures = child::run(&arguments, global)?;
        all.push(Measured {
            b,
            planned: planned(b),
            tokens_per_sec: total as f64 / swept.step_s(i),
            share,
            ratio: swept.ratio(i, chosen),
            peak: number(&figures, "peak_bytes")?,
        });
    }
    println!(
        "\n{:>5} {:>12} {:>7} {:>22} {:>10} {:>10}",
        "batch", "tokens/sec", "best", "over the chosen one", "planned", "peak"
    );
    for m in &all {
        let [low, middle, high] = m.ratio;
        println!(
            "{:>5} {:>12} {:>6.1}% {:>22} {:>10} {:>10}{}",
            m.b,
            thousands(m.tokens_per_sec.round() as u64),
            100.0 * m.share,
            format!("{middle:.3} ({low:.2}-{high:.2})"),
            size(m.planned as f64),
            size(m.peak),
            if m.b == b { "  <- chosen" } else { "" }
        );
    }
    if let Some(file) = &args.plot {
        write_plot(file, &args.model, &all, b)?;
        println!("{}", file.display());
    }
    let chosen = all.iter().find(|m| m.b == b);
    let row = |m: &Measured| {
        json!({
            "batch_size": m.b, "tokens_per_sec": m.tokens_per_sec, "share_of_best": m.share,
            "over_chosen": m.ratio, "planned_bytes": m.planned, "peak_bytes": m.peak,
        })
    };
    let sweep: Vec<Value> = all.iter().map(row).collect();
    let measured = chosen.map(|m| m.peak);
    println!(
        "{}",
        json!({
            "batch_size": b, "accumulation": choice.accumulation,
            "predicted_bytes": choice.predicted_bytes, "measured_peak_bytes": measured,
            "predicted_over_measured": measured.map(|m| choice.predicted_bytes as f64 / m),
            "discovery_s": choice.discovery_s, "cached": choice.cached,
            "share_of_best": chosen.filter(|_| args.sweep).map(|m| m.share), "sweep": sweep,
            "rounds_s": swept.step_s,
        })
    );
    Ok(())
}

fn write_plot(file: &Path, model: &ModelFlags, all: &[Measured], b: usize) -> Result<()> {
    let points = |y: &dyn Fn(&Measured) -> f64| all.iter().map(|m| (m.b as f64, y(m))).collect();
    let x = "rows of a micro batch";
    let gist = format!("chosen: {b}");
    let speed = Curve {
        title: "Speed",
        unit: "tokens per second",
        x,
        gist: gist.clone(),
        series: vec![("tokens per second", points(&|m| m.tokens_per_sec))],
    };
    let memory = Curve {
        title: "Peak memory",
        unit: "GB",
        x,
        gist,
        series: vec![
            ("planned", points(&|m| m.planned as f64 / 1e9)),
            ("measured", points(&|m| m.peak / 1e9)),
        ],
    };
    plot::write(file, &format!("Rows of a micro batch, {}", model.name()), &[speed, memory])
}
