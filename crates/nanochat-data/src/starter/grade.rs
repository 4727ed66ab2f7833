//! Test items and how an answer to them is judged: strict about the fact, fair about the words.

use nanochat_tokenizer::chat::{Content, Conversation, Part, Role};

/// What a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TestKind {
    /// Sums to solve with the calculator, of operands never seen together.
    Arithmetic,
    /// Facts of the corpus, asked in words never used for that fact.
    Facts,
    /// Questions with four lettered choices, a set never seen for that question.
    MultipleChoice,
    /// Words never spelled in training.
    Spelling,
    /// Letters counted with the calculator in words never spelled in training.
    LetterCount,
    /// Stories of a hero, a place and a problem never seen together.
    Stories,
    /// Small sums without the calculator, of operands never seen together.
    MentalArithmetic,
}

impl TestKind {
    /// Every kind, in the order of reports.
    pub const ALL: [TestKind; 7] = [
        TestKind::Arithmetic,
        TestKind::Facts,
        TestKind::MultipleChoice,
        TestKind::Spelling,
        TestKind::LetterCount,
        TestKind::Stories,
        TestKind::MentalArithmetic,
    ];

    /// The name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            TestKind::Arithmetic => "arithmetic",
            TestKind::Facts => "facts",
            TestKind::MultipleChoice => "multiple_choice",
            TestKind::Spelling => "spelling",
            TestKind::LetterCount => "letter_count",
            TestKind::Stories => "stories",
            TestKind::MentalArithmetic => "mental_arithmetic",
        }
    }
}

/// What makes an answer right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grade {
    /// The last number in the answer has this value (`21.0` is `21`).
    Number(String),
    /// One of these stands in the answer as whole words, in any case.
    Contains(Vec<String>),
    /// All of these stand in the answer as whole words, and it has at least 20 words.
    Mentions(Vec<String>),
    /// The answer is this letter alone; a full stop after it is allowed.
    Letter(char),
    /// The single letters in the answer, in order, are those of this word.
    Spelled(String),
}

impl Grade {
    /// Whether `answer` is right.
    pub fn accepts(&self, answer: &str) -> bool {
        match self {
            Grade::Number(n) => last_number(answer).is_some_and(|a| a == plain_number(n)),
            Grade::Contains(any) => any.iter().any(|w| has_words(answer, w)),
            Grade::Mentions(all) => {
                all.iter().all(|w| has_words(answer, w)) && words(answer).len() >= 20
            }
            Grade::Letter(c) => {
                let a = answer.trim();
                let a = a.strip_suffix('.').unwrap_or(a);
                a.len() == 1 && a.starts_with(|x: char| x.eq_ignore_ascii_case(c))
            }
            Grade::Spelled(word) => {
                let letters: String =
                    words(answer).into_iter().filter(|w| w.chars().count() == 1).collect();
                letters == word.to_lowercase()
            }
        }
    }
}

/// One held-out question with its reference answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TestItem {
    /// What is tested.
    pub kind: TestKind,
    /// The user's turn, and last the reference answer.
    pub conversation: Conversation,
    /// What makes an answer right.
    pub answer: Grade,
}

impl TestItem {
    /// The text of the last user turn.
    pub fn question(&self) -> &str {
        let user = self.conversation.messages.iter().rev().find(|m| m.role == Role::User);
        match user.map(|m| &m.content) {
            Some(Content::Text(t)) => t,
            _ => "",
        }
    }

    /// The reference answer, without its tool call.
    pub fn reference(&self) -> String {
        match self.conversation.messages.last().map(|m| &m.content) {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                let text = |part: &Part| match part {
                    Part::Text(text) => Some(text.clone()),
                    Part::Python(_) | Part::PythonOutput(_) => None,
                };
                parts.iter().filter_map(text).collect()
            }
            None => String::new(),
        }
    }

    /// What an answer must have to be right, in words.
    pub fn wants(&self) -> String {
        let tool = match self.kind {
            TestKind::MentalArithmetic => ", without the calculator",
            _ if self.requires_tool() => ", by the calculator",
            _ => "",
        };
        let what = match &self.answer {
            Grade::Number(n) => format!("the last number is {n}"),
            Grade::Contains(any) => format!("says {}", any.join(" or ")),
            Grade::Mentions(all) => format!("mentions {}", all.join(", ")),
            Grade::Letter(c) => format!("the letter {c} alone"),
            Grade::Spelled(word) => format!("the letters of {word}"),
        };
        what + tool
    }

    /// Whether `answer` (the text the user sees, without the tool calls) is right.
    pub fn grade(&self, answer: &str) -> bool {
        self.answer.accepts(answer)
    }

    /// Whether an answer that called the calculator, or did not, may count.
    pub fn allows_tool_use(&self, called: bool) -> bool {
        match self.kind {
            TestKind::MentalArithmetic => !called,
            _ => called || !self.requires_tool(),
        }
    }

    /// Whether the reference answer calls the calculator.
    pub fn requires_tool(&self) -> bool {
        self.conversation.messages.iter().any(|m| match &m.content {
            Content::Parts(parts) => parts.iter().any(|p| matches!(p, Part::Python(_))),
            Content::Text(_) => false,
        })
    }
}

