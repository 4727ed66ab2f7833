//! Who is computed when: joining, leaving, waiting, being refused.

use super::*;

fn ids(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7 + salt * 31) % 200).collect()
}

/// What the same request says alone.
fn alone(make: impl Fn() -> Request) -> Vec<Vec<u32>> {
    let mut model = FakeBatch::hashed(64);
    let batch = Batch::new(&model, BatchOptions::default());
    let n = make().n;
    let heard = submit(&batch, make());
    drain(&batch, &mut model);
    (0..n).map(|row| heard.ids(row)).collect()
}

#[test]
fn rows_join_and_leave_and_say_what_they_say_alone() {
    let mut model = FakeBatch::hashed(200);
    let options = BatchOptions { rows: 6, queue: 99, step_tokens: 9 };
    let batch = Batch::new(&model, options);
    let make = |i: usize| Request {
        n: 1 + i % 3,
        ..request(&ids(1 + i * 5 % 23, (i % 4) as u32), 1 + i * 3 % 11, i as u64)
    };
    let heard: Vec<Heard> = (0..40).map(|i| submit(&batch, make(i))).collect();
    drain(&batch, &mut model);
    for (i, heard) in heard.iter().enumerate() {
        let said: Vec<_> = (0..1 + i % 3).map(|row| heard.ids(row)).collect();
        assert_eq!(said, alone(|| make(i)), "request {i}");
        let usage = heard.usage().expect("done");
        assert_eq!(usage.generated_tokens, (1 + i % 3) * (1 + i * 3 % 11));
        assert_eq!(heard.finish(0), Some(Finish::MaxTokens));
    }
    assert!(model.steps.iter().any(|(rows, chunks)| *rows > 0 && *chunks > 0), "mixed steps");
    assert!(model.steps.iter().all(|(rows, _)| *rows <= 9 + 32));
    let load = batch.load();
    let generated: u64 = (0..40).map(|i| (1 + i % 3) * (1 + i * 3 % 11)).sum();
    assert_eq!(load.generated_tokens, generated);
    assert_eq!(load.steps as usize, model.steps.len());
}

#[test]
fn a_long_prompt_comes_in_chunks_while_others_go_on() {
    let mut model = FakeBatch::hashed(64);
    let options = BatchOptions { step_tokens: 8, ..BatchOptions::default() };
    let batch = Batch::new(&model, options);
    let quick = submit(&batch, request(&ids(2, 1), 10, 1));
    let long = submit(&batch, request(&ids(50, 2), 3, 2));
    drain(&batch, &mut model);
    assert_eq!((quick.ids(0).len(), long.ids(0).len()), (10, 3));
    // The first step has both prompts; the next ones an id of the row and a chunk.
    assert_eq!(model.steps[0], (0, 8));
    assert!(model.steps[1..6].iter().all(|step| *step == (1, 8)), "{:?}", model.steps);
}

#[test]
fn a_prompt_that_came_before_is_not_computed_again() {
    let mut model = FakeBatch::hashed(64);
    let batch = Batch::new(&model, BatchOptions { rows: 1, ..BatchOptions::default() });
    let shared = ids(20, 3);
    let make = |tail: u32| request(&[&shared[..], &[tail]].concat(), 4, 5);
    let heard: Vec<_> = [1, 2, 1].map(|tail| submit(&batch, make(tail))).into();
    drain(&batch, &mut model);
    assert_eq!(heard.iter().map(|h| h.reused().expect("began")).collect::<Vec<_>>(), [0, 20, 20]);
    assert_eq!(heard[0].ids(0), heard[2].ids(0));
    assert_eq!(heard[1].ids(0), alone(|| make(2))[0]);
    let load = batch.load();
    assert_eq!((load.prefix_queries, load.prefix_hits, load.prompt_tokens), (63, 40, 23));
    assert!(load.pages_cached > 0 && load.pages_used == 0);
}

