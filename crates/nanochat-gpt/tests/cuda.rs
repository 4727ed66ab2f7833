//! Whole models on the CUDA kernels, emulated on the CPU: losses, gradients and decoding are those of
//! the plain reference.

mod tiny;

use nanochat_compute::cpu::Precision;
use nanochat_compute::cuda::{self, Cuda};
use nanochat_compute::ops::WeightFormat;
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, DType};
use nanochat_gpt::batch::{BatchDecoder, Feed, Room, Wanted};
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::batch::{BatchRoom, NanoBatch};
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig};
use tiny::{Draws, GENERATIONS};

/// The emulated device, and the GPU where there is one; said in a line, without a C++ compiler. With
/// NANOCHAT_EMULATED=0 the GPU alone.
fn devices(precision: Precision) -> Vec<Cuda> {
    let mut all = Vec::new();
    if std::env::var("NANOCHAT_EMULATED").is_ok_and(|wanted| wanted == "0") {
        println!("skipped: the emulated device (NANOCHAT_EMULATED=0)");
    } else {
        match Cuda::emulated(env!("CARGO_TARGET_TMPDIR").as_ref(), precision) {
            Ok(cuda) => all.push(cuda),
            Err(e) if e.to_string().contains("no C++ compiler") => println!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        }
    }
    if cuda::gpus().is_ok_and(|gpus| !gpus.is_empty()) {
        all.push(Cuda::open(0, precision).expect("the GPU that is there"));
    }
    all
}

/// Losses and gradients of one micro batch.
fn step(be: &dyn Backend, model: &Nano, (b, t): (usize, usize)) -> (Vec<f32>, Vec<f32>) {
    let plan = StepPlan::on(be, model.config(), b, t, Mode::Train);
    let bufs = plan.views(&plan.layout().allocate(be).expect("a small arena"));
    let ids: Vec<i32> = Draws(3).ids(b * t + 1, 90).iter().map(|&id| id as i32).collect();
    let mut targets = ids[1..].to_vec();
    targets[2] = -1;
    bufs.tokens.write_i32(&ids[..b * t]).expect("B T ids");
    bufs.targets.write_i32(&targets).expect("B T targets");
    let grads = be.alloc(model.table().len(), DType::F32).expect("small");
    let losses = model.forward_backward(be, &bufs, &grads, 0.01).expect("a step");
    (losses, grads.to_vec_f32().expect("f32"))
}

/// |a - b| / |b|
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let all: f64 = b.iter().map(|b| square(*b)).sum();
    if off.is_nan() { f64::INFINITY } else { (off / all.max(1e-30)).sqrt() }
}

#[test]
fn a_step_is_the_reference_s() {
    for (precision, limit) in [(Precision::F32, 2e-5), (Precision::Bf16, 4e-2)] {
        for cuda in devices(precision) {
            for generation in GENERATIONS {
                let config = tiny::config(generation);
                let there = tiny::model(&cuda, config.clone(), 7);
                let here = tiny::model(&Reference, config, 7);
                let (losses, grads) = step(&cuda, &there, (2, 70));
                let (want, want_grads) = step(&Reference, &here, (2, 70));
                let what = format!("{generation:?} on {}", cuda.name());
                let off = apart(&losses, &want);
                assert!(off < limit, "{what}: losses are {off} off");
                for row in there.table().rows() {
                    let at = row.offset..row.offset + row.len();
                    let off = apart(&grads[at.clone()], &want_grads[at]);
                    // A scalar's gradient is a difference of large sums.
                    let limit = if row.len() < 8 { 8.0 * limit } else { limit };
                    assert!(off < limit, "{what}: the gradient of {} is {off} off", row.name);
                }
            }
        }
    }
}

/// Two layers with heads of 64 channels: attention on tensor cores.
fn wide() -> GptConfig {
    let raw = RawConfig {
        sequence_len: 128,
        vocab_size: 90,
        n_layer: 2,
        n_head: 2,
        n_kv_head: 1,
        n_embd: 128,
        window_pattern: "SL".into(),
        generation: Generation::G5,
        ..RawConfig::default()
    };
    GptConfig::new(raw).expect("sizes that fit")
}

#[test]
fn a_step_on_tensor_cores_is_near_the_reference_s() {
    for cuda in devices(Precision::Bf16) {
        let there = tiny::model(&cuda, wide(), 7);
        let here = tiny::model(&Reference, wide(), 7);
        let (losses, grads) = step(&cuda, &there, (1, 100));
        let (want, want_grads) = step(&Reference, &here, (1, 100));
        assert!(apart(&losses, &want) < 0.03, "losses are {} off", apart(&losses, &want));
        let off = apart(&grads, &want_grads);
        assert!(off < 0.06, "gradients are {off} off");
        let again = step(&cuda, &there, (1, 100));
        assert!(again == (losses, grads), "the same step gives other bits");
    }
}

