//! CORE against the truth: CPython's draws, upstream's prompts, PyTorch's losses, models that know.

mod rigged;

use std::path::{Path, PathBuf};

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::tasks::core::{CoreTask, Item, Kind, shots};
use nanochat_gpt::import::import;
use nanochat_gpt::nano::decode::NanoDecoder;
use nanochat_train::eval::core::{evaluate, metric, prompt, texts};
use nanochat_train::eval::likelihood::{Batched, Candidate, EvalModel, Plain, Span};
use rigged::{Kept, Rigged, tokenizer};
use serde::Deserialize;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

fn read<T: for<'d> Deserialize<'d>>(name: &str) -> T {
    let text = std::fs::read_to_string(fixture(name)).expect("the fixture is in the repository");
    serde_json::from_str(&text).expect("the fixture's form")
}

fn task(kind: Kind, shots: usize, percent: f64, file: PathBuf) -> CoreTask {
    let (label, delimiter) = ("t".to_owned(), " ".to_owned());
    CoreTask { label, kind, shots, delimiter, baseline_percent: percent, file }
}

#[test]
fn items_and_examples_are_those_of_cpython() {
    let orders: Value = read("evals/orders.json");
    let dir = tempfile::tempdir().expect("a folder");
    for shuffle in orders["shuffles"].as_array().expect("a list") {
        let n = shuffle["n"].as_u64().expect("a count") as usize;
        let file = dir.path().join("t.jsonl");
        let lines: String =
            (0..n).map(|i| format!("{{\"context\":\"{i}\",\"continuation\":\"x\"}}\n")).collect();
        std::fs::write(&file, lines).expect("a file");
        let task = task(Kind::LanguageModeling, 0, 0.0, file);
        let first: Vec<usize> = serde_json::from_value(shuffle["first"].clone()).expect("numbers");
        let items = task.items(Some(12)).expect("items");
        assert_eq!(items.iter().map(|i| i.0).collect::<Vec<_>>(), first, "{n} items");
        let Item::LanguageModeling { context, .. } = &items[0].1 else { panic!("another kind") };
        assert_eq!(*context, first[0].to_string());
    }
    for case in orders["shots"].as_array().expect("a list") {
        let of = |key: &str| case[key].as_u64().expect("a number") as usize;
        let drawn: Vec<usize> = serde_json::from_value(case["drawn"].clone()).expect("numbers");
        assert_eq!(shots(of("n"), of("i"), of("k")), drawn, "{case}");
    }
    assert_eq!(shots(3, 1, 10).len(), 2, "there are only two others");
    assert!(shots(1, 0, 10).is_empty());
}

fn item(kind: &str, of: &Value) -> Item {
    let text = |key: &str| of[key].as_str().expect("a text").to_owned();
    let list = |key: &str| serde_json::from_value(of[key].clone()).expect("texts");
    let gold = of["gold"].as_u64().unwrap_or_default() as usize;
    match kind {
        "multiple_choice" => {
            Item::MultipleChoice { query: text("query"), choices: list("choices"), gold }
        }
        "schema" => {
            let contexts = list("context_options");
            Item::Schema { contexts, continuation: text("continuation"), gold }
        }
        _ => {
            Item::LanguageModeling { context: text("context"), continuation: text("continuation") }
        }
    }
}

#[test]
fn prompts_are_upstreams_to_the_byte() {
    let all: Value = read("evals/prompts.json");
    let cases = all["cases"].as_array().expect("a list");
    assert_eq!(cases.len(), 18);
    for case in cases {
        let kind = case["kind"].as_str().expect("a kind");
        let of = |i: &Value| item(kind, &all[kind][i.as_u64().expect("a number") as usize]);
        let examples: Vec<Item> =
            case["examples"].as_array().expect("a list").iter().map(of).collect();
        let examples: Vec<&Item> = examples.iter().collect();
        let delimiter = case["delimiter"].as_str().expect("a text");
        let want: Vec<String> = serde_json::from_value(case["texts"].clone()).expect("texts");
        assert_eq!(texts(&of(&case["item"]), &examples, delimiter), want, "{case}");
    }
}

/// A span of the fixture.
#[derive(Deserialize)]
struct Golden {
    ids: Vec<u32>,
    from: usize,
    losses: Vec<f32>,
    greedy: bool,
}

