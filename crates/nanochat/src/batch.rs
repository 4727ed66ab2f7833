//! The rows of a micro batch, as the flags and the machine's memory have it; printed in one line.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use nanochat_compute::Backend;
use nanochat_gpt::checkpoint;
use nanochat_train::batch_size::{self, Cache, Choice, Job, Key, Memory, Timings};
use nanochat_train::step::Bytes;
use serde::{Deserialize, Serialize};

use crate::figures::size;
use crate::machine;
use crate::memory::Room;
use crate::run_dir::base_dir;

/// What a machine-readable line about the choice begins with.
pub const LINE: &str = "auto-batch-size";

/// Flags of the automatic batch size.
#[derive(Args, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchFlags {
    /// Chooses the rows of a micro batch by memory and speed, unless --device-batch-size is given.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub auto_batch_size: Switch,
    /// Share of the free memory that it may plan for.
    #[arg(long, default_value_t = 0.85, value_name = "SHARE")]
    pub batch_size_margin: f64,
    /// Measures anew, whatever earlier runs found.
    #[arg(long)]
    pub no_batch_size_cache: bool,
}

impl Default for BatchFlags {
    fn default() -> Self {
        Self { auto_batch_size: Switch::On, batch_size_margin: 0.85, no_batch_size_cache: false }
    }
}

impl BatchFlags {
    /// For commands that measure the choice. Errors: it is off.
    pub fn expect_on(&self) -> Result<()> {
        if self.auto_batch_size == Switch::Off {
            bail!("--auto-batch-size off leaves nothing to measure: leave it out");
        }
        Ok(())
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// As the program chooses.
    On,
    /// As fixed values have it.
    Off,
}

/// Where a batch size comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The user said so.
    Given(usize),
    /// The run that goes on had it.
    Resumed(usize),
    /// To be chosen.
    Auto,
    /// Not to be chosen: the largest divisor of the step's rows up to this many.
    UpTo(usize),
}

impl Wanted {
    /// What the flags say; `resumed` wins over all but a number, `fixed` is for "off".
    pub fn of(
        given: Option<usize>,
        resumed: Option<usize>,
        flags: &BatchFlags,
        fixed: usize,
    ) -> Self {
        match (given, resumed, flags.auto_batch_size) {
            (Some(b), _, _) => Wanted::Given(b),
            (None, Some(b), _) => Wanted::Resumed(b),
            (None, None, Switch::On) => Wanted::Auto,
            (None, None, Switch::Off) => Wanted::UpTo(fixed),
        }
    }

    /// One word for summary.json.
    pub fn name(self) -> &'static str {
        match self {
            Wanted::Given(_) => "given",
            Wanted::Resumed(_) => "resumed",
            Wanted::Auto => "auto",
            Wanted::UpTo(_) => "off",
        }
    }
}

/// B of the stage's newest checkpoint, when the run goes on.
pub fn resumed(dir: &Path, resume: bool) -> Result<Option<usize>> {
    if !resume || !dir.is_dir() {
        return Ok(None);
    }
    // A damaged step is not this function's to report: the one before it had the same batch.
    let metas =
        checkpoint::steps(dir)?.into_iter().rev().filter_map(|(_, s)| checkpoint::meta(&s).ok());
    let batches = metas.map(|meta| meta.trainer["settings"]["device_batch_size"].as_u64());
    Ok(batches.flatten().next().map(|b| b as usize))
}

/// The largest divisor of `rows` up to `most`.
fn divisor(rows: usize, most: usize) -> usize {
    (1..=rows.min(most)).rev().find(|b| rows.is_multiple_of(*b)).unwrap_or(1)
}

/// B of a job, and how it was chosen if it was; `say` gets lines for the screen and the log.
///
/// Errors: a B that does not divide the rows, or that would end in an out-of-memory kill; a model that
/// does not fit at all.
pub fn settle(
    be: &dyn Backend,
    job: &Job<'_>,
    wanted: Wanted,
    flags: &BatchFlags,
    say: &mut dyn FnMut(&str),
) -> Result<(usize, Option<Choice>)> {
    let b = match wanted {
        Wanted::Auto => {
            let choice = auto(be, job, flags, say)?;
            say(&described(&choice));
            say(&format!("{LINE} {}", serde_json::to_string(&choice)?));
            return Ok((choice.batch_size, Some(choice)));
        }
        Wanted::Given(b) | Wanted::Resumed(b) => b,
        Wanted::UpTo(most) => divisor(job.rows, most),
    };
    if b == 0 || !job.rows.is_multiple_of(b) {
        bail!(
            "--device-batch-size {b} does not divide the {} rows of a step: use one of {:?}",
            job.rows,
            (1..=job.rows).filter(|b| job.rows.is_multiple_of(*b)).collect::<Vec<_>>()
        );
    }
    check_room(be, job, b, wanted, say)?;
    Ok((b, None))
}

