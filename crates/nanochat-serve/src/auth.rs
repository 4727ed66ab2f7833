//! Keys: who may ask. Compared in constant time, never kept or shown in clear.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{Error, Result};

/// The cookie that the page's login sets.
pub(crate) const COOKIE: &str = "nanochat_key";

/// The keys that are accepted, as sums: comparing takes the same time whatever was shown.
#[derive(Clone, Default)]
pub struct Keys {
    sums: Vec<[u8; 32]>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.sums.len())
    }
}

impl Keys {
    /// Fewest characters of a key: shorter ones can be guessed.
    pub const SHORTEST: usize = 8;

    /// Accepts `key` too.
    ///
    /// Errors: [`Error::Flag`] if it is short or cannot stand in a header.
    pub fn add(&mut self, key: &str) -> Result<()> {
        let hint = if key.len() < Self::SHORTEST {
            "a key needs 8 characters or more"
        } else if !key.bytes().all(|b| b.is_ascii_graphic()) {
            "a key has ASCII letters, digits and signs only"
        } else {
            self.sums.push(sum(key));
            return Ok(());
        };
        // What was given is not repeated: it may be half of a key.
        Err(Error::Flag { flag: "--api-key", value: format!("{} bytes", key.len()), hint })
    }

    /// Adds the keys of a file's text, one a line; empty lines and those that begin with # do not count.
    ///
    /// Errors: as [`Keys::add`].
    pub fn add_lines(&mut self, text: &str) -> Result<()> {
        let lines = text.lines().map(str::trim);
        lines.filter(|l| !l.is_empty() && !l.starts_with('#')).try_for_each(|l| self.add(l))
    }

    /// True if no key is asked for.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Whether `key` is one of them.
    pub(crate) fn accept(&self, key: &str) -> bool {
        self.accept_sum(&sum(key))
    }

    fn accept_sum(&self, shown: &[u8; 32]) -> bool {
        let any = self.sums.iter().fold(Choice::from(0), |any, sum| any | sum.ct_eq(shown));
        any.into()
    }

    /// Whether a request shows one: `Authorization: Bearer KEY`, `X-Api-Key: KEY`, or the cookie.
    pub(crate) fn accept_headers(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        if let Some(shown) = text(header::AUTHORIZATION.as_str()) {
            let (scheme, key) = shown.split_once(' ').unwrap_or(("", ""));
            return scheme.eq_ignore_ascii_case("bearer") && self.accept(key.trim());
        }
        if let Some(key) = text("x-api-key") {
            return self.accept(key);
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
        let mut pairs = cookies.flat_map(|c| c.split(';')).filter_map(|c| c.trim().split_once('='));
        pairs.any(|(name, value)| name == COOKIE && self.accept_ticket(value))
    }

    fn accept_ticket(&self, ticket: &str) -> bool {
        let tickets = self.sums.iter().map(ticket_of);
        let any =
            tickets.fold(Choice::from(0), |any, t| any | t.as_bytes().ct_eq(ticket.as_bytes()));
        any.into()
    }

    /// What the cookie holds after a login with `key`: not the key itself.
    pub(crate) fn ticket(key: &str) -> String {
        ticket_of(&sum(key))
    }
}

fn sum(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn ticket_of(sum: &[u8; 32]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"nanochat cookie ");
    hash.update(sum);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            axum::http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
        headers
    }

    #[test]
    fn only_the_whole_key_in_a_known_place_is_accepted() {
        let mut keys = Keys::default();
        keys.add_lines("# ours\n\nfirst-key-1\n  second-key  \n").unwrap();
        let ticket = Keys::ticket("first-key-1");
        let good = [
            ("authorization", "Bearer first-key-1".to_owned()),
            ("authorization", "bearer second-key".to_owned()),
            ("x-api-key", "second-key".to_owned()),
            ("cookie", format!("a=b; {COOKIE}={ticket}")),
        ];
        for (name, value) in good {
            assert!(keys.accept_headers(&shown(name, &value)), "{name}: {value}");
        }
        let bad = [
            ("authorization", "Basic first-key-1".to_owned()),
            ("authorization", "Bearer first-key-".to_owned()),
            ("authorization", "Bearer ".to_owned()),
            ("authorization", "first-key-1".to_owned()),
            ("x-api-key", "first-key-11".to_owned()),
            ("cookie", format!("{COOKIE}=first-key-1")),
            ("accept", "first-key-1".to_owned()),
        ];
        for (name, value) in bad {
            assert!(!keys.accept_headers(&shown(name, &value)), "{name}: {value}");
        }
    }

    #[test]
    fn a_key_that_is_short_or_no_header_is_refused_without_being_repeated() {
        for key in ["", "short", "with space in it", "ключ-ключ"] {
            let error = Keys::default().add(key).unwrap_err().to_string();
            assert!(error.starts_with("--api-key") && (key.is_empty() || !error.contains(key)));
        }
    }
}
