//! A trainer's state to and from a checkpoint: everything that decides the steps to come.

use std::path::{Path, PathBuf};

use nanochat_data::Batches;
use nanochat_gpt::checkpoint::{self, Content, Extra, FORMAT, Meta};
use nanochat_gpt::weights::{self, Reader};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Difference;
use crate::guard::Guard;
use crate::metrics::{SmoothLoss, Totals};
use crate::step::Trainer;
use crate::{Error, Result};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const LOADER: &str = "loader.bin";

/// What stands in `meta.json` under `trainer`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainerState {
    /// Settings that must not change under a run.
    pub settings: Value,
    /// Names data, tokenizer, T and B.
    pub loader: String,
    /// Steps of the optimizer.
    pub optimizer_t: u64,
    /// Smoothed loss: running sum.
    pub ema: f64,
    /// Smoothed loss: steps in it.
    pub ema_n: u64,
    /// Seconds trained.
    pub train_s: f64,
    /// Best validation bits per byte so far.
    pub min_val_bpb: Option<f64>,
    /// Share of one pass over the data.
    #[serde(default)]
    pub share: f64,
    /// Tokens so far.
    #[serde(default)]
    pub totals: Totals,
    /// What it remembers of its losses.
    #[serde(default)]
    pub guard: Guard,
    /// Step of the last validation; none in checkpoints of programs that did not say.
    #[serde(default)]
    pub val_step: Option<u64>,
    /// Version of the program.
    #[serde(default)]
    pub version: String,
}

/// What a loop carries from step to step beside the trainer.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Smoothed loss.
    pub smooth: SmoothLoss,
    /// Seconds trained.
    pub train_s: f64,
    /// Last validation bits per byte.
    pub val_bpb: Option<f64>,
    /// Best validation bits per byte.
    pub min_val_bpb: Option<f64>,
    /// Share of one pass over the data that an SFT run has served; 1 from then on.
    pub share: f64,
    /// Tokens so far.
    pub totals: Totals,
    /// Losses of good steps, and bad steps so far.
    pub guard: Guard,
    /// Step of the last validation.
    pub val_step: Option<u64>,
}

/// Names a run's settings and place.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `base`, `sft`.
    pub stage: &'static str,
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Settings that must not change under a run.
    pub settings: Value,
}

/// Writes a checkpoint of everything.
pub fn save(
    dir: &Path,
    id: &Identity,
    trainer: &Trainer<'_>,
    batches: &dyn Batches,
    progress: &Progress,
) -> Result<PathBuf> {
    let (meta, files) = files(id, trainer, batches, progress)?;
    Ok(checkpoint::save_files(dir, &meta, files)?)
}

