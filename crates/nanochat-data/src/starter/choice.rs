//! Multiple choice: four lettered choices, then the question. What has to be learned is to know the
//! answer, to find it among the choices, and to say the letter beside it; `drill` teaches that.

use super::exchange::Exchange;
use super::facts::Facts;
use super::grade::Grade;
use super::mix::HELD_ONE_IN;
use super::rng::{Rng, bucket};
use super::spelling::Words;
use super::table::fill_with;

/// The letters beside the choices.
pub(super) const LETTERS: [char; 4] = ['A', 'B', 'C', 'D'];

/// A question, its choices in order, and which is right.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) question: String,
    pub(super) choices: Vec<String>,
    pub(super) right: usize,
}

/// What choices are drawn from.
pub(super) struct Source<'a> {
    pub(super) seed: u64,
    pub(super) world: &'a Facts,
    pub(super) village: &'a Facts,
    pub(super) words: &'a Words,
}

/// Relations whose value names a group: "Which of these is a fruit?" asks them the other way.
const GROUPS: [&str; 2] = ["group", "animal_kind"];

impl Choice {
    /// The prompt. The choices stand as upstream writes those of ARC and MMLU; the question stands
    /// below them, not above: a model this small finds an answer in what it has read, and does not
    /// carry the question over the choices (docs/LOG.md).
    pub(super) fn prompt(&self) -> String {
        format!("Answer with a letter.\n{}\n{}", self.lines().join("\n"), self.question)
    }

    /// `- Paris=B`, for each choice.
    pub(super) fn lines(&self) -> Vec<String> {
        self.choices.iter().zip(LETTERS).map(|(c, letter)| format!("- {c}={letter}")).collect()
    }

    /// The letter of the right choice.
    pub(super) fn letter(&self) -> char {
        LETTERS[self.right]
    }

    /// As an exchange.
    pub(super) fn exchange(&self) -> Exchange {
        Exchange::text(self.prompt(), self.letter().to_string())
    }

    /// What makes an answer right.
    pub(super) fn grade(&self) -> Grade {
        Grade::Letter(self.letter())
    }

    /// Held out are sets of choices together with what is right among them, in any order.
    pub(super) fn is_held(&self, seed: u64) -> bool {
        let mut set: Vec<&str> = self.choices.iter().map(String::as_str).collect();
        set.sort_unstable();
        let key = format!("{}|{}", set.join("|"), self.choices[self.right]);
        bucket(seed, "choice", &key, HELD_ONE_IN) == 0
    }
}

impl Source<'_> {
    /// A question, held out exactly if `held`.
    pub(super) fn draw(&self, held: bool, rng: &mut Rng) -> Choice {
        loop {
            let easy = if held { 0 } else { 12 };
            let choice = match rng.below(100 + easy) {
                0..10 => self.fact(self.village, rng),
                10..20 => self.group(rng),
                20..100 => self.fact(self.world, rng),
                _ => Some(self.same_word(rng)),
            };
            if let Some(c) = choice.filter(|c| c.is_held(self.seed) == held) {
                return c;
            }
        }
    }

    /// A fact with three values that other facts of the relation have.
    fn fact(&self, facts: &Facts, rng: &mut Rng) -> Option<Choice> {
        let (relation, item) = facts.draw(rng);
        let question = relation.question(self.seed, item, rng);
        assemble(question, item.value(), &relation.wrong(item), rng)
    }

    /// "Which of these is a fruit?"
    fn group(&self, rng: &mut Rng) -> Option<Choice> {
        let name = *rng.pick(&GROUPS);
        let relation = self.world.relations.iter().find(|r| r.name == name)?;
        let item = rng.pick(&relation.items);
        let others: Vec<String> = relation
            .items
            .iter()
            .filter(|o| o.value() != item.value())
            .map(|o| o.key.clone())
            .collect();
        let template = rng.pick(&[
            "Which of these is {a v}?",
            "Which one is {a v}?",
            "Find the {v}.",
            "Only one of these is {a v}. Which?",
        ]);
        assemble(fill_with(template, &[("v", item.value())]), &item.key, &others, rng)
    }

    /// "Which of these is the word lamp?": nothing to know, only the letter to find.
    fn same_word(&self, rng: &mut Rng) -> Choice {
        let pool: Vec<String> = (0..5).map(|_| self.words.any(rng).to_string()).collect();
        let others: Vec<String> = pool[1..].iter().filter(|w| **w != pool[0]).cloned().collect();
        let template = *rng.pick(&[
            "Which of these is the word {v}?",
            "Where does it say {v}?",
            "Find the word {v}.",
        ]);
        let question = fill_with(template, &[("v", &pool[0])]);
        assemble(question, &pool[0], &others, rng).unwrap_or_else(|| self.same_word(rng))
    }
}

/// Three of `wrong` and the right one, shuffled; nothing if there are not three.
pub(super) fn assemble(
    question: String,
    right: &str,
    wrong: &[String],
    rng: &mut Rng,
) -> Option<Choice> {
    let mut choices: Vec<String> = Vec::new();
    for w in rng.sample(wrong, wrong.len()) {
        if choices.len() < 3 && w != right && !choices.contains(w) {
            choices.push(w.clone());
        }
    }
    let at = rng.below(4);
    if choices.len() < 3 {
        return None;
    }
    choices.insert(at, right.to_string());
    Some(Choice { question, choices, right: at })
}
