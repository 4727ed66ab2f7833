//! A stretch of a file seen as memory, read only: nothing is copied, and a page is read from the disk
//! when it is first touched.

use std::fs::File;

use memmap2::{Mmap, MmapOptions};

/// Bytes of a file in memory.
pub(crate) struct Map(Mmap);

impl Map {
    /// The `len` bytes of `file` from byte `start` on; none where they cannot be mapped: the file is
    /// shorter, its file system does not map, or the system is not a Unix (elsewhere a mapped file can
    /// be neither renamed nor removed, which those who save files need).
    pub(crate) fn new(file: &File, start: u64, len: usize) -> Option<Self> {
        let end = start.checked_add(len as u64)?;
        if !cfg!(unix) || len == 0 || file.metadata().ok()?.len() < end {
            return None;
        }
        // SAFETY: the bytes must not change while they are borrowed. The map is private and read only,
        // so this process cannot change them through it, and nothing in this program writes a file in
        // place: checkpoints are written aside and renamed, and a file that loses its name keeps its
        // content for as long as it is mapped. What is left is another program that writes into the
        // very file: values then change under a reader (every bit pattern is a valid f32 or i32), and
        // after a cut the system ends the process (SIGBUS) when it touches a page that is gone. No
        // program can be kept from that; `Tensor::map` says it.
        let map = unsafe { MmapOptions::new().offset(start).len(len).map(file) };
        map.ok().map(Self)
    }

    /// The first byte.
    pub(crate) fn start(&self) -> *const u8 {
        self.0.as_ptr()
    }
}
