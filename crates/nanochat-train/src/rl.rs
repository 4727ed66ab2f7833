//! Reinforcement: questions in, sampled answers graded, the policy pushed towards those that are right.
//!
//! A step asks some questions, draws n independent answers to each, and takes one optimizer step on
//! `-sum_i A_i sum_t ln p(y_it) / N`: REINFORCE with the mean reward of a question's answers as its
//! baseline. What the prompt says and what tools answered is not trained. Source: nanochat's
//! chat_rl.py; optional parts as their fields name them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nanochat_data::tasks::{Answer, ChatTask, Runner};
use nanochat_data::{Batch, Batches, IGNORE};
use nanochat_engine::generate::{Engine, GenerateOptions};
use nanochat_engine::sample::SampleOptions;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::{Nano, checkpoint};
use nanochat_tokenizer::{Tokenizer, chat};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::Result;
use crate::base::Outcome;
use crate::eval::chat::{ChatOptions, evaluate, pass_at};
use crate::eval::likelihood::Batched;
use crate::eval::{self, Graded};
use crate::metrics::{LineKind, Observer, Pace, duration};
use crate::optim::LearningRates;
use crate::resume::{self, Identity, Progress};
use crate::schedule::Rates;
use crate::step::Trainer;

/// Samples of a question when the policy is tested.
const TEST_SAMPLES: usize = 8;

/// Muon's momentum, which RL does not warm up.
const MOMENTUM: f64 = 0.95;

/// Values of an RL run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RlRecipe {
    /// Steps.
    pub num_steps: u64,
    /// Questions of a step.
    pub questions: usize,
    /// Answers drawn to each.
    pub num_samples: usize,
    /// Rows of a pass; their trained tokens are counted together.
    pub device_batch_size: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// How answers are drawn.
    pub temperature: f32,
    /// Tokens that are drawn from; none: all.
    pub top_k: Option<usize>,
    /// Rates before the schedule; they fall linearly to 0 over the run.
    pub rates: LearningRates,
    /// Muon's weight decay.
    pub weight_decay: f64,
    /// Divides advantages by the standard deviation of a question's rewards (GRPO, arXiv:2402.03300).
    pub normalize_advantage: bool,
    /// Takes `kl_beta * (ln p(y) - ln p_start(y))` off the reward of an answer (arXiv:2203.02155).
    pub kl_beta: f64,
    /// Optimizer steps on the same answers.
    pub updates: usize,
    /// After the first update an answer weighs `s = (p / p_drawn)^(1 / tokens)`, and nothing once s has
    /// left 1 +- this in the direction it is pushed (GSPO, arXiv:2507.18071).
    pub clip: f64,
    /// Steps between tests; 0: never.
    pub eval_every: u64,
    /// Questions of a test.
    pub eval_questions: usize,
    /// Steps between checkpoints; 0: at the end only.
    pub save_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
    /// Seed of what is drawn.
    pub seed: u64,
}

/// Everything an RL run is made of.
pub struct RlRun<'a> {
    /// Its values.
    pub recipe: &'a RlRecipe,
    /// Checkpoints.
    pub dir: &'a Path,
    /// Tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Questions to learn from, round and round.
    pub train: &'a ChatTask,
    /// Questions to test by.
    pub test: &'a ChatTask,
    /// Grades programs.
    pub runner: &'a dyn Runner,
    /// Where the policy began, for [`RlRecipe::kl_beta`].
    pub start: Option<&'a Nano>,
    /// Goes on from this step's directory.
    pub resume: Option<PathBuf>,
}

/// One drawn answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Prompt and answer.
    pub ids: Vec<u32>,
    /// Of each id after the first: true where the model drew it.
    pub drawn: Vec<bool>,
    /// 1 for a right answer, 0 for a wrong one.
    pub reward: f64,
}

impl Answered {
    fn tokens(&self) -> usize {
        self.drawn.iter().filter(|d| **d).count()
    }
}