/// Everything that a checkpoint is made of; its tensors are handles. It does not depend on the number of
/// ranks, all of which take part.
pub fn files(
    id: &Identity,
    trainer: &Trainer<'_>,
    batches: &dyn Batches,
    progress: &Progress,
) -> Result<(Meta, Vec<Extra<'static>>)> {
    let state = TrainerState {
        settings: id.settings.clone(),
        loader: batches.fingerprint(),
        optimizer_t: trainer.optim.t(),
        ema: progress.smooth.ema,
        ema_n: progress.smooth.n,
        train_s: progress.train_s,
        min_val_bpb: progress.min_val_bpb,
        share: progress.share,
        totals: progress.totals,
        guard: progress.guard.clone(),
        val_step: progress.val_step,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let meta = Meta {
        format: FORMAT,
        step: progress.step,
        stage: id.stage.into(),
        model_config: trainer.model.config().clone(),
        tokenizer: id.tokenizer.clone(),
        val_bpb: progress.val_bpb,
        trainer: serde_json::to_value(state).expect("the state has only string keys"),
    };
    let model = weights::named(trainer.model.table(), trainer.model.params());
    let optimizer = trainer.optim.gathered(trainer.be, trainer.model, trainer.comm)?;
    let files = vec![
        Extra { name: MODEL, content: Content::Tensors(model) },
        Extra { name: OPTIMIZER, content: Content::Tensors(optimizer) },
        Extra { name: LOADER, content: Content::Bytes(batches.state()) },
    ];
    Ok((meta, files))
}

/// The trainer's part of a meta.
pub fn trainer_state(step_dir: &Path, meta: &Meta) -> Result<TrainerState> {
    serde_json::from_value(meta.trainer.clone()).map_err(|e| {
        let detail = format!("holds no trainer state ({e}): it can be chatted with, not resumed");
        nanochat_gpt::Error::File { file: step_dir.join("meta.json"), detail }.into()
    })
}

/// What a checkpoint gave back.
pub struct Restored {
    /// Where the run is.
    pub progress: Progress,
    /// What differs and was gone over by force.
    pub differences: Vec<Difference>,
    /// Lines for people.
    pub notes: Vec<String>,
}

/// Restores optimizer and loader from a step whose weights the trainer's model already has. With `force`
/// other settings, another tokenizer and other data are gone over; a loader that cannot go on with its
/// state then begins anew.
///
/// Errors: [`Error::Resume`] naming all that differs.
pub fn restore(
    step_dir: &Path,
    id: &Identity,
    trainer: &mut Trainer<'_>,
    batches: &mut dyn Batches,
    force: bool,
) -> Result<Restored> {
    let meta = checkpoint::meta(step_dir)?;
    let state = trainer_state(step_dir, &meta)?;
    let differences = differences(&meta, &state, id, &batches.fingerprint());
    let can_force = !differences.iter().any(is_another_run);
    let may_go_on = differences.is_empty() || (force && can_force);
    if !may_go_on {
        return Err(Error::Resume { differences, can_force });
    }
    let mut notes = Vec::new();
    load_optimizer(step_dir, trainer, state.optimizer_t)?;
    match batches.restore(&checkpoint::extra(step_dir, LOADER)?) {
        Err(e) if !differences.is_empty() => {
            notes.push(format!("warning: the data begins anew: {e}"));
        }
        other => other?,
    }
    if !state.version.is_empty() && state.version != env!("CARGO_PKG_VERSION") {
        notes.push(format!("note: the checkpoint was written by version {}", state.version));
    }
    Ok(Restored { progress: progress(&meta, &state), differences, notes })
}

fn progress(meta: &Meta, state: &TrainerState) -> Progress {
    Progress {
        step: meta.step,
        smooth: SmoothLoss { ema: state.ema, n: state.ema_n },
        train_s: state.train_s,
        val_bpb: meta.val_bpb,
        min_val_bpb: state.min_val_bpb,
        share: state.share,
        totals: state.totals,
        guard: state.guard.clone(),
        // Programs that did not say saved after validation.
        val_step: state.val_step.or(Some(meta.step)),
    }
}

/// Takes weights and optimizer back to a step; what the run has used up since - data, seconds, tokens -
/// stays used up.
pub fn roll_back(step_dir: &Path, trainer: &mut Trainer<'_>, now: &Progress) -> Result<Progress> {
    let meta = checkpoint::meta(step_dir)?;
    let state = trainer_state(step_dir, &meta)?;
    load_weights(step_dir, trainer)?;
    load_optimizer(step_dir, trainer, state.optimizer_t)?;
    let then = progress(&meta, &state);
    let guard = now.guard.rolled_back(&then.guard);
    Ok(Progress { train_s: now.train_s, share: now.share, totals: now.totals, guard, ..then })
}

fn load_weights(step_dir: &Path, trainer: &Trainer<'_>) -> Result<()> {
    let file = Reader::open(&step_dir.join(MODEL))?;
    let table = trainer.model.table();
    for row in table.rows() {
        file.read(&row.name, &table.view(trainer.model.params(), row.role))?;
    }
    Ok(())
}

/// Restores the optimizer alone (SFT begins with base's moments).
pub fn load_optimizer(step_dir: &Path, trainer: &mut Trainer<'_>, t: u64) -> Result<()> {
    let file = Reader::open(&step_dir.join(OPTIMIZER))?;
    trainer.optim.restore(trainer.model, &file, t)
}

/// All that a checkpoint and a run do not agree on; `data` is the fingerprint of the run's.
pub fn differences(
    meta: &Meta,
    state: &TrainerState,
    id: &Identity,
    data: &str,
) -> Vec<Difference> {
    let mut settings = Vec::new();
    checkpoint::fields("", &state.settings, &id.settings, &mut settings);
    let names = [
        (STAGE, meta.stage.as_str(), id.stage),
        ("the tokenizer", &meta.tokenizer, &id.tokenizer),
        ("the data", &state.loader, data),
    ];
    let differ = |what: &str, have: &str, want: &str| Difference {
        what: what.into(),
        have: have.into(),
        want: want.into(),
    };
    let names = names.into_iter().filter(|(_, have, want)| have != want);
    let names = names.map(|(what, have, want)| differ(what, have, want));
    let settings = settings.into_iter().map(|(name, have, want)| {
        differ(&format!("{SETTING}{name}"), &have.to_string(), &want.to_string())
    });
    names.chain(settings).collect()
}

const STAGE: &str = "the stage";
const SETTING: &str = "setting ";

/// True for what no force can go over: another kind of run, or a model of another shape.
fn is_another_run(difference: &Difference) -> bool {
    let setting = difference.what.strip_prefix(SETTING);
    difference.what == STAGE || setting.is_some_and(|name| name.starts_with("config."))
}
