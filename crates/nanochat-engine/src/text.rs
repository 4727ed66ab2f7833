//! One row's ids in, whole text out: no half characters, special tokens or stop strings.

use std::borrow::Cow;

use nanochat_tokenizer::{Tokenizer, Utf8Stream};

use crate::Result;
use crate::tool::Seen;

/// What a reader sees of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Words.
    Text(String),
    /// The expression of a tool call.
    ToolCall(String),
    /// What the tool answered.
    ToolOutput(String),
}

impl Piece {
    /// Appends `piece` to `pieces`, joining neighbouring texts.
    pub fn append(pieces: &mut Vec<Piece>, piece: &Piece) {
        if let (Some(Piece::Text(last)), Piece::Text(text)) = (pieces.last_mut(), piece) {
            last.push_str(text);
        } else {
            pieces.push(piece.clone());
        }
    }
}

/// Turns the ids of one row into [`Piece`]s.
pub struct RowText<'s> {
    utf8: Utf8Stream,
    stops: StopFilter<'s>,
}

impl<'s> RowText<'s> {
    /// Text that ends before the first of `stops` (none of them empty).
    pub fn new(tokenizer: &Tokenizer, stops: impl Into<Cow<'s, [String]>>) -> Self {
        Self { utf8: Utf8Stream::new(tokenizer), stops: StopFilter::new(stops) }
    }

    /// Takes in an id and what it did; adds what can be shown. True if a stop string is complete.
    ///
    /// Stop strings are looked for in words only, never in tool calls or across them.
    /// Errors: [`crate::Error::Tokenizer`] for an id that does not exist.
    pub fn push(&mut self, id: u32, seen: &Seen, out: &mut Vec<Piece>) -> Result<bool> {
        match seen {
            Seen::Word => {
                let text = self.utf8.push(id)?;
                let (text, stopped) = self.stops.push(&text);
                show(text, out);
                return Ok(stopped);
            }
            Seen::Opened | Seen::End => self.flush(out),
            Seen::Call(expression) => out.push(Piece::ToolCall(expression.clone())),
            Seen::Output(text) => out.push(Piece::ToolOutput(text.clone())),
            Seen::Inside | Seen::Mark => {}
        }
        Ok(false)
    }

    /// Adds what was held back, a character cut short as U+FFFD.
    pub fn flush(&mut self, out: &mut Vec<Piece>) {
        let (mut text, stopped) = self.stops.push(&self.utf8.finish());
        if !stopped {
            text.push_str(&self.stops.flush());
        }
        show(text, out);
    }
}

fn show(text: String, out: &mut Vec<Piece>) {
    if !text.is_empty() {
        out.push(Piece::Text(text));
    }
}

/// Lets text through up to the first stop string; holds back what may be the beginning of one.
pub struct StopFilter<'s> {
    stops: Cow<'s, [String]>,
    held: String,
}

impl<'s> StopFilter<'s> {
    /// A filter for `stops`, none of them empty.
    pub fn new(stops: impl Into<Cow<'s, [String]>>) -> Self {
        Self { stops: stops.into(), held: String::new() }
    }

    /// Adds `text`; returns what can be shown, and whether a stop string is complete. After that
    /// nothing is held.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.held.char_indices().map(|(i, _)| i).find(|i| {
            let tail = &self.held[*i..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        });
        let tail = self.held.split_off(keep.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, tail), false)
    }

    /// What is held back, now that nothing follows.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn a_stop_across_pieces_is_never_shown() {
        let stops = stops(&["<end>", "\n\n"]);
        let mut filter = StopFilter::new(&stops);
        assert_eq!(filter.push("one <"), ("one ".into(), false));
        assert_eq!(filter.push("e"), (String::new(), false));
        assert_eq!(filter.push("f"), ("<ef".into(), false));
        assert_eq!(filter.push("\n"), (String::new(), false));
        assert_eq!(filter.push("x<en"), ("\nx".into(), false));
        assert_eq!(filter.push("d> tail"), (String::new(), true));
        assert_eq!(filter.flush(), "");
    }

    #[test]
    fn what_was_no_stop_is_shown_at_the_end() {
        let stops = stops(&["aab"]);
        let mut filter = StopFilter::new(&stops);
        assert_eq!(filter.push("aaa"), ("a".into(), false));
        assert_eq!(filter.flush(), "aa");
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_where_it_stops(
            text in "[abé]{0,20}",
            list in prop::collection::vec("[abé]{1,4}", 0..3),
            cut in 1_usize..4,
        ) {
            let mut filter = StopFilter::new(&list);
            let mut shown = String::new();
            let mut stopped = false;
            let letters: Vec<char> = text.chars().collect();
            for part in letters.chunks(cut) {
                let (out, stop) = filter.push(&part.iter().collect::<String>());
                shown.push_str(&out);
                stopped = stop;
                if stop {
                    break;
                }
            }
            shown.push_str(&filter.flush());
            let contains = |text: &str| list.iter().any(|stop| text.contains(stop.as_str()));
            prop_assert_eq!(stopped, contains(&text));
            prop_assert!(text.starts_with(&shown) && !contains(&shown));
            prop_assert!(stopped || shown == text);
            // Right after what is shown stands the stop.
            let rest = &text[shown.len()..];
            prop_assert!(!stopped || list.iter().any(|stop| rest.starts_with(stop.as_str())));
        }
    }
}
