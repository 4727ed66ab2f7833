//! Checkpoints of a run under way: a disk that fails is an alarm and not the end, and the steps need not
//! wait for it.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nanochat_compute::Comm;
use nanochat_gpt::checkpoint::{self, Content, Extra, Keep, Meta};
use serde_json::json;

use super::Session;
use crate::metrics::{LineKind, Observer};
use crate::ranks::agree;
use crate::replay::Replay;
use crate::resume::{self, Progress};
use crate::step::Trainer;
use crate::{Error, Result};

/// Steps until the first try after a save that failed; doubled each time, up to [`LONGEST_WAIT`].
const FIRST_WAIT: u64 = 1;
const LONGEST_WAIT: u64 = 64;

/// Between two tries at the end of a run.
const END_WAIT: Duration = Duration::from_secs(2);

/// A save that failed and is tried again.
pub(super) struct Retry {
    at: u64,
    wait: u64,
}

/// What a save came to: the step's directory, and whether older ones could go.
type Saved = (PathBuf, nanochat_gpt::Result<()>);

/// A save that is under way beside the steps.
pub(super) struct Running {
    step: u64,
    began: Instant,
    /// Rank 0's; the others wait for its word.
    thread: Option<JoinHandle<nanochat_gpt::Result<Saved>>>,
}

/// Writes a checkpoint; the new step is read back before an older one goes.
fn write(
    dir: &Path,
    meta: &Meta,
    files: Vec<Extra<'_>>,
    keep: Keep,
) -> nanochat_gpt::Result<Saved> {
    let path = checkpoint::save_files(dir, meta, files)?;
    let pruned = checkpoint::prune(dir, keep).map(|_| ());
    Ok((path, pruned))
}

/// What became of rank 0's save, on every rank: only rank 0 has the disk. Errors of the disk are errors of
/// the disk on all of them, so that all try again at the same step.
fn shared(mine: Option<Result<Saved>>, comm: &dyn Comm) -> Result<Saved> {
    if comm.world() == 1 {
        return mine.expect("rank 0 has saved");
    }
    let word = match &mine {
        None => String::new(),
        Some(Ok((path, _))) => format!("{OK}{}", path.display()),
        Some(Err(e)) if is_disk(e) => format!("{DISK}{e}"),
        Some(Err(e)) => format!("{OTHER}{e}"),
    };
    let word = agree::of_rank_0(comm, word)?;
    if let Some(mine) = mine {
        return mine;
    }
    if let Some(path) = word.strip_prefix(OK) {
        return Ok((path.into(), Ok(())));
    }
    match word.strip_prefix(DISK) {
        Some(why) => {
            let source = std::io::Error::other(why.to_owned());
            Err(nanochat_gpt::Error::Io { file: "rank 0".into(), source }.into())
        }
        None => {
            let detail = format!("cannot save: {}", word.trim_start_matches(OTHER));
            Err(nanochat_compute::Error::Rank { rank: 0, detail }.into())
        }
    }
}

const OK: &str = "ok ";
const DISK: &str = "disk ";
const OTHER: &str = "other ";

/// True for what the disk does to a checkpoint, and not the program.
fn is_disk(e: &Error) -> bool {
    matches!(e, Error::Gpt(nanochat_gpt::Error::Io { .. }))
}

