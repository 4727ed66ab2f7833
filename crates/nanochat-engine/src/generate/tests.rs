use std::collections::HashSet;
use std::ops::ControlFlow::{Break, Continue};

use nanochat_tokenizer::Special;

use super::*;
use crate::fake::{FakeModel, one_hot, tokenizer};

const V: usize = 50;

fn sampled(seed: u64) -> SampleOptions {
    SampleOptions::new(1.0, None, seed).unwrap()
}

/// Ids alone: no text, no tools, no ends of turn.
fn bare(n: usize, max_tokens: usize, sample: SampleOptions) -> GenerateOptions {
    let options = GenerateOptions::new(sample, max_tokens);
    GenerateOptions { n, stop_at_eot: false, tools: false, ..options }
}

fn run_bare(options: &GenerateOptions) -> Vec<Vec<u32>> {
    let mut model = FakeModel::hashed(V);
    let mut engine = Engine::without_text(&mut model);
    let done = engine.generate(&[1, 2, 3], options, |_| Continue(())).unwrap();
    done.rows.into_iter().map(|row| row.ids).collect()
}

/// A model that says `ids` in order, whatever was drawn for them, then assistant_end; one row.
fn run_script(ids: Vec<u32>, change: impl FnOnce(&mut GenerateOptions)) -> Generation {
    let t = tokenizer();
    let mut model = FakeModel::scripted(&t, ids);
    let mut options = GenerateOptions::new(SampleOptions::greedy(), 1000);
    change(&mut options);
    let prompt = [t.bos(), t.special(Special::AssistantStart)];
    let mut engine = Engine::new(&mut model, &t).unwrap();
    let mut shown = vec![Vec::new(); options.n];
    let done = engine.generate(&prompt, &options, |step| {
        for (shown, pieces) in shown.iter_mut().zip(step.pieces) {
            pieces.iter().for_each(|piece| Piece::append(shown, piece));
        }
        Continue(())
    });
    let done = done.unwrap();
    for (shown, row) in shown.iter().zip(&done.rows) {
        assert_eq!(shown, &row.pieces, "what was streamed is what is kept");
    }
    done
}

#[test]
fn rows_draw_independent_first_ids() {
    // A flat model of 4 ids: 400 rows, 100 expected of each.
    let mut model = FakeModel::new(4, |_| vec![0.0; 4]);
    let mut engine = Engine::without_text(&mut model);
    let done = engine.generate(&[0], &bare(400, 1, sampled(7)), |_| Continue(())).unwrap();
    let mut counts = [0.0; 4];
    for row in &done.rows {
        counts[row.ids[0] as usize] += 1.0;
    }
    let chi2: f64 = counts.iter().map(|c| (c - 100.0) * (c - 100.0) / 100.0).sum();
    // 99.9% quantile of chi-square with 3 degrees of freedom.
    assert!(chi2 < 16.27, "{counts:?}");
    // Neighbouring rows agree one time in four: 5 standard errors of 399 trials.
    let equal = done.rows.windows(2).filter(|w| w[0].ids == w[1].ids).count() as f64 / 399.0;
    assert!((equal - 0.25).abs() < 0.11, "{equal}");
}

#[test]
fn broadcast_copies_one_first_id() {
    let options = GenerateOptions { first_token: FirstToken::Broadcast, ..bare(16, 2, sampled(7)) };
    let rows = run_bare(&options);
    let firsts: HashSet<u32> = rows.iter().map(|row| row[0]).collect();
    let seconds: HashSet<u32> = rows.iter().map(|row| row[1]).collect();
    assert_eq!(firsts.len(), 1);
    assert!(seconds.len() > 4, "only the first column is copied: {seconds:?}");
    assert_eq!(rows[0], run_bare(&bare(16, 2, sampled(7)))[0]);
}

