//! A run that stops anywhere and goes on ends as the run that never stopped, to the last bit.

mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use nanochat_compute::Backend;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::{Batches, ConversationList, Mixture, PackConfig, Packer, Prefetch};
use nanochat_gpt::weights::{self, Named, Reader};
use nanochat_gpt::{Nano, checkpoint};
use nanochat_tokenizer::{Conversation, Tokenizer};
use nanochat_train::base::{self, BaseRun, Cadence, Outcome};
use nanochat_train::metrics::Metrics;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::schedule::SftSchedule;
use nanochat_train::sft::{self, SftRecipe, SftRun};
use nanochat_train::step::Trainer;
use nanochat_train::survival::Survival;
use nanochat_train::{Error, Result};
use serde_json::Value;
use tiny::{Stops, Told, params};

fn cpu() -> Cpu {
    Cpu::open(2, Precision::F32)
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a writable folder")
}

/// Two layers, 12 steps of two micro batches of two rows of 32.
fn ask() -> Ask {
    Ask {
        depth: 2,
        aspect_ratio: 16,
        head_dim: 16,
        max_seq_len: 32,
        vocab_size: 265,
        num_iterations: Some(12),
        device_batch_size: Some(2),
        total_batch_size: Some(128),
        warmup_steps: 3,
        // The rates of 524,288 tokens are scaled down to 128: without this nothing would be learnt.
        rates: LearningRates::default().scaled(7.0),
        ..Ask::default()
    }
}

fn cadence() -> Cadence {
    Cadence {
        eval_every: 4,
        eval_tokens: 256,
        sample_every: 6,
        save_every: 5,
        keep: 3,
        prompts: vec!["1 and".into()],
    }
}

/// What a stage is started with; the tests change one thing at a time.
struct Stage<'a> {
    dir: &'a Path,
    tokenizer: Tokenizer,
    train: &'a mut dyn Batches,
    resume: Option<PathBuf>,
}

fn model(be: &dyn Backend, resume: &Option<PathBuf>) -> Nano {
    match resume {
        Some(step) => checkpoint::load(be, step).expect("a valid step").0,
        None => tiny::model(be),
    }
}

fn base_with(stage: Stage<'_>, recipe: &Recipe, told: &mut Told) -> Result<(Outcome, Vec<u32>)> {
    let be = cpu();
    let model = model(&be, &stage.resume);
    let optim = Optimizer::new(&be, &model, recipe.rates).expect("a small state");
    let b = recipe.device_batch_size;
    let mut trainer = Trainer::new(&be, &model, optim, b, 32).expect("a small arena");
    let run = BaseRun {
        recipe,
        cadence: &cadence(),
        dir: stage.dir,
        tokenizer: &stage.tokenizer,
        train: stage.train,
        val: &mut || Ok(Box::new(tiny::loader(1000))),
        resume: stage.resume,
        survival: &Survival::default(),
    };
    let outcome = base::run(run, &mut trainer, told)?;
    Ok((outcome, params(&model)))
}

fn base(
    dir: &Path,
    train: &mut dyn Batches,
    resume: Option<PathBuf>,
    told: &mut Told,
) -> Result<(Outcome, Vec<u32>)> {
    let recipe = Recipe::new(&ask()).expect("sizes that fit");
    base_with(Stage { dir, tokenizer: tiny::tokenizer(), train, resume }, &recipe, told)
}

fn latest(dir: &Path) -> PathBuf {
    let (path, refused) = checkpoint::latest(dir).expect("a valid step");
    assert!(refused.is_empty(), "{refused:?}");
    path
}

/// Every file of a step; of its meta all but the seconds.
fn contents(step: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: &str| fs::read(step.join(name)).expect("a file of the step");
    let mut meta: Value = serde_json::from_slice(&read("meta.json")).expect("JSON");
    assert!(meta["trainer"]["train_s"].as_f64().expect("seconds") > 0.0);
    meta["trainer"]["train_s"] = Value::Null;
    let names = ["model.safetensors", "optimizer.safetensors", "loader.bin"];
    let mut all: Vec<_> = names.map(|n| (n.to_owned(), read(n))).into();
    all.push(("meta.json".into(), meta.to_string().into()));
    all
}

