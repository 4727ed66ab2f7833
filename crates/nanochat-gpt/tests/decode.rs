//! Decoding with a KV cache gives what the forward pass gives, however the tokens are fed.

mod tiny;

use nanochat_compute::cpu::simd::Kernels;
use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::ops::LOSS_ROWS;
use nanochat_compute::reference::Reference;
use nanochat_compute::{Backend, DType};
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_gpt::nano::recompute::Recompute;
use nanochat_gpt::{Error, Generation, GptConfig, Nano, RawConfig};
use tiny::{Draws, GENERATIONS, bits};

/// f32 sums of at most 300 terms in another order, through 4 layers, on logits of up to 15.
const TOLERANCE: f32 = 1e-4;

fn cpu() -> Cpu {
    Cpu::open(2, Precision::F32)
}

/// Logits (T, V) of one row by the forward pass of training.
fn forward(be: &dyn Backend, model: &Nano, ids: &[u32]) -> Vec<Vec<f32>> {
    let plan = StepPlan::new(model.config(), 1, ids.len(), Mode::Eval);
    let arena = plan.layout().allocate(be).expect("a small arena");
    let bufs = plan.views(&arena);
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    bufs.tokens.write_i32(&ids).expect("T ids");
    bufs.targets.write_i32(&ids).expect("T targets");
    model.losses(be, &bufs).expect("forward");
    let v = model.config().vocab_size;
    let mut all = Vec::new();
    for at in (0..ids.len()).step_by(LOSS_ROWS) {
        let rows = at..ids.len().min(at + LOSS_ROWS);
        all.extend(model.logits(be, &bufs, rows).expect("logits"));
    }
    all.chunks(v).map(<[f32]>::to_vec).collect()
}

fn argmax(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

fn near(have: &[f32], want: &[f32], what: &str) {
    assert_eq!(have.len(), want.len(), "{what}");
    let worst = have.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < TOLERANCE, "{what}: off by {worst}");
    assert_eq!(argmax(have), argmax(want), "{what}");
}

/// Prefills `first` ids, then decodes the others one by one.
fn decode_equals(be: &dyn Backend, model: &Nano, ids: &[u32], first: usize) {
    let want = forward(be, model, ids);
    let mut decoder = NanoDecoder::new(be, model, ids.len()).expect("a small cache");
    let name = format!("{:?} on {}", model.config().generation, be.name());
    let logits = decoder.prefill(&ids[..first]).expect("prefill");
    near(&logits, &want[first - 1], &format!("{name}: prefill of {first}"));
    for at in first..ids.len() {
        let logits = decoder.decode(&ids[at..at + 1]).expect("decode");
        near(&logits, &want[at], &format!("{name}: prefill of {first}, position {at}"));
        assert_eq!(decoder.len(), at + 1);
    }
}

#[test]
fn decode_equals_forward() {
    let cpu = cpu();
    for generation in GENERATIONS {
        let model = tiny::model(&cpu, tiny::config(generation), 7);
        // 300 tokens: past the short window (128), the long one (256) and four pages.
        let ids = Draws(42).ids(300, 90);
        for first in [1, 2, 130, 256, 257, 299] {
            decode_equals(&cpu, &model, &ids, first);
        }
    }
}

#[test]
fn decode_equals_forward_on_the_reference() {
    for generation in GENERATIONS {
        let model = tiny::model(&Reference, tiny::config(generation), 8);
        let ids = Draws(43).ids(150, 90);
        for first in [1, 140] {
            decode_equals(&Reference, &model, &ids, first);
        }
    }
}

#[test]
fn decode_equals_forward_on_every_family_of_kernels() {
    for cpu in Cpu::every_f32(3) {
        let model = tiny::model(&cpu, tiny::config(Generation::G5), 9);
        decode_equals(&cpu, &model, &Draws(44).ids(70, 90), 33);
    }
}

/// Greedy ids of `n` rows that each continue the prompt with an id of their own.
fn greedy(decoder: &mut dyn Decoder, prompt: &[u32], n: usize, columns: usize) -> Vec<Vec<u32>> {
    let v = decoder.vocab_size();
    decoder.prefill(prompt).expect("prefill");
    decoder.fork(n).expect("one row");
    let mut rows: Vec<Vec<u32>> = (0..n as u32).map(|r| vec![7 * r % 90]).collect();
    for _ in 0..columns {
        let column: Vec<u32> = rows.iter().map(|r| r[r.len() - 1]).collect();
        let logits = decoder.decode(&column).expect("decode");
        for (row, logits) in rows.iter_mut().zip(logits.chunks(v)) {
            row.push(argmax(logits) as u32);
        }
    }
    rows
}