impl Session<'_> {
    /// True when a save that failed is to be tried again before this step.
    pub fn retries(&self, step: u64) -> bool {
        self.retry.as_ref().is_some_and(|retry| step >= retry.at)
    }

    /// Saves, unless this step is on disk. A save that fails is an alarm and is tried again; training goes
    /// on, and the checkpoints before it stay. Errors: what is not the disk's.
    pub fn save(
        &mut self,
        trainer: &mut Trainer<'_>,
        train: &Replay<'_>,
        progress: &Progress,
        out: &mut dyn Observer,
    ) -> Result<()> {
        let tried = if self.survival.async_save {
            self.begin_save(trainer, train, progress, out)
        } else {
            self.save_now(trainer, train, progress, out)
        };
        self.alarm(tried, progress.step, out)
    }

    /// The last save of a run: waits for room, loudly, as long as [`super::Survival::patience`] says.
    pub fn save_at_end(
        &mut self,
        trainer: &mut Trainer<'_>,
        train: &Replay<'_>,
        progress: &Progress,
        out: &mut dyn Observer,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.save_now(trainer, train, progress, out) {
                Err(cause) if is_disk(&cause) => {
                    let over = began.elapsed() >= self.survival.patience;
                    if agree::any(trainer.comm, over || self.asked().is_some())? {
                        let (step, checkpoint) = (progress.step, self.saved.unwrap_or(0));
                        return Err(Error::Unsaved { step, cause: Box::new(cause), checkpoint });
                    }
                    self.alarm(Err(cause), progress.step, out)?;
                }
                other => return other,
            }
            std::thread::sleep(END_WAIT);
        }
    }

    /// Saves and waits for it, unless this step is on disk.
    pub(super) fn save_now(
        &mut self,
        trainer: &mut Trainer<'_>,
        train: &Replay<'_>,
        progress: &Progress,
        out: &mut dyn Observer,
    ) -> Result<()> {
        self.settle(true, trainer, progress.step, out)?;
        if self.saved == Some(progress.step) {
            return Ok(());
        }
        let began = Instant::now();
        let (meta, files) = resume::files(self.id, trainer, train, progress)?;
        let is_first = trainer.comm.rank() == 0;
        let mine = is_first.then(|| write(self.dir, &meta, files, self.keep).map_err(Error::from));
        let saved = shared(mine, trainer.comm)?;
        trainer.watch.save_s = trainer.watch.save_s.max(began.elapsed().as_secs_f64());
        self.done(progress.step, saved, out);
        Ok(())
    }

    /// Copies everything and lets a thread write it; one at a time.
    fn begin_save(
        &mut self,
        trainer: &mut Trainer<'_>,
        train: &Replay<'_>,
        progress: &Progress,
        out: &mut dyn Observer,
    ) -> Result<()> {
        self.settle(true, trainer, progress.step, out)?;
        if self.saved == Some(progress.step) {
            return Ok(());
        }
        let began = Instant::now();
        let (meta, files) = resume::files(self.id, trainer, train, progress)?;
        if trainer.comm.rank() != 0 {
            self.running = Some(Running { step: progress.step, began, thread: None });
            return Ok(());
        }
        let copy = |file: Extra<'static>| -> nanochat_gpt::Result<(&'static str, Vec<u8>)> {
            Ok((file.name, file.content.into_bytes()?))
        };
        let copies: Vec<_> = files.into_iter().map(copy).collect::<nanochat_gpt::Result<_>>()?;
        let (dir, keep) = (self.dir.to_path_buf(), self.keep);
        let save = move || {
            let content = |(name, bytes)| Extra { name, content: Content::Bytes(bytes) };
            write(&dir, &meta, copies.into_iter().map(content).collect(), keep)
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(save);
        let io = |source| Error::Io { file: self.dir.to_path_buf(), source };
        let thread = Some(thread.map_err(io)?);
        self.running = Some(Running { step: progress.step, began, thread });
        Ok(())
    }

    /// Looks after a save that is under way, and waits for it when told to.
    ///
    /// Errors: what is not the disk's.
    pub fn settle(
        &mut self,
        wait: bool,
        trainer: &mut Trainer<'_>,
        now: u64,
        out: &mut dyn Observer,
    ) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        let is_finished = running.thread.as_ref().is_some_and(JoinHandle::is_finished);
        if !wait && !agree::any(trainer.comm, is_finished)? {
            return Ok(());
        }
        let Some(Running { step, began, thread }) = self.running.take() else { return Ok(()) };
        let join = |thread: JoinHandle<nanochat_gpt::Result<Saved>>| {
            let saved = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            saved.map_err(Error::from)
        };
        let tried = shared(thread.map(join), trainer.comm).map(|saved| {
            trainer.watch.save_s = trainer.watch.save_s.max(began.elapsed().as_secs_f64());
            self.done(step, saved, out);
        });
        self.alarm(tried, now, out)
    }

    /// A save that the disk failed is an alarm, and when to try again is noted.
    fn alarm(&mut self, tried: Result<()>, step: u64, out: &mut dyn Observer) -> Result<()> {
        let Err(e) = tried else { return Ok(()) };
        if !is_disk(&e) {
            return Err(e);
        }
        let wait = self.retry.as_ref().map_or(FIRST_WAIT, |r| (2 * r.wait).min(LONGEST_WAIT));
        let at = step + wait;
        self.retry = Some(Retry { at, wait });
        let stays = self.saved.map_or("no checkpoint is".into(), |s| format!("step {s} stays"));
        let text = format!(
            "ALARM: no checkpoint of step {step} ({e}): training goes on, {stays} on disk, the next try is \
             at step {at}"
        );
        out.line(LineKind::Event, &text);
        let row = json!({
            "kind": "alarm", "what": "checkpoint", "error": e.to_string(), "retry_at": at,
        });
        self.row(step, row, out);
        Ok(())
    }

    /// A step is on disk.
    fn done(&mut self, step: u64, (path, pruned): Saved, out: &mut dyn Observer) {
        self.saved = Some(step);
        out.line(LineKind::Event, &format!("checkpoint {}", path.display()));
        if self.retry.take().is_some() {
            out.line(LineKind::Event, "checkpoints are written again");
            self.row(step, json!({ "kind": "recovered", "what": "checkpoint" }), out);
        }
        // What cannot be removed is no reason to end.
        if let Err(e) = pruned {
            let text = format!("ALARM: older checkpoints stay: {e}");
            out.line(LineKind::Event, &text);
            let row = json!({ "kind": "alarm", "what": "prune", "error": e.to_string() });
            self.row(step, row, out);
        }
    }
}
