//! B packed once and used many times: weights, which change once an optimizer step and are
//! multiplied in every micro-step (and, when decoding, for every token).

use super::buffer::{Shelf, Words};
use super::drive::{Blocks, Panels, multiply, pack};
use super::kernel::Kernel;
use super::{Gemm, Layout, Multiply, Shared, SharedConst, with_kernel};
use crate::cpu::pool::Pool;
use crate::cpu::simd::Kernels;

/// An (n, k) operand in the order in which the tiles of one kernel read it. In bf16 on AVX512-BF16
/// it takes half the memory of f32.
pub struct PackedB {
    words: Words,
    kernels: Kernels,
    multiply: Multiply,
    n: usize,
    k: usize,
}

impl PackedB {
    /// Room for `n` columns of length `k`, both at least 1; zero until [`PackedB::pack`].
    pub fn new(kernels: &Kernels, multiply: Multiply, n: usize, k: usize) -> PackedB {
        Self::in_words(kernels, multiply, (n, k), Words::zeroed)
    }

    /// The same, in memory of a shelf.
    pub(crate) fn on(
        shelf: &mut Shelf,
        kernels: &Kernels,
        multiply: Multiply,
        n: usize,
        k: usize,
    ) -> PackedB {
        Self::in_words(kernels, multiply, (n, k), |len| shelf.take(len))
    }

    fn in_words(
        kernels: &Kernels,
        multiply: Multiply,
        (n, k): (usize, usize),
        words: impl FnOnce(usize) -> Words,
    ) -> PackedB {
        assert!(n > 0 && k > 0, "packed B is {n} x {k}");
        let len = with_kernel!(kernels, multiply, room(n, k));
        PackedB { words: words(len), kernels: *kernels, multiply, n, k }
    }

    /// Bytes of [`PackedB::new`] with these arguments.
    pub fn bytes_for(kernels: &Kernels, multiply: Multiply, n: usize, k: usize) -> usize {
        4 * with_kernel!(kernels, multiply, room(n, k))
    }

    /// Packs `b`, with rows `ldb` apart: (n, k) for [`Layout::Nt`], (k, n) for the others.
    pub fn pack(&mut self, pool: &Pool, layout: Layout, b: &[f32], ldb: usize) {
        let g = Gemm { ldb, ..Gemm::new(layout, 1, self.n, self.k) };
        g.check_b(b);
        let (words, b) = (Shared(self.words.as_mut_ptr()), SharedConst(b.as_ptr()));
        with_kernel!(self.kernels, self.multiply, pack_all(pool, &g, b, words));
    }

    /// True when it is in these kernels' order.
    pub fn is_for(&self, kernels: &Kernels, multiply: Multiply) -> bool {
        self.kernels.simd() == kernels.simd() && self.multiply == multiply
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The tiles of a panel of `NR` columns in a block of k: `NR` words for each word step. `K` is the kernel
    /// that it was packed for.
    pub(crate) fn tiles<K: Kernel>(&self, block: usize, panel: usize) -> *const u32 {
        let g = Gemm::new(Layout::Nt, 1, self.n, self.k);
        let panels = whole::<K>(&g, SharedConst(self.words.as_ptr()));
        assert!(panel < panels.panels && block < panels.range.1, "panel {panel} of block {block}");
        self.words.as_ptr().wrapping_add(panels.offset::<K>(block, panel))
    }

    /// Lines of 16 word steps of a block of k.
    pub(crate) fn lines<K: Kernel>(&self, block: usize) -> usize {
        Blocks::new::<K>(self.k).words_of(block) / 16
    }

    /// The block in which a line of k lies, and where.
    pub(crate) fn block_of<K: Kernel>(&self, line: usize) -> (usize, usize) {
        let lines = Blocks::new::<K>(self.k).block / 16;
        (line / lines, line % lines)
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.words.len() * 4
    }
}

/// `C = beta * C + op(A) B` with a packed B: the bits of [`super::gemm`] with the same operands.
///
/// Of `g.layout` only the side of A counts ([`Layout::Tn`]: A is (k, m)), and `g.ldb` is not used.
/// Panics as `gemm`, and if `g.n`, `g.k` are not those of `b`.
pub fn gemm_packed(pool: &Pool, g: Gemm, c: &mut [f32], a: &[f32], b: &PackedB) {
    assert!(g.n == b.n && g.k == b.k, "gemm: B is packed as {} x {}", b.n, b.k);
    g.check_c(c);
    g.check_a(a);
    let (c, a) = (Shared(c.as_mut_ptr()), SharedConst(a.as_ptr()));
    let words = SharedConst(b.words.as_ptr());
    with_kernel!(b.kernels, b.multiply, multiply_all(pool, &g, c, a, words));
}

fn room<K: Kernel>(n: usize, k: usize) -> usize {
    let blocks = Blocks::new::<K>(k);
    Panels::room::<K>(&blocks, blocks.count(), n)
}

fn whole<K: Kernel>(g: &Gemm, words: SharedConst<u32>) -> Panels {
    let blocks = Blocks::new::<K>(g.k);
    Panels { words, blocks, range: (0, blocks.count()), panels: g.n.div_ceil(K::NR) }
}

fn pack_all<K: Kernel>(pool: &Pool, g: &Gemm, b: SharedConst<f32>, words: Shared<u32>) {
    let panels = whole::<K>(g, SharedConst(words.get()));
    pack::<K>(pool, g, b, 0..g.n, &panels, words);
}

fn multiply_all<K: Kernel>(
    pool: &Pool,
    g: &Gemm,
    c: Shared<f32>,
    a: SharedConst<f32>,
    words: SharedConst<u32>,
) {
    multiply::<K>(pool, g, c, a, 0..g.n, &whole::<K>(g, words));
}
