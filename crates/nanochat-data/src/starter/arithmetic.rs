//! Sums: operands drawn, a question in words, the call that solves it, and the answer.
//!
//! The point is not to know sums but to copy the numbers into the call and the result out of it.

use super::exchange::Exchange;
use super::grade::Grade;
use super::mix::HELD_ONE_IN;
use super::rng::{Rng, bucket};
use super::table::fill_with;

/// A sum with its question and answer in words.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) question: String,
    /// What the calculator is given.
    pub(super) call: String,
    /// What it answers.
    pub(super) result: i64,
    pub(super) answer: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain(char),
    Story(char),
    Three,
}

const FORMS: &[(Form, usize)] = &[
    (Form::Plain('+'), 24),
    (Form::Plain('-'), 18),
    (Form::Plain('*'), 20),
    (Form::Plain('/'), 3),
    (Form::Story('+'), 9),
    (Form::Story('-'), 8),
    (Form::Story('*'), 8),
    (Form::Three, 10),
];

/// Whether a sum belongs to the test. Order does not matter where it does not change the result.
pub(super) fn is_held(seed: u64, op: char, a: i64, b: i64) -> bool {
    let (a, b) = if matches!(op, '+' | '*') { (a.min(b), a.max(b)) } else { (a, b) };
    bucket(seed, "sum", &format!("{a}{op}{b}"), HELD_ONE_IN) == 0
}

/// Operands whose sum is held out exactly if `held`.
fn operands(seed: u64, op: char, held: bool, rng: &mut Rng) -> (i64, i64) {
    loop {
        let (a, b) = match op {
            '+' => (number(rng), number(rng)),
            '-' => {
                let (a, b) = (number(rng), number(rng));
                if rng.chance(92) { (a.max(b), a.min(b)) } else { (a, b) }
            }
            '*' => match rng.below(10) {
                0..3 => (digits(1, rng), digits(2, rng)),
                3..5 => (digits(1, rng), digits(1, rng)),
                5..9 => (digits(2, rng), digits(2, rng)),
                _ => (digits(3, rng), digits(1, rng)),
            },
            _ => {
                let (q, b) = (rng.range(2, 50) as i64, rng.range(2, 20) as i64);
                (q * b, b)
            }
        };
        let (a, b) = if op == '*' && rng.chance(50) { (b, a) } else { (a, b) };
        if is_held(seed, op, a, b) == held {
            return (a, b);
        }
    }
}

fn number(rng: &mut Rng) -> i64 {
    let n = rng.weighted(&[(1, 12), (2, 50), (3, 28), (4, 10)]);
    digits(n, rng)
}

fn digits(n: u32, rng: &mut Rng) -> i64 {
    rng.range(if n == 1 { 2 } else { 10_u64.pow(n - 1) }, 10_u64.pow(n) - 1) as i64
}

/// The result; what the calculator says for the call `a op b`.
pub(super) fn apply(op: char, a: i64, b: i64) -> i64 {
    match op {
        '+' => a + b,
        '-' => a - b,
        '*' => a * b,
        _ => a / b,
    }
}

/// How an operator is written in a call: division is whole, since ours leave no remainder.
pub(super) fn sign(op: char) -> &'static str {
    match op {
        '+' => "+",
        '-' => "-",
        '*' => "*",
        _ => "//",
    }
}

pub(super) fn word(op: char) -> &'static str {
    match op {
        '+' => "plus",
        '-' => "minus",
        '*' => "times",
        _ => "divided by",
    }
}

/// Draws a sum, held out exactly if `held`.
pub(super) fn draw(seed: u64, held: bool, names: &[String], rng: &mut Rng) -> Problem {
    match rng.weighted(FORMS) {
        Form::Plain(op) => plain(op, operands(seed, op, held, rng), rng),
        Form::Story(op) => told(op, seed, held, names, rng),
        Form::Three => three(seed, held, rng),
    }
}

fn plain(op: char, (a, b): (i64, i64), rng: &mut Rng) -> Problem {
    let special: &[&str] = match op {
        '+' => &["Add {a} and {b}.", "What is the sum of {a} and {b}?"],
        '-' => &["Take {b} away from {a}.", "What is {a} take away {b}?"],
        '*' => &["Multiply {a} by {b}.", "What is {a} multiplied by {b}?"],
        _ => &["Divide {a} by {b}.", "Share {a} among {b}."],
    };
    let common = [
        "What is {a} {w} {b}?",
        "How much is {a} {w} {b}?",
        "Can you work out {a} {w} {b}?",
        "{a} {w} {b} is what?",
        "What is {a} {o} {b}?",
        "{a} {o} {b} = ?",
        "Please compute {a} {o} {b}.",
    ];
    let template = if rng.chance(25) { rng.pick(special) } else { rng.pick(&common) };
    let result = apply(op, a, b);
    let shown = if op == '/' { "/" } else { sign(op) };
    Problem {
        question: fill_with(
            template,
            &[("a", &a.to_string()), ("b", &b.to_string()), ("w", word(op)), ("o", shown)],
        ),
        call: format!("{a}{}{b}", sign(op)),
        result,
        answer: format!("{a} {} {b} is {result}.", word(op)),
    }
}

