//! Products: operands as the device multiplies them, few rows by a kernel of their own.

use super::driver::{Matrix, Product};
use super::launch::{args, suffix, walk};
use super::step::FEW;
use super::{Cuda, Work};
use crate::ops::MatMul;
use crate::{DType, Result, Tensor};

impl Cuda {
    /// `out = x`, rounded to bf16.
    pub(super) fn narrow(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        let wide = suffix(DType::BF16, &[x.len()], &[out, x]) == "bf16x4";
        let kernel = if wide { "narrow_x4" } else { "narrow_x1" };
        self.launch(kernel, walk(x.len()), args![out, x, x.len()])
    }

    /// `out = x`, in f32.
    pub(super) fn widen(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        let wide = suffix(DType::F32, &[x.len()], &[out, x]) == "f32x4";
        let kernel = if wide { "widen_x4" } else { "widen_x1" };
        self.launch(kernel, walk(x.len()), args![out, x, x.len()])
    }

    /// An operand as products read it: as it lies, or rounded to bf16 beside it.
    fn operand(&self, x: &Tensor, purpose: Work) -> Result<Tensor> {
        match (x.dtype(), self.dtype) {
            (DType::F32, DType::BF16) => {
                let narrow = self.work(purpose, x.len(), DType::BF16)?;
                self.narrow(&narrow, x)?;
                Ok(narrow)
            }
            (DType::BF16, DType::F32) => {
                let wide = self.work(purpose, x.len(), DType::F32)?;
                self.widen(&wide, x)?;
                Ok(wide)
            }
            _ => Ok(x.clone()),
        }
    }

    /// [`Backend::matmul`] without the checks.
    pub(super) fn product(&self, c: &Tensor, a: &Tensor, b: &Tensor, s: &MatMul) -> Result<()> {
        self.product_with(c, c, (a, b), s, 1.0)
    }

    /// `d = alpha a b + s.beta c`.
    pub(super) fn product_with(
        &self,
        d: &Tensor,
        c: &Tensor,
        operands: (&Tensor, &Tensor),
        s: &MatMul,
        alpha: f32,
    ) -> Result<()> {
        self.products_with(d, c, operands, s, (alpha, 1))
    }

    /// `d = alpha a b + s.beta c` for `batch` of each, one after the other.
    pub(super) fn products_with(
        &self,
        d: &Tensor,
        c: &Tensor,
        (a, b): (&Tensor, &Tensor),
        s: &MatMul,
        (alpha, batch): (f32, usize),
    ) -> Result<()> {
        if self.is_building() {
            self.build_nothing();
            return Ok(());
        }
        let (a, b) = (self.operand(a, Work::A)?, self.operand(b, Work::B)?);
        let at = |t: &Tensor| t.device().map_or(0, |(_, at)| at);
        let matrix = |t: &Tensor| Matrix { at: at(t), dtype: t.dtype() };
        let (d, c, a, b) = (matrix(d), at(c), matrix(&a), matrix(&b));
        // SAFETY: the callers have checked that the tensors are as long as the shape and lie here.
        unsafe { self.driver.product(&Product { shape: *s, batch, alpha, c, d, a, b }) }
    }

    /// A linear layer forward with a weight in bf16: few rows by a kernel of their own.
    pub(super) fn linear(&self, c: &Tensor, a: &Tensor, w: &Tensor, s: &MatMul) -> Result<()> {
        if self.is_building() {
            self.build_product(c, a, w, s);
            return Ok(());
        }
        let types = match (a.dtype(), c.dtype()) {
            (DType::BF16, DType::BF16) => Some("bf16_bf16"),
            (DType::BF16, DType::F32) => Some("bf16_f32"),
            (DType::F32, DType::F32) => Some("f32_f32"),
            _ => None,
        };
        let aligned = a.address().is_multiple_of(16) && s.k.is_multiple_of(8);
        // With streams in bf16 a product on tensor cores is the faster one from three rows on.
        let most = if a.dtype() == DType::F32 { FEW } else { 2 };
        match types {
            Some(types) if s.m <= most && aligned => {
                self.linear_of_few((c, a, w), types, (s.m, s.n, s.k), s.beta)
            }
            _ => self.product(c, a, w, s),
        }
    }
}
