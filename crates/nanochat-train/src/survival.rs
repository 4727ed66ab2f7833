//! What keeps a run alive between its steps, the same for base and SFT: saving that a full disk does not
//! end, stopping when asked, passing over bad steps and going back.
//!
//! `saving` is the part that talks to the disk. In: a [`Trainer`], its batches, its progress. Out: a step
//! taken or passed over, checkpoints, alarms.

mod saving;

use std::path::Path;
use std::time::Duration;

use nanochat_data::{Batch, Batches};
use nanochat_gpt::checkpoint::{self, Keep};
use serde_json::{Value, json};

use crate::guard::Verdict;
use crate::metrics::{LineKind, Observer};
use crate::ranks::agree;
use crate::replay::Replay;
use crate::resume::{self, Identity, Progress, Restored};
use crate::schedule::Rates;
use crate::step::{Fault, StepReport, Trainer};
use crate::stop::{StopSignal, Why};
use crate::{Error, Result};

use saving::{Retry, Running};

/// How a run is to survive; the default asks for nothing beside what is always done.
#[derive(Clone, Debug, Default)]
pub struct Survival {
    /// Asks the run to save and end.
    pub stop: StopSignal,
    /// Every checkpoint whose step is a multiple of this stays for ever; 0: none does.
    pub keep_every: u64,
    /// Goes on from a checkpoint of another run, and puts that on record.
    pub force: bool,
    /// A bad step ends the run at once, instead of being passed over.
    pub fail_fast: bool,
    /// How long a run that is at its end waits for room for its last checkpoint.
    pub patience: Duration,
    /// Checkpoints are copied in memory and written beside the next steps.
    pub async_save: bool,
    /// For tests: gradients that are made not finite.
    pub fault: Option<Fault>,
}

/// Fewest checkpoints that a run keeps: the one before the newest is what a torn newest falls back to.
pub const KEEP_LEAST: usize = 2;

/// A run between its steps.
pub(crate) struct Session<'a> {
    dir: &'a Path,
    id: &'a Identity,
    keep: Keep,
    survival: &'a Survival,
    /// The newest step that this run has on disk.
    pub saved: Option<u64>,
    retry: Option<Retry>,
    running: Option<Running>,
    /// Metrics could not be written: said once.
    mute: bool,
}

impl<'a> Session<'a> {
    pub fn new(dir: &'a Path, id: &'a Identity, keep: usize, survival: &'a Survival) -> Self {
        let keep = Keep { last: keep.max(KEEP_LEAST), every: survival.keep_every, best: true };
        Self { dir, id, keep, survival, saved: None, retry: None, running: None, mute: false }
    }

    /// The progress to begin with: of a checkpoint, or none.
    pub fn begin(
        &mut self,
        from: Option<&Path>,
        trainer: &mut Trainer<'_>,
        train: &mut Replay<'_>,
        out: &mut dyn Observer,
    ) -> Result<Progress> {
        trainer.watch.stop = self.survival.stop.clone();
        trainer.watch.fault = self.survival.fault;
        let comm = trainer.comm;
        agree::same(comm, "the settings", &self.id.settings.to_string())?;
        agree::same(comm, "the data", &train.fingerprint())?;
        let place = |dir: &Path| dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let place = from.and_then(place).unwrap_or_else(|| "no checkpoint".into());
        agree::same(comm, "where to go on (the run directory must be the same for all)", &place)?;
        let Some(step_dir) = from else { return Ok(Progress::default()) };
        let force = self.survival.force;
        let Restored { progress, differences, notes } =
            resume::restore(step_dir, self.id, trainer, train, force)?;
        self.saved = Some(progress.step);
        for difference in &differences {
            out.line(LineKind::Event, &format!("warning: --force goes on although {difference}"));
        }
        notes.iter().for_each(|note| out.line(LineKind::Event, note));
        if !differences.is_empty() {
            let row = json!({ "kind": "forced", "differences": differences, "notes": notes });
            self.row(progress.step, row, out);
        }
        Ok(progress)
    }

    /// A row of metrics, with stage and step. A disk that is full does not end the run: it is said once.
    pub fn row(&mut self, step: u64, mut row: Value, out: &mut dyn Observer) {
        (row["stage"], row["step"]) = (json!(self.id.stage), json!(step));
        match out.row(row) {
            Ok(()) => self.mute = false,
            Err(_) if self.mute => {}
            Err(e) => {
                self.mute = true;
                let text = format!("ALARM: metrics cannot be written ({e}): training goes on");
                out.line(LineKind::Event, &text);
            }
        }
    }