#[test]
fn greedy_ids_are_the_same_without_a_cache() {
    for cpu in Cpu::every_f32(2) {
        for generation in GENERATIONS {
            let model = tiny::model(&cpu, tiny::config(generation), 16);
            let prompt = Draws(48).ids(125, 90);
            let mut cached = NanoDecoder::new(&cpu, &model, 200).expect("a small cache");
            let mut naive = Recompute::new(&cpu, &model, 200).expect("nothing to hold");
            let want = greedy(&mut naive, &prompt, 3, 6);
            assert_eq!(greedy(&mut cached, &prompt, 3, 6), want, "{generation:?} {}", cpu.name());
            naive.reset();
            assert_eq!((naive.rows(), naive.len()), (1, 0));
            assert_eq!(greedy(&mut naive, &prompt, 3, 6), want, "as new after reset");
        }
    }
}

#[test]
fn keys_and_values_in_bf16_lose_nothing_where_products_multiply_bf16() {
    for kernels in Kernels::available() {
        let cpu = Cpu::with(kernels, 2, Precision::Bf16);
        let model = tiny::model(&cpu, tiny::config(Generation::G5), 22);
        let prompt = Draws(50).ids(125, 90);
        let mut naive = Recompute::new(&cpu, &model, 200).expect("nothing to hold");
        let mut cached = NanoDecoder::new(&cpu, &model, 200).expect("a small cache");
        let mut wide = NanoDecoder::with_cache(&cpu, &model, 200, DType::F32).expect("a cache");
        assert_eq!((cached.kv_dtype(), wide.kv_dtype()), (DType::BF16, DType::F32));
        let want = naive.prefill(&prompt).expect("prefill");
        for decoder in [&mut cached, &mut wide] {
            let got = decoder.prefill(&prompt).expect("prefill");
            assert_eq!(bits(&got), bits(&want), "{}: prefill", cpu.name());
        }
        naive.fork(3).expect("one row");
        cached.fork(3).expect("one row");
        wide.fork(3).expect("one row");
        for column in [[1, 2, 3], [40, 50, 60], [7, 7, 7], [89, 0, 1]] {
            let want = naive.decode(&column).expect("decode");
            for decoder in [&mut cached, &mut wide] {
                let got = decoder.decode(&column).expect("decode");
                assert_eq!(bits(&got), bits(&want), "{}: {column:?}", cpu.name());
            }
        }
        assert_eq!(2 * cached.kv_bytes(), wide.kv_bytes());
        assert_eq!(2 * cached.kv_reserved_bytes(), wide.kv_reserved_bytes());
    }
}

#[test]
fn a_row_has_the_bits_it_has_alone_on_any_number_of_threads() {
    let rows = |threads: usize, rows: &[u32]| {
        let cpu = Cpu::open(threads, Precision::Bf16);
        let model = tiny::model(&cpu, tiny::config(Generation::G5), 23);
        let mut decoder = NanoDecoder::new(&cpu, &model, 200).expect("a small cache");
        decoder.prefill(&Draws(51).ids(70, 90)).expect("prefill");
        decoder.fork(rows.len()).expect("one row");
        decoder.decode(rows).expect("decode");
        let logits = decoder.decode(rows).expect("decode");
        logits.chunks(90).map(bits).collect::<Vec<_>>()
    };
    let ids: Vec<u32> = (0..40).map(|i| i * 13 % 90).collect();
    let all = rows(2, &ids);
    assert!(all == rows(1, &ids) && all == rows(3, &ids), "the number of threads");
    for i in [0, 1, 17, 39] {
        assert_eq!(all[i], rows(2, &ids[i..=i])[0], "row {i} of 40");
    }
}

