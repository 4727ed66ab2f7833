//! What a person sees while a run goes: lines on standard error or output, all of them in `log.txt`,
//! rows in `metrics.jsonl`.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nanochat_train::metrics::{LineKind, Metrics, Observer};
use serde_json::Value;

use crate::run_dir::RunDir;

/// Lines a second at most when standard output is not a terminal (step lines only; the log has all).
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);

/// The terminal, the log and the metrics of a run.
pub struct Screen {
    /// None: this is not the rank that speaks.
    log: Option<File>,
    metrics: Option<Metrics>,
    terminal: bool,
    /// A step line stands on the terminal, to be overwritten by the next.
    open_line: bool,
    last_plain: Option<Instant>,
    held: Option<String>,
}

impl Screen {
    /// Opens the log of a run.
    pub fn open_log(run: &RunDir) -> Result<Self> {
        let path = run.join("log.txt");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let terminal = std::io::stdout().is_terminal();
        let log = Some(log);
        Ok(Self { log, metrics: None, terminal, open_line: false, last_plain: None, held: None })
    }

    /// The log of a run for rank 0; for the others nothing is printed and nothing written.
    pub fn of_rank(run: &RunDir, rank: usize) -> Result<Self> {
        if rank == 0 {
            return Self::open_log(run);
        }
        let (log, metrics, terminal) = (None, None, false);
        Ok(Self { log, metrics, terminal, open_line: false, last_plain: None, held: None })
    }

    /// Opens the metrics for a stage whose first row is of step `from`.
    pub fn metrics(&mut self, run: &RunDir, stage: &str, from: u64) -> Result<()> {
        if self.log.is_none() {
            return Ok(());
        }
        self.metrics = Some(Metrics::open(&run.join("metrics.jsonl"), stage, from)?);
        Ok(())
    }

    /// Prints a line for people and the log.
    pub fn say(&mut self, text: &str) {
        self.line(LineKind::Event, text);
    }

    fn print_step(&mut self, text: &str) {
        if self.terminal {
            print!("\r\x1b[2K{text}");
            let _ = std::io::stdout().flush();
            self.open_line = true;
            return;
        }
        if self.last_plain.is_none_or(|t| t.elapsed() >= PLAIN_INTERVAL) {
            println!("{text}");
            self.last_plain = Some(Instant::now());
            self.held = None;
        } else {
            self.held = Some(text.to_owned());
        }
    }

    fn print_event(&mut self, text: &str) {
        if self.open_line {
            println!();
            self.open_line = false;
        }
        if let Some(held) = self.held.take() {
            println!("{held}");
        }
        println!("{text}");
    }
}

impl Observer for Screen {
    fn line(&mut self, kind: LineKind, text: &str) {
        let Some(log) = &mut self.log else { return };
        // A log that cannot be written must not end a run.
        let _ = writeln!(log, "{text}");
        match kind {
            LineKind::Step => self.print_step(text),
            LineKind::Event => self.print_event(text),
        }
    }

    fn row(&mut self, row: Value) -> nanochat_train::Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |m| m.write(&row))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.open_line {
            println!();
        }
        if let Some(held) = self.held.take() {
            println!("{held}");
        }
    }
}
