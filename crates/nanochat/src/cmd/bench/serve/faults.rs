//! `nanochat bench serve --faults`: what others do wrong, and what a client that does nothing wrong notices.
//!
//! Each case starts a server in a process of its own. In: a model. Out: a line of figures a case and whether its
//! bar is met; the program ends with an error if one is not.

mod disconnects;
mod health;
mod overload;
mod slow;
mod soak;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::ServeBench;
use crate::cli::Global;
use crate::cmd::serve::Which;

/// What is done to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Case {
    /// `/health` while 256 clients read streams: p99 at most 50 ms, no error.
    Health,
    /// 200 half-open connections and 200 slow readers: p99 of others at most 10 % later.
    Slow,
    /// More requests than the queue holds: 429 within 50 ms, what was taken is finished.
    Overload,
    /// 200 clients that go away in each of queue, prompt and answer: nothing stays behind.
    Disconnects,
    /// 10,000 mixed requests (`--soak`): memory stays as it is, all pages come back.
    Soak,
    /// All of them.
    All,
}

/// What a case came to.
pub(super) struct Verdict {
    /// In words, with figures.
    said: String,
    figures: Value,
    /// What missed its bar.
    missed: Vec<String>,
}

impl Verdict {
    pub fn new(said: String, figures: Value) -> Self {
        Self { said, figures, missed: Vec::new() }
    }

    /// Notes that `what` was to hold.
    pub fn wants(mut self, holds: bool, what: impl Into<String>) -> Self {
        if !holds {
            self.missed.push(what.into());
        }
        self
    }
}

/// What every case is given.
pub(super) struct Setting<'s> {
    pub args: &'s ServeBench,
    pub global: &'s Global,
}

impl Setting<'_> {
    /// The model asked for, with room for so many rows and so many that wait.
    pub fn which(&self, rows: usize, queue: usize) -> Which {
        Which { rows, queue, ..self.args.which.clone() }
    }
}

/// Runs the cases asked for.
pub(super) fn run(args: &ServeBench, global: &Global) -> Result<()> {
    let setting = Setting { args, global };
    let mut cases = args.faults.clone();
    if cases.contains(&Case::All) {
        cases = Case::value_variants().iter().copied().filter(|c| *c != Case::All).collect();
    }
    let (mut all, mut missed) = (serde_json::Map::new(), 0);
    for case in cases {
        let name = case.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
        let verdict = match case {
            Case::Health => health::run(&setting),
            Case::Slow => slow::run(&setting),
            Case::Overload => overload::run(&setting),
            Case::Disconnects => disconnects::run(&setting),
            Case::Soak | Case::All => soak::run(&setting),
        }?;
        println!("{name}: {}", verdict.said);
        for what in &verdict.missed {
            println!("{name}: MISSED: {what}");
        }
        missed += verdict.missed.len();
        let figures = json!({"figures": verdict.figures, "missed": verdict.missed});
        all.insert(name, figures);
    }
    println!("{}", json!({"faults": all, "missed": missed}));
    match missed {
        0 => Ok(()),
        n => bail!("{n} bars were missed: the lines above say which"),
    }
}
