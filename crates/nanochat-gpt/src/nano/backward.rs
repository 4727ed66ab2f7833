//! Losses to gradients: the forward pass, read from its end.

use nanochat_compute::ops::MatMul;
use nanochat_compute::{Backend, Tensor};

use super::Nano;
use super::buffers::{BackBuffers, Buffers, GradBuffers, LayerBuffers, MlpRows};
use super::forward::NoPast;
use super::table::Role;
use crate::Result;

impl Nano {
    /// Forward and backward of one micro batch: adds the gradients of
    /// `grad_scale * sum(losses)` to `grads` ([`super::table::Table::len`] elements); returns the
    /// losses (B, T) in nats.
    ///
    /// `buffers` come from a plan in [`super::buffers::Mode::Train`].
    pub fn forward_backward(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        grads: &Tensor,
        grad_scale: f32,
    ) -> Result<Vec<f32>> {
        self.forward_backward_weighted(be, bufs, grads, grad_scale, None)
    }

    /// The same for `grad_scale * sum(weights * losses)`, `weights` (B, T): what a policy gradient
    /// makes of its advantages. The losses that are returned are not weighted.
    pub fn forward_backward_weighted(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        grads: &Tensor,
        grad_scale: f32,
        weights: Option<&Tensor>,
    ) -> Result<Vec<f32>> {
        let g = bufs.grads.as_ref().expect("the plan was made for training");
        let c = self.config.n_embd;
        self.forward_body(be, bufs, &NoPast)?;
        let (w, dw) = (self.param(Role::LmHead), self.table.view(grads, Role::LmHead));
        let s = self.head_shape(bufs, grad_scale);
        let into = Some((&g.t1, &dw));
        let (losses, logits, x) = (&bufs.losses, &bufs.logits, &bufs.yf);
        be.head_loss_weighted(losses, into, logits, x, &w, &bufs.targets, weights, &s)?;
        be.norm_backward(&g.dx, &g.t1, &bufs.yf, &bufs.yf_rstd, c, 0.0)?;
        be.fill(&g.dx0, 0.0)?;
        let middle = self.config.backout_layer();
        if let Some(dxb) = &g.dxb {
            let (lambda, dlambda) =
                (self.param(Role::BackoutLambda), self.table.view(grads, Role::BackoutLambda));
            be.backout_backward(dxb, &dlambda, &g.dx, &bufs.layers[middle].x, &lambda)?;
        }
        for (i, layer) in bufs.layers.iter().enumerate().rev() {
            if let Some(dxb) = &g.dxb
                && i == middle
            {
                be.add(&g.dx, dxb)?;
            }
            self.backward_mlp(be, bufs, g, grads, i, layer)?;
            self.backward_attention(be, bufs, g, grads, i, layer)?;
            if self.config.rules().lambdas {
                let x = if i == 0 { &bufs.x0 } else { &bufs.layers[i - 1].x };
                let (a, b) = self.lambdas(&self.params, i);
                let (da, db) = self.lambdas(grads, i);
                be.mix_backward(&g.dx, &g.dx0, &da, &db, x, &bufs.x0, &a, &b)?;
            }
        }
        be.add(&g.dx, &g.dx0)?;
        self.backward_embedding(be, bufs, g, grads)?;
        Ok(bufs.losses.to_vec_f32()?)
    }

    fn backward_mlp(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        g: &GradBuffers,
        grads: &Tensor,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let (n, c) = (bufs.b * bufs.t, self.config.n_embd);
        let (fc, dfc) = (self.param(Role::Fc(i)), self.table.view(grads, Role::Fc(i)));
        let (proj, dproj) =
            (self.param(Role::MlpProj(i)), self.table.view(grads, Role::MlpProj(i)));
        let back = back(layer);
        for rows in MlpRows::all(n, bufs.mlp_rows) {
            let (m, dx, y2) = (rows.len(), rows.of(c, &g.dx), rows.of(c, &layer.y2));
            let (t1, t4) = (rows.of(c, &g.t1), back.t4.slice(0..m * 4 * c));
            let r = match &back.r {
                None => {
                    let r = rows.of(4 * c, &layer.r);
                    if !bufs.keeps_square {
                        be.square(&t4, &r)?;
                    }
                    r
                }
                Some(r) => {
                    let r = r.slice(0..m * 4 * c);
                    be.matmul(&r, &y2, &fc, &MatMul::forward(m, c, 4 * c))?;
                    be.relu2(&t4, &r)?;
                    r
                }
            };
            let squares = if bufs.keeps_square { &r } else { &t4 };
            be.matmul(&dproj, &dx, squares, &MatMul::weight_grad(m, 4 * c, c))?;
            be.matmul(&t4, &dx, &proj, &MatMul::input_grad(m, 4 * c, c))?;
            match bufs.keeps_square {
                true => be.relu2_in_place_backward(&t4, &r)?,
                false => be.relu2_backward(&t4, &r)?,
            }
            be.matmul(&dfc, &t4, &y2, &MatMul::weight_grad(m, c, 4 * c))?;
            be.matmul(&t1, &t4, &fc, &MatMul::input_grad(m, c, 4 * c))?;
            let rstd = rows.of(1, &layer.rstd2);
            be.norm_backward(&dx, &t1, &y2, &rstd, c, 1.0)?;
        }
        Ok(())
    }

