//! `/api/runs`: what the page shows of training runs; read from their directories, never written.
//!
//! A name is looked up in the list of the directory, never joined to a path that a client gave.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// Most bytes of metrics that one answer reads.
const CHUNK: u64 = 1 << 20;
/// Bytes at the end of a file of metrics in which its last step is looked for.
const TAIL: u64 = 16 << 10;
/// Largest run.json or summary.json that is read.
const FILE: u64 = 4 << 20;

/// `GET /api/runs`
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    reply(
        with(&app, |dir| {
            let mut runs: Vec<Value> = directories(dir).iter().filter_map(|d| summary(d)).collect();
            let key = |run: &Value| run["updated"].as_u64().unwrap_or(0);
            runs.sort_by_key(|run| std::cmp::Reverse(key(run)));
            Ok(json!({"runs": runs}))
        })
        .await,
    )
}

/// `GET /api/runs/{name}`
pub(crate) async fn one(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    reply(
        with(&app, move |dir| {
            let run = find(dir, &name)?;
            let (settings, results) =
                (json_file(&run, "run.json"), json_file(&run, "summary.json"));
            Ok(json!({"run": settings, "summary": results}))
        })
        .await,
    )
}

/// From which byte on metrics are read.
#[derive(Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    after: u64,
}

/// `GET /api/runs/{name}/metrics?after=BYTE`
pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(After { after }): Query<After>,
) -> Response {
    reply(
        with(&app, move |dir| {
            let file = find(dir, &name)?.join("metrics.jsonl");
            let (rows, next) = rows(&file, after);
            Ok(json!({"rows": rows, "next": next}))
        })
        .await,
    )
}

async fn with(
    app: &Arc<App>,
    read: impl FnOnce(&FsPath) -> Result<Value> + Send + 'static,
) -> Result<Value> {
    let Some(dir) = app.config.runs.clone() else {
        return Err(ApiError::not_found("this server shows no runs: start it with --runs DIR"));
    };
    let done = tokio::task::spawn_blocking(move || read(&dir)).await;
    done.map_err(|e| ApiError::internal(e.to_string()))?
}

fn reply(answer: Result<Value>) -> Response {
    match answer {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}

fn directories(dir: &FsPath) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|p| p.is_dir() && p.join("run.json").is_file()).collect()
}

fn find(dir: &FsPath, name: &str) -> Result<PathBuf> {
    let found = directories(dir).into_iter().find(|p| p.file_name().is_some_and(|n| n == name));
    found.ok_or_else(|| ApiError::not_found("there is no such run"))
}

fn json_file(run: &FsPath, name: &str) -> Value {
    let file = run.join(name);
    let small = std::fs::metadata(&file).is_ok_and(|m| m.len() <= FILE);
    let text = small.then(|| std::fs::read_to_string(&file).ok()).flatten();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null)
}

/// What the list shows of a run: its last step, and when it changed.
fn summary(run: &FsPath) -> Option<Value> {
    let name = run.file_name()?.to_str()?;
    let file = run.join("metrics.jsonl");
    let meta =
        std::fs::metadata(&file).or_else(|_| std::fs::metadata(run.join("run.json"))).ok()?;
    let updated = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let start = std::fs::metadata(&file).map_or(0, |m| m.len().saturating_sub(TAIL));
    let (rows, _) = rows(&file, start);
    let last = rows.iter().rev().find(|row| row["kind"] == "step").cloned().unwrap_or(Value::Null);
    let settings = json_file(run, "run.json");
    let asked = &settings["settings"]["plan"]["ask"]["num_iterations"];
    let of = if last["stage"] == "base" { asked.clone() } else { Value::Null };
    Some(json!({
        "name": name, "stage": last["stage"], "updated": updated, "step": last["step"],
        "of": of, "loss": last["loss"],
    }))
}

/// The whole lines from byte `after` on, as JSON, and the byte behind them. A line that is no JSON (a
/// byte in the middle of one was asked for, or it is still being written) is passed over.
fn rows(file: &FsPath, after: u64) -> (Vec<Value>, u64) {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(file)?;
        file.seek(SeekFrom::Start(after))?;
        let mut bytes = Vec::new();
        file.take(CHUNK).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let rows = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    (rows, after + whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_whole_and_go_on_where_they_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metrics.jsonl");
        std::fs::write(&file, "{\"step\":1}\n{\"step\":2}\n{\"ste").unwrap();
        let (first, next) = rows(&file, 0);
        assert_eq!((first.len(), next), (2, 22));
        std::fs::write(&file, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n").unwrap();
        let (more, next) = rows(&file, next);
        assert_eq!((more, next), (vec![json!({"step": 3})], 33));
        assert_eq!(rows(&file, 33), (vec![], 33));
        assert_eq!(rows(&file, 999), (vec![], 999));
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        std::fs::create_dir_all(runs.join("d4")).unwrap();
        std::fs::write(runs.join("d4").join("run.json"), "{}").unwrap();
        std::fs::write(dir.path().join("run.json"), "{}").unwrap();
        assert!(find(&runs, "d4").is_ok());
        for name in ["..", ".", "", "../runs", "d4/", "/", "d4/../d4", "\0"] {
            assert!(find(&runs, name).is_err(), "{name:?}");
        }
    }
}
