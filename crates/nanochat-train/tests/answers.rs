//! Answers written together are those written one by one, whatever the rows; what goes wrong is told.

mod tiny;

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_compute::ops::WeightFormat;
use nanochat_engine::generate::{Finish, Row};
use nanochat_engine::sample::SampleOptions;
use nanochat_gpt::Nano;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_train::answers::{Asked, OneByOne, Together, Writer, Writing};
use nanochat_train::{Error, Result};

/// Eleven prompts of different lengths.
fn asked(temperature: f32) -> Vec<Asked> {
    let one = |i: u32| {
        let prompt = (0..1 + 2 * i).map(|j| (7 * i + 3 * j) % 250).collect();
        let sample = SampleOptions::new(temperature, Some(40), 100 + u64::from(i));
        Asked { prompt, sample: sample.expect("a temperature") }
    };
    (0..11).map(one).collect()
}

const WRITING: Writing = Writing { num_samples: 3, max_tokens: 9, tools: true };

fn together<'m>(be: &'m Cpu, model: &'m Nano, rows: usize) -> Together<'m> {
    Together { be, model, format: WeightFormat::Auto, rows, max_len: 32 }
}

type Written = Vec<(Vec<u32>, Vec<u8>, Finish, Option<u32>, String)>;

fn written(writer: &mut dyn Writer, asked: &[Asked]) -> Vec<Written> {
    let tokenizer = tiny::tokenizer();
    let mut all = Vec::new();
    let kept = |row: Row| {
        let text = row.text();
        (row.ids, row.mask, row.finish, row.terminal, text)
    };
    let mut take = |at: usize, rows: Vec<Row>| {
        assert_eq!(at, all.len(), "in the order of the prompts");
        all.push(rows.into_iter().map(kept).collect());
        Ok(())
    };
    writer.write(&tokenizer, asked, &WRITING, &mut take).expect("every prompt fits");
    all
}

#[test]
fn together_or_one_by_one_the_answers_are_the_same() {
    let be = Cpu::open(2, Precision::F32);
    let model = tiny::model(&be);
    for temperature in [0.0, 1.0] {
        let asked = asked(temperature);
        let mut decoder = NanoDecoder::new(&be, &model, 32).expect("a decoder");
        let alone = written(&mut OneByOne(&mut decoder), &asked);
        assert_eq!((alone.len(), alone[0].len()), (11, 3));
        // Fewer rows than a prompt has samples, some, and more than there are answers.
        for rows in [1, 8, 100] {
            assert_eq!(written(&mut together(&be, &model, rows), &asked), alone, "{rows} rows");
        }
        let same = asked.len() - alone.iter().filter(|rows| rows[0].0 != rows[1].0).count();
        assert!(if temperature == 0.0 { same == 11 } else { same < 3 }, "{same} of 11 are alike");
    }
}

#[test]
fn whoever_takes_answers_can_stop_the_writing() {
    let be = Cpu::open(1, Precision::F32);
    let model = tiny::model(&be);
    let mut calls = 0;
    let mut take = |at: usize, _: Vec<Row>| -> Result<()> {
        calls += 1;
        if at == 2 { Err(Error::Answer { why: "enough".into() }) } else { Ok(()) }
    };
    let tokenizer = tiny::tokenizer();
    let stopped = together(&be, &model, 4).write(&tokenizer, &asked(1.0), &WRITING, &mut take);
    assert!(matches!(stopped, Err(Error::Answer { why }) if why == "enough"));
    assert_eq!(calls, 3);
}

#[test]
fn nothing_asked_is_nothing_written() {
    let be = Cpu::open(1, Precision::F32);
    let model = tiny::model(&be);
    let mut writer = together(&be, &model, 64);
    assert_eq!(writer.max_len(), 32);
    assert_eq!(written(&mut writer, &[]).len(), 0);
}
