//! `nanochat data`: lists, fetches, checks and counts shards; writes out the built-in corpus.
//!
//! In: presets, address patterns, folders. Out: shards on disk, figures.

mod download;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nanochat_data::download::{PRESETS, Preset, verify};
use nanochat_data::starter::Starter;
use nanochat_data::{Dataset, OnBad, Policy, Stats};
use serde_json::json;

use crate::cli::Global;
use crate::figures::{count, size, thousands};
use crate::run_dir::base_dir;

/// What to do with data.
#[derive(Subcommand)]
pub enum DataCommand {
    /// Sets that can be downloaded, and shards that are here.
    #[command(after_help = "Example:\n  nanochat data list")]
    List,
    /// Fetch shards, each checked against its SHA-256; goes on where it stopped.
    #[command(after_help = download::EXAMPLES)]
    Download(download::DownloadArgs),
    /// Count documents, bytes and characters in one full pass.
    #[command(after_help = "Examples:\n  \
        nanochat data stats ~/.cache/nanochat/climbmix\n  \
        nanochat data stats --skip-bad a.jsonl b.jsonl")]
    Stats(StatsArgs),
    /// Compare the shards of a folder with its SHA256SUMS.
    #[command(after_help = "Example:\n  nanochat data verify ~/.cache/nanochat/climbmix")]
    Verify(VerifyArgs),
    /// Write the built-in starter corpus as .jsonl, to look at it or to train on it elsewhere.
    #[command(after_help = "Examples:\n  \
        nanochat data starter --documents 3\n  \
        nanochat data starter --documents 10000 --conversations 5000 --out starter.jsonl\n\n\
        With both, conversations go into their own file: starter-conversations.jsonl.")]
    Starter(StarterArgs),
}

/// Flags of `data stats`.
#[derive(Args)]
pub struct StatsArgs {
    /// Shards (.parquet, .jsonl, .txt) or folders of them.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Column (parquet) or field (jsonl) that holds the text.
    #[arg(long, default_value = "text", value_name = "NAME")]
    column: String,
    /// Go on without bad rows and shards, and count them.
    #[arg(long)]
    skip_bad: bool,
}

/// Flags of `data verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Folder with SHA256SUMS.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Flags of `data starter`; `--seed` decides what is in it.
#[derive(Args)]
pub struct StarterArgs {
    /// Pretraining documents.
    #[arg(long, value_name = "N")]
    documents: Option<usize>,
    /// Conversations for finetuning.
    #[arg(long, value_name = "N")]
    conversations: Option<usize>,
    /// File to write (default: standard output).
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
}

/// Runs `nanochat data`.
pub fn run(command: &DataCommand, global: &Global) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        DataCommand::List => list(global, &mut out),
        DataCommand::Download(args) => download::run(args, global, &mut out),
        DataCommand::Stats(args) => stats(args, global, &mut out),
        DataCommand::Verify(args) => check(&args.dir, global, &mut out),
        DataCommand::Starter(args) => starter(args, global, &mut out),
    }
}

/// Shards of a folder.
struct Local {
    dir: PathBuf,
    shards: u64,
    bytes: u64,
    /// It has a SHA256SUMS.
    sums: bool,
}

/// Folders right under `base` that hold shards, by name.
fn local(base: &Path) -> Vec<Local> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for folder in entries(base).map(|e| e.path()).filter(|p| p.is_dir()) {
        let is_shard = |p: &Path| {
            p.extension().is_some_and(|e| ["parquet", "jsonl", "txt"].iter().any(|k| e == *k))
        };
        let sizes = entries(&folder).filter(|e| is_shard(&e.path())).filter_map(|e| {
            let meta = e.metadata().ok()?;
            meta.is_file().then_some(meta.len())
        });
        let (shards, bytes) = sizes.fold((0, 0), |(n, sum), len| (n + 1, sum + len));
        if shards > 0 {
            let sums = folder.join("SHA256SUMS").exists();
            found.push(Local { dir: folder, shards, bytes, sums });
        }
    }
    found.sort_by(|a, b| a.dir.cmp(&b.dir));
    found
}

fn list(global: &Global, out: &mut dyn Write) -> Result<()> {
    let base = base_dir();
    let here = local(&base);
    writeln!(out, "to download:")?;
    writeln!(out, "  starter      built in: \"nanochat data starter\" shows it")?;
    for p in PRESETS {
        let shards = thousands(u64::from(p.last) + 1);
        writeln!(out, "  {:12} {shards} shards, {}", p.name, p.url)?;
    }
    writeln!(out, "here, under {}:", base.display())?;
    if here.is_empty() {
        writeln!(out, "  nothing: try \"nanochat data download --preset climbmix -n 8\"")?;
    }
    for l in &here {
        let checked = if l.sums { "" } else { ", without checksums" };
        let name = l.dir.file_name().unwrap_or_default().to_string_lossy();
        let (n, bytes) = (count(l.shards, "shard"), size(l.bytes as f64));
        writeln!(out, "  {name:12} {n}, {bytes}{checked}")?;
    }
    if global.json {
        let preset = |p: &Preset| json!({ "name": p.name, "url": p.url, "shards": p.last + 1 });
        let local = |l: &Local| {
            json!({
                "path": l.dir.display().to_string(), "shards": l.shards, "bytes": l.bytes,
                "checksums": l.sums,
            })
        };
        let presets: Vec<_> = PRESETS.iter().map(preset).collect();
        let here: Vec<_> = here.iter().map(local).collect();
        writeln!(out, "{}", json!({ "presets": presets, "here": here }))?;
    }
    Ok(())
}