#[test]
fn keys_and_values_may_be_rounded_where_products_are_not() {
    // Each key and value is off by 2^-9 of itself at most: logits by some hundredths.
    let cpu = cpu();
    let model = tiny::model(&cpu, tiny::config(Generation::G5), 24);
    let ids = Draws(52).ids(90, 90);
    let want = forward(&cpu, &model, &ids);
    let mut decoder = NanoDecoder::with_cache(&cpu, &model, 90, DType::BF16).expect("a cache");
    decoder.prefill(&ids[..80]).expect("prefill");
    for at in 80..90 {
        let got = decoder.decode(&ids[at..=at]).expect("decode");
        let worst = got.iter().zip(&want[at]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < 0.05, "position {at}: off by {worst}");
    }
}

#[test]
fn many_long_rows_are_recomputed_in_groups() {
    let cpu = cpu();
    let model = tiny::model(&cpu, tiny::config(Generation::G5), 17);
    let prompt = Draws(49).ids(300, 90);
    // 30 rows of 300 tokens are more than twice what runs together.
    let mut naive = Recompute::new(&cpu, &model, 500).expect("nothing to hold");
    let mut cached = NanoDecoder::new(&cpu, &model, 500).expect("a small cache");
    assert_eq!(greedy(&mut naive, &prompt, 30, 1), greedy(&mut cached, &prompt, 30, 1));
}

#[test]
fn recomputing_refuses_what_a_cache_refuses() {
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 18);
    let mut naive = Recompute::new(&Reference, &model, 4).expect("nothing to hold");
    assert_eq!(naive.max_len(), 4);
    assert!(naive.prefill(&[]).is_err() && naive.prefill(&[90]).is_err());
    assert!(naive.prefill(&[1; 5]).is_err() && naive.fork(0).is_err());
    naive.prefill(&[1; 3]).expect("three of four");
    naive.fork(2).expect("one row");
    assert!(naive.decode(&[1]).is_err() && naive.fork(2).is_err() && naive.prefill(&[1]).is_err());
    naive.decode(&[1, 2]).expect("four of four");
    assert!(matches!(naive.decode(&[1, 2]), Err(Error::ContextFull { have: 4, .. })));
}

#[test]
fn one_layer_and_one_head_decode_too() {
    let raw = RawConfig {
        sequence_len: 64,
        vocab_size: 65,
        n_layer: 1,
        n_head: 1,
        n_kv_head: 1,
        n_embd: 34,
        window_pattern: "S".into(),
        ..RawConfig::default()
    };
    for generation in GENERATIONS {
        let raw = RawConfig { generation, ..raw.clone() };
        let config = GptConfig::new(raw).expect("sizes that fit");
        let model = tiny::model(&Reference, config, 3);
        // 100 tokens are past the 64 that it is made for: the window slides.
        decode_equals(&Reference, &model, &Draws(45).ids(100, 65), 5);
    }
}

#[test]
fn a_prompt_in_pieces_equals_one_prompt() {
    let cpu = cpu();
    for generation in GENERATIONS {
        let model = tiny::model(&cpu, tiny::config(generation), 10);
        let ids = Draws(46).ids(600, 90);
        let want = forward(&cpu, &model, &ids);
        // 600 is more than two of the chunks of 256 that a prompt runs in.
        for cuts in [vec![], vec![1], vec![255], vec![256], vec![100, 101, 400], vec![257, 599]] {
            let mut decoder = NanoDecoder::new(&cpu, &model, 600).expect("a small cache");
            let ends = cuts.iter().copied().chain([600]);
            let mut from = 0;
            for to in ends {
                let logits = decoder.prefill(&ids[from..to]).expect("prefill");
                near(&logits, &want[to - 1], &format!("{generation:?}, {cuts:?}, {from}..{to}"));
                from = to;
            }
        }
    }
}

#[test]
fn a_fork_equals_separate_runs() {
    let cpu = cpu();
    for generation in GENERATIONS {
        let model = tiny::model(&cpu, tiny::config(generation), 11);
        let prompt = Draws(47).ids(250, 90);
        let tails: Vec<Vec<u32>> = (0..3).map(|r| Draws(100 + r).ids(20, 90)).collect();
        let mut many = NanoDecoder::new(&cpu, &model, 400).expect("a small cache");
        let prefilled = many.prefill(&prompt).expect("prefill");
        many.fork(3).expect("one row to three");
        assert_eq!((many.rows(), many.len()), (3, 250));
        let mut alone: Vec<_> = (0..3)
            .map(|_| {
                let mut one = NanoDecoder::new(&cpu, &model, 400).expect("a small cache");
                let logits = one.prefill(&prompt).expect("prefill");
                assert_eq!(bits(&logits), bits(&prefilled), "the same prompt, the same bits");
                one
            })
            .collect();
        // Columns 250 to 269 begin another page.
        for column in 0..20 {
            let ids: Vec<u32> = tails.iter().map(|t| t[column]).collect();
            let logits = many.decode(&ids).expect("decode");
            for (r, one) in alone.iter_mut().enumerate() {
                let want = one.decode(&ids[r..r + 1]).expect("decode");
                let what = format!("{generation:?}, row {r}, column {column}");
                near(&logits[r * 90..(r + 1) * 90], &want, &what);
            }
        }
    }
}