#[test]
fn what_requests_that_come_together_have_in_common_is_computed_once() {
    let mut model = FakeBatch::hashed(200);
    let batch = Batch::new(&model, BatchOptions { step_tokens: 10, ..BatchOptions::default() });
    let make = |tail: u32| request(&[&ids(40, 3)[..], &[tail, 7]].concat(), 4, 5);
    let heard: Vec<_> = (0..8).map(|tail| submit(&batch, make(tail))).collect();
    drain(&batch, &mut model);
    // The last page of 40 is complete in the step in which the second begins.
    let reused: Vec<_> = heard.iter().map(|h| h.reused().expect("began")).collect();
    assert!(reused[0] == 0 && reused[1..].iter().all(|n| *n >= 36), "{reused:?}");
    for (tail, heard) in heard.iter().enumerate() {
        assert_eq!(heard.ids(0), alone(|| make(tail as u32))[0]);
    }
}

#[test]
fn an_answer_is_the_prefix_of_the_next_turn() {
    let mut model = FakeBatch::hashed(64);
    let batch = Batch::new(&model, BatchOptions::default());
    let first = submit(&batch, request(&ids(6, 3), 11, 5));
    drain(&batch, &mut model);
    let batch = Batch::new(&model, BatchOptions::default());
    let turn = [ids(6, 3), first.ids(0), vec![9, 9]].concat();
    let second = submit(&batch, request(&turn, 1, 5));
    drain(&batch, &mut model);
    // 6 + 10 ids were held: the last drawn one was not fed.
    assert_eq!(second.reused(), Some(16));
}

#[test]
fn prefixes_are_given_up_when_pages_are_needed() {
    // 20 pages; each request needs 6 and leaves 5 whole ones behind.
    let mut model = FakeBatch::hashed(20);
    let batch = Batch::new(&model, BatchOptions { queue: 300, ..BatchOptions::default() });
    let make = |i: usize| request(&ids(17 + i % 3, (i * i % 7) as u32), 4, i as u64);
    let heard: Vec<_> = (0..60).map(|i| submit(&batch, make(i))).collect();
    drain(&batch, &mut model);
    let hits = heard.iter().filter(|h| h.reused() > Some(0)).count();
    assert!(hits > 5 && hits < 60, "{hits}");
    for (i, heard) in heard.iter().enumerate() {
        assert_eq!(heard.ids(0), alone(|| make(i))[0], "request {i}");
    }
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let mut model = FakeBatch::hashed(64);
    let batch = Batch::new(&model, BatchOptions { queue: 3, ..BatchOptions::default() });
    let heard: Vec<_> = (0..3).map(|i| submit(&batch, request(&ids(3, i), 2, 0))).collect();
    let refused = batch.submit(request(&[1], 1, 0), Heard::default().ear());
    let full = Refused::Full { waiting: 3, limit: 3, retry_after_s: 1 };
    assert_eq!(refused, Err(full));
    assert_eq!(batch.load().waiting, 3);
    drain(&batch, &mut model);
    assert!(heard.iter().all(|h| h.usage().is_some()));
    assert_eq!(batch.submit(request(&[1], 1, 0), Heard::default().ear()), Err(Refused::Closed));
}

#[test]
fn what_can_never_be_served_is_refused_at_once() {
    let model = FakeBatch::hashed(10);
    let batch = Batch::new(&model, BatchOptions { rows: 4, ..BatchOptions::default() });
    assert_eq!(batch.limits().context, 40);
    let refused = |request| batch.submit(request, Heard::default().ear()).expect_err("refused");
    let option = |request| match refused(request) {
        Refused::Option { name, .. } => name,
        other => panic!("{other}"),
    };
    assert_eq!(option(request(&[], 1, 0)), "prompt");
    assert_eq!(option(request(&[9999], 1, 0)), "prompt");
    assert_eq!(option(Request { n: 0, ..request(&[1], 1, 0) }), "n");
    assert_eq!(option(Request { n: 5, ..request(&[1], 1, 0) }), "n");
    assert_eq!(option(Request { stop: vec![String::new()], ..request(&[1], 1, 0) }), "stop");
    let long = Refused::TooLong { prompt: 30, max_tokens: 11, limit: 40 };
    assert_eq!(refused(request(&ids(30, 0), 11, 0)), long);
    assert!(matches!(refused(request(&[1], usize::MAX, 0)), Refused::TooLong { .. }));
    // Four rows of 4 + 9 ids need 4 pages, and three times 3 more.
    assert!(matches!(
        refused(Request { n: 4, ..request(&ids(4, 0), 9, 0) }),
        Refused::TooLong { limit: 8, .. }
    ));
    assert_eq!(batch.load().waiting, 0);
}

