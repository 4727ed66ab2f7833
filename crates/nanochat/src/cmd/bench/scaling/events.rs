//! Works on resources, each of which does one at a time: when does each end?

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// A piece of work.
#[derive(Clone, Debug)]
pub struct Work {
    /// The resource that does it.
    pub on: usize,
    /// How long, in seconds.
    pub seconds: f64,
    /// Works, by index, that must have ended: smaller indices than its own.
    pub after: Vec<usize>,
}

/// A moment that sorts.
#[derive(Clone, Copy, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// When each work ends, in seconds from the start. A resource that is free takes the ready work of the
/// lowest index.
///
/// Panics when a work waits for one that does not come before it.
pub fn run(works: &[Work]) -> Vec<f64> {
    let resources = works.iter().map(|w| w.on + 1).max().unwrap_or(0);
    let mut missing: Vec<usize> = works.iter().map(|w| w.after.len()).collect();
    let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); works.len()];
    let mut ready = vec![BTreeSet::new(); resources];
    for (i, work) in works.iter().enumerate() {
        for &before in &work.after {
            assert!(before < i, "work {i} waits for work {before}");
            waiting[before].push(i);
        }
        if work.after.is_empty() {
            ready[work.on].insert(i);
        }
    }
    let (mut ends, mut busy) = (vec![0.0; works.len()], vec![false; resources]);
    let mut events = BinaryHeap::new();
    let mut now = 0.0;
    loop {
        for on in 0..resources {
            if !busy[on]
                && let Some(i) = ready[on].pop_first()
            {
                busy[on] = true;
                events.push(Reverse((Moment(now + works[i].seconds), i)));
            }
        }
        let Some(Reverse((Moment(end), i))) = events.pop() else { return ends };
        (now, ends[i], busy[works[i].on]) = (end, end, false);
        for &next in &waiting[i] {
            missing[next] -= 1;
            if missing[next] == 0 {
                ready[works[next].on].insert(next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(on: usize, seconds: f64, after: &[usize]) -> Work {
        Work { on, seconds, after: after.to_vec() }
    }

    #[test]
    fn chains_add_up_and_resources_run_beside_each_other() {
        assert!(run(&[]).is_empty());
        assert_eq!(
            run(&[work(0, 1.0, &[]), work(0, 2.0, &[]), work(0, 3.0, &[0])]),
            [1.0, 3.0, 6.0]
        );
        assert_eq!(
            run(&[work(0, 1.0, &[]), work(1, 5.0, &[]), work(0, 1.0, &[1])]),
            [1.0, 5.0, 6.0]
        );
    }

    #[test]
    fn a_pipeline_takes_its_first_and_then_the_slower_stage() {
        // n pieces through two stages of 2 and 3 seconds: 2 + 3 n.
        let n = 7;
        let mut works: Vec<Work> = (0..n).map(|_| work(0, 2.0, &[])).collect();
        works.extend((0..n).map(|i| work(1, 3.0, &[i])));
        assert_eq!(run(&works)[2 * n - 1], 2.0 + 3.0 * n as f64);
        // The other way round: 3 n + 2.
        let mut works: Vec<Work> = (0..n).map(|_| work(0, 3.0, &[])).collect();
        works.extend((0..n).map(|i| work(1, 2.0, &[i])));
        assert_eq!(run(&works)[2 * n - 1], 3.0 * n as f64 + 2.0);
    }

    #[test]
    fn of_two_ready_works_the_first_goes_first() {
        let ends = run(&[work(1, 1.0, &[]), work(0, 1.0, &[0]), work(0, 4.0, &[0])]);
        assert_eq!(ends, [1.0, 2.0, 6.0]);
    }
}
