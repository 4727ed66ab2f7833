//! Where the data of evaluations lies: a data folder, and records of `.jsonl` or `.parquet` files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::conversations::value_of_row;
use crate::error::{Error, Result};
use crate::shard::{Line, Lines, Policy, Skipped, parquet_rows};

/// A folder of downloaded data. A file is looked for in it, below its `eval` and below its `task_data`
/// (where upstream nanochat keeps the Hub's parquet files).
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Data below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The first of some files or folders that exists.
    ///
    /// Errors: [`Error::TaskFiles`] says what was looked for and where it can be had.
    pub fn find(&self, task: &str, names: &[&str], from: &'static str) -> Result<PathBuf> {
        let roots = [self.root.clone(), self.root.join("eval"), self.root.join("task_data")];
        let all = names.iter().flat_map(|name| roots.iter().map(move |root| root.join(name)));
        all.into_iter().find(|path| path.exists()).ok_or_else(|| Error::TaskFiles {
            task: task.into(),
            looked: names.join(" or "),
            root: self.root.clone(),
            from,
        })
    }
}

/// Every record of a file, or of the `.jsonl` and `.parquet` files of a folder in order of name.
///
/// Errors: [`Error::BadRecord`] names a line that is no JSON; [`Error::Format`], [`Error::Io`],
/// [`Error::NoShards`].
pub fn records(path: &Path) -> Result<Vec<Value>> {
    let ext = |p: &Path| p.extension().and_then(|e| e.to_str()).map(str::to_owned);
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        files.retain(|f| matches!(ext(f).as_deref(), Some("jsonl" | "parquet")));
        files.sort();
        if files.is_empty() {
            return Err(Error::NoShards { place: path.display().to_string() });
        }
        return Ok(files.iter().map(|f| records(f)).collect::<Result<Vec<_>>>()?.concat());
    }
    let policy = Policy::default();
    let mut all = Vec::new();
    match ext(path).as_deref() {
        Some("jsonl") => {
            let bad = |row: usize, why: String| Error::BadRecord {
                place: format!("{}, row {row}", path.display()),
                why,
            };
            let mut lines = Lines::open(path, policy.max_document_bytes)?;
            let (mut line, mut row) = (Vec::new(), 0);
            while let Some(found) = lines.next(&mut line)? {
                match found {
                    Line::TooLong => return Err(bad(row, "longer than 64 MiB".into())),
                    Line::Whole if line.iter().all(u8::is_ascii_whitespace) => continue,
                    Line::Whole => all
                        .push(serde_json::from_slice(&line).map_err(|e| bad(row, e.to_string()))?),
                }
                row += 1;
            }
        }
        Some("parquet") => {
            parquet_rows(path, &policy, &mut Skipped::default(), |_, row, _| {
                all.push(value_of_row(&row));
                Ok(())
            })?;
        }
        _ => return Err(Error::Format { path: path.into() }),
    }
    Ok(all)
}
