//! [`Backend`] for every set of host kernels: checks shapes, borrows slices, calls the kernel.

use std::time::Instant;

use crate::checks::{self, expect, expect_places, expect_positions, lens};
use crate::error::expect_len;
use crate::ops::{
    AdamW, Attention, Backend, CachedAttention, HeadLoss, IGNORE, Layout, MatMul, Muon, PAGE,
    PackedWeight, RopeNorm, Smear, ValueGate, WeightFormat,
};
use crate::profile::Profile;
use crate::reference::HostKernels;
use crate::tensor::{View, ViewMut, borrow};
use crate::{DType, Error, Result, Tensor};

/// Every id is a row of a table of `rows` rows.
pub(crate) fn check_ids(op: &'static str, ids: &[i32], rows: usize) -> Result<()> {
    match ids.iter().position(|&id| id < 0 || id as usize >= rows) {
        None => Ok(()),
        Some(at) => Err(Error::Invalid {
            op,
            detail: format!("id {} at {at} is outside the table of {rows} rows", ids[at]),
        }),
    }
}

/// Every target is a token, or does not count.
fn check_targets(op: &'static str, targets: &[i32], v: usize) -> Result<()> {
    match targets.iter().find(|&&t| t != IGNORE && (t < 0 || t as usize >= v)) {
        None => Ok(()),
        Some(t) => Err(Error::Invalid {
            op,
            detail: format!("target {t} is not one of {v} tokens, nor {IGNORE}"),
        }),
    }
}

/// The operands' slices of f32, under their own names.
macro_rules! f32s {
    ($op:expr; $($x:ident),*) => { $(let $x = $x.f32($op)?;)* };
}

/// Runs a kernel, and notes how long it took when somebody wants to know.
fn timed<K: HostKernels + ?Sized>(kernels: &K, op: &'static str, run: impl FnOnce()) {
    let Some(profile) = kernels.profile().filter(|p| p.is_on()) else { return run() };
    let start = Instant::now();
    run();
    profile.add(op, start.elapsed().as_secs_f64());
}

#[allow(clippy::too_many_arguments)]
impl<K: HostKernels> Backend for K {
    fn name(&self) -> String {
        HostKernels::name(self)
    }

    fn workspace_bytes(&self, head: &HeadLoss, operand: usize) -> usize {
        HostKernels::workspace_bytes(self, head, operand)
    }

    fn cache_dtype(&self) -> DType {
        HostKernels::cache_dtype(self)
    }

    fn remakes_hidden(&self) -> bool {
        HostKernels::remakes_hidden(self)
    }

    fn alloc(&self, len: usize, dtype: DType) -> Result<Tensor> {
        Tensor::zeros(len, dtype)
    }

    fn profile_start(&self) {
        if let Some(profile) = self.profile() {
            profile.start();
        }
    }

    fn profile_stop(&self) -> Vec<(&'static str, f64)> {
        self.profile().map(Profile::stop).unwrap_or_default()
    }