fn same_end(a: &(Outcome, Vec<u32>), b: &(Outcome, Vec<u32>)) {
    assert!(a.1 == b.1, "weights");
    let of = |o: &Outcome| {
        let p = &o.progress;
        let number = |x: Option<f64>| x.expect("measured").to_bits();
        let smooth = (p.smooth.ema.to_bits(), p.smooth.n);
        (p.step, smooth, number(p.val_bpb), number(p.min_val_bpb))
    };
    assert_eq!(of(&a.0), of(&b.0), "step, smoothed loss, bits per byte");
    for (a, b) in contents(&a.0.checkpoint).iter().zip(contents(&b.0.checkpoint)) {
        assert_eq!(a.0, b.0);
        assert!(a.1 == b.1, "{} differs", a.0);
    }
}

#[test]
fn a_base_run_resumes_bit_for_bit() {
    let (whole_dir, dir) = (dir(), dir());
    let mut told = Told::default();
    let whole = base(whole_dir.path(), &mut tiny::loader(0), None, &mut told).expect("12 steps");
    assert_eq!(whole.0.progress.step, 12);
    let losses = told.field("step", "loss");
    assert!(losses[11] < losses[0] - 0.5, "it learns: {losses:?}");
    // In its fourth micro batch after the save of step 5 the power fails.
    let mut train = Stops { inner: tiny::loader(0), left: 13 };
    let error = base(dir.path(), &mut train, None, &mut Told::default()).expect_err("no power");
    assert!(error.to_string().contains("the power failed"), "{error}");
    let step = latest(dir.path());
    assert_eq!(step, checkpoint::step_dir(dir.path(), 5));
    let mut again = Told::default();
    let resumed = base(dir.path(), &mut tiny::loader(0), Some(step), &mut again).expect("to 12");
    same_end(&whole, &resumed);
    let bits = |losses: &[f64]| losses.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&again.field("step", "loss")), bits(&losses[5..]));
    assert_eq!(again.field("step", "step"), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
    assert_eq!(again.field("eval", "step"), [8.0, 12.0]);
    let samples = |t: &Told| -> Vec<String> {
        t.lines.iter().filter(|l| l.starts_with("sample")).cloned().collect()
    };
    assert_eq!(samples(&told).len(), 2);
    assert_eq!(samples(&again), samples(&told), "of steps 6 and 12");
}

#[test]
fn a_run_may_stop_twice_and_work_ahead() {
    let (whole_dir, dir) = (dir(), dir());
    let whole = base(whole_dir.path(), &mut tiny::loader(0), None, &mut Told::default());
    let mut resume = None;
    // Five steps each time, with batches made ahead on a thread; then from step 10 to the end.
    for left in [11, 10] {
        let inner = Prefetch::new(tiny::loader(0), 4);
        let mut train = Stops { inner, left };
        base(dir.path(), &mut train, resume, &mut Told::default()).expect_err("no power");
        resume = Some(latest(dir.path()));
    }
    assert_eq!(resume, Some(checkpoint::step_dir(dir.path(), 10)));
    let mut train = Prefetch::new(tiny::loader(0), 4);
    let resumed = base(dir.path(), &mut train, resume, &mut Told::default()).expect("to 12");
    let whole = whole.expect("12 steps");
    assert!(whole.1 == resumed.1, "weights");
    assert_eq!(whole.0.progress.val_bpb, resumed.0.progress.val_bpb);
}

