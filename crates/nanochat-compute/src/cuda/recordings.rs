//! Work that is queued again and again in the same way: recorded once, then replayed.

use std::collections::HashMap;

use std::rc::Rc;

use super::Cuda;
use super::program::Program;
use crate::Result;
use crate::ops::Ahead;

/// Recordings that are kept; with more, all are made anew.
const MOST: usize = 64;

/// What is known of a key.
#[derive(Clone)]
enum Known {
    /// It was run once: kernels are loaded, products have their plans, memory to work in is there.
    Seen,
    /// It was recorded.
    Recorded(u64),
    /// It is one launch.
    Program(Rc<Program>),
}

/// Recordings by key; the last number of a key is that of the memory to work in.
#[derive(Default)]
pub(super) struct Recordings {
    known: HashMap<Vec<u64>, Known>,
}

impl Cuda {
    /// Steps of one row that are held as one launch each: see [`crate::Backend::replay_ahead`].
    pub fn programs(&self) -> usize {
        let all = self.recordings.borrow();
        all.known.values().filter(|known| matches!(known, Known::Program(_))).count()
    }

    /// [`crate::Backend::replay`]: the first time as it is, the second time recorded, then replayed.
    pub(super) fn replayed(&self, key: &[u64], run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.replayed_or_built(key, run, None).map(|_| ())
    }

    /// [`crate::Backend::replay_ahead`]: the second time put together to a program, where that can be. Whether
    /// it was; else one step was queued, whose ids are found where it looked its own up.
    pub(super) fn replayed_ahead(
        &self,
        key: &[u64],
        ahead: &Ahead<'_>,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<bool> {
        self.replayed_or_built(key, run, Some(ahead))
    }

    /// Whether all steps of `ahead` were queued; else one was.
    fn replayed_or_built(
        &self,
        key: &[u64],
        run: &mut dyn FnMut() -> Result<()>,
        ahead: Option<&Ahead<'_>>,
    ) -> Result<bool> {
        if self.marks.borrow().is_some() {
            // Each operation is to be timed.
            run()?;
            return Ok(false);
        }
        let with_work = |version: u64| [key, &[version]].concat();
        let full = with_work(self.work_version.get());
        let known = self.recordings.borrow().known.get(&full).cloned();
        match (known, ahead) {
            (Some(Known::Program(program)), Some(ahead)) => {
                self.run_program(&program, ahead)?;
                return Ok(true);
            }
            (Some(Known::Seen), Some(ahead)) => {
                if let Some(program) = self.program_of(run)? {
                    let program = Rc::new(program);
                    self.remember(full, Known::Program(Rc::clone(&program)));
                    self.run_program(&program, ahead)?;
                    return Ok(true);
                }
                self.record(full, run)?;
            }
            (Some(Known::Seen), None) => self.record(full, run)?,
            (Some(Known::Recorded(recording)), _) => self.driver.play(recording)?,
            (None | Some(Known::Program(_)), _) => {
                run()?;
                // What it ran with: memory to work in may have grown.
                let full = with_work(self.work_version.get());
                self.remember(full, Known::Seen);
            }
        }
        Ok(false)
    }

    /// Runs it while it is recorded.
    fn record(&self, key: Vec<u64>, run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
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
        self.remember(key, Known::Recorded(recording));
        self.driver.play(recording)
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
