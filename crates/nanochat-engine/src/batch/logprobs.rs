//! Logits to log probabilities.

use super::request::TokenLogprobs;

/// `ln p[i] = logit[i] - ln sum_j e^(logit[j])` of `id` and of the `n` likeliest ids, the lower of equals
/// first. The sum is in f64, in the order of ids.
pub(super) fn logprobs(logits: &[f32], id: u32, n: usize) -> TokenLogprobs {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    let log_sum = f64::from(max) + sum.ln();
    let of = |id: u32| {
        logits.get(id as usize).map_or(f32::NEG_INFINITY, |x| (f64::from(*x) - log_sum) as f32)
    };
    TokenLogprobs { id, logprob: of(id), top: best(logits, n).map(|id| (id, of(id))).collect() }
}

/// The `n` likeliest ids, best first.
fn best(logits: &[f32], n: usize) -> impl Iterator<Item = u32> {
    let order = |a: &u32, b: &u32| {
        logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b))
    };
    let n = n.min(logits.len());
    let mut ids: Vec<u32> = if n == 0 { Vec::new() } else { (0..logits.len() as u32).collect() };
    if n > 0 && n < ids.len() {
        ids.select_nth_unstable_by(n - 1, order);
    }
    ids.truncate(n);
    ids.sort_unstable_by(order);
    ids.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_by_hand() {
        // Shares of 1, 2, 4 and 1 of 8.
        let logits = [0.0, 2f32.ln(), 4f32.ln(), 0.0];
        let got = logprobs(&logits, 1, 3);
        assert_eq!(got.id, 1);
        let near = |a: f32, b: f32| (a - b.ln()).abs() < 1e-6;
        assert!(near(got.logprob, 0.25), "{got:?}");
        let ids: Vec<u32> = got.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [2, 1, 0], "the lower of equals");
        assert!(near(got.top[0].1, 0.5) && near(got.top[2].1, 0.125), "{got:?}");
        assert!(logprobs(&logits, 3, 0).top.is_empty());
        assert_eq!(logprobs(&logits, 3, 99).top.len(), 4);
        assert_eq!(logprobs(&[1e30, -1e30], 1, 1).top, [(0, 0.0)]);
    }
}
