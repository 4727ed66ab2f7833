//! The same request with the same seed says the same, log probabilities included: alone and among others,
//! with its prompt in the prefix cache and without, in whatever chunks the prompt comes.

use std::sync::{Arc, Mutex};

use nanochat_compute::cpu::simd::Kernels;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::ops::WeightFormat;
use nanochat_engine::SampleOptions;
use nanochat_engine::batch::{Batch, BatchOptions, Generator, Listener, Request, Update};
use nanochat_gpt::batch::BatchDecoder;
use nanochat_gpt::nano::batch::{BatchRoom, NanoBatch};
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig};
use nanochat_tokenizer::{DEFAULT_PATTERN, Tokenizer};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new()).expect("no merges, none bad")
}

/// A small model in which nothing is zero.
fn model(cpu: &Cpu) -> Nano {
    let raw = RawConfig {
        sequence_len: 128,
        vocab_size: tokenizer().vocab_size(),
        n_layer: 2,
        n_head: 2,
        n_kv_head: 1,
        n_embd: 64,
        window_pattern: "SL".into(),
        generation: Generation::G5,
        ..RawConfig::default()
    };
    let config = GptConfig::new(raw).expect("sizes that fit");
    let model = Nano::zeros(cpu, config).expect("a small model");
    model.init(5).expect("f32 parameters");
    let mut state = 1_u64;
    let mut values = model.params().to_vec_f32().expect("f32");
    for x in &mut values {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *x += ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.15;
    }
    model.params().write_f32(&values).expect("as many");
    model
}

/// Hears everything but times and what was reused.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Update>>>);

impl Listener for Heard {
    fn hear(&mut self, update: Update) {
        if !matches!(update, Update::Began { .. } | Update::Done(_)) {
            self.0.lock().expect("no panics").push(update);
        }
    }
    fn is_gone(&self) -> bool {
        false
    }
}

impl Heard {
    /// Row by row: their order within a step is not promised.
    fn rows(&self, n: usize) -> Vec<Vec<Update>> {
        let of = |update: &Update, r: usize| match update {
            Update::Token { row, .. } | Update::Ended { row, .. } => *row == r,
            _ => r == 0,
        };
        let all = self.0.lock().expect("no panics");
        (0..n).map(|r| all.iter().filter(|u| of(u, r)).cloned().collect()).collect()
    }
}

/// One of sixteen requests, as different as they can be; those of one third begin with the same ids.
fn request(i: usize) -> Request {
    let ids = |n: usize, salt: usize| (0..n).map(move |j| ((j * 37 + salt * 11) % 256) as u32);
    let shared = [0, 70, 140][i % 3];
    let sample = SampleOptions::new([1.0, 0.0, 0.7, 1.5][i % 4], [None, Some(20)][i % 2], i as u64);
    let sample = sample.and_then(|s| s.with_top_p([None, None, Some(0.9)][i % 3]));
    let sample = sample.and_then(|s| s.with_presence_penalty([0.0, 0.5][i / 8]));
    Request {
        prompt: ids(shared, 0).chain(ids(1 + i * 5 % 23, i)).collect(),
        n: 1 + i % 3,
        max_tokens: 5 + i * 7 % 20,
        sample: sample.expect("in range"),
        stop: Vec::new(),
        stop_at_eot: i.is_multiple_of(2),
        tools: true,
        logprobs: Some(2),
        prompt_logprobs: false,
        constraint: None,
    }
}

/// Runs requests to their end, in this order.
fn serve(
    decoder: &mut dyn BatchDecoder,
    step_tokens: usize,
    order: &[usize],
) -> Vec<Vec<Vec<Update>>> {
    let batch = Batch::new(decoder, BatchOptions { rows: 24, queue: 99, step_tokens });
    let submit = |&i: &usize| {
        let (request, heard) = (request(i), Heard::default());
        let n = request.n;
        batch.submit(request, Box::new(heard.clone())).expect("room");
        (heard, n)
    };
    let heard: Vec<_> = order.iter().map(submit).collect();
    batch.close();
    batch.run(decoder, &tokenizer()).expect("the vocabularies agree");
    assert_eq!(decoder.pages().used, 0);
    heard.into_iter().map(|(heard, n)| heard.rows(n)).collect()
}

fn check(cpu: &Cpu, format: WeightFormat) {
    let model = model(cpu);
    let name = format!("{} {}", format.name(), nanochat_compute::Backend::name(cpu));
    let room = BatchRoom::of_rows(cpu, model.config(), 6, 256);
    let mut decoder = NanoBatch::new(cpu, &model, format, room).expect("a small cache");
    let alone: Vec<_> = (0..16)
        .map(|i| {
            decoder.forget_prefixes();
            serve(&mut decoder, 256, &[i]).remove(0)
        })
        .collect();
    decoder.forget_prefixes();
    // Few pages: prefixes come and go. Chunks of 256, 64 and 17 ids.
    for (round, step_tokens) in [256, 64, 17].into_iter().enumerate() {
        let order: Vec<usize> = (0..16).map(|i| (i * 5 + round) % 16).collect();
        for (got, i) in serve(&mut decoder, step_tokens, &order).iter().zip(&order) {
            assert_eq!(got, &alone[*i], "{name}: request {i}, round {round}");
        }
    }
}

#[test]
fn a_request_says_the_same_alone_and_among_fifteen() {
    let cpu = Cpu::open(2, Precision::Auto);
    check(&cpu, WeightFormat::Auto);
    check(&cpu, WeightFormat::Int8);
}

#[test]
fn a_request_says_the_same_on_every_family_of_kernels() {
    for kernels in Kernels::available() {
        check(&Cpu::with(kernels, 2, Precision::F32), WeightFormat::F32);
    }
}
