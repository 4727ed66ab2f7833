//! The benchmark's checklist: a box is checked when a result says so, and says why when not.

use serde::Serialize;
use serde_json::Value;

use super::gain::Verdict;
use super::quick::{self, Cache};
use super::table::{DECODING, Row, TRAINING};
use crate::report::figures::{NOT_MEASURED, commas};
use crate::report::record::{Record, list, text};

/// The automatic choice gives up one percent for a smaller batch, and two runs of a machine differ.
const NEAR_BEST: f64 = 0.97;
/// A right sampler falls below this in one of a thousand tests.
const UNLIKELY: f64 = 0.001;

/// One box.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What the document asks.
    pub name: &'static str,
    /// A result says so.
    pub passed: bool,
    /// The figures, the reason, or "not measured".
    pub note: String,
}

/// What the boxes are filled from.
pub struct Evidence<'a> {
    /// `verify.json`.
    pub verify: Option<&'a Value>,
    /// `quick.json`, or null.
    pub quick: &'a Value,
    /// Baseline, optimized.
    pub runs: &'a [Record; 2],
    /// The filled table.
    pub table: &'a [Row],
}

/// What a result says.
enum Finding {
    Passed(String),
    Failed(String),
    Missing(String),
}

use Finding::{Failed, Missing, Passed};

