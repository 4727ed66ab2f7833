//! A run that is asked to stop, meets numbers that are not finite, or finds no room on the disk.

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::{Batch, Batches, Prefetch};
use nanochat_gpt::checkpoint;
use nanochat_train::base::{self, BaseRun, Cadence, Outcome};
use nanochat_train::metrics::{LineKind, Observer};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::step::{Fault, Trainer};
use nanochat_train::stop::StopSignal;
use nanochat_train::survival::Survival;
use nanochat_train::{Error, Result};
use serde_json::Value;
use tiny::{Told, params};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a writable folder")
}

/// Two layers, 12 steps of four micro batches of two rows of 32.
fn ask() -> Ask {
    Ask {
        depth: 2,
        aspect_ratio: 16,
        head_dim: 16,
        max_seq_len: 32,
        vocab_size: 265,
        num_iterations: Some(12),
        device_batch_size: Some(2),
        total_batch_size: Some(256),
        warmup_steps: 3,
        rates: LearningRates::default().scaled(7.0),
        ..Ask::default()
    }
}

/// What a test changes of a run.
struct Run<'a> {
    dir: &'a Path,
    ask: Ask,
    survival: Survival,
    resume: Option<PathBuf>,
    val: &'a mut dyn FnMut() -> Box<dyn Batches>,
}

fn run_with(
    run: Run<'_>,
    train: &mut dyn Batches,
    told: &mut dyn Observer,
) -> Result<(Outcome, Vec<u32>)> {
    let be = Cpu::open(1, Precision::F32);
    let recipe = Recipe::new(&run.ask).expect("sizes that fit");
    let model = match &run.resume {
        Some(step) => checkpoint::load(&be, step).expect("a valid step").0,
        None => tiny::model(&be),
    };
    let optim = Optimizer::new(&be, &model, recipe.rates).expect("a small state");
    let mut trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
    let (eval_every, sample_every) = (4, 0);
    let prompts = vec![];
    let cadence =
        Cadence { eval_every, eval_tokens: 256, sample_every, save_every: 5, keep: 3, prompts };
    let base = BaseRun {
        recipe: &recipe,
        cadence: &cadence,
        dir: run.dir,
        tokenizer: &tiny::tokenizer(),
        train,
        val: &mut || Ok((run.val)()),
        resume: run.resume,
        survival: &run.survival,
    };
    let outcome = base::run(base, &mut trainer, told)?;
    Ok((outcome, params(&model)))
}

fn validation() -> Box<dyn Batches> {
    Box::new(tiny::loader(1000))
}

fn run(
    dir: &Path,
    survival: Survival,
    train: &mut dyn Batches,
    resume: Option<PathBuf>,
    told: &mut dyn Observer,
) -> Result<(Outcome, Vec<u32>)> {
    run_with(Run { dir, ask: ask(), survival, resume, val: &mut validation }, train, told)
}

fn whole(told: &mut Told) -> Vec<u32> {
    let dir = dir();
    run(dir.path(), Survival::default(), &mut tiny::loader(0), None, told).expect("12 steps").1
}

fn latest(dir: &Path) -> PathBuf {
    checkpoint::latest(dir).expect("a valid step").0
}

/// A stream in the middle of which a signal comes.
struct Signalled<B> {
    inner: B,
    stop: StopSignal,
    /// Batches before it.
    left: usize,
}

impl<B: Batches> Batches for Signalled<B> {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        if self.left == 0 {
            self.stop.ask(15);
        }
        self.left = self.left.wrapping_sub(1);
        self.inner.next_batch()
    }
    fn state(&self) -> Vec<u8> {
        self.inner.state()
    }
    fn restore(&mut self, state: &[u8]) -> nanochat_data::Result<()> {
        self.inner.restore(state)
    }
    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
    fn progress(&self) -> f64 {
        self.inner.progress()
    }
}

