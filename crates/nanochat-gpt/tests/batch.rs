//! What a sequence gets in a batch is what it gets alone, to the bit: whatever its neighbours are, in
//! whatever chunks it comes, with pages that were reused and without.

mod tiny;

use nanochat_compute::cpu::simd::Kernels;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::ops::WeightFormat;
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, DType};
use nanochat_gpt::batch::{BatchDecoder, Feed, PageCount, Room, Sequence, Wanted};
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::batch::{BatchRoom, NanoBatch};
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::{Error, Generation, GptConfig, Nano, RawConfig};
use tiny::{Draws, GENERATIONS, bits};

const V: usize = 90;

fn batch<'a>(be: &'a dyn Backend, model: &'a Nano, format: WeightFormat) -> NanoBatch<'a> {
    let room = BatchRoom::of_rows(be, model.config(), 8, 400);
    NanoBatch::new(be, model, format, room).expect("a small cache")
}

fn open(batch: &mut NanoBatch<'_>, prompt: &[u32], rows: usize, len: usize) -> (Sequence, usize) {
    let room = Room { rows, len, reuse: true };
    let opened = batch.open(prompt, room).expect("it fits").expect("there is room");
    (opened.sequence, opened.reused)
}

/// Bits of the logits after each of `ids`, fed to a sequence of its own in one piece; ids that are
/// reused have none.
fn alone(batch: &mut NanoBatch<'_>, ids: &[u32]) -> Vec<Vec<u32>> {
    batch.forget_prefixes();
    let (sequence, reused) = open(batch, ids, 1, ids.len());
    assert_eq!(reused, 0);
    let mut all = Vec::new();
    for ids in ids.chunks(256) {
        let logits = batch.step(&[Feed { sequence, ids, wanted: Wanted::All }]).expect("a step");
        all.extend(logits.chunks(batch.vocab_size()).map(bits));
    }
    batch.close(sequence);
    all
}

/// Feeds all rows in steps of random mixes: any of them, in any order, in pieces of 1 to `most` ids.
fn mixed(
    batch: &mut NanoBatch<'_>,
    rows: &[Vec<u32>],
    want: &[Vec<Vec<u32>>],
    (draws, most): (&mut Draws, usize),
    name: &str,
) -> usize {
    let mut held: Vec<(Sequence, usize)> =
        rows.iter().map(|ids| open(batch, ids, 1, ids.len())).collect();
    let reused = held.iter().map(|(_, reused)| reused).sum();
    let v = batch.vocab_size();
    while held.iter().zip(rows).any(|((_, held), ids)| *held < ids.len()) {
        let mut picked: Vec<(usize, usize)> = Vec::new();
        let first = draws.below(rows.len());
        for i in 0..rows.len() {
            let row = (first + 3 * i) % rows.len();
            let left = rows[row].len() - held[row].1;
            if left > 0 && draws.below(3) > 0 && picked.iter().all(|(at, _)| *at != row) {
                let n = if draws.below(2) == 0 { 1 } else { 1 + draws.below(most) };
                picked.push((row, n.min(left)));
            }
        }
        let feed = |&(row, n): &(usize, usize)| Feed {
            sequence: held[row].0,
            ids: &rows[row][held[row].1..held[row].1 + n],
            wanted: Wanted::All,
        };
        let feeds: Vec<Feed<'_>> = picked.iter().map(feed).collect();
        let logits = batch.step(&feeds).expect("a step");
        let mut logits = logits.chunks(v);
        for (row, n) in picked {
            for _ in 0..n {
                let at = held[row].1;
                let got = bits(logits.next().expect("a row for every id"));
                assert!(got == want[row][at], "{name}: row {row} of {first}.., position {at}");
                held[row].1 += 1;
            }
        }
    }
    held.into_iter().for_each(|(sequence, _)| batch.close(sequence));
    reused
}

/// Rows of which some begin alike.
fn rows(draws: &mut Draws, n: usize, vocab_size: usize) -> Vec<Vec<u32>> {
    let shared = draws.ids(140, vocab_size);
    let mut all = Vec::new();
    for r in 0..n {
        let own = 1 + draws.below(60);
        let own = draws.ids(own, vocab_size);
        all.push([&shared[..[0, 140, 75][r % 3]], &own].concat());
    }
    all
}

/// Mixes on a new decoder, then again with every prefix known.
fn check(be: &dyn Backend, model: &Nano, format: WeightFormat, seed: u64, most: usize) {
    let name = format!("{:?} {} on {}", model.config().generation, format.name(), be.name());
    let mut draws = Draws(seed);
    let rows = rows(&mut draws, 7, model.config().vocab_size);
    let mut batch = batch(be, model, format);
    let want: Vec<_> = rows.iter().map(|ids| alone(&mut batch, ids)).collect();
    batch.forget_prefixes();
    mixed(&mut batch, &rows, &want, (&mut draws, most), &name);
    let reused = mixed(&mut batch, &rows, &want, (&mut draws, most), &format!("{name}, reused"));
    assert!(reused > 300, "{name}: {reused} ids were reused");
    assert_eq!(batch.pages().used, 0, "{name}");
}

#[test]
fn a_sequence_has_its_bits_in_any_mix_in_every_generation() {
    let cpu = Cpu::open(2, Precision::Auto);
    for (i, generation) in GENERATIONS.into_iter().enumerate() {
        let model = tiny::model(&cpu, tiny::config(generation), 60 + i as u64);
        check(&cpu, &model, WeightFormat::Auto, 70 + i as u64, 40);
    }
}

