//! All the mathematics on one page: trait [`Backend`], one method an operation.
//!
//! Formulas, shapes and sources stand at the plain references, one file an operation; a method here
//! has the same name and the same operands, as device tensors instead of slices. Every backend obeys
//! the same conformance suite (`tests/conformance.rs`).
//!
//! Gradient contract: gradients of parameters are **added to** (`+=`); gradients of activations are
//! overwritten, except where `beta`, `dy` or the method's formula says that it adds.
//!
//! Letters: B batch, T time, N = B T rows, C channels, H query heads, Hkv key/value heads, D channels
//! of a head, V vocabulary.

pub mod adamw;
pub mod attention;
pub mod embedding;
pub mod loss;
pub mod matmul;
pub mod mix;
pub mod muon;
pub mod norm;
pub mod packed;
pub mod relu2;
pub mod rope;
pub mod smear;
pub mod step;
pub mod value_gate;

pub use adamw::AdamW;
pub use attention::{Attention, CachedAttention, PAGE};
pub use loss::{HeadLoss, IGNORE, LOSS_ROWS};
pub use matmul::{Layout, MatMul};
pub use muon::Muon;
pub use norm::NORM_EPS;
pub use packed::{PackedWeight, WeightFormat};
pub use rope::{RopeNorm, rope_tables};
pub use smear::Smear;
pub use step::{After, StepAttention, StepEmbed, StepGate, StepLinear, StepMix, StepOut, Weight};
pub use value_gate::ValueGate;

use crate::{DType, Result, Tensor};

/// How a device likes a step laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepStyle {
    /// What activations and their gradients are stored in: f32 or bf16.
    pub activations: DType,
    /// Rows whose logits are held at once.
    pub loss_rows: usize,
    /// Keeps r squared in the place of r = max(x, 0): one pass less over the widest stream.
    pub keeps_square: bool,
    /// Matrices of one shape that Muon takes together at most.
    pub muon_batch: usize,
}

/// What one step of Muon is about: see [`muon::muon`].
#[derive(Clone, Debug)]
pub struct MuonMatrix {
    /// Parameter.
    pub p: Tensor,
    /// Momentum.
    pub buf: Tensor,
    /// Variance buffer.
    pub second: Tensor,
    /// Gradient.
    pub g: Tensor,
}

impl Default for StepStyle {
    fn default() -> Self {
        Self { activations: DType::F32, loss_rows: LOSS_ROWS, keeps_square: false, muon_batch: 1 }
    }
}

/// Steps that [`Backend::replay_ahead`] may do at once.
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a> {
    /// At most so many, at least 1; keys and values have pages for all of them, the rotary tables reach.
    pub steps: usize,
    /// (rows), i32: what the first one feeds.
    pub ids: &'a Tensor,
    /// (steps, rows), i32: where found ids go to.
    pub found: Option<&'a Tensor>,
}

