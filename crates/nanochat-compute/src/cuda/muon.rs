//! Muon: three products an iteration, and what lies between them.

use super::launch::{args, blocks, int};
use super::{Cuda, Work};
use crate::ops::muon::POLAR_EXPRESS;
use crate::ops::{Layout, MatMul, Muon};
use crate::{DType, Result, Tensor};

/// Threads of a block that works on one row.
const ROW: u32 = 256;
/// Threads of the one block that looks at all rows' sums.
const ALL: u32 = 1024;

impl Cuda {
    /// [`crate::Backend::muon`] without the checks. X and the Gram matrices are of the device's type.
    pub(super) fn muon_step(
        &self,
        p: &Tensor,
        (buf, second): (&Tensor, &Tensor),
        scratch: &Tensor,
        g: &Tensor,
        s: &Muon,
    ) -> Result<()> {
        let (m, n, r) = (s.m, s.n, s.m.min(s.n));
        let name = self.dtype.name();
        let sums = self.work(Work::Muon, 2 * m.max(n), DType::F32)?;
        let (squares, factor) = (sums.slice(0..m.max(n)), sums.slice(m.max(n)..2 * m.max(n)));
        // In f32: X and its successor; in bf16: the momentum's output in f32, then both.
        let u = scratch.slice(0..m * n);
        let size = self.dtype.size();
        let x_at = if self.dtype == DType::F32 { 0 } else { 4 * m * n };
        let at = |byte: usize, len: usize| scratch.at_byte(byte, len, self.dtype);
        let mut x = at(x_at, m * n);
        let mut next = at(x_at + size * m * n, m * n);
        let end = x_at + 2 * size * m * n;
        let (gram, poly) = (at(end, r * r), at(end + size * r * r, r * r));

        let (rows, columns) = (blocks(m, ROW, 128), int(n));
        let (take, mu) = (1.0 - s.momentum, s.momentum);
        self.launch("muon_momentum", rows, args![&u, buf, &squares, g, columns, take, mu])?;
        let one = blocks(1, ALL, 128);
        self.launch("muon_row_factors", one, args![&factor, &squares, int(m)])?;
        self.launch(&format!("scale_rows_{name}"), rows, args![&x, &u, &factor, columns])?;
        for (a, b, c) in POLAR_EXPRESS {
            self.iterate((&x, &next), (&gram, &poly), (m, n), (a, b, c))?;
            std::mem::swap(&mut x, &mut next);
        }
        let by_row = m >= n;
        if by_row {
            self.launch(&format!("row_squares_{name}"), rows, args![&squares, &x, columns])?;
        } else {
            let grid = blocks(n.div_ceil(32), 256, 1024);
            let args = args![&squares, &x, int(m), columns];
            self.launch(&format!("column_squares_{name}"), grid, args)?;
        }
        let (len, size) = if by_row { (m, n) } else { (n, m) };
        let (size, least, take) = (size as f32, r as f32, 1.0 - s.beta2);
        let args = args![&factor, second, &squares, int(len), size, least, take];
        self.launch("muon_variance", one, args)?;
        let lr = s.lr * (m as f32 / n as f32).max(1.0).sqrt();
        let args = args![p, &x, &factor, columns, i32::from(by_row), lr, s.wd];
        self.launch(&format!("muon_update_{name}"), rows, args)
    }

    /// `A = X Xᵀ`, `next = aX + (bA + cA²) X`; from the other side when m > n.
    fn iterate(
        &self,
        (x, next): (&Tensor, &Tensor),
        (gram, poly): (&Tensor, &Tensor),
        (m, n): (usize, usize),
        (a, b, c): (f32, f32, f32),
    ) -> Result<()> {
        let (r, tall) = (m.min(n), m > n);
        let (layout, k) = if tall { (Layout::Tn, m) } else { (Layout::Nt, n) };
        let shape = MatMul { m: r, n: r, k, layout, beta: 0.0 };
        self.product(gram, x, x, &shape)?;
        let shape = MatMul { m: r, n: r, k: r, layout: Layout::Nn, beta: b };
        self.product_with(poly, gram, (gram, gram), &shape, c)?;
        let shape = MatMul { m, n, k: r, layout: Layout::Nn, beta: a };
        let operands = if tall { (x, poly) } else { (poly, x) };
        self.product_with(next, x, operands, &shape, 1.0)
    }
}