/// Refuses what would be killed, warns of what would make the machine swap.
fn check_room(
    be: &dyn Backend,
    job: &Job<'_>,
    b: usize,
    wanted: Wanted,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let room = Room::of(be);
    let need = Bytes::of(be, job.config, b, job.t).total() as u64;
    if need <= room.free {
        return Ok(());
    }
    let text = format!(
        "training {b} rows of {} tokens needs {}, {} lets this process have {} more",
        job.t,
        size(need as f64),
        room.by,
        size(room.free as f64)
    );
    if room.is_hard {
        bail!(
            "{text}: {}",
            match wanted {
                Wanted::Resumed(_) => "a run goes on with the batch it began with; raise the limit",
                _ => "leave --device-batch-size out, or give a smaller one",
            }
        );
    }
    say(&format!("warning: {text}: it will swap, or be killed"));
    Ok(())
}

fn auto(
    be: &dyn Backend,
    job: &Job<'_>,
    flags: &BatchFlags,
    say: &mut dyn FnMut(&str),
) -> Result<Choice> {
    let start = Instant::now();
    if !(flags.batch_size_margin > 0.0 && flags.batch_size_margin <= 1.0) {
        bail!("--batch-size-margin {}: give a share in (0, 1]", flags.batch_size_margin);
    }
    let room = Room::of(be);
    let memory = Memory { held: room.held, free: room.free, margin: flags.batch_size_margin };
    let mut fitting = batch_size::fitting(be, job, &memory)?;
    // Another process may have taken what was free a moment ago.
    while fitting.len() > 1 && !batch_size::can_allocate(be, &fitting[fitting.len() - 1].1) {
        fitting.pop();
    }
    let batches: Vec<usize> = fitting.iter().map(|(b, _)| *b).collect();
    let key = Key::new(be, job, batches.clone(), machine::device(), machine::build());
    let cache = Cache::new(&base_dir().join("batch-size"));
    let mut warn = |text: String| say(&format!("warning: {text}"));
    let found = if flags.no_batch_size_cache { None } else { cache.get(&key, &mut warn) };
    let cached = found.is_some();
    let timings = match found {
        Some(timings) => timings,
        None if batches.len() == 1 => Timings::default(),
        None => {
            let timings = batch_size::probe(be, job, &fitting, memory.budget())?;
            if !flags.no_batch_size_cache {
                cache.put(&key, &timings, &mut warn);
            }
            timings
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    Ok(batch_size::choose(job, &memory, &fitting, &timings, (cached, seconds)))
}

/// The choice in words.
fn described(c: &Choice) -> String {
    let timed: Vec<_> =
        c.candidates.iter().filter(|c| c.tokens_per_sec.is_some()).map(|c| c.batch_size).collect();
    let why = match timed.as_slice() {
        [] => "the only one that fits".to_owned(),
        timed => format!("the smallest within 1 % of the fastest of {timed:?}"),
    };
    let how = if c.cached { "from the cache".into() } else { format!("{:.1}s", c.discovery_s) };
    format!(
        "batch size | {} x {} micro batches | {why} | peak {} of {} | {how}",
        c.batch_size,
        c.accumulation,
        size(c.predicted_bytes as f64),
        size(c.limit_bytes as f64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_wins_over_a_checkpoint_and_that_over_a_choice() {
        let (on, off) = (
            BatchFlags::default(),
            BatchFlags { auto_batch_size: Switch::Off, ..BatchFlags::default() },
        );
        assert_eq!(Wanted::of(Some(3), Some(8), &on, 32), Wanted::Given(3));
        assert_eq!(Wanted::of(None, Some(8), &on, 32), Wanted::Resumed(8));
        assert_eq!(Wanted::of(None, None, &on, 32), Wanted::Auto);
        assert_eq!(Wanted::of(None, None, &off, 32), Wanted::UpTo(32));
    }

    #[test]
    fn off_takes_a_divisor() {
        assert_eq!(
            [divisor(64, 32), divisor(8, 32), divisor(35, 32), divisor(7, 4)],
            [32, 8, 7, 1]
        );
    }
}