/// Trains to the end; tests and saves on the way.
pub fn run(run: RlRun<'_>, trainer: &mut Trainer<'_>, out: &mut dyn Observer) -> Result<Outcome> {
    let recipe = run.recipe;
    let id = Identity {
        stage: "rl",
        tokenizer: run.tokenizer.fingerprint(),
        settings: serde_json::to_value(recipe).expect("a recipe has only string keys"),
    };
    let mut cursor = Cursor { task: run.train };
    let mut progress = match &run.resume {
        Some(dir) => resume::restore(dir, &id, trainer, &mut cursor)?,
        None => Progress::default(),
    };
    let first = progress.step;
    let mut pace = Pace::resumed(progress.train_s);
    loop {
        let step = progress.step;
        let done = step >= recipe.num_steps;
        let resumed_here = run.resume.is_some() && step == first;
        let due = |every: u64| !resumed_here && every > 0 && (done || step.is_multiple_of(every));
        if due(recipe.eval_every) {
            test(&run, trainer, step, out)?;
        }
        if (done && !resumed_here) || (step > 0 && due(recipe.save_every)) {
            progress.train_s = pace.train_s;
            let path = resume::save(run.dir, &id, trainer, &cursor, &progress, recipe.keep)?;
            out.line(LineKind::Event, &format!("checkpoint {}", path.display()));
        }
        if done {
            break;
        }
        let start = Instant::now();
        let groups = rollouts(&run, trainer, step)?;
        let lr_multiplier = 1.0 - step as f64 / recipe.num_steps as f64;
        let rates = Rates {
            lr_multiplier,
            muon_momentum: MOMENTUM,
            muon_weight_decay: recipe.weight_decay,
        };
        let loss = learn(&run, trainer, step, &groups, &rates, &mut progress)?;
        progress.step += 1;
        let all = || groups.iter().flatten();
        let n = all().count().max(1) as f64;
        let reward = all().map(|a| a.reward).sum::<f64>() / n;
        let tokens = all().map(Answered::tokens).sum::<usize>();
        let dt_s = start.elapsed().as_secs_f64();
        let left = recipe.num_steps - progress.step;
        let eta = duration(pace.push(dt_s, left));
        let rate = tokens as f64 / dt_s;
        out.line(
            LineKind::Step,
            &format!(
                "step {} | loss {loss:.4} | tokens/sec: {rate:.0} | reward {reward:.4} | \
                 {:.1} tokens an answer | lrm {lr_multiplier:.2} | eta {eta}",
                progress.step,
                tokens as f64 / n,
            ),
        );
        out.row(json!({
            "kind": "step", "stage": "rl", "step": progress.step, "loss": loss, "reward": reward,
            "tokens": tokens, "tokens_per_sec": rate, "dt_ms": 1e3 * dt_s,
            "lr_multiplier": lr_multiplier, "train_s": pace.train_s,
        }))?;
    }
    progress.train_s = pace.train_s;
    let checkpoint = checkpoint::step_dir(run.dir, progress.step);
    let (train_s, step_s, plans) = (pace.train_s, pace.median(), trainer.plans());
    Ok(Outcome { progress, checkpoint, train_s, step_s, plans })
}

/// Mixes the numbers of a draw into one seed. Source: the finalizer of splitmix64.
fn seed_of(seed: u64, step: u64, question: u64) -> u64 {
    [step, question].into_iter().fold(seed, |mut x, y| {
        x = (x ^ y).wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    })
}

/// Draws and grades the answers of a step: one list a question. Depends on weights, seed and step alone.
fn rollouts(run: &RlRun<'_>, trainer: &Trainer<'_>, step: u64) -> Result<Vec<Vec<Answered>>> {
    let recipe = run.recipe;
    // The weights are packed anew: they have changed since the step before.
    let mut decoder = NanoDecoder::new(trainer.be, trainer.model, usize::MAX)?;
    let mut groups = Vec::with_capacity(recipe.questions);
    for q in 0..recipe.questions as u64 {
        let at = (step * recipe.questions as u64 + q) % run.train.questions.len() as u64;
        let question = &run.train.questions[at as usize];
        let prompt = chat::render_for_completion(run.tokenizer, &question.conversation)
            .map_err(nanochat_engine::Error::from)?;
        let sample =
            SampleOptions::new(recipe.temperature, recipe.top_k, seed_of(recipe.seed, step, q))?;
        let options = GenerateOptions {
            n: recipe.num_samples,
            ..GenerateOptions::new(sample, recipe.max_new_tokens)
        };
        let generation =
            Engine::new(&mut decoder, run.tokenizer)?
                .generate(&prompt, &options, |_| ControlFlow::Continue(()))?;
        let answered = generation.rows.iter().map(|row| {
            let text = match &question.answer {
                Answer::Words(_) => row.text(),
                _ => run.tokenizer.decode(&row.ids).map_err(nanochat_engine::Error::from)?,
            };
            let right = question.answer.grade(&text, run.runner)?.right;
            let mut drawn = vec![false; prompt.len() - 1];
            drawn.extend(row.mask.iter().map(|m| *m == 1));
            let ids = [&prompt[..], &row.ids].concat();
            Ok(Answered { ids, drawn, reward: f64::from(u8::from(right)) })
        });
        groups.push(answered.collect::<Result<Vec<_>>>()?);
    }
    Ok(groups)
}

