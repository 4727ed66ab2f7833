//! What goes wrong with one request harms no other: cancellation, panics, failures.

use super::*;
use crate::batch::{Constraint, ConstraintState};

/// A neighbour that must not notice anything.
fn neighbour(batch: &Batch) -> Heard {
    submit(batch, request(&[5, 6, 7, 8, 9], 12, 3))
}

fn undisturbed() -> Vec<u32> {
    let mut model = FakeBatch::hashed(64);
    let batch = Batch::new(&model, BatchOptions::default());
    let heard = neighbour(&batch);
    drain(&batch, &mut model);
    heard.ids(0)
}

#[test]
fn cancelling_in_the_queue_in_a_prompt_and_in_an_answer_frees_the_pages() {
    for when in [0, 1, 2] {
        let mut model = FakeBatch::hashed(64);
        let options = BatchOptions { step_tokens: 4, ..BatchOptions::default() };
        let batch = Batch::new(&model, options);
        let other = neighbour(&batch);
        let heard = Heard { patience: (when == 2).then_some(2), ..Heard::default() };
        let prompt: Vec<u32> = (0..40).collect();
        batch.submit(request(&prompt, 8, 1), heard.ear()).expect("room");
        if when == 0 {
            heard.gone.store(true, Ordering::Relaxed);
        }
        let (gone, counter) = (heard.gone.clone(), Arc::new(AtomicUsize::new(0)));
        let steps_after = counter.clone();
        model.before = Box::new(move |feeds| {
            if when == 1 && feeds.iter().any(|feed| feed.ids[0] >= 10 && feed.ids.len() > 1) {
                gone.store(true, Ordering::Relaxed);
            }
            if gone.load(Ordering::Relaxed) && feeds.len() > 1 {
                steps_after.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        drain(&batch, &mut model);
        // Gone within a step: only the step in which it went had it.
        assert!(counter.load(Ordering::Relaxed) <= 1, "{when}");
        assert_eq!(batch.load().cancelled, 1, "{when}");
        assert_eq!(heard.usage(), None);
        assert_eq!(heard.ids(0).len(), if when == 2 { 2 } else { 0 });
        assert_eq!(heard.reused().is_some(), when > 0, "{when}");
        assert_eq!(other.ids(0), undisturbed());
    }
}

/// Panics at the n-th update.
struct Bomb(usize);

impl Listener for Bomb {
    fn hear(&mut self, _: Update) {
        assert!(self.0 > 0, "a bomb");
        self.0 -= 1;
    }
    fn is_gone(&self) -> bool {
        false
    }
}

#[test]
fn a_listener_that_panics_ends_its_own_request() {
    for fuse in [0, 1, 4, 9] {
        let mut model = FakeBatch::hashed(64);
        let batch = Batch::new(&model, BatchOptions::default());
        let bomb = Request { n: 3, ..request(&[1, 2, 3, 4, 5], 6, 0) };
        batch.submit(bomb, Box::new(Bomb(fuse))).expect("room");
        let other = neighbour(&batch);
        drain(&batch, &mut model);
        assert_eq!(other.ids(0), undisturbed(), "{fuse}");
    }
}

#[test]
fn a_listener_that_cannot_even_be_asked_is_gone() {
    struct Broken;
    impl Listener for Broken {
        fn hear(&mut self, _: Update) {}
        fn is_gone(&self) -> bool {
            panic!("broken");
        }
    }
    let mut model = FakeBatch::hashed(64);
    let batch = Batch::new(&model, BatchOptions::default());
    batch.submit(request(&[1], 6, 0), Box::new(Broken)).expect("room");
    let other = neighbour(&batch);
    drain(&batch, &mut model);
    assert_eq!((other.ids(0), batch.load().cancelled), (undisturbed(), 1));
}

/// Allows even ids, and goes wrong at its third.
struct Even(&'static str);
struct EvenState(&'static str, usize);

impl Constraint for Even {
    fn begin(&self) -> Box<dyn ConstraintState> {
        assert!(self.0 != "begin", "begin");
        Box::new(EvenState(self.0, 0))
    }
}

impl ConstraintState for EvenState {
    fn mask(&mut self, words: &mut [u64]) -> std::result::Result<(), String> {
        words.iter_mut().for_each(|word| *word &= 0x5555_5555_5555_5555);
        match self.0 {
            "nothing" if self.1 == 2 => words.fill(0),
            "error" if self.1 == 2 => return Err("the form is wrong".into()),
            "panic" => assert!(self.1 < 2, "no form"),
            _ => {}
        }
        Ok(())
    }
    fn accept(&mut self, id: u32) -> std::result::Result<(), String> {
        assert!(id.is_multiple_of(2));
        self.1 += 1;
        Ok(())
    }
}

#[test]
fn a_constraint_is_kept_and_its_faults_are_its_own() {
    for (fault, said, why) in [
        ("none", 9, None),
        ("error", 2, Some("the form is wrong")),
        ("nothing", 2, Some("no id may come next")),
        ("panic", 2, Some("it panicked: no form")),
        ("begin", 0, Some("it panicked: begin")),
    ] {
        let mut model = FakeBatch::hashed(64);
        let batch = Batch::new(&model, BatchOptions::default());
        let constraint: Option<Box<dyn Constraint>> = Some(Box::new(Even(fault)));
        let heard = submit(&batch, Request { constraint, ..request(&[1, 2, 3], 9, 7) });
        let other = neighbour(&batch);
        drain(&batch, &mut model);
        let ids = heard.ids(0);
        assert_eq!(ids.len(), said, "{fault}");
        assert!(ids.iter().all(|id| id.is_multiple_of(2)), "{fault}: {ids:?}");
        match why {
            None => assert!(heard.usage().is_some(), "{fault}"),
            Some(why) => {
                let failure = heard.failure().expect("failed");
                assert!(failure.contains(why), "{fault}: {failure}");
            }
        }
        assert_eq!(other.ids(0), undisturbed(), "{fault}");
    }
}

#[test]
fn damaged_logits_fail_the_request_that_has_them() {
    let vocab_size = tokenizer().vocab_size();
    let mut model = FakeBatch::new(64, move |ids| {
        let mut logits = hashed_logits(vocab_size, ids);
        if ids[0] == 99 {
            logits[3] = f32::NAN;
        }
        logits
    });
    let batch = Batch::new(&model, BatchOptions::default());
    let bad = submit(&batch, request(&[99, 1], 5, 0));
    let other = neighbour(&batch);
    drain(&batch, &mut model);
    assert!(bad.failure().expect("failed").contains("NaN"));
    assert_eq!(other.ids(0), undisturbed());
}

#[test]
fn a_step_that_fails_or_panics_fails_those_who_were_in_it() {
    for panics in [false, true] {
        let mut model = FakeBatch::hashed(64);
        let batch = Batch::new(&model, BatchOptions { rows: 2, ..BatchOptions::default() });
        let in_it = [submit(&batch, request(&[1, 2], 9, 0)), submit(&batch, request(&[3], 9, 1))];
        let other = neighbour(&batch);
        let mut step = 0;
        model.before = Box::new(move |_| {
            step += 1;
            assert!(step != 3 || !panics, "the device is on fire");
            if step == 3 {
                let detail = "the device is on fire".to_string();
                return Err(Error::Config { field: "step", detail });
            }
            Ok(())
        });
        drain(&batch, &mut model);
        for heard in in_it {
            assert_eq!(heard.ids(0).len(), 2);
            assert!(heard.failure().expect("failed").contains("the device is on fire"));
        }
        assert_eq!(other.ids(0), undisturbed());
    }
}

#[test]
fn a_model_with_another_vocabulary_is_refused_and_nobody_waits() {
    let mut model = FakeBatch::hashed(64);
    model.vocab_size = 7;
    let batch = Batch::new(&model, BatchOptions::default());
    let heard = submit(&batch, request(&[1], 3, 0));
    let error = batch.run(&mut model, &tokenizer()).expect_err("7 ids are not those");
    assert!(matches!(error, crate::Error::Vocabulary { model: 7, .. }), "{error}");
    assert_eq!(heard.failure().as_deref(), Some("the server is stopping"));
    assert_eq!(batch.submit(request(&[1], 1, 0), heard.ear()), Err(Refused::Closed));
}