#[test]
fn a_finished_run_resumed_is_still_finished() {
    let dir = dir();
    let whole = base(dir.path(), &mut tiny::loader(0), None, &mut Told::default()).expect("runs");
    let step = latest(dir.path());
    let before = contents(&step);
    let mut told = Told::default();
    let again = base(dir.path(), &mut tiny::loader(0), Some(step.clone()), &mut told);
    same_end(&whole, &again.expect("nothing is left to do"));
    assert!(told.rows.is_empty(), "{:?}", told.rows);
    assert!(contents(&step) == before);
}

#[test]
fn a_changed_run_is_refused_by_name() {
    let dir = dir();
    base(dir.path(), &mut tiny::loader(0), None, &mut Told::default()).expect("12 steps");
    let step = latest(dir.path());
    let try_with = |ask: Ask, tokenizer: Tokenizer, train: &mut dyn Batches| {
        let recipe = Recipe::new(&ask).expect("sizes that fit");
        let stage = Stage { dir: dir.path(), tokenizer, train, resume: Some(step.clone()) };
        let error = base_with(stage, &recipe, &mut Told::default()).expect_err("another run");
        assert!(matches!(error, Error::Resume { .. }), "{error}");
        error.to_string()
    };
    let changed = |ask: Ask| try_with(ask, tiny::tokenizer(), &mut tiny::loader(0));
    let has = |message: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| message.contains(p)), "{message} lacks one of {parts:?}");
    };
    let longer = Ask { num_iterations: Some(13), ..ask() };
    has(changed(longer), &["schedule.num_iterations", "has 12", "this run 13"]);
    let rates = LearningRates { matrix: 0.02, ..ask().rates };
    has(changed(Ask { rates, ..ask() }), &["rates.matrix"]);
    has(changed(Ask { weight_decay: 0.1, ..ask() }), &["schedule.weight_decay"]);
    let other = Tokenizer::from_merges(nanochat_tokenizer::DEFAULT_PATTERN, vec![(97, 98)]);
    let other = other.expect("one merge");
    has(try_with(ask(), other, &mut tiny::loader(0)), &["the tokenizer"]);
    has(try_with(ask(), tiny::tokenizer(), &mut tiny::loader(1)), &["the data"]);
    // The same run by another writing of its numbers is the same run.
    let same = Recipe::new(&ask()).expect("sizes that fit");
    let text = serde_json::to_string(&same).expect("plain");
    assert_eq!(serde_json::from_str::<Recipe>(&text).expect("its own text"), same);
}

#[test]
fn moments_of_another_model_are_refused_by_name() {
    let be = cpu();
    let model = tiny::model(&be);
    let new = || Optimizer::new(&be, &model, LearningRates::default()).expect("a small state");
    let optim = new();
    for (n, t) in optim.named(&model).into_iter().enumerate() {
        be.fill(&t.data, n as f32 + 0.5).expect("f32");
    }
    let dir = dir();
    let file = dir.path().join("optimizer.safetensors");
    let restored = |tensors: &[Named]| {
        let mut out = fs::File::create(&file).expect("a writable folder");
        weights::write(&file, &mut out, tensors).expect("tensors that fit");
        let mut to = new();
        to.restore(&model, &Reader::open(&file).expect("its own file"), 9).map(|()| to)
    };
    let same = restored(&optim.named(&model)).expect("its own state");
    assert_eq!(same.t(), 9);
    let values = |o: &Optimizer| -> Vec<Vec<f32>> {
        o.named(&model).iter().map(|t| t.data.to_vec_f32().expect("f32")).collect()
    };
    assert!(values(&same) == values(&optim));
    let changed = |change: &dyn Fn(&mut Named)| {
        let mut all = optim.named(&model);
        let name = "second.transformer.h.1.attn.c_q.weight";
        change(all.iter_mut().find(|t| t.name == name).expect("layer 1 has a query matrix"));
        let message = restored(&all).map(|_| ()).expect_err("another state").to_string();
        assert!(message.contains(name) && message.contains("optimizer.safetensors"), "{message}");
        message
    };
    assert!(changed(&|t| t.name = "strange".into()).contains("missing"));
    let cut = |t: &mut Named| (t.data, t.shape) = (t.data.slice(0..31), vec![31]);
    assert!(changed(&cut).contains("31 values, should be 32"));
}

