//! A run's model, opened and put behind a [`Generator`].

use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use nanochat_engine::batch::{Batch, BatchOptions, Generator};
use nanochat_gpt::nano::batch::{BatchRoom, NanoBatch};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_serve::ModelInfo;
use nanochat_tokenizer::Tokenizer;

use super::flags::Which;
use crate::cli::Global;
use crate::cmd::chat;
use crate::figures::{parameters, thousands};

/// A model that answers.
pub struct Opened {
    pub generator: Arc<dyn Generator>,
    pub tokenizer: Tokenizer,
    pub model: ModelInfo,
    /// What it runs on.
    pub device: String,
    /// One line for the screen.
    pub summary: String,
}

/// Opens what the flags name, as `nanochat chat` does.
pub fn open(which: &Which, global: &Global) -> Result<Opened> {
    let (run, models) = chat::find(which.run.as_deref(), which.source)?;
    let tokenizer = run.tokenizer()?;
    let name = run.root().canonicalize().unwrap_or_else(|_| run.root().into());
    let name = name.file_name().and_then(|n| n.to_str()).unwrap_or("model").to_owned();
    let id = which.model_name.clone().unwrap_or(name);
    let asked = Asked { models: &models, which, global, tokenizer: &tokenizer };
    let (generator, facts) = engine(&asked)?;
    Ok(Opened {
        generator,
        model: ModelInfo { id: id.clone(), ..facts.model },
        device: facts.device,
        summary: format!("{id}: {}", facts.summary),
        tokenizer,
    })
}

/// What an engine is made from.
struct Asked<'a> {
    models: &'a Path,
    which: &'a Which,
    global: &'a Global,
    tokenizer: &'a Tokenizer,
}

/// What is known of a model once it is open.
struct Facts {
    model: ModelInfo,
    device: String,
    summary: String,
}

/// The engine: a thread that owns device, weights and cache, and answers requests.
///
/// Errors: what opening device or model says.
fn engine(asked: &Asked<'_>) -> Result<(Arc<dyn Generator>, Facts)> {
    let (say, opened) = std::sync::mpsc::channel::<Result<(Arc<dyn Generator>, Facts)>>();
    let failed = say.clone();
    let (models, tokenizer) = (asked.models.to_path_buf(), asked.tokenizer.clone());
    let (step, context, weights) = (asked.which.step, asked.which.context, asked.which.weights);
    let (global, queue, rows) = (asked.global.clone(), asked.which.queue, asked.which.rows);
    let work = move || -> Result<()> {
        let be = global.backend()?;
        let be = &*be;
        let (model, meta) = chat::open_model(be, &models, step, &tokenizer)?;
        let config = model.config();
        let context = context.unwrap_or(config.sequence_len);
        if context < 2 {
            bail!("--context is {context}: give 2 or more");
        }
        let total = ParamCount::of(config).total as u64;
        let created = std::fs::metadata(&models).and_then(|m| m.modified()).ok();
        let created = created.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let facts = Facts {
            model: ModelInfo {
                id: String::new(),
                parameters: total,
                n_layer: config.n_layer,
                n_embd: config.n_embd,
                created: created.map_or(0, |d| d.as_secs()),
            },
            device: be.name(),
            summary: format!(
                "{} parameters (d{}, step {} of {}), context {context}",
                parameters(total),
                config.n_layer,
                thousands(meta.step),
                meta.stage
            ),
        };
        let room = BatchRoom::of_rows(be, config, rows, context);
        let mut decoder = NanoBatch::new(be, &model, weights.format(), room)?;
        let batch = Batch::new(&decoder, BatchOptions { rows, queue, ..BatchOptions::default() });
        if say.send(Ok((Arc::new(batch.clone()), facts))).is_ok() {
            batch.run(&mut decoder, &tokenizer)?;
        }
        Ok(())
    };
    std::thread::Builder::new().name("engine".into()).spawn(move || {
        if let Err(error) = work() {
            let _ = failed.send(Err(error));
        }
    })?;
    opened.recv().context("the engine's thread ended")?
}
