//! The stages of a run, as `speedrun`, `train base` and `train sft` share them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nanochat_compute::{Backend, Comm};
use nanochat_data::starter::Starter;
use nanochat_data::{
    Batches, Batching, ConversationList, Dataset, Loader, LoaderConfig, Mixture, PackConfig,
    Packer, Policy, Prefetch, Split, Task, TooLong, conversations,
};
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::nano::recompute::Recompute;
use nanochat_gpt::{Nano, checkpoint};
use nanochat_tokenizer::chat::{Content, Conversation, Part};
use nanochat_tokenizer::{Tokenizer, TrainOptions};
use nanochat_train::base::{BaseRun, Cadence, Outcome};
use nanochat_train::optim::Optimizer;
use nanochat_train::ranks::sums::Sum;
use nanochat_train::recipe::Recipe;
use nanochat_train::resume::{self, Identity};
use nanochat_train::sft::{SftRecipe, SftRun};
use nanochat_train::step::{StepMode, Trainer};
use nanochat_train::survival::Survival;
use nanochat_train::{base, sft};
use serde_json::json;

use crate::cli::Weights;
use crate::run_dir::RunDir;
use crate::screen::Screen;
use crate::{machine, preflight};

/// Batches made ahead on their own thread.
const AHEAD: usize = 4;

/// Validation documents of the starter corpus.
const STARTER_VALIDATION: u64 = 1500;

/// Conversations of the starter corpus that the tokenizer reads beside the documents.
const TOKENIZER_CONVERSATIONS: u64 = 4000;

/// Documents of the starter corpus that the tokenizer reads at most.
const TOKENIZER_DOCUMENTS: usize = 8000;

/// Where pretraining text comes from.
#[derive(Clone, Debug)]
pub enum Corpus {
    /// The embedded world.
    Starter {
        /// Seed of the world.
        seed: u64,
        /// Training documents.
        documents: usize,
    },
    /// Files and folders.
    Files {
        /// Paths.
        paths: Vec<PathBuf>,
        /// How they are read.
        policy: Policy,
    },
}

impl Corpus {
    /// Training and validation documents.
    pub fn split(&self) -> Result<(Dataset, Dataset)> {
        match self {
            Corpus::Starter { seed, documents } => {
                let starter = Starter::new(*seed);
                let train = starter.lessons(*documents).collect();
                let val = (0..STARTER_VALIDATION).map(|i| starter.validation_document(i)).collect();
                let set = |name: &str, docs| {
                    let lists = vec![(format!("starter-{seed} {name}"), docs)];
                    Dataset::memory(lists, &Policy::default())
                };
                Ok((set("train", train)?, set("validation", val)?))
            }
            Corpus::Files { paths, policy } => {
                Ok(Dataset::open(paths, policy)?.split(Split::Auto)?)
            }
        }
    }
}

/// Where conversations come from.
#[derive(Clone, Debug)]
pub enum Talks {
    /// The embedded world.
    Starter {
        /// Seed of the world.
        seed: u64,
        /// Training conversations.
        conversations: u64,
    },
    /// Files of conversations.
    Files {
        /// Paths.
        paths: Vec<PathBuf>,
        /// What happens to bad records.
        policy: Policy,
    },
}

/// Starter conversations from this one on are for validation.
const STARTER_VALIDATION_TALKS: u64 = 1 << 40;

/// One conversation in this many is for validation when files are given.
const VALIDATION_ONE_IN: usize = 50;

impl Talks {
    /// Training and validation conversations.
    pub fn split(&self, screen: &mut Screen) -> Result<(ConversationList, ConversationList)> {
        match self {
            Talks::Starter { seed, conversations } => {
                let starter = Starter::new(*seed);
                let take = |from: u64, n: u64| (from..from + n).map(|i| starter.conversation(i));
                let train = take(0, *conversations).collect();
                let val = take(STARTER_VALIDATION_TALKS, 1000).collect();
                let list =
                    |name: &str, c| ConversationList::new(format!("starter-{seed} {name}"), c);
                Ok((list("train", train), list("validation", val)))
            }
            Talks::Files { paths, policy } => {
                let mut all: Vec<Conversation> = Vec::new();
                for path in paths {
                    let (read, skipped) = conversations::conversations(path, policy)?;
                    if skipped.total() > 0 {
                        screen.say(&format!("warning: {}: skipped {skipped}", path.display()));
                    }
                    all.extend(read);
                }
                let (mut train, mut val) = (Vec::new(), Vec::new());
                for (i, c) in all.into_iter().enumerate() {
                    if i % VALIDATION_ONE_IN == VALIDATION_ONE_IN - 1 {
                        val.push(c);
                    } else {
                        train.push(c);
                    }
                }
                if val.is_empty() {
                    bail!(
                        "{} conversations are too few: give at least {VALIDATION_ONE_IN}",
                        train.len()
                    );
                }
                let name = paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
                let name = name.join(", ");
                let val_name = format!("{name} (validation)");
                Ok((ConversationList::new(name, train), ConversationList::new(val_name, val)))
            }
        }
    }
}

