//! The crate's one error type: what went wrong, where, and the next thing to do.

use std::path::{Path, PathBuf};

use crate::shard::Reason;

/// What the data crate can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "read", "write", "rename".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A folder or list held nothing that can be read.
    #[error(
        "no shards in {place}: give .parquet, .jsonl or .txt files, or a folder that holds them"
    )]
    NoShards {
        /// Folder, or list of paths.
        place: String,
    },
    /// The name ends in nothing known.
    #[error("cannot tell what {} holds: the name must end in .parquet, .jsonl or .txt", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// A row cannot be used, and the policy says to stop.
    #[error("{}, row {row}: {reason}{detail}: mend the row, or pass over bad rows with --skip-bad", path.display())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// Row within the file, from 0 (a line for .jsonl, a piece for .txt).
        row: u64,
        /// Why.
        reason: Reason,
        /// More words, with a leading space, or nothing.
        detail: String,
    },
    /// A whole file cannot be used, and the policy says to stop.
    #[error("shard {}: {reason}{detail}: download or write it again, or pass over bad rows with --skip-bad", path.display())]
    BadShard {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: Reason,
        /// More words, with a leading space, or nothing.
        detail: String,
    },
    /// A full pass gave no document at all.
    #[error("{name} gives rank {rank} of {world} no documents ({skipped}): {advice}")]
    NoDocuments {
        /// The data set.
        name: String,
        /// This process.
        rank: usize,
        /// How many processes there are.
        world: usize,
        /// What was skipped, in words.
        skipped: String,
        /// What to change.
        advice: String,
    },
    /// A set cannot be split as asked.
    #[error("cannot split {name} into train and validation: {why}")]
    Split {
        /// The data set.
        name: String,
        /// What is missing, and what to do.
        why: String,
    },
    /// A saved state cannot be used.
    #[error("saved data state: {why}")]
    State {
        /// What does not fit, and what to do.
        why: String,
    },
    /// A setting makes no sense.
    #[error("data setting {name} is {value}: {must}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        must: &'static str,
    },
    /// A record is no conversation in any known form.
    #[error(
        "{place}: no known conversation form in a record with keys [{keys}]: expected messages; \
         instruction + output or response; question + answer; question + choices + answer; or \
         sections + qa"
    )]
    Record {
        /// File and row.
        place: String,
        /// The keys found.
        keys: String,
    },
    /// A record has a known form but a value that cannot be used.
    #[error("{place}: {why}")]
    BadRecord {
        /// File and row.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// No conversation of a mixture has a trained token that fits.
    #[error(
        "no conversation of {name} has a trained token within {limit} tokens ({tried} tried): use a \
         longer sequence, or data with assistant messages"
    )]
    Untrained {
        /// The mixture.
        name: String,
        /// The most tokens a conversation may have.
        limit: usize,
        /// How many were looked at.
        tried: usize,
    },
    /// A download failed for good.
    #[error("download {url}: {why}")]
    Download {
        /// The address.
        url: String,
        /// What went wrong, and what to do.
        why: String,
    },
    /// Some of several downloads failed.
    #[error(
        "{failed} of {of} shards not downloaded; what is there is kept, run it again. First: {first}"
    )]
    Downloads {
        /// How many failed.
        failed: usize,
        /// How many were asked for.
        of: usize,
        /// The first failure in shard order.
        first: Box<Error>,
    },
    /// Files on disk differ from the manifest.
    #[error("{} does not match SHA256SUMS: {why}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// How it differs, and what to do.
        why: String,
    },
    /// The files of an evaluation are not there.
    #[error(
        "{task}: no {looked} in {}: get the data from {from}, and name its folder with --data-dir DIR \
         or NANOCHAT_DATA_DIR",
        root.display()
    )]
    TaskFiles {
        /// The task.
        task: String,
        /// What was looked for.
        looked: String,
        /// The data folder.
        root: PathBuf,
        /// Where it can be had.
        from: &'static str,
    },
    /// No task has this name.
    #[error("no task {name:?}: choose of {known}, or give a file of your own with --task-file")]
    UnknownTask {
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A program that a model wrote cannot be run.
    #[error(
        "grading runs a program that the model wrote, which is done in a sandbox alone ({why}): leave \
         tasks of programs (HumanEval) out"
    )]
    NoRunner {
        /// What is missing.
        why: String,
    },
    /// The tokenizer refused a conversation.
    #[error("{place}: {why}")]
    Render {
        /// Which conversation.
        place: String,
        /// What the renderer said.
        why: String,
    },
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `map_err`: `File::open(p).map_err(Error::io("open", p))`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { doing, path: path.to_path_buf(), source }
    }

    /// An [`Error::State`].
    pub(crate) fn state(why: impl Into<String>) -> Error {
        Error::State { why: why.into() }
    }
}
