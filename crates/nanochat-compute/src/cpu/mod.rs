//! The fast CPU backend: threads, SIMD chosen at start, the same names as in [`crate::ops`].
//!
//! | room | what |
//! |---|---|
//! | [`pool`] | threads that wait for work |
//! | [`simd`] | which instructions this machine has |
//! | [`gemm`] | matrix products: packed, blocked, f32 or bf16 multiply |
//! | `attention` | attention in blocks, forward, backward and cached; decoding on AMX |
//! | [`peak`] | what the machine could do at most |
//! | `chunks` | outputs split over threads |
//! | `head` | logits, loss and gradients on AMX, in one walk |
//! | `math` | exp, tanh, sums, in lanes |
//! | `rows`, `mixes`, `gates`, `loss`, `adamw`, `muon` | the other operations |
//!
//! Work is split into chunks whose size does not depend on the number of threads, and sums follow the
//! chunks' order: results are the same bits on any number of threads.

mod adamw;
mod attention;
pub(crate) mod chunks;
mod gates;
pub mod gemm;
#[cfg(target_arch = "x86_64")]
mod head;
mod loss;
pub(crate) mod math;
mod mixes;
mod muon;
pub mod peak;
pub mod pool;
mod rows;
pub mod simd;

use crate::ops::{
    self, AdamW, Attention, CachedAttention, HeadLoss, Layout, MatMul, Muon, PackedWeight,
    RopeNorm, Smear, ValueGate, WeightFormat,
};
use crate::profile::Profile;
use crate::reference::HostKernels;
use crate::{DType, Floats, FloatsMut};
use gemm::{Gemm, Multiply};
use pool::Pool;
use simd::{Kernels, Simd};

/// How matrix products multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// bf16 where the CPU is faster at it, else f32.
    #[default]
    Auto,
    /// f32.
    F32,
    /// Operands rounded to bf16, sums in f32; emulated where the CPU has no bf16 (slow).
    Bf16,
}

/// The fast CPU backend.
pub struct Cpu {
    pub(crate) pool: Pool,
    pub(crate) kernels: Kernels,
    pub(crate) multiply: Multiply,
    /// The packed weight of the head, kept from call to call: memory, not values.
    head: std::sync::Mutex<Option<loss::PackedHead>>,
    /// Where packed weights of generation lie.
    shelf: std::sync::Mutex<gemm::Shelf>,
    profile: Profile,
}

impl Cpu {
    /// Opens the CPU with `threads` threads (0: all that the process may use).
    pub fn open(threads: usize, precision: Precision) -> Self {
        Self::with(Kernels::detect(), threads, precision)
    }

    /// Opens the CPU with kernels of one's choice.
    pub fn with(kernels: Kernels, threads: usize, precision: Precision) -> Self {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { all() } else { threads };
        let multiply = match precision {
            Precision::Bf16 => Multiply::Bf16,
            Precision::Auto if kernels.is_bf16_faster() => Multiply::Bf16,
            Precision::Auto | Precision::F32 => Multiply::F32,
        };
        let (pool, profile) = (Pool::new(threads), Profile::default());
        let (head, shelf) = Default::default();
        Self { pool, kernels, multiply, head, shelf, profile }
    }

