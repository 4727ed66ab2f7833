//! Two models on the same items: the difference of their scores, and how sure it is.
//!
//! Items are paired by task and id, so what makes a question hard falls out. The interval is a paired
//! bootstrap (items drawn anew, percentiles 2.5 and 97.5); the p-value McNemar's exact test on the items
//! where only one of the two is right. Sources: Efron, Tibshirani, "An Introduction to the Bootstrap",
//! 1993, 13.3; McNemar, Psychometrika 12, 1947.

use std::collections::BTreeMap;

use nanochat_data::python_random::PythonRandom;
use serde::Serialize;

use super::Graded;

/// Draws of the bootstrap.
const DRAWS: usize = 2000;

/// Seed of the bootstrap.
const SEED: u64 = 42;

/// B against A on the items that both have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Task; `all` is the mean over the tasks.
    pub task: String,
    /// Items that both have.
    pub n: usize,
    /// Score of A on them.
    pub a: f64,
    /// Score of B on them.
    pub b: f64,
    /// `b - a`.
    pub difference: f64,
    /// Lower end of the 95 % interval of the difference.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Items that only A, and only B, gets right.
    pub only: [usize; 2],
    /// McNemar's exact two-sided p-value; none over several tasks, whose weights differ.
    pub p: Option<f64>,
}

/// Compares task by task, then all tasks with equal weight.
///
/// Tasks and items that only one of the two has are left out.
pub fn compare(a: &[Graded], b: &[Graded]) -> Vec<Difference> {
    let right = |g: &Graded| f64::from(u8::from(g.right > 0.0));
    let of_b: BTreeMap<(&str, &str), f64> =
        b.iter().map(|g| ((g.task.as_str(), g.id.as_str()), right(g))).collect();
    let mut tasks: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for item in a {
        if let Some(&b) = of_b.get(&(item.task.as_str(), item.id.as_str())) {
            tasks.entry(&item.task).or_default().push((right(item), b));
        }
    }
    let mut all: Vec<Difference> =
        tasks.iter().map(|(task, pairs)| difference(task, &[pairs])).collect();
    if tasks.len() > 1 {
        let lists: Vec<&Vec<(f64, f64)>> = tasks.values().collect();
        all.push(difference("all", &lists));
    }
    all
}

fn difference(task: &str, lists: &[&Vec<(f64, f64)>]) -> Difference {
    let mean = |pick: fn(&(f64, f64)) -> f64| {
        let of = |list: &&Vec<(f64, f64)>| list.iter().map(pick).sum::<f64>() / list.len() as f64;
        lists.iter().map(of).sum::<f64>() / lists.len() as f64
    };
    let (a, b) = (mean(|p| p.0), mean(|p| p.1));
    let pairs = || lists.iter().flat_map(|list| list.iter());
    let only = [pairs().filter(|p| p.0 > p.1).count(), pairs().filter(|p| p.1 > p.0).count()];
    let mut rng = PythonRandom::new(SEED);
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let of = |list: &&Vec<(f64, f64)>| {
                let one = |_| {
                    let pair = list[rng.randbelow(list.len())];
                    pair.1 - pair.0
                };
                (0..list.len()).map(one).sum::<f64>() / list.len() as f64
            };
            lists.iter().map(of).sum::<f64>() / lists.len() as f64
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[((DRAWS - 1) as f64 * share).round() as usize];
    Difference {
        task: task.into(),
        n: pairs().count(),
        a,
        b,
        difference: b - a,
        low: at(0.025),
        high: at(0.975),
        only,
        p: (lists.len() == 1).then(|| mcnemar(only[0], only[1])),
    }
}

/// Two-sided exact p-value of `x` against `y` when each of the `x + y` is a fair coin.
///
/// ```
/// use nanochat_train::eval::compare::mcnemar;
/// assert_eq!(mcnemar(0, 0), 1.0);
/// assert!((mcnemar(0, 5) - 2.0 / 32.0).abs() < 1e-12);
/// assert!((mcnemar(1, 5) - 2.0 * 7.0 / 64.0).abs() < 1e-12);
/// ```
pub fn mcnemar(x: usize, y: usize) -> f64 {
    let n = x + y;
    // ln of C(n, i) / 2^n, from one i to the next.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=x.min(y) {
        tail += term.exp();
        term += ((n - i) as f64 / (i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(task: &str, id: usize, right: bool) -> Graded {
        Graded {
            task: task.into(),
            id: id.to_string(),
            prompt: String::new(),
            shots: Vec::new(),
            answers: Vec::new(),
            gold: String::new(),
            right: f64::from(u8::from(right)),
            why: String::new(),
            losses: Vec::new(),
        }
    }

    #[test]
    fn only_common_items_count_and_pairs_are_by_id() {
        let a: Vec<Graded> = (0..100).map(|i| item("t", i, i % 2 == 0)).collect();
        // B has them in another order, gets ten more right, and one item of its own.
        let mut b: Vec<Graded> =
            (0..100).rev().map(|i| item("t", i, i % 2 == 0 || i < 20)).collect();
        b.push(item("t", 100, true));
        let found = compare(&a, &b);
        let d = &found[0];
        assert_eq!((found.len(), d.n, d.only), (1, 100, [0, 10]));
        assert_eq!((d.a, d.b), (0.5, 0.6));
        assert!((d.difference - 0.1).abs() < 1e-12);
        // Ten of a hundred: the interval of a share of 0.1 is about 0.1 +- 0.06.
        assert!(d.low > 0.03 && d.low < 0.07 && d.high > 0.13 && d.high < 0.18, "{d:?}");
        assert!((d.p.expect("one task") - 2.0 / 1024.0).abs() < 1e-12);
    }

    #[test]
    fn tasks_weigh_the_same_together() {
        let a = [item("s", 0, true), item("t", 0, false), item("t", 1, false)];
        let b = [item("s", 0, true), item("t", 0, true), item("t", 1, true)];
        let all = compare(&a, &b).pop().expect("two tasks and all");
        assert_eq!((all.task.as_str(), all.a, all.b, all.p), ("all", 0.5, 1.0, None));
        assert!(compare(&a, &[]).is_empty());
    }
}