    /// Takes a step. `None`: it was passed over or the run went back, which `progress` shows.
    ///
    /// Errors: [`Error::Stopped`] when the run was asked to stop, [`Error::Diverged`] when going back did
    /// not help, and whatever else a step may fail with.
    pub fn step(
        &mut self,
        trainer: &mut Trainer<'_>,
        train: &mut Replay<'_>,
        progress: &mut Progress,
        (accumulation, rates): (usize, &Rates),
        out: &mut dyn Observer,
    ) -> Result<Option<StepReport>> {
        let step = progress.step;
        trainer.watch.loss_limit = progress.guard.limit();
        match trainer.step(step, train, accumulation, rates) {
            Ok(report) => {
                train.end_step();
                progress.guard.good(step, report.loss);
                Ok(Some(report))
            }
            Err(Error::Interrupted { why, .. }) => {
                Err(self.stopped(why, trainer, train, progress, out))
            }
            Err(cause @ (Error::NotFinite { .. } | Error::Spike { .. })) => {
                if self.survival.fail_fast {
                    return Err(cause);
                }
                train.end_step();
                self.bad(cause, trainer, progress, out).map(|()| None)
            }
            Err(e) => Err(e),
        }
    }

    /// Passes over a bad step, or goes back, or gives up.
    fn bad(
        &mut self,
        cause: Error,
        trainer: &mut Trainer<'_>,
        progress: &mut Progress,
        out: &mut dyn Observer,
    ) -> Result<()> {
        let step = progress.step;
        let verdict = progress.guard.bad(step);
        let (row, n) = (bad_row(&cause), progress.guard.consecutive());
        self.row(step + 1, row, out);
        self.settle(true, trainer, step, out)?;
        let (skipped, checkpoint) = (progress.guard.skipped, self.saved.unwrap_or(0));
        let give_up = |cause: Error, tried: &str| Error::Diverged {
            cause: Box::new(cause),
            skipped,
            tried: tried.into(),
            checkpoint,
        };
        match verdict {
            Verdict::Skip => {
                let text = format!("ALARM: passed over ({n} in a row): {cause}");
                out.line(LineKind::Event, &text);
                progress.step += 1;
                Ok(())
            }
            Verdict::Stop => Err(give_up(cause, "and they came again after going back")),
            Verdict::RollBack if self.saved.is_none() => {
                Err(give_up(cause, "and there is no checkpoint to go back to"))
            }
            Verdict::RollBack => {
                let (at, _) = checkpoint::latest(self.dir)?;
                *progress = resume::roll_back(&at, trainer, progress)?;
                let to = progress.step;
                self.saved = Some(to);
                let text = format!(
                    "ALARM: {n} bad steps in a row: {cause}; going back to step {to}, and on with the data \
                     after step {step}"
                );
                out.line(LineKind::Event, &text);
                self.row(step + 1, json!({ "kind": "rollback", "to": to }), out);
                Ok(())
            }
        }
    }

    /// Saves because the run was asked to stop; the error that ends it says how to go on.
    pub fn stopped(
        &mut self,
        why: Why,
        trainer: &mut Trainer<'_>,
        train: &Replay<'_>,
        progress: &Progress,
        out: &mut dyn Observer,
    ) -> Error {
        let step = progress.step;
        let resume = "go on with the same command and --resume";
        let stays = |saved: Option<u64>| match saved {
            Some(saved) => format!("step {saved} is on disk: {resume}"),
            None => "nothing is on disk: start again".into(),
        };
        let saved = if step == 0 {
            "no step was taken: start again".into()
        } else {
            match self.save_now(trainer, train, progress, out) {
                Ok(()) => format!("saved: {resume}"),
                Err(e) => format!("it cannot be saved ({e}); {}", stays(self.saved)),
            }
        };
        self.row(step, json!({ "kind": "stopped", "why": why.to_string() }), out);
        Error::Stopped { why, step, saved }
    }

    /// Whether the run was asked to stop.
    pub fn asked(&self) -> Option<Why> {
        self.survival.stop.asked(Duration::ZERO)
    }

    /// A stream that ends with an error when the run is asked to stop: a validation is not waited for.
    pub fn until_asked(&self, inner: Box<dyn Batches>) -> Box<dyn Batches> {
        Box::new(Until { inner, stop: self.survival.stop.clone() })
    }
}

fn bad_row(cause: &Error) -> Value {
    match cause {
        Error::NotFinite { tensor, batch, loss, .. } => json!({
            "kind": "skip", "why": "not finite", "tensor": tensor, "batch": batch, "loss": loss,
        }),
        Error::Spike { batch, loss, limit, .. } => json!({
            "kind": "skip", "why": "spike", "batch": batch, "loss": loss, "limit": limit,
        }),
        other => json!({ "kind": "skip", "why": other.to_string() }),
    }
}

struct Until {
    inner: Box<dyn Batches>,
    stop: StopSignal,
}

impl Batches for Until {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        match self.stop.asked(Duration::ZERO) {
            Some(why) => Err(nanochat_data::Error::State { why: why.to_string() }),
            None => self.inner.next_batch(),
        }
    }

    fn state(&self) -> Vec<u8> {
        self.inner.state()
    }

    fn restore(&mut self, state: &[u8]) -> nanochat_data::Result<()> {
        self.inner.restore(state)
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }

    fn progress(&self) -> f64 {
        self.inner.progress()
    }
}
