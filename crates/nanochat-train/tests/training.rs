//! The train step: whole steps against PyTorch, a batch learnt by heart, and what stops a run.

mod tiny;

use nanochat_compute::Backend;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::cuda::Cuda;
use nanochat_compute::reference::Reference;
use nanochat_gpt::Nano;
use nanochat_gpt::import::import;
use nanochat_gpt::nano::table::Role;
use nanochat_gpt::weights::Named;
use nanochat_train::Error;
use nanochat_train::batch_size::{Job, Memory, choose, fitting, probe};
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::{BaseSchedule, Rates};
use nanochat_train::step::{Bytes, Trainer};
use safetensors::SafeTensors;
use serde_json::Value;
use tiny::{Given, batch, bits, fixture, floats, json, params};

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// The gen5 batch, a row a batch.
fn rows() -> Given {
    let bytes = std::fs::read(fixture("gen5/case.safetensors")).expect("the fixture");
    let case = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let row = |name: &str, r: usize| -> Vec<i32> {
        let words = case.tensor(name).expect(name).data().chunks_exact(4);
        let all: Vec<i32> =
            words.map(|b| i32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
        all[r * 160..(r + 1) * 160].into()
    };
    Given::new((0..2).map(|r| batch(1, row("ids", r), row("targets", r))).collect())
}

/// Eight steps of two micro batches; then the loss once more, without a step.
fn equals_pytorch(be: &dyn Backend) {
    let want = json("recipe/train.json");
    let flags = &want["flags"];
    let model = import(be, &fixture("gen5"), None).expect("gen5");
    let rates = LearningRates {
        embedding: number(&flags["embedding_lr"]),
        unembedding: number(&flags["unembedding_lr"]),
        matrix: number(&flags["matrix_lr"]),
        scalar: number(&flags["scalar_lr"]),
        ..LearningRates::default()
    };
    let rates = rates.scaled(number(&want["batch_lr_scale"]));
    let optim = Optimizer::new(be, &model, rates).expect("a small state");
    let mut trainer = Trainer::new(be, &model, optim, 1, 160).expect("a small arena");
    let schedule = BaseSchedule {
        num_iterations: 8,
        warmup_steps: 2,
        warmdown_ratio: 0.65,
        final_lr_frac: 0.05,
        weight_decay: number(&flags["weight_decay_scaled"]),
        momentum_steps: 400,
    };
    let (mut batches, losses) = (rows(), floats(&want["losses"]));
    for (step, &loss) in losses[..8].iter().enumerate() {
        let rates = schedule.at(step as u64);
        let given = |name: &str| number(&want["per_step"][name][step]);
        assert!((rates.lr_multiplier - given("lr_multiplier")).abs() < 1e-12);
        assert!((rates.muon_momentum - given("muon_momentum")).abs() < 1e-12);
        assert!((rates.muon_weight_decay - given("muon_weight_decay")).abs() < 1e-12);
        let report = trainer.step(step as u64, &mut batches, 2, &rates).expect("a step");
        // 1e-5: f32 itself strays by 8e-7, and by more in another order of sums.
        let off = (report.loss - loss).abs();
        assert!(off < 1e-5, "step {step} on {}: off by {off}", be.name());
        assert_eq!(report.tokens, 320);
    }
    assert_eq!((trainer.optim.t(), trainer.plans()), (8, 1));
    for row in model.table().rows() {
        let want = &want["after"][&row.name];
        let view = model.table().view(model.params(), row.role);
        let have: Vec<f64> = view.to_vec_f32().expect("f32").into_iter().map(f64::from).collect();
        let what = |part: &str| format!("{part} of {} on {}", row.name, be.name());
        // f32 strays by 2.3e-5 in a value at most (Adam divides small gradients by their own size).
        for (have, want) in have.iter().zip(floats(&want["first"])) {
            assert!((have - want).abs() < 2e-4, "{}: {have}, not {want}", what("a value"));
        }
        let l2 = have.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = (l2 / number(&want["l2"]) - 1.0).abs();
        assert!(off < 2e-5, "{}: off by {off} of itself", what("the norm"));
        // Strays of n values add up like a random walk.
        let off = (have.iter().sum::<f64>() - number(&want["sum"])).abs();
        assert!(off < 1e-4 * (have.len() as f64).sqrt(), "{}: off by {off}", what("the sum"));
    }
    let none = Rates { lr_multiplier: 0.0, muon_momentum: 0.9, muon_weight_decay: 0.0 };
    let report = trainer.step(8, &mut batches, 2, &none).expect("a step");
    let off = (report.loss - losses[8]).abs();
    assert!(off < 1e-5, "the last loss on {}: off by {off}", be.name());
}

#[test]
fn eight_steps_equal_pytorch_on_the_cpu() {
    equals_pytorch(&Cpu::open(2, Precision::F32));
}

#[test]
fn eight_steps_equal_pytorch_on_the_reference() {
    equals_pytorch(&Reference);
}

/// The CUDA kernels on the CPU; none, said in a line, where there is no C++ compiler.
fn emulated(precision: Precision) -> Option<Cuda> {
    match Cuda::emulated(env!("CARGO_TARGET_TMPDIR").as_ref(), precision) {
        Ok(cuda) => Some(cuda),
        Err(e) if e.to_string().contains("no C++ compiler") => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn eight_steps_equal_pytorch_on_the_emulated_gpu() {
    if let Some(cuda) = emulated(Precision::F32) {
        equals_pytorch(&cuda);
    }
}

#[test]
fn bf16_on_the_emulated_gpu_learns_as_f32_does() {
    let Some(cuda) = emulated(Precision::Bf16) else { return };
    let cpu = Cpu::open(2, Precision::F32);
    let losses = |be: &dyn Backend| {
        let model = import(be, &fixture("gen5"), None).expect("gen5");
        let rates = LearningRates::default().scaled(0.1);
        let optim = Optimizer::new(be, &model, rates).expect("a small state");
        let mut trainer = Trainer::new(be, &model, optim, 1, 160).expect("a small arena");
        let mut batches = rows();
        let mut step = |i| trainer.step(i, &mut batches, 2, &steady()).expect("a step").loss;
        (0..6).map(&mut step).collect::<Vec<_>>()
    };
    for (i, (have, want)) in losses(&cuda).iter().zip(losses(&cpu)).enumerate() {
        let off = (have / want - 1.0).abs();
        assert!(off < 1e-2, "step {i}: the loss is {off} of itself off");
    }
}

#[test]
fn a_batch_is_chosen_for_the_emulated_gpu() {
    let Some(cuda) = emulated(Precision::Bf16) else { return };
    let config = import(&cuda, &fixture("gen5"), None).expect("gen5").config().clone();
    let job = Job { config: &config, t: 64, rows: 4 };
    let memory = Memory { held: 0, free: 4 << 30, margin: 1.0 };
    let fit = fitting(&cuda, &job, &memory).expect("gigabytes for a small model");
    let timings = probe(&cuda, &job, &fit, memory.budget()).expect("a small model");
    let step = timings.step_s(job.t, job.rows, config.n_layer);
    assert!(!step.is_empty() && step.iter().all(|(_, s)| s.is_finite() && *s > 0.0), "{step:?}");
    let b = choose(&job, &memory, &fit, &timings, (false, 0.0)).batch_size;
    assert!(job.rows.is_multiple_of(b), "{b} does not divide {}", job.rows);
}

fn steady() -> Rates {
    Rates { lr_multiplier: 1.0, muon_momentum: 0.9, muon_weight_decay: 0.0 }
}

/// Two rows of 32 that no rule explains; every eighth target is not trained.
fn noise(seed: u32) -> Given {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as i32 % 265
    };
    let x: Vec<i32> = (0..64).map(|_| draw()).collect();
    let mut y: Vec<i32> = (0..64).map(|_| draw()).collect();
    y.iter_mut().step_by(8).for_each(|y| *y = -1);
    Given::new(vec![batch(2, x, y)])
}

fn trainer<'a>(be: &'a dyn Backend, model: &'a Nano) -> Trainer<'a> {
    let rates = LearningRates::default().scaled(0.3);
    let optim = Optimizer::new(be, model, rates).expect("a small state");
    Trainer::new(be, model, optim, 2, 32).expect("a small arena")
}

#[test]
fn a_model_learns_one_batch_by_heart() {
    let be = Cpu::open(2, Precision::F32);
    let model = tiny::model(&be);
    let (mut trainer, mut batches) = (trainer(&be, &model), noise(1));
    let mut losses = Vec::new();
    for step in 0..100 {
        losses.push(trainer.step(step, &mut batches, 1, &steady()).expect("a step").loss);
    }
    // Before the first step nothing is known: ln 265 = 5.58.
    assert!((losses[0] - 265f64.ln()).abs() < 0.05, "{}", losses[0]);
    assert!(losses[99] < 0.1, "{:?}", &losses[90..]);
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    // The same two rows at once, and one by one; each row has as many trained targets.
    let be = Cpu::open(2, Precision::F32);
    let whole = noise(2).list.remove(0);
    let half = |r: usize| {
        batch(1, whole.x[r * 32..(r + 1) * 32].into(), whole.y[r * 32..(r + 1) * 32].into())
    };
    let run = |mut batches: Given, accumulation: usize| {
        let model = tiny::model(&be);
        let mut trainer = trainer(&be, &model);
        let report = trainer.step(0, &mut batches, accumulation, &steady()).expect("a step");
        assert_eq!((report.tokens, report.trained_tokens, batches.at), (64, 56, accumulation));
        (report.loss, model.params().to_vec_f32().expect("f32"))
    };
    let (one, two) =
        (run(Given::new(vec![whole.clone()]), 1), run(Given::new(vec![half(0), half(1)]), 2));
    assert!((one.0 - two.0).abs() < 1e-5, "{} and {}", one.0, two.0);
    let far = one.1.iter().zip(&two.1).filter(|(a, b)| (*a - *b).abs() > 1e-3).count();
    // A first step of Adam has the size of its rate whatever the gradient: a few tiny ones flip.
    assert!(far * 1000 < one.1.len(), "{far} of {} parameters differ", one.1.len());
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_optimizer() {
    let be = Cpu::open(2, Precision::F32);
    let roles = [Role::Wte, Role::LmHead, Role::Q(1), Role::MlpProj(0), Role::ResidLambdas];
    for (role, poison) in roles.into_iter().zip([f32::INFINITY, f32::NAN].into_iter().cycle()) {
        let model = tiny::model(&be);
        let (mut trainer, mut batches) = (trainer(&be, &model), noise(3));
        trainer.step(0, &mut batches, 1, &steady()).expect("a step");
        let view = model.table().view(model.params(), role);
        let mut values = view.to_vec_f32().expect("f32");
        values.fill(poison);
        view.write_f32(&values).expect("as many");
        let before = params(&model);
        let state = |t: &Trainer<'_>| -> Vec<Vec<u32>> {
            let values = |t: Named| bits(&t.data.to_vec_f32().expect("f32"));
            t.optim.named(&model).into_iter().map(values).collect()
        };
        let moments = state(&trainer);
        let error = trainer.step(17, &mut batches, 3, &steady()).expect_err("no finite loss");
        assert!(matches!(error, Error::NotFinite { step: 17, micro_step: 0, .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("step 17") && message.contains("given rows"), "{message}");
        assert!(params(&model) == before, "{role:?}: the weights were touched");
        assert!((trainer.optim.t(), state(&trainer)) == (1, moments), "{role:?}");
    }
}

#[test]
fn a_run_goes_on_after_a_loss_that_was_not_finite() {
    // The gradients of the refused step must not reach the next one.
    let be = Cpu::open(2, Precision::F32);
    let run = |poisoned: bool| {
        let model = tiny::model(&be);
        let (mut trainer, mut batches) = (trainer(&be, &model), noise(4));
        if poisoned {
            let good = model.params().to_vec_f32().expect("f32");
            be.fill(model.params(), f32::NAN).expect("f32");
            trainer.step(0, &mut batches, 2, &steady()).expect_err("no finite loss");
            model.params().write_f32(&good).expect("as many");
        }
        for step in 0..3 {
            trainer.step(step, &mut batches, 1, &steady()).expect("a step");
        }
        params(&model)
    };
    assert!(run(true) == run(false));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = |threads: usize| {
        let be = Cpu::open(threads, Precision::F32);
        let model = import(&be, &fixture("gen5"), None).expect("gen5");
        let optim = Optimizer::new(&be, &model, LearningRates::default()).expect("a small state");
        let mut trainer = Trainer::new(&be, &model, optim, 1, 160).expect("a small arena");
        let mut batches = rows();
        let losses: Vec<u64> = (0..5)
            .map(|n| trainer.step(n, &mut batches, 2, &steady()).expect("a step").loss.to_bits())
            .collect();
        (losses, params(&model), bits(&trainer.grads().to_vec_f32().expect("f32")))
    };
    let one = run(1);
    assert!(run(2) == one);
    assert!(run(3) == one);
}

#[test]
fn a_trainer_holds_the_bytes_it_says() {
    let model = tiny::model(&Reference);
    let optim = Optimizer::new(&Reference, &model, LearningRates::default()).expect("a state");
    let trainer = Trainer::new(&Reference, &model, optim, 2, 32).expect("a small arena");
    let moments: usize = trainer.optim.named(&model).iter().map(|t| t.data.bytes()).sum();
    // Parameters and gradients are padded between rows, as are the first moments.
    let rows: usize = model.table().rows().iter().map(|r| 4 * r.len()).sum();
    let gaps = 4 * model.table().len() - rows;
    assert!((moments + 2 * rows..=moments + 2 * rows + 3 * gaps).contains(&trainer.bytes().state));
    assert_eq!(trainer.bytes(), Bytes::of(&Reference, model.config(), 2, 32));
}

#[test]
fn batches_of_other_shapes_are_planned_anew() {
    let be = Cpu::open(2, Precision::F32);
    let model = tiny::model(&be);
    let mut trainer = trainer(&be, &model);
    let ids = |n: usize| -> Vec<i32> { (0..n).map(|i| i as i32 * 7 % 265).collect() };
    let shapes = [(2, 32), (2, 9), (2, 9), (5, 40), (1, 1), (2, 32)];
    let list = shapes.iter().map(|&(b, t)| batch(b, ids(b * t), ids(b * t))).collect();
    let mut batches = Given::new(list);
    for (step, (b, t)) in shapes.into_iter().enumerate() {
        let report = trainer.step(step as u64, &mut batches, 1, &steady()).expect("a step");
        assert_eq!(report.tokens, b * t);
        assert!(report.loss.is_finite());
    }
    assert_eq!(trainer.plans(), 5);
}