#[test]
fn losses_are_pytorchs_shared_or_not() {
    let golden: Vec<Vec<Golden>> = read("evals/losses.json");
    let items: Vec<Vec<Candidate>> = golden
        .iter()
        .map(|item| item.iter().map(|g| Candidate { ids: g.ids.clone(), from: g.from }).collect())
        .collect();
    let cpu = Cpu::open(2, Precision::F32);
    let model = import(&cpu, &fixture("gen5"), None).expect("the gen5 model");
    let decoder = || NanoDecoder::new(&cpu, &model, usize::MAX).expect("an empty cache");
    let models: [(&str, Box<dyn EvalModel + '_>); 3] = [
        ("shared", Box::new(Batched::new(decoder(), true))),
        ("whole", Box::new(Batched::new(decoder(), false))),
        ("plain", Box::new(Plain(decoder()))),
    ];
    for (name, mut model) in models {
        let mut found: Vec<Option<Vec<Span>>> = vec![None; items.len()];
        let mut done = |i: usize, spans: Vec<Span>| {
            assert!(found[i].replace(spans).is_none(), "{name}: item {i} came twice");
            Ok(())
        };
        model.score(&items, &mut done).expect("scores");
        for (i, (found, want)) in found.iter().zip(&golden).enumerate() {
            let found = found.as_ref().expect("every item comes");
            assert_eq!(found.len(), want.len());
            for (found, want) in found.iter().zip(want) {
                assert_eq!(found.losses.len(), want.losses.len(), "{name}, item {i}");
                // 2e-5: f32 itself strays by 6e-6 from the f64 that made the fixture.
                for (a, b) in found.losses.iter().zip(&want.losses) {
                    assert!((a - b).abs() < 2e-5, "{name}, item {i}: {a}, PyTorch has {b}");
                }
                assert_eq!(found.greedy, want.greedy, "{name}, item {i}");
            }
        }
    }
    let greedy = golden.iter().flatten().filter(|g| g.greedy).count();
    assert!(greedy >= 2, "the fixture has continuations that the model would say");
}

#[test]
fn the_next_logits_do_not_depend_on_the_batch() {
    let cpu = Cpu::open(2, Precision::F32);
    let model = import(&cpu, &fixture("gen5"), None).expect("the gen5 model");
    let decoder = || NanoDecoder::new(&cpu, &model, usize::MAX).expect("an empty cache");
    let prompts = [vec![3, 1, 4], vec![1], (0..90).collect(), vec![5, 9]];
    let batched = Batched::new(decoder(), true).next_logits(&prompts).expect("logits");
    let plain = Plain(decoder()).next_logits(&prompts).expect("logits");
    for (a, b) in batched.iter().zip(&plain) {
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // f32 sums in another order, through 4 layers, on logits of up to 15.
        assert!(a.len() == 90 && worst < 1e-4, "off by {worst}");
    }
}

#[test]
fn spans_begin_where_texts_part_or_meet() {
    let t = tokenizer();
    let of = |item: &Item| prompt(item, &[], " ", &t);
    // bos, "q ", then the choices part after "A ": two bytes of them are common.
    let choices = vec!["A cat".to_owned(), "A dog".to_owned()];
    let found = of(&Item::MultipleChoice { query: "q".into(), choices, gold: 1 });
    assert_eq!(
        found.candidates.iter().map(|c| (c.from, c.ids.len())).collect::<Vec<_>>(),
        [(5, 8); 2]
    );
    assert_eq!(found.gold, Some(1));
    // The ends " x." are common, the contexts' lengths differ.
    let contexts = vec!["it".to_owned(), "them".to_owned()];
    let found = of(&Item::Schema { contexts, continuation: "x.".into(), gold: 0 });
    assert_eq!(
        found.candidates.iter().map(|c| (c.from, c.ids.len())).collect::<Vec<_>>(),
        [(3, 6), (5, 8)]
    );
    // The blank before the continuation is asked for too.
    let found = of(&Item::LanguageModeling { context: " a b\n".into(), continuation: "c".into() });
    assert_eq!((found.candidates[0].from, found.candidates[0].ids.len(), found.gold), (4, 6, None));
}

/// One record a gold, for two choices, contexts, or one continuation.
fn items(kind: Kind) -> Vec<(usize, Item)> {
    let item = |i: usize| match kind {
        Kind::MultipleChoice => Item::MultipleChoice {
            query: format!("{i}?"),
            choices: vec!["yes".into(), "no".into()],
            gold: i % 2,
        },
        Kind::Schema => Item::Schema {
            contexts: vec![format!("{i} left"), format!("{i} right")],
            continuation: "turns".into(),
            gold: i % 2,
        },
        Kind::LanguageModeling => {
            Item::LanguageModeling { context: format!("{i} is"), continuation: "so".into() }
        }
    };
    (0..6).map(|i| (i, item(i))).collect()
}

#[test]
fn a_model_that_knows_scores_one_and_one_that_does_not_scores_the_baseline() {
    let t = tokenizer();
    for (kind, guess) in
        [(Kind::MultipleChoice, 50.0), (Kind::Schema, 50.0), (Kind::LanguageModeling, 0.0)]
    {
        for k in [0, 2] {
            let task = task(kind, k, guess, PathBuf::new());
            let items = items(kind);
            let known = (0..items.len()).map(|i| {
                let examples = shots(items.len(), i, k);
                let examples: Vec<&Item> = examples.iter().map(|&j| &items[j].1).collect();
                let found = prompt(&items[i].1, &examples, " ", &t);
                found.candidates[found.gold.unwrap_or(0)].ids.clone()
            });
            let known: Vec<Vec<u32>> = known.collect();
            for (known, score, centered) in [(known, 1.0, 1.0), (vec![], guess / 100.0, 0.0)] {
                let mut model = Plain(Rigged::new(&t, known));
                let mut kept = Kept::default();
                let found = evaluate(&mut model, &t, &task, &items, &mut kept).expect("scores");
                assert_eq!(
                    (found.score, found.centered, found.n),
                    (score, centered, 6),
                    "{kind:?}"
                );
                assert_eq!(metric(&[found]), Some(centered));
                assert_eq!(kept.0.len(), 6);
                let right = kept.0.iter().map(|g| g.right).sum::<f64>() / 6.0;
                assert!((right - score).abs() < 1e-12 && kept.0.iter().all(|g| g.shots.len() == k));
            }
        }
    }
}

#[test]
fn a_hand_computed_choice_goes_by_the_mean_and_not_by_the_sum() {
    let t = tokenizer();
    // The model is sure of the long choice, but for its first byte.
    let item = Item::MultipleChoice {
        query: "q".into(),
        choices: vec!["b".into(), "accc".into()],
        gold: 1,
    };
    let known = prompt(&item, &[], " ", &t).candidates[1].ids.clone();
    struct SecondHalf(Rigged);
    impl nanochat_gpt::model::Decoder for SecondHalf {
        fn vocab_size(&self) -> usize {
            self.0.vocab_size()
        }
        fn max_len(&self) -> usize {
            self.0.max_len()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn rows(&self) -> usize {
            self.0.rows()
        }
        fn reset(&mut self) {
            self.0.reset();
        }
        fn prefill(&mut self, ids: &[u32]) -> nanochat_gpt::Result<Vec<f32>> {
            let logits = self.0.prefill(ids)?;
            // Three ids and fewer: the model does not know yet.
            Ok(if self.0.len() <= 3 { vec![0.0; logits.len()] } else { logits })
        }
        fn fork(&mut self, n: usize) -> nanochat_gpt::Result<()> {
            self.0.fork(n)
        }
        fn decode(&mut self, ids: &[u32]) -> nanochat_gpt::Result<Vec<f32>> {
            self.0.decode(ids)
        }
    }
    let mut model = Plain(SecondHalf(Rigged::new(&t, vec![known])));
    let mut kept = Kept::default();
    let task = task(Kind::MultipleChoice, 0, 50.0, PathBuf::new());
    let score = evaluate(&mut model, &t, &task, &[(0, item)], &mut kept).expect("a score");
    assert_eq!((score.score, kept.0[0].answers[0].as_str()), (1.0, "accc"));
    // "b": ln V. "accc": ln V, then three of e^20 to one: ln(1 + (V - 1) e^-20) each.
    let v = t.vocab_size() as f64;
    let sure = (1.0 + (v - 1.0) * (-20f64).exp()).ln();
    let want = [v.ln(), (v.ln() + 3.0 * sure) / 4.0];
    for (found, want) in kept.0[0].losses.iter().zip(want) {
        // 1e-6: losses are kept as f32.
        assert!((found - want).abs() < 1e-6, "{found}, by hand {want}");
    }
    assert_eq!(kept.0[0].losses.len(), 2);
}
