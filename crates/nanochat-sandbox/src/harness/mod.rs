//! The Python around a program, and the token that says how it went.
//!
//! `whole.py` runs a program with its tests in it, and explains how the token stays out of reach.
//! Where the tests come apart, `candidate.py` runs the program in one process and `judge.py` the
//! tests in another; the two speak `wire.py`, and only the judge's process ever holds the token.

use std::io::Read;

/// Who an interpreter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Program and tests in one.
    Whole,
    /// The program, which a judge asks.
    Candidate,
    /// The tests.
    Judge,
}

impl Role {
    /// What is run: `python -c SCRIPT ARGUMENTS`.
    pub fn script(self) -> String {
        let wire = include_str!("wire.py");
        match self {
            Role::Whole => include_str!("whole.py").to_owned(),
            Role::Candidate => format!("{wire}\n{}", include_str!("candidate.py")),
            Role::Judge => format!("{wire}\n{}", include_str!("judge.py")),
        }
    }

    /// Arguments of the script.
    pub fn arguments(self) -> Vec<String> {
        match self {
            Role::Whole => EVENTS.iter().map(|&e| e.to_owned()).collect(),
            Role::Candidate => Vec::new(),
            Role::Judge => vec![TOKEN_BYTES.to_string()],
        }
    }
}

/// Audit events that destroy a piece of the token: ways to look at what is not one's own.
const EVENTS: &[&str] = &[
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

/// Bytes of one piece; as `PIECE` in `whole.py`.
const PIECE: usize = 16;
/// Bytes of a token.
pub const TOKEN_BYTES: usize = PIECE * EVENTS.len();

/// A token nobody can guess. Errors: the system has no random bytes.
pub fn token() -> std::io::Result<[u8; TOKEN_BYTES]> {
    let mut token = [0; TOKEN_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut token)?;
    Ok(token)
}

/// What an interpreter that holds the token reads: the token, then a source.
pub fn message(token: &[u8; TOKEN_BYTES], source: &str) -> Vec<u8> {
    [token.as_slice(), source.as_bytes()].concat()
}
