//! Ranks that are threads: the same run on 1, 2 and 4 of them, resumed on fewer, and what they do together
//! when one of them meets something.

mod tiny;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nanochat_compute::Comm;
use nanochat_compute::comm::Solo;
use nanochat_compute::comm::threads::Threads;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::{ConversationList, Mixture, PackConfig, Packer};
use nanochat_gpt::checkpoint;
use nanochat_tokenizer::Conversation;
use nanochat_train::base::{self, BaseRun, Cadence};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::ranks::sums::Sum;
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::schedule::SftSchedule;
use nanochat_train::sft::{self, SftRecipe, SftRun};
use nanochat_train::step::{Fault, Trainer};
use nanochat_train::stop::StopSignal;
use nanochat_train::survival::Survival;
use nanochat_train::{Error, Result};
use tiny::{Told, params};

/// What a rank ended with.
#[derive(Debug)]
struct End {
    losses: Vec<f64>,
    params: Vec<u32>,
    told: Vec<String>,
    result: Result<u64>,
}

/// Two layers, steps of four micro batches of two rows of 32.
fn recipe(steps: u64) -> Recipe {
    let ask = Ask {
        depth: 2,
        aspect_ratio: 16,
        head_dim: 16,
        max_seq_len: 32,
        vocab_size: 265,
        num_iterations: Some(steps),
        device_batch_size: Some(2),
        total_batch_size: Some(256),
        warmup_steps: 3,
        rates: LearningRates::default().scaled(7.0),
        ..Ask::default()
    };
    Recipe::new(&ask).expect("sizes that fit")
}

/// How a run is made; the tests change one thing at a time.
#[derive(Clone)]
struct Plan<'a> {
    dir: &'a Path,
    steps: u64,
    sum: Sum,
    resume: Option<PathBuf>,
    survival: Survival,
    /// A rank that is asked to stop after this many steps were saved.
    seeds: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(dir: &'a Path, steps: u64, sum: Sum) -> Self {
        let (resume, survival) = (None, Survival::default());
        Self { dir, steps, sum, resume, survival, seeds: vec![0; 4] }
    }
}

fn base_rank(comm: &dyn Comm, plan: &Plan<'_>) -> End {
    let be = Cpu::open(1, Precision::F32);
    let recipe = recipe(plan.steps);
    let cadence = Cadence {
        eval_every: 5,
        eval_tokens: 320,
        sample_every: 0,
        save_every: 5,
        keep: 3,
        prompts: vec![],
    };
    let model = match &plan.resume {
        Some(step) => checkpoint::load(&be, step).expect("a valid step").0,
        None => tiny::model(&be),
    };
    let place = (comm.rank(), comm.world());
    let optim = Optimizer::of_rank(&be, &model, recipe.rates, place).expect("a small state");
    let trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
    let mut trainer = trainer.among(comm, plan.sum);
    let mut told = Told::default();
    let run = BaseRun {
        recipe: &recipe,
        cadence: &cadence,
        dir: plan.dir,
        tokenizer: &tiny::tokenizer(),
        train: &mut tiny::loader(plan.seeds[comm.rank()]),
        val: &mut || Ok(Box::new(tiny::loader(1000))),
        resume: plan.resume.clone(),
        survival: &plan.survival,
    };
    let result = base::run(run, &mut trainer, &mut told).map(|o| o.progress.step);
    let losses = told.field("step", "loss");
    End { losses, params: params(&model), told: told.lines, result }
}

/// The same on every rank, each on a thread of its own; by rank.
fn on_ranks(world: usize, run: impl Fn(&dyn Comm) -> End + Sync) -> Vec<End> {
    if world == 1 {
        return vec![run(&Solo)];
    }
    let ends = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for comm in Threads::group(world) {
            let (run, ends) = (&run, &ends);
            scope.spawn(move || {
                let end = run(&comm);
                ends.lock().expect("no rank panicked").push((comm.rank(), end));
            });
        }
    });
    let mut ends = ends.into_inner().expect("no rank panicked");
    ends.sort_by_key(|(rank, _)| *rank);
    ends.into_iter().map(|(_, end)| end).collect()
}

fn base(world: usize, plan: &Plan<'_>) -> Vec<End> {
    on_ranks(world, |comm| base_rank(comm, plan))
}

/// Ends of a whole run, of which all ranks say the same.
fn whole(world: usize, plan: &Plan<'_>) -> End {
    let mut ends = base(world, plan);
    for (rank, end) in ends.iter().enumerate() {
        assert!(end.result.is_ok(), "rank {rank}: {:?}", end.result);
        assert!(end.params == ends[0].params, "rank {rank} has other weights than rank 0");
        assert_eq!(end.losses, ends[0].losses, "rank {rank}");
    }
    ends.swap_remove(0)
}