/// What each answer of a question is above their mean; divided by their standard deviation if so asked.
///
/// ```
/// use nanochat_train::rl::advantages;
/// assert_eq!(advantages(&[1.0, 0.0, 0.0, 0.0], false), [0.75, -0.25, -0.25, -0.25]);
/// assert_eq!(advantages(&[1.0, 0.0], true), [1.0, -1.0]);
/// assert_eq!(advantages(&[1.0, 1.0], true), [0.0, 0.0]);
/// ```
pub fn advantages(rewards: &[f64], normalize: bool) -> Vec<f64> {
    let n = rewards.len().max(1) as f64;
    let mean = rewards.iter().sum::<f64>() / n;
    let deviation = (rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n).sqrt();
    // Equal rewards teach nothing, whatever they are divided by.
    let by = if normalize && deviation > 0.0 { deviation } else { 1.0 };
    rewards.iter().map(|r| (r - mean) / by).collect()
}

/// Rows of some answers, filled up with ids that nobody is trained on.
pub fn batch(answers: &[&Answered], name: String) -> Batch {
    let t = answers.iter().map(|a| a.ids.len() - 1).max().unwrap_or(1);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let (mut trained_tokens, mut padding_tokens) = (0, 0);
    for answer in answers {
        let len = answer.ids.len() - 1;
        x.extend(answer.ids[..len].iter().map(|&id| id as i32));
        let target = |(&id, &drawn): (&u32, &bool)| if drawn { id as i32 } else { IGNORE };
        y.extend(answer.ids[1..].iter().zip(&answer.drawn).map(target));
        x.resize(x.len() + t - len, 0);
        y.resize(y.len() + t - len, IGNORE);
        trained_tokens += answer.tokens();
        padding_tokens += t - len;
    }
    Batch { b: answers.len(), t, x, y, epoch: 1, name, trained_tokens, padding_tokens }
}

/// `-ln p` of each answer's drawn tokens, summed.
fn nats(model: &Nano, trainer: &Trainer<'_>, answers: &[&Answered]) -> Result<Vec<f64>> {
    let batch = batch(answers, String::new());
    let bufs = trainer.eval_buffers(batch.b, batch.t)?;
    bufs.tokens.write_i32(&batch.x)?;
    bufs.targets.write_i32(&batch.y)?;
    let losses = model.losses(trainer.be, &bufs)?;
    Ok(losses.chunks(batch.t).map(|row| row.iter().map(|x| f64::from(*x)).sum()).collect())
}

/// A pass: rows that run together, with what they weigh and how likely they were when they were drawn.
struct PassOf<'g> {
    answers: Vec<&'g Answered>,
    advantages: Vec<f64>,
    drawn_nats: Vec<f64>,
}

/// Takes the optimizer steps on the answers of a step; returns the loss of the first.
fn learn(
    run: &RlRun<'_>,
    trainer: &mut Trainer<'_>,
    step: u64,
    groups: &[Vec<Answered>],
    rates: &Rates,
    progress: &mut Progress,
) -> Result<f64> {
    let recipe = run.recipe;
    let mut passes = Vec::new();
    for group in groups {
        let mut rewards: Vec<f64> = group.iter().map(|a| a.reward).collect();
        let mut drawn = vec![0.0; group.len()];
        let pieces: Vec<Vec<&Answered>> =
            group.chunks(recipe.device_batch_size).map(|c| c.iter().collect()).collect();
        if recipe.updates > 1 || run.start.is_some() {
            let of = |model, pieces: &[Vec<&Answered>]| -> Result<Vec<f64>> {
                Ok(pieces
                    .iter()
                    .map(|p| nats(model, trainer, p))
                    .collect::<Result<Vec<_>>>()?
                    .concat())
            };
            drawn = of(trainer.model, &pieces)?;
            if let Some(start) = run.start {
                for ((reward, now), then) in rewards.iter_mut().zip(&drawn).zip(of(start, &pieces)?)
                {
                    *reward -= recipe.kl_beta * (then - now);
                }
            }
        }
        let advantages = advantages(&rewards, recipe.normalize_advantage);
        let mut at = 0;
        for answers in pieces {
            let rows = at..at + answers.len();
            at = rows.end;
            let (advantages, drawn_nats) =
                (advantages[rows.clone()].to_vec(), drawn[rows].to_vec());
            passes.push(PassOf { answers, advantages, drawn_nats });
        }
    }
    let mut first_loss = 0.0;
    for update in 0..recipe.updates {
        let mut batches = Vec::new();
        for (p, pass) in passes.iter().enumerate() {
            let weights = if update == 0 {
                pass.advantages.clone()
            } else {
                clipped(pass, &nats(trainer.model, trainer, &pass.answers)?, recipe.clip)
            };
            let tokens: usize = pass.answers.iter().map(|a| a.tokens()).sum();
            // Upstream's denominator: trained tokens of the pass, passes, questions.
            let by = (tokens.max(1) * passes.len()) as f64;
            batches.extend(weighted(
                &pass.answers,
                &weights,
                by,
                &format!("step {step}, pass {p}"),
            ));
        }
        // Every question was answered all right or all wrong: nothing to learn.
        if batches.is_empty() {
            break;
        }
        let report = trainer.weighted_step(step, &batches, rates)?;
        progress.totals.push(&report);
        if update == 0 {
            first_loss = report.loss;
            progress.smooth.push(report.loss);
        }
    }
    Ok(first_loss)
}

