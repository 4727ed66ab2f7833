//! Samples of one prompt: independent, reproducible, and not changed by their number.

use anyhow::ensure;
use nanochat_engine::FirstToken;

use super::Finding;
use crate::cli::Global;
use crate::sampling::{self, SAMPLES, UNLIKELY, draw};

/// Checks independent first tokens, or one for all in their place.
pub fn check(global: &Global, is_out: bool) -> Finding {
    let first = if is_out { FirstToken::Broadcast } else { FirstToken::Independent };
    let seed = global.seed;
    let found = sampling::check(first, seed);
    ensure!(
        found.test.p_value >= UNLIKELY,
        "first tokens are not drawn one by one: chi-square {:.0} of {} degrees, p {:.1e}, {} different \
         of {SAMPLES}",
        found.test.statistic,
        found.test.degrees,
        found.test.p_value,
        found.first_tokens
    );
    let rows = |temperature, n, row| draw(first, (temperature, seed), (n, row), 12);
    let warm = rows(1.0, SAMPLES, 0);
    ensure!(warm == rows(1.0, SAMPLES, 0), "the same seed gives other samples");
    let greedy = rows(0.0, SAMPLES, 0);
    ensure!(greedy.iter().all(|r| *r == greedy[0]), "samples differ at temperature 0");
    for r in [0, 7, SAMPLES - 1] {
        ensure!(rows(1.0, 1, r as u64)[0] == warm[r], "sample {r} changes with their number");
    }
    let copied = sampling::check(FirstToken::Broadcast, seed);
    Ok(format!(
        "chi-square p {:.3} ({:.0e} with one first token for all), {} of {SAMPLES} first tokens differ",
        found.test.p_value, copied.test.p_value, found.first_tokens
    ))
}