#[test]
fn top_k_bounds_the_distinct_first_ids() {
    let sample = SampleOptions::new(1.0, Some(3), 1).unwrap();
    let rows = run_bare(&bare(50, 1, sample));
    assert_eq!(rows.iter().collect::<HashSet<_>>().len(), 3);
}

#[test]
fn temperature_zero_gives_equal_rows() {
    let rows = run_bare(&bare(5, 20, SampleOptions::greedy()));
    assert!(rows.iter().all(|row| row == &rows[0] && row.len() == 20));
}

#[test]
fn one_seed_reproduces_all_rows() {
    let rows = run_bare(&bare(6, 20, sampled(3)));
    assert_eq!(rows, run_bare(&bare(6, 20, sampled(3))));
    assert_ne!(rows, run_bare(&bare(6, 20, sampled(4))));
}

#[test]
fn a_row_is_the_same_alone_and_among_neighbours() {
    let rows = run_bare(&bare(6, 20, sampled(3)));
    for (r, row) in rows.iter().enumerate() {
        let alone = GenerateOptions { first_row: r as u64, ..bare(1, 20, sampled(3)) };
        assert_eq!(&run_bare(&alone)[0], row);
    }
}

#[test]
fn each_column_is_fed_once() {
    let mut model = FakeModel::hashed(V);
    let options = bare(3, 12, sampled(1));
    Engine::without_text(&mut model).generate(&[1, 2, 3], &options, |_| Continue(())).unwrap();
    assert_eq!((model.prefilled, model.decoded), (3, 11));
}

#[test]
fn max_tokens_is_exact() {
    for max_tokens in [0, 1, 7] {
        let mut model = FakeModel::hashed(V);
        let mut engine = Engine::without_text(&mut model);
        let options = bare(2, max_tokens, sampled(1));
        let done = engine.generate(&[1], &options, |_| Continue(())).unwrap();
        assert!(done.rows.iter().all(|r| r.ids.len() == max_tokens && r.mask.len() == max_tokens));
        assert!(done.rows.iter().all(|r| r.finish == Finish::MaxTokens));
        assert_eq!(done.stats.steps, max_tokens);
        assert_eq!(done.stats.sampled_tokens, 2 * max_tokens);
    }
}

#[test]
fn a_full_context_ends_the_rows() {
    let mut model = FakeModel::hashed(V);
    model.max_len = 8;
    let options = bare(2, 100, sampled(1));
    let mut engine = Engine::without_text(&mut model);
    let done = engine.generate(&[1, 2, 3], &options, |_| Continue(())).unwrap();
    // Five more fit into the model; the sixth is drawn and needs no place.
    assert!(done.rows.iter().all(|r| r.ids.len() == 6 && r.finish == Finish::ContextFull));
    let error = engine.generate(&[0; 9], &options, |_| Continue(())).unwrap_err();
    assert!(error.to_string().contains("the context is full"), "{error}");
}

#[test]
fn the_caller_can_break_off() {
    let mut model = FakeModel::hashed(V);
    let mut engine = Engine::without_text(&mut model);
    let done = engine.generate(&[1], &bare(2, 100, sampled(1)), |step| {
        if step.index == 4 { Break(()) } else { Continue(()) }
    });
    let done = done.unwrap();
    assert!(done.rows.iter().all(|r| r.ids.len() == 5 && r.finish == Finish::Cancelled));
}

