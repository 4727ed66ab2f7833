//! The Python around a program, and the token that says that the program ran to its end.
//!
//! `harness.py` explains how the token stays out of a program's reach.

use std::io::Read;

/// What the interpreter runs: `python -c SCRIPT EVENTS...`.
pub const SCRIPT: &str = include_str!("harness.py");

/// Audit events that destroy a piece of the token: ways to look at what is not one's own.
pub const EVENTS: &[&str] = &[
    "ctypes.PyObj_FromPtr",
    "ctypes.addressof",
    "ctypes.call_function",
    "ctypes.cdata",
    "ctypes.cdata/buffer",
    "ctypes.dlopen",
    "ctypes.dlsym",
    "ctypes.dlsym/handle",
    "ctypes.memoryview_at",
    "ctypes.string_at",
    "ctypes.wstring_at",
    "gc.get_objects",
    "gc.get_referents",
    "gc.get_referrers",
    "sandbox.native",
    "sys._current_exceptions",
    "sys._current_frames",
    "sys.monitoring.register_callback",
    "sys.remote_exec",
    "sys.setprofile",
    "sys.settrace",
];

/// Bytes of one piece; as `PIECE` in `harness.py`.
const PIECE: usize = 16;
/// Bytes of a token.
pub const TOKEN_BYTES: usize = PIECE * EVENTS.len();

/// A token nobody can guess. Errors: the system has no random bytes.
pub fn token() -> std::io::Result<[u8; TOKEN_BYTES]> {
    let mut token = [0; TOKEN_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut token)?;
    Ok(token)
}

/// What the interpreter reads from its third file: the token, then the source.
pub fn message(token: &[u8; TOKEN_BYTES], source: &str) -> Vec<u8> {
    [token.as_slice(), source.as_bytes()].concat()
}
