//! From operands to launches: residence and overlap are checked, the kernel's variant is chosen.

use super::driver::{Arg, Grid};
use super::{Cuda, Work};
use crate::{DType, Error, Result, Tensor};

/// Threads of a block, unless a kernel says otherwise.
pub(super) const THREADS: u32 = 256;
/// Blocks that walk a long tensor together: several for each of a large GPU's multiprocessors.
const MOST_BLOCKS: u32 = 132 * 8;

impl From<&Tensor> for Arg {
    fn from(t: &Tensor) -> Self {
        Arg::Ptr(t.device().map_or(0, |(_, at)| at))
    }
}

impl From<usize> for Arg {
    fn from(x: usize) -> Self {
        Arg::I64(x as i64)
    }
}

impl From<i32> for Arg {
    fn from(x: i32) -> Self {
        Arg::I32(x)
    }
}

impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Arg::F32(x)
    }
}

/// Arguments of a launch.
macro_rules! args {
    ($($x:expr),* $(,)?) => { &[$($crate::cuda::driver::Arg::from($x)),*] };
}
pub(super) use args;

/// A size as kernels take it: one that does not fit has been refused before.
pub(super) fn int(x: usize) -> i32 {
    i32::try_from(x).unwrap_or(i32::MAX)
}

impl Cuda {
    /// Every operand lies on this device, and no output overlaps another operand.
    pub(super) fn check(&self, op: &'static str, w: &[&Tensor], r: &[&Tensor]) -> Result<()> {
        for t in w.iter().chain(r) {
            let here =
                t.device().is_some_and(|(driver, _)| std::rc::Rc::ptr_eq(driver, &self.driver));
            // An empty tensor may lie anywhere: nobody looks at it.
            if !here && !t.is_empty() {
                let place = if t.device().is_some() { "on another GPU" } else { "in host memory" };
                return Err(Error::Elsewhere { op, place, backend: "this GPU" });
            }
        }
        for (i, a) in w.iter().enumerate() {
            if w[..i].iter().chain(r).any(|b| a.overlaps(b)) {
                return Err(Error::Overlap { op });
            }
        }
        Ok(())
    }

    /// All of these are activations of one type, which is returned.
    pub(super) fn one_type(&self, op: &'static str, all: &[&Tensor]) -> Result<DType> {
        let first = all[0].dtype();
        let need = if first == DType::BF16 { DType::BF16 } else { DType::F32 };
        self.all_are(op, need, all)?;
        Ok(need)
    }

    /// All of these are of one type.
    pub(super) fn all_are(&self, op: &'static str, need: DType, all: &[&Tensor]) -> Result<()> {
        match all.iter().find(|t| t.dtype() != need) {
            None => Ok(()),
            Some(t) => Err(Error::DType { op, have: t.dtype().name(), need: need.name() }),
        }
    }

    /// Queues a kernel.
    pub(super) fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        if self.is_building() {
            self.build_nothing();
            return Ok(());
        }
        let grid = Grid { early: grid.early && self.early.get(), ..grid };
        // SAFETY: callers in this module give each kernel what its signature says, from tensors of this
        // device whose lengths they have checked.
        unsafe { self.driver.launch(kernel, grid, args) }
    }

    /// Adds `blocks` partial sums a column to `out`: `out[i] += sum_r partial[r, first + i]`.
    pub(super) fn add_sums(
        &self,
        out: &Tensor,
        (partial, first): (&Tensor, usize),
        rows: usize,
        stride: usize,
    ) -> Result<()> {
        let from = partial.slice(first..partial.len());
        let grid =
            Grid { blocks: [out.len() as u32, 1, 1], threads: THREADS, shared: 128, early: false };
        self.launch("add_sums", grid, args![out, &from, int(rows), int(stride)])
    }

    /// Room for `columns` partial sums of every block of a walk.
    pub(super) fn partial(&self, blocks: usize, columns: usize) -> Result<Tensor> {
        self.work(Work::Partial, blocks * columns, DType::F32)
    }
}

/// `f32x4`: the type of activations, and the elements of one access. `rows` are the lengths of what is
/// walked in one piece; `ts` everything that is accessed so.
pub(super) fn suffix(dtype: DType, rows: &[usize], ts: &[&Tensor]) -> &'static str {
    let fits =
        |t: &&Tensor| t.device().is_some_and(|(_, at)| at % (4 * t.dtype().size() as u64) == 0);
    let wide = rows.iter().all(|n| n.is_multiple_of(4)) && ts.iter().all(fits);
    match (dtype, wide) {
        (DType::BF16, true) => "bf16x4",
        (DType::BF16, false) => "bf16x1",
        (_, true) => "f32x4",
        (_, false) => "f32x1",
    }
}

/// A walk over `n` elements.
pub(super) fn walk(n: usize) -> Grid {
    let blocks = n.div_ceil(THREADS as usize * 4).clamp(1, MOST_BLOCKS as usize) as u32;
    Grid { blocks: [blocks, 1, 1], threads: THREADS, shared: 128, early: false }
}

/// A warp for each of `rows`.
pub(super) fn warps(rows: usize) -> Grid {
    let blocks = rows.div_ceil(THREADS as usize / 32) as u32;
    Grid { blocks: [blocks, 1, 1], threads: THREADS, shared: 128, early: false }
}

/// `n` blocks of `threads`.
pub(super) fn blocks(n: usize, threads: u32, shared: u32) -> Grid {
    Grid { blocks: [n as u32, 1, 1], threads, shared, early: false }
}
