//! What reinforcement did: curves of reward and of pass@k, and answers with what they were worth.

use std::fmt::Write;

use serde_json::Value;

use super::chart::{Chart, Mark, Series};
use super::curve::{MOST_POINTS, Point, calm, thin};
use super::figures::{clip, percent};
use super::frame::escape;
use super::record::{list, number, text};

/// pass@k of tests, k = 1..8.
const K: usize = 8;
/// Questions shown, answers shown of each, characters of one.
const QUESTIONS: usize = 4;
const ANSWERS: usize = 8;
const CHARS: usize = 200;

/// Rewards of a stage; empty for every other.
#[derive(Debug, Default)]
pub struct Rewards {
    /// Mean reward of each step's answers.
    pub reward: Vec<Point>,
    /// Mean tokens of an answer.
    pub length: Vec<Point>,
    /// Share of test questions that one of k answers gets right.
    pub pass: [Vec<Point>; K],
    /// Answers of the first test and of the last.
    pub shown: Vec<(f64, Value)>,
}

impl Rewards {
    /// Takes a row of a step.
    pub fn take_step(&mut self, step: f64, row: &Value) {
        self.reward.extend(number(row, "reward").map(|r| (step, r)));
        self.length.extend(number(row, "sequence_length").map(|l| (step, l)));
    }

    /// Takes a row of a test.
    pub fn take_test(&mut self, step: f64, row: &Value) {
        for (k, points) in self.pass.iter_mut().enumerate() {
            points.extend(number(row, &format!("pass@{}", k + 1)).map(|p| (step, p)));
        }
        if !list(&row["samples"]).is_empty() {
            self.shown.truncate(1);
            self.shown.push((step, row["samples"].clone()));
        }
    }

    /// True for a stage that learned from reward.
    pub fn is_there(&self) -> bool {
        !self.reward.is_empty() || !self.pass[0].is_empty()
    }

    /// From what to what a test's pass@1 and pass@8 went.
    pub fn line(&self) -> Option<String> {
        let ends = |k: usize| Some((self.pass[k].first()?.1, self.pass[k].last()?.1));
        let ((a, b), (c, d)) = (ends(0)?, ends(K - 1)?);
        Some(format!(
            "Reinforcement took pass@1 from {} to {} and pass@8 from {} to {} on held-out questions.",
            percent(a),
            percent(b),
            percent(c),
            percent(d)
        ))
    }

    /// Reward, pass@k and length of answers.
    pub fn charts(&self, index: usize) -> Vec<Chart<'static>> {
        let chart = |key: &str, title, unit, gist, series| Chart {
            id: format!("c{index}-{key}"),
            title,
            unit,
            x: "step",
            gist,
            from_zero: true,
            series,
        };
        let series =
            |name, mark, points: &[Point]| Series { name, mark, points: thin(points, MOST_POINTS) };
        let smooth = calm(&self.reward);
        let gist = |points: &[Point]| match (points.first(), points.last()) {
            (Some(a), Some(b)) => format!("{} to {}", percent(a.1), percent(b.1)),
            _ => String::new(),
        };
        let reward = vec![
            series("each step", Mark::Faint, &self.reward),
            series("median", Mark::Line, &smooth),
        ];
        let pass = vec![
            series("pass@8", Mark::Baseline, &self.pass[K - 1]),
            series("pass@1", Mark::Dots, &self.pass[0]),
        ];
        let length = vec![series("mean", Mark::Line, &calm(&self.length))];
        vec![
            chart("reward", "Reward", "mean of a step's answers", gist(&smooth), reward),
            chart("pass", "Held-out questions", "share answered", gist(&self.pass[0]), pass),
            chart("length", "Length of answers", "tokens", String::new(), length),
        ]
    }

    /// The same questions at the beginning and the end, each answer with what it was worth.
    pub fn samples(&self, out: &mut String) {
        for (step, samples) in &self.shown {
            let _ = writeln!(
                out,
                "<details><summary>Answers at step {step:.0} <span>drawn at temperature 1</span>\
                 </summary>\n<table><tbody>"
            );
            for sample in list(samples).iter().take(QUESTIONS) {
                let question = escape(&clip(&text(sample, "question"), CHARS));
                let _ = write!(out, "<tr><th scope=\"row\">{question}</th><td>");
                for answer in list(&sample["answers"]).iter().take(ANSWERS) {
                    let right = number(answer, "reward").is_some_and(|r| r >= 1.0);
                    let (class, mark) = if right { ("right", "✓") } else { ("wrong", "✗") };
                    let said = escape(&clip(text(answer, "text").trim(), CHARS));
                    let _ = writeln!(out, "<span class=\"{class}\">{mark}</span> {said}");
                }
                *out += "</td></tr>\n";
            }
            *out += "</tbody></table></details>\n";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_and_the_last_test_are_shown() {
        let mut of = Rewards::default();
        assert!(!of.is_there() && of.line().is_none());
        for step in 0..4 {
            let said = json!([{"question": "<2+2>", "answers": [{"text": format!("{step}."), "reward": 1.0}]}]);
            let row = json!({"pass@1": 0.1 * f64::from(step), "pass@8": 0.5, "samples": said});
            of.take_test(f64::from(step), &row);
            of.take_step(f64::from(step), &json!({"reward": 0.25, "sequence_length": 8.0}));
        }
        let mut out = String::new();
        of.samples(&mut out);
        assert!(out.contains("step 0 ") && out.contains("step 3 ") && !out.contains("step 1 "));
        assert!(out.contains("&lt;2+2&gt;") && !out.contains("<2+2>"), "{out}");
        assert_eq!((of.charts(0).len(), of.reward.len()), (3, 4));
        let line = of.line().expect("tests");
        assert!(line.contains("from 0% to 30% and pass@8 from 50% to 50%"), "{line}");
    }
}
