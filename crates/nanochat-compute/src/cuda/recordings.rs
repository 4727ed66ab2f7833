//! Work that is queued again and again in the same way: recorded once, then replayed.

use std::collections::HashMap;

use super::Cuda;
use crate::Result;

/// Recordings that are kept; with more, all are made anew.
const MOST: usize = 64;

/// What is known of a key.
#[derive(Clone, Copy)]
enum Known {
    /// It was run once: kernels are loaded, products have their plans, memory to work in is there.
    Seen,
    /// It was recorded.
    Recorded(u64),
}

/// Recordings by key; the last number of a key is that of the memory to work in.
#[derive(Default)]
pub(super) struct Recordings {
    known: HashMap<Vec<u64>, Known>,
}

impl Cuda {
    /// [`crate::Backend::replay`]: the first time as it is, the second time recorded, then replayed.
    pub(super) fn replayed(&self, key: &[u64], run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if self.marks.borrow().is_some() {
            // Each operation is to be timed.
            return run();
        }
        let with_work = |version: u64| [key, &[version]].concat();
        let full = with_work(self.work_version.get());
        let known = self.recordings.borrow().known.get(&full).copied();
        match known {
            Some(Known::Recorded(recording)) => self.driver.play(recording),
            None => {
                run()?;
                // What it ran with: memory to work in may have grown.
                let full = with_work(self.work_version.get());
                self.remember(full, Known::Seen);
                Ok(())
            }
            Some(Known::Seen) => {
                if !self.driver.begin_recording()? {
                    return run();
                }
                let queued = run();
                let recording = self.driver.end_recording();
                if let (Err(_), Ok(broken)) = (&queued, &recording) {
                    self.driver.forget(*broken);
                }
                queued?;
                let recording = recording?;
                self.remember(full, Known::Recorded(recording));
                self.driver.play(recording)
            }
        }
    }

    fn remember(&self, key: Vec<u64>, known: Known) {
        let mut all = self.recordings.borrow_mut();
        if all.known.len() >= MOST {
            self.forget_all(&mut all);
        }
        all.known.insert(key, known);
    }

    fn forget_all(&self, all: &mut Recordings) {
        for (_, known) in all.known.drain() {
            if let Known::Recorded(recording) = known {
                self.driver.forget(recording);
            }
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let mut all = std::mem::take(&mut *self.recordings.borrow_mut());
        self.forget_all(&mut all);
    }
}