#[test]
fn a_run_stopped_within_a_step_goes_on_bit_for_bit() {
    let mut told = Told::default();
    let whole = whole(&mut told);
    // In the first, second, third and fourth micro batch of step 7, then twice in one run.
    for stops in [&[24][..], &[25], &[26], &[27], &[1, 3], &[9, 6, 1, 22]] {
        let dir = dir();
        let (mut resume, mut losses) = (None, Vec::new());
        for &left in stops {
            let stop = StopSignal::default();
            let inner = Prefetch::new(tiny::loader(0), 4);
            let mut train = Signalled { inner, stop: stop.clone(), left };
            let survival = Survival { stop, ..Survival::default() };
            let mut told = Told::default();
            let error = run(dir.path(), survival, &mut train, resume, &mut told);
            let error = error.expect_err("it was asked to stop");
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
            losses.extend(told.field("step", "loss"));
            let steps = checkpoint::steps(dir.path()).expect("a folder");
            resume = steps.last().map(|(_, path)| path.clone());
            assert_eq!(resume.is_some(), !losses.is_empty(), "{error}");
            let said = error.to_string();
            let how = if losses.is_empty() { "start again" } else { "--resume" };
            assert!(
                said.starts_with("stopped by SIGTERM after step") && said.contains(how),
                "{said}"
            );
        }
        let mut again = Told::default();
        let mut train = Prefetch::new(tiny::loader(0), 4);
        let end = run(dir.path(), Survival::default(), &mut train, resume, &mut again);
        assert!(end.expect("to 12").1 == whole, "{stops:?}: weights");
        losses.extend(again.field("step", "loss"));
        assert_eq!(losses, told.field("step", "loss"), "{stops:?}: no step is lost or repeated");
    }
}

#[test]
fn a_validation_is_not_waited_for_and_made_up_for() {
    let (mut told, dir) = (Told::default(), dir());
    let whole = whole(&mut told);
    let stop = StopSignal::default();
    // The second validation, of step 4.
    let mut validations = 0;
    let mut val = || -> Box<dyn Batches> {
        validations += 1;
        let left = if validations == 2 { 1 } else { 1000 };
        Box::new(Signalled { inner: tiny::loader(1000), stop: stop.clone(), left })
    };
    let survival = Survival { stop: stop.clone(), ..Survival::default() };
    let cut = Run { dir: dir.path(), ask: ask(), survival, resume: None, val: &mut val };
    let mut before = Told::default();
    run_with(cut, &mut tiny::loader(0), &mut before).expect_err("it was asked to stop");
    assert_eq!(before.field("eval", "step"), [0.0]);
    let resume = latest(dir.path());
    assert_eq!(resume, checkpoint::step_dir(dir.path(), 4));
    let mut after = Told::default();
    let survival = Survival::default();
    let end = run(dir.path(), survival, &mut tiny::loader(0), Some(resume), &mut after);
    assert!(end.expect("to 12").1 == whole, "weights");
    let bpb = |told: &Told| told.field("eval", "val_bpb");
    assert_eq!([bpb(&before), bpb(&after)].concat(), bpb(&told));
}

fn faulty(from: u64, times: u64) -> Survival {
    Survival { fault: Some(Fault { from, times }), ..Survival::default() }
}

fn rows<'a>(told: &'a Told, kind: &str) -> Vec<&'a Value> {
    told.rows.iter().filter(|row| row["kind"] == kind).collect()
}

