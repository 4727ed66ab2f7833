//! The starter: a small world in plain English, made from one seed.
//!
//! In: a seed. Out: pretraining documents, SFT conversations and held-out test items about facts,
//! a village, stories, sums, spelling, multiple choice and small talk. Item `i` depends on the seed
//! and `i` alone. The real world is the same under every seed; the village, the choice of words
//! and what is held out are not.
//!
//! Held out are: sums by operands, words to spell, sets of choices with what is right in them,
//! stories by hero, place and trouble, and for each fact one way to ask for it. The fact itself is
//! told in training, and other facts are asked in that way.

mod arithmetic;
mod choice;
mod drill;
mod exchange;
mod facts;
mod grade;
mod mental;
mod mix;
mod rng;
mod smalltalk;
mod spelling;
mod stories;
mod table;
#[cfg(test)]
mod tests;
mod village;

use std::collections::BTreeSet;

use nanochat_tokenizer::chat::{Conversation, Part};

pub use grade::{Grade, TestItem, TestKind};

use choice::Source;
use exchange::{Exchange, conversation};
use facts::Facts;
use mix::{DOCUMENTS, Doc, LAST_LESSON, LESSONS, Lesson, MULTI_TURN_PERCENT, TALK, Talk};
use rng::{Rng, Stream};
use smalltalk::SmallTalk;
use spelling::Words;
use stories::Stories;
use village::Village;

/// What a starter is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StarterConfig {
    /// Decides the village, the held-out items and every draw.
    pub seed: u64,
}

impl Default for StarterConfig {
    fn default() -> Self {
        StarterConfig { seed: 42 }
    }
}

/// The world of one seed.
#[derive(Clone, Debug)]
pub struct Starter {
    seed: u64,
    world: Facts,
    village: Village,
    words: Words,
    stories: Stories,
    small: SmallTalk,
}

impl Starter {
    /// The world of `seed`.
    pub fn new(seed: u64) -> Starter {
        let common = common_words();
        Starter {
            seed,
            world: Facts::world(seed),
            village: Village::new(seed),
            words: Words::new(seed, |w| common.contains(w)),
            stories: Stories::new(seed),
            small: SmallTalk::new(),
        }
    }

    /// The world of `config`.
    pub fn from_config(config: StarterConfig) -> Starter {
        Starter::new(config.seed)
    }

