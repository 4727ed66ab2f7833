use super::*;
use proptest::prelude::*;

const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 2.0, 0.0, 1.0];

fn options(temperature: f32, top_k: Option<usize>) -> SampleOptions {
    SampleOptions::new(temperature, top_k, 42).unwrap()
}

/// Counts of 20,000 draws: 20 rows, 1,000 steps each.
fn counts(options: SampleOptions, logits: &[f32]) -> Vec<usize> {
    let mut sampler = Sampler::new(options);
    let mut counts = vec![0; logits.len()];
    for row in 0..20 {
        for step in 0..1000 {
            counts[sampler.draw(logits, Context::default(), row, step).unwrap() as usize] += 1;
        }
    }
    counts
}

/// Asserts that 20,000 draws follow the softmax of `kept` ids at `temperature`.
fn assert_distribution(options: SampleOptions, temperature: f64, kept: &[usize]) {
    let counts = counts(options, &LOGITS);
    let weight = |i: usize| (f64::from(LOGITS[i]) / temperature).exp();
    let total: f64 = kept.iter().map(|i| weight(*i)).sum();
    let mut chi2 = 0.0;
    for (i, count) in counts.iter().enumerate() {
        if kept.contains(&i) {
            let expected = 20_000.0 * weight(i) / total;
            chi2 += (*count as f64 - expected).powi(2) / expected;
        } else {
            assert_eq!(*count, 0, "id {i} must never be drawn");
        }
    }
    // 99.9% quantiles of chi-square with 0..=5 degrees of freedom.
    let limit = [1e-9, 10.83, 13.82, 16.27, 18.47, 20.52][kept.len() - 1];
    assert!(chi2 < limit, "chi2 {chi2} of {counts:?}");
}

#[test]
fn draws_follow_the_softmax() {
    assert_distribution(options(1.0, None), 1.0, &[0, 1, 2, 3, 4, 5]);
    assert_distribution(options(0.7, None), 0.7, &[0, 1, 2, 3, 4, 5]);
    assert_distribution(options(2.0, Some(100)), 2.0, &[0, 1, 2, 3, 4, 5]);
}

#[test]
fn top_k_keeps_the_softmax_of_the_best_k() {
    assert_distribution(options(1.0, Some(1)), 1.0, &[1]);
    assert_distribution(options(1.5, Some(4)), 1.5, &[0, 1, 3, 5]);
}

#[test]
fn top_p_keeps_the_id_that_reaches_p() {
    // Probabilities at T = 1: .360 .360 .133 .080 .049 .018.
    let with = |p| options(1.0, None).with_top_p(Some(p)).unwrap();
    assert_distribution(with(0.01), 1.0, &[1]);
    assert_distribution(with(0.7), 1.0, &[1, 3]);
    assert_distribution(with(0.74), 1.0, &[1, 3, 5]);
    assert_distribution(with(1.0), 1.0, &[0, 1, 2, 3, 4, 5]);
}

#[test]
fn top_p_counts_within_top_k() {
    // The best three alone: .422 .422 .155.
    let with = |p| options(1.0, Some(3)).with_top_p(Some(p)).unwrap();
    assert_distribution(with(0.83), 1.0, &[1, 3]);
    assert_distribution(with(0.86), 1.0, &[1, 3, 5]);
}

#[test]
fn min_p_is_a_share_of_the_best() {
    // exp(-1) = .368 and exp(-1.5) = .223 of the best.
    let with = |k, p| options(1.0, k).with_min_p(Some(p)).unwrap();
    assert_distribution(with(None, 0.3), 1.0, &[1, 3, 5]);
    assert_distribution(with(Some(5), 0.2), 1.0, &[0, 1, 3, 5]);
    let both = with(None, 0.3).with_top_p(Some(0.99)).unwrap();
    assert_distribution(both, 1.0, &[1, 3, 5]);
}

#[test]
fn top_p_over_a_flat_vocabulary_keeps_its_share() {
    let logits: Vec<f32> = (0..5000).map(|i| (i % 7) as f32 * 1e-6).collect();
    let mut sampler = Sampler::new(options(1.0, None).with_top_p(Some(0.5)).unwrap());
    sampler.draw(&logits, Context::default(), 0, 0).unwrap();
    let kept = sampler.weights.iter().filter(|w| **w > 0.0).count();
    assert!((2499..=2501).contains(&kept), "{kept}");
}