#[test]
fn decoding_is_the_reference_s() {
    for (precision, limit) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.05)] {
        for cuda in devices(precision) {
            for config in GENERATIONS.map(tiny::config).into_iter().chain([wide()]) {
                let there = tiny::model(&cuda, config.clone(), 7);
                let here = tiny::model(&Reference, config, 7);
                let mut there = NanoDecoder::new(&cuda, &there, 256).expect("a small cache");
                let mut here = NanoDecoder::new(&Reference, &here, 256).expect("a small cache");
                let ids = Draws(5).ids(80, 90);
                let both = |there: Vec<f32>, here: Vec<f32>| {
                    let off = apart(&there, &here);
                    assert!(off < limit, "{}: logits are {off} off", cuda.name());
                };
                both(there.prefill(&ids).expect("room"), here.prefill(&ids).expect("room"));
                there.fork(3).expect("one row");
                here.fork(3).expect("one row");
                for i in 0..4 {
                    let column = [i, 10 + i, 20 + i];
                    let logits = there.decode(&column).expect("room");
                    both(logits, here.decode(&column).expect("room"));
                }
            }
        }
    }
}

#[test]
fn a_replayed_step_is_the_reference_s_in_every_conversation() {
    for cuda in devices(Precision::F32) {
        let config = tiny::config(Generation::G5);
        let there = tiny::model(&cuda, config.clone(), 7);
        let here = tiny::model(&Reference, config, 7);
        let mut there = NanoDecoder::new(&cuda, &there, 256).expect("a small cache");
        let mut here = NanoDecoder::new(&Reference, &here, 256).expect("a small cache");
        // Each prompt plans anew, so that buffers lie elsewhere; one row, three, one again.
        for (round, (prompt, rows)) in [(5, 1), (70, 3), (3, 1), (5, 1)].into_iter().enumerate() {
            there.reset();
            here.reset();
            let ids = Draws(round as u64).ids(prompt, 90);
            let off =
                apart(&there.prefill(&ids).expect("room"), &here.prefill(&ids).expect("room"));
            assert!(off < 1e-4, "round {round}: the prompt's logits are {off} off");
            there.fork(rows).expect("one row");
            here.fork(rows).expect("one row");
            for step in 0..6 {
                let column = Draws(100 + step).ids(rows, 90);
                let (got, want) = (there.decode(&column), here.decode(&column));
                let off = apart(&got.expect("room"), &want.expect("room"));
                assert!(off < 1e-4, "round {round}, step {step}: logits are {off} off");
            }
            let column = Draws(9).ids(rows, 90);
            let got = there.decode_likeliest(&column).expect("room");
            let want = here.decode_likeliest(&column).expect("room");
            assert_eq!(got, want, "round {round}");
            let ahead = there.decode_likeliest_ahead(&got, 5).expect("room");
            assert_eq!(
                ahead,
                here.decode_likeliest_ahead(&want, 5).expect("room"),
                "round {round}"
            );
            assert_eq!(there.len(), here.len(), "round {round}");
        }
    }
}

/// Steps of one row as one launch: heads of 64 channels in groups, and of 128 alone; layers of every kind.
fn with_programs() -> [GptConfig; 3] {
    [(2, 1, 128, Generation::G5), (2, 2, 256, Generation::G5), (2, 1, 128, Generation::G1)].map(
        |(n_head, n_kv_head, n_embd, generation)| {
            let raw = RawConfig {
                sequence_len: 512,
                vocab_size: 90,
                n_layer: 4,
                n_head,
                n_kv_head,
                n_embd,
                window_pattern: "SL".into(),
                generation,
                ..RawConfig::default()
            };
            GptConfig::new(raw).expect("sizes that fit")
        },
    )
}

#[test]
fn one_row_s_steps_in_one_launch_are_those_of_two_rows_in_kernels() {
    for cuda in devices(Precision::Bf16) {
        for config in with_programs() {
            let model = tiny::model(&cuda, config, 7);
            let mut one = NanoDecoder::new(&cuda, &model, 700).expect("a small cache");
            let mut two = NanoDecoder::new(&cuda, &model, 700).expect("a small cache");
            // One page, some in one window and in splits, and a border of pages.
            for (prompt, steps) in [(5, 3), (300, 1), (125, 2)] {
                one.reset();
                two.reset();
                let ids = Draws(prompt as u64).ids(prompt, 90);
                assert_eq!(one.prefill(&ids).expect("room"), two.prefill(&ids).expect("room"));
                two.fork(2).expect("one row");
                let mut id = 3;
                for step in 0..steps {
                    let got = one.decode(&[id]).expect("room");
                    let want = two.decode(&[id, id]).expect("room");
                    // Sums in another order, and a key that is rounded the other way.
                    let off = apart(&got, &want[..90]);
                    assert!(off < 2e-3, "{prompt} and {step}: logits are {off} off");
                    id = (id + 17) % 90;
                }
                // Found and fed by the device, alone and many at once.
                let first = one.decode_likeliest(&[id]).expect("room");
                let rest = one.decode_likeliest_ahead(&first, 4).expect("room");
                let mut column = two.decode_likeliest(&[id, id]).expect("room");
                assert_eq!(first[0], column[0], "after {prompt}");
                for (i, got) in rest.iter().enumerate() {
                    let logits = two.decode(&column).expect("room");
                    let at = |id: u32| logits[id as usize];
                    let best = logits[..90].iter().fold(f32::MIN, |m, x| m.max(*x));
                    assert!(best - at(*got) < 1e-2, "step {i} after {prompt} found another id");
                    column = vec![*got; 2];
                }
                assert_eq!(one.len(), two.len(), "after {prompt}");
            }
            if cuda.has_programs() {
                assert!(cuda.programs() > 0, "steps were not put together");
            }
        }
    }
}

