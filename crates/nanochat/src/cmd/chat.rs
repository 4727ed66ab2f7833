//! `nanochat chat`: a conversation with a run's model, in the terminal.
//!
//! In: a run, lines that a person types or pipes. Out: answers as they are generated, tool calls
//! in brackets.

mod input;
mod show;

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nanochat_compute::Backend;
use nanochat_engine::{ChatOptions, Event, SampleOptions, Session};
use nanochat_gpt::Nano;
use nanochat_gpt::checkpoint::{self, Meta};
use nanochat_gpt::nano::count::ParamCount;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_tokenizer::Tokenizer;
use serde_json::json;

use crate::cli::{Global, Weights};
use crate::figures::{parameters, thousands};
use crate::machine::VERSION;
use crate::run_dir::RunDir;
use input::{Input, Lines};
use show::{Answer, Style};

/// Flags of `chat`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    nanochat chat\n  \
    nanochat chat --run runs/d4 -t 0.8 --system \"Answer in one sentence.\"\n  \
    nanochat chat -p \"What is 12 * 37?\"\n  \
    printf 'hello\\nwhat is a cat?\\n' | nanochat chat")]
pub struct ChatArgs {
    /// The run's directory (default: the run that changed last).
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Which model of the run (default: rl, else sft, else base).
    #[arg(short = 'i', long, value_enum)]
    source: Option<ModelSource>,
    /// Step to open (default: the newest whole one).
    #[arg(short, long, value_name = "N")]
    step: Option<u64>,
    /// Ask this, print the answer and end; speed goes to standard error.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// What the model is told before the first question.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Most tokens of an answer; at most half of the model's context.
    #[arg(short, long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// In what form the weights of the linear layers and the head are read; int8 answers fastest.
    #[arg(long, value_enum, default_value_t = Weights::Auto)]
    weights: Weights,
    #[command(flatten)]
    sampling: Sampling,
}

/// The run, and where its checkpoints are. `given` may name a stage or a step inside of it.
pub(super) fn find(given: Option<&Path>, source: Option<ModelSource>) -> Result<(RunDir, PathBuf)> {
    let is_run = |dir: &&Path| dir.join("tokenizer").is_dir();
    if let Some(dir) = given
        && !is_run(&dir)
        && let Some(above) = dir.ancestors().skip(1).take(2).find(is_run)
        && checkpoint::latest_once(dir).is_ok()
    {
        return Ok((RunDir::find(Some(above))?, dir.into()));
    }
    let run = RunDir::find(given)?;
    let models = run.model_dir(source.map(|s| match s {
        ModelSource::Rl => "rl",
        ModelSource::Sft => "sft",
        ModelSource::Base => "base",
    }));
    // Stages that come first have steps that cannot be opened.
    let later = ["rl", "sft"].map(|stage| run.join(stage));
    let passed_over = later.iter().take_while(|dir| source.is_none() && **dir != models);
    for dir in passed_over.filter(|dir| checkpoint::steps(dir).is_ok_and(|s| !s.is_empty())) {
        eprintln!(
            "warning: no step in {} is whole (\"nanochat checkpoint verify\" tells why): \
             opening {}",
            dir.display(),
            models.display()
        );
    }
    Ok((run, models))
}

/// Stages of a run that can be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelSource {
    /// Reinforced by graded answers.
    Rl,
    /// Finetuned on conversations.
    Sft,
    /// Pretrained only: it continues text rather than answers.
    Base,
}

/// How words are drawn.
#[derive(Args, Clone, Copy, Debug)]
struct Sampling {
    /// 0 always takes the likeliest token, 2 is wild.
    #[arg(short, long, default_value_t = 0.6, value_name = "T")]
    temperature: f32,
    /// Draw from the K likeliest tokens only; 0 from all.
    #[arg(short = 'k', long, default_value_t = 50, value_name = "K")]
    top_k: usize,
    /// Draw from the likeliest tokens that reach probability P together.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from tokens with at least P of the likeliest one's probability.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
}

