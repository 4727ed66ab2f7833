//! Packed words on cache-line boundaries, kept by each thread from call to call.

use std::cell::Cell;

use crate::memory::Zeroed;

/// Zeroed words, aligned to 64 bytes.
pub(crate) struct Words {
    memory: Option<Zeroed>,
    len: usize,
}

impl Words {
    pub(crate) const fn empty() -> Words {
        Words { memory: None, len: 0 }
    }

    /// Panics where there is no memory, as a `Vec` does.
    pub(crate) fn zeroed(len: usize) -> Words {
        if len == 0 {
            return Words::empty();
        }
        let memory = len.checked_mul(4).and_then(Zeroed::new);
        Words { memory: Some(memory.expect("memory for a workspace")), len }
    }

    /// The first word; the memory is that of an `&mut [u32]` of [`Words::len`].
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u32 {
        self.as_ptr().cast_mut()
    }

    pub(crate) fn as_ptr(&self) -> *const u32 {
        match &self.memory {
            Some(memory) => memory.start().cast(),
            None => std::ptr::dangling(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// What a thread keeps a workspace for: a call may need one of each at a time.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    /// The B of a whole call, or its few rows of A.
    Call = 0,
    /// The A of a task.
    Task = 1,
}

thread_local! {
    static KEPT: [Cell<Words>; 2] = const { [Cell::new(Words::empty()), Cell::new(Words::empty())] };
}

/// Calls `body` with at least `len` words of this thread; old contents stay, whatever they are.
///
/// A call inside a call for the same use finds nothing kept and allocates: slower, but right.
pub(crate) fn with_words<R>(kept: Use, len: usize, body: impl FnOnce(&mut Words) -> R) -> R {
    let mut words = KEPT.with(|cells| cells[kept as usize].replace(Words::empty()));
    if words.len() < len {
        words = Words::zeroed(len.next_power_of_two());
    }
    let result = body(&mut words);
    KEPT.with(|cells| cells[kept as usize].set(words));
    result
}
