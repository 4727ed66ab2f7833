//! What a device must be able to do for [`super::Cuda`]: memory, launches, matrix products.
//!
//! Two drivers exist: `gpu` for a real GPU, and `emulator`, which runs the same
//! kernels on the CPU.

use crate::DType;
use crate::Result;
use crate::ops::MatMul;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An address on the device.
    Ptr(u64),
    /// `long long`
    I64(i64),
    /// `int`
    I32(i32),
    /// `float`
    F32(f32),
}

impl Arg {
    /// The argument's bytes, in the low end of a word.
    pub(super) fn word(self) -> u64 {
        match self {
            Arg::Ptr(x) => x,
            Arg::I64(x) => x as u64,
            Arg::I32(x) => u64::from(x as u32),
            Arg::F32(x) => u64::from(x.to_bits()),
        }
    }
}

/// Threads of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block, in x.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Its blocks may begin while those of the kernel before still run (`wait_for_earlier` in
    /// device.cuh), where the device can.
    pub early: bool,
}

/// A matrix on the device: address and element type (f32 or bf16); shape and layout come with the
/// product.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Address.
    pub at: u64,
    /// Element type.
    pub dtype: DType,
}

/// `D = alpha op(A) op(B) + beta C`, sums in f32; `a` and `b` have one type. `c` is `d` unless said
/// otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Shape and layout; its `beta` multiplies C.
    pub shape: MatMul,
    /// As many products of one shape, whose matrices follow each other; 1 for a single one.
    pub batch: usize,
    /// Multiplies the product.
    pub alpha: f32,
    /// What is added, where beta is not 0; as D in shape and type.
    pub c: u64,
    /// Where the result goes.
    pub d: Matrix,
    /// First operand.
    pub a: Matrix,
    /// Second operand.
    pub b: Matrix,
}

/// A point in the order of work, with its time.
pub type Mark = u64;

/// A device. Work is queued in one order; reads wait for it.
pub trait Driver {
    /// The device in words: `NVIDIA H100 80GB HBM3`.
    fn name(&self) -> String;
    /// Compute capability, major and minor: which kernels it has.
    fn capability(&self) -> (i32, i32);
    /// Bytes free and bytes in all.
    fn memory(&self) -> Result<(usize, usize)>;
    /// New zeroed memory, aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<u64>;
    /// Gives memory of [`Driver::alloc`] back once the work queued so far is done with it.
    fn free(&self, at: u64);
    /// Copies to the device; returns when `from` may be changed.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;
    /// Copies from the device, after the work queued so far.
    fn download(&self, to: &mut [u8], from: u64) -> Result<()>;
    /// Queues a copy on the device.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Queues zeros.
    fn zero(&self, at: u64, bytes: usize) -> Result<()>;
    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel in number, order and type; addresses are of live memory
    /// of this device, as long as the kernel reads and writes.
    unsafe fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()>;
    /// Blocks of a kernel that the device can run all at the same time, one a multiprocessor, and bytes of
    /// shared memory that each can have; none where it cannot promise that, or where blocks cannot hand
    /// each other results while they run (before compute capability 9.0).
    fn together(&self) -> Option<(usize, usize)>;
    /// As [`Driver::launch`], of blocks that wait for each other: at most as many as [`Driver::together`]
    /// says.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn launch_together(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()>;
    /// Queues a matrix product.
    ///
    /// # Safety
    /// The matrices lie in live memory of this device, in the sizes of the shape.
    unsafe fn product(&self, p: &Product) -> Result<()>;
    /// Waits for all work, and reports what went wrong with it.
    fn synchronize(&self) -> Result<()>;
    /// Begins to record what is queued instead of running it; false where a device cannot.
    fn begin_recording(&self) -> Result<bool>;
    /// Ends it: a number for [`Driver::play`].
    fn end_recording(&self) -> Result<u64>;
    /// Queues what was recorded.
    fn play(&self, recording: u64) -> Result<()>;
    /// Lets go of a recording.
    fn forget(&self, recording: u64);
    /// Queues a mark.
    fn mark(&self) -> Result<Mark>;
    /// Seconds from one mark to a later one, which are used up. Waits for them.
    fn seconds(&self, from: Mark, to: Mark) -> Result<f64>;
}