#[test]
fn one_nan_is_passed_over() {
    let (mut told, mut clean, dir) = (Told::default(), Told::default(), dir());
    whole(&mut clean);
    let end = run(dir.path(), faulty(6, 1), &mut tiny::loader(0), None, &mut told).expect("to 12");
    assert_eq!(end.0.progress.step, 12);
    assert_eq!(told.field("step", "step"), [1., 2., 3., 4., 5., 6., 8., 9., 10., 11., 12.]);
    let skips = rows(&told, "skip");
    assert_eq!(skips.len(), 1);
    assert_eq!((&skips[0]["step"], &skips[0]["why"]), (&7.into(), &"not finite".into()));
    assert!(skips[0]["tensor"].as_str().expect("a name").contains("wte"), "{}", skips[0]);
    assert!(skips[0]["batch"].as_str().expect("a name").contains("epoch"), "{}", skips[0]);
    assert_eq!(end.0.progress.guard.skipped, 1);
    // One update of 12 is missing where the loss falls by a tenth a step, and nothing else.
    let last = |told: &Told| *told.field("eval", "val_bpb").last().expect("validated");
    assert!((last(&told) / last(&clean) - 1.0).abs() < 0.1, "{} {}", last(&told), last(&clean));
    assert!(told.lines.iter().any(|l| l.starts_with("ALARM: passed over")), "{:?}", told.lines);
}

#[test]
fn three_nans_in_a_row_take_the_run_back() {
    let (mut told, dir) = (Told::default(), dir());
    let end = run(dir.path(), faulty(6, 3), &mut tiny::loader(0), None, &mut told).expect("to 12");
    assert_eq!(rows(&told, "skip").len(), 3);
    let back = rows(&told, "rollback");
    assert_eq!((back.len(), &back[0]["to"]), (1, &5.into()));
    // Steps 6 and on are taken again, with the data that comes after the bad batches.
    let steps = told.field("step", "step");
    assert_eq!(steps, [1., 2., 3., 4., 5., 6., 6., 7., 8., 9., 10., 11., 12.]);
    let losses = told.field("step", "loss");
    assert!(losses[5] != losses[6], "step 6 had other data");
    let guard = &end.0.progress.guard;
    assert_eq!((guard.skipped, guard.rollbacks), (3, 1));
    // What was passed over counts as tokens that were run: no step of the 12 took no tokens.
    assert!(end.1.iter().all(|bits| f32::from_bits(*bits).is_finite()));
}

#[test]
fn nans_for_ever_stop_the_run_and_name_tensor_and_batch() {
    let (mut told, dir) = (Told::default(), dir());
    let error = run(dir.path(), faulty(6, u64::MAX), &mut tiny::loader(0), None, &mut told);
    let error = error.expect_err("it cannot go on");
    assert!(matches!(error, Error::Diverged { checkpoint: 5, skipped: 6, .. }), "{error:?}");
    let said = error.to_string();
    for part in
        ["step 8", "gradient of transformer.wte.weight", "epoch 1", "step 5 is the last good"]
    {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    assert_eq!(rows(&told, "rollback").len(), 1);
    assert_eq!(latest(dir.path()), checkpoint::step_dir(dir.path(), 5));
    // With no checkpoint there is nowhere to go back to.
    let error = run(dir.path(), faulty(0, 9), &mut tiny::loader(0), None, &mut told);
    let said = error.expect_err("it cannot go on").to_string();
    assert!(said.contains("no checkpoint to go back to"), "{said}");
    // And those who want none of it get the first one.
    let survival = Survival { fail_fast: true, ..faulty(6, 1) };
    let error = run(dir.path(), survival, &mut tiny::loader(0), None, &mut told);
    assert!(matches!(error, Err(Error::NotFinite { step: 6, .. })));
}

#[test]
fn a_spike_or_a_nan_gradient_does_not_reach_the_weights() {
    let be = Cpu::open(1, Precision::F32);
    let model = tiny::model(&be);
    let optim = Optimizer::new(&be, &model, LearningRates::default()).expect("a small state");
    let mut trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
    let rates = Recipe::new(&ask()).expect("sizes that fit").schedule.at(0);
    let before = params(&model);
    trainer.watch.loss_limit = 0.1;
    let error = trainer.step(3, &mut tiny::loader(0), 2, &rates).map(|_| ());
    assert!(matches!(error, Err(Error::Spike { step: 3, limit: 0.1, .. })), "{error:?}");
    trainer.watch.loss_limit = f64::INFINITY;
    trainer.watch.fault = Some(Fault { from: 3, times: 1 });
    let error = trainer.step(3, &mut tiny::loader(0), 2, &rates).map(|_| ());
    assert!(matches!(error, Err(Error::NotFinite { step: 3, micro_step: 1, .. })), "{error:?}");
    assert_eq!((params(&model) == before, trainer.optim.t()), (true, 0));
    let report = trainer.step(3, &mut tiny::loader(0), 2, &rates).expect("a step");
    let sum: f64 =
        trainer.grads().to_vec_f32().expect("f32").iter().map(|g| f64::from(*g).powi(2)).sum();
    // Muon has used up the gradients of the matrices; the norm was taken of all of them before.
    assert!(report.grad_norm.is_finite() && report.grad_norm > 0.0 && sum > 0.0);
}

/// Tells on, and mends the disk at the `nth` alarm.
struct Mends<'a> {
    told: Told,
    block: &'a Path,
    nth: usize,
}

