//! `nanochat bench sft`: the finetuning step in all its ways, on the same conversations.
//!
//! What counts is trained tokens a second: targets whose loss is taken. Tokens that only fill rows are
//! computed like any other, so a faster step that fills more may learn less in the same time.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nanochat_compute::Backend;
use nanochat_compute::eager::Eager;
use nanochat_data::starter::Starter;
use nanochat_data::{
    Batches, Batching, ConversationList, Mixture, PackConfig, Packer, Policy, Prefetch,
    conversations,
};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::{GptConfig, Nano};
use nanochat_tokenizer::chat::Conversation;
use nanochat_tokenizer::{Tokenizer, TrainOptions};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::Rates;
use nanochat_train::step::{StepMode, StepReport, Trainer};
use serde::Serialize;
use serde_json::json;

use super::child::median;
use super::model::ModelFlags;
use crate::cli::Global;
use crate::figures::thousands;

/// Flags of `bench sft`.
#[derive(Args, Clone, Debug)]
pub struct SftBench {
    /// What is finetuned, from random weights; its vocabulary is the tokenizer's.
    #[command(flatten)]
    pub model: ModelFlags,
    /// Files of conversations; none: the embedded starter corpus.
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Tokenizer (file or folder); none: one of --vocab-size tokens is learned from the conversations.
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Rows of a micro batch, in every way.
    #[arg(long, default_value_t = 4)]
    pub device_batch_size: usize,
    /// Rows of a step: conversations where a row is one.
    #[arg(long, default_value_t = 32)]
    pub rows: usize,
    /// Steps timed in a round, after one that is not.
    #[arg(long, default_value_t = 2)]
    pub steps: u64,
    /// Rounds through all ways; medians count.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}

/// A way of stepping.
pub type Way = (StepMode, Batching);

/// The baseline, compiling and padding by themselves, and the default, in this order.
pub const WAYS: [Way; 5] = [
    (StepMode::Eager, Batching::Dynamic),
    (StepMode::Eager, Batching::Fixed),
    (StepMode::Compiled, Batching::Dynamic),
    (StepMode::Compiled, Batching::Fixed),
    (StepMode::Compiled, Batching::Packed),
];

/// What a way reached.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// `eager`, `compiled`.
    pub step: StepMode,
    /// `dynamic`, `fixed`, `packed`.
    pub batching: Batching,
    /// Targets that counted, a second: median over rounds.
    pub trained_tokens_per_sec: f64,
    /// Lowest and highest round.
    pub spread: (f64, f64),
    /// Tokens through the model a second, padding included.
    pub tokens_per_sec: f64,
    /// Share of these that only filled rows.
    pub padding_share: f64,
    /// Milliseconds of a step.
    pub step_ms: f64,
    /// Of these, laying out and allocating memory.
    pub plan_ms: f64,
    /// Plans a micro batch: 0 for static shapes after the first.
    pub plans: f64,
}

/// Sizes that the ways share.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of a micro batch.
    pub b: usize,
    /// Rows of a step.
    pub rows: usize,
    /// Steps timed in a round.
    pub steps: u64,
    /// Rounds.
    pub rounds: usize,
}

/// Conversations with their tokenizer.
pub struct Talk {
    name: String,
    all: Vec<Conversation>,
    /// Its vocabulary is the model's.
    pub tokenizer: Tokenizer,
}

impl Talk {
    /// From files, or from the starter corpus; a tokenizer of `vocab_size` is learned where none is given.
    pub fn open(
        data: &[PathBuf],
        tokenizer: Option<&PathBuf>,
        vocab_size: usize,
        seed: u64,
    ) -> Result<Self> {
        let (name, mut all) = (if data.is_empty() { "starter" } else { "files" }, Vec::new());
        for path in data {
            all.extend(conversations::conversations(path, &Policy::default())?.0);
        }
        if data.is_empty() {
            let starter = Starter::new(seed);
            all = (0..3000).map(|i| starter.conversation(i)).collect();
        }
        let tokenizer = match tokenizer {
            Some(path) => Tokenizer::load(path)?,
            None => {
                let options = TrainOptions { vocab_size, ..TrainOptions::default() };
                let texts = all.iter().map(crate::pipeline::spoken);
                nanochat_tokenizer::train(texts, &options)?.0
            }
        };
        Ok(Self { name: name.into(), all, tokenizer })
    }

    /// Rows of its conversations, made ahead on a thread.
    pub fn batches(&self, b: usize, t: usize, batching: Batching) -> Result<impl Batches + use<>> {
        let list = ConversationList::new(self.name.clone(), self.all.clone());
        let mixture = Mixture::new(vec![(Box::new(list), 1)])?;
        let config = PackConfig { batching, ..PackConfig::new(b, t) };
        Ok(Prefetch::new(Packer::new(mixture, self.tokenizer.clone(), config)?, 4))
    }
}

