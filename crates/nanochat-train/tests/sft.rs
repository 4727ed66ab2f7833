//! Finetuning: conversations of every length train, and the rates follow one pass over them.

mod tiny;

use nanochat_compute::cpu::{Cpu, Precision};
use nanochat_data::{
    Batches, Batching, ConversationList, Mixture, PackConfig, PackStats, Packer, TooLong,
};
use nanochat_tokenizer::{Conversation, Tokenizer};
use nanochat_train::base::Outcome;
use nanochat_train::optim::{LearningRates, Optimizer};
use nanochat_train::schedule::SftSchedule;
use nanochat_train::sft::{self, SftRecipe, SftRun};
use nanochat_train::step::Trainer;
use serde_json::json;
use tiny::Told;

fn conversation(question: &str, answer: &str) -> Conversation {
    let messages = json!({"messages": [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
    ]});
    serde_json::from_value(messages).expect("a conversation")
}

/// Forty short ones, ten whose answer is cut by 33 tokens, ten whose question alone is longer.
fn mixed() -> Vec<Conversation> {
    let one = |i: usize| match i % 6 {
        0 => conversation("a", &"yes ".repeat(10)),
        1 => conversation(&"why ".repeat(20), "no"),
        n => conversation("b", &"c".repeat(n)),
    };
    (0..60).map(one).collect()
}

fn packer(list: Vec<Conversation>, config: PackConfig) -> Packer<Tokenizer> {
    let list = ConversationList::new("talks", list);
    let mixture = Mixture::new(vec![(Box::new(list), 1)]).expect("conversations");
    Packer::new(mixture, tiny::tokenizer(), config).expect("sizes that fit")
}

fn schedule() -> SftSchedule {
    SftSchedule { init_lr_frac: 0.8, warmup_ratio: 0.0, warmdown_ratio: 0.5, final_lr_frac: 0.0 }
}

fn run(train: &mut dyn Batches, num_iterations: Option<u64>) -> (Outcome, Told) {
    let be = Cpu::open(2, Precision::F32);
    let dir = tempfile::tempdir().expect("a writable folder");
    let recipe = SftRecipe {
        max_seq_len: 32,
        device_batch_size: 2,
        accumulation: 1,
        num_iterations,
        rates: LearningRates::default().scaled(0.1),
        schedule: schedule(),
        eval_every: 5,
        eval_tokens: 64,
        save_every: 0,
        keep: 1,
    };
    let model = tiny::model(&be);
    let optim = Optimizer::new(&be, &model, recipe.rates).expect("a small state");
    let mut trainer = Trainer::new(&be, &model, optim, 2, 32).expect("a small arena");
    let tokenizer = tiny::tokenizer();
    let mut told = Told::default();
    let sft = SftRun {
        recipe: &recipe,
        dir: dir.path(),
        tokenizer: Tokenizer::fingerprint(&tokenizer),
        token_bytes: &tokenizer.token_bytes(),
        train,
        val: &mut || Ok(Box::new(packer(mixed(), PackConfig::new(2, 32)))),
        resume: None,
        survival: &nanochat_train::survival::Survival::default(),
    };
    let outcome = sft::run(sft, &mut trainer, &mut told).expect("a whole run");
    let values = model.params().to_vec_f32().expect("f32");
    assert!(values.iter().all(|x| x.is_finite()));
    (outcome, told)
}

fn with(batching: Batching, too_long: TooLong) -> (PackStats, Told) {
    let config = PackConfig { batching, too_long, buffer: 10, ..PackConfig::new(2, 32) };
    let mut packer = packer(mixed(), config);
    let (outcome, told) = run(&mut packer, Some(40));
    assert_eq!(outcome.progress.step, 40);
    assert!(outcome.progress.val_bpb.expect("validated").is_finite());
    let losses = told.field("step", "loss");
    assert!(losses.iter().all(|l| l.is_finite()), "{losses:?}");
    assert!(told.field("step", "trained_tokens").iter().all(|&n| n > 0.0));
    (packer.stats(), told)
}

#[test]
fn long_conversations_are_cut_or_skipped_and_counted() {
    for batching in [Batching::Packed, Batching::Fixed, Batching::Dynamic] {
        let (cut, told) = with(batching, TooLong::Truncate);
        assert!(cut.truncated > 0 && cut.skipped_long == 0, "{batching:?}: {cut:?}");
        // Of a question that fills the row no answer is left to train.
        assert!(cut.skipped_untrained > 0, "{batching:?}: {cut:?}");
        assert!(cut.truncated > cut.skipped_untrained, "{batching:?}: {cut:?}");
        let losses = told.field("step", "loss");
        assert!(losses[39] < losses[0] - 1.0, "{batching:?} learns: {losses:?}");
        let (skip, _) = with(batching, TooLong::Skip);
        assert!(skip.skipped_long > 0 && skip.truncated == 0, "{batching:?}: {skip:?}");
        assert_eq!(skip.skipped_untrained, 0, "{batching:?}");
    }
}

#[test]
fn without_a_number_of_steps_it_is_one_pass_and_the_rates_follow() {
    let list: Vec<_> = (0..100).map(|i| conversation("q", &"a".repeat(1 + i % 20))).collect();
    for batching in [Batching::Packed, Batching::Fixed, Batching::Dynamic] {
        let config = PackConfig { batching, buffer: 10, ..PackConfig::new(2, 32) };
        let mut packer = packer(list.clone(), config);
        let (outcome, told) = run(&mut packer, None);
        let placed = packer.stats().conversations;
        // The last batch may reach into the next pass; no batch begins there.
        assert!((100..110).contains(&placed), "{batching:?}: {placed} conversations");
        let rates = told.field("step", "lr_multiplier");
        assert_eq!(rates.len() as u64, outcome.progress.step);
        assert_eq!(rates[0], 0.8);
        assert!(rates.windows(2).all(|w| w[1] <= w[0]), "{batching:?} rises: {rates:?}");
        // Within a batch (at most 10 of 100 conversations) of the end the rate is 0.8 x 2 x 0.1.
        assert!(rates[rates.len() - 1] <= 0.16, "{batching:?}: {rates:?}");
    }
}