#[test]
fn a_tool_answer_is_forced_and_masked() {
    let t = tokenizer();
    let mut script = t.encode("So ");
    script.push(t.special(Special::PythonStart));
    script.extend(t.encode("6*7"));
    script.push(t.special(Special::PythonEnd));
    let drawn = script.len();
    let mut forced = vec![t.special(Special::OutputStart)];
    forced.extend(t.encode("42"));
    forced.push(t.special(Special::OutputEnd));
    // While ids are forced the model would draw something else; it is not asked.
    script.extend(vec![u32::from(b'x'); forced.len()]);
    script.extend(t.encode("!"));
    let done = run_script(script.clone(), |_| {});
    let row = &done.rows[0];
    let mut ids = script;
    ids.splice(drawn..drawn + forced.len(), forced.iter().copied());
    assert_eq!(row.ids, ids);
    let mask: Vec<u8> =
        (0..ids.len()).map(|i| u8::from(!(drawn..drawn + forced.len()).contains(&i))).collect();
    assert_eq!(row.mask, mask);
    assert_eq!((row.finish, row.terminal), (Finish::Eot, Some(t.special(Special::AssistantEnd))));
    let pieces = [
        Piece::Text("So ".into()),
        Piece::ToolCall("6*7".into()),
        Piece::ToolOutput("42".into()),
        Piece::Text("!".into()),
    ];
    assert_eq!(row.pieces, pieces);
    assert_eq!(row.text(), "So !");
    assert_eq!(done.stats.forced_tokens, forced.len());
    // The end of the turn is drawn too.
    assert_eq!(done.stats.sampled_tokens, ids.len() - forced.len() + 1);
}

#[test]
fn without_tools_nothing_is_forced() {
    let t = tokenizer();
    let mut script = vec![t.special(Special::PythonStart)];
    script.extend(t.encode("6*7"));
    script.push(t.special(Special::PythonEnd));
    let done = run_script(script.clone(), |options| options.tools = false);
    assert_eq!(done.rows[0].ids, script);
    assert_eq!(done.rows[0].pieces, [Piece::ToolCall("6*7".into())]);
}

#[test]
fn rows_end_one_by_one_and_emit_nothing_afterwards() {
    // Each row counts up from its own first id to 120.
    let t = tokenizer();
    let end = t.special(Special::AssistantEnd);
    let v = t.vocab_size();
    let mut model = FakeModel::new(v, move |row| match row.last() {
        Some(&id) if id == end => vec![0.0; v],
        Some(&id) if id < 120 => one_hot(v, id + 1),
        _ => one_hot(v, end),
    });
    // The first column is drawn from ids 97..=122.
    let mut flat = vec![-100.0; v];
    flat[97..=122].fill(0.0);
    let mut ends = HashSet::new();
    let mut engine = Engine::new(&mut model, &t).unwrap();
    let options = GenerateOptions { n: 8, ..GenerateOptions::new(sampled(5), 60) };
    let mut run = engine.start(&[t.bos()], 0, &options).unwrap();
    run.logits = flat;
    let mut alive = [true; 8];
    while let Some(step) = run.step().unwrap() {
        for (r, id) in step.ids.iter().enumerate() {
            assert!(alive[r] || id.is_none(), "row {r} spoke after its end");
            alive[r] = id.is_some();
        }
    }
    for row in run.finish().rows {
        assert_eq!((row.finish, row.terminal), (Finish::Eot, Some(end)));
        ends.insert(row.ids.len());
    }
    assert!(ends.len() > 3, "rows of different lengths: {ends:?}");
}

#[test]
fn a_stop_string_across_ids_is_cut_off() {
    let t = tokenizer();
    let done = run_script(t.encode("one\n\nQ: two"), |o| o.stop = vec!["\n\nQ".into(), "w".into()]);
    let row = &done.rows[0];
    assert_eq!((row.finish, row.text()), (Finish::StopString, "one".into()));
    assert_eq!(row.ids, t.encode("one\n\nQ"));
    let done = run_script(t.encode("one\n\n"), |o| o.stop = vec!["\n\nQ".into()]);
    assert_eq!((done.rows[0].finish, done.rows[0].text()), (Finish::Eot, "one\n\n".into()));
}

#[test]
fn characters_are_shown_whole() {
    let t = tokenizer();
    let done = run_script(t.encode("é€😀"), |_| {});
    assert_eq!(done.rows[0].text(), "é€😀");
    let mut broken = t.encode("a€");
    broken.pop();
    assert_eq!(run_script(broken.clone(), |_| {}).rows[0].text(), "a\u{fffd}");
    // Cut by max_tokens, the last step still streams what was held.
    assert_eq!(run_script(t.encode("a€"), |o| o.max_tokens = 3).rows[0].text(), "a\u{fffd}");
}