/// All that is said in a conversation, for the tokenizer to learn from.
pub fn spoken(conversation: &Conversation) -> String {
    let mut texts = Vec::new();
    for message in &conversation.messages {
        match &message.content {
            Content::Text(text) => texts.push(text.as_str()),
            Content::Parts(parts) => texts.extend(parts.iter().map(|p| match p {
                Part::Text(t) | Part::Python(t) | Part::PythonOutput(t) => t.as_str(),
            })),
        }
    }
    texts.join("\n")
}

/// Learns a tokenizer from the training documents and saves it in the run.
pub fn train_tokenizer(
    run: &RunDir,
    corpus: &Corpus,
    options: &TrainOptions,
    screen: &mut Screen,
) -> Result<Tokenizer> {
    let start = Instant::now();
    let (tokenizer, report) = match corpus {
        Corpus::Starter { seed, documents } => {
            let starter = Starter::new(*seed);
            let docs = starter.documents((*documents).min(TOKENIZER_DOCUMENTS));
            let talks = (0..TOKENIZER_CONVERSATIONS).map(|i| spoken(&starter.conversation(i)));
            nanochat_tokenizer::train(docs.chain(talks), options)?
        }
        Corpus::Files { .. } => {
            let (train, _) = corpus.split()?;
            let mut failed = None;
            // The first document that cannot be read ends the stream and is told below.
            let docs = train.pass().map_while(|d| d.map_err(|e| failed = Some(e)).ok());
            let learned = nanochat_tokenizer::train(docs, options);
            if let Some(e) = failed {
                return Err(e.into());
            }
            learned?
        }
    };
    tokenizer.save(&run.join("tokenizer"))?;
    screen.say(&format!(
        "tokenizer | {} tokens from {:.1} MB in {:.1}s",
        tokenizer.vocab_size(),
        report.bytes as f64 / 1e6,
        start.elapsed().as_secs_f64()
    ));
    Ok(tokenizer)
}

/// Where a stage goes on: its newest valid step.
///
/// Errors: steps are there but `resume` is not asked for.
pub fn resume_from(dir: &Path, resume: bool, screen: &mut Screen) -> Result<Option<PathBuf>> {
    let any = dir.is_dir() && !checkpoint::steps(dir)?.is_empty();
    match (any, resume) {
        (false, _) => Ok(None),
        (true, false) => bail!(
            "{} already holds checkpoints: go on with --resume, or choose another --run",
            dir.display()
        ),
        (true, true) => {
            let (step, refused) = checkpoint::latest(dir)?;
            for e in refused {
                screen.say(&format!("warning: refused {e}"));
            }
            screen.say(&format!("resuming from {}", step.display()));
            Ok(Some(step))
        }
    }
}

/// The step that a step's directory is of.
pub fn step_of(dir: &Option<PathBuf>) -> Result<u64> {
    Ok(match dir {
        Some(dir) => checkpoint::meta(dir)?.step,
        None => 0,
    })
}

/// Tokens of a validation when nobody says: at most one pass over the documents.
fn one_pass(val: &Dataset, tokenizer: &Tokenizer, most: usize) -> Result<usize> {
    let mut tokens = 0;
    for doc in val.pass() {
        tokens += tokenizer.encode(&doc?).len() + 1;
        if tokens >= most {
            return Ok(most);
        }
    }
    Ok(tokens)
}