#[test]
fn temperature_zero_takes_the_lowest_of_equals() {
    let mut sampler = Sampler::new(SampleOptions::greedy());
    assert_eq!(sampler.draw(&LOGITS, Context::default(), 0, 0).unwrap(), 1);
    assert_eq!(sampler.draw(&[0.0; 100], Context::default(), 3, 9).unwrap(), 0);
    assert_eq!(sampler.draw(&[-0.0, 0.0], Context::default(), 0, 0).unwrap(), 0);
}

fn after(prompt: &[u32]) -> Context<'_> {
    Context { prompt, ..Context::default() }
}

#[test]
fn the_penalty_counts_an_id_once() {
    let greedy = SampleOptions::greedy().with_repetition_penalty(1.5).unwrap();
    let mut sampler = Sampler::new(greedy);
    assert_eq!(sampler.draw(&[1.0, 1.4, -3.0], Context::default(), 0, 0).unwrap(), 1);
    assert_eq!(sampler.draw(&[1.0, 1.4, -3.0], after(&[1]), 0, 0).unwrap(), 0);
    // Twice penalised, 1.6 would fall under 1.0; ids outside the logits are passed over.
    assert_eq!(sampler.draw(&[1.0, 1.6, -3.0], after(&[1, 1, 9]), 0, 0).unwrap(), 1);
    assert_eq!(sampler.draw(&[-1.4, -1.0], after(&[1]), 0, 0).unwrap(), 0);
}

#[test]
fn frequency_and_presence_count_the_answer_alone() {
    let draw = |frequency, presence, prompt: &[u32], said: &[u32], logits: &[f32]| {
        let greedy = SampleOptions::greedy().with_frequency_penalty(frequency).unwrap();
        let mut sampler = Sampler::new(greedy.with_presence_penalty(presence).unwrap());
        sampler.draw(logits, Context { prompt, said, allowed: None }, 0, 0).unwrap()
    };
    // 3 - 2 * 0.75 - 0.25 = 1.25 against 1.2 and against 1.3.
    assert_eq!(draw(0.75, 0.25, &[], &[1, 0, 1], &[-9.0, 3.0, 1.2]), 1);
    assert_eq!(draw(0.75, 0.25, &[], &[1, 0, 1], &[-9.0, 3.0, 1.3]), 2);
    // Once or thrice is the same to presence; the prompt is nothing to either.
    assert_eq!(draw(0.0, 1.0, &[], &[1, 1, 1], &[-9.0, 3.0, 2.1]), 2);
    assert_eq!(draw(0.0, 1.0, &[], &[1], &[-9.0, 3.0, 1.9]), 1);
    assert_eq!(draw(2.0, 2.0, &[1, 1, 1], &[9], &[-9.0, 3.0, 2.9]), 1);
    // Negative penalties ask for repetition.
    assert_eq!(draw(-1.0, 0.0, &[], &[2, 2], &[-9.0, 3.0, 1.5]), 2);
}

#[test]
fn a_bias_is_added_to_single_ids() {
    let bias = |list: &[(u32, f32)]| SampleOptions::greedy().with_logit_bias(list.to_vec());
    let draw = |list: &[(u32, f32)]| {
        let mut sampler = Sampler::new(bias(list).unwrap());
        sampler.draw(&LOGITS, Context::default(), 0, 0).unwrap()
    };
    assert_eq!(draw(&[(2, 3.5)]), 2);
    assert_eq!(draw(&[(1, -0.5)]), 3);
    assert_eq!(draw(&[(1, -100.0), (3, -100.0), (77, 100.0)]), 5);
    assert!(bias(&[(0, 100.5)]).is_err() && bias(&[(0, f32::NAN)]).is_err());
}

#[test]
fn a_forbidden_id_is_never_drawn() {
    for options in [
        options(1.0, None),
        options(2.0, Some(3)),
        options(1.0, None).with_top_p(Some(0.9)).unwrap(),
        SampleOptions::greedy(),
    ] {
        let mut sampler = Sampler::new(options);
        let allowed = [0b10_1001_u64];
        let context = Context { allowed: Some(&allowed), ..Context::default() };
        for step in 0..500 {
            let id = sampler.draw(&LOGITS, context, 0, step).unwrap();
            assert!([0, 3, 5].contains(&id), "{id}");
        }
        let context = Context { allowed: Some(&[0]), ..Context::default() };
        let error = sampler.draw(&LOGITS, context, 2, 3).unwrap_err();
        assert!(matches!(error, Error::NothingAllowed { row: 2, step: 3 }), "{error}");
    }
}