/// Ids of five sequences, of which two begin alike.
fn five() -> Vec<Vec<u32>> {
    let shared = Draws(6).ids(70, 90);
    let row =
        |(r, n): (usize, usize)| [&shared[..(r % 2) * 70], &Draws(r as u64).ids(n, 90)].concat();
    [5, 40, 90, 1, 100].into_iter().enumerate().map(row).collect()
}

#[test]
fn many_sequences_in_a_step_are_those_of_the_reference() {
    for (precision, limit, config) in [
        (Precision::F32, 1e-4, tiny::config(Generation::G5)),
        (Precision::Bf16, 0.05, tiny::config(Generation::G1)),
        (Precision::Bf16, 0.05, wide()),
    ] {
        for cuda in devices(precision) {
            let there = tiny::model(&cuda, config.clone(), 7);
            let here = tiny::model(&Reference, config.clone(), 7);
            let room = BatchRoom::of_rows(&Reference, &config, 6, 200);
            let on = |be, model| NanoBatch::new(be, model, WeightFormat::Auto, room);
            let mut there = on(&cuda, &there).expect("a small cache");
            let mut here = on(&Reference, &here).expect("a small cache");
            let ids = five();
            let open = |batch: &mut NanoBatch<'_>, ids: &Vec<u32>| {
                let room = Room { rows: 1, len: ids.len() + 12, reuse: true };
                batch.open(ids, room).expect("fits").expect("room").sequence
            };
            let names: Vec<_> =
                ids.iter().map(|ids| (open(&mut there, ids), open(&mut here, ids))).collect();
            // Prompts in chunks beside single ids; then five rows, filled up to eight, and three.
            let mut steps: Vec<Vec<(usize, Vec<u32>)>> = vec![
                vec![(1, ids[1].clone()), (0, ids[0].clone())],
                vec![(3, ids[3][..64].to_vec()), (2, ids[2].clone()), (1, vec![7])],
                vec![(0, vec![8]), (3, ids[3][64..].to_vec()), (4, ids[4].clone())],
            ];
            for i in 0..3 {
                steps.push((0..5).map(|r| (r, vec![(10 * r + i) as u32])).collect());
                steps.push((1..4).map(|r| (r, vec![(9 * r + i) as u32])).collect());
            }
            for (i, step) in steps.iter().enumerate() {
                let feeds = |is_there: bool| -> Vec<Feed<'_>> {
                    let name = |r: usize| if is_there { names[r].0 } else { names[r].1 };
                    let feed = |(r, ids)| Feed { sequence: name(r), ids, wanted: Wanted::Last };
                    step.iter().map(|(r, ids)| feed((*r, ids))).collect()
                };
                let got = there.step(&feeds(true)).expect("a step");
                let off = apart(&got, &here.step(&feeds(false)).expect("a step"));
                assert!(off < limit, "{}: step {i} is {off} off", cuda.name());
            }
            names.into_iter().for_each(|(sequence, _)| there.close(sequence));
            assert_eq!(there.pages().used, 0);
        }
    }
}

#[test]
fn a_prompt_in_pieces_after_a_conversation_is_the_reference_s() {
    for cuda in devices(Precision::F32) {
        let config = tiny::config(Generation::G5);
        let there = tiny::model(&cuda, config.clone(), 7);
        let here = tiny::model(&Reference, config, 7);
        let mut there = NanoDecoder::new(&cuda, &there, 320).expect("a small cache");
        let mut here = NanoDecoder::new(&Reference, &here, 320).expect("a small cache");
        // A piece is 256 tokens; the second prompt meets the buffers of the first one's steps.
        for (round, prompt) in [3, 300].into_iter().enumerate() {
            there.reset();
            here.reset();
            let ids = Draws(round as u64).ids(prompt, 90);
            let off =
                apart(&there.prefill(&ids).expect("room"), &here.prefill(&ids).expect("room"));
            assert!(off < 1e-4, "{prompt} tokens: the prompt's logits are {off} off");
            for step in 0..3 {
                let column = Draws(100 + step).ids(1, 90);
                let (got, want) = (there.decode(&column), here.decode(&column));
                let off = apart(&got.expect("room"), &want.expect("room"));
                assert!(off < 1e-4, "{prompt} tokens, step {step}: logits are {off} off");
            }
        }
    }
}
