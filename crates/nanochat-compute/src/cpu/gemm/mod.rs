//! Matrix products on the CPU: `C = beta * C + op(A) op(B)`, f32 in memory, multiplied in f32 or
//! in bf16.
//!
//! In: row-major matrices, possibly column slices of wider ones. Out: C. B is packed once for all
//! threads, then tasks of a few rows pack their part of A and multiply tile by tile.
//!
//! Every element of C is the same sum in the same order, whatever the number of threads and
//! whatever the other rows and columns: k is cut in equal blocks of at most `KC` words,
//! a block is summed in ascending order, blocks are added to C in ascending order.

use self::drive::drive;
pub(crate) use self::drive::workspace_bytes;
use super::pool::Pool;
use super::simd::Kernels;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod buffer;
mod drive;
pub(crate) mod kernel;
mod matvec;
mod narrow;
mod pack;
mod packed;
pub(crate) mod portable;
#[cfg(test)]
mod tests;
mod tile;
mod walk;

pub(crate) use self::buffer::Shelf;
pub use self::narrow::{NarrowB, gemm_narrow};
pub use self::packed::{PackedB, gemm_packed};
pub use self::walk::Format;

/// How A and B lie in memory; C is always (m, n), row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A (m, k), B (n, k): `y = x W^T`.
    Nt,
    /// A (m, k), B (k, n): `dx = dy W`.
    Nn,
    /// A (k, m), B (k, n): `dW = dy^T x`.
    Tn,
}

/// The arithmetic of a product. Sums are f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Multiply {
    /// Operands as they are.
    F32,
    /// Operands rounded to the nearest bf16, ties to even.
    Bf16,
}

/// One product: sizes, layout, and the distance between rows in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of C, at least 1.
    pub m: usize,
    /// Columns of C, at least 1.
    pub n: usize,
    /// Length of the sums, at least 1.
    pub k: usize,
    /// What A and B are.
    pub layout: Layout,
    /// Factor of the old C; 0 means that C is not read.
    pub beta: f32,
    /// Elements from one row of A in memory to the next.
    pub lda: usize,
    /// Elements from one row of B in memory to the next.
    pub ldb: usize,
    /// Elements from one row of C to the next.
    pub ldc: usize,
    /// C is known to be symmetric: what stands below the diagonal is copied from above it.
    pub symmetric: bool,
}

impl Gemm {
    /// A product of matrices without gaps between their rows, `beta` 0.
    pub fn new(layout: Layout, m: usize, n: usize, k: usize) -> Gemm {
        let lda = if layout == Layout::Tn { m } else { k };
        let ldb = if layout == Layout::Nt { k } else { n };
        Gemm { m, n, k, layout, beta: 0.0, lda, ldb, ldc: n, symmetric: false }
    }

    /// The same, added to `beta * C`.
    pub fn with_beta(self, beta: f32) -> Gemm {
        Gemm { beta, ..self }
    }

    /// The same, of which half is computed; for C with `m == n` and `beta` 0.
    pub fn with_symmetry(self) -> Gemm {
        Gemm { symmetric: true, ..self }
    }

    fn check_c(&self, c: &[f32]) {
        check("C", c.len(), self.m, self.n, self.ldc);
        assert!(self.k > 0, "gemm: k is 0");
        let whole = !self.symmetric || (self.m == self.n && self.beta == 0.0);
        assert!(whole, "gemm: {} x {} + {} C is not symmetric", self.m, self.n, self.beta);
    }

    fn check_a(&self, a: &[f32]) {
        let (rows, cols) =
            if self.layout == Layout::Tn { (self.k, self.m) } else { (self.m, self.k) };
        check("A", a.len(), rows, cols, self.lda);
    }

    fn check_b(&self, b: &[f32]) {
        let (rows, cols) =
            if self.layout == Layout::Nt { (self.n, self.k) } else { (self.k, self.n) };
        check("B", b.len(), rows, cols, self.ldb);
    }
}

fn check(name: &str, len: usize, rows: usize, cols: usize, ld: usize) {
    assert!(rows > 0 && cols > 0, "gemm: {name} is {rows} x {cols}");
    assert!(ld >= cols, "gemm: rows of {name} have {cols} elements and are {ld} apart");
    let need = (rows - 1).checked_mul(ld).and_then(|x| x.checked_add(cols));
    assert!(
        need.is_some_and(|need| need <= len),
        "gemm: {name} is {rows} x {cols}, rows {ld} apart, in {len} elements"
    );
}

