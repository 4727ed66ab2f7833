//! Words letter by letter. Training spells nine words in ten, and made-up words glued from their
//! pieces, so that letters are learned for pieces of words and not only for words.
//!
//! A word that is frequent becomes one token, and nothing but its spelling tells the letters inside
//! one token. So only words that the rest of the world does not use are held out, and they are
//! rare elsewhere: the tokenizer leaves them in pieces. Vocabularies above about 4096 undo this.

use super::exchange::Exchange;
use super::grade::Grade;
use super::mix::HELD_ONE_IN;
use super::rng::{Rng, bucket};

/// The word list, split.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// Spelled in training.
    pub(super) train: Vec<&'static str>,
    /// Never taken apart in training.
    pub(super) held: Vec<&'static str>,
}

/// Shorter words are never held out: their letters show in every longer one.
const SHORTEST_HELD: usize = 4;

/// Share of held-out words among words that are said and not spelled.
const HELD_PERCENT: usize = 3;

/// Made-up words with these letters are drawn again: some would be words that nobody made up.
const RUDE: [&str; 26] = [
    "shi", "fuc", "fuk", "cun", "coc", "cok", "dic", "dik", "nig", "neg", "fag", "slu", "who",
    "ass", "tit", "sex", "rap", "cum", "pis", "bit", "wan", "gay", "pus", "twa", "naz", "ars",
];

const VOWELS: [char; 6] = ['a', 'e', 'i', 'o', 'u', 'y'];

impl Words {
    /// The split of `seed`. Words for which `is_common` holds are spelled in training.
    pub(super) fn new(seed: u64, is_common: impl Fn(&str) -> bool) -> Words {
        let all = include_str!("data/words.txt").split_whitespace();
        let (held, train): (Vec<&str>, Vec<&str>) = all.partition(|w| {
            let can_hold = w.len() >= SHORTEST_HELD && !is_common(w);
            can_hold && bucket(seed, "word", w, HELD_ONE_IN) == 0
        });
        Words { train, held }
    }

    /// Any word of the list, to be read or said again; held-out words come up now and then.
    pub(super) fn any(&self, rng: &mut Rng) -> &'static str {
        let from = if rng.chance(HELD_PERCENT) { &self.held } else { &self.train };
        rng.pick::<&str>(from)
    }

    /// The head of one word with the tail of another; no held-out word is in it.
    pub(super) fn made_up(&self, rng: &mut Rng) -> String {
        loop {
            let (a, b) = (*rng.pick(&self.train), *rng.pick(&self.train));
            let head = &a[..1 + rng.below(a.len() - 1)];
            let tail = &b[1 + rng.below(b.len() - 2)..];
            let speakable = head.ends_with(VOWELS) != tail.starts_with(VOWELS);
            let word = format!("{head}{tail}");
            let held_inside = self.held.iter().any(|h| word.contains(h));
            let polite = !RUDE.iter().any(|r| word.contains(r));
            if speakable && polite && (3..=9).contains(&word.len()) && !held_inside {
                return word;
            }
        }
    }

    /// A word that training may take apart: real in one of two draws.
    fn to_spell(&self, rng: &mut Rng) -> String {
        if rng.chance(50) { rng.pick(&self.train).to_string() } else { self.made_up(rng) }
    }

    /// A question about the letters of a word, and its answer.
    pub(super) fn exchange(&self, rng: &mut Rng) -> Exchange {
        let word = self.to_spell(rng);
        let letters = spelled(&word);
        let (first, last) = (&word[..1], &word[word.len() - 1..]);
        match rng.below(20) {
            0 => Exchange::text(
                format!("What is the first letter of {}?", quoted(&word, rng)),
                format!("The first letter of {word} is {first}."),
            ),
            1 => Exchange::text(
                format!("What is the last letter of {}?", quoted(&word, rng)),
                format!("{letters}. The last letter is {last}."),
            ),
            2 => Exchange::text(
                format!("How many letters does {} have?", quoted(&word, rng)),
                format!("{letters}. That makes {} letters.", word.len()),
            ),
            3 => Exchange::text(format!("Which word is {letters}?"), format!("That is {word}.")),
            4 => Exchange::text(
                format!("Spell {} backwards.", quoted(&word, rng)),
                format!("{letters}. Backwards that is {}.", backwards(&word)),
            ),
            _ => Exchange::text(ask(&word, rng), letters),
        }
    }

    /// A held-out word to spell.
    pub(super) fn test(&self, n: usize, rng: &mut Rng) -> (Exchange, Grade) {
        let word = self.held[n % self.held.len()];
        (Exchange::text(ask(word, rng), spelled(word)), Grade::Spelled(word.to_string()))
    }

    /// Letters of a training word to count with the calculator.
    pub(super) fn count_exchange(&self, rng: &mut Rng) -> Exchange {
        let word = self.to_spell(rng);
        count(&word, rng).0
    }

    /// Letters of a held-out word to count.
    pub(super) fn count_test(&self, n: usize, rng: &mut Rng) -> (Exchange, Grade) {
        let (exchange, result) = count(self.held[n % self.held.len()], rng);
        (exchange, Grade::Number(result.to_string()))
    }

    /// A document.
    pub(super) fn document(&self, rng: &mut Rng) -> String {
        // The plain spelling, which questions ask for, stands in most of them.
        let style = *rng.pick(&[0, 0, 1, 2, 2, 2, 3, 4, 5]);
        let mut out: Vec<String> = Vec::new();
        let count = [14, 14, 10, 9, 8, 8][style] + rng.below(4);
        for _ in 0..count {
            let word = self.to_spell(rng);
            let letters = spelled(&word);
            out.push(match style {
                0 => format!("{word}: {letters}"),
                1 => format!("the word {word} is {letters}."),
                2 => {
                    let Exchange { user, .. } = Exchange::text(ask(&word, rng), "");
                    format!("{user}\n{letters}")
                }
                3 => format!(
                    "We write '{word}' as {letters}. It begins with {} and ends with {}.",
                    &word[..1],
                    &word[word.len() - 1..]
                ),
                4 => format!("{letters} makes {word}. There are {} letters.", word.len()),
                _ => format!("{word} is {letters}, and backwards it is {}.", backwards(&word)),
            });
        }
        out.join("\n")
    }
}

