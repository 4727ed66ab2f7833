//! Are samples of one prompt different, and are they drawn as the model says? Figures for reports and
//! checks.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// How different some samples of one prompt are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Diversity {
    /// Samples.
    pub n: usize,
    /// Different ids over all ids.
    pub distinct_1: f64,
    /// Different pairs of neighbours over all pairs.
    pub distinct_2: f64,
    /// Different first ids.
    pub first_tokens: usize,
}

impl Diversity {
    /// Of rows of ids; empty rows count as samples and have no ids.
    ///
    /// distinct-n = different n-grams / n-grams, over all rows. Source: Li et al., arXiv:1510.03055.
    pub fn of<'r>(rows: impl IntoIterator<Item = &'r [u32]>) -> Self {
        let rows: Vec<&[u32]> = rows.into_iter().collect();
        let firsts: HashSet<u32> = rows.iter().filter_map(|r| r.first().copied()).collect();
        Self {
            n: rows.len(),
            distinct_1: distinct(&rows, 1),
            distinct_2: distinct(&rows, 2),
            first_tokens: firsts.len(),
        }
    }
}

fn distinct(rows: &[&[u32]], n: usize) -> f64 {
    let grams: Vec<&[u32]> = rows.iter().flat_map(|r| r.windows(n)).collect();
    let different: HashSet<&[u32]> = grams.iter().copied().collect();
    different.len() as f64 / grams.len().max(1) as f64
}

/// A chi-square test of draws against the probabilities that they should have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChiSquare {
    /// `sum (observed - expected)^2 / expected`.
    pub statistic: f64,
    /// Cells - 1.
    pub degrees: usize,
    /// Probability of a statistic as large when the draws are right.
    pub p_value: f64,
}

/// Draws that a cell must expect, for the statistic to be nearly chi-square.
const LEAST_EXPECTED: f64 = 5.0;

/// Compares counts with `draws` of a distribution; cells that expect fewer than five draws are one cell.
///
/// `p_value` by Wilson and Hilferty's cube root, within 0.001 of the exact one from 3 degrees on
/// (PNAS 17, 1931). With a single cell there is nothing to test: `p_value` is 1.
pub fn chi_square(counts: &[usize], probabilities: &[f64]) -> ChiSquare {
    let draws: usize = counts.iter().sum();
    let (mut cells, mut rest) = (Vec::new(), (0.0, 0.0));
    for (&count, p) in counts.iter().zip(probabilities) {
        let expected = p * draws as f64;
        if expected < LEAST_EXPECTED {
            rest = (rest.0 + count as f64, rest.1 + expected);
        } else {
            cells.push((count as f64, expected));
        }
    }
    if rest.0 > 0.0 || rest.1 >= LEAST_EXPECTED {
        cells.push(rest);
    }
    let term = |(observed, expected): &(f64, f64)| {
        // What is drawn though it has no probability is wrong beyond doubt.
        (observed - expected).powi(2) / expected.max(1e-9)
    };
    let statistic: f64 = cells.iter().map(term).sum();
    let degrees = cells.len().saturating_sub(1);
    let p_value = if degrees == 0 { 1.0 } else { upper_tail(statistic, degrees as f64) };
    ChiSquare { statistic, degrees, p_value }
}

/// P(X >= x) for a chi-square variable of k degrees of freedom.
fn upper_tail(x: f64, k: f64) -> f64 {
    let spread = 2.0 / (9.0 * k);
    let z = ((x / k).cbrt() - (1.0 - spread)) / spread.sqrt();
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_counts_grams() {
        let rows: [&[u32]; 3] = [&[1, 2, 1, 2], &[1, 2], &[]];
        let d = Diversity::of(rows);
        // Ids 1 and 2 of six; pairs 12, 21, 12, 12.
        assert_eq!(d, Diversity { n: 3, distinct_1: 2.0 / 6.0, distinct_2: 0.5, first_tokens: 1 });
        assert_eq!(Diversity::of([]), Diversity::default());
    }

    #[test]
    fn the_tail_is_that_of_tables() {
        // Quantiles of chi-square: (degrees, 95 %, 99.9 %).
        for (k, q95, q999) in [(3.0, 7.815, 16.266), (10.0, 18.307, 29.588), (50.0, 67.505, 86.661)]
        {
            assert!((upper_tail(q95, k) - 0.05).abs() < 1e-3, "{k}");
            assert!((upper_tail(q999, k) - 0.001).abs() < 2e-4, "{k}");
        }
    }

    #[test]
    fn fair_counts_pass_and_others_fail() {
        let fair = chi_square(&[260, 240, 251, 249], &[0.25; 4]);
        assert_eq!(fair.degrees, 3);
        assert!(fair.p_value > 0.5, "{fair:?}");
        assert!(chi_square(&[1000, 0, 0, 0], &[0.25; 4]).p_value < 1e-9);
        // 0.001 of 100 draws is no cell of its own.
        assert_eq!(chi_square(&[50, 50, 0], &[0.5, 0.499, 0.001]).degrees, 1);
        assert!(
            chi_square(&[50, 50, 9], &[0.5, 0.5, 0.0]).p_value < 1e-9,
            "drawn though impossible"
        );
        assert_eq!(chi_square(&[9], &[1.0]).p_value, 1.0);
    }
}
