//! Which interpreter runs the programs, and which files it is made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::verdict::Unavailable;

/// An interpreter: itself, its standard library, the shared libraries that they need. Nothing else
/// is visible to a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// The real executable, not a shim or a link.
    pub exe: PathBuf,
    /// Say `3.11.7`.
    pub version: String,
    /// Whether the version has audit hooks, which the end token needs.
    enough: bool,
    /// Folders of the standard library.
    pub folders: Vec<PathBuf>,
    /// Folders below them that hold other people's packages: covered.
    pub hidden: Vec<PathBuf>,
    /// Single files: the executable, the loader, libraries.
    pub files: Vec<PathBuf>,
    /// Other names under which a library or the loader is looked for, and its file.
    pub links: BTreeMap<PathBuf, PathBuf>,
}

impl Interpreter {
    /// The first `python3` of PATH, then of the usual folders, that works. A shim (pyenv's is a
    /// shell script) is asked for the interpreter behind it. Asked once a process.
    pub fn find() -> Result<Interpreter, Unavailable> {
        static FOUND: Mutex<Option<Interpreter>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if found.is_none() {
            *found = Some(Interpreter::search()?);
        }
        found.clone().ok_or_else(|| Unavailable::new("python", "none"))
    }

    fn search() -> Result<Interpreter, Unavailable> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path)
            .chain(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
        let mut reasons = Vec::new();
        for candidate in folders.map(|f| f.join("python3")).filter(|p| p.is_file()) {
            match Interpreter::describe(&candidate) {
                Ok(interpreter) => return Ok(interpreter),
                Err(why) => reasons.push(format!("{}: {why}", candidate.display())),
            }
        }
        reasons.dedup();
        let why = if reasons.is_empty() { "no python3 on PATH".into() } else { reasons.join("; ") };
        Err(Unavailable::new("python", why))
    }

    /// Asks an interpreter about itself. Errors: in words.
    pub fn describe(python: &Path) -> Result<Interpreter, String> {
        let output = Command::new(python)
            .args(["-I", "-S", "-B", "-c", include_str!("python_probe.py")])
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(stderr.lines().last().unwrap_or("it fails").to_owned());
        }
        let found: Interpreter =
            serde_json::from_slice(&output.stdout).map_err(|e| format!("odd answer: {e}"))?;
        if !found.enough {
            return Err(format!("version {} is older than 3.8", found.version));
        }
        Ok(found)
    }
}