impl Observer for Mends<'_> {
    fn line(&mut self, kind: LineKind, text: &str) {
        self.told.line(kind, text);
    }

    fn row(&mut self, row: Value) -> Result<()> {
        if row["kind"] == "alarm" {
            self.nth -= 1;
            if self.nth == 0 {
                fs::remove_file(self.block).expect("the block");
            }
        }
        self.told.row(row)
    }
}

#[test]
fn a_disk_that_takes_nothing_is_an_alarm_and_training_goes_on() {
    let (mut clean, dir) = (Told::default(), dir());
    let whole = whole(&mut clean);
    // A file where the folder of checkpoints should be: no save can succeed.
    let steps = dir.path().join("base");
    fs::write(&steps, "").expect("a writable folder");
    let mut told = Mends { told: Told::default(), block: &steps, nth: 2 };
    let end = run(&steps, Survival::default(), &mut tiny::loader(0), None, &mut told);
    assert!(end.expect("to 12").1 == whole, "weights");
    let told = told.told;
    assert_eq!(told.field("alarm", "step"), [5.0, 6.0], "tried again a step later");
    assert_eq!(told.field("recovered", "step"), [8.0], "and two steps later");
    assert!(told.lines.iter().any(|l| l.starts_with("ALARM: no checkpoint of step 5")));
    let saved: Vec<u64> =
        checkpoint::steps(&steps).expect("a folder").into_iter().map(|(step, _)| step).collect();
    assert_eq!(saved, [8, 10, 12]);
    assert_eq!(told.field("step", "loss"), clean.field("step", "loss"));
}

#[test]
fn checkpoints_written_beside_the_steps_are_the_same_checkpoints() {
    let (beside, plain) = (dir(), dir());
    let survival = Survival { async_save: true, ..Survival::default() };
    let mut told = Told::default();
    let a = run(beside.path(), survival.clone(), &mut tiny::loader(0), None, &mut told);
    let b = run(plain.path(), Survival::default(), &mut tiny::loader(0), None, &mut told);
    assert!(a.expect("to 12").1 == b.expect("to 12").1, "weights");
    for step in [5, 10, 12] {
        let of = |dir: &Path| checkpoint::step_dir(dir, step);
        checkpoint::verify(&of(beside.path())).expect("a valid step");
        let diff = checkpoint::diff(&of(beside.path()), &of(plain.path())).expect("both are whole");
        let seconds = |name: &str| name == "trainer.train_s";
        assert!(diff.files.is_empty() && diff.meta.iter().all(|(n, ..)| seconds(n)), "{diff:?}");
    }
    // A disk that takes nothing is an alarm here as well, and so is going back.
    let dir = dir();
    let steps = dir.path().join("base");
    fs::write(&steps, "").expect("a writable folder");
    let mut told = Mends { told: Told::default(), block: &steps, nth: 1 };
    run(&steps, survival.clone(), &mut tiny::loader(0), None, &mut told).expect("to 12");
    assert!(!rows(&told.told, "alarm").is_empty() && !rows(&told.told, "recovered").is_empty());
    let (mut told, back) = (Told::default(), tempfile::tempdir().expect("a writable folder"));
    let survival = Survival { fault: Some(Fault { from: 6, times: 3 }), ..survival };
    run(back.path(), survival, &mut tiny::loader(0), None, &mut told).expect("to 12");
    assert_eq!(rows(&told, "rollback")[0]["to"], 5);
}