/// Bytes of a page of the tiny model: 64 tokens, K and V, Hkv D = 24, f32, in so many layers.
fn page(layers: usize) -> usize {
    64 * 2 * 24 * 4 * layers
}

#[test]
fn a_cache_holds_what_is_needed_and_grows_by_doubling() {
    let model = tiny::model(&Reference, tiny::config(Generation::G1), 12);
    let mut decoder = NanoDecoder::new(&Reference, &model, 600).expect("nothing yet");
    assert_eq!((decoder.kv_bytes(), decoder.kv_reserved_bytes()), (0, 0));
    decoder.prefill(&Draws(1).ids(64, 90)).expect("fits");
    assert_eq!((decoder.kv_bytes(), decoder.kv_reserved_bytes()), (page(4), 4 * page(4)));
    decoder.decode(&[1]).expect("one more");
    assert_eq!(decoder.kv_bytes(), 2 * page(4));
    decoder.prefill(&Draws(2).ids(256, 90)).expect("fits");
    // 321 tokens are six pages, but the next one sees 256 before itself.
    assert_eq!((decoder.kv_bytes(), decoder.kv_reserved_bytes()), (5 * page(4), 8 * page(4)));
    decoder.reset();
    assert_eq!((decoder.kv_bytes(), decoder.kv_reserved_bytes()), (0, 8 * page(4)), "kept");
}

#[test]
fn what_was_reserved_is_allocated_once() {
    for generation in [Generation::G1, Generation::G5] {
        let model = tiny::model(&Reference, tiny::config(generation), 19);
        for (prompt, rows, len) in [(1, 1, 5), (70, 3, 100), (300, 2, 310), (64, 2, 200)] {
            let mut decoder = NanoDecoder::new(&Reference, &model, 600).expect("nothing yet");
            decoder.reserve(prompt, rows, len).expect("a small cache");
            let reserved = decoder.kv_reserved_bytes();
            decoder.prefill(&Draws(3).ids(prompt, 90)).expect("fits");
            decoder.fork(rows).expect("one row");
            for _ in prompt..len {
                decoder.decode(&vec![1; rows]).expect("fits");
                assert!(decoder.kv_bytes() <= reserved);
            }
            assert_eq!(
                decoder.kv_reserved_bytes(),
                reserved,
                "{generation:?} {prompt} {rows} {len}"
            );
        }
    }
}

#[test]
fn samples_share_their_prompt_until_they_write() {
    let model = tiny::model(&Reference, tiny::config(Generation::G1), 20);
    let mut decoder = NanoDecoder::new(&Reference, &model, 600).expect("nothing yet");
    decoder.prefill(&Draws(4).ids(150, 90)).expect("fits");
    decoder.fork(5).expect("one row");
    assert_eq!(decoder.kv_bytes(), 3 * page(4), "five rows, one prompt");
    decoder.decode(&[1, 2, 3, 4, 5]).expect("fits");
    assert_eq!(decoder.kv_bytes(), (2 + 5) * page(4), "two whole pages in common");
}

#[test]
fn windowed_layers_keep_only_their_window() {
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 21);
    let windows: Vec<usize> = (0..4).map(|i| model.config().window(i)).collect();
    assert_eq!(windows, [128, 128, 128, 256], "three short, one long");
    let mut decoder = NanoDecoder::new(&Reference, &model, 2000).expect("nothing yet");
    decoder.prefill(&Draws(5).ids(1000, 90)).expect("fits");
    // The next query, at 1000, sees from 872 and from 744 on: pages 13 and 11 to 15.
    assert_eq!(decoder.kv_bytes(), 3 * page(3) + 5 * page(1));
    let reserved = decoder.kv_reserved_bytes();
    for _ in 0..200 {
        decoder.decode(&[1]).expect("fits");
    }
    assert_eq!(decoder.kv_reserved_bytes(), reserved, "what slides out makes room");
}

