//! Packed words on cache-line boundaries: kept by each thread from call to call, or beside each other on
//! large pages.

use std::cell::Cell;
use std::sync::{Arc, Weak};

use crate::memory::{ALIGN, Zeroed};

/// Zeroed words, aligned to 64 bytes.
pub(crate) struct Words {
    /// Shared by pieces of one [`Shelf`], each of which has bytes of its own.
    memory: Option<Arc<Zeroed>>,
    /// Bytes before the first word.
    at: usize,
    len: usize,
}

impl Words {
    pub(crate) const fn empty() -> Words {
        Words { memory: None, at: 0, len: 0 }
    }

    /// Panics where there is no memory, as a `Vec` does.
    pub(crate) fn zeroed(len: usize) -> Words {
        if len == 0 {
            return Words::empty();
        }
        let memory = len.checked_mul(4).and_then(Zeroed::new);
        Words { memory: Some(Arc::new(memory.expect("memory for a workspace"))), at: 0, len }
    }

    /// The first word; the memory is that of an `&mut [u32]` of [`Words::len`].
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u32 {
        self.as_ptr().cast_mut()
    }

    pub(crate) fn as_ptr(&self) -> *const u32 {
        match &self.memory {
            // SAFETY: `at` bytes before the first word lie in the memory: `zeroed` and `Shelf::take`.
            Some(memory) => unsafe { memory.start().add(self.at).cast() },
            None => std::ptr::dangling(),
        }
    }

    /// All of it, as bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, len) = (self.as_mut_ptr().cast(), self.len * 4);
        // SAFETY: `len` words from the start on belong to this value alone, written by whoever asked
        // for zeroed memory; a dangling start is that of an empty slice.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// A large page of this system: what a table of addresses covers in one entry.
const LARGE_PAGE: usize = 2 << 20;
/// Bytes that a shelf asks the system for at least; those that nothing is put on cost no memory.
const SHELF: usize = 32 << 20;

/// Memory for weights, many of them one after another on large pages: a walk over small matrices on
/// pages of 4 KiB waits for the addresses of the next page (768 x 768 in int8, 114 MB in all: 26 GB/s, with
/// all memory of the program on large pages 38; Emerald Rapids, 2026-11-26). Goes when the last piece goes.
#[derive(Default)]
pub(crate) struct Shelf {
    memory: Weak<Zeroed>,
    /// Bytes that are taken, and that there are, from the memory's first one.
    taken: usize,
    end: usize,
}

impl Shelf {
    /// `len` words that nobody else has. Panics where there is no memory.
    pub(crate) fn take(&mut self, len: usize) -> Words {
        if len == 0 {
            return Words::empty();
        }
        let bytes = len.checked_mul(4).expect("a weight fits in memory");
        let mut memory = self.memory.upgrade();
        if memory.is_none() || self.end - self.taken < bytes {
            let room = bytes.max(SHELF).next_multiple_of(LARGE_PAGE);
            let new = Arc::new(Zeroed::new(room + LARGE_PAGE).expect("memory for a weight"));
            self.memory = Arc::downgrade(&new);
            self.taken = new.start().align_offset(LARGE_PAGE);
            self.end = self.taken + room;
            // SAFETY: `room` bytes from the boundary on lie in `new`, which has LARGE_PAGE more.
            unsafe { ask_for_large_pages(new.start().add(self.taken), room) };
            memory = Some(new);
        }
        let at = self.taken;
        // Less than a cache line is left between two pieces.
        self.taken = (at + bytes).next_multiple_of(ALIGN).min(self.end);
        Words { memory, at, len }
    }
}

/// Asks for large pages; without them everything works as well, more slowly.
///
/// # Safety
/// The bytes belong to the caller.
#[cfg(target_os = "linux")]
unsafe fn ask_for_large_pages(start: *mut u8, bytes: usize) {
    const MADV_HUGEPAGE: i32 = 14;
    unsafe extern "C" {
        fn madvise(start: *mut u8, bytes: usize, advice: i32) -> i32;
    }
    // SAFETY: this advice changes no contents, whatever the range; the C library of this system, which
    // `std` is linked to, has the function. Errors (a system without large pages) change nothing.
    unsafe { madvise(start, bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
unsafe fn ask_for_large_pages(_: *mut u8, _: usize) {}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_shelf_are_zero_aligned_and_apart() {
        let mut shelf = Shelf::default();
        let mut pieces: Vec<Words> = [1, 17, 4096, SHELF / 4, 3].map(|n| shelf.take(n)).into();
        for (i, piece) in pieces.iter_mut().enumerate() {
            assert_eq!(piece.as_ptr() as usize % ALIGN, 0);
            let bytes = piece.bytes_mut();
            assert!(bytes.iter().all(|b| *b == 0), "piece {i} is nobody else's");
            bytes.fill(i as u8 + 1);
        }
        for (i, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.bytes_mut().iter().all(|b| *b == i as u8 + 1), "piece {i}");
        }
        // The second shelf holds two of them; it goes with them.
        drop(pieces);
        assert!(shelf.memory.upgrade().is_none());
        assert_eq!(shelf.take(5).len(), 5);
        assert_eq!(shelf.take(0).len(), 0);
    }
}