/// Pretrains in the run's `base` folder on training and validation documents.
pub fn train_base(
    be: &dyn Backend,
    run: &RunDir,
    tokenizer: &Tokenizer,
    recipe: &Recipe,
    cadence: &Cadence,
    (train, val): &(Dataset, Dataset),
    options: StageOptions<'_>,
) -> Result<Outcome> {
    let dir = run.join("base");
    let (comm, place) = (options.comm, (options.comm.rank(), options.comm.world()));
    let mut screen = Screen::of_rank(run, comm.rank())?;
    let resume = resume_from(&dir, options.resume, &mut screen)?;
    screen.metrics(run, "base", step_of(&resume)? + 1)?;
    let (b, t) = (recipe.device_batch_size, recipe.config.sequence_len);
    let config = LoaderConfig::new(b, t);
    let mut cadence = cadence.clone();
    if !options.eval_tokens_given {
        cadence.eval_tokens = one_pass(val, tokenizer, cadence.eval_tokens)?;
    }
    let mut batches = Prefetch::new(Loader::new(train, tokenizer.clone(), config)?, AHEAD);
    let mut fresh = || -> nanochat_train::Result<Box<dyn Batches>> {
        Ok(Box::new(Loader::new(val, tokenizer.clone(), config)?))
    };
    let model = match &resume {
        Some(step) => checkpoint::load(be, step)?.0,
        None => {
            let model = Nano::zeros(be, recipe.config.clone())?;
            model.init(options.seed)?;
            model.set_smear_lambda(recipe.smear_init)?;
            model
        }
    };
    let optim = Optimizer::of_rank(be, &model, recipe.rates, place)?;
    let mut trainer = Trainer::new(be, &model, optim, b, t)?.among(comm, options.sum);
    let bytes = trainer.bytes();
    screen.say(&format!(
        "base | {} | B {b} x T {t} x {} = {} tokens a step | {:.2} GB state + {:.2} GB arena",
        be.name(),
        recipe.accumulation,
        recipe.total_batch_size,
        bytes.state as f64 / 1e9,
        bytes.arena as f64 / 1e9
    ));
    let id = base::identity(recipe, tokenizer);
    let state = (&trainer, batches.fingerprint(), &id);
    let survival = &options.survival;
    if comm.rank() == 0 {
        before_training(run, &dir, state, resume.as_deref(), survival, &mut screen)?;
    }
    let base = BaseRun {
        recipe,
        cadence: &cadence,
        dir: &dir,
        tokenizer,
        train: &mut batches,
        val: &mut fresh,
        resume,
        survival,
    };
    base::run(base, &mut trainer, &mut screen).context("pretraining stopped")
}

/// What a stage is told beside its recipe.
#[derive(Clone)]
pub struct StageOptions<'a> {
    /// Go on from the newest valid step.
    pub resume: bool,
    /// Seed of the first weights.
    pub seed: u64,
    /// The user gave `--eval-tokens`: it is not cut to one pass.
    pub eval_tokens_given: bool,
    /// What happens that nobody planned.
    pub survival: Survival,
    /// The other ranks.
    pub comm: &'a dyn Comm,
    /// How gradients are summed.
    pub sum: Sum,
}

/// Room on the disk and, when `--force` goes on with another run's checkpoint, a record in run.json.
pub fn before_training(
    run: &RunDir,
    dir: &Path,
    (trainer, data, id): (&Trainer<'_>, String, &Identity),
    resume: Option<&Path>,
    survival: &Survival,
    screen: &mut Screen,
) -> Result<()> {
    // Weights, moments and gradients are the state; the gradients are not saved.
    let bytes = trainer.bytes().state - 4 * trainer.model.table().len();
    if let Some(warning) = preflight::room(dir, bytes as u64, survival.force)? {
        screen.say(&warning);
    }
    let Some(step_dir) = resume.filter(|_| survival.force) else { return Ok(()) };
    let meta = checkpoint::meta(step_dir)?;
    let state = resume::trainer_state(step_dir, &meta)?;
    let differences = resume::differences(&meta, &state, id, &data);
    if !differences.is_empty() {
        let row = json!({
            "stage": id.stage, "step": meta.step, "when": machine::unix_seconds(),
            "differences": differences,
        });
        run.note("forced", row)?;
    }
    Ok(())
}

/// How SFT makes its rows, and how its step gets its memory.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// How rows are made.
    pub batching: Batching,
    /// What happens to long conversations.
    pub too_long: TooLong,
    /// How a step gets its memory.
    pub step: StepMode,
}

impl Packing {
    /// True when every micro batch has the same shape and is planned once.
    pub fn is_static(&self) -> bool {
        self.step == StepMode::Compiled && self.batching != Batching::Dynamic
    }
}

