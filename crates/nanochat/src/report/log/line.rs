//! A line of a log taken apart: colours away, fields, numbers, times.

/// Keys of a step's time.
pub const STEP_TIME_KEYS: [&str; 5] = ["dt", "step time", "time/step", "avg time/step", "time"];

/// `loss: 3.45`, `tokens/sec: 125000`, `lrm 1.00`.
#[derive(Debug)]
pub struct Field<'a> {
    /// In lower case.
    pub key: String,
    /// The number that the text begins with.
    pub value: f64,
    text: &'a str,
}

impl<'a> Field<'a> {
    /// A field of a line; `None` when no number follows its key.
    pub fn read(field: &'a str) -> Option<Self> {
        let (key, text) = field.split_once(':').or_else(|| field.trim().rsplit_once(' '))?;
        Some(Self { key: key.trim().to_ascii_lowercase(), value: leading(text)?, text })
    }

    /// The field as a time in milliseconds: `412.34ms`, `2.450s`, and `412` of a `dt`.
    pub fn milliseconds(&self) -> Option<f64> {
        let unit: String = self.text.chars().filter(char::is_ascii_alphabetic).collect();
        let scale = match unit.to_ascii_lowercase().as_str() {
            "ms" => 1.0,
            "s" | "sec" | "seconds" => 1e3,
            "" if self.key == "dt" => 1.0,
            _ => return None,
        };
        Some(scale * self.value).filter(|ms| ms.is_finite() && *ms >= 0.0)
    }
}

/// Without terminal colours and cursor moves: `ESC [ ... letter`.
pub fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += part
            .trim_start_matches(|c: char| c.is_ascii_digit() || ";?".contains(c))
            .get(1..)
            .unwrap_or("");
    }
    out
}

/// The number that a text begins with, commas allowed: `1,271,512`, `412.34ms`, `nan`.
pub fn leading(text: &str) -> Option<f64> {
    let text = text.trim_start();
    let word = text.split([' ', '|', '%']).next().unwrap_or("").to_ascii_lowercase();
    if matches!(word.as_str(), "nan" | "inf" | "-inf") {
        return word.parse().ok();
    }
    let bare: String = word.chars().filter(|c| *c != ',').collect();
    let digits = bare.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
    (1..=digits.len()).rev().find_map(|end| digits.get(..end)?.parse().ok())
}

/// Seconds of `1h 23m`, `3h51m`, `99.12m`, `42s`, `20.5 seconds`.
pub fn seconds(text: &str) -> Option<f64> {
    let (mut total, mut number, mut found) = (0.0, String::new(), false);
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' | '.' => {
                number.push(c);
                continue;
            }
            ' ' => continue,
            'h' => 3600.0,
            'm' => 60.0,
            's' => 1.0,
            _ => break,
        };
        // The second letter of "seconds" has no number before it.
        if number.is_empty() {
            break;
        }
        total += unit * number.parse::<f64>().ok()?;
        number.clear();
        found = true;
    }
    found.then_some(total).filter(|s| s.is_finite())
}

/// `step 100`, `Step 00100/02520 (3.97%)`, with anything before it: step, planned steps.
pub fn step_of(field: &str) -> Option<(u64, Option<u64>)> {
    let at = field.to_ascii_lowercase().rfind("step ")?;
    let rest = field[at + 5..].trim_start();
    let digits = |t: &str| t.chars().take_while(char::is_ascii_digit).collect::<String>();
    let step = digits(rest);
    let of = rest[step.len()..].strip_prefix('/').and_then(|t| digits(t).parse().ok());
    Some((step.parse().ok()?, of))
}

/// Units of a rate of decoding, the longer spelling of each first.
const RATES: [&str; 4] = ["tokens per second", "tokens a second", "tokens/s", "tok/s"];

/// Tokens a second in running text: `(23 tokens, 412 tokens/sec)`, `tokens/second: 100.8`.
pub fn rate(text: &str) -> Option<f64> {
    let text = text.to_ascii_lowercase();
    let (before, after) = RATES.iter().find_map(|unit| text.split_once(unit))?;
    let word = before.split_whitespace().next_back().unwrap_or("");
    let word = word.trim_start_matches(|c: char| !c.is_ascii_digit());
    let value = || after.split_once([':', '=']).and_then(|(_, t)| leading(t));
    leading(word).or_else(value).filter(|x| x.is_finite() && *x > 0.0)
}
