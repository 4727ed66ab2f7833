//! Decisions on times and memory that are made up; memory against the trainer itself.

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::ops::LOSS_ROWS;
use nanochat_gpt::{GptConfig, Nano, RawConfig};
use proptest::prelude::*;

use super::*;
use crate::optim::{LearningRates, Optimizer};
use crate::step::Trainer;

fn config(n_layer: usize) -> GptConfig {
    let (n_head, n_kv_head, n_embd) = (2, 2, 48);
    let raw = RawConfig { sequence_len: 32, vocab_size: 300, n_layer, ..RawConfig::default() };
    GptConfig::new(RawConfig { n_head, n_kv_head, n_embd, ..raw }).expect("sizes")
}

fn memory(free: u64) -> Memory {
    Memory { held: 1000, free, margin: 1.0 }
}

/// Timings of batches whose micro batch takes `call + b row` seconds in its layers, and nothing to
/// speak of in its head.
fn linear(batches: &[usize], call: f64, row: f64) -> Timings {
    let layer = batches.iter().map(|&b| call + b as f64 * row).collect();
    let rounds = vec![Round { layer, head: [2e-12, 5e-12] }];
    Timings { batches: batches.to_vec(), stretch: LOSS_ROWS, rounds, ..Timings::default() }
}

#[test]
fn candidates_divide_the_rows() {
    assert_eq!(candidates(32), [1, 2, 4, 8, 16, 32]);
    assert_eq!(candidates(24), [1, 2, 3, 4, 6, 8, 12, 24]);
    assert_eq!(candidates(35), [1, 35], "the rows themselves, whatever they are");
    assert_eq!(candidates(1), [1]);
    assert_eq!(candidates(1_000_000_007).last(), Some(&1_000_000_007), "at once");
}

#[test]
fn the_smallest_of_equals_wins() {
    assert_eq!(smallest_within(&[(1, 2.0), (2, 1.5), (4, 1.004), (8, 1.0)], 0.01), 4);
    assert_eq!(smallest_within(&[(1, 1.0), (2, 1.2)], 0.01), 1);
    assert_eq!(smallest_within(&[(4, f64::NAN)], 0.01), 4, "never 0");
}

#[test]
fn a_plan_has_the_bytes_of_its_trainer() {
    let be = Cpu::open(2, Precision::F32);
    for (layers, b, t) in [(1, 1, 8), (2, 3, 32), (4, 16, 32)] {
        let config = config(layers);
        let model = Nano::zeros(&be, config.clone()).expect("small");
        let optim = Optimizer::new(&be, &model, LearningRates::default()).expect("small");
        let trainer = Trainer::new(&be, &model, optim, b, t).expect("small");
        assert_eq!(Bytes::of(&be, &config, b, t), trainer.bytes(), "{layers} layers, {b} x {t}");
    }
}

#[test]
fn what_does_not_fit_is_no_candidate() {
    let be = Cpu::open(1, Precision::F32);
    let config = config(2);
    let job = Job { config: &config, t: 32, rows: 16 };
    let bytes = |b| Bytes::of(&be, &config, b, 32).total() as u64;
    for b in [1, 2, 4, 8, 16] {
        let fit = fitting(&be, &job, &memory(bytes(b))).expect("b fits");
        assert_eq!(fit.last().expect("one").0, b, "to the byte");
        let below = fitting(&be, &job, &memory(bytes(b) - 1));
        match below {
            Ok(fit) => assert!(fit.last().expect("one").0 < b),
            Err(e) => assert!(b == 1 && e.to_string().contains(&bytes(1).to_string()), "{e}"),
        }
    }
    let half = Memory { margin: 0.5, ..memory(2 * bytes(4)) };
    assert_eq!(fitting(&be, &job, &half).expect("fits").last().expect("one").0, 4, "the margin");
}

