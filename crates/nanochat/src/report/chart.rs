//! A small line chart as inline SVG that keeps its text size at every width.
//!
//! Places are percentages, the lines live in a stretched inner `<svg>` whose strokes do not scale;
//! tick labels stand in the margins that the page's CSS gives to `.plot`. Colours are CSS classes.

use std::fmt::Write;

use super::curve::{self, Point};
use super::figures::{known, short};
use super::frame::escape;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A pale line: raw values.
    Faint,
    /// A line.
    Line,
    /// A line with a dot at each point.
    Dots,
    /// A broad line of another colour, to be seen below a line that covers it.
    Baseline,
}

/// One curve.
pub struct Series<'a> {
    /// What it is, in the legend.
    pub name: &'a str,
    /// How it is drawn.
    pub mark: Mark,
    /// Its points, x rising.
    pub points: Vec<Point>,
}

/// One chart.
pub struct Chart<'a> {
    /// Unique in the page.
    pub id: String,
    /// What is shown: `Loss`.
    pub title: &'a str,
    /// Unit of y: `nats per token`.
    pub unit: &'a str,
    /// Name of x.
    pub x: &'a str,
    /// The figure to remember, under the plot: `last 1.62`.
    pub gist: String,
    /// The y axis begins at zero.
    pub from_zero: bool,
    /// The curves, drawn in this order; the last one is the chart's main one.
    pub series: Vec<Series<'a>>,
}

/// Inner coordinates run from 0 to this.
const SPAN: f64 = 1000.0;
/// Series with more points than this have no tooltip a point.
const TIPS: usize = 80;

/// Ticks at 1, 2 or 5 times a power of ten: the first at or below `low`, the last at or above
/// `high`, about `n` of them. Returns them with the decimals that tell them apart.
fn ticks(low: f64, high: f64, n: usize) -> (Vec<f64>, usize) {
    let (low, high) = if high > low { (low, high) } else { (low - 0.5, high + 0.5) };
    let rough = (high - low) / n as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let step = factors.iter().map(|f| f * power).find(|s| *s >= rough * 0.999).unwrap_or(rough);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    ((first..=last).map(|i| i as f64 * step).collect(), decimals)
}

/// A tick's label: thousands get a letter.
fn label(x: f64, decimals: usize) -> String {
    if x.abs() >= 1000.0 { short(x) } else { format!("{x:.decimals$}") }
}

/// Value axes of a chart.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn x(&self, x: f64) -> f64 {
        (x - self.x.0) / (self.x.1 - self.x.0)
    }

    /// SVG's y runs down.
    fn y(&self, y: f64) -> f64 {
        1.0 - (y - self.y.0) / (self.y.1 - self.y.0)
    }

    fn path(&self, points: &[Point]) -> String {
        let mut d = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let letter = if i == 0 { 'M' } else { 'L' };
            let _ = write!(d, "{letter}{:.1} {:.1}", SPAN * self.x(*x), SPAN * self.y(*y));
        }
        d
    }
}