fn conversation(question: &str, answer: &str) -> Conversation {
    let messages = serde_json::json!({"messages": [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
    ]});
    serde_json::from_value(messages).expect("a conversation")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a writable folder")
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn step_files(dir: &Path, step: u64) -> Vec<Vec<u8>> {
    let names = ["model.safetensors", "optimizer.safetensors", "loader.bin"];
    let read = |name: &str| std::fs::read(dir.join(format!("step-{step:06}")).join(name));
    names.iter().map(|name| read(name).expect("a file of the step")).collect()
}

#[test]
fn two_and_four_ranks_have_the_losses_of_one() {
    let solo = folder();
    let alone = whole(1, &Plan::new(solo.path(), 20, Sum::Running));
    assert!(alone.losses[19] < alone.losses[0] - 1.0, "it learns: {:?}", alone.losses);
    for world in [2, 4] {
        let dir = folder();
        let end = whole(world, &Plan::new(dir.path(), 20, Sum::Running));
        // 1e-5 nats: sums of f32 in another order, through 20 steps.
        let far = farthest(&alone.losses, &end.losses);
        assert!(far < 1e-5, "{world} ranks: {far}");
    }
}

#[test]
fn pairwise_sums_give_the_same_bits_and_the_same_files_on_any_number_of_ranks() {
    let solo = folder();
    let alone = whole(1, &Plan::new(solo.path(), 12, Sum::Pairwise));
    for world in [2, 4] {
        let dir = folder();
        let end = whole(world, &Plan::new(dir.path(), 12, Sum::Pairwise));
        assert_eq!(alone.losses, end.losses, "{world} ranks");
        assert!(alone.params == end.params, "{world} ranks: weights");
        assert!(step_files(solo.path(), 12) == step_files(dir.path(), 12), "{world}: files");
    }
}

#[test]
fn a_run_goes_on_with_fewer_ranks_and_with_more() {
    let clean = folder();
    let alone = whole(1, &Plan::new(clean.path(), 12, Sum::Pairwise));
    let dir = folder();
    let mut losses = Vec::new();
    for (world, to) in [(4, 5), (2, 10), (1, 12)] {
        // Each part stops where the next begins: as if it had been killed after that save.
        let mut plan = Plan::new(dir.path(), 12, Sum::Pairwise);
        plan.resume = checkpoint::latest(dir.path()).ok().map(|(step, _)| step);
        let end = whole(world, &plan);
        losses.extend_from_slice(&end.losses[..(to - losses.len())]);
        if to < 12 {
            for step in [10, 12].into_iter().filter(|step| *step > to) {
                let _ = std::fs::remove_dir_all(dir.path().join(format!("step-{step:06}")));
            }
        } else {
            assert!(end.params == alone.params, "4, then 2, then 1 rank: weights");
        }
    }
    assert_eq!(losses, alone.losses);
    assert!(step_files(clean.path(), 12) == step_files(dir.path(), 12));
}

#[test]
fn what_one_rank_is_asked_all_do_and_save() {
    let (dir, stop) = (folder(), StopSignal::default());
    let ends = on_ranks(4, |comm| {
        let mut plan = Plan::new(dir.path(), 12, Sum::Running);
        plan.survival.stop = StopSignal::default();
        if comm.rank() == 2 {
            stop.ask(15);
            plan.survival.stop = stop.clone();
        }
        base_rank(comm, &plan)
    });
    for (rank, end) in ends.iter().enumerate() {
        let why = end.result.as_ref().expect_err("stopped").to_string();
        assert!(why.contains("stopped by SIGTERM after step 0"), "rank {rank}: {why}");
    }
}

#[test]
fn a_nan_of_one_rank_is_passed_over_by_all() {
    let dir = folder();
    let mut plan = Plan::new(dir.path(), 12, Sum::Pairwise);
    plan.survival.fault = Some(Fault { from: 6, times: 1 });
    let four = whole(4, &plan);
    let alarm = |end: &End| end.told.iter().find(|l| l.contains("ALARM: passed over")).cloned();
    let said = alarm(&four).expect("an alarm");
    assert!(said.contains("step 6: the gradient of transformer.wte.weight"), "{said}");
    let other = folder();
    let alone = whole(1, &Plan { dir: other.path(), ..plan.clone() });
    assert!(alone.params == four.params && alone.losses == four.losses);
    // For ever: back once, then every rank stops for good.
    let third = folder();
    let fault = Some(Fault { from: 6, times: 1000 });
    let plan = Plan { dir: third.path(), survival: Survival { fault, ..plan.survival }, ..plan };
    for end in base(2, &plan) {
        assert!(matches!(end.result, Err(Error::Diverged { .. })), "{:?}", end.result);
        assert!(end.told.iter().any(|l| l.contains("going back to step 5")), "{:?}", end.told);
    }
}

#[test]
fn a_save_that_the_disk_fails_is_tried_again_by_all_at_the_same_step() {
    let dir = folder();
    // Not a folder: nothing can be saved until it is gone.
    let blocked = dir.path().join("run");
    std::fs::write(&blocked, "in the way").expect("a file");
    let mut ends = on_ranks(2, |comm| {
        let plan = Plan::new(&blocked, 7, Sum::Running);
        base_rank(comm, &plan)
    });
    for end in &ends {
        assert!(matches!(end.result, Err(Error::Unsaved { step: 7, .. })), "{:?}", end.result);
    }
    let alarms = |end: &End| -> Vec<String> {
        let all = end.told.iter().filter(|l| l.contains("no checkpoint of step"));
        all.map(|l| l.split(" (").next().unwrap_or("").to_owned()).collect()
    };
    let last = ends.pop().expect("two ranks");
    assert_eq!(alarms(&last), alarms(&ends[0]));
    assert!(alarms(&last).len() >= 2, "{:?}", last.told);
}

#[test]
fn async_saves_of_ranks_are_the_same_files() {
    let (one, two) = (folder(), folder());
    whole(1, &Plan::new(one.path(), 12, Sum::Pairwise));
    let mut plan = Plan::new(two.path(), 12, Sum::Pairwise);
    plan.survival.async_save = true;
    whole(2, &plan);
    for step in [5, 10, 12] {
        assert!(step_files(one.path(), step) == step_files(two.path(), step), "step {step}");
    }
}

#[test]
fn ranks_with_other_data_refuse_to_begin() {
    let dir = folder();
    let mut plan = Plan::new(dir.path(), 12, Sum::Running);
    plan.seeds = vec![0, 1];
    for end in base(2, &plan) {
        let why = end.result.expect_err("another set").to_string();
        assert!(why.contains("do not agree on the data"), "{why}");
    }
}

#[test]
fn four_micro_batches_are_not_for_three_ranks() {
    let dir = folder();
    for end in base(3, &Plan::new(dir.path(), 12, Sum::Running)) {
        let why = end.result.expect_err("4 are not 3").to_string();
        assert!(why.contains("4 micro batches a step cannot be shared by 3 ranks"), "{why}");
    }
}

#[test]
fn finetuning_has_the_same_bits_too() {
    let run = |comm: &dyn Comm, dir: &Path| {
        let be = Cpu::open(1, Precision::F32);
        let recipe = SftRecipe {
            max_seq_len: 32,
            device_batch_size: 2,
            accumulation: 4,
            num_iterations: None,
            rates: LearningRates::default().scaled(0.1),
            schedule: SftSchedule {
                init_lr_frac: 0.8,
                warmup_ratio: 0.0,
                warmdown_ratio: 0.5,
                final_lr_frac: 0.0,
            },
            eval_every: 5,
            eval_tokens: 256,
            save_every: 0,
            keep: 2,
        };
        let talk = |i: usize| conversation(&format!("{i}+1"), &format!("{}", i + 1));
        let packer = |from: usize| {
            let list = ConversationList::new(
                format!("sums {from}"),
                (from..from + 90).map(talk).collect(),
            );
            let mixture = Mixture::new(vec![(Box::new(list), 1)]).expect("a task");
            let config = PackConfig { buffer: 10, ..PackConfig::new(2, 32) };
            Packer::new(mixture, tiny::tokenizer(), config).expect("sizes")
        };
        let model = tiny::model(&be);
        let place = (comm.rank(), comm.world());
        let optim = Optimizer::of_rank(&be, &model, recipe.rates, place).expect("a small state");
        let trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
        let mut trainer = trainer.among(comm, Sum::Pairwise);
        let (tokenizer, mut told) = (tiny::tokenizer(), Told::default());
        let sft = SftRun {
            recipe: &recipe,
            dir,
            tokenizer: tokenizer.fingerprint(),
            token_bytes: &tokenizer.token_bytes(),
            train: &mut packer(0),
            val: &mut || Ok(Box::new(packer(500))),
            resume: None,
            survival: &Survival::default(),
        };
        let result = sft::run(sft, &mut trainer, &mut told).map(|o| o.progress.step);
        let losses = told.field("step", "loss");
        End { losses, params: params(&model), told: told.lines, result }
    };
    let one = folder();
    let alone = run(&Solo, one.path());
    assert!(alone.losses.len() > 3, "{:?}", alone.losses);
    for world in [2, 4] {
        let dir = folder();
        for end in on_ranks(world, |comm| run(comm, dir.path())) {
            assert_eq!(end.result.as_ref().ok(), alone.result.as_ref().ok());
            assert_eq!(end.losses, alone.losses, "{world} ranks");
            assert!(end.params == alone.params, "{world} ranks");
        }
    }
}
