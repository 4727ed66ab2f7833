//! Flags of how a run survives, and the signals that it listens to.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nanochat_train::step::Fault;
use nanochat_train::stop::StopSignal;
use nanochat_train::survival::Survival;

/// How long a run that is at its end waits for room on the disk.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a stage that is trained by itself survives.
#[derive(Args, Clone, Debug, Default)]
pub struct StageSurvival {
    /// Goes on although settings, tokenizer or data differ from the checkpoint's; put on record.
    #[arg(long)]
    pub force: bool,
    /// Trains in a process of its own and starts it again after a crash.
    #[arg(long)]
    pub supervise: bool,
    #[command(flatten)]
    run: SurvivalFlags,
}

impl StageSurvival {
    /// As [`SurvivalFlags::listen`].
    pub fn listen(&self) -> Result<Survival> {
        self.run.listen(self.force)
    }
}

/// How a run survives.
#[derive(Args, Clone, Debug, Default)]
pub struct SurvivalFlags {
    /// Saves and exits with code 75 before this much time is over (3h50m, 90m, 45s).
    #[arg(long, value_name = "TIME")]
    pub exit_after: Option<Time>,
    /// Every checkpoint whose step is a multiple of this stays for ever; 0: none does.
    #[arg(long, value_name = "M", default_value_t = 0)]
    pub keep_every: u64,
    /// Stops at the first loss or gradient that is not finite, and at the first spike.
    #[arg(long)]
    pub fail_fast: bool,
    /// Writes checkpoints beside the next steps, from a copy in memory (12 bytes a parameter).
    #[arg(long)]
    pub async_save: bool,
    /// For tests: STEP or STEP:TIMES, gradients that are made not finite.
    #[arg(long, hide = true, value_name = "STEP[:TIMES]")]
    pub inject_nan: Option<Injected>,
}

impl SurvivalFlags {
    /// From here on SIGTERM, SIGINT and SIGUSR1 are asked to wait; a second SIGINT is not.
    pub fn listen(&self, force: bool) -> Result<Survival> {
        let stop = StopSignal::default();
        listen(&stop).context("cannot listen to signals")?;
        let deadline = self.exit_after.map(|time| Instant::now() + time.0);
        Ok(Survival {
            stop: stop.with_deadline(deadline),
            keep_every: self.keep_every,
            force,
            fail_fast: self.fail_fast,
            patience: PATIENCE,
            async_save: self.async_save,
            fault: self.inject_nan.map(|injected| injected.0),
        })
    }
}

/// From here on SIGTERM, SIGINT and SIGUSR1 are asked to wait; a second SIGINT is not.
pub fn listen(stop: &StopSignal) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    let mut asks = vec![SIGTERM, SIGINT];
    if cfg!(unix) {
        asks.push(SIGUSR1);
    }
    // In this order: the first SIGINT arms what the second one sets off.
    let armed = Arc::new(AtomicBool::new(false));
    let code = crate::exit::AT_ONCE;
    signal_hook::flag::register_conditional_shutdown(SIGINT, code, Arc::clone(&armed))?;
    signal_hook::flag::register(SIGINT, armed)?;
    for signal in asks {
        signal_hook::flag::register_usize(signal, stop.flag(), signal as usize)?;
    }
    Ok(())
}

#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
#[cfg(not(unix))]
const SIGUSR1: i32 = 0;

/// `3h50m`, `90m`, `45s`, `1.5h`; a number alone is seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text} is no time: write 3h50m, 90m or 45s");
        let (mut seconds, mut rest) = (0.0, text);
        while !rest.is_empty() {
            let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let number: f64 = rest[..end].parse().map_err(|_| bad())?;
            let unit = rest[end..].chars().next().unwrap_or('s');
            seconds += number
                * match unit {
                    'd' => 86400.0,
                    'h' => 3600.0,
                    'm' => 60.0,
                    's' => 1.0,
                    _ => return Err(bad()),
                };
            rest = rest.get(end + 1..).unwrap_or("");
        }
        match Duration::try_from_secs_f64(seconds) {
            Ok(time) if !text.is_empty() => Ok(Self(time)),
            _ => Err(bad()),
        }
    }
}

/// `STEP` or `STEP:TIMES`.
#[derive(Clone, Copy, Debug)]
pub struct Injected(pub Fault);

impl FromStr for Injected {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (from, times) = text.split_once(':').unwrap_or((text, "1"));
        Ok(Self(Fault { from: from.parse()?, times: times.parse()? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_write_them() {
        let seconds = |text: &str| text.parse::<Time>().map(|t| t.0.as_secs_f64());
        for (text, want) in [("3h50m", 13800.0), ("90m", 5400.0), ("45s", 45.0), ("1.5h", 5400.0)] {
            assert_eq!(seconds(text), Ok(want), "{text}");
        }
        assert_eq!(seconds("1d2h3m4s"), Ok(93784.0));
        assert_eq!(seconds("10"), Ok(10.0));
        for text in ["", "h", "3x", "-5m", "1h-", "1e400s", "5 m", "3h50é"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