    fn backward_attention(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        g: &GradBuffers,
        grads: &Tensor,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let (n, c, kv) = (bufs.b * bufs.t, self.config.n_embd, self.config.kv_dim());
        let dw = |role| self.table.view(grads, role);
        let square = MatMul::weight_grad(n, c, c);
        be.matmul(&dw(Role::AttnProj(i)), &g.dx, &layer.o, &square)?;
        let proj = self.param(Role::AttnProj(i));
        be.matmul(&g.t1, &g.dx, &proj, &MatMul::input_grad(n, c, c))?;
        let BackBuffers { dq, dk, dv, .. } = back(layer);
        let (q, k, v, o) = (&layer.q, &layer.k, &layer.v, &layer.o);
        let s = self.attention_shape(bufs, i);
        be.attention_backward(dq, dk, dv, &g.t1, o, &layer.lse, q, k, v, &s)?;
        let (q_shape, k_shape) = (self.rope_shape(bufs.t, true), self.rope_shape(bufs.t, false));
        let (cos, sin) = self.rope.tables(be, bufs.t)?;
        be.rope_norm_backward(dq, q, &layer.q_rstd, &cos, &sin, &q_shape)?;
        be.rope_norm_backward(dk, k, &layer.k_rstd, &cos, &sin, &k_shape)?;
        let dy = &g.t1;
        be.matmul(dy, dq, &self.param(Role::Q(i)), &MatMul::input_grad(n, c, c))?;
        let more = MatMul::input_grad(n, c, kv).add();
        be.matmul(dy, dk, &self.param(Role::K(i)), &more)?;
        be.matmul(dy, dv, &self.param(Role::V(i)), &more)?;
        if let Some(gate) = &layer.gate {
            let (table, w) = (self.param(Role::ValueEmbed(i)), self.param(Role::VeGate(i)));
            let (dtable, dgate) = (dw(Role::ValueEmbed(i)), dw(Role::VeGate(i)));
            let (ids, y) = (&bufs.tokens, &layer.y1);
            let s = self.gate_shape();
            be.value_gate_backward(&dtable, &dgate, dy, dv, &table, ids, y, &w, gate, &s)?;
        }
        let narrow = MatMul::weight_grad(n, c, kv);
        be.matmul(&dw(Role::Q(i)), dq, &layer.y1, &square)?;
        be.matmul(&dw(Role::K(i)), dk, &layer.y1, &narrow)?;
        be.matmul(&dw(Role::V(i)), dv, &layer.y1, &narrow)?;
        Ok(be.norm_backward(&g.dx, dy, &layer.y1, &layer.rstd1, c, 1.0)?)
    }

    fn backward_embedding(
        &self,
        be: &dyn Backend,
        bufs: &Buffers,
        g: &GradBuffers,
        grads: &Tensor,
    ) -> Result<()> {
        let c = self.config.n_embd;
        let dw = |role| self.table.view(grads, role);
        let de = match &bufs.smear_gate {
            Some(gate) => {
                let (w, lambda) = (self.param(Role::SmearGate), self.param(Role::SmearLambda));
                let (dgate, dlambda) = (dw(Role::SmearGate), dw(Role::SmearLambda));
                let s = self.smear_shape(bufs);
                be.smear_backward(&g.t1, &dgate, &dlambda, &g.dx, &bufs.e, gate, &w, &lambda, &s)?;
                &g.t1
            }
            None => &g.dx,
        };
        let raw = &g.dx0;
        be.norm_backward(raw, de, &bufs.e, &bufs.e_rstd, c, 0.0)?;
        Ok(be.embedding_backward(&dw(Role::Wte), raw, &bufs.tokens, c)?)
    }
}

fn back(layer: &LayerBuffers) -> &BackBuffers {
    layer.back.as_ref().expect("the plan was made for training")
}
