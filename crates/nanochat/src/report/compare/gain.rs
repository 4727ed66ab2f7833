//! Two figures -> what their difference is called: `1.9x faster`, `34 % less`, `0.8x (slower)`.

use serde::Serialize;

use crate::report::figures::{NOT_MEASURED, bytes, commas, four, known, share, span};

/// What a figure measures: its text, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Less is faster.
    Seconds,
    /// Tokens a second: more is faster.
    Rate,
    /// Memory: less is better.
    Bytes,
    /// A share; neither way is better.
    Share,
    /// A share that is lost: less is better.
    Waste,
    /// Bits per byte: less is better.
    Bpb,
}

/// Whether the optimized run is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Better,
    /// The baseline is.
    Worse,
    /// They are the same as far as the text shows.
    Same,
    /// They differ in what is neither good nor bad.
    Neutral,
    /// A figure is missing.
    Unknown,
}

/// The difference of two figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// As people read it.
    pub text: String,
    /// Which is better.
    pub verdict: Verdict,
    /// How many times faster, of times and rates.
    pub times: Option<f64>,
}

impl Measure {
    /// A figure as text.
    pub fn text(self, x: Option<f64>) -> String {
        match self {
            Measure::Seconds => known(x, span),
            Measure::Rate => known(x, commas),
            Measure::Bytes => known(x, bytes),
            Measure::Share | Measure::Waste => known(x, share),
            Measure::Bpb => known(x, four),
        }
    }

    /// What the optimized figure `b` is against the baseline's `a`.
    pub fn gain(self, a: Option<f64>, b: Option<f64>) -> Gain {
        let finite = |x: &f64| x.is_finite();
        let Some((a, b)) = a.filter(finite).zip(b.filter(finite)) else {
            return Gain::new(NOT_MEASURED, Verdict::Unknown);
        };
        match self {
            Measure::Seconds => speed(a / b),
            Measure::Rate => speed(b / a),
            Measure::Bytes => amount(b / a, ["less", "more"]),
            Measure::Bpb => amount(b / a, ["lower", "higher (worse)"]),
            Measure::Share => Gain { verdict: Verdict::Neutral, ..points(a, b) },
            Measure::Waste => points(a, b),
        }
    }
}

impl Gain {
    fn new(text: impl Into<String>, verdict: Verdict) -> Self {
        Self { text: text.into(), verdict, times: None }
    }

    /// Too near to tell apart in a text whose last digit is `near`.
    fn same(equal: bool, near: &str) -> Self {
        let text = if equal { "no difference".into() } else { format!("the same within {near}") };
        Self::new(text, Verdict::Same)
    }
}

/// `23`, `1.9`, `1.04`, `0.03`: digits that tell the ratio from one.
fn times(x: f64) -> String {
    match x {
        x if x >= 9.95 => format!("{x:.0}"),
        x if (0.85..1.15).contains(&x) || x < 0.095 => format!("{x:.2}"),
        x => format!("{x:.1}"),
    }
}

/// `x` times as fast.
fn speed(x: f64) -> Gain {
    if !x.is_finite() || x <= 0.0 {
        return Gain::new(NOT_MEASURED, Verdict::Unknown);
    }
    let gain = match times(x) {
        text if text == "1.00" => Gain::same(x == 1.0, "1 %"),
        text if x > 1.0 => Gain::new(format!("{text}x faster"), Verdict::Better),
        text => Gain::new(format!("{text}x (slower)"), Verdict::Worse),
    };
    Gain { times: Some(x), ..gain }
}

/// `ratio` times as much, of which less is better.
fn amount(ratio: f64, [less, more]: [&str; 2]) -> Gain {
    let percent = 100.0 * (ratio - 1.0);
    let size = match percent.abs() {
        p if p < 9.95 => format!("{p:.1}"),
        p => format!("{p:.0}"),
    };
    match size {
        _ if !ratio.is_finite() => Gain::new(NOT_MEASURED, Verdict::Unknown),
        size if size == "0.0" => Gain::same(percent == 0.0, "0.1 %"),
        size if percent < 0.0 => Gain::new(format!("{size} % {less}"), Verdict::Better),
        size => Gain::new(format!("{size} % {more}"), Verdict::Worse),
    }
}

/// The difference of two shares, of which the smaller is better.
fn points(a: f64, b: f64) -> Gain {
    let points = 100.0 * (b - a);
    match format!("{:.1}", points.abs()) {
        text if text == "0.0" => Gain::same(points == 0.0, "0.1 points"),
        text if points < 0.0 => Gain::new(format!("{text} points less"), Verdict::Better),
        text => Gain::new(format!("{text} points more"), Verdict::Worse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(measure: Measure, a: f64, b: f64) -> String {
        measure.gain(Some(a), Some(b)).text
    }

    #[test]
    fn a_gain_is_said_both_ways() {
        assert_eq!(said(Measure::Seconds, 190.0, 100.0), "1.9x faster");
        assert_eq!(said(Measure::Seconds, 100.0, 125.0), "0.8x (slower)");
        assert_eq!(said(Measure::Rate, 100.0, 2300.0), "23x faster");
        assert_eq!(said(Measure::Rate, 100.0, 104.0), "1.04x faster");
        assert_eq!(said(Measure::Rate, 100.0, 97.0), "0.97x (slower)");
        assert_eq!(said(Measure::Rate, 100.0, 3.0), "0.03x (slower)");
        assert_eq!(said(Measure::Rate, 100.0, 100.1), "the same within 1 %");
        assert_eq!(said(Measure::Bpb, 1.1752, 1.1748), "the same within 0.1 %");
        assert_eq!(said(Measure::Waste, 0.0, 0.0), "no difference");
        assert_eq!(said(Measure::Bytes, 100.0, 66.0), "34 % less");
        assert_eq!(said(Measure::Bytes, 100.0, 112.0), "12 % more");
        assert_eq!(said(Measure::Waste, 0.45, 0.02), "43.0 points less");
        assert_eq!(said(Measure::Bpb, 1.0, 1.008), "0.8 % higher (worse)");
    }

    #[test]
    fn what_is_missing_or_senseless_is_not_measured() {
        assert_eq!(Measure::Rate.gain(None, Some(1.0)).verdict, Verdict::Unknown);
        assert_eq!(said(Measure::Rate, 0.0, 1.0), NOT_MEASURED);
        assert_eq!(said(Measure::Bytes, 0.0, 0.0), NOT_MEASURED);
        assert_eq!(said(Measure::Seconds, f64::NAN, 1.0), NOT_MEASURED);
        let share = Measure::Share.gain(Some(0.65), Some(0.92));
        assert_eq!((share.text.as_str(), share.verdict), ("27.0 points more", Verdict::Neutral));
    }
}
