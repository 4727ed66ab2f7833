//! The head: logits of some rows at a time, their losses and gradients in place.

use super::Cuda;
use super::driver::Arg;
use super::launch::{args, blocks, int, suffix};
use crate::ops::{HeadLoss, Layout, MatMul};
use crate::{Result, Tensor};

impl Cuda {
    /// [`crate::Backend::head_loss_weighted`] without the checks: as many rows at a time as `scratch` holds.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn head(
        &self,
        losses: &Tensor,
        grads: Option<(&Tensor, &Tensor)>,
        scratch: &Tensor,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        weights: Option<&Tensor>,
        s: &HeadLoss,
    ) -> Result<()> {
        let (c, v) = (s.c, s.v);
        let w = w.slice(0..v * c);
        let most = (scratch.len() / v).min(s.n).max(1);
        for first in (0..s.n).step_by(most) {
            let m = most.min(s.n - first);
            let rows = first..first + m;
            let x = x.slice(rows.start * c..rows.end * c);
            let logits = scratch.slice(0..m * v);
            let forward = MatMul { m, n: v, k: c, layout: Layout::Nt, beta: 0.0 };
            self.timed("head logits", || self.product(&logits, &x, &w, &forward))?;
            let (losses, targets) = (losses.slice(rows.clone()), targets.slice(rows.clone()));
            let weights = weights.map(|w| w.slice(rows.clone()));
            let scale = grads.map(|_| (s.grad_scale, weights.as_ref()));
            self.timed("head loss", || {
                self.loss_rows(&losses, &logits, &targets, (v, s.softcap), scale)
            })?;
            if let Some((dx, dw)) = grads {
                let dx = dx.slice(rows.start * c..rows.end * c);
                let shape = MatMul { m, n: c, k: v, layout: Layout::Nn, beta: 0.0 };
                self.timed("head input grad", || self.product(&dx, &logits, &w, &shape))?;
                let shape = MatMul { m: v, n: c, k: m, layout: Layout::Tn, beta: 1.0 };
                let dw = dw.slice(0..v * c);
                self.timed("head weight grad", || self.product(&dw, &logits, &x, &shape))?;
            }
        }
        Ok(())
    }

    /// Losses of rows of raw logits, which become softcapped, or gradients times `scale` and the row's
    /// weight.
    pub(super) fn loss_rows(
        &self,
        losses: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        (v, cap): (usize, f32),
        grad: Option<(f32, Option<&Tensor>)>,
    ) -> Result<()> {
        let n = losses.len();
        // Three rows for each multiprocessor of a large GPU.
        let fits = v.is_multiple_of(8) && 2 * v + 128 <= 75 << 10 && cap <= 30.0;
        // No address stands for weights of 1.
        let address = |weights: Option<&Tensor>| weights.map_or(Arg::Ptr(0), Arg::from);
        if let Some((scale, weights)) = grad
            && fits
            && suffix(logits.dtype(), &[v], &[logits]) == "bf16x4"
            && Arg::from(logits).word().is_multiple_of(16)
        {
            let grid = blocks(n, 512, 128 + 2 * v as u32);
            let args = args![losses, logits, targets, address(weights), int(v), cap, scale];
            return self.launch("cross_entropy_grad_held", grid, args);
        }
        let kernel = format!("cross_entropy_{}", suffix(logits.dtype(), &[v], &[logits]));
        let (has_grad, (scale, weights)) = (i32::from(grad.is_some()), grad.unwrap_or((0.0, None)));
        let args = args![losses, logits, targets, address(weights), int(v), cap, has_grad, scale];
        self.launch(&kernel, blocks(losses.len(), 512, 128), args)
    }
}
