//! What the program runs on.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cli::Global;

/// A machine, in words and numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the CPU.
    pub cpu: String,
    /// Backend in use: `cpu avx2 f32, 2 threads`.
    pub backend: String,
    /// Threads in use.
    pub threads: usize,
    /// Memory of the machine, bytes; 0 when unknown.
    pub memory_bytes: u64,
    /// `linux x86_64`.
    pub os: String,
}

fn proc_field(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split(':').nth(1)?.trim().to_owned())
}

fn kib(text: &str) -> Option<u64> {
    Some(text.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

impl Machine {
    /// This machine, with the device that the flags choose.
    pub fn here(global: &Global) -> Result<Self> {
        let cpu = global.backend()?;
        Ok(Self {
            cpu: proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            backend: nanochat_compute::Backend::name(&cpu),
            threads: cpu.threads(),
            memory_bytes: proc_field("/proc/meminfo", "MemTotal")
                .and_then(|t| kib(&t))
                .unwrap_or(0),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        })
    }
}

/// Most memory that the process has held so far, bytes; 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    proc_field("/proc/self/status", "VmHWM").and_then(|t| kib(&t)).unwrap_or(0)
}

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs())
}
