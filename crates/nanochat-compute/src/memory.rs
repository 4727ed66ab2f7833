//! Zeroed memory on cache-line boundaries, for tensors and for the kernels' workspaces.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment of every allocation: one cache line, one AVX-512 register.
pub const ALIGN: usize = 64;

/// What `calloc` aligns to by itself. Asked for more, Rust's allocator clears the memory by hand, and
/// with that touches every page of it; this way the system hands out zeroed pages when they are used.
const BASE_ALIGN: usize = 16;

/// Zeroed memory of a fixed length, aligned to [`ALIGN`].
pub(crate) struct Zeroed {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: `Zeroed` owns its memory as a Vec of bytes does.
unsafe impl Send for Zeroed {}
// SAFETY: as above; it gives out pointers only.
unsafe impl Sync for Zeroed {}

impl Zeroed {
    /// `bytes` of zeros; none when there is no such memory.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        // Room for the way to the next boundary; never zero bytes.
        let layout = Layout::from_size_align(bytes.checked_add(ALIGN)?, BASE_ALIGN).ok()?;
        // SAFETY: the size is at least ALIGN.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { base, layout })
    }

    /// The first byte, aligned to [`ALIGN`].
    pub(crate) fn start(&self) -> *mut u8 {
        let base = self.base.as_ptr();
        let skip = base.align_offset(ALIGN);
        // SAFETY: less than ALIGN bytes lie before the boundary, and `new` asked for ALIGN more than
        // the length.
        unsafe { base.add(skip) }
    }
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this very layout and is freed once, here.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        for bytes in [0, 1, 63, 64, 4096, 1 << 20] {
            let memory = Zeroed::new(bytes).expect("a small memory");
            assert_eq!(memory.start() as usize % ALIGN, 0);
            // SAFETY: `bytes` bytes from the start on are inside, written by `alloc_zeroed`.
            let all = unsafe { std::slice::from_raw_parts(memory.start(), bytes) };
            assert!(all.iter().all(|b| *b == 0));
        }
        assert!(Zeroed::new(usize::MAX - 10).is_none());
    }
}