/// A sum wrapped in a little story.
fn told(op: char, seed: u64, held: bool, names: &[String], rng: &mut Rng) -> Problem {
    let (a, b) = loop {
        let (a, b) = operands(seed, op, held, rng);
        if a < 1000 && b < 1000 && apply(op, a, b) > 1 {
            break (a, b);
        }
    };
    let (question, answer) = *rng.pick(match op {
        '+' => TOLD_ADD,
        '-' => TOLD_TAKE,
        _ => TOLD_TIMES,
    });
    let pair = rng.sample(names, 2);
    let result = apply(op, a, b);
    let (a, b, r) = (a.to_string(), b.to_string(), result.to_string());
    let values = [
        ("a", a.as_str()),
        ("b", &b),
        ("r", &r),
        ("x", pair[0]),
        ("y", pair[1]),
        ("t", *rng.pick(&THINGS)),
        ("box", *rng.pick(&BOXES)),
    ];
    Problem {
        question: fill_with(question, &values),
        call: format!("{a}{}{b}", sign(op)),
        result,
        answer: fill_with(answer, &values),
    }
}

const THINGS: [&str; 14] = [
    "apples", "coins", "books", "eggs", "stamps", "shells", "marbles", "pencils", "cherries",
    "buttons", "cakes", "flowers", "stones", "nuts",
];
const BOXES: [&str; 5] = ["boxes", "bags", "baskets", "jars", "buckets"];

const TOLD_ADD: &[(&str, &str)] = &[
    ("{x} has {a} {t} and finds {b} more. How many {t} does {x} have?", "{x} has {r} {t}."),
    ("{x} has {a} {t}. {y} gives {x} {b} more. How many are there?", "{x} has {r} {t}."),
    (
        "There are {a} {t} on the table and {b} {t} in the bag. How many in all?",
        "There are {r} {t}.",
    ),
    (
        "{x} has {a} {t} and {y} has {b}. How many do they have together?",
        "Together they have {r} {t}.",
    ),
];
const TOLD_TAKE: &[(&str, &str)] = &[
    ("{x} has {a} {t} and gives {b} to {y}. How many {t} are left?", "{x} has {r} {t} left."),
    ("There were {a} {t}. A goat ate {b} of them. How many are left?", "There are {r} {t} left."),
    ("{x} had {a} {t} but lost {b}. How many {t} does {x} have?", "{x} has {r} {t} left."),
];
const TOLD_TIMES: &[(&str, &str)] = &[
    ("There are {a} {box} with {b} {t} each. How many {t} are there?", "There are {r} {t}."),
    ("{x} fills {a} {box}. Each holds {b} {t}. How many {t} is that?", "That is {r} {t}."),
    ("Every day {x} finds {a} {t}. How many {t} after {b} days?", "That is {r} {t}."),
];

/// Two operators. It is held out with its first pair, and never pairs a held sum in training.
fn three(seed: u64, held: bool, rng: &mut Rng) -> Problem {
    loop {
        let op1 = *rng.pick(&['+', '-', '*']);
        let (a, b) = operands(seed, op1, held, rng);
        let op2 = *rng.pick(&['+', '-']);
        let c = digits(rng.range(1, 2) as u32, rng);
        let first = apply(op1, a, b);
        let result = apply(op2, first, c);
        if result < 0 || first < 0 || (!held && is_held(seed, op2, b, c)) {
            continue;
        }
        let words = format!("{a} {} {b} {} {c}", word(op1), word(op2));
        let signs = format!("{a} {op1} {b} {op2} {c}");
        let question = match rng.below(4) {
            0 => format!("What is {words}?"),
            1 => format!("How much is {words}?"),
            2 => format!("What is {signs}?"),
            _ => format!("Please compute {signs}."),
        };
        let answer = format!("{words} is {result}.");
        return Problem { question, call: format!("{a}{op1}{b}{op2}{c}"), result, answer };
    }
}

impl Problem {
    /// As an exchange with the calculator.
    pub(super) fn exchange(self) -> Exchange {
        Exchange::tool(self.question, self.call, self.result.to_string(), self.answer)
    }

    /// What makes an answer right.
    pub(super) fn grade(&self) -> Grade {
        Grade::Number(self.result.to_string())
    }
}

/// A sum, and a second that goes on from its result.
pub(super) fn chain(seed: u64, names: &[String], rng: &mut Rng) -> Vec<Exchange> {
    let first = draw(seed, false, names, rng);
    let a = first.result;
    let (op, b) = loop {
        let op = *rng.pick(&['+', '-', '*']);
        let b = digits(rng.range(1, 2) as u32, rng);
        let fits = if op == '*' { a < 1000 } else { op == '+' || a >= b };
        if fits && !is_held(seed, op, a, b) {
            break (op, b);
        }
    };
    let question = match op {
        '+' => format!("Now add {b}."),
        '-' => format!("Now take away {b}."),
        _ => format!("Now multiply that by {b}."),
    };
    let result = apply(op, a, b);
    let second = Problem {
        question,
        call: format!("{a}{op}{b}"),
        result,
        answer: format!("{a} {} {b} is {result}.", word(op)),
    };
    vec![first.exchange(), second.exchange()]
}

/// A document: sums as they go through the calculator.
pub(super) fn document(seed: u64, names: &[String], rng: &mut Rng) -> String {
    let style = rng.below(3);
    let mut out: Vec<String> = Vec::new();
    for _ in 0..6 + rng.below(3) {
        let Problem { question, call, result, answer } = draw(seed, false, names, rng);
        out.push(match style {
            0 => format!("{question}\n{call}\n{result}\n{answer}"),
            1 => format!("Question: {question}\nCalculator: {call} = {result}\nAnswer: {answer}"),
            _ => format!("{question} Type {call} and read {result}. {answer}"),
        });
    }
    out.join(if style == 2 { "\n" } else { "\n\n" })
}