/// Lower-case runs of letters and digits; an apostrophe or hyphen inside a word splits it.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn has_words(answer: &str, wanted: &str) -> bool {
    let (a, w) = (words(answer), words(wanted));
    !w.is_empty() && a.windows(w.len()).any(|s| s == w)
}

/// The last number, in plain form; a sign counts only where no digit or letter stands before it.
fn last_number(text: &str) -> Option<String> {
    let b = text.as_bytes();
    let end = b.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end;
    while start > 0 && (b[start - 1].is_ascii_digit() || is_inside_number(b, start - 1)) {
        start -= 1;
    }
    let signed = start > 0
        && b[start - 1] == b'-'
        && (start < 2 || !b[start - 2].is_ascii_alphanumeric() && b[start - 2] != b')');
    Some(plain_number(&text[if signed { start - 1 } else { start }..end]))
}

/// A point or a thousands comma with digits on both sides.
fn is_inside_number(b: &[u8], i: usize) -> bool {
    let digits = i > 0 && b[i - 1].is_ascii_digit() && b[i + 1].is_ascii_digit();
    digits && (b[i] == b'.' || b[i] == b',')
}

/// `1,200` is `1200`, `21.0` is `21`, `007` is `7`.
fn plain_number(n: &str) -> String {
    let n = n.trim().replace(',', "");
    let n = if n.contains('.') { n.trim_end_matches('0').trim_end_matches('.') } else { &n };
    let (sign, digits) = n.strip_prefix('-').map_or(("", n), |d| ("-", d));
    let digits = digits.trim_start_matches('0');
    match digits {
        "" => "0".to_string(),
        d if d.starts_with('.') => format!("{sign}0{d}"),
        d => format!("{sign}{d}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_must_be_the_last_and_equal() {
        let g = Grade::Number("408".into());
        for right in ["408", "12 times 34 is 408.", "It is 408!", "408.0"] {
            assert!(g.accepts(right), "{right}");
        }
        for wrong in ["", "It is 4080.", "408 is not 409", "-408", "40 8", "about 48"] {
            assert!(!g.accepts(wrong), "{wrong}");
        }
        assert!(Grade::Number("-5".into()).accepts("3 minus 8 is -5."));
        assert!(!Grade::Number("5".into()).accepts("3 minus 8 is -5."));
        assert!(Grade::Number("5".into()).accepts("8-3 gives 8-5"));
        assert!(Grade::Number("1200".into()).accepts("There are 1,200 of them."));
        assert!(Grade::Number("0".into()).accepts("The answer is 0."));
    }

    #[test]
    fn contains_wants_whole_words_in_any_case() {
        let g = Grade::Contains(vec!["Buenos Aires".into(), "den".into()]);
        assert!(g.accepts("it is buenos aires."));
        assert!(g.accepts("A fox lives in a den."));
        assert!(!g.accepts("a garden"));
        assert!(!g.accepts("Buenos"));
        assert!(!g.accepts(""));
    }

    #[test]
    fn a_letter_stands_alone() {
        let g = Grade::Letter('B');
        for right in ["B", " B ", "B.", "b"] {
            assert!(g.accepts(right), "{right}");
        }
        for wrong in ["", "A", "B and C", "The answer is B", "B..", "AB"] {
            assert!(!g.accepts(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_spelling_has_the_letters_in_order_and_no_others() {
        let g = Grade::Spelled("arena".into());
        for right in ["a r e n a", "A-R-E-N-A", "a, r, e, n, a.", "It goes a r e n a"] {
            assert!(g.accepts(right), "{right}");
        }
        for wrong in ["arena", "a r e n", "a r e n a a", "a r n e a", "", "ar en a"] {
            assert!(!g.accepts(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_story_mentions_everything_and_is_a_story() {
        let g = Grade::Mentions(vec!["fox".into(), "old mill".into()]);
        assert!(!g.accepts("A fox at the old mill."));
        let long = "A fox sat at the old mill ".to_string() + &"and slept ".repeat(10);
        assert!(g.accepts(&long));
        assert!(!g.accepts(&long.replace("fox", "hen")));
    }
}
