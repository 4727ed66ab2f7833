//! `nanochat eval held-out`: questions of the starter corpus that were never trained.

use anyhow::Result;
use clap::Args;
use nanochat_compute::Backend;
use nanochat_data::starter::{Starter, TestKind};
use nanochat_tokenizer::Tokenizer;
use nanochat_train::answers::{ROWS, Together, Writer};
use nanochat_train::eval::held_out::{self, Score};
use nanochat_train::eval::{Graded, TaskScore};
use serde_json::{Map, Value};

use super::items::{Recorder, Subject};
use super::{ModelArgs, one_line, open_run};
use crate::cli::Global;

/// Flags of `eval held-out`.
#[derive(Args, Clone, Debug)]
pub struct HeldOutArgs {
    /// Model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Items of each kind.
    #[arg(short = 'x', long, default_value_t = 100)]
    pub max_problems: usize,
    /// Prints wrong answers.
    #[arg(long)]
    pub show_wrong: bool,
}

/// Runs the command.
pub fn run(args: &HeldOutArgs, global: &Global) -> Result<()> {
    let be = global.backend()?;
    let be: &dyn Backend = &*be;
    let opened = open_run(be, &args.model)?;
    let tokenizer = opened.run.tokenizer()?;
    let (format, max_len) = (args.model.weights.format(), 2 * opened.model.config().sequence_len);
    let mut writer = Together { be, model: &opened.model, format, rows: ROWS, max_len };
    let subject =
        Subject { run: &opened.run, stage: &opened.stage, step: opened.step, eval: "held_out" };
    let asked = (global.seed, args.max_problems);
    let (scores, object) = measure(subject, &mut writer, &tokenizer, asked)?;
    for wrong in scores.iter().flat_map(|s| &s.answers).filter(|a| args.show_wrong && !a.right) {
        println!("  {} -> {}", one_line(&wrong.question), one_line(&wrong.answer));
    }
    println!("{object}");
    Ok(())
}

/// Asks `items` questions of each kind of the world of `seed`, and leaves items and a row of scores.
pub fn measure(
    subject: Subject<'_>,
    writer: &mut dyn Writer,
    tokenizer: &Tokenizer,
    (seed, items): (u64, usize),
) -> Result<(Vec<Score>, Value)> {
    let mut recorder = Recorder::open(subject, None)?;
    let starter = Starter::new(seed);
    let (mut all, mut scores) = (Vec::new(), Vec::new());
    for kind in TestKind::ALL {
        let start = std::time::Instant::now();
        let items = starter.test(kind, items);
        let score = held_out::evaluate(writer, tokenizer, kind, &items)?;
        recorder.task();
        for (i, (item, answer)) in items.iter().zip(&score.answers).enumerate() {
            let graded = Graded {
                task: score.kind.clone(),
                id: i.to_string(),
                prompt: answer.question.clone(),
                shots: Vec::new(),
                answers: vec![answer.answer.clone()],
                gold: item.reference(),
                right: f64::from(u8::from(answer.right)),
                why: item.wants(),
                losses: Vec::new(),
            };
            recorder.keep(&graded)?;
        }
        let of = TaskScore {
            task: score.kind.clone(),
            score: score.score,
            centered: score.score,
            baseline: 0.0,
            n: items.len(),
            seconds: start.elapsed().as_secs_f64(),
        };
        recorder.scored(&of);
        scores.push(of);
        all.push(score);
    }
    let object = recorder.finish(&scores, Map::new())?;
    Ok((all, object))
}
