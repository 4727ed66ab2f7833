//! The backend that only calls the plain references: slow, and the law for the others.

use crate::ops::{
    self, AdamW, Attention, CachedAttention, HeadLoss, MatMul, Muon, PackedWeight, RopeNorm, Smear,
    ValueGate, WeightFormat,
};
use crate::profile::Profile;
use crate::{DType, Floats, FloatsMut};

/// The plain reference of every operation, on one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl HostKernels for Reference {
    fn name(&self) -> String {
        "plain reference".into()
    }
}

/// Kernels on host slices, each with its plain reference as the default.
///
/// A host backend overrides what it has a faster version of; [`crate::Backend`] follows for every
/// implementor (`host.rs` checks shapes and borrows the slices). Operands, formulas and shapes are
/// those of the references in [`crate::ops`].
#[allow(missing_docs)]
#[allow(clippy::too_many_arguments)]
pub trait HostKernels {
    fn name(&self) -> String;
    /// Where seconds are noted, if this backend notes them.
    fn profile(&self) -> Option<&Profile> {
        None
    }
    /// See [`crate::Backend::workspace_bytes`].
    fn workspace_bytes(&self, head: &HeadLoss, operand: usize) -> usize {
        let _ = (head, operand);
        0
    }
    /// See [`crate::Backend::remakes_hidden`].
    fn remakes_hidden(&self) -> bool {
        false
    }
    /// See [`crate::Backend::cache_dtype`].
    fn cache_dtype(&self) -> DType {
        DType::F32
    }
    fn fill(&self, x: &mut [f32], value: f32) {
        x.fill(value);
    }
    fn copy(&self, out: &mut [f32], x: &[f32]) {
        out.copy_from_slice(x);
    }
    fn add(&self, out: &mut [f32], x: &[f32]) {
        ops::mix::add(out, x);
    }
    fn embedding(&self, out: &mut [f32], table: &[f32], ids: &[i32], c: usize) {
        ops::embedding::embedding(out, table, ids, c);
    }
    fn embedding_backward(&self, dtable: &mut [f32], dout: &[f32], ids: &[i32], c: usize) {
        ops::embedding::embedding_backward(dtable, dout, ids, c);
    }
    fn place_rows(&self, table: FloatsMut<'_>, x: &[f32], ids: &[i32], c: usize) {
        ops::embedding::place_rows(table, x, ids, c);
    }
    fn norm(&self, out: &mut [f32], rstd: &mut [f32], x: &[f32], c: usize, eps: f32) {
        ops::norm::norm(out, rstd, x, c, eps);
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
        ops::norm::norm_backward(dx, dout, out, rstd, c, beta);
    }
    /// See [`crate::Backend::pack`].
    fn pack(&self, w: &[f32], n: usize, k: usize, format: WeightFormat) -> Option<PackedWeight> {
        ops::packed::pack(w, n, k, format)
    }
    /// False when the weight was packed by another backend.
    fn matmul_packed(&self, c: &mut [f32], a: &[f32], b: &PackedWeight, s: &MatMul) -> bool {
        ops::packed::matmul_packed(c, a, b, s)
    }
    fn matmul(&self, c: &mut [f32], a: &[f32], b: &[f32], s: &MatMul) {
        ops::matmul::matmul(c, a, b, s);
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
        ops::smear::smear(out, gate, x, w, lambda, s);
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
        ops::smear::smear_backward(dx, dw, dlambda, dout, x, gate, w, lambda, s);
    }
    fn mix(&self, out: &mut [f32], x: &[f32], y: &[f32], a: &[f32], b: &[f32]) {
        ops::mix::mix(out, x, y, a, b);
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
        ops::mix::mix_backward(d, dy, da, db, x, y, a, b);
    }
    fn backout(&self, out: &mut [f32], x: &[f32], y: &[f32], lambda: &[f32]) {
        ops::mix::backout(out, x, y, lambda);
    }
    fn backout_backward(
        &self,
        dy: &mut [f32],
        dlambda: &mut [f32],
        dout: &[f32],
        y: &[f32],
        lambda: &[f32],
    ) {
        ops::mix::backout_backward(dy, dlambda, dout, y, lambda);
    }
    fn rope_norm(&self, x: &mut [f32], rstd: &mut [f32], cos: &[f32], sin: &[f32], s: &RopeNorm) {
        ops::rope::rope_norm(x, rstd, cos, sin, s);
    }
    fn rope_norm_placed(
        &self,
        x: &mut [f32],
        rstd: &mut [f32],
        cos: &[f32],
        sin: &[f32],
        places: &[i32],
        s: &RopeNorm,
    ) {
        ops::rope::rope_norm_placed(x, rstd, cos, sin, places, s);
    }
    fn argmax(&self, out: &mut [i32], x: &[f32], v: usize) {
        ops::loss::argmax(out, x, v);
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
        ops::rope::rope_norm_backward(dx, out, rstd, cos, sin, s);
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
        ops::value_gate::value_gate(v, gate, table, ids, y, w, s);
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
        ops::value_gate::value_gate_backward(dtable, dw, dy, dv, table, ids, y, w, gate, s);
    }
    fn relu2(&self, out: &mut [f32], x: &mut [f32]) {
        ops::relu2::relu2(out, x);
    }
    fn relu2_backward(&self, d: &mut [f32], r: &[f32]) {
        ops::relu2::relu2_backward(d, r);
    }
    fn relu2_in_place(&self, x: &mut [f32]) {
        ops::relu2::relu2_in_place(x);
    }
    fn relu2_in_place_backward(&self, d: &mut [f32], a: &[f32]) {
        ops::relu2::relu2_in_place_backward(d, a);
    }
    fn square(&self, out: &mut [f32], r: &[f32]) {
        ops::relu2::square(out, r);
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
        ops::attention::attention(out, lse, q, k, v, s);
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
        ops::attention::attention_backward(dq, dk, dv, dout, out, lse, q, k, v, s);
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
        ops::attention::attention_cached(out, q, k, v, places, s);
    }
    fn head_loss(
        &self,
        losses: &mut [f32],
        grads: Option<(&mut [f32], &mut [f32])>,
        scratch: &mut [f32],
        x: &[f32],
        w: &[f32],
        targets: &[i32],
        weights: Option<&[f32]>,
        s: &HeadLoss,
    ) {
        ops::loss::head_loss(losses, grads, scratch, x, w, targets, weights, s);
    }
    fn cross_entropy(
        &self,
        losses: &mut [f32],
        logits: &mut [f32],
        targets: &[i32],
        v: usize,
        cap: f32,
    ) {
        ops::loss::cross_entropy(losses, logits, targets, v, cap);
    }
    fn softcap(&self, x: &mut [f32], cap: f32) {
        ops::loss::softcap(x, cap);
    }
    fn adamw(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamW) {
        ops::adamw::adamw(p, m, v, g, s);
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
        ops::muon::muon(p, buf, second, scratch, g, s);
    }
}
