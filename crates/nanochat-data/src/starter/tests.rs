//! What the starter promises: the same bytes from the same seed, nothing held out in training,
//! right sums, and text that any tokenizer takes.

use std::collections::{BTreeSet, HashSet};
use std::sync::OnceLock;

use nanochat_tokenizer::chat::{Content, Conversation, Part, Role};

use super::choice::LETTERS;
use super::mix::LESSONS;
use super::*;

const SEED: u64 = 42;
const CONVERSATIONS: u64 = 20_000;
const DOCUMENTS_READ: usize = 5_000;

fn parts(c: &Conversation) -> Vec<String> {
    c.messages
        .iter()
        .flat_map(|m| match &m.content {
            Content::Text(t) => vec![t.clone()],
            Content::Parts(p) => p.iter().cloned().map(said).collect(),
        })
        .collect()
}

/// Training text under [`SEED`]: documents, then everything said in conversations. Made once.
fn training_text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let s = Starter::new(SEED);
        let mut all: Vec<String> = s.lessons(DOCUMENTS_READ).collect();
        all.extend((0..CONVERSATIONS).flat_map(|i| parts(&s.conversation(i))));
        all.join("\n")
    })
}

/// The value of integers joined by `+ - * //`, products first: a second opinion on the generator.
fn evaluate(call: &str) -> i64 {
    let spaced = call.replace("//", "/");
    let mut sum = 0;
    let mut product: Option<i64> = None;
    let mut op = '+';
    let mut digits = String::new();
    for c in spaced.chars().chain(['+']) {
        if c.is_ascii_digit() || (digits.is_empty() && c == '-') {
            digits.push(c);
            continue;
        }
        let n: i64 = digits.parse().expect("a number stands between operators");
        digits.clear();
        product = Some(match (op, product) {
            ('*', Some(p)) => p * n,
            ('/', Some(p)) => p / n,
            ('-', _) => -n,
            _ => n,
        });
        if matches!(c, '+' | '-') {
            sum += product.take().expect("set above");
        }
        op = c;
    }
    sum
}

