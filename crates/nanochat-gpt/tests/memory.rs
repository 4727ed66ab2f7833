//! The arena of a step: its size is known before, and nothing in it is read before it is written.

mod tiny;

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, DType};
use nanochat_gpt::nano::buffers::{MLP_ROWS, Mode, StepPlan};
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use tiny::{Draws, GENERATIONS, bits};

/// Losses and gradients of one micro batch in an arena full of `dirt`; twice, for the second step
/// finds what the first one left, its rows among it.
fn step(
    be: &dyn Backend,
    model: &Nano,
    (b, t): (usize, usize),
    mode: Mode,
    dirt: f32,
) -> [Vec<u32>; 4] {
    let plan = StepPlan::new(model.config(), b, t, mode);
    let arena = plan.layout().allocate(be).expect("a small arena");
    arena.write_f32(&vec![dirt; arena.len()]).expect("as many");
    let bufs = plan.views(&arena);
    let mut draws = Draws(b as u64);
    let ids: Vec<i32> = draws.ids(b * t, 90).iter().map(|&id| id as i32).collect();
    let mut targets: Vec<i32> = draws.ids(b * t, 90).iter().map(|&id| id as i32).collect();
    targets.iter_mut().step_by(5).for_each(|y| *y = -1);
    bufs.tokens.write_i32(&ids).expect("B T ids");
    bufs.targets.write_i32(&targets).expect("B T targets");
    let run = || {
        let grads = be.alloc(model.table().len(), DType::F32).expect("gradients");
        let losses = model.forward_backward(be, &bufs, &grads, 0.01).expect("backward");
        let grads = grads.to_vec_f32().expect("f32");
        assert!(losses.iter().chain(&grads).all(|x| x.is_finite()), "dirt {dirt} came through");
        (bits(&losses), bits(&grads))
    };
    let (first, second) = (run(), run());
    [first.0, first.1, second.0, second.1]
}

#[test]
fn the_plan_allocates_what_it_says() {
    for generation in GENERATIONS {
        for mode in [Mode::Train, Mode::TrainLean, Mode::Eval] {
            for (b, t) in [(1, 1), (3, 37), (2, 256)] {
                let plan = StepPlan::new(&tiny::config(generation), b, t, mode);
                let arena = plan.layout().allocate(&Reference).expect("a small arena");
                assert_eq!(plan.bytes(), arena.bytes(), "{generation:?} {mode:?} {b} {t}");
            }
        }
    }
}

#[test]
fn an_evaluation_fits_where_training_fits() {
    // A trainer validates in its own arena.
    for generation in GENERATIONS {
        for depth in 1..7 {
            let raw: RawConfig = tiny::config(generation).into();
            let config = GptConfig::new(RawConfig { n_layer: depth, ..raw }).expect("sizes");
            for (b, t) in [(1, 1), (3, 37)] {
                let bytes = |mode| StepPlan::new(&config, b, t, mode).bytes();
                assert!(bytes(Mode::Eval) <= bytes(Mode::TrainLean), "{generation:?} {depth}");
                assert!(bytes(Mode::TrainLean) <= bytes(Mode::Train), "{generation:?} {depth}");
            }
        }
    }
}

#[test]
fn nothing_is_read_before_it_is_written() {
    let cpu = Cpu::open(2, Precision::F32);
    let backends: [&dyn Backend; 2] = [&Reference, &cpu];
    for be in backends {
        for generation in GENERATIONS {
            // The reference is slow: one shape for it.
            let shapes = [(3, 37), (1, 1), (1, 131)];
            let n = if be.name().starts_with("cpu") { 3 } else { 1 };
            for (b, t) in shapes.into_iter().take(n) {
                let model = tiny::model(be, tiny::config(generation), 5);
                let clean = step(be, &model, (b, t), Mode::Train, 0.0);
                for dirt in [f32::NAN, 1e30] {
                    let name = be.name();
                    for mode in [Mode::Train, Mode::TrainLean] {
                        let dirty = step(be, &model, (b, t), mode, dirt);
                        assert!(dirty == clean, "{generation:?} {mode:?} on {name}");
                    }
                }
                assert!(clean[0] == clean[2], "the second step has the losses of the first");
                assert!(clean[1] == clean[3], "the second step has the gradients of the first");
            }
        }
    }
}

#[test]
fn hidden_rows_made_again_in_parts_give_the_gradients_of_those_that_are_kept() {
    let (be, generation) = (Cpu::open(2, Precision::F32), GENERATIONS[GENERATIONS.len() - 1]);
    let model = tiny::model(&be, tiny::config(generation), 7);
    // Two parts, the second one short: sums of a weight's gradient are cut elsewhere.
    let (b, t) = (35, 128);
    assert!(b * t > MLP_ROWS && b * t < 2 * MLP_ROWS);
    let [kept, lean] =
        [Mode::Train, Mode::TrainLean].map(|mode| step(&be, &model, (b, t), mode, 0.0));
    assert!(kept[0] == lean[0], "losses have the same bits");
    let floats = |bits: &[u32]| bits.iter().map(|&b| f32::from_bits(b)).collect::<Vec<_>>();
    let (kept, lean) = (floats(&kept[1]), floats(&lean[1]));
    let largest = kept.iter().fold(0f32, |m, x| m.max(x.abs()));
    let apart = kept.iter().zip(&lean).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    // Sums of 4,480 products, whose roundings walk: sqrt(4480) 2^-24 of the largest, and some.
    assert!(apart <= 1e-5 * largest, "{apart:e} of {largest:e}");
    assert!(largest > 0.0);
}

#[test]
fn an_evaluation_has_the_losses_of_training() {
    let be = Cpu::open(2, Precision::F32);
    for generation in GENERATIONS {
        let model = tiny::model(&be, tiny::config(generation), 6);
        let losses = |mode: Mode, dirt: f32| {
            let plan = StepPlan::new(model.config(), 3, 41, mode);
            let arena = plan.layout().allocate(&be).expect("a small arena");
            arena.write_f32(&vec![dirt; arena.len()]).expect("as many");
            let bufs = plan.views(&arena);
            let ids: Vec<i32> = (0..3 * 41).map(|i| i * 7 % 90).collect();
            bufs.tokens.write_i32(&ids).expect("B T ids");
            bufs.targets.write_i32(&ids).expect("B T targets");
            bits(&model.losses(&be, &bufs).expect("forward"))
        };
        assert_eq!(losses(Mode::Eval, f32::NAN), losses(Mode::Train, 0.0), "{generation:?}");
    }
}