/// Advantages times the ratio of likelihoods per token, 0 where it has left its bounds.
fn clipped(pass: &PassOf<'_>, nats: &[f64], clip: f64) -> Vec<f64> {
    let rows = pass.answers.iter().zip(&pass.advantages).zip(pass.drawn_nats.iter().zip(nats));
    rows.map(|((answer, advantage), (drawn, now))| {
        let ratio = ((drawn - now) / answer.tokens().max(1) as f64).exp();
        let out =
            (*advantage > 0.0 && ratio > 1.0 + clip) || (*advantage < 0.0 && ratio < 1.0 - clip);
        if out { 0.0 } else { advantage * ratio }
    })
    .collect()
}

/// Rows of equal weight together: the train step scales a whole batch.
fn weighted(answers: &[&Answered], weights: &[f64], by: f64, name: &str) -> Vec<(Batch, f32)> {
    let mut kinds: Vec<(f64, Vec<&Answered>)> = Vec::new();
    for (answer, &weight) in answers.iter().zip(weights) {
        if weight == 0.0 || answer.tokens() == 0 {
            continue;
        }
        match kinds.iter_mut().find(|kind| kind.0 == weight) {
            Some(kind) => kind.1.push(answer),
            None => kinds.push((weight, vec![answer])),
        }
    }
    let one = |(weight, rows): (f64, Vec<&Answered>)| {
        (batch(&rows, name.to_owned()), (weight / by) as f32)
    };
    kinds.into_iter().map(one).collect()
}

/// Tests the policy: pass@1 to pass@8 on the first questions of the test set.
fn test(run: &RlRun<'_>, trainer: &Trainer<'_>, step: u64, out: &mut dyn Observer) -> Result<()> {
    struct Rights(Vec<f64>);
    impl eval::Progress for Rights {
        fn item(&mut self, item: Graded, _: usize, _: usize) -> Result<()> {
            self.0.push(item.right);
            Ok(())
        }
    }
    let recipe = run.recipe;
    let decoder = NanoDecoder::new(trainer.be, trainer.model, usize::MAX)?;
    let mut model = Batched::new(decoder, true);
    let options = ChatOptions {
        num_samples: TEST_SAMPLES,
        max_new_tokens: recipe.max_new_tokens,
        sample: SampleOptions::new(recipe.temperature, recipe.top_k, recipe.seed)?,
    };
    let mut rights = Rights(Vec::new());
    let most = Some(recipe.eval_questions);
    evaluate(&mut model, run.tokenizer, run.test, most, &options, run.runner, &mut rights)?;
    let mean = |k: usize| {
        let one =
            |share: &f64| pass_at(TEST_SAMPLES, (share * TEST_SAMPLES as f64).round() as usize, k);
        rights.0.iter().map(one).sum::<f64>() / rights.0.len().max(1) as f64
    };
    let shares: Vec<f64> = (1..=TEST_SAMPLES).map(mean).collect();
    let said: Vec<String> =
        shares.iter().enumerate().map(|(k, p)| format!("pass@{} {p:.4}", k + 1)).collect();
    let name = &run.test.name;
    out.line(LineKind::Event, &format!("Step {step:05} | {name} | {}", said.join(", ")));
    out.row(json!({
        "kind": "eval", "stage": "rl", "step": step, "pass_at": shares, "n": rights.0.len(),
    }))
}

/// Where the questions stand: the step says it, so the state is empty.
struct Cursor<'a> {
    task: &'a ChatTask,
}

impl Batches for Cursor<'_> {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        let why = "answers are drawn by the policy, not read".into();
        Err(nanochat_data::Error::State { why })
    }

    fn state(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> nanochat_data::Result<()> {
        Ok(())
    }

    fn fingerprint(&self) -> String {
        format!("{} of {} questions", self.task.name, self.task.questions.len())
    }

    fn progress(&self) -> f64 {
        0.0
    }
}