    /// The CPU once for each family of kernels that this machine has, multiplying in f32: what tests
    /// walk through.
    pub fn every_f32(threads: usize) -> Vec<Self> {
        let open = |k| Self::with(k, threads, Precision::F32);
        Kernels::available().into_iter().map(open).collect()
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// True when products multiply bf16.
    pub fn is_bf16(&self) -> bool {
        self.multiply == Multiply::Bf16
    }

    /// The chosen kernels: what [`peak`] measures.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Instructions in use: `avx2`.
    pub fn simd(&self) -> Simd {
        self.kernels.simd()
    }

    pub(crate) fn product(&self, c: &mut [f32], a: &[f32], b: &[f32], s: &MatMul) {
        gemm::gemm(&self.pool, &self.kernels, self.multiply, gemm_of(s), c, a, b);
    }

    /// A product in new memory; `s.beta` is not looked at.
    pub(crate) fn fresh_product(&self, a: &[f32], b: &[f32], s: &MatMul) -> Vec<f32> {
        let g = gemm_of(s).with_beta(0.0);
        gemm::gemm_fresh(&self.pool, &self.kernels, self.multiply, g, a, b)
    }

    /// A product that is symmetric: half the work.
    pub(crate) fn symmetric_product(&self, c: &mut [f32], a: &[f32], b: &[f32], s: &MatMul) {
        let g = gemm_of(s).with_symmetry();
        gemm::gemm(&self.pool, &self.kernels, self.multiply, g, c, a, b);
    }
}

fn gemm_of(s: &MatMul) -> Gemm {
    let layout = match s.layout {
        Layout::Nt => gemm::Layout::Nt,
        Layout::Nn => gemm::Layout::Nn,
        Layout::Tn => gemm::Layout::Tn,
    };
    Gemm::new(layout, s.m, s.n, s.k).with_beta(s.beta)
}

impl HostKernels for Cpu {
    fn name(&self) -> String {
        let multiply = if self.is_bf16() { "bf16" } else { "f32" };
        format!("cpu {} {multiply}, {} threads", self.kernels.simd(), self.threads())
    }

