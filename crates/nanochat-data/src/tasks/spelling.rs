//! SpellingBee: how often a letter stands in a word, counted by spelling it and by the calculator.
//! SimpleSpelling: a word, letter by letter.
//!
//! Both are made from a list of words, one a line; question i is drawn with CPython's generator seeded
//! by i, test questions from [`TEST_SEED`] on, so training and test never share a draw.

use std::path::Path;

use nanochat_tokenizer::chat::{Content, Part};

use super::{Answer, Entry, Question, Source};
use crate::error::{Error, Result};
use crate::python_random::PythonRandom;
use crate::starter::Grade;

/// Test questions are drawn with this seed and the following.
pub const TEST_SEED: u64 = 10_000_000;

/// Questions of a test.
const QUESTIONS: usize = 256;

const FROM: &str =
    "any list of words, one a line; Debian's is in the package wamerican (/usr/share/dict)";

/// Letters counted in words.
pub const BEE: Entry = Entry {
    name: "SpellingBee",
    baseline: 0.0,
    from: FROM,
    source: Source::Words { n: QUESTIONS, make: bee },
};

/// Words spelled.
pub const SIMPLE: Entry = Entry {
    name: "SimpleSpelling",
    baseline: 0.0,
    from: FROM,
    source: Source::Words { n: QUESTIONS, make: simple },
};

/// The words of a list that are lower-case letters of English alone.
///
/// Errors: [`Error::Io`]; [`Error::BadRecord`] when there are fewer than 100.
pub fn words(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let plain = |w: &&str| w.len() > 1 && w.bytes().all(|b| b.is_ascii_lowercase());
    let words: Vec<String> = text.lines().map(str::trim).filter(plain).map(String::from).collect();
    if words.len() < 100 {
        let why = format!("{} words of plain lower-case letters: give at least 100", words.len());
        return Err(Error::BadRecord { place: path.display().to_string(), why });
    }
    Ok(words)
}

/// Ways to ask; `@` is the letter, `%` the word.
const ASKED: [&str; 16] = [
    "How many @ are in %?",
    "How many times does @ occur in %?",
    "Count the letter @ in the word %",
    "Count @ in %",
    "What is the number of @ in %?",
    "In the word %, how many @ are there?",
    "How often do we see @ in %?",
    "Tell me how many @ the word % has",
    "% has how many @?",
    "Number of @ in %",
    "Please count every @ in %",
    "Does % have any @, and how many?",
    "Cuántas @ hay en %?",
    "Combien de @ dans %?",
    "Wie viele @ stehen in %?",
    "Quante @ ci sono in %?",
];

fn bee(words: &[String], seed: u64) -> Question {
    let mut rng = PythonRandom::new(seed);
    let word = rng.choice(words).clone();
    let alphabet: Vec<char> = ('a'..='z').collect();
    let of_word: Vec<char> = word.chars().collect();
    let from = if rng.random() < 0.9 { &of_word } else { &alphabet };
    let letter = *rng.choice(from);
    let template = *rng.choice(&ASKED);
    let template = if rng.random() < 0.3 { template.to_lowercase() } else { template.to_owned() };
    let (at, around) = (*rng.choice(&["", "'", "\""]), *rng.choice(&["", "'", "\""]));
    let mut user = template
        .replace('@', &format!("{at}{letter}{at}"))
        .replace('%', &format!("{around}{word}{around}"));
    if !user.ends_with('?') && rng.random() < 0.5 {
        user.push('?');
    }
    let count = of_word.iter().filter(|c| **c == letter).count();
    let parts = counted(&word, letter, count);
    let answer = Answer::Number(count.to_string());
    Question::new(seed.to_string(), user, Content::Parts(parts), answer)
}

/// The reference: spelled, counted by hand, checked by the calculator.
fn counted(word: &str, letter: char, count: usize) -> Vec<Part> {
    let spelled: Vec<String> = word.chars().map(String::from).collect();
    let mut text = format!(
        "Letter by letter, {word} is {word}:{}.\n\nCounting {letter}:\n",
        spelled.join(",")
    );
    let mut so_far = 0;
    for (i, c) in word.chars().enumerate() {
        so_far += usize::from(c == letter);
        let hit = if c == letter { format!(", that makes {so_far}") } else { String::new() };
        text.push_str(&format!("{}:{c}{hit}\n", i + 1));
    }
    text.push_str(&format!("\nBy hand it is {count}. The calculator agrees: "));
    vec![
        Part::Text(text),
        Part::Python(format!("'{word}'.count('{letter}')")),
        Part::PythonOutput(count.to_string()),
        Part::Text(format!("{count}.\n\n#### {count}")),
    ]
}

fn simple(words: &[String], seed: u64) -> Question {
    let word = PythonRandom::new(seed).choice(words).clone();
    let letters: Vec<String> = word.chars().map(String::from).collect();
    let reference = Content::Text(format!("{word}:{}", letters.join(",")));
    let answer = Answer::Words(Grade::Spelled(word.clone()));
    Question::new(seed.to_string(), format!("Spell the word: {word}"), reference, answer)
}