    fn fill(&self, x: &Tensor, value: f32) -> Result<()> {
        const OP: &str = "fill";
        let ([x], []) = borrow(OP, [x], [])?;
        f32s!(OP; x);
        timed(self, OP, || HostKernels::fill(self, x, value));
        Ok(())
    }

    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        const OP: &str = "copy";
        lens!(OP; x = out.len());
        let ([out], [x]) = borrow(OP, [out], [x])?;
        let (out, x) = match (out, x) {
            (ViewMut::Bf16(out), View::Bf16(x)) => {
                timed(self, OP, || out.copy_from_slice(x));
                return Ok(());
            }
            others => others,
        };
        f32s!(OP; out, x);
        timed(self, OP, || HostKernels::copy(self, out, x));
        Ok(())
    }

    fn add(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        const OP: &str = "add";
        lens!(OP; x = out.len());
        let ([out], [x]) = borrow(OP, [out], [x])?;
        f32s!(OP; out, x);
        timed(self, OP, || HostKernels::add(self, out, x));
        Ok(())
    }

    fn embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor, c: usize) -> Result<()> {
        const OP: &str = "embedding";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; out = ids.len() * c);
        let ([out], [table, ids]) = borrow(OP, [out], [table, ids])?;
        let ids = ids.i32(OP)?;
        f32s!(OP; table);
        check_ids(OP, ids, table.len() / c)?;
        f32s!(OP; out);
        timed(self, OP, || HostKernels::embedding(self, out, table, ids, c));
        Ok(())
    }

    fn place_rows(&self, table: &Tensor, x: &Tensor, ids: &Tensor, c: usize) -> Result<()> {
        const OP: &str = "place_rows";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; x = ids.len() * c);
        let ([table], [x, ids]) = borrow(OP, [table], [x, ids])?;
        let ids = ids.i32(OP)?;
        let table = table.floats(OP)?;
        check_ids(OP, ids, table.len() / c)?;
        f32s!(OP; x);
        timed(self, OP, || HostKernels::place_rows(self, table, x, ids, c));
        Ok(())
    }

    fn embedding_backward(
        &self,
        dtable: &Tensor,
        dout: &Tensor,
        ids: &Tensor,
        c: usize,
    ) -> Result<()> {
        const OP: &str = "embedding_backward";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; dout = ids.len() * c);
        let ([dtable], [dout, ids]) = borrow(OP, [dtable], [dout, ids])?;
        let ids = ids.i32(OP)?;
        f32s!(OP; dtable);
        check_ids(OP, ids, dtable.len() / c)?;
        f32s!(OP; dout);
        timed(self, OP, || HostKernels::embedding_backward(self, dtable, dout, ids, c));
        Ok(())
    }

    fn norm(&self, out: &Tensor, rstd: &Tensor, x: &Tensor, c: usize, eps: f32) -> Result<()> {
        const OP: &str = "norm";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; x = out.len(), out = rstd.len() * c);
        let ([out, rstd], [x]) = borrow(OP, [out, rstd], [x])?;
        f32s!(OP; out, rstd, x);
        timed(self, OP, || HostKernels::norm(self, out, rstd, x, c, eps));
        Ok(())
    }

    fn norm_backward(
        &self,
        dx: &Tensor,
        dout: &Tensor,
        out: &Tensor,
        rstd: &Tensor,
        c: usize,
        beta: f32,
    ) -> Result<()> {
        const OP: &str = "norm_backward";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; dout = dx.len(), out = dx.len(), dx = rstd.len() * c);
        let ([dx], [dout, out, rstd]) = borrow(OP, [dx], [dout, out, rstd])?;
        f32s!(OP; dx, dout, out, rstd);
        timed(self, OP, || HostKernels::norm_backward(self, dx, dout, out, rstd, c, beta));
        Ok(())
    }

    fn pack(
        &self,
        w: &Tensor,
        n: usize,
        k: usize,
        format: WeightFormat,
    ) -> Result<Option<PackedWeight>> {
        const OP: &str = "pack";
        expect(OP, n > 0 && k > 0, "the weight is empty")?;
        lens!(OP; w = n * k);
        let ([], [w]) = borrow(OP, [], [w])?;
        f32s!(OP; w);
        Ok(HostKernels::pack(self, w, n, k, format))
    }

    fn matmul_packed(&self, c: &Tensor, a: &Tensor, b: &PackedWeight, s: &MatMul) -> Result<()> {
        const OP: &str = "matmul_packed";
        expect(OP, s.m > 0 && (s.n, s.k) == (b.n, b.k), "the packed weight has another shape")?;
        expect(OP, s.layout == Layout::Nt, "packed weights are for linear layers forward")?;
        lens!(OP; c = s.m * s.n, a = s.m * s.k);
        let ([c], [a]) = borrow(OP, [c], [a])?;
        f32s!(OP; c, a);
        let mut packed_here = true;
        timed(self, OP, || packed_here = HostKernels::matmul_packed(self, c, a, b, s));
        expect(OP, packed_here, "the weight was packed by another backend")
    }

    fn matmul(&self, c: &Tensor, a: &Tensor, b: &Tensor, s: &MatMul) -> Result<()> {
        const OP: &str = "matmul";
        expect(OP, s.m > 0 && s.n > 0 && s.k > 0, "a matrix is empty")?;
        lens!(OP; c = s.m * s.n, a = s.m * s.k, b = s.n * s.k);
        let ([c], [a, b]) = borrow(OP, [c], [a, b])?;
        f32s!(OP; c, a, b);
        timed(self, s.layout.op(), || HostKernels::matmul(self, c, a, b, s));
        Ok(())
    }

    fn smear(
        &self,
        out: &Tensor,
        gate: &Tensor,
        x: &Tensor,
        w: &Tensor,
        lambda: &Tensor,
        s: &Smear,
    ) -> Result<()> {
        const OP: &str = "smear";
        checks::smear(OP, [out, gate, x, w, lambda], s)?;
        let ([out, gate], [x, w, lambda]) = borrow(OP, [out, gate], [x, w, lambda])?;
        f32s!(OP; out, gate, x, w, lambda);
        timed(self, OP, || HostKernels::smear(self, out, gate, x, w, lambda, s));
        Ok(())
    }

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
    ) -> Result<()> {
        const OP: &str = "smear_backward";
        checks::smear_backward(OP, [dx, dw, dlambda, dout, x, gate, w, lambda], s)?;
        let ([dx, dw, dlambda], [dout, x, gate, w, lambda]) =
            borrow(OP, [dx, dw, dlambda], [dout, x, gate, w, lambda])?;
        f32s!(OP; dx, dw, dlambda, dout, x, gate, w, lambda);
        timed(self, OP, || {
            HostKernels::smear_backward(self, dx, dw, dlambda, dout, x, gate, w, lambda, s)
        });
        Ok(())
    }

    fn mix(&self, out: &Tensor, x: &Tensor, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        const OP: &str = "mix";
        lens!(OP; x = out.len(), y = out.len(), a = 1, b = 1);
        let ([out], [x, y, a, b]) = borrow(OP, [out], [x, y, a, b])?;
        f32s!(OP; out, x, y, a, b);
        timed(self, OP, || HostKernels::mix(self, out, x, y, a, b));
        Ok(())
    }

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
    ) -> Result<()> {
        const OP: &str = "mix_backward";
        lens!(OP; x = d.len(), y = d.len(), dy = d.len(), da = 1, db = 1, a = 1, b = 1);
        let ([d, dy, da, db], [x, y, a, b]) = borrow(OP, [d, dy, da, db], [x, y, a, b])?;
        f32s!(OP; d, dy, da, db, x, y, a, b);
        timed(self, OP, || HostKernels::mix_backward(self, d, dy, da, db, x, y, a, b));
        Ok(())
    }

    fn backout(&self, out: &Tensor, x: &Tensor, y: &Tensor, lambda: &Tensor) -> Result<()> {
        const OP: &str = "backout";
        lens!(OP; x = out.len(), y = out.len(), lambda = 1);
        let ([out], [x, y, lambda]) = borrow(OP, [out], [x, y, lambda])?;
        f32s!(OP; out, x, y, lambda);
        timed(self, OP, || HostKernels::backout(self, out, x, y, lambda));
        Ok(())
    }

    fn backout_backward(
        &self,
        dy: &Tensor,
        dlambda: &Tensor,
        dout: &Tensor,
        y: &Tensor,
        lambda: &Tensor,
    ) -> Result<()> {
        const OP: &str = "backout_backward";
        lens!(OP; dout = dy.len(), y = dy.len(), lambda = 1, dlambda = 1);
        let ([dy, dlambda], [dout, y, lambda]) = borrow(OP, [dy, dlambda], [dout, y, lambda])?;
        f32s!(OP; dy, dlambda, dout, y, lambda);
        timed(self, OP, || HostKernels::backout_backward(self, dy, dlambda, dout, y, lambda));
        Ok(())
    }

    fn rope_norm(
        &self,
        x: &Tensor,
        rstd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        s: &RopeNorm,
    ) -> Result<()> {
        const OP: &str = "rope_norm";
        lens!(OP; x = rstd.len() * s.d, cos = sin.len());
        let ([x, rstd], [cos, sin]) = borrow(OP, [x, rstd], [cos, sin])?;
        let (cos, rstd) = (cos.f32(OP)?, rstd.f32(OP)?);
        expect_positions(OP, cos.len(), s, rstd.len())?;
        f32s!(OP; x, sin);
        timed(self, OP, || HostKernels::rope_norm(self, x, rstd, cos, sin, s));
        Ok(())
    }

    fn rope_norm_placed(
        &self,
        x: &Tensor,
        rstd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        places: &Tensor,
        s: &RopeNorm,
    ) -> Result<()> {
        const OP: &str = "rope_norm_placed";
        lens!(OP; x = rstd.len() * s.d, cos = sin.len());
        let ([x, rstd], [cos, sin, places]) = borrow(OP, [x, rstd], [cos, sin, places])?;
        let (cos, rstd, places) = (cos.f32(OP)?, rstd.f32(OP)?, places.i32(OP)?);
        let stride = expect_places(OP, places.len(), s, rstd.len())?;
        for place in places.iter().step_by(stride) {
            let reach = cos.len() / (s.d / 2);
            let inside = |start: usize| s.start + start + s.t <= reach;
            if !usize::try_from(*place).is_ok_and(inside) {
                let detail = format!("a row begins at position {place}, the tables reach {reach}");
                return Err(Error::Invalid { op: OP, detail });
            }
        }
        f32s!(OP; x, sin);
        timed(self, OP, || HostKernels::rope_norm_placed(self, x, rstd, cos, sin, places, s));
        Ok(())
    }

    fn argmax(&self, out: &Tensor, x: &Tensor, v: usize) -> Result<()> {
        const OP: &str = "argmax";
        expect(OP, v > 0, "rows are empty")?;
        lens!(OP; x = out.len() * v);
        let ([out], [x]) = borrow(OP, [out], [x])?;
        let out = out.i32(OP)?;
        f32s!(OP; x);
        timed(self, OP, || HostKernels::argmax(self, out, x, v));
        Ok(())
    }

    fn rope_norm_backward(
        &self,
        dx: &Tensor,
        out: &Tensor,
        rstd: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        s: &RopeNorm,
    ) -> Result<()> {
        const OP: &str = "rope_norm_backward";
        lens!(OP; dx = rstd.len() * s.d, out = dx.len(), cos = sin.len());
        let ([dx], [out, rstd, cos, sin]) = borrow(OP, [dx], [out, rstd, cos, sin])?;
        let (cos, rstd) = (cos.f32(OP)?, rstd.f32(OP)?);
        expect_positions(OP, cos.len(), s, rstd.len())?;
        f32s!(OP; dx, out, sin);
        timed(self, OP, || HostKernels::rope_norm_backward(self, dx, out, rstd, cos, sin, s));
        Ok(())
    }

    fn value_gate(
        &self,
        v: &Tensor,
        gate: &Tensor,
        table: &Tensor,
        ids: &Tensor,
        y: &Tensor,
        w: &Tensor,
        s: &ValueGate,
    ) -> Result<()> {
        const OP: &str = "value_gate";
        checks::value_gate(OP, [v, gate, ids, y, w], s)?;
        let ([v, gate], [table, ids, y, w]) = borrow(OP, [v, gate], [table, ids, y, w])?;
        let ids = ids.i32(OP)?;
        f32s!(OP; v, gate, table);
        check_ids(OP, ids, table.len() / (s.hkv * s.d))?;
        f32s!(OP; y, w);
        timed(self, OP, || HostKernels::value_gate(self, v, gate, table, ids, y, w, s));
        Ok(())
    }

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
    ) -> Result<()> {
        const OP: &str = "value_gate_backward";
        checks::value_gate_backward(OP, [dtable, dw, dy, dv, table, ids, y, w, gate], s)?;
        let ([dtable, dw, dy], [dv, table, ids, y, w, gate]) =
            borrow(OP, [dtable, dw, dy], [dv, table, ids, y, w, gate])?;
        let ids = ids.i32(OP)?;
        f32s!(OP; dtable, dw, dy, dv, table);
        check_ids(OP, ids, table.len() / (s.hkv * s.d))?;
        f32s!(OP; y, w, gate);
        timed(self, OP, || {
            HostKernels::value_gate_backward(self, dtable, dw, dy, dv, table, ids, y, w, gate, s)
        });
        Ok(())
    }

    fn relu2(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        const OP: &str = "relu2";
        lens!(OP; x = out.len());
        let ([out, x], []) = borrow(OP, [out, x], [])?;
        f32s!(OP; out, x);
        timed(self, OP, || HostKernels::relu2(self, out, x));
        Ok(())
    }

    fn relu2_backward(&self, d: &Tensor, r: &Tensor) -> Result<()> {
        const OP: &str = "relu2_backward";
        lens!(OP; r = d.len());
        let ([d], [r]) = borrow(OP, [d], [r])?;
        f32s!(OP; d, r);
        timed(self, OP, || HostKernels::relu2_backward(self, d, r));
        Ok(())
    }

    fn relu2_in_place(&self, x: &Tensor) -> Result<()> {
        const OP: &str = "relu2_in_place";
        let ([x], []) = borrow(OP, [x], [])?;
        f32s!(OP; x);
        timed(self, OP, || HostKernels::relu2_in_place(self, x));
        Ok(())
    }

    fn relu2_in_place_backward(&self, d: &Tensor, a: &Tensor) -> Result<()> {
        const OP: &str = "relu2_in_place_backward";
        lens!(OP; a = d.len());
        let ([d], [a]) = borrow(OP, [d], [a])?;
        f32s!(OP; d, a);
        timed(self, OP, || HostKernels::relu2_in_place_backward(self, d, a));
        Ok(())
    }

    fn square(&self, out: &Tensor, r: &Tensor) -> Result<()> {
        const OP: &str = "square";
        lens!(OP; r = out.len());
        let ([out], [r]) = borrow(OP, [out], [r])?;
        f32s!(OP; out, r);
        timed(self, OP, || HostKernels::square(self, out, r));
        Ok(())
    }

    fn attention(
        &self,
        out: &Tensor,
        lse: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        s: &Attention,
    ) -> Result<()> {
        const OP: &str = "attention";
        checks::attention(OP, [out, lse, q, k, v], s)?;
        let ([out, lse], [q, k, v]) = borrow(OP, [out, lse], [q, k, v])?;
        f32s!(OP; out, lse, q, k, v);
        timed(self, OP, || HostKernels::attention(self, out, lse, q, k, v, s));
        Ok(())
    }

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
    ) -> Result<()> {
        const OP: &str = "attention_backward";
        checks::attention_backward(OP, [dq, dk, dv, dout, out, lse, q, k, v], s)?;
        let ([dq, dk, dv], [dout, out, lse, q, k, v]) =
            borrow(OP, [dq, dk, dv], [dout, out, lse, q, k, v])?;
        f32s!(OP; dq, dk, dv, dout, out, lse, q, k, v);
        timed(self, OP, || {
            HostKernels::attention_backward(self, dq, dk, dv, dout, out, lse, q, k, v, s)
        });
        Ok(())
    }

    fn attention_cached(
        &self,
        out: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        places: &Tensor,
        s: &CachedAttention,
    ) -> Result<()> {
        const OP: &str = "attention_cached";
        checks::attention_cached(OP, [out, q, k, v, places], s)?;
        let ([out], [q, k, v, places]) = borrow(OP, [out], [q, k, v, places])?;
        let places = places.i32(OP)?;
        f32s!(OP; out, q);
        let (k, v) = (k.floats(OP)?, v.floats(OP)?);
        if k.dtype() != v.dtype() {
            let (have, need) = (v.dtype().name(), k.dtype().name());
            return Err(Error::DType { op: OP, have, need });
        }
        check_places(OP, places, k.len(), s)?;
        timed(self, OP, || HostKernels::attention_cached(self, out, q, k, v, places, s));
        Ok(())
    }

    fn cross_entropy(
        &self,
        losses: &Tensor,
        logits: &Tensor,
        targets: &Tensor,
        v: usize,
        cap: f32,
    ) -> Result<()> {
        const OP: &str = "cross_entropy";
        expect(OP, v > 0, "rows have no tokens")?;
        lens!(OP; targets = losses.len(), logits = losses.len() * v);
        let ([losses, logits], [targets]) = borrow(OP, [losses, logits], [targets])?;
        let targets = targets.i32(OP)?;
        check_targets(OP, targets, v)?;
        f32s!(OP; losses, logits);
        timed(self, OP, || HostKernels::cross_entropy(self, losses, logits, targets, v, cap));
        Ok(())
    }

    fn softcap(&self, x: &Tensor, cap: f32) -> Result<()> {
        const OP: &str = "softcap";
        let ([x], []) = borrow(OP, [x], [])?;
        f32s!(OP; x);
        timed(self, OP, || HostKernels::softcap(self, x, cap));
        Ok(())
    }

    fn adamw(&self, p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, s: &AdamW) -> Result<()> {
        const OP: &str = "adamw";
        lens!(OP; m = p.len(), v = p.len(), g = p.len());
        let ([p, m, v], [g]) = borrow(OP, [p, m, v], [g])?;
        f32s!(OP; p, m, v, g);
        timed(self, OP, || HostKernels::adamw(self, p, m, v, g, s));
        Ok(())
    }

    fn muon(
        &self,
        p: &Tensor,
        buf: &Tensor,
        second: &Tensor,
        scratch: &Tensor,
        g: &Tensor,
        s: &Muon,
    ) -> Result<()> {
        const OP: &str = "muon";
        checks::muon(OP, [p, buf, second, scratch, g], s)?;
        let ([p, buf, second, scratch], [g]) = borrow(OP, [p, buf, second, scratch], [g])?;
        f32s!(OP; p, buf, second, scratch, g);
        timed(self, OP, || HostKernels::muon(self, p, buf, second, scratch, g, s));
        Ok(())
    }

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
    ) -> Result<()> {
        const OP: &str = "head_loss";
        expect(OP, s.c > 0 && s.v > 0, "the weight is empty")?;
        lens!(OP; losses = s.n, targets = s.n, x = s.n * s.c, scratch = s.scratch_len());
        if let Some(weights) = weights {
            expect_len(OP, "weights", weights.len(), s.n)?;
        }
        // Where there are no weights another tensor stands in their place.
        let reads = [x, w, targets, weights.unwrap_or(x)];
        let check = |[_, w, targets, _]: &[View<'_>; 4]| -> Result<()> {
            let (View::F32(w), View::I32(targets)) = (w, targets) else {
                return Err(Error::DType { op: OP, have: "other", need: "f32 w, i32 targets" });
            };
            if w.len() < s.v * s.c {
                return Err(Error::Shape { op: OP, what: "w", have: w.len(), need: s.v * s.c });
            }
            check_targets(OP, targets, s.v)
        };
        let run = |losses: ViewMut<'_>,
                   grads: Option<(ViewMut<'_>, ViewMut<'_>)>,
                   scratch: ViewMut<'_>,
                   reads: [View<'_>; 4]|
         -> Result<()> {
            check(&reads)?;
            let [x, w, targets, factors] = reads;
            let factors = weights.is_some().then(|| factors.f32(OP)).transpose()?;
            let grads = match grads {
                None => None,
                Some((dx, dw)) => Some((dx.f32(OP)?, dw.f32(OP)?)),
            };
            let (losses, scratch) = (losses.f32(OP)?, scratch.f32(OP)?);
            let (x, w, targets) = (x.f32(OP)?, w.f32(OP)?, targets.i32(OP)?);
            timed(self, OP, || {
                HostKernels::head_loss(self, losses, grads, scratch, x, w, targets, factors, s);
            });
            Ok(())
        };
        match grads {
            None => {
                let ([losses, scratch], reads) = borrow(OP, [losses, scratch], reads)?;
                run(losses, None, scratch, reads)
            }
            Some((dx, dw)) => {
                expect_len(OP, "dx", dx.len(), s.n * s.c)?;
                expect_len(OP, "dw", dw.len(), w.len())?;
                let writes = [losses, dx, dw, scratch];
                let ([losses, dx, dw, scratch], reads) = borrow(OP, writes, reads)?;
                run(losses, Some((dx, dw)), scratch, reads)
            }
        }
    }
}

/// Whole pages, and every page that a query sees is one of them.
pub(crate) fn check_places(
    op: &'static str,
    places: &[i32],
    keys: usize,
    s: &CachedAttention,
) -> Result<()> {
    let page = PAGE * s.hkv * s.d;
    expect(op, page > 0 && keys.is_multiple_of(page.max(1)), "the cache is not whole pages")?;
    for (r, place) in places.chunks_exact(s.place_len()).enumerate() {
        let bad = |detail: String| Err(Error::Invalid { op, detail });
        let Ok(start) = usize::try_from(place[0]) else {
            return bad(format!("row {r} begins at position {}", place[0]));
        };
        if start + s.t > s.pages * PAGE {
            let (end, most) = (start + s.t, s.pages * PAGE);
            return bad(format!("position {end} is past the {most} that a place of row {r} names"));
        }
        let there = |p: &i32| usize::try_from(*p).is_ok_and(|p| (p + 1) * page <= keys);
        if let Some(p) = place[1..][s.seen(start)].iter().find(|p| !there(p)) {
            return bad(format!("row {r} sees page {p} of {}", keys / page));
        }
    }
    Ok(())
}