#[test]
fn the_first_that_does_not_fit_is_not_overtaken() {
    let mut model = FakeBatch::hashed(10);
    let batch = Batch::new(&model, BatchOptions::default());
    let order = Arc::new(AtomicUsize::new(0));
    struct Place(Arc<AtomicUsize>, Arc<AtomicUsize>);
    impl Listener for Place {
        fn hear(&mut self, update: Update) {
            if let Update::Began { .. } = update {
                self.1.store(self.0.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        fn is_gone(&self) -> bool {
            false
        }
    }
    let place = |max_tokens: usize, salt: u32| {
        let at = Arc::new(AtomicUsize::new(99));
        let listener = Box::new(Place(order.clone(), at.clone()));
        batch.submit(request(&ids(4, salt), max_tokens, 0), listener).expect("room");
        at
    };
    // 6 pages, then 8 that must wait for them, then 2 that would have fitted.
    let places = [place(20, 1), place(28, 2), place(4, 3)];
    drain(&batch, &mut model);
    assert_eq!(places.map(|p| p.load(Ordering::Relaxed)), [0, 1, 2]);
}

#[test]
fn closing_finishes_what_was_taken_from_other_threads() {
    let batch_of = |model: &FakeBatch| Batch::new(model, BatchOptions::default());
    let (send, receive) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let mut model = FakeBatch::hashed(100);
        let batch = batch_of(&model);
        send.send(batch.clone()).expect("the test waits for it");
        batch.run(&mut model, &tokenizer()).expect("the vocabularies agree");
        model.pages().used
    });
    let batch = receive.recv().expect("a batch");
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let batch = batch.clone();
            std::thread::spawn(move || {
                let each = |i: usize| submit(&batch, request(&ids(5 + i, client), 6, i as u64));
                (0..20).map(each).collect::<Vec<_>>()
            })
        })
        .collect();
    let heard: Vec<Heard> = clients.into_iter().flat_map(|c| c.join().expect("served")).collect();
    batch.close();
    assert_eq!(server.join().expect("no panic"), 0);
    assert!(heard.iter().all(|h| h.usage().is_some_and(|u| u.generated_tokens == 6)));
    assert_eq!(batch.load().generated_tokens, 80 * 6);
}

#[test]
fn ten_thousand_mixed_requests_leave_no_page_behind() {
    let mut model = FakeBatch::new(60, |ids| {
        let mut logits = vec![0.0; 300];
        logits[(ids.len() * 37 + ids[ids.len() - 1] as usize) % 256] = 9.0;
        logits
    });
    model.vocab_size = tokenizer().vocab_size();
    let vocab_size = model.vocab_size;
    let rule = std::mem::replace(&mut model.rule, Box::new(|_| Vec::new()));
    model.rule = Box::new(move |ids| {
        let mut logits = rule(ids);
        logits.resize(vocab_size, 0.0);
        logits
    });
    let options = BatchOptions { rows: 12, queue: 20_000, step_tokens: 16 };
    let batch = Batch::new(&model, options);
    let heard: Vec<Heard> = (0..10_000_usize)
        .map(|i| {
            let heard = Heard { patience: (i % 9 == 4).then_some(1 + i % 3), ..Heard::default() };
            heard.gone.store(i % 97 == 5, Ordering::Relaxed);
            let request = Request {
                n: 1 + i % 3,
                logprobs: (i % 5 == 0).then_some(1),
                prompt_logprobs: i % 50 == 0,
                ..request(&ids(1 + i * 13 % 30, (i % 11) as u32), i * 7 % 5, i as u64)
            };
            batch.submit(request, heard.ear()).expect("room in the queue");
            heard
        })
        .collect();
    drain(&batch, &mut model);
    let pages = model.pages();
    assert_eq!(pages.used, 0);
    model.paging.forget_prefixes();
    assert_eq!(model.pages(), PageCount { total: 60, used: 0, cached: 0 });
    let done = heard.iter().filter(|h| h.usage().is_some()).count();
    let load: Load = batch.load();
    assert_eq!(done + load.cancelled as usize, 10_000);
    assert!(load.cancelled > 200 && load.prefix_hits > 1000, "{load:?}");
}