#[test]
fn a_choice_says_what_will_be_held() {
    let be = Cpu::open(1, Precision::F32);
    let config = config(2);
    let job = Job { config: &config, t: 32, rows: 16 };
    let fit = fitting(&be, &job, &memory(1 << 30)).expect("fits");
    // 1 + 100 b: a step of 16 rows takes 1,616 and 1,608 (times two layers).
    let choice = choose(&job, &memory(1 << 30), &fit, &linear(&[1, 2], 1.0, 100.0), (false, 0.5));
    assert_eq!((choice.batch_size, choice.accumulation), (1, 16), "within 1 %");
    // 10 + 100 b: 1,760, 1,680, 1,640, 1,620; 16 was not timed.
    let timings = linear(&[1, 2, 4, 8], 10.0, 100.0);
    let choice = choose(&job, &memory(1 << 30), &fit, &timings, (false, 0.5));
    assert_eq!((choice.batch_size, choice.accumulation), (8, 2));
    assert_eq!(choice.predicted_bytes, 1000 + Bytes::of(&be, &config, 8, 32).total() as u64);
    assert_eq!(choice.limit_bytes, 1000 + (1 << 30));
    assert_eq!(choice.candidates.len(), 5);
    let rates: Vec<_> = choice.candidates.iter().map(|c| c.tokens_per_sec.is_some()).collect();
    assert_eq!(rates, [true, true, true, true, false]);
    let flat = choose(&job, &memory(1 << 30), &fit, &linear(&[1, 2, 4], 0.0, 1.0), (true, 0.0));
    assert_eq!((flat.batch_size, flat.accumulation, flat.cached), (1, 16, true));
    let one = choose(&job, &memory(1 << 30), &fit[..1], &Timings::default(), (false, 0.0));
    assert_eq!((one.batch_size, one.candidates[0].tokens_per_sec), (1, None), "nothing to choose");
    let line = serde_json::to_string(&choice).expect("plain");
    assert_eq!(serde_json::from_str::<Choice>(&line).expect("what was written"), choice);
}

#[test]
fn all_ranks_decide_the_same() {
    let be = Cpu::open(1, Precision::F32);
    let config = config(2);
    let job = Job { config: &config, t: 32, rows: 16 };
    let bytes = |b| Bytes::of(&be, &config, b, 32).total() as u64;
    for world in 2..=8 {
        // Rank r has memory for 8 rows, but the last one for 4 only; each is slower than the one before.
        let rank = |r: usize| {
            let budget = if r + 1 == world { bytes(4) } else { bytes(8) };
            (budget, linear(&[1, 2, 4, 8], 1.0 + r as f64, 1.0))
        };
        let ranks: Vec<_> = (0..world).map(rank).collect();
        let (budget, timings) = agree(&ranks);
        let mut chosen = ranks.iter().map(|_| {
            let fit = fitting(&be, &job, &memory(budget)).expect("fits");
            choose(&job, &memory(budget), &fit, &timings, (false, 0.0)).batch_size
        });
        assert!(chosen.all(|b| b == 4), "the rank with the least memory decides");
        assert_eq!(timings.rounds[0].layer[0], 1.0 + world as f64, "the slowest one's times");
    }
}

#[test]
fn a_probe_times_what_it_is_asked_for() {
    let be = Cpu::open(1, Precision::F32);
    let config = config(4);
    let job = Job { config: &config, t: 32, rows: 4 };
    let fit = fitting(&be, &job, &memory(1 << 30)).expect("fits");
    let timings = probe(&be, &job, &fit, 1 << 30).expect("small");
    assert!(timings.are_sound(), "{timings:?}");
    assert_eq!(timings.batches[0], 1);
    assert!(timings.step_s(32, 4, 4).iter().all(|(_, s)| *s > 0.0), "{timings:?}");
}

fn key(be: &Cpu, config: &GptConfig, t: usize) -> Key {
    let job = Job { config, t, rows: 16 };
    Key::new(be, &job, vec![1, 2], ("a cpu".into(), 1 << 30), "0.1.0".into())
}

