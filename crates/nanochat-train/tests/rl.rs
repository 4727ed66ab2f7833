//! Reinforcement: rewards reach the weights, forced ids do not, and a run that goes on is the same run.

mod tiny;

use std::path::{Path, PathBuf};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::IGNORE;
use nanochat_gpt::{Nano, checkpoint};
use nanochat_tokenizer::Conversation;
use nanochat_train::base::Outcome;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::rl::objective::Objective;
use nanochat_train::rl::questions::{Part, Question, Questions};
use nanochat_train::rl::rollout::{Sample, Sampling, batch, seed_of};
use nanochat_train::rl::{self, RlRecipe, RlRun};
use nanochat_train::step::Trainer;
use nanochat_train::survival::Survival;
use nanochat_train::{Error, Result};
use serde_json::json;
use tiny::Told;

/// The reward is the share of an answer's characters that are small letters: a tenth by chance.
struct Letters;

impl Questions for Letters {
    fn fingerprint(&self) -> String {
        "letters".into()
    }
    fn len(&self, _: Part) -> usize {
        5
    }
    fn get(&self, _: Part, i: usize) -> Result<Question> {
        let messages = json!({"messages": [{"role": "user", "content": format!("say {i}")}]});
        let conversation: Conversation = serde_json::from_value(messages).expect("a conversation");
        let grade = |text: &str| {
            let hits = text.chars().filter(char::is_ascii_lowercase).count();
            hits as f64 / text.chars().count().max(1) as f64
        };
        Ok(Question { conversation, grade: Box::new(grade) })
    }
}

fn recipe(num_iterations: u64) -> RlRecipe {
    RlRecipe {
        num_iterations,
        examples_per_step: 2,
        device_batch_size: 4,
        sampling: Sampling {
            num_samples: 8,
            max_new_tokens: 6,
            temperature: 1.0,
            top_k: None,
            tools: false,
            train_end_of_turn: false,
        },
        objective: Objective::default(),
        passes: 1,
        rates: LearningRates::default().scaled(2.0),
        weight_decay: 0.0,
        seed: 7,
        eval_every: 0,
        eval_examples: 2,
        save_every: 0,
        keep: 5,
    }
}

struct Ran {
    outcome: Outcome,
    told: Told,
    params: Vec<u32>,
}

/// Runs in `dir`, perhaps on from a step there, with a model that the run began with for a KL term.
fn run_in(dir: &Path, recipe: &RlRecipe, resume: Option<PathBuf>) -> Result<Ran> {
    let be = Cpu::open(2, Precision::F32);
    let model = match &resume {
        Some(step) => checkpoint::load(&be, step)?.0,
        None => tiny::model(&be),
    };
    let reference = tiny::model(&be);
    let optim = Optimizer::new(&be, &model, recipe.rates)?;
    let mut trainer = Trainer::new(&be, &model, optim, recipe.device_batch_size, 32)?;
    let mut told = Told::default();
    let tokenizer = tiny::tokenizer();
    let rl = RlRun {
        recipe,
        dir,
        tokenizer: &tokenizer,
        questions: &Letters,
        reference: Some(&reference),
        resume,
        rows: 64,
        survival: &Survival::default(),
    };
    let outcome = rl::run(rl, &mut trainer, &mut told)?;
    Ok(Ran { outcome, told, params: tiny::params(&model) })
}

fn fresh(recipe: &RlRecipe) -> Ran {
    let dir = tempfile::tempdir().expect("a writable folder");
    run_in(dir.path(), recipe, None).expect("a whole run")
}

#[test]
fn rewards_rise() {
    let ran = fresh(&recipe(30));
    let rewards = ran.told.field("step", "reward");
    let mean = |r: &[f64]| r.iter().sum::<f64>() / r.len() as f64;
    let (before, after) = (mean(&rewards[..5]), mean(&rewards[25..]));
    assert!(before < 0.3 && after > 0.6, "{before} to {after}: {rewards:?}");
    assert_eq!(ran.outcome.progress.step, 30);
}

#[test]
fn other_objectives_learn_the_same_thing() {
    let plain = recipe(30);
    let objective = Objective { normalize_advantage: true, clip_ratio: Some(0.2), kl: 0.01 };
    let rates = plain.rates.scaled(0.5);
    let ran = fresh(&RlRecipe { objective, passes: 2, rates, ..plain });
    let rewards = ran.told.field("step", "reward");
    let late = rewards[25..].iter().sum::<f64>() / 5.0;
    assert!(late > 0.3, "{rewards:?}");
}

/// At first the model is the reference, and the term has no gradient; then it has.
#[test]
fn a_kl_term_acts_from_the_second_step_on() {
    let params = |kl: f64, steps: u64| {
        let objective = Objective { kl, ..Objective::default() };
        // The last rate is 0 or not with the number of steps: the same schedule for both.
        let recipe = RlRecipe { objective, save_every: 1, ..recipe(3) };
        let dir = tempfile::tempdir().expect("a writable folder");
        run_in(dir.path(), &recipe, None).expect("three steps");
        let be = Cpu::open(1, Precision::F32);
        let step = checkpoint::step_dir(dir.path(), steps);
        tiny::params(&checkpoint::load(&be, &step).expect("saved").0)
    };
    assert_eq!(params(0.0, 1), params(5.0, 1));
    assert_ne!(params(0.0, 2), params(5.0, 2));
}