/// Runs every way in turn, round by round.
pub fn measure(
    cpu: &dyn Backend,
    eager: &Eager,
    model: &Nano,
    talk: &Talk,
    ways: &[Way],
    sizes: Sizes,
) -> Result<Vec<Figures>> {
    let t = model.config().sequence_len;
    let mut rounds: Vec<Vec<Vec<StepReport>>> = vec![Vec::new(); ways.len()];
    let mut plans = vec![0.0; ways.len()];
    for _ in 0..sizes.rounds.max(1) {
        for (i, &(step, batching)) in ways.iter().enumerate() {
            let be = if step == StepMode::Eager { eager as &dyn Backend } else { cpu };
            let mut batches = talk.batches(sizes.b, t, batching)?;
            let optim = Optimizer::new(be, model, LearningRates::default())?;
            let mut trainer = Trainer::new(be, model, optim, sizes.b, t)?.with_mode(step);
            let accumulation = (sizes.rows / sizes.b).max(1);
            // The weights stay as they are: all ways step on the same model.
            let still = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
            trainer.step(0, &mut batches, accumulation, &still)?;
            let before = trainer.plans();
            let reports = (1..=sizes.steps)
                .map(|n| trainer.step(n, &mut batches, accumulation, &still))
                .collect::<nanochat_train::Result<Vec<_>>>()?;
            let micro = (sizes.steps as usize * accumulation) as f64;
            plans[i] = (trainer.plans() - before) as f64 / micro;
            rounds[i].push(reports);
        }
    }
    let figures = ways.iter().zip(rounds).zip(plans);
    Ok(figures.map(|((way, rounds), plans)| summed(*way, &rounds, plans)).collect())
}

fn summed((step, batching): Way, rounds: &[Vec<StepReport>], plans: f64) -> Figures {
    let seconds = |r: &[StepReport]| r.iter().map(|r| r.dt_s).sum::<f64>();
    let rate = |of: &dyn Fn(&StepReport) -> usize| {
        let one = |r: &Vec<StepReport>| r.iter().map(of).sum::<usize>() as f64 / seconds(r);
        rounds.iter().map(one).collect::<Vec<f64>>()
    };
    let each = |of: &dyn Fn(&StepReport) -> f64| median(rounds.iter().flatten().map(of).collect());
    let total = |of: &dyn Fn(&StepReport) -> usize| rounds.iter().flatten().map(of).sum::<usize>();
    let trained = rate(&|r| r.trained_tokens);
    let spread = trained.iter().fold((f64::MAX, 0f64), |s, r| (s.0.min(*r), s.1.max(*r)));
    Figures {
        step,
        batching,
        spread,
        trained_tokens_per_sec: median(trained),
        tokens_per_sec: median(rate(&|r| r.tokens)),
        padding_share: total(&|r| r.padding_tokens) as f64 / total(&|r| r.tokens).max(1) as f64,
        step_ms: each(&|r| 1e3 * r.dt_s),
        plan_ms: each(&|r| 1e3 * r.plan_s),
        plans,
    }
}

/// `eager/dynamic`.
pub fn name((step, batching): (StepMode, Batching)) -> String {
    let step = if step == StepMode::Eager { "eager" } else { "compiled" };
    format!("{step}/{}", format!("{batching:?}").to_lowercase())
}

/// Prints the table; ratios are to the first way.
pub fn print(all: &[Figures]) {
    println!(
        "{:<18} {:>12} {:>7} {:>12} {:>8} {:>9} {:>9} {:>6}",
        "SFT step", "trained/s", "ratio", "tokens/s", "padding", "step ms", "plan ms", "plans"
    );
    let base = all.first().map_or(1.0, |f| f.trained_tokens_per_sec);
    for f in all {
        println!(
            "{:<18} {:>12} {:>6.2}x {:>12} {:>7.1}% {:>9.0} {:>9.1} {:>6.2}",
            name((f.step, f.batching)),
            thousands(f.trained_tokens_per_sec.round() as u64),
            f.trained_tokens_per_sec / base,
            thousands(f.tokens_per_sec.round() as u64),
            100.0 * f.padding_share,
            f.step_ms,
            f.plan_ms,
            f.plans,
        );
    }
}

/// Trained tokens a second of one way over another's.
pub fn ratio(all: &[Figures], of: Way, over: Way) -> Option<f64> {
    let find = |way: Way| all.iter().find(|f| (f.step, f.batching) == way);
    Some(find(of)?.trained_tokens_per_sec / find(over)?.trained_tokens_per_sec)
}

/// The model of the flags with the vocabulary of a tokenizer.
pub fn config(model: &ModelFlags, vocab_size: usize) -> Result<GptConfig> {
    ModelFlags { vocab_size, ..model.clone() }.config()
}

/// Runs the command.
pub fn run(args: &SftBench, global: &Global) -> Result<()> {
    anyhow::ensure!(
        args.device_batch_size > 0 && args.rows.is_multiple_of(args.device_batch_size),
        "--rows {} are not whole micro batches of {}",
        args.rows,
        args.device_batch_size
    );
    let (cpu, eager) = (global.cpu()?, Eager::new(global.cpu()?));
    let tokenizer = args.tokenizer.as_ref();
    let talk = Talk::open(&args.data, tokenizer, args.model.vocab_size, global.seed)?;
    let config = config(&args.model, talk.tokenizer.vocab_size())?;
    let model = Nano::zeros(&cpu, config)?;
    model.init(global.seed)?;
    println!(
        "{}: {}, {} parameters, T {}, {} x {} rows a step",
        Backend::name(&cpu),
        args.model.name(),
        ParamCount::of(model.config()).total,
        model.config().sequence_len,
        args.rows / args.device_batch_size,
        args.device_batch_size
    );
    let (b, rows) = (args.device_batch_size, args.rows);
    let sizes = Sizes { b, rows, steps: args.steps, rounds: args.rounds };
    let all = measure(&cpu, &eager, &model, &talk, &WAYS, sizes)?;
    print(&all);
    println!(
        "{}",
        json!({
            "backend": Backend::name(&cpu), "model": args.model.name(), "sft": all,
            "packed_over_baseline": ratio(&all, WAYS[4], WAYS[0]),
            "compiled_over_eager_at_equal_shapes": ratio(&all, WAYS[3], WAYS[1]),
        })
    );
    Ok(())
}
