//! Documents that teach multiple choice in steps, each nearly all of it predictable: first that what
//! was beside a word is beside it again, then to name the letter beside a word, then to name the
//! letter beside an answer. Mixed thinly into other text, none of the steps is ever taken.

use super::choice::{Choice, LETTERS, Source, assemble};
use super::rng::Rng;

/// A kind of drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drill {
    /// Lettered lists, each line said again and again in another order.
    Lines,
    /// Lettered lists, then `Find goat.` and its letter.
    Find,
    /// Lettered lists, then `goat=B`: at the start of a line a word is another token than in the list.
    Bare,
    /// Questions about facts, the bare value after each.
    Values,
    /// Lettered lists, then many questions with the letter of the answer.
    Sheets,
    /// Prompts as in a chat, the letter after each.
    Prompts,
}

/// Choices of a list.
const CHOICES: usize = LETTERS.len();

/// Times that a list is gone through.
const ROUNDS: usize = 3;

/// Questions of a sheet at most.
const QUESTIONS: usize = 9;

impl Source<'_> {
    /// A document.
    pub(super) fn drill(&self, drill: Drill, rng: &mut Rng) -> String {
        let two = |list: &mut dyn FnMut() -> String| [list(), list()].join("\n\n");
        match drill {
            Drill::Lines | Drill::Find | Drill::Bare => two(&mut || self.recall(drill, rng)),
            Drill::Values => (0..10).map(|_| self.value(rng)).collect::<Vec<_>>().join("\n"),
            Drill::Sheets => two(&mut || self.sheet(rng)),
            Drill::Prompts => {
                let told = (0..4).map(|_| self.draw(false, rng));
                let told = told.map(|c| format!("{}\n{}", c.prompt(), c.letter()));
                told.collect::<Vec<_>>().join("\n\n")
            }
        }
    }

    /// A list, and all of it again in other orders.
    fn recall(&self, drill: Drill, rng: &mut Rng) -> String {
        let list = Choice { question: String::new(), choices: self.pool(rng), right: 0 };
        let ask = *rng.pick(&["Where is {v}?", "Find {v}.", "The letter of {v}:"]);
        let mut lines = list.lines();
        let mut order: Vec<usize> = (0..CHOICES).collect();
        for _ in 0..ROUNDS {
            rng.shuffle(&mut order);
            for &i in &order {
                let (word, letter) = (&list.choices[i], LETTERS[i]);
                lines.push(match drill {
                    Drill::Find => format!("{}\n{letter}", ask.replace("{v}", word)),
                    Drill::Bare => format!("{word}={letter}"),
                    _ => format!("- {word}={letter}"),
                });
            }
        }
        lines.join("\n")
    }

    /// Four words, or four values of a relation.
    fn pool(&self, rng: &mut Rng) -> Vec<String> {
        loop {
            let mut pool: Vec<String> = if rng.chance(50) {
                let (relation, item) = self.world.draw(rng);
                let mut values = relation.wrong(item);
                values.push(item.value().to_string());
                values
            } else {
                (0..CHOICES).map(|_| self.words.any(rng).to_string()).collect()
            };
            pool.sort();
            pool.dedup();
            if pool.len() >= CHOICES {
                return rng.sample(&pool, CHOICES).into_iter().cloned().collect();
            }
        }
    }

    /// A question, and its answer in a word.
    fn value(&self, rng: &mut Rng) -> String {
        let facts = if rng.chance(15) { self.village } else { self.world };
        let (relation, item) = facts.draw(rng);
        format!("{}\n{}", relation.question(self.seed, item, rng), item.value())
    }

    /// Four choices, and questions that they answer.
    fn sheet(&self, rng: &mut Rng) -> String {
        loop {
            let facts = if rng.chance(15) { self.village } else { self.world };
            let (relation, item) = facts.draw(rng);
            let wrong = relation.wrong(item);
            let Some(list) = assemble(String::new(), item.value(), &wrong, rng) else { continue };
            let mut asked: Vec<String> = Vec::new();
            for (right, letter) in LETTERS.into_iter().enumerate() {
                if (Choice { right, ..list.clone() }).is_held(self.seed) {
                    continue;
                }
                let fits: Vec<_> = relation
                    .items
                    .iter()
                    .filter(|i| i.value() == list.choices[right])
                    .filter(|i| list.choices.iter().filter(|c| i.values.contains(c)).count() == 1)
                    .collect();
                for item in rng.sample(&fits, fits.len().min(3)) {
                    let question = relation.question(self.seed, item, rng);
                    asked.push(format!("{question}\n{letter}"));
                }
            }
            if !asked.is_empty() {
                rng.shuffle(&mut asked);
                asked.truncate(QUESTIONS);
                return [list.lines(), asked].concat().join("\n");
            }
        }
    }
}