fn stats(args: &StatsArgs, global: &Global, out: &mut dyn Write) -> Result<()> {
    let on_bad = if args.skip_bad { OnBad::Skip } else { OnBad::Fail };
    let policy = Policy { on_bad, column: args.column.clone(), ..Policy::default() };
    let set = Dataset::open(&args.paths, &policy)?;
    let stats = set.stats()?;
    let fingerprint = set.fingerprint()?;
    for (key, value) in stats_lines(set.files(), &stats) {
        writeln!(out, "{key:24}: {value}")?;
    }
    writeln!(out, "{:24}: {fingerprint}", "fingerprint")?;
    if global.json {
        let row = json!({
            "files": set.files(), "documents": stats.documents, "bytes": stats.bytes,
            "chars": stats.chars, "longest_bytes": stats.longest_bytes,
            "skipped": stats.skipped, "fingerprint": fingerprint,
        });
        writeln!(out, "{row}")?;
    }
    Ok(())
}

fn stats_lines(files: usize, s: &Stats) -> Vec<(&'static str, String)> {
    let mean = s.bytes as f64 / s.documents.max(1) as f64;
    vec![
        ("files", thousands(files as u64)),
        ("documents", thousands(s.documents)),
        ("bytes", format!("{} ({})", thousands(s.bytes), size(s.bytes as f64))),
        ("characters", thousands(s.chars)),
        ("mean document", format!("{mean:.0} bytes")),
        ("longest document", format!("{} bytes", thousands(s.longest_bytes))),
        ("bad rows", s.skipped.to_string()),
    ]
}

fn check(dir: &Path, global: &Global, out: &mut dyn Write) -> Result<()> {
    if !dir.join("SHA256SUMS").exists() {
        let why = if dir.is_dir() { "holds no SHA256SUMS" } else { "is no folder" };
        bail!("{} {why}: give a folder that \"nanochat data download\" filled", dir.display());
    }
    let found = verify(dir)?;
    let whole = found.whole as u64;
    writeln!(out, "{} in {} match SHA256SUMS", count(whole, "file"), dir.display())?;
    for name in &found.unlisted {
        writeln!(out, "not listed, so not checked: {name}")?;
    }
    if global.json {
        writeln!(out, "{}", json!({ "whole": found.whole, "unlisted": found.unlisted }))?;
    }
    Ok(())
}

/// Documents when neither number is given.
const DEFAULT_DOCUMENTS: usize = 1000;

fn starter(args: &StarterArgs, global: &Global, out: &mut dyn Write) -> Result<()> {
    let starter = Starter::new(global.seed);
    let conversations = args.conversations.unwrap_or(0);
    let documents = args.documents.unwrap_or(match args.conversations {
        Some(_) => 0,
        None => DEFAULT_DOCUMENTS,
    });
    let texts = || starter.lessons(documents).map(|text| Ok(json!({ "text": text }).to_string()));
    let talks =
        || (0..conversations as u64).map(|i| Ok(serde_json::to_string(&starter.conversation(i))?));
    let Some(file) = &args.out else {
        return texts().chain(talks()).try_for_each(|row| Ok(writeln!(out, "{}", row?)?));
    };
    let mut files = Vec::new();
    if documents > 0 || conversations == 0 {
        files.push((file.clone(), count(documents as u64, "document"), write(file, texts())?));
    }
    if conversations > 0 {
        let file = if documents > 0 { beside(file, "-conversations") } else { file.clone() };
        let what = count(conversations as u64, "conversation");
        files.push((file.clone(), what, write(&file, talks())?));
    }
    for (file, what, bytes) in &files {
        writeln!(out, "wrote {}: {what}, {}", file.display(), size(*bytes as f64))?;
    }
    if global.json {
        let names: Vec<_> = files.iter().map(|f| f.0.display().to_string()).collect();
        let row = json!({
            "files": names, "documents": documents, "conversations": conversations,
            "seed": global.seed,
        });
        writeln!(out, "{row}")?;
    }
    Ok(())
}

/// `dir/name.jsonl` with `more` before the dot.
fn beside(file: &Path, more: &str) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push(more);
    if let Some(extension) = file.extension() {
        name.push(".");
        name.push(extension);
    }
    file.with_file_name(name)
}

/// Writes one row a line; returns the bytes.
fn write(file: &Path, rows: impl Iterator<Item = Result<String>>) -> Result<u64> {
    let cannot = || format!("cannot write {}", file.display());
    let mut to = BufWriter::new(File::create(file).with_context(cannot)?);
    let mut bytes = 0;
    for row in rows {
        let line = format!("{}\n", row?);
        to.write_all(line.as_bytes()).with_context(cannot)?;
        bytes += line.len() as u64;
    }
    to.flush().with_context(cannot)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_get_a_name_of_their_own() {
        let named = |f: &str| beside(Path::new(f), "-conversations").display().to_string();
        assert_eq!(named("a/b.jsonl"), "a/b-conversations.jsonl");
        assert_eq!(named("b"), "b-conversations");
    }

    #[test]
    fn statistics_of_nothing_do_not_divide_by_zero() {
        let lines = stats_lines(1, &Stats::default());
        assert_eq!(lines[4], ("mean document", "0 bytes".into()));
        assert_eq!(lines[6].1, "none skipped");
    }
}
