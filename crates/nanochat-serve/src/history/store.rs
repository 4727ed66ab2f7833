//! Conversations in SQLite: documents, and an index of their words.
//!
//! A commit is on the disk before the client hears of it (WAL, synchronous=FULL): a kill at any moment
//! loses nothing that was answered. A file that is damaged is moved aside, never overwritten.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

use crate::{Error, Result};

/// What SQLite or the JSON in it says.
pub(crate) type StoreError = rusqlite::Error;

type Answer<T> = std::result::Result<T, StoreError>;

/// Version of the tables; a newer program's file is refused.
const SCHEMA: i64 = 1;

const TABLES: &str = "
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY, rev INTEGER NOT NULL, title TEXT NOT NULL, updated TEXT NOT NULL,
        snippet TEXT NOT NULL, document TEXT NOT NULL);
    CREATE INDEX conversations_updated ON conversations (updated);
    CREATE VIRTUAL TABLE words USING fts5 (title, body, tokenize = 'trigram');
    PRAGMA user_version = 1;";

/// What a writer believes to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Nothing.
    None,
    /// This revision.
    Rev(i64),
}

/// What became of a write.
#[derive(Debug, PartialEq)]
pub(crate) enum Put {
    Kept {
        rev: i64,
    },
    /// Something else is there, or nothing.
    Other(Option<Value>),
}

/// The file of conversations.
pub(crate) struct Store {
    db: Mutex<Connection>,
}

impl Store {
    /// Opens or makes the file. If it is damaged it is moved aside, with a warning, and a new one made.
    ///
    /// Errors: [`Error::History`] for a file that cannot be opened, or that a newer program made.
    pub fn open(file: &Path) -> Result<Self> {
        let wrong = |what: String| Error::History { file: file.display().to_string(), what };
        if let Some(dir) = file.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(|e| wrong(e.to_string()))?;
        }
        make_private(file).map_err(|e| wrong(e.to_string()))?;
        match connect(file) {
            Ok(db) => Ok(Self { db: Mutex::new(db) }),
            Err(Opening::Newer(version)) => Err(wrong(format!(
                "has tables of version {version}, this program knows {SCHEMA}: use a newer program"
            ))),
            Err(Opening::Damaged(what)) => {
                let aside = move_aside(file).map_err(|e| wrong(e.to_string()))?;
                eprintln!(
                    "warning: the history {} is damaged ({what}): moved to {}, a new one begins",
                    file.display(),
                    aside.display()
                );
                make_private(file).map_err(|e| wrong(e.to_string()))?;
                let db = connect(file).map_err(|e| wrong(format!("{e:?}")))?;
                Ok(Self { db: Mutex::new(db) })
            }
            Err(Opening::Failed(e)) => Err(wrong(e.to_string())),
        }
    }

    /// A panic while it was held left no half of a transaction: SQLite rolls that back.
    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Newest first; with `q`, those whose title or text has it, whatever its case.
    pub fn list(&self, q: Option<&str>, limit: usize, before: Option<&str>) -> Answer<Value> {
        let db = self.db();
        let before = before.unwrap_or("~");
        let most = limit as i64 + 1;
        // Three letters are the least that the index knows.
        let long = q.is_some_and(|q| q.chars().count() >= 3);
        let sql = match (q, long) {
            (None, _) => {
                "SELECT id, title, updated, snippet FROM conversations
                 WHERE updated < ?1 AND ?3 = '' ORDER BY updated DESC, id DESC LIMIT ?2"
            }
            (Some(_), true) => {
                "SELECT c.id, c.title, c.updated, snippet(words, 1, '', '', '...', 64)
                 FROM words JOIN conversations c ON c.rowid = words.rowid
                 WHERE words MATCH ?3 AND c.updated < ?1 ORDER BY c.updated DESC, c.id DESC LIMIT ?2"
            }
            (Some(_), false) => {
                "SELECT c.id, c.title, c.updated, c.snippet
                 FROM words JOIN conversations c ON c.rowid = words.rowid
                 WHERE (instr(lower(words.title), lower(?3)) OR instr(lower(words.body), lower(?3)))
                 AND c.updated < ?1 ORDER BY c.updated DESC, c.id DESC LIMIT ?2"
            }
        };
        let word = match q {
            // Quoted, whatever it holds is words and no query language.
            Some(q) if long => format!("\"{}\"", q.replace('"', "\"\"")),
            other => other.unwrap_or("").to_owned(),
        };
        let mut statement = db.prepare_cached(sql)?;
        let row = |row: &rusqlite::Row<'_>| {
            let text = |i| row.get::<_, String>(i);
            Ok(json!({
                "id": text(0)?, "title": text(1)?, "updated": text(2)?, "snippet": text(3)?,
            }))
        };
        let rows = statement.query_map(params![before, most, word], row)?;
        let mut rows: Vec<Value> = rows.collect::<Answer<_>>()?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(json!({"conversations": rows, "more": more}))
    }

    /// A document.
    pub fn get(&self, id: &str) -> Answer<Option<Value>> {
        Ok(find(&self.db(), id)?.map(|(_, document)| document))
    }

    /// Keeps a document if what is there is what the writer expects; its `rev` is set.
    pub fn put(&self, id: &str, mut document: Value, expected: Expected) -> Answer<Put> {
        let mut db = self.db();
        let change = db.transaction()?;
        let there = find(&change, id)?;
        let rev = match (&there, expected) {
            (None, Expected::None) => 1,
            (Some((rev, _)), Expected::Rev(known)) if *rev == known => rev + 1,
            _ => return Ok(Put::Other(there.map(|(_, document)| document))),
        };
        document["rev"] = rev.into();
        write(&change, id, rev, &document)?;
        change.commit()?;
        Ok(Put::Kept { rev })
    }

    /// Gives a conversation another title; its new revision, None if it is not there.
    pub fn rename(&self, id: &str, title: &str) -> Answer<Option<i64>> {
        let mut db = self.db();
        let change = db.transaction()?;
        let Some((rev, mut document)) = find(&change, id)? else { return Ok(None) };
        document["title"] = title.into();
        document["rev"] = (rev + 1).into();
        write(&change, id, rev + 1, &document)?;
        change.commit()?;
        Ok(Some(rev + 1))
    }

    /// Forgets a conversation; its bytes are overwritten.
    pub fn delete(&self, id: &str) -> Answer<()> {
        let mut db = self.db();
        let change = db.transaction()?;
        change.execute(
            "DELETE FROM words WHERE rowid = (SELECT rowid FROM conversations WHERE id = ?1)",
            [id],
        )?;
        change.execute("DELETE FROM conversations WHERE id = ?1", [id])?;
        change.commit()
    }
}