/// A device that runs the operations. Object-safe: hold it as `&dyn Backend`.
///
/// Errors of every operation: [`crate::Error::Shape`] and [`crate::Error::DType`] for operands that
/// do not fit, [`crate::Error::Overlap`] when an output shares memory with another operand,
/// [`crate::Error::Invalid`] for an id outside its table and for sizes that no kernel can take. What
/// is refused writes nothing.
#[allow(clippy::too_many_arguments)]
pub trait Backend {
    /// Device in words: `cpu avx2 f32, 2 threads`.
    fn name(&self) -> String;
    /// Begins to note the seconds of each operation.
    fn profile_start(&self) {}
    /// Ends it: seconds by operation, the largest first; empty where a backend does not note them.
    fn profile_stop(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
    /// Bytes that training with this head, and products whose second operand has at most `operand`
    /// elements, hold beside the tensors: packed weights, and what each thread works in.
    fn workspace_bytes(&self, head: &HeadLoss, operand: usize) -> usize {
        let _ = (head, operand);
        0
    }
    /// Bytes free and in all of the device's own memory; none where tensors lie in the host's.
    fn own_memory(&self) -> Option<(usize, usize)> {
        None
    }
    /// Waits for the work that was begun: what a clock of the host needs.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    /// Runs `run`, or what it queued when it was run with the same key before: where launches cost more
    /// than what they launch, they are recorded once and replayed.
    ///
    /// The key must tell apart everything that `run` passes to operations but the numbers in tensors:
    /// shapes, and the addresses of tensors ([`Tensor::address`]). `run` must neither read nor write
    /// tensors from the host.
    fn replay(&self, key: &[u64], run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = key;
        run()
    }
    /// [`Backend::replay`] of a decode step of one token a row, `run`, that begins with [`Backend::step_embed`] of
    /// `ahead.ids` and ends with the logits, or with [`Backend::argmax`] of them, whose results take the place
    /// of the ids. Where a device can, it does several: each feeds the ids that the one before found, one
    /// position further on than the places say. Returns how many were done, 1 to `ahead.steps`; `ahead.found`
    /// then begins with the ids that each of them found, of all rows.
    ///
    /// Only logits, ids, found ids, the last embeddings, keys and values are to be looked at afterwards: what
    /// else the operations make may be anywhere.
    fn replay_ahead(
        &self,
        key: &[u64],
        ahead: &Ahead<'_>,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<usize> {
        self.replay(key, run)?;
        if let Some(found) = ahead.found {
            let found = found.slice(0..ahead.ids.len()).cast(DType::F32);
            self.copy(&found, &ahead.ids.cast(DType::F32))?;
        }
        Ok(1)
    }
    /// How a step is best laid out for this device.
    fn step_style(&self) -> StepStyle {
        StepStyle::default()
    }
    /// What a cache of keys and values is best stored in: the narrowest type that loses nothing, since
    /// attention rounds them to it before it multiplies them.
    fn cache_dtype(&self) -> DType {
        DType::F32
    }
    /// True where a product costs less than keeping what it makes: training then makes the hidden rows
    /// of the MLP again in the backward.
    fn remakes_hidden(&self) -> bool {
        false
    }
    /// New zeroed memory on the device.
    fn alloc(&self, len: usize, dtype: DType) -> Result<Tensor>;
    /// New memory on the device that holds `values`.
    fn place_f32(&self, values: &[f32]) -> Result<Tensor> {
        let x = self.alloc(values.len(), DType::F32)?;
        x.write_f32(values)?;
        Ok(x)
    }
    /// New memory on the device that holds `values`.
    fn place_i32(&self, values: &[i32]) -> Result<Tensor> {
        let x = self.alloc(values.len(), DType::I32)?;
        x.write_i32(values)?;
        Ok(x)
    }
    /// `x[i] = value`.
    fn fill(&self, x: &Tensor, value: f32) -> Result<()>;
    /// `out[i] = x[i]`, both of f32 or both of bf16.
    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()>;
    /// See [`mix::add`].
    fn add(&self, out: &Tensor, x: &Tensor) -> Result<()>;
    /// See [`embedding::embedding`].
    fn embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor, c: usize) -> Result<()>;
    /// See [`embedding::place_rows`].
    fn place_rows(&self, table: &Tensor, x: &Tensor, ids: &Tensor, c: usize) -> Result<()>;
    /// See [`embedding::embedding_backward`].
    fn embedding_backward(
        &self,
        dtable: &Tensor,
        dout: &Tensor,
        ids: &Tensor,
        c: usize,
    ) -> Result<()>;
    /// See [`norm::norm`].
    fn norm(&self, out: &Tensor, rstd: &Tensor, x: &Tensor, c: usize, eps: f32) -> Result<()>;
    /// See [`norm::norm_backward`].
    fn norm_backward(
        &self,
        dx: &Tensor,
        dout: &Tensor,
        out: &Tensor,
        rstd: &Tensor,
        c: usize,
        beta: f32,
    ) -> Result<()>;
    /// See [`matmul::matmul`].
    fn matmul(&self, c: &Tensor, a: &Tensor, b: &Tensor, s: &MatMul) -> Result<()>;
    /// A weight (n, k) made ready for [`Backend::matmul_packed`]; none where [`Backend::matmul`] is to
    /// read it where it lies: f32, and [`WeightFormat::Auto`] where that is as fast. Later changes of
    /// the weight do not reach what was made of it. Source of the formats: [`packed`].
    fn pack(
        &self,
        w: &Tensor,
        n: usize,
        k: usize,
        format: WeightFormat,
    ) -> Result<Option<PackedWeight>>;
    /// [`Backend::matmul`] of [`Layout::Nt`] with `b` packed by this backend.
    ///
    /// In bf16 it has the bits of `matmul` with the weight rounded to bf16 (where products round their
    /// operands, with the weight itself); in int8, `C = beta C + scale[n] * sum_k A[m,k] q[n,k]`. A
    /// row's bits depend neither on the other rows nor on the number of threads.
    fn matmul_packed(&self, c: &Tensor, a: &Tensor, b: &PackedWeight, s: &MatMul) -> Result<()>;
    /// See [`smear::smear`].
    fn smear(
        &self,
        out: &Tensor,
        gate: &Tensor,
        x: &Tensor,
        w: &Tensor,
        lambda: &Tensor,
        s: &Smear,
    ) -> Result<()>;
    /// See [`smear::smear_backward`].
    fn smear_backward(
        &self,
        dx: &Tensor,
        dw: &Tensor,
        dlambda: &Tensor,
        dout: &Tensor,
        x: &Tensor,
        gate: &Tensor,
        w: &Tensor,
        lambda: &Tensor,
        s: &Smear,
    ) -> Result<()>;
    /// See [`mix::mix`].
    fn mix(&self, out: &Tensor, x: &Tensor, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()>;
    /// See [`mix::mix_backward`].
    fn mix_backward(
        &self,
        d: &Tensor,
        dy: &Tensor,
        da: &Tensor,
        db: &Tensor,
        x: &Tensor,
        y: &Tensor,
        a: &Tensor,
        b: &Tensor,
    ) -> Result<()>;
    /// See [`mix::backout`].
    fn backout(&self, out: &Tensor, x: &Tensor, y: &Tensor, lambda: &Tensor) -> Result<()>;
    /// See [`mix::backout_backward`].
    fn backout_backward(
        &self,
        dy: &Tensor,
        dlambda: &Tensor,
        dout: &Tensor,
        y: &Tensor,
        lambda: &Tensor,
    ) -> Result<()>;
    /// See [`rope::rope_norm`].
    fn rope_norm(
        &self,
        x: &Tensor,
        rstd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        s: &RopeNorm,
    ) -> Result<()>;
    /// See [`rope::rope_norm_placed`]. Positions are not read back from a device to be checked: the
    /// tables must reach them.
    fn rope_norm_placed(
        &self,
        x: &Tensor,
        rstd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        places: &Tensor,
        s: &RopeNorm,
    ) -> Result<()>;
    /// See [`rope::rope_norm_backward`].
    fn rope_norm_backward(
        &self,
        dx: &Tensor,
        out: &Tensor,
        rstd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        s: &RopeNorm,
    ) -> Result<()>;
    /// See [`value_gate::value_gate`].
    fn value_gate(
        &self,
        v: &Tensor,
        gate: &Tensor,
        table: &Tensor,
        ids: &Tensor,
        y: &Tensor,
        w: &Tensor,
        s: &ValueGate,
    ) -> Result<()>;
    /// See [`value_gate::value_gate_backward`].
    fn value_gate_backward(
        &self,
        dtable: &Tensor,
        dw: &Tensor,
        dy: &Tensor,
        dv: &Tensor,
        table: &Tensor,
        ids: &Tensor,
        y: &Tensor,
        w: &Tensor,
        gate: &Tensor,
        s: &ValueGate,
    ) -> Result<()>;
    /// See [`relu2::relu2`].
    fn relu2(&self, out: &Tensor, x: &Tensor) -> Result<()>;
    /// See [`relu2::relu2_backward`].
    fn relu2_backward(&self, d: &Tensor, r: &Tensor) -> Result<()>;
    /// See [`relu2::relu2_in_place`].
    fn relu2_in_place(&self, x: &Tensor) -> Result<()>;
    /// See [`relu2::relu2_in_place_backward`].
    fn relu2_in_place_backward(&self, d: &Tensor, a: &Tensor) -> Result<()>;
    /// See [`relu2::square`].
    fn square(&self, out: &Tensor, r: &Tensor) -> Result<()>;
    /// See [`attention::attention`].
    fn attention(
        &self,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        s: &Attention,
    ) -> Result<()>;
    /// See [`attention::attention_backward`].
    fn attention_backward(
        &self,
        dq: &Tensor,
        dk: &Tensor,
        dv: &Tensor,
        dout: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        s: &Attention,
    ) -> Result<()>;
    /// See [`attention::attention_cached`]; `k` and `v` have one type. Errors:
    /// [`crate::Error::Invalid`] for a place that names a page that is not there.
    fn attention_cached(
        &self,
        out: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        places: &Tensor,
        s: &CachedAttention,
    ) -> Result<()>;
    /// See [`loss::head_loss`], every weight 1; `grads` is (dx, dw). Errors: [`crate::Error::Invalid`]
    /// for a target that is neither a token nor [`IGNORE`].
    fn head_loss(
        &self,
        losses: &Tensor,
        grads: Option<(&Tensor, &Tensor)>,
        scratch: &Tensor,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        s: &HeadLoss,
    ) -> Result<()> {
        self.head_loss_weighted(losses, grads, scratch, x, w, targets, None, s)
    }
    /// See [`loss::head_loss`]; `grads` is (dx, dw). Errors: as [`Backend::head_loss`].
    #[allow(clippy::too_many_arguments)]
    fn head_loss_weighted(
        &self,
        losses: &Tensor,
        grads: Option<(&Tensor, &Tensor)>,
        scratch: &Tensor,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        weights: Option<&Tensor>,
        s: &HeadLoss,
    ) -> Result<()>;
    /// See [`loss::cross_entropy`]. Errors: [`crate::Error::Invalid`] for a target that is no token.
    fn cross_entropy(
        &self,
        losses: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        v: usize,
        cap: f32,
    ) -> Result<()>;
    /// Rows of a decode step for which the fused operations of [`step`] are the fast ones; 0: for none.
    fn step_rows(&self) -> usize {
        0
    }
    /// See [`step::step_embed`].
    fn step_embed(&self, o: &StepEmbed<'_>) -> Result<()> {
        step::step_embed(self, o)
    }
    /// See [`step::step_linear`].
    fn step_linear(&self, o: &StepLinear<'_>) -> Result<()> {
        step::step_linear(self, o)
    }
    /// See [`step::step_attention`].
    fn step_attention(&self, o: &StepAttention<'_>) -> Result<()> {
        step::step_attention(self, o)
    }
    /// See [`loss::argmax`].
    fn argmax(&self, out: &Tensor, x: &Tensor, v: usize) -> Result<()>;
    /// See [`loss::softcap`].
    fn softcap(&self, x: &Tensor, cap: f32) -> Result<()>;
    /// See [`adamw::adamw`].
    fn adamw(&self, p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, s: &AdamW) -> Result<()>;
    /// See [`muon::muon`].
    fn muon(
        &self,
        p: &Tensor,
        buf: &Tensor,
        second: &Tensor,
        scratch: &Tensor,
        g: &Tensor,
        s: &Muon,
    ) -> Result<()>;
    /// [`Backend::muon`] of several matrices of one shape, which share nothing; `scratch` holds
    /// [`Muon::scratch_len`] for each.
    fn muon_batch(&self, all: &[MuonMatrix], scratch: &Tensor, s: &Muon) -> Result<()> {
        let own = scratch.slice(0..s.scratch_len().min(scratch.len()));
        for MuonMatrix { p, buf, second, g } in all {
            self.muon(p, buf, second, &own, g, s)?;
        }
        Ok(())
    }
}
