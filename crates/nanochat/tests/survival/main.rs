//! Training that survives, through the program: kills, signals, faults of the disk, damaged files.
//!
//! A fast part of it runs always; all of it (minutes) by
//! `NANOCHAT_THOROUGH=1 cargo test -p nanochat --test survival -- --nocapture`.

#[cfg(target_os = "linux")]
mod calls;
mod damage;
#[cfg(unix)]
mod kills;
mod lab;
#[cfg(unix)]
mod signals;
