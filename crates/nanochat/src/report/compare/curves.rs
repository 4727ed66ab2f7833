//! Loss of both runs, over seconds of training and over steps.

use crate::report::chart::{Chart, Mark, Series};
use crate::report::curve::{MOST_POINTS, Point, extent, thin};
use crate::report::figures::four;
use crate::report::record::Record;
use crate::report::stage::Stage;

/// Seconds from which a time axis counts minutes, and below which milliseconds.
const MINUTES_FROM: f64 = 600.0;
const MILLISECONDS_BELOW: f64 = 2.0;

/// Two charts of a stage: over time, over steps. `None` when neither run has the stage.
pub fn charts(stage: &str, runs: &[Record; 2]) -> Option<[Chart<'static>; 2]> {
    let stages = runs.each_ref().map(|r| r.stage_named(stage).filter(|s| !s.loss.is_empty()));
    if stages.iter().all(Option::is_none) {
        return None;
    }
    let by_time = stages.map(|s| s.map_or(&[][..], |s| &s.loss_by_time));
    let end = extent(by_time.iter().flat_map(|p| p.iter()).map(|p| p.0)).map_or(0.0, |e| e.1);
    let (scale, unit) = match end {
        s if s >= MINUTES_FROM => (60.0, "minute"),
        s if s < MILLISECONDS_BELOW => (1e-3, "millisecond"),
        _ => (1.0, "second"),
    };
    let scaled = |points: &[Point]| points.iter().map(|p| (p.0 / scale, p.1)).collect();
    let time: [Vec<Point>; 2] = by_time.map(scaled);
    let steps = stages.map(|s| s.map_or(Vec::new(), smooth));
    let chart = |key: &str, title, x, points| Chart {
        id: format!("{stage}-{key}"),
        title,
        unit: "nats per token",
        x,
        gist: gist(stages),
        from_zero: false,
        series: series(points),
    };
    Some([
        chart("time", "Loss over time", unit, time),
        chart("step", "Loss over steps", "step", steps),
    ])
}

fn smooth(stage: &Stage) -> Vec<Point> {
    if stage.smooth_loss.is_empty() { stage.loss.clone() } else { stage.smooth_loss.clone() }
}

/// `last 1.6200, baseline 1.6214`.
fn gist([a, b]: [Option<&Stage>; 2]) -> String {
    let last = |s: Option<&Stage>| s.and_then(Stage::final_loss);
    let said = [
        last(b).map(|x| format!("last {}", four(x))),
        last(a).map(|x| format!("baseline {}", four(x))),
    ];
    said.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The baseline below, the optimized run above it.
fn series([a, b]: [Vec<Point>; 2]) -> Vec<Series<'static>> {
    let of = |names: [&'static str; 2], mark, points: Vec<Point>| Series {
        name: names[usize::from(points.is_empty())],
        mark,
        points: thin(&points, MOST_POINTS),
    };
    vec![
        of(["baseline", "baseline: not measured"], Mark::Baseline, a),
        of(["optimized", "optimized: not measured"], Mark::Line, b),
    ]
}