impl Sampling {
    fn options(&self, seed: u64) -> nanochat_engine::Result<SampleOptions> {
        let top_k = (self.top_k > 0).then_some(self.top_k);
        SampleOptions::new(self.temperature, top_k, seed)?
            .with_top_p(self.top_p)?
            .with_min_p(self.min_p)
    }
}

/// Runs `nanochat chat`.
pub fn run(args: &ChatArgs, global: &Global) -> Result<()> {
    // Wrong flags are told before a large model is read.
    let sample = args.sampling.options(global.seed)?;
    if args.max_tokens == 0 {
        bail!("--max-tokens is 0: give 1 or more");
    }
    let (run, models) = find(args.run.as_deref(), args.source)?;
    let tokenizer = run.tokenizer()?;
    let be = global.backend()?;
    let be = &*be;
    let (model, meta) = open_model(be, &models, args.step, &tokenizer)?;
    let context = model.config().sequence_len;
    let mut chat = Chat {
        decoder: NanoDecoder::with_weights(be, &model, context, args.weights.format())?,
        session: Session::new(tokenizer, args.system.clone()),
        options: ChatOptions {
            sample,
            // A longer answer would leave no room for the conversation before it.
            max_tokens: args.max_tokens.min(context / 2).max(1),
            ..ChatOptions::default()
        },
        sampling: args.sampling,
        seed: global.seed,
        style: Style::detect(),
        totals: Totals::default(),
    };
    if let Some(prompt) = &args.prompt {
        chat.say(prompt, String::new(), None)?;
    } else {
        let banner = banner(&run, &meta, be.name().as_str());
        converse(&mut chat, &banner)?;
    }
    if global.json {
        let totals = &chat.totals;
        let row = json!({
            "messages": chat.session.transcript().messages, "tokens": totals.tokens,
            "tokens_per_sec": totals.tokens_per_sec(), "step": meta.step, "stage": meta.stage,
        });
        writeln!(std::io::stdout(), "{row}")?;
    }
    Ok(())
}

/// Opens a step of `dir`, the newest whole one if none is named; it must fit the tokenizer.
pub(super) fn open_model(
    be: &dyn Backend,
    dir: &Path,
    step: Option<u64>,
    tokenizer: &Tokenizer,
) -> Result<(Nano, Meta)> {
    let at = match step {
        Some(step) => {
            let at = checkpoint::step_dir(dir, step);
            if !at.exists() {
                bail!(
                    "{} has no step {step}: \"nanochat checkpoint ls {}\" shows what is there",
                    dir.display(),
                    dir.display()
                );
            }
            checkpoint::verify_once(&at)?;
            at
        }
        None => {
            let (at, refused) = checkpoint::latest_once(dir)
                .context("train a model first (\"nanochat speedrun\"), or give another --run")?;
            for error in refused {
                eprintln!("warning: passed over a damaged checkpoint: {error}");
            }
            at
        }
    };
    let (model, meta) = checkpoint::open(be, &at)?;
    let fingerprint = tokenizer.fingerprint();
    // Imported models may come without.
    if !meta.tokenizer.is_empty() && meta.tokenizer != fingerprint {
        bail!(
            "{} was trained with tokenizer {}, the run's is {}: put back the tokenizer.json that \
             it was trained with",
            at.display(),
            &meta.tokenizer.chars().take(16).collect::<String>(),
            &fingerprint[..16]
        );
    }
    Ok((model, meta))
}

fn banner(run: &RunDir, meta: &Meta, device: &str) -> String {
    let config = &meta.model_config;
    let total = parameters(ParamCount::of(config).total as u64);
    format!(
        "nanochat {VERSION}: {total} parameters (d{}, step {} of {}) on {device}\n\
         run {}\n/help lists commands, Ctrl-D ends.",
        config.n_layer,
        thousands(meta.step),
        meta.stage,
        run.root().display()
    )
}

/// What all answers took together.
#[derive(Default)]
struct Totals {
    tokens: usize,
    decoded: usize,
    decode_s: f64,
}

impl Totals {
    fn tokens_per_sec(&self) -> f64 {
        if self.decode_s > 0.0 { self.decoded as f64 / self.decode_s } else { 0.0 }
    }
}