/// `garden` as `g a r d e n`: every letter is a token of its own.
pub(super) fn spelled(word: &str) -> String {
    let letters: Vec<String> = word.chars().map(String::from).collect();
    letters.join(" ")
}

fn backwards(word: &str) -> String {
    spelled(&word.chars().rev().collect::<String>())
}

fn quoted(word: &str, rng: &mut Rng) -> String {
    if rng.chance(50) { format!("'{word}'") } else { word.to_string() }
}

fn ask(word: &str, rng: &mut Rng) -> String {
    let word = quoted(word, rng);
    let template = rng.pick(&[
        "Spell {w}.",
        "Spell the word {w}.",
        "How do you spell {w}?",
        "How is {w} spelled?",
        "Can you spell {w}?",
        "Please spell {w} for me.",
        "What are the letters of {w}?",
        "Say the letters of {w}.",
    ]);
    template.replace("{w}", &word)
}

/// A letter to count in `word`: usually one that is there. The call spells the word, since tokens
/// hide letters from the model; the count is the same.
fn count(word: &str, rng: &mut Rng) -> (Exchange, usize) {
    let letters: Vec<char> = word.chars().collect();
    let letter = if rng.chance(85) { *rng.pick(&letters) } else { *rng.pick(&ALPHABET) };
    let n = letters.iter().filter(|&&c| c == letter).count();
    let shown = quoted(word, rng);
    let template = rng.pick(&[
        "How many times is the letter {c} in {w}?",
        "How many {c} are in the word {w}?",
        "Count the letter {c} in {w}.",
        "How often does {c} appear in {w}?",
    ]);
    let question = template.replace("{c}", &letter.to_string()).replace("{w}", &shown);
    let call = format!("'{}'.count('{letter}')", spelled(word));
    let times = if n == 1 { "time" } else { "times" };
    let reply = format!("The letter {letter} is in {shown} {n} {times}.");
    (Exchange::tool(question, call, n.to_string(), reply), n)
}

const ALPHABET: [char; 26] = [
    'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's',
    't', 'u', 'v', 'w', 'x', 'y', 'z',
];