#[test]
fn the_second_opinion_is_right() {
    for (call, value) in [("12*34", 408), ("2+3*4-5", 9), ("-5+8", 3), ("84//4", 21), ("7-9", -2)] {
        assert_eq!(evaluate(call), value, "{call}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let (a, b) = (Starter::new(SEED), Starter::new(SEED));
    for i in [0, 1, 2, 999, 1_000_000] {
        assert_eq!(a.document(i), b.document(i));
        assert_eq!(a.validation_document(i), b.validation_document(i));
        assert_eq!(a.conversation(i), b.conversation(i));
    }
    for kind in TestKind::ALL {
        assert_eq!(a.test(kind, 20), b.test(kind, 20));
        assert_eq!(a.test(kind, 5), a.test(kind, 20)[..5]);
    }
    let drawn: Vec<String> = a.documents(3).collect();
    assert_eq!(drawn, [b.document(0), b.document(1), b.document(2)]);
}

#[test]
fn other_seeds_give_other_worlds() {
    let (a, b) = (Starter::new(1), Starter::new(2));
    let same = (0..200).filter(|&i| a.document(i) == b.document(i)).count();
    assert!(same < 4, "{same} of 200 documents are the same");
    assert_ne!(a.words.held, b.words.held);
    assert_ne!(a.village.others, b.village.others);
    for kind in TestKind::ALL {
        assert_ne!(a.test(kind, 20), b.test(kind, 20));
    }
}

#[test]
fn validation_documents_are_not_in_training() {
    let s = Starter::new(SEED);
    let train: BTreeSet<String> = (0..5_000).map(|i| s.document(i)).collect();
    assert!((0..500).all(|i| !train.contains(&s.validation_document(i))));
}

#[test]
fn documents_are_plain_and_short() {
    let s = Starter::new(SEED);
    for (i, d) in s.lessons(10_000).enumerate() {
        assert!(d.is_ascii() && !d.contains(['{', '}', '|']), "document {i}: {d}");
        assert!(d.len() > 100 && d.len() < 1_400, "document {i} has {} bytes", d.len());
        assert_eq!(d.trim(), d, "document {i}");
    }
}

#[test]
fn articles_fit_their_words() {
    let s = Starter::new(SEED);
    for i in 0..2_000 {
        let rng = &mut Rng::new(SEED, Stream::Validation, i);
        let told = [
            s.world.document(rng, &s.village.others),
            s.village.document(rng),
            s.stories.document(rng),
        ];
        for text in told {
            let words: Vec<&str> = text.split_whitespace().collect();
            for w in words.windows(2) {
                let vowel = w[1].starts_with(['a', 'e', 'i', 'o', 'u']) || w[1].starts_with("hour");
                let fits = match w[0] {
                    "a" | "A" => !vowel,
                    "an" | "An" => vowel,
                    _ => true,
                };
                assert!(fits, "\"{} {}\" in {text}", w[0], w[1]);
            }
        }
    }
}

#[test]
fn conversations_alternate_and_end_with_the_assistant() {
    let s = Starter::new(SEED);
    let mut turns = [0_usize; 12];
    for i in 0..CONVERSATIONS {
        let c = s.conversation(i);
        assert!(!c.messages.is_empty() && c.messages.len().is_multiple_of(2));
        for (j, m) in c.messages.iter().enumerate() {
            assert_eq!(m.role, if j % 2 == 0 { Role::User } else { Role::Assistant });
        }
        assert!(parts(&c).iter().all(|p| p.is_ascii() && !p.is_empty() && !p.contains(['{', '}'])));
        turns[c.messages.len() / 2] += 1;
    }
    let many: usize = turns[2..].iter().sum();
    assert!(many > CONVERSATIONS as usize / 10, "{many} have several turns");
}

#[test]
fn every_call_has_the_right_output() {
    let s = Starter::new(SEED);
    let mut calls = 0;
    let drawn = (0..CONVERSATIONS).map(|i| s.conversation(i));
    let tests = s.test(TestKind::Arithmetic, 200).into_iter().map(|t| t.conversation);
    for c in drawn.chain(tests) {
        for m in c.messages {
            let Content::Parts(p) = m.content else { continue };
            let [Part::Python(call), Part::PythonOutput(out), Part::Text(_)] = &p[..] else {
                panic!("a call, its output and a sentence: {p:?}");
            };
            let right = match call.split_once(".count(") {
                Some((word, letter)) => word[1..].matches(&letter[1..2]).count() as i64,
                None => evaluate(call),
            };
            assert_eq!(out, &right.to_string(), "{call}");
            calls += 1;
        }
    }
    assert!(calls > 2_000, "{calls} calls");
}

#[test]
fn sums_of_the_test_are_not_in_training() {
    let s = Starter::new(SEED);
    let lines: HashSet<&str> = training_text().lines().collect();
    let words: HashSet<&str> = lines.iter().flat_map(|l| l.split(' ')).collect();
    for t in s.test(TestKind::Arithmetic, 300) {
        assert!(t.requires_tool());
        let Content::Parts(p) = &t.conversation.messages[1].content else { panic!("parts") };
        let Part::Python(call) = &p[0] else { panic!("a call is first") };
        assert!(!words.contains(call.as_str()), "{call} is in training");
        assert!(!lines.contains(t.question()), "{}", t.question());
    }
}

/// Words that `text` spells: runs of single letters with one space between.
fn spelled_in(text: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut run = String::new();
    for piece in text.split_inclusive(|c: char| !c.is_ascii_alphabetic()) {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
        if word.len() == 1 {
            run.push_str(word);
        }
        if word.len() != 1 || !piece.ends_with(' ') {
            found.insert(std::mem::take(&mut run));
        }
    }
    found.insert(run);
    found
}

#[test]
fn held_out_words_are_never_spelled_in_training() {
    let s = Starter::new(SEED);
    assert!(s.words.held.len() >= 40, "{} words are held out", s.words.held.len());
    let found = spelled_in(training_text());
    assert!(found.contains(s.words.train[0]) && found.len() > 2_000);
    for word in &s.words.held {
        let back: String = word.chars().rev().collect();
        assert!(!found.contains(*word) && !found.contains(&back), "{word} is spelled");
    }
}

#[test]
fn questions_of_the_facts_test_are_not_in_training() {
    let s = Starter::new(SEED);
    let all = s.world.len() + s.village.facts.len();
    assert!(all > 700, "{all} facts");
    for t in s.test(TestKind::Facts, all).iter().step_by(30) {
        assert!(!training_text().contains(t.question()), "\"{}\" is in training", t.question());
    }
}

#[test]
fn training_never_asks_in_the_held_out_way() {
    let s = Starter::new(SEED);
    let rng = &mut Rng::new(SEED, Stream::World, 99);
    for relation in s.world.relations.iter().chain(&s.village.facts.relations) {
        for item in &relation.items {
            let held = relation.held_question(SEED, item);
            assert!((0..20).all(|_| relation.question(SEED, item, rng) != held), "{held}");
        }
    }
}

/// Questions about lettered lists in `text`: the choices in any order, and the one that is right.
/// Lists that only ask for a word they name ("Find goat.") are left out.
fn choices_in(text: &str) -> Vec<(Vec<&str>, &str)> {
    let letter = |l: &str| LETTERS.iter().position(|&c| l.len() == 1 && l.starts_with(c));
    let (mut list, mut found) = (Vec::new(), Vec::new());
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2) {
        match pair[0].strip_prefix("- ").and_then(|l| l.rsplit_once('=')) {
            Some((_, "A")) => list = vec![pair[0]],
            Some(_) => list.push(pair[0]),
            None => {
                let Some(right) = letter(pair[1]) else { continue };
                let words: Vec<&str> = list[..4].iter().map(|l| &l[2..l.len() - 2]).collect();
                if !pair[0].contains(words[right]) {
                    let mut set = words.clone();
                    set.sort_unstable();
                    found.push((set, words[right]));
                }
            }
        }
    }
    found
}

#[test]
fn choice_sets_of_the_test_are_not_in_training() {
    let s = Starter::new(SEED);
    let mut told = String::new();
    for i in 0..CONVERSATIONS {
        let c = s.conversation(i);
        for pair in parts(&c).windows(2).filter(|p| p[0].contains("=D\n")) {
            told += &format!("{}\n{}\n\n", pair[0], pair[1]);
        }
    }
    let asked = choices_in(&told).len();
    assert!(asked > 2_000, "{asked} questions with choices in conversations");
    let documents: Vec<String> = s.lessons(10_000).filter(|d| d.contains("=D\n")).collect();
    let seen: HashSet<_> =
        documents.iter().map(String::as_str).chain([told.as_str()]).flat_map(choices_in).collect();
    assert!(seen.len() > 10_000, "{} questions with choices", seen.len());
    let mut letters = [0_usize; 4];
    for t in s.test(TestKind::MultipleChoice, 400) {
        let Grade::Letter(c) = t.answer else { panic!("a letter") };
        letters[c as usize - 'A' as usize] += 1;
        let item = format!("{}\n{c}", t.question());
        assert!(choices_in(&item).iter().all(|key| !seen.contains(key)), "{item}");
    }
    assert!(letters.iter().all(|&n| n > 70), "letters of 400 answers: {letters:?}");
}

#[test]
fn lessons_follow_each_other() {
    let s = Starter::new(SEED);
    let n = 2_000;
    let lessons: Vec<String> = s.lessons(n).collect();
    let starts = |lesson: usize| match lesson {
        0 => 0,
        _ => LESSONS[lesson - 1].until as usize * n / 1000,
    };
    let drills = |lesson: usize| {
        let of = &lessons[starts(lesson)..starts(lesson + 1)];
        100 * of.iter().filter(|d| d.starts_with("- ")).count() / of.len()
    };
    // Lists that only say themselves again, then lists with questions, and few in the end.
    assert_eq!(LESSONS.len(), 6);
    assert!(drills(0) < 20 && drills(1) == 100 && drills(2) == 100);
    assert!(drills(3) > 60 && drills(4) > drills(5));
    assert!((5..30).contains(&drills(5)));
    assert!((starts(5)..n).all(|i| lessons[i] == s.document(i as u64)));
    // The place among all of them decides, not the number.
    assert_eq!(s.lessons(10).count(), 10);
    assert!(!s.lessons(10).eq(s.lessons(n).take(10)));
}

#[test]
fn stories_of_the_test_are_not_asked_in_training() {
    let s = Starter::new(SEED);
    for t in s.test(TestKind::Stories, 40) {
        let about = t.question().split_once("about ").expect("a story about something").1;
        let about = about.trim_end_matches(['.', '?']);
        assert!(!training_text().contains(about), "{about} is in training");
    }
}

#[test]
fn every_seed_makes_a_world() {
    for seed in [0, 1, 7, u64::MAX] {
        let s = Starter::from_config(StarterConfig { seed });
        assert!(s.words.held.len() >= 40, "seed {seed}: {} words", s.words.held.len());
        for i in 0..300 {
            assert!(!s.document(i).is_empty() && !s.conversation(i).messages.is_empty());
        }
        for kind in TestKind::ALL {
            assert_eq!(s.test(kind, 30).len(), 30);
        }
    }
}

#[test]
fn reference_answers_pass_and_others_fail() {
    let s = Starter::new(SEED);
    for kind in TestKind::ALL {
        for t in s.test(kind, 100) {
            let reply = match &t.conversation.messages[1].content {
                Content::Text(text) => text.clone(),
                Content::Parts(p) => p
                    .iter()
                    .filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None })
                    .collect(),
            };
            assert!(t.grade(&reply), "{:?}: {reply}", t.answer);
            assert!(!t.grade("I do not know."), "{:?}", t.answer);
            assert!(!t.grade(""), "{:?}", t.answer);
        }
    }
}

#[test]
fn a_question_does_not_contain_its_answer() {
    let s = Starter::new(SEED);
    for t in s.test(TestKind::Facts, 900) {
        let q = t.question();
        let told = ["fish", "sheep", "deer"].iter().any(|w| q.contains(w))
            || q.contains(", ice or iron")
            || q.contains("sink");
        assert!(told || !t.grade(q), "{q}");
    }
}

#[test]
fn test_facts_are_all_different() {
    let s = Starter::new(SEED);
    let asked: BTreeSet<String> =
        s.test(TestKind::Facts, 600).iter().map(|t| t.question().to_string()).collect();
    assert!(asked.len() > 590, "{} of 600", asked.len());
}