#[test]
fn a_decoder_is_as_new_after_reset() {
    let cpu = cpu();
    for generation in [Generation::G1, Generation::G5] {
        let model = tiny::model(&cpu, tiny::config(generation), 13);
        let run = |decoder: &mut NanoDecoder<'_>| {
            let mut all = decoder.prefill(&Draws(3).ids(9, 90)).expect("prefill");
            all.extend(decoder.decode(&[5]).expect("decode"));
            decoder.fork(2).expect("one row");
            all.extend(decoder.decode(&[6, 7]).expect("decode"));
            bits(&all)
        };
        let mut decoder = NanoDecoder::new(&cpu, &model, 400).expect("a small cache");
        let fresh = run(&mut decoder);
        for waste in [3, 300] {
            decoder.reset();
            assert_eq!((decoder.rows(), decoder.len(), decoder.is_empty()), (1, 0, true));
            assert!(run(&mut decoder) == fresh, "{generation:?}");
            decoder.reset();
            decoder.prefill(&Draws(4).ids(waste, 90)).expect("prefill");
            decoder.fork(4).expect("one row");
            decoder.decode(&[1, 2, 3, 4]).expect("decode");
        }
        decoder.reset();
        assert!(run(&mut decoder) == fresh, "{generation:?}: after growth and four rows");
    }
}

#[test]
fn an_error_leaves_the_decoder_as_it_was() {
    let cpu = cpu();
    let model = tiny::model(&cpu, tiny::config(Generation::G5), 14);
    let mut decoder = NanoDecoder::new(&cpu, &model, 12).expect("a small cache");
    let mut twin = NanoDecoder::new(&cpu, &model, 12).expect("a small cache");
    let refuse = |result: nanochat_gpt::Result<Vec<f32>>, part: &str| {
        let message = result.expect_err(part).to_string();
        assert!(message.contains(part), "{message}");
    };
    refuse(decoder.prefill(&[]), "prefill");
    refuse(decoder.prefill(&[1, 90]), "token id 90 is outside the vocabulary of 90");
    refuse(decoder.prefill(&[u32::MAX]), "token id 4294967295");
    refuse(decoder.prefill(&[1; 13]), "0 tokens held, 13 more asked, limit 12");
    assert_eq!(decoder.len(), 0);
    let ids = Draws(5).ids(8, 90);
    let (a, b) = (decoder.prefill(&ids), twin.prefill(&ids));
    assert_eq!(bits(&a.expect("prefill")), bits(&b.expect("prefill")));
    refuse(decoder.prefill(&[1; 5]), "8 tokens held, 5 more asked, limit 12");
    refuse(decoder.decode(&[90]), "token id 90");
    refuse(decoder.decode(&[1, 2]), "2 ids for 1 rows");
    assert!(decoder.fork(0).is_err());
    decoder.fork(2).expect("one row");
    twin.fork(2).expect("one row");
    assert!(decoder.fork(2).is_err());
    refuse(decoder.prefill(&[1]), "prefill feeds one row");
    refuse(decoder.decode(&[1]), "1 ids for 2 rows");
    refuse(decoder.decode(&[1, 90]), "token id 90");
    for id in 0..4 {
        let (a, b) = (decoder.decode(&[id, id + 1]), twin.decode(&[id, id + 1]));
        assert_eq!(bits(&a.expect("decode")), bits(&b.expect("decode")));
    }
    let full = decoder.decode(&[1, 1]).expect_err("12 of 12");
    assert!(matches!(full, Error::ContextFull { have: 12, asked: 1, limit: 12 }), "{full}");
    assert_eq!(decoder.len(), 12);
    decoder.reset();
    decoder.prefill(&[1; 12]).expect("all of it is free again");
}

#[test]
fn a_cache_reaches_no_further_than_the_rotary_tables() {
    let model = tiny::model(&Reference, tiny::config(Generation::G5), 15);
    let decoder = NanoDecoder::new(&Reference, &model, usize::MAX).expect("a small cache");
    assert_eq!(decoder.max_len(), 2560);
}
