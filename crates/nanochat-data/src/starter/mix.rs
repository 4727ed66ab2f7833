//! How much of each kind there is, and when: the one place to tune the corpus. Weights are per
//! document or conversation, not per token; only their ratios matter.

use super::drill::Drill;

/// Kinds of pretraining document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doc {
    /// The real world, told in paragraphs, lists, questions and dialogues.
    Facts,
    /// The people of the village.
    Village,
    /// A short story.
    Story,
    /// Sums and how the calculator solves them.
    Arithmetic,
    /// Words and made-up words, letter by letter.
    Spelling,
    /// Lists said twice: practice in copying.
    Copy,
    /// Small talk, written as dialogue.
    Talk,
}

/// Shares of pretraining documents that are not drills.
pub(super) const DOCUMENTS: &[(Doc, usize)] = &[
    (Doc::Facts, 26),
    (Doc::Village, 6),
    (Doc::Story, 17),
    (Doc::Arithmetic, 8),
    (Doc::Spelling, 60),
    (Doc::Copy, 4),
    (Doc::Talk, 3),
];

/// A stretch of pretraining.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lesson {
    /// It ends after this many thousandths of the documents.
    pub(super) until: u64,
    /// Percent of documents that are drills.
    pub(super) drill_percent: usize,
    /// Shares of the drills.
    pub(super) drills: &'static [(Drill, usize)],
}

/// Pretraining in order. Recall is quickly learned by a model that has read some text and has met it,
/// and lost again if it is not used at once: it comes second, in one go, up to its use. `Bare` is
/// what carries it over to words that are thought of and not read. What was tried stands in
/// docs/LOG.md.
pub(super) const LESSONS: &[Lesson] = &[
    Lesson {
        until: 175,
        drill_percent: 20,
        drills: &[(Drill::Values, 50), (Drill::Lines, 25), (Drill::Find, 25)],
    },
    Lesson { until: 205, drill_percent: 100, drills: &[(Drill::Lines, 1)] },
    Lesson {
        until: 315,
        drill_percent: 100,
        drills: &[(Drill::Lines, 30), (Drill::Find, 35), (Drill::Bare, 35)],
    },
    Lesson {
        until: 470,
        drill_percent: 100,
        drills: &[
            (Drill::Sheets, 60),
            (Drill::Prompts, 15),
            (Drill::Find, 15),
            (Drill::Values, 10),
        ],
    },
    // Other text comes back slowly: what is half learned withers in it.
    Lesson {
        until: 610,
        drill_percent: 60,
        drills: &[(Drill::Sheets, 60), (Drill::Prompts, 30), (Drill::Find, 10)],
    },
    LAST_LESSON,
];

/// The mix that goes on to the end.
pub(super) const LAST_LESSON: Lesson = Lesson {
    until: 1000,
    drill_percent: 25,
    drills: &[
        (Drill::Sheets, 50),
        (Drill::Prompts, 28),
        (Drill::Values, 10),
        (Drill::Find, 7),
        (Drill::Lines, 5),
    ],
};

/// Kinds of exchange in SFT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    /// A question about the world.
    Facts,
    /// A question about the village.
    Village,
    /// A question with lettered choices.
    Choice,
    /// A sum, solved with the calculator.
    Arithmetic,
    /// A small sum, done in the head.
    Mental,
    /// Letters of a word, counted with the calculator.
    LetterCount,
    /// Letters of a word, said.
    Spelling,
    /// A story.
    Story,
    /// Greetings, jokes, who the model is.
    Small,
    /// Say it again, count up.
    Copy,
    /// Something the model cannot know.
    Unknown,
}

/// Shares of single exchanges.
pub(super) const TALK: &[(Talk, usize)] = &[
    (Talk::Facts, 22),
    (Talk::Village, 5),
    (Talk::Choice, 27),
    (Talk::Arithmetic, 10),
    (Talk::Mental, 4),
    (Talk::LetterCount, 4),
    (Talk::Spelling, 37),
    (Talk::Story, 9),
    (Talk::Small, 10),
    (Talk::Copy, 3),
    (Talk::Unknown, 3),
];

/// Percent of conversations that have more than one exchange.
pub(super) const MULTI_TURN_PERCENT: usize = 22;

/// One in this many sums, words, choice sets and story plots is kept for the test.
pub(super) const HELD_ONE_IN: usize = 10;