#[test]
fn a_cache_answers_its_key_only() {
    let be = Cpu::open(1, Precision::F32);
    let (small, large) = (config(2), config(3));
    let dir = tempfile::tempdir().expect("a directory");
    let cache = Cache::new(&dir.path().join("batch-size"));
    let mut warnings = Vec::new();
    let mut warn = |w| warnings.push(w);
    let (of, timings) = (key(&be, &small, 32), linear(&[1, 2], 0.25, 1.0));
    assert_eq!(cache.get(&of, &mut warn), None);
    cache.put(&of, &timings, &mut warn);
    assert_eq!(cache.get(&of, &mut warn), Some(timings.clone()));
    let two = Cpu::open(2, Precision::F32);
    let others = [
        key(&be, &large, 32),
        key(&be, &small, 16),
        key(&two, &small, 32),
        Key { rows: 8, ..of.clone() },
        Key { fitting: vec![1], ..of.clone() },
        Key { optimizer: "sgd".into(), ..of.clone() },
        Key { world: 2, ..of.clone() },
        Key { device: "another cpu".into(), ..of.clone() },
        Key { memory: 1 << 31, ..of.clone() },
        Key { version: "0.1.1".into(), ..of.clone() },
    ];
    for other in others {
        assert_eq!(cache.get(&other, &mut warn), None, "{other:?}");
    }
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_damaged_cache_is_a_miss_with_one_warning() {
    let be = Cpu::open(1, Precision::F32);
    let dir = tempfile::tempdir().expect("a directory");
    let cache = Cache::new(dir.path());
    let of = key(&be, &config(2), 32);
    let timings = linear(&[1, 2], 0.25, 1.0);
    cache.put(&of, &timings, &mut |w| panic!("{w}"));
    let file = std::fs::read_dir(dir.path()).expect("it is there").next().expect("one file");
    let file = file.expect("readable").path();
    let whole = std::fs::read_to_string(&file).expect("text");
    for damaged in ["", "{", "[]", &whole[..whole.len() / 2], &whole.replace("1.25", "null")] {
        std::fs::write(&file, damaged).expect("writable");
        let mut warnings = 0;
        assert_eq!(cache.get(&of, &mut |_| warnings += 1), None);
        assert_eq!(warnings, 1, "{damaged}");
    }
    // Times below zero are what no clock gives: a miss, and overwritten like any other.
    std::fs::write(&file, whole.replace("1.25", "-1.25")).expect("writable");
    assert_eq!(cache.get(&of, &mut |w| panic!("{w}")), None);
    cache.put(&of, &timings, &mut |w| panic!("{w}"));
    assert_eq!(cache.get(&of, &mut |w| panic!("{w}")), Some(timings));
    // A folder that cannot be written costs a warning and no run.
    let mut warnings = 0;
    Cache::new(&file.join("below a file"))
        .put(&of, &linear(&[1], 0.0, 1.0), &mut |_| warnings += 1);
    assert_eq!(warnings, 1);
}

proptest! {
    #[test]
    fn a_choice_divides_the_rows_and_fits(
        rows in 1usize..200,
        share in 0.0f64..2.0,
        call in 0.0f64..10.0,
        row in 0.01f64..1.0,
    ) {
        let be = Cpu::open(1, Precision::F32);
        let config = config(1);
        let job = Job { config: &config, t: 8, rows };
        let bytes = |b| Bytes::of(&be, &config, b, 8).total() as u64;
        let memory = memory((bytes(rows) as f64 * share) as u64);
        if let Ok(fit) = fitting(&be, &job, &memory) {
            let timed: Vec<usize> = fit.iter().map(|(b, _)| *b).collect();
            let choice = choose(&job, &memory, &fit, &linear(&timed, call, row), (false, 0.0));
            prop_assert!(choice.batch_size >= 1 && rows.is_multiple_of(choice.batch_size));
            prop_assert_eq!(choice.batch_size * choice.accumulation, rows);
            prop_assert!(choice.predicted_bytes <= memory.held + memory.budget());
            prop_assert!(fit.windows(2).all(|w| w[0].1.total() <= w[1].1.total()), "monotone in B");
        } else {
            prop_assert!(bytes(1) > memory.budget());
        }
    }
}
