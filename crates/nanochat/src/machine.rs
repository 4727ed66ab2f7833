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
        let be = global.backend()?;
        let (name, memory_bytes) = device();
        Ok(Self {
            cpu: name,
            backend: be.name(),
            threads: global.threads_given(),
            memory_bytes,
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        })
    }
}

/// Name of the CPU and bytes of memory: what timings belong to.
pub fn device() -> (String, u64) {
    let cpu = proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
    let memory = proc_field("/proc/meminfo", "MemTotal").and_then(|t| kib(&t));
    (cpu, memory.unwrap_or(0))
}

/// Name of this machine in its network; `?` where the system does not say.
pub fn host() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    return std::env::var("COMPUTERNAME").unwrap_or_else(|_| "?".into());
}

/// The program's version and what tells this build from another: the size and age of its file.
pub fn build() -> String {
    let file = std::env::current_exe().and_then(std::fs::metadata);
    let stamp = file.ok().map_or_else(String::new, |m| {
        let time = m.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        format!("+{}.{}", m.len(), time.map_or(0, |d| d.as_millis()))
    });
    format!("{VERSION}{stamp}")
}

/// Most memory that the process has held so far, bytes; 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    proc_field("/proc/self/status", "VmHWM").and_then(|t| kib(&t)).unwrap_or(0)
}

/// Bytes that another process holds now, by a field of its status; 0 where the system does not say, or
/// the process has ended.
pub fn process_bytes(pid: u32, field: &str) -> u64 {
    proc_field(&format!("/proc/{pid}/status"), field).and_then(|t| kib(&t)).unwrap_or(0)
}

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs())
}
