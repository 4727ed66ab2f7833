//! Training that survives, through the program: kills, signals, faults of the disk, damaged files.
//!
//! A fast part of it runs always. `NANOCHAT_THOROUGH=1` runs all of it (`tests/reliability/run` of this crate).

#[cfg(target_os = "linux")]
mod calls;
mod damage;
#[cfg(unix)]
mod kills;
mod lab;
#[cfg(unix)]
mod signals;