#[test]
fn a_run_that_goes_on_is_the_run_that_never_stopped() {
    let recipe = RlRecipe { save_every: 3, ..recipe(6) };
    let whole = tempfile::tempdir().expect("a writable folder");
    let all = run_in(whole.path(), &recipe, None).expect("a whole run");
    let half = checkpoint::step_dir(whole.path(), 3);
    let again = run_in(whole.path(), &recipe, Some(half)).expect("the second half");
    assert_eq!(again.params, all.params);
    let rewards = |ran: &Ran| ran.told.field("step", "reward");
    assert_eq!(rewards(&again), rewards(&all)[3..]);
}

#[test]
fn other_settings_are_refused_by_name() {
    let recipe = RlRecipe { save_every: 1, ..recipe(1) };
    let dir = tempfile::tempdir().expect("a writable folder");
    run_in(dir.path(), &recipe, None).expect("one step");
    let other = RlRecipe { num_iterations: 2, seed: 8, ..recipe };
    let step = checkpoint::step_dir(dir.path(), 1);
    match run_in(dir.path(), &other, Some(step)) {
        Err(Error::Resume { differences, .. }) => {
            let what: Vec<_> = differences.iter().map(|d| d.what.as_str()).collect();
            assert!(what.iter().all(|w| w.starts_with("setting ")) && what.len() == 2, "{what:?}");
        }
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("a run with another seed went on"),
    }
}

#[test]
fn only_drawn_ids_are_trained() {
    let tokenizer = tiny::tokenizer();
    let sample = Sample {
        ids: vec![1, 2, 3, 4, 5],
        drawn: vec![false, false, true, false, true],
        text: String::new(),
        reward: 1.0,
        answer_tokens: 3,
    };
    let short = Sample { ids: vec![1, 2, 9], drawn: vec![false, false, true], ..sample.clone() };
    let factors = [vec![0.5; 5], vec![-0.25; 3]];
    let batch = batch(&[&sample, &short], &factors, &tokenizer, 100);
    assert_eq!((batch.b, batch.t), (2, 32));
    assert_eq!(batch.y[..5], [IGNORE, 3, IGNORE, 5, IGNORE]);
    assert_eq!(batch.y[32..36], [IGNORE, 9, IGNORE, IGNORE]);
    let w = batch.w.expect("factors");
    assert_eq!(w[..5], [0.0, 0.5, 0.0, 0.5, 0.0]);
    assert_eq!(w[32..35], [0.0, -0.25, 0.0]);
    assert_eq!((batch.trained_tokens, batch.padding_tokens), (3, 28 + 30));
}

/// The gradient of the two micro batches of a question is that of the formula, by the losses of single rows.
#[test]
fn gradients_are_those_of_the_formula() {
    let be = Cpu::open(1, Precision::F32);
    let model: Nano = tiny::model(&be);
    let tokenizer = tiny::tokenizer();
    let sample = |ids: Vec<u32>| Sample {
        drawn: ids.iter().enumerate().map(|(i, _)| i >= 2).collect(),
        ids,
        text: String::new(),
        reward: 0.0,
        answer_tokens: 0,
    };
    let samples = [sample(vec![1, 2, 30, 40]), sample(vec![1, 2, 50, 60])];
    let advantages = [0.75f32, -0.25];
    let trainer = |b| {
        let optim = Optimizer::new(&be, &model, LearningRates::default()).expect("a small state");
        Trainer::new(&be, &model, optim, b, 32).expect("a small arena")
    };
    let still = nanochat_train::schedule::Rates {
        lr_multiplier: 0.0,
        muon_momentum: 0.95,
        muon_weight_decay: 0.0,
    };
    let grads = |samples: &[&Sample], advantages: &[f32]| {
        let factors: Vec<Vec<f32>> =
            samples.iter().zip(advantages).map(|(s, a)| vec![*a; s.ids.len()]).collect();
        let batch = batch(samples, &factors, &tokenizer, 32);
        let mut trainer = trainer(batch.b);
        trainer.step(0, &mut tiny::Given::new(vec![batch]), 1, &still).expect("a step");
        trainer.grads().to_vec_f32().expect("f32")
    };
    let both = grads(&[&samples[0], &samples[1]], &advantages);
    let (one, two) = (grads(&[&samples[0]], &[1.0]), grads(&[&samples[1]], &[1.0]));
    // Each alone is the mean over its two targets, together over four.
    let want = one.iter().zip(&two).map(|(a, b)| 0.5 * (0.75 * a - 0.25 * b));
    let largest = both.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = both.iter().zip(want).map(|(have, want)| (have - want).abs()).fold(0f32, f32::max);
    assert!(largest > 1e-3 && worst < 1e-4 * largest, "{worst} of {largest}");
}

#[test]
fn seeds_differ_by_step_and_question() {
    let mut all: Vec<u64> =
        (0..20).flat_map(|step| (0..20).map(move |i| seed_of(42, step, i))).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 400);
    assert_eq!(seed_of(42, 3, 5), seed_of(42, 3, 5));
}