fn find(db: &Connection, id: &str) -> Answer<Option<(i64, Value)>> {
    let mut statement =
        db.prepare_cached("SELECT rev, document FROM conversations WHERE id = ?1")?;
    let row = statement.query_row([id], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)));
    let Some((rev, text)) = row.optional()? else { return Ok(None) };
    let document = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Some((rev, document)))
}

fn write(db: &Connection, id: &str, rev: i64, document: &Value) -> Answer<()> {
    let text = |key: &str| document[key].as_str().unwrap_or("").to_owned();
    let body = body(document);
    let snippet: String = body.chars().take(120).collect();
    db.prepare_cached(
        "INSERT INTO conversations (id, rev, title, updated, snippet, document)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id) DO UPDATE SET rev = excluded.rev,
         title = excluded.title, updated = excluded.updated, snippet = excluded.snippet,
         document = excluded.document",
    )?
    .execute(params![
        id,
        rev,
        text("title"),
        text("updated"),
        snippet,
        document.to_string()
    ])?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO words (rowid, title, body)
         SELECT rowid, ?2, ?3 FROM conversations WHERE id = ?1",
    )?
    .execute(params![id, text("title"), body])?;
    Ok(())
}

/// All words of a document.
fn body(document: &Value) -> String {
    let nodes = document["nodes"].as_array().into_iter().flatten();
    let parts = nodes.flat_map(|node| node["parts"].as_array().into_iter().flatten());
    let texts = parts.filter(|p| p["type"] == "text").filter_map(|p| p["text"].as_str());
    texts.collect::<Vec<_>>().join("\n")
}

#[derive(Debug)]
enum Opening {
    Damaged(String),
    Newer(i64),
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Opening {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged(error.to_string()),
            _ => Self::Failed(error),
        }
    }
}

fn connect(file: &Path) -> std::result::Result<Connection, Opening> {
    let db = Connection::open(file)?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "secure_delete", true)?;
    db.pragma_update(None, "trusted_schema", false)?;
    let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Opening::Damaged(found));
    }
    let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        0 => db.execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))?,
        SCHEMA => {}
        newer => return Err(Opening::Newer(newer)),
    }
    Ok(db)
}

/// Conversations are for the eyes of whoever started the server.
fn make_private(file: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file).map(|_| ())
}

/// Renames the file and its log to a name that is free.
fn move_aside(file: &Path) -> std::io::Result<PathBuf> {
    let named = |end: &str| PathBuf::from(format!("{}{end}", file.display()));
    let aside = (1..).map(|n| named(&format!(".damaged-{n}"))).find(|p| !p.exists());
    let aside = aside.unwrap_or_else(|| named(".damaged"));
    std::fs::rename(file, &aside)?;
    for end in ["-wal", "-shm"] {
        let log = named(end);
        if log.exists() {
            std::fs::rename(&log, PathBuf::from(format!("{}{end}", aside.display())))?;
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests;
