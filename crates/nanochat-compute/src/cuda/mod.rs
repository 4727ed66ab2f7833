//! NVIDIA GPUs: the operations as CUDA kernels, matrix products by cuBLASLt.
//!
//! | room | what |
//! |---|---|
//! | `driver` | what a device must be able to do: memory, launches, products |
//! | `gpu` | a real GPU, through libraries that are loaded when they are there |
//! | `emulator` | the same kernels on a CPU, for tests |
//! | `source`, `kernels/` | the CUDA C++ sources |
//! | `launch` | operands to arguments: types, vectors, grids |
//! | `backend` | [`crate::Backend`]: checks, launches |
//! | `products` | operands to matrix products |
//! | `head`, `attention`, `muon`, `tables` | operations of several kernels |
//! | `step` | fused operations of a decode step of few rows |
//! | `program` | whole steps of one row as one launch |
//! | `recordings` | work that is queued again and again, replayed |
//!
//! Activations are bf16 (or f32), everything that is summed or kept from step to step is f32. Sums run
//! in a fixed order: the same step gives the same bits, run after run. Ids and targets are not read
//! back to be checked before a launch; one that is outside its table gives not-a-number.

mod attention;
mod backend;
pub(crate) mod driver;
mod emulator;
mod gpu;
mod head;
mod launch;
mod libraries;
mod muon;
mod products;
mod program;
mod recordings;
mod source;
mod step;
mod tables;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

use crate::cpu::Precision;
use crate::tensor::DeviceMemory;
use crate::{DType, Error, Result, Tensor};
use driver::{Driver, Mark};

pub use gpu::{GpuInfo, gpus};
pub use libraries::{Library, libraries};

/// An operation, from one mark to another.
type Span = (&'static str, Mark, Mark);

/// One GPU as a backend.
pub struct Cuda {
    driver: Rc<dyn Driver>,
    /// What products multiply and what activations are stored in.
    dtype: DType,
    /// Memory that operations work in, by what for; grows to the largest that was asked for.
    work: RefCell<Vec<Option<Tensor>>>,
    /// Marks around each operation, while a profile is taken.
    marks: RefCell<Option<Vec<Span>>>,
    /// How often memory to work in was made anew: what was recorded before names the old one.
    work_version: Cell<u64>,
    recordings: RefCell<recordings::Recordings>,
    /// A step whose operations become a program instead of being queued.
    building: RefCell<Option<program::Builder>>,
    /// Kernels of a step are launched before those before them have ended, where the device can.
    early: Cell<bool>,
}

impl Cuda {
    /// Opens the GPU with this number, multiplying bf16 unless [`Precision::F32`] is asked for.
    ///
    /// Errors: [`Error::Device`] naming the library or the device that is missing.
    pub fn open(ordinal: usize, precision: Precision) -> Result<Self> {
        Ok(Self::over(Rc::new(gpu::Gpu::open(ordinal)?), precision))
    }

    /// The same kernels on the CPU, compiled by the machine's C++ compiler into a folder of `dir`: for
    /// tests, far too slow for anything else.
    ///
    /// Errors: [`Error::Device`] where there is no C++ compiler.
    pub fn emulated(dir: &Path, precision: Precision) -> Result<Self> {
        Self::emulated_as(dir, precision, (9, 0))
    }

    /// The same, as a GPU of this compute capability: 9.0 has kernels of its own.
    pub fn emulated_as(dir: &Path, precision: Precision, capability: (i32, i32)) -> Result<Self> {
        Ok(Self::over(Rc::new(emulator::Emulator::build(dir, capability)?), precision))
    }

    fn over(driver: Rc<dyn Driver>, precision: Precision) -> Self {
        let dtype = if precision == Precision::F32 { DType::F32 } else { DType::BF16 };
        let (work, marks, work_version, recordings) = Default::default();
        let (early, building) = (Cell::new(true), RefCell::default());
        Self { driver, dtype, work, marks, work_version, recordings, building, early }
    }

    /// Whether kernels of a step may begin before those before them have ended, as they do at first: for
    /// measurements of what it is worth.
    pub fn launch_early(&self, early: bool) {
        self.early.set(early);
    }

    /// Seconds that the device takes for what `run` queues.
    pub fn seconds(&self, run: impl FnOnce() -> Result<()>) -> Result<f64> {
        let from = self.driver.mark()?;
        run()?;
        let to = self.driver.mark()?;
        self.driver.seconds(from, to)
    }

    fn alloc_on(&self, len: usize, dtype: DType) -> Result<Tensor> {
        let bytes = len.checked_mul(dtype.size()).ok_or(Error::Memory { bytes: usize::MAX })?;
        let at = self.driver.alloc(bytes)?;
        let memory = DeviceMemory { driver: Rc::clone(&self.driver), at };
        Ok(Tensor::on_device(memory, len, dtype))
    }

    /// `len` elements to work in, whose values are anybody's; one stretch for each purpose.
    fn work(&self, purpose: Work, len: usize, dtype: DType) -> Result<Tensor> {
        let mut all = self.work.borrow_mut();
        let slot = purpose as usize;
        if all.len() <= slot {
            all.resize(slot + 1, None);
        }
        let words = (len * dtype.size()).div_ceil(4);
        if all[slot].as_ref().is_none_or(|t| t.len() < words) {
            // The old one goes first.
            all[slot] = None;
            self.work_version.set(self.work_version.get() + 1);
            all[slot] = Some(self.alloc_on(words, DType::F32)?);
        }
        let whole = all[slot].as_ref().expect("made above");
        Ok(whole.at_byte(0, len, dtype))
    }

    /// Queues an operation, between marks where a profile is taken.
    fn timed(&self, op: &'static str, run: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.marks.borrow().is_none() {
            return run();
        }
        let from = self.driver.mark()?;
        run()?;
        let to = self.driver.mark()?;
        if let Some(marks) = self.marks.borrow_mut().as_mut() {
            marks.push((op, from, to));
        }
        Ok(())
    }
}

/// What memory is worked in for: operations that run within another have their own.
#[derive(Clone, Copy)]
enum Work {
    /// Operands of products, rounded to bf16.
    A,
    B,
    /// Partial sums of blocks.
    Partial,
    /// Gates' gradients, one a row.
    Gates,
    /// Positions sorted by id.
    Order,
    /// Attention's own.
    Attention,
    /// Blocks that are done with a shared result: all zero between launches.
    Arrived,
    /// The largest numbers of parts of rows.
    Found,
    /// Muon's sums and factors.
    Muon,
}