    /// `n` pretraining documents in the order of the lessons: which lesson a document belongs to
    /// depends on its place among the `n`.
    pub fn lessons(&self, n: usize) -> impl Iterator<Item = String> + Send + '_ {
        let lesson = move |i: u64| {
            let place = i * 1000 / n.max(1) as u64;
            LESSONS.iter().find(|l| place < l.until).unwrap_or(&LAST_LESSON)
        };
        (0..n as u64)
            .map(move |i| self.write(lesson(i), &mut Rng::new(self.seed, Stream::Document, i)))
    }

    /// The first `n` documents of the last lesson's mix.
    pub fn documents(&self, n: usize) -> impl Iterator<Item = String> + Send + '_ {
        (0..n as u64).map(|i| self.document(i))
    }

    /// The `i`-th document of the last lesson's mix.
    pub fn document(&self, i: u64) -> String {
        self.write(&LAST_LESSON, &mut Rng::new(self.seed, Stream::Document, i))
    }

    /// The `i`-th document of a stream that training does not draw from, for validation loss.
    pub fn validation_document(&self, i: u64) -> String {
        self.write(&LAST_LESSON, &mut Rng::new(self.seed, Stream::Validation, i))
    }

    /// The `i`-th SFT conversation.
    pub fn conversation(&self, i: u64) -> Conversation {
        let rng = &mut Rng::new(self.seed, Stream::Conversation, i);
        let exchanges = if rng.chance(MULTI_TURN_PERCENT) {
            self.turns(rng)
        } else {
            vec![self.exchange(rng.weighted(TALK), rng)]
        };
        conversation(exchanges)
    }

    /// The first `n` held-out items of `kind`. Facts and words are all used once before any repeats.
    pub fn test(&self, kind: TestKind, n: usize) -> Vec<TestItem> {
        let order = self.order(kind);
        (0..n)
            .map(|i| {
                let rng = &mut Rng::new(self.seed, Stream::Test, (i as u64) << 8 | kind as u64);
                let at = if order.is_empty() { i } else { order[i % order.len()] };
                let (exchange, answer) = self.held_out(kind, at, rng);
                TestItem { kind, conversation: conversation(vec![exchange]), answer }
            })
            .collect()
    }

    /// The first `n` small sums to practise: drawn as conversations draw them, none of them held out.
    pub fn mental_practice(&self, n: usize) -> Vec<TestItem> {
        let item = |i: u64| {
            let problem =
                mental::draw(self.seed, false, &mut Rng::new(self.seed, Stream::Practice, i));
            let (kind, answer) = (TestKind::MentalArithmetic, problem.grade());
            let conversation = conversation(vec![mental::exchange(problem)]);
            TestItem { kind, conversation, answer }
        };
        (0..n as u64).map(item).collect()
    }

    /// A random order of what a kind has a list of; empty for kinds that draw.
    fn order(&self, kind: TestKind) -> Vec<usize> {
        let len = match kind {
            TestKind::Facts => self.world.len() + self.village.facts.len(),
            TestKind::Spelling | TestKind::LetterCount => self.words.held.len(),
            _ => 0,
        };
        let mut order: Vec<usize> = (0..len).collect();
        Rng::new(self.seed, Stream::World, 1 + kind as u64).shuffle(&mut order);
        order
    }

    fn held_out(&self, kind: TestKind, at: usize, rng: &mut Rng) -> (Exchange, Grade) {
        match kind {
            TestKind::Arithmetic => {
                let problem = arithmetic::draw(self.seed, true, &self.village.others, rng);
                let grade = problem.grade();
                (problem.exchange(), grade)
            }
            TestKind::Facts if at < self.world.len() => self.world.test(at, rng),
            TestKind::Facts => self.village.facts.test(at - self.world.len(), rng),
            TestKind::MultipleChoice => {
                let choice = self.source().draw(true, rng);
                (choice.exchange(), choice.grade())
            }
            TestKind::Spelling => self.words.test(at, rng),
            TestKind::LetterCount => self.words.count_test(at, rng),
            TestKind::Stories => self.stories.test(rng),
            TestKind::MentalArithmetic => {
                let problem = mental::draw(self.seed, true, rng);
                let grade = problem.grade();
                (mental::exchange(problem), grade)
            }
        }
    }

    fn source(&self) -> Source<'_> {
        Source {
            seed: self.seed,
            world: &self.world,
            village: &self.village.facts,
            words: &self.words,
        }
    }

    fn write(&self, lesson: &Lesson, rng: &mut Rng) -> String {
        let names = &self.village.others;
        if rng.chance(lesson.drill_percent) {
            return self.source().drill(rng.weighted(lesson.drills), rng);
        }
        match rng.weighted(DOCUMENTS) {
            Doc::Facts => self.world.document(rng, names),
            Doc::Village => self.village.document(rng),
            Doc::Story => self.stories.document(rng),
            Doc::Arithmetic => arithmetic::document(self.seed, names, rng),
            Doc::Spelling => self.words.document(rng),
            Doc::Copy => smalltalk::copy_document(&self.words, rng),
            Doc::Talk => self.small.document(names, rng),
        }
    }

    fn exchange(&self, kind: Talk, rng: &mut Rng) -> Exchange {
        let names = &self.village.others;
        match kind {
            Talk::Facts => self.world.exchange(rng),
            Talk::Village => self.village.facts.exchange(rng),
            Talk::Choice => self.source().draw(false, rng).exchange(),
            Talk::Arithmetic => arithmetic::draw(self.seed, false, names, rng).exchange(),
            Talk::Mental => mental::exchange(mental::draw(self.seed, false, rng)),
            Talk::LetterCount => self.words.count_exchange(rng),
            Talk::Spelling => self.words.exchange(rng),
            Talk::Story => self.stories.exchange(rng),
            Talk::Small => self.small.exchange(names, rng),
            Talk::Copy => smalltalk::copy(&self.words, rng),
            Talk::Unknown if rng.chance(40) => self.village.nobody(rng),
            Talk::Unknown => smalltalk::unknown(&self.words, &self.world, rng),
        }
    }

    /// Two to four exchanges that belong together, or follow each other as in any chat.
    fn turns(&self, rng: &mut Rng) -> Vec<Exchange> {
        let names = &self.village.others;
        let mut turns = match rng.below(10) {
            0..2 => self.world.follow_up(rng),
            2..4 => arithmetic::chain(self.seed, names, rng),
            4 => smalltalk::quiz(&self.world, rng),
            5 => {
                let between = self.exchange(Talk::Facts, rng);
                return smalltalk::remember(between, names, rng);
            }
            _ => (0..2).map(|_| self.exchange(rng.weighted(TALK), rng)).collect(),
        };
        if rng.chance(30) {
            turns.insert(0, self.small.greeting(rng));
        }
        if rng.chance(20) {
            turns.push(self.small.thanks(rng));
        }
        turns
    }
}

/// Words that the tables of the world use.
fn common_words() -> BTreeSet<&'static str> {
    [
        include_str!("data/geography.txt"),
        include_str!("data/animals.txt"),
        include_str!("data/things.txt"),
        include_str!("data/science.txt"),
        include_str!("data/stories.txt"),
        include_str!("data/smalltalk.txt"),
    ]
    .into_iter()
    .flat_map(|text| text.split(|c: char| !c.is_ascii_alphabetic()))
    .collect()
}

/// The words of a part, whatever it is.
fn said(part: Part) -> String {
    match part {
        Part::Text(t) | Part::Python(t) | Part::PythonOutput(t) => t,
    }
}
