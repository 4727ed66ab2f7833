//! Weights in bf16 and int8: with and without a cache, one row or many, and what they cost.

mod tiny;

use nanochat_compute::Backend;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::ops::WeightFormat;
use nanochat_compute::reference::Reference;
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::nano::packed::PackedWeights;
use nanochat_gpt::nano::recompute::Recompute;
use nanochat_gpt::{Generation, Nano};
use tiny::{Draws, GENERATIONS, bits};

const FORMATS: [WeightFormat; 4] =
    [WeightFormat::Auto, WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8];

/// Every family, multiplying f32 and bf16.
fn every_cpu() -> Vec<Cpu> {
    let rounding = |cpu: Cpu| Cpu::with(cpu.kernels(), 2, Precision::Bf16);
    Cpu::every_f32(2).into_iter().chain(Cpu::every_f32(2).into_iter().map(rounding)).collect()
}

fn argmax(x: &[f32]) -> u32 {
    (1..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best }) as u32
}

/// Likeliest ids of three rows, and the logits of the prompt.
fn greedy(decoder: &mut dyn Decoder, prompt: &[u32]) -> (Vec<Vec<u32>>, Vec<f32>) {
    let v = decoder.vocab_size();
    let logits = decoder.prefill(prompt).expect("prefill");
    decoder.fork(3).expect("one row");
    let mut columns = vec![vec![7, 14, 21]];
    while columns.len() < 6 {
        let logits = decoder.decode(&columns[columns.len() - 1]).expect("decode");
        columns.push(logits.chunks(v).map(argmax).collect());
    }
    (columns, logits)
}

#[test]
fn greedy_ids_are_the_same_without_a_cache_in_every_format() {
    for cpu in every_cpu() {
        let model = tiny::model(&cpu, tiny::config(Generation::G5), 31);
        let prompt = Draws(60).ids(70, 90);
        for format in FORMATS {
            let mut cached = NanoDecoder::with_weights(&cpu, &model, 100, format).expect("small");
            let mut naive = Recompute::with_weights(&cpu, &model, 100, format).expect("small");
            let (got, want) = (greedy(&mut cached, &prompt), greedy(&mut naive, &prompt));
            assert_eq!(got.0, want.0, "{format:?} {}", cpu.name());
        }
    }
}

/// Losses of a row of ids by weights in a format.
fn losses(be: &dyn Backend, model: &Nano, ids: &[u32], format: WeightFormat) -> Vec<f32> {
    let plan = StepPlan::new(model.config(), 1, ids.len(), Mode::Eval);
    let arena = plan.layout().allocate(be).expect("a small arena");
    let bufs = plan.views(&arena);
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    bufs.tokens.write_i32(&ids).expect("T ids");
    bufs.targets.write_i32(&ids).expect("T targets");
    let weights = PackedWeights::new(be, model, format).expect("weights");
    let losses = model.losses_with(be, &bufs, &weights).expect("forward");
    let logits = model.logits_with(be, &bufs, 1..2, &weights).expect("logits");
    let sum: f32 = logits.iter().map(|x| x.exp()).sum();
    let again = sum.ln() - logits[ids[1] as usize];
    // An f32 sum of 90 terms.
    assert!((again - losses[1]).abs() < 1e-5, "{again} is the loss of the logits, {}", losses[1]);
    assert!(format != WeightFormat::F32 || losses == model.losses(be, &bufs).expect("forward"));
    losses
}

#[test]
fn losses_in_few_bits_are_near_those_in_f32() {
    // More targets than the head holds logits of at once.
    let ids = Draws(61).ids(300, 90);
    for generation in GENERATIONS {
        let cpu = Cpu::open(2, Precision::F32);
        let model = tiny::model(&cpu, tiny::config(generation), 32);
        let by = |format| losses(&cpu, &model, &ids, format);
        let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
        let exact = by(WeightFormat::F32);
        // Random weights: 8 bits of mantissa, and 127 steps of the largest of a row of 48.
        for (format, limit) in [(WeightFormat::Bf16, 0.01), (WeightFormat::Int8, 0.05)] {
            let rounded = by(format);
            assert_ne!(bits(&rounded), bits(&exact), "{generation:?} {format:?}");
            let off = mean(&rounded) - mean(&exact);
            assert!(off.abs() < limit, "{generation:?} {format:?}: {off} nats");
        }
    }
}

#[test]
fn every_backend_has_the_losses_of_the_reference_in_few_bits() {
    let ids = Draws(62).ids(40, 90);
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 33);
    for format in [WeightFormat::Bf16, WeightFormat::Int8] {
        let want = losses(&Reference, &model, &ids, format);
        for cpu in Cpu::every_f32(2) {
            let got = losses(&cpu, &model, &ids, format);
            let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // f32 sums of at most 192 terms in another order, through 4 layers.
            assert!(worst < 1e-4, "{} {format:?}: {worst}", cpu.name());
        }
    }
}

#[test]
fn bytes_that_a_token_reads_are_counted() {
    let cpu = Cpu::open(1, Precision::F32);
    let config = tiny::config(Generation::G1);
    let model = tiny::model(&cpu, config.clone(), 34);
    // C = 48, keys and values 24: Q, K, V, the output and both matrices of the MLP, four layers.
    let layers = 4 * (2 * 48 * 48 + 2 * 24 * 48 + 8 * 48 * 48);
    let head = 90 * 48;
    let by = |format| PackedWeights::new(&cpu, &model, format).expect("weights");
    let plain = by(WeightFormat::F32);
    assert_eq!((plain.bytes(), plain.read_bytes()), (0, 4 * (layers + head)));
    assert_eq!(plain.format(), WeightFormat::F32);
    assert_eq!(by(WeightFormat::Auto).format(), WeightFormat::F32);
    for (format, bytes) in [(WeightFormat::Bf16, 2), (WeightFormat::Int8, 1)] {
        let packed = by(format);
        assert_eq!(packed.format(), format);
        assert_eq!(packed.bytes(), packed.read_bytes(), "nothing is read as it lies");
        // Whole tiles, and scales: some more than the weights alone.
        let least = bytes * (layers + head);
        assert!((least..least * 13 / 10).contains(&packed.bytes()), "{} {least}", packed.bytes());
    }
}
