//! What a row says is what [`crate::Engine`] says: text, tools, stops, log probabilities.

use nanochat_tokenizer::Special;

use super::*;
use crate::fake::{FakeModel, one_hot};
use crate::generate::{Engine, GenerateOptions};

/// A model that says `reply` after assistant_start, then assistant_end.
fn scripted(tokenizer: &Tokenizer, reply: Vec<u32>) -> FakeBatch {
    let start = tokenizer.special(Special::AssistantStart);
    let end = tokenizer.special(Special::AssistantEnd);
    let vocab_size = tokenizer.vocab_size();
    FakeBatch::new(64, move |row| {
        let said = row.iter().rev().take_while(|id| **id != start).count();
        one_hot(vocab_size, reply.get(said).copied().unwrap_or(end))
    })
}

fn ask(tokenizer: &Tokenizer, max_tokens: usize) -> Request {
    let prompt = [tokenizer.bos(), tokenizer.special(Special::AssistantStart)];
    let mut request = request(&prompt, max_tokens, 0);
    (request.stop_at_eot, request.tools) = (true, true);
    request
}

fn run(model: &mut FakeBatch, request: Request) -> Heard {
    let batch = Batch::new(model, BatchOptions::default());
    let heard = submit(&batch, request);
    drain(&batch, model);
    heard
}

#[test]
fn a_row_is_that_of_the_engine_with_the_same_seed() {
    let t = tokenizer();
    let prompt: Vec<u32> = (0..9).collect();
    let sample = SampleOptions::new(1.0, Some(40), 11).expect("in range");
    let sample = sample.with_repetition_penalty(1.3).expect("in range");
    let sample = sample.with_presence_penalty(0.5).expect("in range");
    let mut model = FakeModel::hashed(t.vocab_size());
    let mut engine = Engine::new(&mut model, &t).expect("the vocabularies agree");
    let options = GenerateOptions { n: 3, ..GenerateOptions::new(sample.clone(), 20) };
    let want = engine
        .generate(&prompt, &options, |_| std::ops::ControlFlow::Continue(()))
        .expect("generated");
    let mut request = request(&prompt, 20, 0);
    (request.n, request.sample) = (3, sample);
    (request.stop_at_eot, request.tools) = (true, true);
    let heard = run(&mut FakeBatch::hashed(64), request);
    for (r, row) in want.rows.iter().enumerate() {
        assert_eq!(heard.ids(r), row.ids, "row {r}");
        assert_eq!(heard.finish(r), Some(row.finish), "row {r}");
        assert_eq!(heard.pieces(r), row.pieces, "row {r}");
    }
}

#[test]
fn a_tool_call_is_answered_and_the_turn_ends() {
    let t = tokenizer();
    let mut reply = t.encode("so ");
    reply.push(t.special(Special::PythonStart));
    reply.extend(t.encode("6*7"));
    reply.push(t.special(Special::PythonEnd));
    reply.push(t.special(Special::OutputStart));
    reply.extend(t.encode("42"));
    reply.push(t.special(Special::OutputEnd));
    reply.extend(t.encode("!"));
    let heard = run(&mut scripted(&t, reply.clone()), ask(&t, 40));
    assert_eq!(heard.ids(0), reply);
    assert_eq!(heard.finish(0), Some(Finish::Eot));
    let pieces = [
        Piece::Text("so ".into()),
        Piece::ToolCall("6*7".into()),
        Piece::ToolOutput("42".into()),
        Piece::Text("!".into()),
    ];
    assert_eq!(heard.pieces(0), pieces);
    let forced =
        heard.all().iter().filter(|u| matches!(u, Update::Token { forced: true, .. })).count();
    assert_eq!(forced, 4);
    assert_eq!(heard.usage().expect("done").generated_tokens, reply.len());
}

#[test]
fn a_stop_string_ends_a_row_and_is_not_shown() {
    let t = tokenizer();
    let reply = t.encode("one two END three");
    let request = Request { stop: vec!["END".into()], ..ask(&t, 40) };
    let heard = run(&mut scripted(&t, reply), request);
    assert_eq!(heard.finish(0), Some(Finish::StopString));
    assert_eq!(heard.pieces(0), [Piece::Text("one two ".into())]);
    // What may be the beginning of a stop is shown when it was none.
    let heard = run(&mut scripted(&t, t.encode("to EN")), {
        Request { stop: vec!["END".into()], ..ask(&t, 5) }
    });
    assert_eq!(heard.finish(0), Some(Finish::MaxTokens));
    assert_eq!(heard.pieces(0), [Piece::Text("to EN".into())]);
}

#[test]
fn log_probabilities_of_prompt_and_answer() {
    let t = tokenizer();
    let prompt: Vec<u32> = (10..30).collect();
    let mut want = request(&prompt, 3, 4);
    (want.logprobs, want.prompt_logprobs) = (Some(2), true);
    let mut model = FakeBatch::hashed(64);
    // Once before, so that all of it could be reused, and in chunks.
    run(&mut model, request(&prompt, 3, 4));
    model.step_len = 7;
    let heard = run(&mut model, want);
    assert_eq!(heard.reused(), Some(0), "a prompt is computed for its log probabilities");
    let all = heard.all();
    let Update::Prompt(got) = &all[1] else { panic!("{:?}", all[1]) };
    assert_eq!((got.len(), &got[0]), (20, &None));
    let of = |ids: &[u32], id: u32| {
        let logits = hashed_logits(t.vocab_size(), ids);
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        (f64::from(logits[id as usize]) - sum.ln()) as f32
    };
    for (i, got) in got.iter().enumerate().skip(1) {
        let got = got.as_ref().expect("all but the first have one");
        assert_eq!((got.id, got.top.len()), (prompt[i], 2));
        // f32 exponentials of logits up to 4 in the one, f64 in the other.
        assert!((got.logprob - of(&prompt[..i], prompt[i])).abs() < 1e-4, "{i}");
    }
    let mut row = prompt;
    for update in &all {
        if let Update::Token { id, logprobs, .. } = update {
            let got = logprobs.as_ref().expect("asked for");
            assert!((got.logprob - of(&row, *id)).abs() < 1e-4);
            row.push(*id);
        }
    }
    assert_eq!(row.len(), 23);
}

#[test]
fn a_prompt_alone_can_be_asked_for() {
    let request = Request { prompt_logprobs: true, ..request(&[1, 2, 3], 0, 0) };
    let heard = run(&mut FakeBatch::hashed(64), request);
    let kinds: Vec<_> = heard
        .all()
        .iter()
        .map(|update| match update {
            Update::Began { .. } => "began",
            Update::Prompt(_) => "prompt",
            Update::Ended { finish: Finish::MaxTokens, .. } => "ended",
            Update::Done(_) => "done",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["began", "prompt", "ended", "done"]);
    assert_eq!(heard.usage().expect("done").generated_tokens, 0);
}
