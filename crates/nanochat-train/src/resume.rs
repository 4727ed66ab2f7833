//! A trainer's state to and from a checkpoint: everything that decides the steps to come.

use std::path::{Path, PathBuf};

use nanochat_data::Batches;
use nanochat_gpt::checkpoint::{self, Content, Extra, FORMAT, Meta};
use nanochat_gpt::weights::Reader;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metrics::{SmoothLoss, Totals};
use crate::step::Trainer;
use crate::{Error, Result};

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

/// Writes a checkpoint of everything; keeps the newest `keep` steps.
pub fn save(
    dir: &Path,
    id: &Identity,
    trainer: &Trainer<'_>,
    batches: &dyn Batches,
    progress: &Progress,
    keep: usize,
) -> Result<PathBuf> {
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
    let optimizer = trainer.optim.named(trainer.model);
    let extras = vec![
        Extra { name: OPTIMIZER, content: Content::Tensors(optimizer) },
        Extra { name: LOADER, content: Content::Bytes(batches.state()) },
    ];
    let path = checkpoint::save(dir, trainer.model, &meta, extras)?;
    checkpoint::prune(dir, keep)?;
    Ok(path)
}

/// The trainer's part of a meta.
pub fn trainer_state(step_dir: &Path, meta: &Meta) -> Result<TrainerState> {
    serde_json::from_value(meta.trainer.clone()).map_err(|e| {
        let detail = format!("holds no trainer state ({e}): it can be chatted with, not resumed");
        nanochat_gpt::Error::File { file: step_dir.join("meta.json"), detail }.into()
    })
}

/// Restores optimizer and loader from a step whose weights the trainer's model already has.
///
/// Errors: [`Error::Resume`] naming the first setting that differs.
pub fn restore(
    step_dir: &Path,
    id: &Identity,
    trainer: &mut Trainer<'_>,
    batches: &mut dyn Batches,
) -> Result<Progress> {
    let meta = checkpoint::meta(step_dir)?;
    let state = trainer_state(step_dir, &meta)?;
    same("the stage", &meta.stage, id.stage)?;
    same("the tokenizer", &meta.tokenizer, &id.tokenizer)?;
    same_settings("", &state.settings, &id.settings)?;
    same("the data", &state.loader, &batches.fingerprint())?;
    load_optimizer(step_dir, trainer, state.optimizer_t)?;
    batches.restore(&checkpoint::extra(step_dir, LOADER)?)?;
    Ok(Progress {
        step: meta.step,
        smooth: SmoothLoss { ema: state.ema, n: state.ema_n },
        train_s: state.train_s,
        val_bpb: meta.val_bpb,
        min_val_bpb: state.min_val_bpb,
        share: state.share,
        totals: state.totals,
    })
}

/// Restores the optimizer alone (SFT begins with base's moments).
pub fn load_optimizer(step_dir: &Path, trainer: &mut Trainer<'_>, t: u64) -> Result<()> {
    let file = Reader::open(&step_dir.join(OPTIMIZER))?;
    trainer.optim.restore(trainer.model, &file, t)
}

fn same(what: &str, have: &str, want: &str) -> Result<()> {
    if have == want {
        return Ok(());
    }
    Err(Error::Resume { what: what.into(), have: have.into(), want: want.into() })
}

/// Compares settings field by field, so that the one that differs can be named.
fn same_settings(path: &str, have: &Value, want: &Value) -> Result<()> {
    match (have, want) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()) {
                let at = format!("{path}{}{key}", if path.is_empty() { "" } else { "." });
                let field =
                    |m: &serde_json::Map<String, Value>| m.get(key).cloned().unwrap_or(Value::Null);
                same_settings(&at, &field(a), &field(b))?;
            }
            Ok(())
        }
        _ => same(&format!("setting {path}"), &have.to_string(), &want.to_string()),
    }
}