#[test]
fn a_damaged_logit_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(options(temperature, Some(2)));
            let error = sampler.draw(&[0.0, 1.0, bad, 0.0], Context::default(), 5, 6).unwrap_err();
            assert!(matches!(error, Error::Logit { row: 5, step: 6, id: 2, .. }), "{error}");
        }
    }
    let mut sampler = Sampler::new(options(1.0, None));
    assert!(matches!(sampler.draw(&[], Context::default(), 0, 0), Err(Error::LogitCount { .. })));
}

#[test]
fn options_out_of_range_are_refused() {
    assert!(SampleOptions::new(2.1, None, 0).is_err());
    assert!(SampleOptions::new(-0.1, None, 0).is_err());
    assert!(SampleOptions::new(f32::NAN, None, 0).is_err());
    assert!(SampleOptions::new(1.0, Some(0), 0).is_err());
    for p in [0.0, 1.1, f32::NAN] {
        assert!(SampleOptions::greedy().with_top_p(Some(p)).is_err());
    }
    for p in [-0.1, 1.0, f32::NAN] {
        assert!(SampleOptions::greedy().with_min_p(Some(p)).is_err());
    }
    assert!(SampleOptions::greedy().with_repetition_penalty(0.0).is_err());
    assert!(SampleOptions::greedy().with_frequency_penalty(2.1).is_err());
    assert!(SampleOptions::greedy().with_presence_penalty(f32::NAN).is_err());
    let message = SampleOptions::new(3.0, None, 0).unwrap_err().to_string();
    assert_eq!(message, "temperature is 3: choose a number from 0 to 2");
}

proptest! {
    #[test]
    fn gather_equals_a_full_sort(
        levels in prop::collection::vec(-20_i32..20, 1..700),
        k in 1_usize..800,
    ) {
        let logits: Vec<f32> = levels.iter().map(|x| *x as f32 / 4.0).collect();
        let mut sampler = Sampler::new(SampleOptions::greedy());
        sampler.gather(&logits, k);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by_key(|i| (-levels[*i as usize], *i));
        order.truncate(k);
        let ids: Vec<u32> = sampler.best.iter().map(|c| c.id).collect();
        prop_assert_eq!(ids, order);
    }

    #[test]
    fn the_nucleus_is_a_prefix_of_the_sorted_ids(
        levels in prop::collection::vec(-90_i32..20, 1..300),
        (temperature, p) in (0.1_f32..2.0, 0.01_f32..0.99),
    ) {
        let logits: Vec<f32> = levels.iter().map(|x| *x as f32 / 8.0).collect();
        let mut sampler = Sampler::new(options(temperature, None));
        sampler.weigh_all(&logits);
        let all = sampler.weights.clone();
        let mass = f64::from(p) * sum(&all);
        sampler.keep_nucleus(&logits, mass);
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|i| (-levels[*i], *i));
        let kept = order.iter().take_while(|i| sampler.weights[**i] > 0.0).count();
        prop_assert!(order[kept..].iter().all(|i| sampler.weights[*i] == 0.0));
        let upto = |n: usize| order[..n].iter().map(|i| f64::from(all[*i])).sum::<f64>();
        // 1e-9: the order in which at most 300 f64 are added.
        prop_assert!(upto(kept) >= mass * (1.0 - 1e-9));
        prop_assert!(upto(kept - 1) < mass * (1.0 + 1e-9));
    }

    #[test]
    fn any_finite_logits_give_an_id(
        logits in prop::collection::vec(-3.4e38_f32..3.4e38, 1..50),
        (temperature, k, p, m) in (0.0_f32..2.0, 1_usize..60, 0.001_f32..1.0, 0.0_f32..0.99),
        (penalty, seed, step) in (0.1_f32..10.0, any::<u64>(), any::<u64>()),
    ) {
        let options = SampleOptions::new(temperature, Some(k), seed).unwrap();
        let options = options.with_top_p(Some(p)).unwrap().with_min_p(Some(m)).unwrap();
        let options = options.with_repetition_penalty(penalty).unwrap();
        let id = Sampler::new(options).draw(&logits, after(&[0, 3]), seed, step).unwrap();
        prop_assert!((id as usize) < logits.len());
    }
}