/// A conversation and how it is shown.
struct Chat<'a> {
    decoder: NanoDecoder<'a>,
    session: Session,
    options: ChatOptions,
    sampling: Sampling,
    seed: u64,
    style: Style,
    totals: Totals,
}

impl Chat<'_> {
    /// Says `text` and shows the answer after `label`.
    fn say(&mut self, text: &str, label: String, interrupt: Option<&Interrupt>) -> Result<()> {
        let mut answer = Answer::new(self.style, std::io::stdout().lock(), label);
        let mut broken = None;
        let totals = &mut self.totals;
        let said = self.session.say(&mut self.decoder, text, &self.options, |event| {
            if let Event::Done(_, stats) = &event {
                totals.tokens += stats.sampled_tokens + stats.forced_tokens;
                totals.decoded += stats.decoded_tokens;
                totals.decode_s += stats.decode_s;
            }
            let shown = answer.show(event);
            if shown.is_err() || interrupt.is_some_and(Interrupt::asked) {
                broken = shown.err();
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        if let Some(error) = broken {
            return Err(error.into());
        }
        Ok(said?)
    }

    /// Obeys a command; tells what it did.
    fn obey(&mut self, input: &Input) -> String {
        let before = self.sampling;
        let done = match input {
            Input::Clear => {
                self.session.clear();
                return "the conversation is forgotten".into();
            }
            Input::Temperature(t) => {
                self.sampling.temperature = *t;
                format!("temperature {t}")
            }
            Input::TopK(k) => {
                self.sampling.top_k = *k;
                format!("top-k {k}")
            }
            Input::Help => return input::HELP.into(),
            Input::Wrong(why) => return why.clone(),
            Input::Say(_) | Input::Quit | Input::Nothing => return String::new(),
        };
        match self.sampling.options(self.seed) {
            Ok(options) => {
                self.options.sample = options;
                done
            }
            Err(error) => {
                self.sampling = before;
                error.to_string()
            }
        }
    }
}

/// Lines in, answers out, until the lines end.
fn converse(chat: &mut Chat<'_>, banner: &str) -> Result<()> {
    let typed = std::io::stdin().is_terminal();
    if typed {
        writeln!(std::io::stdout(), "{banner}\n")?;
    } else {
        eprintln!("{banner}");
    }
    let interrupt = if typed { Interrupt::listen()? } else { Interrupt::default() };
    let mut lines = Lines::open(chat.style)?;
    while let Some(line) = lines.next()? {
        match input::parse(&line) {
            Input::Quit => break,
            Input::Nothing => {}
            Input::Say(text) => {
                if !typed {
                    writeln!(std::io::stdout(), "{}{text}", chat.style.you())?;
                }
                interrupt.answering(true);
                let said = chat.say(&text, chat.style.nanochat(), Some(&interrupt));
                interrupt.answering(false);
                match said {
                    Ok(()) => writeln!(std::io::stdout())?,
                    // A message that is too long should not end the conversation.
                    Err(error) if typed && !is_io(&error) => eprintln!("error: {error:#}"),
                    Err(error) => return Err(error),
                }
            }
            command => {
                let told = chat.obey(&command);
                writeln!(std::io::stdout(), "{}", chat.style.dim(&told))?;
            }
        }
    }
    if typed {
        writeln!(std::io::stdout())?;
    }
    Ok(())
}

fn is_io(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some()
}

/// What Ctrl-C does: stops an answer; pressed again, or when there is none, ends the program.
#[derive(Clone, Default)]
struct Interrupt {
    state: Arc<AtomicU8>,
}

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const ASKED: u8 = 2;

impl Interrupt {
    fn listen() -> Result<Self> {
        let interrupt = Self::default();
        let state = Arc::clone(&interrupt.state);
        ctrlc::set_handler(move || {
            let next = state.compare_exchange(ANSWERING, ASKED, Ordering::SeqCst, Ordering::SeqCst);
            if next.is_err() {
                // 128 + SIGINT, as shells report it.
                std::process::exit(130);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    fn answering(&self, yes: bool) {
        self.state.store(if yes { ANSWERING } else { IDLE }, Ordering::SeqCst);
    }

    fn asked(&self) -> bool {
        self.state.load(Ordering::SeqCst) == ASKED
    }
}