impl Chart<'_> {
    /// The chart as a `<figure>`; without points it says that nothing was measured.
    pub fn figure(&self) -> String {
        let all = || self.series.iter().flat_map(|s| &s.points);
        let (title, unit) = (escape(self.title), escape(self.unit));
        let caption = format!(
            "<figcaption><b>{title}</b> <span class=\"unit\">{unit}</span>{}</figcaption>",
            self.legend()
        );
        let x = curve::extent(all().map(|p| p.0));
        let (Some(x), Some(y)) = (x, curve::extent(all().map(|p| p.1))) else {
            return format!(
                "<figure class=\"chart\">{caption}<p class=\"none\">not measured</p></figure>\n"
            );
        };
        format!("<figure class=\"chart\">{caption}{}</figure>\n", self.plot(x, y))
    }

    fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let item = |s: &Series<'_>| {
            format!("<span><i class=\"key {}\"></i>{}</span>", s.mark.class(), escape(s.name))
        };
        let items: String = self.series.iter().map(item).collect();
        format!("<span class=\"legend\">{items}</span>")
    }

    fn plot(&self, x: Point, y: Point) -> String {
        // A flat line stands on zero too.
        let low = if self.from_zero || y.0 == y.1 { y.0.min(0.0) } else { y.0 };
        let (y_ticks, y_decimals) = ticks(low, y.1, 4);
        let ends = (y_ticks[0], y_ticks[y_ticks.len() - 1]);
        // Steps are counted from zero.
        let x_range = (x.0.min(0.0), x.1.max(x.0.min(0.0) + 1.0));
        let frame = Frame { x: x_range, y: ends };
        let id = &self.id;
        let mut out = format!(
            "<svg class=\"plot\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
             <title id=\"{id}-t\">{} ({})</title><desc id=\"{id}-d\">{}</desc>",
            escape(self.title),
            escape(self.unit),
            escape(&self.words())
        );
        for tick in y_ticks {
            let at = 100.0 * frame.y(tick);
            let text = label(tick, y_decimals);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{at:.2}%\" y2=\"{at:.2}%\"/>\
                 <text x=\"0\" dx=\"-8\" y=\"{at:.2}%\" dy=\"4\" text-anchor=\"end\">{text}</text>"
            );
        }
        let (x_ticks, _) = ticks(x_range.0, x_range.1, 6);
        for tick in x_ticks.into_iter().filter(|t| *t >= x_range.0 && *t <= x_range.1) {
            let (at, text) = (100.0 * frame.x(tick), label(tick, usize::from(tick.fract() != 0.0)));
            let _ = write!(
                out,
                "<text x=\"{at:.2}%\" y=\"100%\" dy=\"18\" text-anchor=\"middle\">{text}</text>"
            );
        }
        let (name, gist) = (escape(self.x), escape(&self.gist));
        let _ = write!(
            out,
            "<text x=\"0\" y=\"100%\" dy=\"40\">{gist}</text>\
             <text x=\"100%\" y=\"100%\" dy=\"40\" text-anchor=\"end\">{name}</text>"
        );
        self.draw(&mut out, &frame);
        out + "</svg>"
    }

    fn draw(&self, out: &mut String, frame: &Frame) {
        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {SPAN} {SPAN}\" width=\"100%\" height=\"100%\" \
             preserveAspectRatio=\"none\" overflow=\"visible\">"
        );
        for series in self.series.iter().filter(|s| s.points.len() > 1) {
            let (class, d) = (series.mark.class(), frame.path(&series.points));
            let _ = write!(out, "<path class=\"{class}\" d=\"{d}\"/>");
        }
        *out += "</svg>";
        for series in &self.series {
            let dotted = series.mark == Mark::Dots || series.points.len() == 1;
            for (x, y) in series.points.iter().filter(|_| dotted && series.points.len() <= TIPS) {
                let (cx, cy) = (100.0 * frame.x(*x), 100.0 * frame.y(*y));
                let tip = format!("{} {x}: {y:.4}", escape(self.x));
                let _ = write!(
                    out,
                    "<circle class=\"dot\" cx=\"{cx:.2}%\" cy=\"{cy:.2}%\" r=\"3\">\
                     <title>{tip}</title></circle>"
                );
            }
        }
    }

    /// The chart in words, of its main curve.
    fn words(&self) -> String {
        let Some(points) = self.series.last().map(|s| &s.points).filter(|p| !p.is_empty()) else {
            return "No points.".into();
        };
        let (first, last) = (points[0], points[points.len() - 1]);
        let say = |y: f64| known(Some(y), |y| label(y, 4));
        // A step is whole, a second is not.
        let at = |x: f64| format!("{x:.*}", usize::from(x.fract() != 0.0));
        let (low, high) = curve::extent(points.iter().map(|p| p.1)).unwrap_or((first.1, last.1));
        format!(
            "From {} at {x} {} to {} at {x} {}; lowest {}, highest {}.",
            say(first.1),
            at(first.0),
            say(last.1),
            at(last.0),
            say(low),
            say(high),
            x = self.x
        )
    }
}

impl Mark {
    fn class(self) -> &'static str {
        match self {
            Mark::Faint => "faint",
            Mark::Line | Mark::Dots => "line",
            Mark::Baseline => "baseline",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<Point>) -> Chart<'static> {
        let series = vec![Series { name: "loss", mark: Mark::Line, points }];
        let id = "c".to_owned();
        Chart {
            id,
            title: "Loss",
            unit: "nats",
            x: "step",
            gist: String::new(),
            from_zero: false,
            series,
        }
    }

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.13, 0.97, 4), (vec![0.0, 0.5, 1.0], 1));
        assert_eq!(ticks(2.2, 5.6, 4), (vec![2.0, 3.0, 4.0, 5.0, 6.0], 0));
        assert_eq!(ticks(3.0, 3.0, 4).0, [2.5, 3.0, 3.5]);
        assert_eq!(label(12_500.0, 0), "12.5k");
    }

    #[test]
    fn a_chart_is_named_and_described() {
        let svg = chart(vec![(1.0, 5.0), (2.0, 3.0), (9.0, 2.0)]).figure();
        assert!(svg.contains("<title id=\"c-t\">Loss (nats)</title>"));
        assert!(svg.contains("From 5.0000 at step 1 to 2.0000 at step 9; lowest 2.0000"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn one_point_or_none_is_no_harm() {
        assert!(chart(vec![]).figure().contains("not measured"));
        let one = chart(vec![(7.0, 7.0)]).figure();
        assert!(one.contains("<circle") && !one.contains("NaN"));
    }
}
