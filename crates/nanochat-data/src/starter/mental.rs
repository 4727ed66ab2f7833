//! Small sums known by heart: the question says so, and the answer calls no calculator.
//!
//! The calculator makes every other sum right, so nothing is left to learn there by trying. These a
//! finetuned model half knows: its tries are sometimes right, which is what reinforcement begins with.
//! As of facts, one way to ask for each sum is kept for the test. Sums whose operands are held out are
//! never drawn here.

use super::arithmetic::{Problem, apply, is_held, sign, word};
use super::exchange::Exchange;
use super::rng::{Rng, bucket};
use super::table::fill_with;

/// Operands and results are at most this.
const LARGEST: u64 = 12;

const QUESTIONS: [&str; 8] = [
    "In your head: what is {a} {w} {b}?",
    "In your head, how much is {a} {o} {b}?",
    "Without the calculator: {a} {o} {b} = ?",
    "Without the calculator, what is {a} {w} {b}?",
    "No calculator: what is {a} {o} {b}?",
    "No calculator! {a} {w} {b}?",
    "Do it in your head: {a} {w} {b}.",
    "By heart: {a} {o} {b}.",
];

/// Draws a small sum or difference, asked in the way that is held out exactly if `held`.
pub(super) fn draw(seed: u64, held: bool, rng: &mut Rng) -> Problem {
    let (op, a, b) = loop {
        // The larger number is the sum, or what is taken from: none is above it.
        let large = rng.range(2, LARGEST) as i64;
        let small = rng.range(1, large as u64 - 1) as i64;
        let (op, a, b) = match rng.chance(50) {
            true => ('+', large - small, small),
            false => ('-', large, small),
        };
        if !is_held(seed, op, a, b) {
            break (op, a, b);
        }
    };
    let kept = bucket(seed, "by heart", &format!("{a}{op}{b}"), QUESTIONS.len());
    let at = match held {
        true => kept,
        false => (kept + 1 + rng.below(QUESTIONS.len() - 1)) % QUESTIONS.len(),
    };
    let result = apply(op, a, b);
    let (x, y) = (a.to_string(), b.to_string());
    let values = [("a", x.as_str()), ("b", &y), ("w", word(op)), ("o", sign(op))];
    Problem {
        question: fill_with(QUESTIONS[at], &values),
        call: format!("{a}{op}{b}"),
        result,
        answer: format!("{a} {} {b} is {result}.", word(op)),
    }
}

/// As an exchange without the calculator.
pub(super) fn exchange(problem: Problem) -> Exchange {
    Exchange::text(problem.question, problem.answer)
}