#[test]
fn special_tokens_are_never_text() {
    let t = tokenizer();
    let mut script = t.encode("a");
    script.extend(
        [Special::UserStart, Special::OutputEnd, Special::AssistantStart].map(|s| t.special(s)),
    );
    // assistant_start restarts the script: end by length.
    let done = run_script(script, |o| o.max_tokens = 4);
    assert_eq!(done.rows[0].text(), "a");
}

#[test]
fn ends_of_turn_can_be_ignored() {
    let done = run_script(vec![], |o| {
        o.stop_at_eot = false;
        o.max_tokens = 5;
    });
    assert_eq!((done.rows[0].ids.len(), done.rows[0].finish), (5, Finish::MaxTokens));
}

#[test]
fn a_damaged_model_is_an_error() {
    let mut model = FakeModel::new(V, |row| {
        let mut logits = one_hot(V, 1);
        logits[9] = if row.len() > 4 { f32::NAN } else { 0.0 };
        logits
    });
    let mut engine = Engine::without_text(&mut model);
    let error = engine.generate(&[1], &bare(2, 100, sampled(1)), |_| Continue(())).unwrap_err();
    assert!(matches!(error, Error::Logit { row: 0, step: 4, id: 9, .. }), "{error}");
    let mut model = FakeModel::new(V, |_| vec![0.0; V - 1]);
    let mut engine = Engine::without_text(&mut model);
    let error = engine.generate(&[1], &bare(2, 100, sampled(1)), |_| Continue(())).unwrap_err();
    assert!(matches!(error, Error::LogitCount { found: 49, expected: 50 }), "{error}");
}

#[test]
fn what_cannot_be_run_is_refused() {
    let t = tokenizer();
    let mut model = FakeModel::hashed(V);
    assert!(matches!(Engine::new(&mut model, &t), Err(Error::Vocabulary { model: V, .. })));
    let mut engine = Engine::without_text(&mut model);
    let mut refused = |prompt: &[u32], held, options| engine.start(prompt, held, &options).err();
    assert!(matches!(refused(&[], 0, bare(1, 1, sampled(0))), Some(Error::EmptyPrompt)));
    assert!(matches!(refused(&[1], 0, bare(0, 1, sampled(0))), Some(Error::Option { .. })));
    assert!(matches!(
        refused(&[1, 2], 1, bare(1, 1, sampled(0))),
        Some(Error::Held { len: 0, .. })
    ));
    let stop = GenerateOptions { stop: vec![String::new()], ..bare(1, 1, sampled(0)) };
    assert!(matches!(refused(&[1], 0, stop), Some(Error::Option { name: "stop", .. })));
    let eot = GenerateOptions { stop_at_eot: true, ..bare(1, 1, sampled(0)) };
    assert!(matches!(refused(&[1], 0, eot), Some(Error::NoTokenizer { what: "stop_at_eot" })));
}

#[test]
fn a_run_continues_what_the_model_holds() {
    let mut model = FakeModel::hashed(V);
    let options = bare(1, 5, SampleOptions::greedy());
    let mut engine = Engine::without_text(&mut model);
    let first = engine.generate(&[1, 2, 3], &options, |_| Continue(())).unwrap();
    let mut prompt = vec![1, 2, 3];
    prompt.extend(&first.rows[0].ids);
    prompt.push(9);
    // The last id was drawn, never fed.
    let mut run = engine.start(&prompt, 7, &options).unwrap();
    while run.step().unwrap().is_some() {}
    let second = run.finish();
    assert_eq!((second.stats.prompt_tokens, second.stats.reused_tokens), (9, 7));
    let anew = engine.generate(&prompt, &options, |_| Continue(())).unwrap();
    assert_eq!(second.rows[0].ids, anew.rows[0].ids);
}