    fn profile(&self) -> Option<&Profile> {
        Some(&self.profile)
    }
    fn workspace_bytes(&self, head: &HeadLoss, operand: usize) -> usize {
        let products = gemm::workspace_bytes(self.threads(), operand);
        loss::workspace_bytes(self, head) + products
    }
    /// Tile registers multiply faster than memory delivers; other units do not.
    fn remakes_hidden(&self) -> bool {
        self.simd() == Simd::Amx && self.is_bf16()
    }
    fn cache_dtype(&self) -> DType {
        if self.is_bf16() { DType::BF16 } else { DType::F32 }
    }
    fn fill(&self, x: &mut [f32], value: f32) {
        mixes::fill(self, x, value);
    }
    fn copy(&self, out: &mut [f32], x: &[f32]) {
        mixes::copy(self, out, x);
    }
    fn add(&self, out: &mut [f32], x: &[f32]) {
        mixes::add(self, out, x);
    }
    fn embedding(&self, out: &mut [f32], table: &[f32], ids: &[i32], c: usize) {
        rows::embedding(self, out, table, ids, c);
    }
    fn place_rows(&self, table: FloatsMut<'_>, x: &[f32], ids: &[i32], c: usize) {
        rows::place_rows(self, table, x, ids, c);
    }
    fn embedding_backward(&self, dtable: &mut [f32], dout: &[f32], ids: &[i32], c: usize) {
        rows::embedding_backward(self, dtable, dout, ids, c);
    }
    fn norm(&self, out: &mut [f32], rstd: &mut [f32], x: &[f32], c: usize, eps: f32) {
        rows::norm(self, out, rstd, x, c, eps);
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
        rows::norm_backward(self, dx, dout, out, rstd, c, beta);
    }
    fn matmul(&self, c: &mut [f32], a: &[f32], b: &[f32], s: &MatMul) {
        self.product(c, a, b, s);
    }
    /// In f32 a weight takes as much memory packed as it lies: it is read there.
    fn pack(&self, w: &[f32], n: usize, k: usize, format: WeightFormat) -> Option<PackedWeight> {
        let kernels = (&self.kernels, self.multiply);
        let has_pairs = gemm::elements_of_word(&self.kernels, self.multiply) == 2;
        let is_half = matches!(self.simd(), Simd::Amx | Simd::Avx512Bf16) && self.is_bf16();
        let (format, narrow) = match format {
            WeightFormat::Auto if is_half => (WeightFormat::Bf16, gemm::Format::Bf16),
            WeightFormat::Auto | WeightFormat::F32 => return None,
            WeightFormat::Bf16 => (format, gemm::Format::Bf16),
            WeightFormat::Int8 => (format, gemm::Format::Int8),
        };
        let shelf = &mut *self.shelf.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if format == WeightFormat::Bf16 && has_pairs {
            let mut packed = gemm::PackedB::on(shelf, &self.kernels, self.multiply, n, k);
            packed.pack(&self.pool, gemm::Layout::Nt, w, k);
            return Some(PackedWeight {
                address: None,
                n,
                k,
                format,
                bytes: packed.bytes(),
                inner: Box::new(packed),
            });
        }
        let packed = gemm::NarrowB::on(shelf, &self.pool, kernels, narrow, w, (n, k));
        let (bytes, address) = (packed.bytes(), None);
        Some(PackedWeight { n, k, format, bytes, address, inner: Box::new(packed) })
    }
    fn matmul_packed(&self, c: &mut [f32], a: &[f32], b: &PackedWeight, s: &MatMul) -> bool {
        match b.inner.downcast_ref::<gemm::NarrowB>() {
            Some(b) if b.is_for(&self.kernels, self.multiply) => {
                gemm::gemm_narrow(&self.pool, gemm_of(s), c, a, b);
                return true;
            }
            _ => {}
        }
        match b.inner.downcast_ref::<gemm::PackedB>() {
            Some(b) if b.is_for(&self.kernels, self.multiply) => {
                gemm::gemm_packed(&self.pool, gemm_of(s), c, a, b);
                true
            }
            _ => false,
        }
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
        gates::smear(self, out, gate, x, w, lambda, s);
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
        gates::smear_backward(self, dx, dw, dlambda, dout, x, gate, w, lambda, s);
    }
    fn mix(&self, out: &mut [f32], x: &[f32], y: &[f32], a: &[f32], b: &[f32]) {
        mixes::mix(self, out, x, y, a[0], b[0]);
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
        mixes::mix_backward(self, d, dy, da, db, x, y, a[0], b[0]);
    }
    fn backout(&self, out: &mut [f32], x: &[f32], y: &[f32], lambda: &[f32]) {
        mixes::mix(self, out, x, y, 1.0, -lambda[0]);
    }
    fn backout_backward(
        &self,
        dy: &mut [f32],
        dlambda: &mut [f32],
        dout: &[f32],
        y: &[f32],
        lambda: &[f32],
    ) {
        mixes::backout_backward(self, dy, dlambda, dout, y, lambda[0]);
    }
    fn rope_norm(&self, x: &mut [f32], rstd: &mut [f32], cos: &[f32], sin: &[f32], s: &RopeNorm) {
        rows::rope_norm(self, x, rstd, cos, sin, s);
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
        rows::rope_norm_placed(self, x, rstd, (cos, sin), places, s);
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
        rows::rope_norm_backward(self, dx, out, rstd, cos, sin, s);
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
        gates::value_gate(self, v, gate, table, ids, y, w, s);
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
        gates::value_gate_backward(self, dtable, dw, dy, dv, table, ids, y, w, gate, s);
    }
    fn relu2(&self, out: &mut [f32], x: &mut [f32]) {
        mixes::relu2(self, out, x);
    }
    fn relu2_backward(&self, d: &mut [f32], r: &[f32]) {
        mixes::relu2_backward(self, d, r);
    }
    fn square(&self, out: &mut [f32], r: &[f32]) {
        mixes::square(self, out, r);
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
        if s.d > attention::MAX_D {
            return ops::attention::attention(out, lse, q, k, v, s);
        }
        attention::attention(self, out, lse, q, k, v, s);
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
        if s.d > attention::MAX_D {
            return ops::attention::attention_backward(dq, dk, dv, dout, out, lse, q, k, v, s);
        }
        attention::attention_backward(self, dq, dk, dv, dout, out, lse, q, k, v, s);
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
        if s.d > attention::MAX_D {
            return ops::attention::attention_cached(out, q, k, v, places, s);
        }
        attention::attention_cached(self, out, q, k, v, places, s);
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
        loss::head_loss(self, losses, grads, scratch, x, w, targets, weights, s);
    }
    fn cross_entropy(
        &self,
        losses: &mut [f32],
        logits: &mut [f32],
        targets: &[i32],
        v: usize,
        cap: f32,
    ) {
        loss::cross_entropy(self, losses, logits, targets, v, cap);
    }
    fn softcap(&self, x: &mut [f32], cap: f32) {
        loss::softcap(self, x, cap);
    }
    fn adamw(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamW) {
        adamw::adamw(self, p, m, v, g, s);
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
        muon::muon(self, p, buf, second, scratch, g, s);
    }
}