#[test]
fn a_recipe_of_any_numbers_can_be_resumed() {
    // Settings are compared after a detour over decimal numbers in meta.json.
    let mut draws = 1u64;
    let mut draw = || {
        draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (draws >> 11) as f64 / (1u64 << 53) as f64
    };
    for _ in 0..2000 {
        let rates = LearningRates {
            embedding: draw(),
            unembedding: draw() * 1e-3,
            matrix: draw() / 3.0,
            scalar: draw() * 1e7,
            smear: draw(),
        };
        let text = serde_json::to_string(&rates).expect("plain");
        let again: LearningRates = serde_json::from_str(&text).expect("its own text");
        assert_eq!(again, rates);
    }
}

#[test]
fn rates_of_runs_that_could_not_choose_the_smear_rate_are_upstreams() {
    let text = r#"{"embedding": 0.3, "unembedding": 0.008, "matrix": 0.02, "scalar": 0.5}"#;
    let rates: LearningRates = serde_json::from_str(text).expect("settings of a checkpoint");
    assert_eq!(rates, LearningRates::default());
    assert_eq!(rates.scaled(0.1).smear, rates.smear, "never scaled by the batch");
}

#[test]
fn a_checkpoint_of_a_chat_model_is_not_resumed_as_base() {
    let dir = dir();
    base(dir.path(), &mut tiny::loader(0), None, &mut Told::default()).expect("12 steps");
    let step = latest(dir.path());
    let mut packer = packer(0);
    let talk = talk(dir.path(), &mut packer, Some(12), Some(step), &mut Told::default());
    let message = talk.expect_err("another stage").to_string();
    assert!(message.contains("the stage") && message.contains("base"), "{message}");
}

#[test]
fn metrics_hold_each_step_once() {
    let dir = dir();
    let file = dir.path().join("metrics.jsonl");
    let told = |stage: &str, from: u64| {
        let metrics = Some(Metrics::open(&file, stage, from).expect("a writable folder"));
        Told { metrics, ..Told::default() }
    };
    // Rows of another stage stay whatever their step.
    told("sft", 1)
        .metrics
        .expect("open")
        .write(&serde_json::json!({"stage": "sft", "step": 99}))
        .expect("a row");
    let mut train = Stops { inner: tiny::loader(0), left: 19 };
    base(dir.path(), &mut train, None, &mut told("base", 1)).expect_err("no power");
    let steps = |kind: &str| -> Vec<u64> {
        let text = fs::read_to_string(&file).expect("metrics");
        let rows = text.lines().map(|l| serde_json::from_str::<Value>(l).expect("a whole row"));
        let base = rows.filter(|r| r["stage"] == "base" && r["kind"] == kind);
        base.map(|r| r["step"].as_u64().expect("a step")).collect()
    };
    assert_eq!(steps("step"), [1, 2, 3, 4, 5, 6, 7, 8, 9], "past the checkpoint of step 5");
    // The crash also cut the last row.
    let cut = fs::read_to_string(&file).expect("metrics") + "{\"kind\": \"step\", \"stage\": \"ba";
    fs::write(&file, cut).expect("a writable folder");
    let resume = latest(dir.path());
    let mut told = told("base", 6);
    base(dir.path(), &mut tiny::loader(0), Some(resume), &mut told).expect("to 12");
    assert_eq!(steps("step"), (1..=12).collect::<Vec<_>>());
    assert_eq!(steps("eval"), [0, 4, 8, 12]);
    assert!(fs::read_to_string(&file).expect("metrics").contains("\"sft\""));
}

