//! How much a program may use.

use serde::{Deserialize, Serialize};

/// Bounds of one run. A program cannot fork, so what holds for its process holds for all of it.
///
/// Wall time is a matter of each [`Program`](crate::Program); its CPU seconds follow from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space of the interpreter and the program, in bytes.
    pub memory_bytes: u64,
    /// Most bytes kept of standard output, and of standard error. One more ends the program.
    pub output_bytes: usize,
    /// Bytes in the scratch directory, all files together (they live in memory).
    pub scratch_bytes: u64,
    /// Files and directories in the scratch directory.
    pub scratch_files: u64,
    /// Largest file, in bytes.
    pub file_bytes: u64,
    /// Open files.
    pub open_files: u64,
    /// Threads, the first one included.
    pub threads: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            memory_bytes: 256 << 20,
            output_bytes: 1 << 20,
            scratch_bytes: 16 << 20,
            scratch_files: 512,
            file_bytes: 16 << 20,
            open_files: 64,
            threads: 32,
        }
    }
}
