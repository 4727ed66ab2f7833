//! A server in a process of its own, and what is known of it from outside: `/metrics` and `/proc`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::client::Target;
use crate::cli::Global;
use crate::cmd::serve::Which;

/// A server that listens; ended when it is dropped.
pub(super) struct Process {
    child: Child,
    pub target: Arc<Target>,
}

/// What a server holds. At rest all but descriptors are 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Held {
    /// Share of the pages of keys and values that requests hold.
    pub kv_usage: f64,
    pub running: f64,
    pub waiting: f64,
    pub http_under_way: f64,
    pub descriptors: usize,
}

impl Held {
    /// Nothing but descriptors, and no more of those than `idle` had: the connection of a look may be one of
    /// them, or closed already.
    pub fn is_within(self, idle: Self) -> bool {
        Self { descriptors: idle.descriptors, ..self } == idle
            && self.descriptors <= idle.descriptors
    }
}

impl Process {
    /// Starts `nanochat serve` on a free port with the model of `which`, and waits until it listens.
    ///
    /// Errors: it does not start; what it says is on standard error.
    pub fn start(which: &Which, global: &Global) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command.args(["serve", "--port=0"]).args(which.arguments()).args(global.arguments());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a server")?;
        let out = child.stdout.take().context("the server's output is not a pipe")?;
        let mut process =
            Self { child, target: Arc::new(Target { host: String::new(), key: None }) };
        for line in BufReader::new(out).lines() {
            if let Some(rest) = line?.strip_prefix("chat: http://") {
                let host = rest.split(' ').next().unwrap_or_default().to_owned();
                process.target = Arc::new(Target { host, key: None });
                return Ok(process);
            }
        }
        let ended = process.child.wait()?;
        bail!("the server did not start: it ended with {ended}")
    }

    /// One number of `/metrics`.
    ///
    /// Errors: the server does not answer, or has no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        number(&self.target.ask("GET", "/metrics", "")?.body, name)
    }

    /// What it holds now. The connection that asks for metrics is over before descriptors are counted, but
    /// the server may not have closed its end yet.
    pub fn held(&self) -> Result<Held> {
        let text = self.target.ask("GET", "/metrics", "")?.body;
        let directory = format!("/proc/{}/fd", self.child.id());
        let descriptors = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read {directory}: this case needs Linux"))?;
        Ok(Held {
            kv_usage: number(&text, "nanochat_kv_cache_usage_ratio")?,
            running: number(&text, "nanochat_requests_running")?,
            waiting: number(&text, "nanochat_requests_waiting")?,
            // The request that asks is one of them.
            http_under_way: number(&text, "nanochat_http_requests_under_way")? - 1.0,
            descriptors: descriptors.count(),
        })
    }

    /// What it holds once that is no more than `idle`, or what it still holds after `limit`; milliseconds waited.
    pub fn settles(&self, idle: Held, limit: Duration) -> Result<(Held, f64)> {
        let began = Instant::now();
        loop {
            let held = self.held()?;
            if held.is_within(idle) || began.elapsed() > limit {
                return Ok((held, began.elapsed().as_secs_f64() * 1e3));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it holds at rest: several looks that agree.
    ///
    /// Errors: it does not come to rest in 10 s.
    pub fn idle(&self) -> Result<Held> {
        let (mut last, mut same) = (self.held()?, 0);
        for _ in 0..200 {
            std::thread::sleep(Duration::from_millis(50));
            let held = self.held()?;
            same = if held == last && held.running + held.waiting == 0.0 { same + 1 } else { 0 };
            if same == 5 {
                return Ok(held);
            }
            last = held;
        }
        bail!("the server does not come to rest: {last:?}")
    }

    /// Resident memory, MiB.
    ///
    /// Errors: there is no `/proc`.
    pub fn resident_mib(&self) -> Result<f64> {
        let file = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {file}: this case needs Linux"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("{file} has no VmRSS"))? / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a sample without labels in Prometheus' text.
fn number(text: &str, name: &str) -> Result<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("/metrics has no {name}"))?;
    value.trim().parse().with_context(|| format!("{name} is {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# HELP a b\na_more 3\na 2.5\n";
        assert_eq!(number(text, "a").unwrap(), 2.5);
        assert!(number(text, "a_mor").is_err());
    }
}