/// Conversations of one rendered length or another.
fn conversations(seed: usize) -> Vec<Conversation> {
    let one = |i: usize| {
        let (a, b) = (i % 9, (i + seed) % 8);
        let text = format!(
            r#"{{"messages": [{{"role": "user", "content": "{a}+{b}"}},
                {{"role": "assistant", "content": "It is {}{}"}}]}}"#,
            a + b,
            "!".repeat(i % 5)
        );
        serde_json::from_str(&text).expect("a conversation")
    };
    (0..70).map(one).collect()
}

fn packer(seed: usize) -> Packer<Tokenizer> {
    let list = ConversationList::new("sums", conversations(seed));
    let mixture = Mixture::new(vec![(Box::new(list), 1)]).expect("70 conversations");
    let config = PackConfig { buffer: 20, ..PackConfig::new(2, 32) };
    Packer::new(mixture, tiny::tokenizer(), config).expect("sizes that fit")
}

fn talk(
    dir: &Path,
    train: &mut dyn Batches,
    num_iterations: Option<u64>,
    resume: Option<PathBuf>,
    told: &mut Told,
) -> Result<(Outcome, Vec<u32>)> {
    let be = cpu();
    let recipe = SftRecipe {
        max_seq_len: 32,
        device_batch_size: 2,
        accumulation: 2,
        num_iterations,
        rates: LearningRates::default().scaled(0.1),
        schedule: SftSchedule {
            init_lr_frac: 0.8,
            warmup_ratio: 0.0,
            warmdown_ratio: 0.5,
            final_lr_frac: 0.0,
        },
        eval_every: 4,
        eval_tokens: 128,
        save_every: 5,
        keep: 3,
    };
    let model = model(&be, &resume);
    let optim = Optimizer::new(&be, &model, recipe.rates).expect("a small state");
    let mut trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
    let tokenizer = tiny::tokenizer();
    let run = SftRun {
        recipe: &recipe,
        dir,
        tokenizer: Tokenizer::fingerprint(&tokenizer),
        token_bytes: &tokenizer.token_bytes(),
        train,
        val: &mut || Ok(Box::new(packer(3))),
        resume,
        survival: &Survival::default(),
    };
    let outcome = sft::run(run, &mut trainer, told)?;
    Ok((outcome, params(&model)))
}

#[test]
fn an_sft_run_resumes_bit_for_bit() {
    for num_iterations in [Some(12), None] {
        let (whole_dir, dir) = (dir(), dir());
        let mut told = Told::default();
        let whole = talk(whole_dir.path(), &mut packer(0), num_iterations, None, &mut told);
        let whole = whole.expect("a whole run");
        let last = whole.0.progress.step;
        assert!(last > 7, "{last} steps of {num_iterations:?}");
        let mut train = Stops { inner: packer(0), left: 13 };
        let stopped = talk(dir.path(), &mut train, num_iterations, None, &mut Told::default());
        assert!(stopped.expect_err("no power").to_string().contains("the power failed"));
        let step = latest(dir.path());
        assert_eq!(step, checkpoint::step_dir(dir.path(), 5));
        let mut again = Told::default();
        let resumed = talk(dir.path(), &mut packer(0), num_iterations, Some(step), &mut again);
        same_end(&whole, &resumed.expect("to the end"));
        assert_eq!(again.field("step", "loss"), told.field("step", "loss")[5..]);
        let rates = |t: &Told| t.field("step", "lr_multiplier");
        assert_eq!(rates(&again), rates(&told)[5..]);
    }
}

#[test]
fn a_finished_sft_run_resumed_is_still_finished() {
    for num_iterations in [Some(6), None] {
        let dir = dir();
        let whole = talk(dir.path(), &mut packer(0), num_iterations, None, &mut Told::default());
        let whole = whole.expect("a whole run");
        let step = latest(dir.path());
        let mut told = Told::default();
        let again = talk(dir.path(), &mut packer(0), num_iterations, Some(step), &mut told);
        same_end(&whole, &again.expect("nothing is left to do"));
        assert!(told.rows.is_empty(), "{num_iterations:?}: {} rows", told.rows.len());
    }
}