/// Finetunes `from` (a step of a base run) in the run's `sft` folder.
#[allow(clippy::too_many_arguments)]
pub fn train_sft(
    be: &dyn Backend,
    run: &RunDir,
    tokenizer: &Tokenizer,
    from: &Path,
    recipe: &SftRecipe,
    (train, val): (ConversationList, ConversationList),
    packing: Packing,
    options: StageOptions<'_>,
) -> Result<Outcome> {
    let dir = run.join("sft");
    let (comm, place) = (options.comm, (options.comm.rank(), options.comm.world()));
    let mut screen = Screen::of_rank(run, comm.rank())?;
    let resume = resume_from(&dir, options.resume, &mut screen)?;
    screen.metrics(run, "sft", step_of(&resume)? + 1)?;
    let (b, t) = (recipe.device_batch_size, recipe.max_seq_len);
    let config = PackConfig {
        batching: packing.batching,
        too_long: packing.too_long,
        ..PackConfig::new(b, t)
    };
    let mixture = Mixture::new(vec![(Box::new(train), 1)])?;
    let val = std::sync::Arc::new(val);
    let packer = Packer::new(mixture, tokenizer.clone(), config)?;
    let mut batches = Prefetch::new(packer, AHEAD);
    let mut fresh = || -> nanochat_train::Result<Box<dyn Batches>> {
        let mixture = Mixture::new(vec![(Box::new(Shared(val.clone())), 1)])?;
        let fixed = PackConfig { batching: Batching::Packed, ..config };
        Ok(Box::new(Packer::new(mixture, tokenizer.clone(), fixed)?))
    };
    let (model, meta) = checkpoint::load(be, resume.as_deref().unwrap_or(from))?;
    if !meta.tokenizer.is_empty() && meta.tokenizer != tokenizer.fingerprint() {
        bail!("{} was trained with another tokenizer", from.display());
    }
    let optim = Optimizer::of_rank(be, &model, recipe.rates, place)?;
    let trainer = Trainer::new(be, &model, optim, b, t)?.with_mode(packing.step);
    let mut trainer = trainer.among(comm, options.sum);
    if resume.is_none() && from.join("optimizer.safetensors").exists() {
        // SFT begins with base's moments.
        let t = resume::trainer_state(from, &meta)?.optimizer_t;
        resume::load_optimizer(from, &mut trainer, t)?;
    }
    screen.say(&format!(
        "sft | {} | B {b} x T {t} x {} | from {}",
        be.name(),
        recipe.accumulation,
        from.display()
    ));
    let token_bytes = tokenizer.token_bytes();
    let id = sft::identity(recipe, tokenizer.fingerprint());
    let state = (&trainer, batches.fingerprint(), &id);
    let survival = &options.survival;
    if comm.rank() == 0 {
        before_training(run, &dir, state, resume.as_deref(), survival, &mut screen)?;
    }
    let sft = SftRun {
        recipe,
        dir: &dir,
        tokenizer: tokenizer.fingerprint(),
        token_bytes: &token_bytes,
        train: &mut batches,
        val: &mut fresh,
        resume,
        survival,
    };
    let outcome = sft::run(sft, &mut trainer, &mut screen).context("finetuning stopped")?;
    if packing.is_static() && outcome.plans != 1 {
        let plans = outcome.plans;
        bail!("a step of one shape was planned {plans} times: this is a fault of the program");
    }
    Ok(outcome)
}

/// Conversations whose length is looked at.
const MEASURED: usize = 500;

/// Tokens of a conversation on average, cut to a row of T+1.
pub fn mean_tokens(list: &dyn Task, tokenizer: &Tokenizer, t: usize) -> Result<f64> {
    let n = list.len().min(MEASURED);
    let mut tokens = 0;
    for i in 0..n {
        tokens += nanochat_tokenizer::render(tokenizer, &list.get(i)?, Some(t + 1))?.ids.len();
    }
    Ok(tokens as f64 / n.max(1) as f64)
}

/// A task that several mixtures read.
struct Shared(std::sync::Arc<ConversationList>);

impl nanochat_data::Task for Shared {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, i: usize) -> nanochat_data::Result<Conversation> {
        self.0.get(i)
    }

    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }
}

/// A model's decoder: with a KV cache, or running whole rows each time.
pub fn decoder<'m>(
    be: &'m dyn Backend,
    model: &'m Nano,
    max_len: usize,
    kv_cache: bool,
    weights: Weights,
) -> Result<Box<dyn Decoder + 'm>> {
    let format = weights.format();
    Ok(if kv_cache {
        Box::new(NanoDecoder::with_weights(be, model, max_len, format)?)
    } else {
        Box::new(Recompute::with_weights(be, model, max_len, format)?)
    })
}
