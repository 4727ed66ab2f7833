//! Chat tasks against models that know the answers, know some, or know none.

mod rigged;

use nanochat_data::tasks::{Answer, ChatTask, NoRunner, Question, Runner, custom};
use nanochat_engine::SampleOptions;
use nanochat_tokenizer::chat::{Content, render, render_for_completion};
use nanochat_tokenizer::{Special, Tokenizer};
use nanochat_train::Error;
use nanochat_train::eval::chat::{ChatOptions, evaluate, metric};
use nanochat_train::eval::likelihood::Plain;
use rigged::{Kept, Rigged, tokenizer};

fn greedy(num_samples: usize) -> ChatOptions {
    ChatOptions { num_samples, max_new_tokens: 64, sample: SampleOptions::greedy() }
}

/// Two letters and two written answers, from a file as a user writes it.
fn questions() -> ChatTask {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("mine.jsonl");
    let lines = [
        r#"{"question":"2+2?","choices":["3","4"],"answer":1}"#,
        r#"{"question":"1+1?","choices":["2","4"],"answer":"A"}"#,
        r#"{"question":"What is half of 12?","answer":"It is <<12/2=6.0>>6.\n#### 6"}"#,
        r#"{"question":"Which animal barks?","answer":["dog","hound"]}"#,
    ];
    std::fs::write(&file, lines.join("\n")).expect("a file");
    custom::load(&file).expect("four questions")
}

/// What a model says that knows the reference of every question.
fn known(t: &Tokenizer, task: &ChatTask) -> Vec<Vec<u32>> {
    task.questions.iter().map(|q| render(t, &q.conversation, None).expect("turns").ids).collect()
}

#[test]
fn a_model_that_knows_is_right_and_one_that_does_not_gets_the_baseline() {
    let (t, task) = (tokenizer(), questions());
    assert_eq!((task.name.as_str(), task.baseline), ("mine", 0.25));
    for (known, score, centered) in [(known(&t, &task), 1.0, 1.0), (vec![], 0.25, 0.0)] {
        let mut model = Plain(Rigged::new(&t, known));
        let mut kept = Kept::default();
        let found = evaluate(&mut model, &t, &task, None, &greedy(1), &NoRunner, &mut kept);
        let found = found.expect("scores");
        assert_eq!((found.score, found.centered, found.n), (score, centered, 4), "{:?}", kept.0);
        assert_eq!(metric(&[found]), Some(centered));
        // Letters first, then what is written; every item says why.
        let ids: Vec<&str> = kept.0.iter().map(|g| g.id.as_str()).collect();
        assert_eq!(ids, ["0", "1", "2", "3"]);
        assert!(kept.0.iter().all(|g| !g.why.is_empty() && g.answers.len() == 1));
    }
    let mut kept = Kept::default();
    let mut model = Plain(Rigged::new(&t, vec![]));
    let some = evaluate(&mut model, &t, &task, Some(2), &greedy(1), &NoRunner, &mut kept);
    assert_eq!(some.expect("scores").n, 2);
}

#[test]
fn samples_are_drawn_one_by_one_and_any_right_one_counts() {
    let t = tokenizer();
    let reference = Content::Text("A".into());
    let mut task = ChatTask { name: "t".into(), baseline: 0.0, questions: Vec::new() };
    let answer = Answer::Words(nanochat_data::starter::Grade::Letter('A'));
    task.questions.push(Question::new("0", "say A".into(), reference, answer));
    // The model halts between A and B, then ends its turn.
    let prompt = render_for_completion(&t, &task.questions[0].conversation).expect("a prompt");
    let end = t.special(Special::AssistantEnd);
    struct Halting(Rigged, Vec<u32>, u32);
    impl nanochat_gpt::model::Decoder for Halting {
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
            let mut logits = vec![-60.0; self.0.prefill(ids)?.len()];
            if ids == self.1 {
                (logits[usize::from(b'A')], logits[usize::from(b'B')]) = (0.0, 0.0);
            }
            Ok(logits)
        }
        fn fork(&mut self, n: usize) -> nanochat_gpt::Result<()> {
            self.0.fork(n)
        }
        fn decode(&mut self, ids: &[u32]) -> nanochat_gpt::Result<Vec<f32>> {
            let mut logits = vec![-60.0; self.0.decode(ids)?.len()];
            logits.chunks_exact_mut(self.0.vocab_size()).for_each(|row| row[self.2 as usize] = 0.0);
            Ok(logits)
        }
    }
    let mut model = Plain(Halting(Rigged::new(&t, vec![]), prompt, end));
    let mut kept = Kept::default();
    let sample = SampleOptions::new(1.0, None, 42).expect("a temperature");
    let options = ChatOptions { num_samples: 16, max_new_tokens: 4, sample };
    let found = evaluate(&mut model, &t, &task, None, &options, &NoRunner, &mut kept);
    assert_eq!(found.expect("scores").score, 1.0);
    let (right, answers) = (kept.0[0].right, &kept.0[0].answers);
    assert_eq!(answers.len(), 16);
    assert!(right > 0.0 && right < 1.0, "both are said: {answers:?}");
    assert!(answers.iter().all(|a| a == "A" || a == "B"), "{answers:?}");
}

#[test]
fn programs_are_run_by_the_runner_and_by_nothing_else() {
    struct Passing;
    impl Runner for Passing {
        fn ready(&self) -> nanochat_data::Result<()> {
            Ok(())
        }
        fn passes(&self, program: &str, tests: &str) -> nanochat_data::Result<bool> {
            assert_eq!(program, "import math\n\ndef f(): return 1");
            assert_eq!(tests, "def check(f): pass\ncheck(f)");
            Ok(true)
        }
    }
    let t = tokenizer();
    let answer = Answer::Program {
        imports: "import math".into(),
        tests: "def check(f): pass".into(),
        entry_point: "f".into(),
    };
    let reference = Content::Text("```python\ndef f(): return 1\n```".into());
    let question = Question::new("0", "import math\ndef f():".into(), reference, answer);
    let task = ChatTask { name: "t".into(), baseline: 0.0, questions: vec![question] };
    let run = |runner: &dyn Runner| {
        let mut model = Plain(Rigged::new(&t, known(&t, &task)));
        evaluate(&mut model, &t, &task, None, &greedy(1), runner, &mut Kept::default())
    };
    assert_eq!(run(&Passing).expect("scores").score, 1.0);
    let refused = run(&NoRunner).expect_err("no sandbox");
    assert!(matches!(refused, Error::Data(nanochat_data::Error::NoRunner { .. })), "{refused}");
}

#[test]
fn a_letter_must_be_one_token() {
    let t = tokenizer();
    let answer = Answer::Letter { letters: vec!["A".into(), "ß".into()], gold: 0 };
    let question = Question::new("0", "?".into(), Content::Text("A".into()), answer);
    let task = ChatTask { name: "t".into(), baseline: 0.5, questions: vec![question] };
    let mut model = Plain(Rigged::new(&t, vec![]));
    let refused =
        evaluate(&mut model, &t, &task, None, &greedy(1), &NoRunner, &mut Kept::default());
    assert!(matches!(refused, Err(Error::Letter { letter }) if letter == "ß"));
}
