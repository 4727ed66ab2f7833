//! Scores of given tokens are those of the forward pass, shared or not.

mod tiny;

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_gpt::Error;
use nanochat_gpt::model::Decoder;
use nanochat_gpt::nano::buffers::{Mode, StepPlan};
use nanochat_gpt::nano::decode::{NanoDecoder, Wanted};
use tiny::{Draws, GENERATIONS};

/// f32 sums of at most 300 terms in another order, through 4 layers.
const TOLERANCE: f32 = 1e-4;

#[test]
fn shared_and_whole_rows_score_as_the_forward_pass() {
    let cpu = Cpu::open(2, Precision::F32);
    for generation in GENERATIONS {
        let model = tiny::model(&cpu, tiny::config(generation), 7);
        // A prompt past the short window, and three ends of different lengths.
        let prompt = Draws(1).ids(170, 90);
        let ends: Vec<Vec<u32>> = [5, 1, 9].iter().map(|n| Draws(*n as u64).ids(*n, 90)).collect();
        let rows: Vec<Vec<u32>> = ends.iter().map(|e| [&prompt[..], e].concat()).collect();
        let want: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                let t = row.len() - 1;
                let plan = StepPlan::new(model.config(), 1, t, Mode::Eval);
                let arena = plan.layout().allocate(&cpu).expect("a small arena");
                let bufs = plan.views(&arena);
                let ids: Vec<i32> = row.iter().map(|&id| id as i32).collect();
                bufs.tokens.write_i32(&ids[..t]).expect("T ids");
                bufs.targets.write_i32(&ids[1..]).expect("T targets");
                model.losses(&cpu, &bufs).expect("forward")[prompt.len() - 1..].to_vec()
            })
            .collect();
        let mut decoder = NanoDecoder::new(&cpu, &model, 256).expect("a small cache");

        let slices: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let wanted: Vec<Wanted> = rows
            .iter()
            .enumerate()
            .flat_map(|(row, ids)| {
                (prompt.len()..ids.len()).map(move |at| Wanted { row, at, id: ids[at] })
            })
            .collect();
        let whole = decoder.score_batch(&slices, &wanted).expect("scores");

        // All but the last id of the prompt once, then four columns and more of three rows.
        let p = prompt.len() - 1;
        let t = 9;
        let (mut ids, mut targets) = (vec![0; 3 * t], vec![-1; 3 * t]);
        for (r, row) in rows.iter().enumerate() {
            for i in 0..row.len() - 1 - p {
                ids[r * t + i] = row[p + i];
                targets[r * t + i] = row[p + i + 1] as i32;
            }
        }
        decoder.reset();
        decoder.prefill(&prompt[..p]).expect("prefill");
        decoder.fork(3).expect("three rows");
        let shared = decoder.score(&ids, &targets).expect("scores");
        assert_eq!(decoder.len(), p + t);

        let want: Vec<f32> = want.concat();
        assert_eq!((whole.len(), shared.len()), (want.len(), want.len()));
        for (i, want) in want.iter().enumerate() {
            assert!((whole[i].loss - want).abs() < TOLERANCE, "{generation:?}, {i}: whole");
            assert!((shared[i].loss - want).abs() < TOLERANCE, "{generation:?}, {i}: shared");
            assert_eq!(whole[i].likeliest, shared[i].likeliest);
        }
        // The last logits name the same likeliest id.
        let last = decoder.logits_batch(&[&rows[0][..prompt.len()]]).expect("logits");
        let best = (0..90).fold(0, |b, i| if last[0][i] > last[0][b] { i } else { b });
        assert_eq!(best as u32, whole[0].likeliest);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let cpu = Cpu::open(1, Precision::F32);
    let model = tiny::model(&cpu, tiny::config(GENERATIONS[0]), 7);
    let mut decoder = NanoDecoder::new(&cpu, &model, 8).expect("a small cache");
    decoder.prefill(&[1, 2]).expect("prefill");
    assert!(matches!(decoder.score(&[1; 7], &[0; 7]), Err(Error::ContextFull { .. })));
    assert!(matches!(decoder.score(&[1], &[9000]), Err(Error::TokenId { .. })));
    assert!(matches!(decoder.score(&[1], &[]), Err(Error::Config { .. })));
    assert_eq!(decoder.len(), 2);
    let outside = Wanted { row: 0, at: 3, id: 1 };
    assert!(matches!(decoder.score_batch(&[&[1, 2]], &[outside]), Err(Error::Config { .. })));
    assert!(matches!(decoder.score_batch(&[&[]], &[]), Err(Error::Config { .. })));
}
