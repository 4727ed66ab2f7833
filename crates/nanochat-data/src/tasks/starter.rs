//! The built-in world's sums as questions: to learn from by reward, and held out to test.

use nanochat_tokenizer::chat::{Content, Part};

use super::{Answer, ChatTask, Question};
use crate::starter::{Grade, Starter, TestItem, TestKind};

/// Conversations that are looked through for each question that is wanted, at most.
const LOOKED_AT: u64 = 100;

/// The first `n` training conversations of one turn that call the calculator; right is its last answer.
pub fn train(seed: u64, n: usize) -> ChatTask {
    let starter = Starter::new(seed);
    let question = |i: u64| {
        let conversation = starter.conversation(i);
        let gold = match &conversation.messages[..] {
            [_, answer] => match &answer.content {
                Content::Parts(parts) => parts.iter().rev().find_map(|part| match part {
                    Part::PythonOutput(value) => Some(value.clone()),
                    Part::Text(_) | Part::Python(_) => None,
                }),
                Content::Text(_) => None,
            },
            _ => None,
        };
        let answer = Answer::Words(Grade::Number(gold?));
        Some(Question { id: i.to_string(), conversation, answer })
    };
    let questions = (0..LOOKED_AT * n as u64).filter_map(question).take(n).collect();
    ChatTask { name: "starter".into(), baseline: 0.0, questions }
}

/// The first `n` held-out sums: operands that training never shows together.
pub fn test(seed: u64, n: usize) -> ChatTask {
    of("starter", Starter::new(seed).test(TestKind::Arithmetic, n))
}

/// The first `n` small sums to practise without the calculator.
pub fn mental_train(seed: u64, n: usize) -> ChatTask {
    of("mental", Starter::new(seed).mental_practice(n))
}

/// The first `n` held-out small sums: operands that nothing in training shows together.
pub fn mental_test(seed: u64, n: usize) -> ChatTask {
    of("mental", Starter::new(seed).test(TestKind::MentalArithmetic, n))
}

fn of(name: &str, items: Vec<TestItem>) -> ChatTask {
    let question = |(i, item): (usize, TestItem)| Question {
        id: i.to_string(),
        conversation: item.conversation,
        answer: Answer::Words(item.answer),
    };
    let questions = items.into_iter().enumerate().map(question).collect();
    ChatTask { name: name.into(), baseline: 0.0, questions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::NoRunner;

    #[test]
    fn references_are_right_by_their_own_grade() {
        for (train, test) in
            [(train(42, 30), test(42, 30)), (mental_train(42, 30), mental_test(42, 30))]
        {
            assert_eq!((train.questions.len(), test.questions.len()), (30, 30));
            for question in train.questions.iter().chain(&test.questions) {
                let verdict =
                    question.answer.grade(&question.reference(), &NoRunner).expect("words");
                assert!(verdict.right, "{}: {}", question.text(), question.reference());
            }
        }
    }
}
