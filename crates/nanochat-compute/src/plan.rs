//! The arena planner: where each buffer of a step lies, and how many bytes it all takes, before
//! anything is allocated.
//!
//! A step is a table of buffers, each with a first and a last use on a common clock. Two buffers that
//! are never alive together may share memory. Comes in: the table; goes out: an offset each and the
//! arena's length, exactly.

use crate::{DType, Result, Tensor, tensor::ALIGN};

/// One buffer of a step.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Name, as printed by a plan.
    pub name: String,
    /// Elements.
    pub len: usize,
    /// Element type.
    pub dtype: DType,
    /// First use, on the step's clock.
    pub first: usize,
    /// Last use, on the step's clock (inclusive).
    pub last: usize,
}

/// A handle to a planned buffer: its row in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferId(usize);

/// The table of a step's buffers, then their places.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    buffers: Vec<Buffer>,
}

/// Places for every buffer of a [`Plan`].
#[derive(Clone, Debug)]
pub struct Layout {
    buffers: Vec<Buffer>,
    offsets: Vec<usize>,
    bytes: usize,
}

impl Plan {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a buffer that is alive from `first` to `last`, both included.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        len: usize,
        dtype: DType,
        first: usize,
        last: usize,
    ) -> BufferId {
        assert!(first <= last, "a buffer ends after it begins");
        self.buffers.push(Buffer { name: name.into(), len, dtype, first, last });
        BufferId(self.buffers.len() - 1)
    }

    /// Finds a place for every buffer: largest first, each at the lowest offset where it meets no
    /// buffer that is alive at the same time. Deterministic.
    pub fn layout(self) -> Layout {
        let size = |b: &Buffer| (b.len * b.dtype.size()).next_multiple_of(ALIGN);
        let mut order: Vec<usize> = (0..self.buffers.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(size(&self.buffers[i])), i));
        let mut offsets = vec![0usize; self.buffers.len()];
        let mut placed: Vec<usize> = Vec::new();
        let mut bytes = 0;
        for i in order {
            let b = &self.buffers[i];
            let mut at = 0;
            // `placed` is sorted by offset: the first gap that is wide enough is the lowest.
            for &j in &placed {
                let other = &self.buffers[j];
                if b.first > other.last || other.first > b.last {
                    continue;
                }
                if at + size(b) <= offsets[j] {
                    break;
                }
                at = at.max(offsets[j] + size(other));
            }
            offsets[i] = at;
            bytes = bytes.max(at + size(b));
            let slot = placed.partition_point(|&j| offsets[j] <= at);
            placed.insert(slot, i);
        }
        Layout { buffers: self.buffers, offsets, bytes }
    }
}

impl Layout {
    /// Bytes of the arena.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The table.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// The buffer's view of `arena`, which holds at least [`Layout::bytes`].
    pub fn view(&self, arena: &Tensor, id: BufferId) -> Tensor {
        let (b, at) = (&self.buffers[id.0], self.offsets[id.0]);
        arena.at_byte(at, b.len, b.dtype)
    }

    /// Zeroed host memory of [`Layout::bytes`].
    ///
    /// Errors: [`crate::Error::Memory`].
    pub fn allocate(&self, backend: &dyn crate::Backend) -> Result<Tensor> {
        backend.alloc(self.bytes.div_ceil(4), DType::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_never_meet_share_memory() {
        let mut plan = Plan::new();
        plan.add("a", 1000, DType::F32, 0, 1);
        plan.add("b", 1000, DType::F32, 2, 3);
        assert_eq!(plan.layout().bytes(), 4032, "4,000 bytes, rounded up to the alignment");
    }

    #[test]
    fn buffers_that_meet_do_not_overlap() {
        // A fixed pseudo-random table of 60 buffers.
        let mut plan = Plan::new();
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for i in 0..60 {
            let first = draw(20) as usize;
            let last = first + draw(6) as usize;
            plan.add(format!("b{i}"), 1 + draw(500) as usize, DType::F32, first, last);
        }
        let layout = plan.layout();
        let span = |i: usize| {
            let at = layout.offsets[i];
            at..at + layout.buffers[i].len * 4
        };
        for i in 0..60 {
            assert!(span(i).end <= layout.bytes());
            for j in 0..i {
                let (a, b) = (&layout.buffers[i], &layout.buffers[j]);
                let together = a.first <= b.last && b.first <= a.last;
                let overlap = span(i).start < span(j).end && span(j).start < span(i).end;
                assert!(!(together && overlap), "{a:?} and {b:?} are alive together");
            }
        }
        let widest = (0..26)
            .map(|t| {
                let alive = layout.buffers.iter().filter(|b| b.first <= t && t <= b.last);
                alive.map(|b| b.len * 4).sum::<usize>()
            })
            .max()
            .expect("26 moments");
        assert!(layout.bytes() <= widest * 5 / 4, "{} of {widest}", layout.bytes());
    }
}