/// Heads of 32 channels, wide enough that every way of multiplying is taken.
fn wide() -> GptConfig {
    let raw = RawConfig {
        sequence_len: 128,
        vocab_size: 300,
        n_layer: 2,
        n_head: 4,
        n_kv_head: 2,
        n_embd: 128,
        window_pattern: "SL".into(),
        generation: Generation::G5,
        ..RawConfig::default()
    };
    GptConfig::new(raw).expect("sizes that fit")
}

#[test]
fn a_sequence_has_its_bits_on_every_family_in_every_format() {
    for kernels in Kernels::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let cpu = Cpu::with(kernels, 2, precision);
            let model = tiny::model(&cpu, wide(), 61);
            for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
                check(&cpu, &model, format, 80, 90);
            }
        }
    }
}

#[test]
fn a_sequence_has_its_bits_on_the_reference() {
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 62);
    check(&Reference, &model, WeightFormat::Auto, 81, 30);
}

#[test]
fn a_batch_of_one_is_the_decoder() {
    for kernels in Kernels::available() {
        for precision in [Precision::F32, Precision::Bf16] {
            let cpu = Cpu::with(kernels, 2, precision);
            let model = tiny::model(&cpu, tiny::config(Generation::G5), 63);
            let ids = Draws(82).ids(200, V);
            let mut batch = batch(&cpu, &model, WeightFormat::Auto);
            let got = alone(&mut batch, &ids);
            let mut decoder = NanoDecoder::new(&cpu, &model, 400).expect("a small cache");
            assert_eq!(bits(&decoder.prefill(&ids[..150]).expect("prefill")), got[149]);
            for at in 150..200 {
                let logits = decoder.decode(&ids[at..=at]).expect("decode");
                assert_eq!(bits(&logits), got[at], "{}: position {at}", cpu.name());
            }
        }
    }
}

#[test]
fn forks_go_their_own_ways_from_a_page_that_is_not_full() {
    let cpu = Cpu::open(2, Precision::Auto);
    for (generation, prompt) in
        [(Generation::G1, 100), (Generation::G5, 100), (Generation::G5, 128)]
    {
        let model = tiny::model(&cpu, tiny::config(generation), 64);
        let prompt = Draws(83).ids(prompt, V);
        let tails: Vec<Vec<u32>> = (0..3).map(|r| Draws(90 + r).ids(40, V)).collect();
        let mut batch = batch(&cpu, &model, WeightFormat::Auto);
        let whole = |tail: &Vec<u32>| [&prompt[..], tail].concat();
        let want: Vec<_> = tails.iter().map(|tail| alone(&mut batch, &whole(tail))).collect();
        batch.forget_prefixes();
        let (first, _) = open(&mut batch, &prompt, 3, prompt.len() + 40);
        let fed = Feed { sequence: first, ids: &prompt, wanted: Wanted::Last };
        let logits = batch.step(&[fed]).expect("a step");
        assert_eq!(bits(&logits), want[0][prompt.len() - 1]);
        let forks = [(); 2].map(|()| batch.fork(first).expect("set aside"));
        assert_eq!(batch.pages().used, 2, "they share the prompt");
        let all = [first, forks[0], forks[1]];
        for i in 0..40 {
            let feed =
                |r: usize| Feed { sequence: all[r], ids: &tails[r][i..=i], wanted: Wanted::Last };
            let logits = batch.step(&[0, 1, 2].map(feed)).expect("a step");
            for (r, logits) in logits.chunks(V).enumerate() {
                assert_eq!(bits(logits), want[r][prompt.len() + i], "row {r}, id {i}");
            }
        }
        all.into_iter().for_each(|sequence| batch.close(sequence));
        assert_eq!(batch.pages().used, 0);
    }
}

#[test]
fn room_is_given_in_pages_and_no_more() {
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 65);
    let be: &dyn Backend = &Reference;
    // Keys and values of 64 positions, four layers, two heads of 12, f32.
    let page = 2 * 64 * 4 * 24 * 4;
    let room = BatchRoom { kv_bytes: 3 * page + page / 2, max_len: 150 };
    let mut batch = NanoBatch::new(be, &model, WeightFormat::Auto, room).expect("three pages");
    assert_eq!(batch.pages(), PageCount { total: 3, used: 0, cached: 0 });
    assert_eq!(batch.kv_bytes(), 4 * page, "and one to fill up steps");
    assert_eq!(BatchRoom::of_rows(be, model.config(), 2, 65).kv_bytes, 4 * page);
    let none = NanoBatch::new(be, &model, WeightFormat::Auto, BatchRoom { kv_bytes: 9, ..room });
    assert!(none.is_err());
    let all = Room { rows: 1, len: 150, reuse: true };
    let first = batch.open(&[1, 2], all).expect("fits").expect("three pages").sequence;
    assert_eq!(batch.open(&[1], Room { len: 1, ..all }).expect("fits"), None);
    assert!(matches!(batch.open(&[90], all), Err(Error::TokenId { id: 90, .. })));
    assert!(matches!(batch.open(&[1], Room { len: 151, ..all }), Err(Error::ContextFull { .. })));
    let feed = |ids| Feed { sequence: first, ids, wanted: Wanted::Last };
    for bad in [&[feed(&[][..])][..], &[feed(&[1]), feed(&[2])], &[feed(&[90])], &[feed(&[1; 151])]]
    {
        assert!(batch.step(bad).is_err(), "{bad:?}");
    }
    assert!(batch.step(&[]).expect("nothing to do").is_empty());
    batch.step(&[feed(&[1, 2])]).expect("after refusals nothing is broken");
    batch.close(first);
    assert_eq!(batch.pages().used, 0);
    assert_eq!(model.params().dtype(), DType::F32);
}