impl Evidence<'_> {
    /// The boxes, in the order of the document.
    pub fn checks(&self) -> Vec<Check> {
        let boxes = [
            ("Verification passes all checks", self.verification()),
            ("Quick benchmark confirms KV cache", self.cache()),
            ("Quick benchmark confirms automatic batch size", self.batch_size()),
            ("Compiled SFT step verified", self.compiled()),
            ("Independent sampling verified", self.sampling()),
            ("Full training completed", self.completed()),
            ("Metrics compared with baseline run", self.compared()),
            ("Speedup measured and documented", self.speedup()),
        ];
        boxes.into_iter().map(|(name, finding)| finding.check(name)).collect()
    }

    fn verification(&self) -> Finding {
        let Some(verify) = self.verify else { return Missing("no verify.json".into()) };
        let checks = list(&verify["checks"]);
        let failed: Vec<String> =
            checks.iter().filter(|c| c["pass"] == false).map(described).collect();
        let passed = checks.iter().filter(|c| c["pass"] == true).count();
        let of = format!("{passed} of {} checks", checks.len());
        match verify["pass"].as_bool() {
            _ if !failed.is_empty() => Failed(format!("{of}; {}", failed.join("; "))),
            Some(true) if passed > 0 => Passed(of),
            Some(false) => Failed(of),
            _ => Missing("verify.json has no result".into()),
        }
    }

    /// What the checks of `verify.json` say whose names have one of the words.
    fn verified(&self, words: &[&str]) -> Option<Finding> {
        let named = |c: &&Value| {
            let name = text(c, "name").to_lowercase();
            words.iter().any(|w| name.contains(w))
        };
        let checks: Vec<&Value> = list(&self.verify?["checks"]).iter().filter(named).collect();
        if let Some(failed) = checks.iter().find(|c| c["pass"] == false) {
            return Some(Failed(described(failed)));
        }
        let passed = checks.iter().filter(|c| c["pass"] == true).count();
        (passed > 0).then(|| Passed(format!("{passed} of {} checks", checks.len())))
    }

    fn cache(&self) -> Finding {
        let rows = quick::cache(self.quick);
        let both = rows.iter().filter(|c| c.gain().times.is_some());
        let (quick, slow): (Vec<&Cache>, Vec<&Cache>) =
            both.partition(|c| c.gain().times > Some(1.0));
        let said = |rows: &[&Cache]| {
            let one = |c: &&Cache| format!("{} at batch {}", c.gain().text, commas(c.rows));
            rows.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        match (quick.is_empty(), slow.is_empty()) {
            (true, true) => self.no_quick(),
            (false, true) => Passed(said(&quick)),
            (_, false) => Failed(said(&slow)),
        }
    }

    fn batch_size(&self) -> Finding {
        let of = &self.quick["batch_size"];
        let at = |key: &str| of[key].as_f64().filter(|x| *x > 0.0);
        let Some(found) = at("batch_size") else { return self.no_quick() };
        let found = format!("found {}", commas(found));
        match at("tokens_per_sec").zip(at("baseline_tokens_per_sec")) {
            None => Missing(format!("{found}, but no speed")),
            Some((with, without)) => {
                let size = at("baseline").map_or("the baseline's".into(), commas);
                let said = format!("{found}, {:.2}x the speed of {size}", with / without);
                if with >= NEAR_BEST * without { Passed(said) } else { Failed(said) }
            }
        }
    }

    fn no_quick(&self) -> Finding {
        let why = if self.quick.is_null() { "no quick.json" } else { "quick.json lacks it" };
        Missing(why.into())
    }

    fn compiled(&self) -> Finding {
        let run = &self.runs[1];
        let plans = run.stage_named("sft").and_then(|s| s.plans);
        let plans = plans.map(|n| format!("{} plan{}", commas(n), if n == 1.0 { "" } else { "s" }));
        let verified = self.verified(&["compil", "sft"]);
        match (verified, run.summary["optimizations"]["sft_step"].as_str()) {
            (Some(Failed(why)), _) => Failed(why),
            (_, Some("eager")) => Failed("the optimized run took the eager step".into()),
            (Some(Passed(of)), _) => Passed(plans.map_or(of.clone(), |n| format!("{of}, {n}"))),
            (_, Some("compiled")) => match plans {
                Some(plans) => Passed(format!("the optimized run made {plans}")),
                None => Missing("the optimized run asked for it, no check tells".into()),
            },
            _ => Missing("neither verify.json nor the optimized run tells".into()),
        }
    }

    fn sampling(&self) -> Finding {
        if let Some(Failed(why)) = self.verified(&SAMPLING) {
            return Failed(why);
        }
        let run = &self.runs[1].summary["optimizations"]["first_token"];
        if *run == "broadcast" {
            return Failed("the optimized run copied its first token".into());
        }
        match quick::sampling(self.quick, "independent") {
            Some(s) if s.first_tokens <= 1.0 => Failed(format!("first tokens: {}", s.text())),
            Some(s) if s.p_value.is_some_and(|p| p < UNLIKELY) => {
                Failed(format!("first tokens: {}", s.text()))
            }
            Some(s) if s.p_value.is_some() => Passed(format!("first tokens: {}", s.text())),
            _ => self.verified(&SAMPLING).unwrap_or_else(|| self.no_quick()),
        }
    }

    fn completed(&self) -> Finding {
        let mut absent = Vec::new();
        for (who, run) in ["the baseline", "the optimized run"].into_iter().zip(self.runs) {
            let over = |name: &str| run.stage_named(name).is_some_and(|s| s.finished);
            match (over("base"), over("sft")) {
                (true, true) => {}
                (true, false) => absent.push(format!("{who} has no finished finetuning")),
                (false, true) => absent.push(format!("{who} has no finished pretraining")),
                (false, false) => absent.push(format!("{who} has no finished training")),
            }
        }
        match absent.is_empty() {
            true => Passed("both runs, pretraining and finetuning".into()),
            false => Missing(absent.join("; ")),
        }
    }

    fn compared(&self) -> Finding {
        let asked = self.table.iter().filter(|r| r.asked);
        let (known, missing): (Vec<&Row>, Vec<&Row>) =
            asked.partition(|r| r.baseline.is_some() && r.optimized.is_some());
        let names: Vec<&str> = missing.iter().map(|r| r.metric).collect();
        match names.is_empty() {
            true => Passed(format!("{} of {} rows", known.len(), known.len())),
            false => Missing(names.join(", ")),
        }
    }

    fn speedup(&self) -> Finding {
        let row = |metric: &str| self.table.iter().find(|r| r.metric == metric);
        let said = |metric: &str, what: &str| {
            let gain = &row(metric)?.gain;
            gain.times.map(|_| format!("{what} {}", gain.text))
        };
        let both: Vec<String> = [said(TRAINING, "training"), said(DECODING, "decoding")]
            .into_iter()
            .flatten()
            .collect();
        match row(TRAINING).map(|r| r.gain.verdict) {
            Some(Verdict::Better) => Passed(both.join(", ")),
            Some(Verdict::Worse | Verdict::Same) => Failed(both.join(", ")),
            _ => Missing(format!("{TRAINING} of both runs is needed")),
        }
    }
}

/// Words of the names of checks of sampling.
const SAMPLING: [&str; 4] = ["sampl", "first token", "independent", "broadcast"];

/// A check's name and figure.
fn described(check: &Value) -> String {
    let (name, figure) = (text(check, "name"), text(check, "figure"));
    if figure.is_empty() { name } else { format!("{name} ({figure})") }
}

impl Finding {
    fn check(self, name: &'static str) -> Check {
        let (passed, note) = match self {
            Passed(said) => (true, said),
            Failed(why) => (false, format!("fails: {why}")),
            Missing(why) => (false, format!("{NOT_MEASURED}: {why}")),
        };
        Check { name, passed, note }
    }
}
