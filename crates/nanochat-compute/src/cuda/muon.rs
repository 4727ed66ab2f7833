//! Muon: matrices of one shape together, three products an iteration and what lies between them.

use super::driver::Grid;
use super::launch::{args, int};
use super::{Cuda, Work};
use crate::ops::muon::POLAR_EXPRESS;
use crate::ops::{Layout, MatMul, Muon, MuonMatrix};
use crate::{DType, Result, Tensor};

/// Threads of a block that works on one row.
const ROW: u32 = 256;
/// Threads of the one block that looks at all rows' sums.
const ALL: u32 = 1024;

impl Cuda {
    /// [`crate::Backend::muon_batch`] without the checks. X and the Gram matrices are of the device's
    /// type, those of all matrices one after the other.
    pub(super) fn muon_steps(&self, all: &[MuonMatrix], scratch: &Tensor, s: &Muon) -> Result<()> {
        let (m, n, r, batch) = (s.m, s.n, s.m.min(s.n), all.len());
        let name = self.dtype.name();
        let longer = m.max(n);
        let sums = self.work(Work::Muon, 2 * batch * longer, DType::F32)?;
        let squares = sums.slice(0..batch * longer);
        let factor = sums.slice(batch * longer..2 * batch * longer);
        // In f32: X and its successor; in bf16: the momentum's output in f32, then both.
        let u = scratch.slice(0..batch * m * n);
        let (size, len) = (self.dtype.size(), batch * m * n);
        let x_at = if self.dtype == DType::F32 { 0 } else { 4 * len };
        let at = |byte: usize, len: usize| scratch.at_byte(byte, len, self.dtype);
        let (mut x, mut next) = (at(x_at, len), at(x_at + size * len, len));
        let (end, square) = (x_at + 2 * size * len, batch * r * r);
        let (gram, poly) = (at(end, square), at(end + size * square, square));
        let table = self.addresses(all)?;

        let grid = |blocks: usize, threads, shared| Grid {
            blocks: [blocks as u32, batch as u32, 1],
            threads,
            shared,
            early: false,
        };
        let (rows, one) = (grid(m, ROW, 128), grid(1, ALL, 128));
        let (im, columns) = (int(m), int(n));
        let (take, mu) = (1.0 - s.momentum, s.momentum);
        let momentum = args![&u, &table, &squares, im, columns, take, mu];
        self.launch("muon_momentum", rows, momentum)?;
        self.launch("muon_row_factors", one, args![&factor, &squares, im])?;
        self.launch(&format!("scale_rows_{name}"), rows, args![&x, &u, &factor, im, columns])?;
        for (a, b, c) in POLAR_EXPRESS {
            self.iterate((&x, &next), (&gram, &poly), (m, n, batch), (a, b, c))?;
            std::mem::swap(&mut x, &mut next);
        }
        let by_row = m >= n;
        if by_row {
            self.launch(&format!("row_squares_{name}"), rows, args![&squares, &x, im, columns])?;
        } else {
            let grid = grid(n.div_ceil(32), 256, 1024);
            let args = args![&squares, &x, im, columns];
            self.launch(&format!("column_squares_{name}"), grid, args)?;
        }
        let (len, size) = if by_row { (m, n) } else { (n, m) };
        let (size, least, take) = (size as f32, r as f32, 1.0 - s.beta2);
        let args = args![&factor, &table, &squares, int(len), size, least, take];
        self.launch("muon_variance", one, args)?;
        let lr = s.lr * (m as f32 / n as f32).max(1.0).sqrt();
        let by_row = i32::from(by_row);
        let args = args![&table, &x, &factor, im, columns, by_row, lr, s.wd];
        self.launch(&format!("muon_update_{name}"), rows, args)
    }

    /// Addresses of p, buf, second and g of each matrix, on the device: (batch, 4) of 8 bytes.
    fn addresses(&self, all: &[MuonMatrix]) -> Result<Tensor> {
        let at = |t: &Tensor| t.device().map_or(0, |(_, at)| at);
        let of = |x: &MuonMatrix| [at(&x.p), at(&x.buf), at(&x.second), at(&x.g)];
        let words = all.iter().flat_map(of).flat_map(|at| [at as i32, (at >> 32) as i32]);
        let words: Vec<i32> = words.collect();
        let table = self.alloc_on(words.len(), DType::I32)?;
        table.write_i32(&words)?;
        Ok(table)
    }

    /// `A = X Xᵀ`, `next = aX + (bA + cA²) X`; from the other side when m > n.
    fn iterate(
        &self,
        (x, next): (&Tensor, &Tensor),
        (gram, poly): (&Tensor, &Tensor),
        (m, n, batch): (usize, usize, usize),
        (a, b, c): (f32, f32, f32),
    ) -> Result<()> {
        let (r, tall) = (m.min(n), m > n);
        let (layout, k) = if tall { (Layout::Tn, m) } else { (Layout::Nt, n) };
        let shape = MatMul { m: r, n: r, k, layout, beta: 0.0 };
        self.products_with(gram, gram, (x, x), &shape, (1.0, batch))?;
        let shape = MatMul { m: r, n: r, k: r, layout: Layout::Nn, beta: b };
        self.products_with(poly, gram, (gram, gram), &shape, (c, batch))?;
        let shape = MatMul { m, n, k: r, layout: Layout::Nn, beta: a };
        let operands = if tall { (x, poly) } else { (poly, x) };
        self.products_with(next, x, operands, &shape, (1.0, batch))
    }
}
