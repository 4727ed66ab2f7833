//! Which chain each operation runs.

use super::{Eager, loss, matmul, mix, norm, relu2, rope, smear, value_gate};
use crate::ops::{
    AdamW, Attention, CachedAttention, HeadLoss, MatMul, Muon, RopeNorm, Smear, ValueGate,
};
use crate::profile::Profile;
use crate::reference::HostKernels;
use crate::{DType, Floats, FloatsMut};

impl HostKernels for Eager {
    fn name(&self) -> String {
        let multiply = if self.cpu.is_bf16() { "bf16" } else { "f32" };
        format!("cpu {} {multiply} eager, {} threads", self.cpu.simd(), self.cpu.threads())
    }
    fn profile(&self) -> Option<&Profile> {
        HostKernels::profile(&self.cpu)
    }
    /// At the peak of the head's backward: the bent logits, their log softmax, and two gradients of
    /// (N, V); then a whole gradient of the weight.
    fn workspace_bytes(&self, head: &HeadLoss, operand: usize) -> usize {
        let products =
            HostKernels::workspace_bytes(&self.cpu, &HeadLoss { n: 0, ..*head }, operand);
        4 * (4 * head.n * head.v).max(head.n * head.v + head.v * head.c) + products
    }
    fn cache_dtype(&self) -> DType {
        HostKernels::cache_dtype(&self.cpu)
    }
    fn fill(&self, x: &mut [f32], value: f32) {
        HostKernels::fill(&self.cpu, x, value);
    }
    fn copy(&self, out: &mut [f32], x: &[f32]) {
        HostKernels::copy(&self.cpu, out, x);
    }
    fn add(&self, out: &mut [f32], x: &[f32]) {
        HostKernels::add(&self.cpu, out, x);
    }
    fn embedding(&self, out: &mut [f32], table: &[f32], ids: &[i32], c: usize) {
        HostKernels::embedding(&self.cpu, out, table, ids, c);
    }
    fn place_rows(&self, table: FloatsMut<'_>, x: &[f32], ids: &[i32], c: usize) {
        HostKernels::place_rows(&self.cpu, table, x, ids, c);
    }
    fn embedding_backward(&self, dtable: &mut [f32], dout: &[f32], ids: &[i32], c: usize) {
        HostKernels::embedding_backward(&self.cpu, dtable, dout, ids, c);
    }
    fn norm(&self, out: &mut [f32], rstd: &mut [f32], x: &[f32], c: usize, eps: f32) {
        norm::norm(&self.cpu, out, rstd, x, c, eps);
    }
    fn norm_backward(
        &self,
        dx: &mut [f32],
        dout: &[f32],
        out: &[f32],
        rstd: &[f32],
        c: usize,
        beta: f32,
    ) {
        norm::norm_backward(&self.cpu, dx, dout, out, rstd, c, beta);
    }
    fn matmul(&self, c: &mut [f32], a: &[f32], b: &[f32], s: &MatMul) {
        matmul::matmul(&self.cpu, c, a, b, s);
    }
    fn smear(
        &self,
        out: &mut [f32],
        gate: &mut [f32],
        x: &[f32],
        w: &[f32],
        lambda: &[f32],
        s: &Smear,
    ) {
        smear::smear(&self.cpu, out, gate, x, w, lambda[0], s);
    }
    fn smear_backward(
        &self,
        dx: &mut [f32],
        dw: &mut [f32],
        dlambda: &mut [f32],
        dout: &[f32],
        x: &[f32],
        gate: &[f32],
        w: &[f32],
        lambda: &[f32],
        s: &Smear,
    ) {
        smear::smear_backward(&self.cpu, dx, dw, dlambda, dout, x, gate, w, lambda[0], s);
    }
    fn mix(&self, out: &mut [f32], x: &[f32], y: &[f32], a: &[f32], b: &[f32]) {
        mix::mix(&self.cpu, out, x, y, a[0], b[0]);
    }
    fn mix_backward(
        &self,
        d: &mut [f32],
        dy: &mut [f32],
        da: &mut [f32],
        db: &mut [f32],
        x: &[f32],
        y: &[f32],
        a: &[f32],
        b: &[f32],
    ) {
        mix::mix_backward(&self.cpu, d, dy, da, db, x, y, a[0], b[0]);
    }
    fn backout(&self, out: &mut [f32], x: &[f32], y: &[f32], lambda: &[f32]) {
        mix::backout(&self.cpu, out, x, y, lambda[0]);
    }
    fn backout_backward(
        &self,
        dy: &mut [f32],
        dlambda: &mut [f32],
        dout: &[f32],
        y: &[f32],
        lambda: &[f32],
    ) {
        mix::backout_backward(&self.cpu, dy, dlambda, dout, y, lambda[0]);
    }
    fn rope_norm(&self, x: &mut [f32], rstd: &mut [f32], cos: &[f32], sin: &[f32], s: &RopeNorm) {
        rope::rope_norm(&self.cpu, x, rstd, cos, sin, s);
    }
    fn rope_norm_backward(
        &self,
        dx: &mut [f32],
        out: &[f32],
        rstd: &[f32],
        cos: &[f32],
        sin: &[f32],
        s: &RopeNorm,
    ) {
        rope::rope_norm_backward(&self.cpu, dx, out, rstd, cos, sin, s);
    }
    fn value_gate(
        &self,
        v: &mut [f32],
        gate: &mut [f32],
        table: &[f32],
        ids: &[i32],
        y: &[f32],
        w: &[f32],
        s: &ValueGate,
    ) {
        value_gate::value_gate(&self.cpu, v, gate, table, ids, y, w, s);
    }
    fn value_gate_backward(
        &self,
        dtable: &mut [f32],
        dw: &mut [f32],
        dy: &mut [f32],
        dv: &[f32],
        table: &[f32],
        ids: &[i32],
        y: &[f32],
        w: &[f32],
        gate: &[f32],
        s: &ValueGate,
    ) {
        value_gate::value_gate_backward(&self.cpu, dtable, dw, dy, dv, table, ids, y, w, gate, s);
    }
    fn relu2(&self, out: &mut [f32], x: &mut [f32]) {
        relu2::relu2(&self.cpu, out, x);
    }
    fn relu2_backward(&self, d: &mut [f32], r: &[f32]) {
        relu2::relu2_backward(&self.cpu, d, r);
    }
    fn square(&self, out: &mut [f32], r: &[f32]) {
        relu2::square(&self.cpu, out, r);
    }
    fn attention(
        &self,
        out: &mut [f32],
        lse: &mut [f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        s: &Attention,
    ) {
        HostKernels::attention(&self.cpu, out, lse, q, k, v, s);
    }
    fn attention_backward(
        &self,
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
        dout: &[f32],
        out: &[f32],
        lse: &[f32],
        q: &[f32],
        k: &[f32],
        v: &[f32],
        s: &Attention,
    ) {
        HostKernels::attention_backward(&self.cpu, dq, dk, dv, dout, out, lse, q, k, v, s);
    }
    fn attention_cached(
        &self,
        out: &mut [f32],
        q: &[f32],
        k: Floats<'_>,
        v: Floats<'_>,
        places: &[i32],
        s: &CachedAttention,
    ) {
        HostKernels::attention_cached(&self.cpu, out, q, k, v, places, s);
    }
    fn head_loss(
        &self,
        losses: &mut [f32],
        grads: Option<(&mut [f32], &mut [f32])>,
        _: &mut [f32],
        x: &[f32],
        w: &[f32],
        targets: &[i32],
        weights: Option<&[f32]>,
        s: &HeadLoss,
    ) {
        loss::head_loss(&self.cpu, losses, grads, x, w, targets, weights, s);
    }
    fn softcap(&self, x: &mut [f32], cap: f32) {
        loss::softcap(&self.cpu, x, cap);
    }
    fn adamw(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamW) {
        HostKernels::adamw(&self.cpu, p, m, v, g, s);
    }
    fn muon(
        &self,
        p: &mut [f32],
        buf: &mut [f32],
        second: &mut [f32],
        scratch: &mut [f32],
        g: &[f32],
        s: &Muon,
    ) {
        HostKernels::muon(&self.cpu, p, buf, second, scratch, g, s);
    }
}