#[test]
fn a_run_that_cannot_save_its_end_says_so_and_keeps_what_it_has() {
    let dir = dir();
    let steps = dir.path().join("base");
    fs::write(&steps, "").expect("a writable folder");
    let mut told = Told::default();
    let error = run(&steps, Survival::default(), &mut tiny::loader(0), None, &mut told);
    let error = error.expect_err("there is no room");
    assert!(matches!(error, Error::Unsaved { step: 12, checkpoint: 0, .. }), "{error:?}");
    assert!(error.to_string().contains("make room"), "{error}");
    assert_eq!(told.field("step", "step").len(), 12);
}

#[test]
fn metrics_that_cannot_be_written_do_not_end_a_run() {
    struct Full(Told);
    impl Observer for Full {
        fn line(&mut self, kind: LineKind, text: &str) {
            self.0.line(kind, text);
        }
        fn row(&mut self, _: Value) -> Result<()> {
            let source = std::io::ErrorKind::StorageFull.into();
            Err(Error::Io { file: "metrics.jsonl".into(), source })
        }
    }
    let dir = dir();
    let mut told = Full(Told::default());
    run(dir.path(), Survival::default(), &mut tiny::loader(0), None, &mut told).expect("to 12");
    let alarms = told.0.lines.iter().filter(|l| l.starts_with("ALARM: metrics")).count();
    assert_eq!(alarms, 1, "said once: {:?}", told.0.lines);
}

#[test]
fn force_goes_on_with_other_settings_and_data_and_puts_it_on_record() {
    let dir = dir();
    run(dir.path(), Survival::default(), &mut tiny::loader(0), None, &mut Told::default())
        .expect("12 steps");
    let last = latest(dir.path());
    let longer = |force: bool, ask: Ask, train: &mut dyn Batches, told: &mut Told| {
        let ask = Ask { num_iterations: Some(15), ..ask };
        let survival = Survival { force, ..Survival::default() };
        let (dir, resume) = (dir.path(), Some(last.clone()));
        run_with(Run { dir, ask, survival, resume, val: &mut validation }, train, told)
    };
    let mut told = Told::default();
    let error = longer(false, Ask { weight_decay: 0.1, ..ask() }, &mut tiny::loader(1), &mut told);
    let said = error.expect_err("another run").to_string();
    for part in ["num_iterations", "weight_decay", "the data", "--force"] {
        assert!(said.contains(part), "{said} lacks {part}: all that differs is told");
    }
    let end = longer(true, ask(), &mut tiny::loader(0), &mut told).expect("to 15");
    assert_eq!(end.0.progress.step, 15);
    let forced = rows(&told, "forced");
    assert!(
        forced[0]["differences"][0]["what"].as_str().expect("a name").contains("num_iterations")
    );
    assert!(told.lines.iter().any(|l| l.starts_with("warning: --force goes on although")));
    // A loader of other data cannot take the old one's place: it begins anew, and that is told.
    let mut told = Told::default();
    longer(true, ask(), &mut tiny::loader(1), &mut told).expect("to 15");
    assert!(told.lines.iter().any(|l| l.contains("the data begins anew")), "{:?}", told.lines);
    // A model of another shape is no run to go on with.
    let wide = Ask { head_dim: 32, ..ask() };
    let error = longer(true, wide, &mut tiny::loader(0), &mut told).expect_err("another model");
    assert!(matches!(error, Error::Resume { can_force: false, .. }), "{error}");
    assert!(error.to_string().contains("begin a new one"), "{error}");
}
