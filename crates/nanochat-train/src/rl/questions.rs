//! What a model is rewarded for: questions that a program can grade.

use nanochat_data::starter::{Starter, TestKind};
use nanochat_tokenizer::Conversation;

use crate::Result;

/// Which questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Trained on.
    Train,
    /// Only asked.
    Test,
}

/// What an answer's text is worth.
pub type Grader = Box<dyn Fn(&str) -> f64>;

/// One question.
pub struct Question {
    /// The user's turn is last, or the reference answer after it, which the model does not see.
    pub conversation: Conversation,
    /// From the text that a reader sees, without tool calls, to a reward; 1 is right, 0 wrong. The model
    /// has no other way to it.
    pub grade: Grader,
}

/// A set of questions.
pub trait Questions {
    /// Names them: a run that goes on must have the same.
    fn fingerprint(&self) -> String;
    /// Number of a part's questions, at least 1.
    fn len(&self, part: Part) -> usize;
    /// True if a part has none.
    fn is_empty(&self, part: Part) -> bool {
        self.len(part) == 0
    }
    /// Question `i`, for `i < len(part)`; the same every time.
    fn get(&self, part: Part, i: usize) -> Result<Question>;
}

/// Sums of the embedded world: trained on what is not held out, tested on what is.
pub struct StarterSums {
    starter: Starter,
    seed: u64,
    train: usize,
    test: usize,
}

impl StarterSums {
    /// `train` sums and `test` held-out ones, both at least 1.
    pub fn new(seed: u64, train: usize, test: usize) -> Self {
        Self { starter: Starter::new(seed), seed, train: train.max(1), test: test.max(1) }
    }
}

impl Questions for StarterSums {
    fn fingerprint(&self) -> String {
        format!("starter-{} sums {}", self.seed, self.train)
    }

    fn len(&self, part: Part) -> usize {
        match part {
            Part::Train => self.train,
            Part::Test => self.test,
        }
    }

    fn get(&self, part: Part, i: usize) -> Result<Question> {
        let item = match part {
            Part::Train => self.starter.practice(i as u64),
            Part::Test => self.starter.test_item(TestKind::Arithmetic, i),
        };
        let answer = item.answer;
        let grade = move |text: &str| f64::from(u8::from(answer.accepts(text)));
        Ok(Question { conversation: item.conversation, grade: Box::new(grade) })
    }
}