/// Calls `$run::<K>($args)` with the kernel for `$kernels` and `$multiply`.
macro_rules! with_kernel {
    ($kernels:expr, $multiply:expr, $run:ident($($arg:expr),* $(,)?)) => {{
        use $crate::cpu::gemm::Multiply;
        use $crate::cpu::simd::Simd;
        use $crate::cpu::gemm::portable::{PortableF32, PortablePairs};
        #[cfg(target_arch = "x86_64")]
        use $crate::cpu::gemm::{amx::Amx, avx2::Avx2F32, avx512::{Avx512F32, Avx512Pairs}};
        match ($kernels.simd(), $multiply) {
            #[cfg(target_arch = "x86_64")]
            (Simd::Amx, Multiply::Bf16) => $run::<Amx>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512Bf16, Multiply::Bf16) => $run::<Avx512Pairs>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Simd::Amx | Simd::Avx512Bf16 | Simd::Avx512, Multiply::F32) => {
                $run::<Avx512F32<false>>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, Multiply::Bf16) => $run::<Avx512F32<true>>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx2, Multiply::F32) => $run::<Avx2F32<false>>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx2, Multiply::Bf16) => $run::<Avx2F32<true>>($($arg),*),
            (_, Multiply::F32) => $run::<PortableF32<false>>($($arg),*),
            (_, Multiply::Bf16) => $run::<PortablePairs>($($arg),*),
        }
    }};
}
pub(crate) use with_kernel;

/// Elements along k of a packed word: 2 where the kernel reads pairs of bf16.
pub(crate) fn elements_of_word(kernels: &Kernels, multiply: Multiply) -> usize {
    fn step<K: kernel::Kernel>() -> usize {
        K::STEP
    }
    with_kernel!(kernels, multiply, step())
}

/// Blocks of sums of length k.
pub(crate) fn blocks_of<K: kernel::Kernel>(k: usize) -> usize {
    drive::Blocks::new::<K>(k).count()
}

/// First element and number of elements of a block of sums of length k.
pub(crate) fn elements_of<K: kernel::Kernel>(k: usize, block: usize) -> (usize, usize) {
    drive::Blocks::new::<K>(k).elements_of::<K>(block)
}

/// `C = beta * C + op(A) op(B)`.
///
/// Panics if a slice is too short for its sizes, or a size is 0. Equals the naive triple loop up
/// to the order of sums; with [`Multiply::Bf16`], of operands rounded to bf16.
pub fn gemm(
    pool: &Pool,
    kernels: &Kernels,
    multiply: Multiply,
    g: Gemm,
    c: &mut [f32],
    a: &[f32],
    b: &[f32],
) {
    g.check_c(c);
    g.check_a(a);
    g.check_b(b);
    let (c, a, b) = (Shared(c.as_mut_ptr()), a.as_ptr(), b.as_ptr());
    with_kernel!(kernels, multiply, drive(pool, &g, c, SharedConst(a), SharedConst(b)));
    if g.symmetric {
        mirror(pool, &g, c);
    }
}

/// As [`gemm`], into new memory, which is not zeroed first; `g` has `beta` 0 and no gaps in C.
pub(crate) fn gemm_fresh(
    pool: &Pool,
    kernels: &Kernels,
    multiply: Multiply,
    g: Gemm,
    a: &[f32],
    b: &[f32],
) -> Vec<f32> {
    assert!(g.beta == 0.0 && g.ldc == g.n && !g.symmetric && g.k > 0, "gemm: {g:?} is not whole");
    g.check_a(a);
    g.check_b(b);
    let len = g.m.checked_mul(g.n).expect("C has fewer elements than memory");
    let mut out: Vec<f32> = Vec::with_capacity(len);
    let (c, a, b) = (Shared(out.as_mut_ptr()), a.as_ptr(), b.as_ptr());
    with_kernel!(kernels, multiply, drive(pool, &g, c, SharedConst(a), SharedConst(b)));
    // SAFETY: the capacity is at least `len`; with `beta` 0 and `k` > 0 `drive` reads no element of
    // C before it has written it, and has written all of m x n = `len`.
    unsafe { out.set_len(len) };
    out
}

/// Copies what stands above the diagonal of C to below it.
fn mirror(pool: &Pool, g: &Gemm, c: Shared<f32>) {
    /// Rows of a task.
    const ROWS: usize = 32;
    pool.run(g.m.div_ceil(ROWS), |task| {
        for i in task * ROWS..g.m.min((task + 1) * ROWS) {
            for j in 0..i {
                // SAFETY: j < i < m = n, so both elements lie in C (`Gemm::check_c`); a task writes
                // below the diagonal in its own rows, and everybody reads above it only.
                unsafe { *c.get().add(i * g.ldc + j) = *c.get().add(j * g.ldc + i) };
            }
        }
    });
}

/// A pointer that tasks share; which task touches what is said where it is used.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);
#[derive(Clone, Copy)]
pub(crate) struct SharedConst<T>(pub(crate) *const T);

// SAFETY: tasks write disjoint parts, and read what nobody writes meanwhile (see each use).
unsafe impl<T: Send + Sync> Sync for Shared<T> {}
// SAFETY: nobody writes through it.
unsafe impl<T: Send + Sync> Sync for SharedConst<T> {}

impl<T> Shared<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

impl<T> SharedConst<T> {
    pub(crate) fn get(&self) -> *const T {
        self.0
    }
}
