//! Reinforcement: what is rewarded gets likelier, what is not drawn is not trained, and a run resumes
//! to the same bits.

mod tiny;

use std::path::{Path, PathBuf};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::IGNORE;
use nanochat_data::tasks::{Answer, ChatTask, Question, Runner};
use nanochat_gpt::checkpoint;
use nanochat_tokenizer::chat::Content;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::rl::{self, Answered, RlRecipe, RlRun};
use nanochat_train::schedule::Rates;
use nanochat_train::step::Trainer;
use tiny::{Given, Told};

/// Likes answers that begin with a small letter.
struct Letters;

impl Runner for Letters {
    fn ready(&self) -> nanochat_data::Result<()> {
        Ok(())
    }
    fn passes(&self, source: &str) -> nanochat_data::Result<bool> {
        Ok(source.trim_start().starts_with(|c: char| c.is_ascii_lowercase()))
    }
}

fn task() -> ChatTask {
    let answer = Answer::Program {
        imports: String::new(),
        tests: String::new(),
        entry_point: String::new(),
    };
    let question = |i: usize| {
        let (user, reference) = (format!("{i}?"), Content::Text("a".into()));
        Question::new(i.to_string(), user, reference, answer.clone())
    };
    ChatTask { name: "letters".into(), baseline: 0.0, questions: (0..5).map(question).collect() }
}

fn recipe() -> RlRecipe {
    RlRecipe {
        num_steps: 12,
        questions: 2,
        num_samples: 32,
        device_batch_size: 16,
        max_new_tokens: 2,
        temperature: 1.0,
        top_k: None,
        rates: LearningRates::default(),
        weight_decay: 0.0,
        normalize_advantage: false,
        kl_beta: 0.0,
        updates: 1,
        clip: 0.2,
        eval_every: 12,
        eval_questions: 5,
        save_every: 6,
        keep: 3,
        seed: 7,
    }
}

/// A run in `dir`; its final weights and what it told.
fn run(recipe: &RlRecipe, dir: &Path, resume: Option<PathBuf>) -> (Vec<u32>, Told) {
    let be = Cpu::open(2, Precision::F32);
    let model = match &resume {
        Some(step) => checkpoint::load(&be, step).expect("a checkpoint").0,
        None => tiny::model(&be),
    };
    let begun = tiny::model(&be);
    let optim = Optimizer::new(&be, &model, recipe.rates).expect("a small state");
    let mut trainer = Trainer::new(&be, &model, optim, 8, 32).expect("a small arena");
    let (tokenizer, task, mut told) = (tiny::tokenizer(), task(), Told::default());
    let start = (recipe.kl_beta != 0.0).then_some(&begun);
    let (train, test, runner) = (&task, &task, &Letters);
    let job = RlRun { recipe, dir, tokenizer: &tokenizer, train, test, runner, start, resume };
    let outcome = rl::run(job, &mut trainer, &mut told).expect("a whole run");
    assert_eq!(outcome.progress.step, recipe.num_steps);
    (tiny::params(&model), told)
}

#[test]
fn what_is_rewarded_gets_likelier() {
    let plain = recipe();
    let all =
        RlRecipe { normalize_advantage: true, kl_beta: 0.001, updates: 2, clip: 0.5, ..recipe() };
    for recipe in [plain, all] {
        let dir = tempfile::tempdir().expect("a writable folder");
        let (_, told) = run(&recipe, dir.path(), None);
        let rewards = told.field("step", "reward");
        let mean = |some: &[f64]| some.iter().sum::<f64>() / some.len() as f64;
        // 26 of 265 ids are small letters: a tenth by chance.
        let (first, last) = (mean(&rewards[..3]), mean(&rewards[9..]));
        assert!(first < 0.3 && last > first + 0.2, "{rewards:?}");
        // Tested before the first step and after the last: pass@1 to pass@8, rising.
        let tests: Vec<Vec<f64>> = told
            .rows
            .iter()
            .filter(|r| r["kind"] == "eval")
            .map(|r| tiny::floats(&r["pass_at"]))
            .collect();
        assert_eq!((tests.len(), tests[0].len()), (2, 8));
        assert!(tests[1][0] > tests[0][0] && tests[1].windows(2).all(|w| w[1] >= w[0]));
        assert!(
            told.lines
                .iter()
                .any(|l| l.starts_with("step 12 | loss ") && l.contains("| tokens/sec: "))
        );
    }
}

#[test]
fn resume_is_bit_exact() {
    let (whole, cut) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let recipe = RlRecipe { num_samples: 8, eval_questions: 1, ..recipe() };
    let (want, told) = run(&recipe, whole.path(), None);
    let (again, _) = run(&recipe, cut.path(), None);
    assert_eq!(want, again, "the seed decides");
    let middle = checkpoint::step_dir(cut.path(), 6);
    std::fs::remove_dir_all(checkpoint::step_dir(cut.path(), 12)).expect("a checkpoint");
    let (resumed, after) = run(&recipe, cut.path(), Some(middle));
    assert!(resumed == want, "weights differ after a resume");
    assert_eq!(after.field("step", "reward"), told.field("step", "reward")[6..]);
}

#[test]
fn only_what_the_model_drew_is_trained() {
    let answer = |ids: &[u32], drawn: &[bool]| Answered {
        ids: ids.to_vec(),
        drawn: drawn.to_vec(),
        reward: 0.0,
    };
    // A prompt of two, a drawn id, a forced one, a drawn one; and a shorter answer.
    let long = answer(&[1, 2, 3, 4, 5], &[false, true, false, true]);
    let short = answer(&[1, 2, 6], &[false, true]);
    let batch = rl::batch(&[&long, &short], "t".into());
    assert_eq!((batch.b, batch.t, batch.trained_tokens, batch.padding_tokens), (2, 4, 3, 2));
    assert_eq!(batch.x, [1, 2, 3, 4, 1, 2, 0, 0]);
    assert_eq!(batch.y, [IGNORE, 3, IGNORE, 5, IGNORE, 6, IGNORE, IGNORE]);
}

#[test]
fn a_weighted_step_of_the_mean_is_a_step() {
    let be = Cpu::open(2, Precision::F32);
    let given = tiny::batch(2, (0..64).collect(), (1..65).collect());
    let rates = Rates { lr_multiplier: 1.0, muon_momentum: 0.95, muon_weight_decay: 0.0 };
    let after = |weighted: bool| {
        let model = tiny::model(&be);
        let optim = Optimizer::new(&be, &model, LearningRates::default()).expect("a small state");
        let mut trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
        let report = match weighted {
            true => trainer.weighted_step(0, &[(given.clone(), 1.0 / 64.0)], &rates),
            false => trainer.step(0, &mut Given::new(vec![given.clone()]), 1, &rates),
        };
        (report.expect("a step").loss, tiny::params(&model))
    };
    let ((loss, params), (weighted_loss, weighted_params)) = (after(false), after(true));
    assert!(params == weighted_params, "the weights differ");
    assert!((loss - weighted_loss).abs() < 1e-9);
}
