//! Being asked to stop: a signal, or the end of the time that was given.
//!
//! In: a number that a signal handler writes, an instant. Out: whether the run should save and end, asked
//! before every micro step.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Why a run stops before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A signal, by its number.
    Signal(usize),
    /// The time that was given is over, but for what saving takes.
    Deadline,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Signal(2) => f.write_str("SIGINT"),
            Why::Signal(10) => f.write_str("SIGUSR1"),
            Why::Signal(15) => f.write_str("SIGTERM"),
            Why::Signal(n) => write!(f, "signal {n}"),
            Why::Deadline => f.write_str("--exit-after"),
        }
    }
}

/// Where a run looks whether it should stop; clones look at the same place.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    /// Number of the signal that came; 0: none.
    signal: Arc<AtomicUsize>,
    deadline: Option<Instant>,
}

impl StopSignal {
    /// The same, ending by itself at an instant.
    pub fn with_deadline(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    /// What a signal handler writes its number to.
    pub fn flag(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.signal)
    }

    /// As if this signal had come.
    pub fn ask(&self, signal: usize) {
        self.signal.store(signal, Ordering::Relaxed);
    }

    /// Whether to stop; `reserve` is what the next thing to do and saving will take.
    pub fn asked(&self, reserve: Duration) -> Option<Why> {
        match self.signal.load(Ordering::Relaxed) {
            0 => {
                let over = |deadline: Instant| Instant::now() + reserve >= deadline;
                self.deadline.is_some_and(over).then_some(Why::Deadline)
            }
            n => Some(Why::Signal(n)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_wins_over_a_deadline_that_leaves_room_to_save() {
        let stop = StopSignal::default();
        assert_eq!(stop.asked(Duration::MAX / 4), None);
        let hour = Duration::from_secs(3600);
        let timed = stop.clone().with_deadline(Some(Instant::now() + hour));
        assert_eq!(timed.asked(Duration::ZERO), None);
        assert_eq!(timed.asked(hour), Some(Why::Deadline));
        stop.ask(15);
        assert_eq!(timed.asked(hour).map(|w| w.to_string()), Some("SIGTERM".into()));
    }
}
