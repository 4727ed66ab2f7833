//! Seconds of calls: one that is not counted, then the rest.

use std::time::Instant;

use anyhow::Result;

/// Seconds of one call.
#[derive(Clone, Copy, Debug)]
pub struct Seconds {
    /// Of the run in the middle.
    pub median: f64,
    /// Of the fastest run: what the code can do where other programs use the machine as well.
    pub best: f64,
}

/// Times `runs` calls, after one that is not counted.
pub fn seconds(runs: usize, mut call: impl FnMut() -> Result<()>) -> Result<Seconds> {
    call()?;
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(Seconds { median: times[times.len() / 2], best: times[0] })
}

/// The value in the middle; NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_does_not_count() {
        let mut calls = 0;
        let found = seconds(3, || {
            calls += 1;
            Ok(())
        });
        let found = found.expect("no error");
        assert_eq!(calls, 4);
        assert!(found.best <= found.median);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
