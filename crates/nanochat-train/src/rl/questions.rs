//! What a model is rewarded for: questions that a program can grade.

use nanochat_data::Task;
use nanochat_data::tasks::{ChatTask, NoRunner};
use nanochat_tokenizer::chat::{Content, Conversation, Role};

use crate::{Error, Result};

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

impl Question {
    /// The words of the last user turn.
    pub fn text(&self) -> String {
        let user = self.conversation.messages.iter().rev().find(|m| m.role == Role::User);
        match user.map(|m| &m.content) {
            Some(Content::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }
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

/// Questions of two tasks: one to learn from, one to test by.
pub struct TaskQuestions {
    train: ChatTask,
    test: ChatTask,
}

impl TaskQuestions {
    /// Errors: [`Error::Recipe`] for a task without questions, or one whose answers are programs, which
    /// this grader does not run.
    pub fn new(train: ChatTask, test: ChatTask) -> Result<Self> {
        let refuse = |detail: String| Err(Error::Recipe { what: "--task", detail });
        for task in [&train, &test] {
            if task.questions.is_empty() {
                return refuse(format!("{} has no questions: look at its files", task.name));
            }
            if task.runs_programs() {
                return refuse(format!(
                    "{} is graded by running programs: take another",
                    task.name
                ));
            }
        }
        Ok(Self { train, test })
    }

    fn of(&self, part: Part) -> &ChatTask {
        match part {
            Part::Train => &self.train,
            Part::Test => &self.test,
        }
    }
}

impl Questions for TaskQuestions {
    fn fingerprint(&self) -> String {
        Task::fingerprint(&self.train)
    }

    fn len(&self, part: Part) -> usize {
        self.of(part).questions.len()
    }

    fn get(&self, part: Part, i: usize) -> Result<Question> {
        let question = self.of(part).questions[i].clone();
        let answer = question.answer;
        let right = move |text: &str| answer.grade(text, &NoRunner).is_ok_and(|v| v.right);
        let grade = move |text: &str| f64::from(u8::from(right(text)));
        Ok(Question { conversation: question.conversation, grade: Box::new(grade) })
    }
}
