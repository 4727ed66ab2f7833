//! [`Backend`] for a GPU: what a call must be, then its launches.

use super::driver::{Arg, Grid};
use super::launch::{THREADS, args, blocks, int, suffix, walk, warps};
use super::{Cuda, Work};
use crate::checks::{self, expect, expect_places, expect_positions, lens};
use crate::error::expect_len;
use crate::ops::{
    AdamW, Ahead, Attention, Backend, CachedAttention, HeadLoss, Layout, MatMul, Muon, MuonMatrix,
    PackedWeight, RopeNorm, Smear, StepAttention, StepEmbed, StepLinear, StepStyle, ValueGate,
    WeightFormat,
};
use crate::{DType, Error, Result, Tensor};

/// In place of an operand that is not there.
pub(super) const ABSENT: Arg = Arg::Ptr(0);
/// Rows whose gates one block sums up.
const GATE_ROWS: usize = 256;

/// Kernel and grid of a rotation: a few lanes for a head where it divides well, else a warp.
fn rope_launch(
    op: &str,
    s: &RopeNorm,
    heads: usize,
    dtype: DType,
    ts: &[&Tensor],
) -> (String, Grid) {
    let group = s.d / 8;
    let divides = s.d.is_multiple_of(8) && group.is_power_of_two() && group <= 32;
    if divides && suffix(dtype, &[s.d / 2], ts).ends_with("x4") {
        let grid = blocks((heads * group).div_ceil(THREADS as usize), THREADS, 0);
        return (format!("{op}_grouped_{}", dtype.name()), grid);
    }
    (format!("{op}_{}", dtype.name()), warps(heads))
}

/// A weight as a GPU reads it: (n, k) in bf16.
struct DeviceWeight(Tensor);

/// The weight, if it was packed for a GPU.
pub(super) fn packed(w: &PackedWeight) -> Option<&Tensor> {
    w.inner.downcast_ref().map(|DeviceWeight(w)| w)
}

#[allow(clippy::too_many_arguments)]
impl Backend for Cuda {
    fn name(&self) -> String {
        format!("{} {}", self.driver.name(), self.dtype.name())
    }

    fn profile_start(&self) {
        *self.marks.borrow_mut() = Some(Vec::new());
    }

    fn profile_stop(&self) -> Vec<(&'static str, f64)> {
        let profile = crate::profile::Profile::default();
        profile.start();
        for (op, from, to) in self.marks.borrow_mut().take().unwrap_or_default() {
            // A mark that cannot be read is left out of the table.
            if let Ok(seconds) = self.driver.seconds(from, to) {
                profile.add(op, seconds);
            }
        }
        profile.stop()
    }

    /// Weights rounded for a product, the largest being the head's; positions sorted by id, a row of
    /// counts for each 1,024; attention's sums; code that is loaded when it is first run.
    fn workspace_bytes(&self, head: &HeadLoss, _operand: usize) -> usize {
        let rounded = 2 * 2 * head.v * head.c;
        let sorted = 4 * (head.n.div_ceil(1024) + 2) * head.v + 8 * head.n;
        rounded + sorted + 4 * head.n * head.c.div_ceil(64) + (512 << 20)
    }

    fn own_memory(&self) -> Option<(usize, usize)> {
        // A device that does not answer has nothing to give.
        Some(self.driver.memory().unwrap_or((0, 0)))
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn step_style(&self) -> StepStyle {
        match self.dtype {
            DType::BF16 => StepStyle {
                activations: DType::BF16,
                loss_rows: 8192,
                keeps_square: true,
                muon_batch: 16,
            },
            _ => StepStyle::default(),
        }
    }

    fn cache_dtype(&self) -> DType {
        self.dtype
    }

    fn alloc(&self, len: usize, dtype: DType) -> Result<Tensor> {
        self.alloc_on(len, dtype)
    }

    fn fill(&self, x: &Tensor, value: f32) -> Result<()> {
        const OP: &str = "fill";
        self.check(OP, &[x], &[])?;
        let dtype = self.one_type(OP, &[x])?;
        self.timed(OP, || {
            if value.to_bits() == 0 {
                let (_, at) = x.device().expect("checked");
                return self.driver.zero(at, x.bytes());
            }
            let kernel = format!("fill_{}", suffix(dtype, &[x.len()], &[x]));
            self.launch(&kernel, walk(x.len()), args![x, x.len(), value])
        })
    }

    fn copy(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        const OP: &str = "copy";
        lens!(OP; x = out.len());
        self.check(OP, &[out], &[x])?;
        self.one_type(OP, &[out, x])?;
        let (Some((_, to)), Some((_, from))) = (out.device(), x.device()) else { return Ok(()) };
        self.timed(OP, || self.driver.copy(to, from, out.bytes()))
    }

    fn add(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        const OP: &str = "add";
        lens!(OP; x = out.len());
        self.check(OP, &[out], &[x])?;
        let dtype = self.one_type(OP, &[out, x])?;
        let kernel = format!("add_{}", suffix(dtype, &[x.len()], &[out, x]));
        self.timed(OP, || self.launch(&kernel, walk(x.len()), args![out, x, x.len()]))
    }

    fn embedding(&self, out: &Tensor, table: &Tensor, ids: &Tensor, c: usize) -> Result<()> {
        const OP: &str = "embedding";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; out = ids.len() * c);
        self.check(OP, &[out], &[table, ids])?;
        self.all_are(OP, DType::I32, &[ids])?;
        let dtype = self.one_type(OP, &[out])?;
        let suffix = suffix(dtype, &[c], &[out, table]);
        let kernel = match (table.dtype(), dtype) {
            (DType::F32, _) => format!("embedding_{suffix}"),
            (DType::BF16, DType::BF16) => format!("gather_{suffix}"),
            (have, _) => {
                return Err(Error::DType { op: OP, have: have.name(), need: dtype.name() });
            }
        };
        let (rows, vocab) = (ids.len(), int(table.len() / c));
        let args = args![out, table, ids, rows, vocab, int(c)];
        self.timed(OP, || self.launch(&kernel, warps(rows), args))
    }

    fn place_rows(&self, table: &Tensor, x: &Tensor, ids: &Tensor, c: usize) -> Result<()> {
        const OP: &str = "place_rows";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; x = ids.len() * c);
        self.check(OP, &[table], &[x, ids])?;
        self.all_are(OP, DType::I32, &[ids])?;
        let to = self.one_type(OP, &[table])?;
        let dtype = self.one_type(OP, &[x])?;
        let kernel = format!("place_{}_{}", to.name(), suffix(dtype, &[c], &[table, x]));
        let (rows, vocab) = (ids.len(), int(table.len() / c));
        let args = args![table, x, ids, rows, vocab, int(c)];
        self.timed(OP, || self.launch(&kernel, warps(rows), args))
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
        self.check(OP, &[dtable], &[dout, ids])?;
        self.all_are(OP, DType::I32, &[ids])?;
        self.all_are(OP, DType::F32, &[dtable])?;
        self.one_type(OP, &[dout])?;
        self.timed(OP, || self.add_rows(dtable, dout, None, ids, (c, c)))
    }

    fn norm(&self, out: &Tensor, rstd: &Tensor, x: &Tensor, c: usize, eps: f32) -> Result<()> {
        const OP: &str = "norm";
        expect(OP, c > 0, "rows have no channels")?;
        lens!(OP; x = out.len(), out = rstd.len() * c);
        self.check(OP, &[out, rstd], &[x])?;
        self.all_are(OP, DType::F32, &[rstd])?;
        let dtype = self.one_type(OP, &[out, x])?;
        let kernel = format!("norm_{}", suffix(dtype, &[c], &[out, x]));
        let args = args![out, rstd, x, rstd.len(), int(c), eps];
        self.timed(OP, || self.launch(&kernel, warps(rstd.len()), args))
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
        self.check(OP, &[dx], &[dout, out, rstd])?;
        self.all_are(OP, DType::F32, &[rstd])?;
        let dtype = self.one_type(OP, &[dx, dout, out])?;
        let kernel = format!("norm_backward_{}", suffix(dtype, &[c], &[dx, dout, out]));
        let args = args![dx, dout, out, rstd, rstd.len(), int(c), beta];
        self.timed(OP, || self.launch(&kernel, warps(rstd.len()), args))
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
        self.check(OP, &[], &[w])?;
        self.all_are(OP, DType::F32, &[w])?;
        match format {
            WeightFormat::F32 => return Ok(None),
            WeightFormat::Auto if self.dtype == DType::F32 => return Ok(None),
            WeightFormat::Int8 => {
                let detail = "weights of int8 are for the CPU: take bf16 on a GPU".into();
                return Err(Error::Invalid { op: OP, detail });
            }
            WeightFormat::Auto | WeightFormat::Bf16 => {}
        }
        let narrow = self.alloc_on(n * k, DType::BF16)?;
        self.narrow(&narrow, w)?;
        // Products ask for weights before the kernel before them has ended.
        self.driver.synchronize()?;
        let (bytes, format) = (narrow.bytes(), WeightFormat::Bf16);
        let (address, inner) = (Some(narrow.address()), Box::new(DeviceWeight(narrow)));
        Ok(Some(PackedWeight { n, k, bytes, format, address, inner }))
    }

    fn matmul_packed(&self, c: &Tensor, a: &Tensor, b: &PackedWeight, s: &MatMul) -> Result<()> {
        const OP: &str = "matmul_packed";
        expect(OP, s.m > 0 && (s.n, s.k) == (b.n, b.k), "the packed weight has another shape")?;
        expect(OP, s.layout == Layout::Nt, "packed weights are for linear layers forward")?;
        lens!(OP; c = s.m * s.n, a = s.m * s.k);
        let Some(w) = packed(b) else {
            return expect(OP, false, "the weight was packed by another backend");
        };
        self.check(OP, &[c], &[a, w])?;
        self.timed(OP, || self.linear(c, a, w, s))
    }

    fn matmul(&self, c: &Tensor, a: &Tensor, b: &Tensor, s: &MatMul) -> Result<()> {
        const OP: &str = "matmul";
        expect(OP, s.m > 0 && s.n > 0 && s.k > 0, "a matrix is empty")?;
        lens!(OP; c = s.m * s.n, a = s.m * s.k, b = s.n * s.k);
        self.check(OP, &[c], &[a, b])?;
        self.one_type(OP, &[c])?;
        self.one_type(OP, &[a])?;
        self.one_type(OP, &[b])?;
        self.timed(s.layout.op(), || self.product(c, a, b, s))
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
        self.check(OP, &[out, gate], &[x, w, lambda])?;
        self.all_are(OP, DType::F32, &[gate, w, lambda])?;
        let dtype = self.one_type(OP, &[out, x])?;
        let kernel = format!("smear_{}", suffix(dtype, &[s.c], &[out, x]));
        let rows = s.b * s.t;
        let args = args![out, gate, x, w, lambda, rows, int(s.t), int(s.c), int(s.channels)];
        self.timed(OP, || self.launch(&kernel, warps(rows), args))
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
        self.check(OP, &[dx, dw, dlambda], &[dout, x, gate, w, lambda])?;
        self.all_are(OP, DType::F32, &[dw, dlambda, gate, w, lambda])?;
        let dtype = self.one_type(OP, &[dx, dout, x])?;
        let rows = s.b * s.t;
        let gates = self.work(Work::Gates, 2 * rows, DType::F32)?;
        let (z, sg) = (gates.slice(0..rows), gates.slice(rows..2 * rows));
        self.timed(OP, || {
            let kernel = format!("smear_backward_{}", suffix(dtype, &[s.c], &[dx, dout, x]));
            let (t, c, channels) = (int(s.t), int(s.c), int(s.channels));
            let args = args![dx, &z, &sg, dout, x, gate, w, lambda, rows, t, c, channels];
            self.launch(&kernel, warps(rows), args)?;
            self.gate_grad(dw, &z, x, (rows, s.c), (1, s.channels))?;
            let grid = walk(rows);
            let n = grid.blocks[0] as usize;
            let partial = self.partial(n, 1)?;
            self.launch("sum_blocks", grid, args![&partial, &sg, rows])?;
            self.add_sums(dlambda, (&partial, 0), n, 1)
        })
    }

    fn mix(&self, out: &Tensor, x: &Tensor, y: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
        const OP: &str = "mix";
        lens!(OP; x = out.len(), y = out.len(), a = 1, b = 1);
        self.check(OP, &[out], &[x, y, a, b])?;
        self.all_are(OP, DType::F32, &[a, b])?;
        let dtype = self.one_type(OP, &[out, x, y])?;
        let kernel = format!("mix_{}", suffix(dtype, &[out.len()], &[out, x, y]));
        let args = args![out, x, y, a, b, out.len()];
        self.timed(OP, || self.launch(&kernel, walk(out.len()), args))
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
        self.check(OP, &[d, dy, da, db], &[x, y, a, b])?;
        self.all_are(OP, DType::F32, &[da, db, a, b])?;
        let dtype = self.one_type(OP, &[d, dy, x, y])?;
        self.timed(OP, || {
            let kernel = format!("mix_backward_{}", suffix(dtype, &[d.len()], &[d, dy, x, y]));
            let grid = walk(d.len());
            let n = grid.blocks[0] as usize;
            let partial = self.partial(n, 2)?;
            self.launch(&kernel, grid, args![d, dy, &partial, x, y, a, b, d.len()])?;
            self.add_sums(da, (&partial, 0), n, 2)?;
            self.add_sums(db, (&partial, 1), n, 2)
        })
    }

    fn backout(&self, out: &Tensor, x: &Tensor, y: &Tensor, lambda: &Tensor) -> Result<()> {
        const OP: &str = "backout";
        lens!(OP; x = out.len(), y = out.len(), lambda = 1);
        self.check(OP, &[out], &[x, y, lambda])?;
        self.all_are(OP, DType::F32, &[lambda])?;
        let dtype = self.one_type(OP, &[out, x, y])?;
        let kernel = format!("backout_{}", suffix(dtype, &[out.len()], &[out, x, y]));
        let args = args![out, x, y, lambda, out.len()];
        self.timed(OP, || self.launch(&kernel, walk(out.len()), args))
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
        self.check(OP, &[dy, dlambda], &[dout, y, lambda])?;
        self.all_are(OP, DType::F32, &[dlambda, lambda])?;
        let dtype = self.one_type(OP, &[dy, dout, y])?;
        self.timed(OP, || {
            let kernel = format!("backout_backward_{}", suffix(dtype, &[y.len()], &[dy, dout, y]));
            let grid = walk(y.len());
            let n = grid.blocks[0] as usize;
            let partial = self.partial(n, 1)?;
            self.launch(&kernel, grid, args![dy, &partial, dout, y, lambda, y.len()])?;
            self.add_sums(dlambda, (&partial, 0), n, 1)
        })
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
        self.check(OP, &[x, rstd], &[cos, sin])?;
        self.all_are(OP, DType::F32, &[rstd, cos, sin])?;
        expect_positions(OP, cos.len(), s, rstd.len())?;
        let dtype = self.one_type(OP, &[x])?;
        let (heads, t, h, d, start) = (rstd.len(), int(s.t), int(s.h), int(s.d), int(s.start));
        let args = args![x, rstd, cos, sin, heads, t, h, d, start, ABSENT, 0, s.scale, s.eps];
        let (kernel, grid) = rope_launch("rope_norm", s, heads, dtype, &[x, cos, sin]);
        self.timed(OP, || self.launch(&kernel, grid, args))
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
        self.check(OP, &[x, rstd], &[cos, sin, places])?;
        self.all_are(OP, DType::F32, &[rstd, cos, sin])?;
        self.all_are(OP, DType::I32, &[places])?;
        let stride = int(expect_places(OP, places.len(), s, rstd.len())?);
        let dtype = self.one_type(OP, &[x])?;
        let (heads, t, h, d, start) = (rstd.len(), int(s.t), int(s.h), int(s.d), int(s.start));
        let args = args![x, rstd, cos, sin, heads, t, h, d, start, places, stride, s.scale, s.eps];
        let (kernel, grid) = rope_launch("rope_norm", s, heads, dtype, &[x, cos, sin]);
        self.timed(OP, || self.launch(&kernel, grid, args))
    }

    fn argmax(&self, out: &Tensor, x: &Tensor, v: usize) -> Result<()> {
        const OP: &str = "argmax";
        // A place goes through the lanes as a float, exact up to 2^24.
        expect(OP, v > 0 && v < 1 << 24, "rows are empty, or too long")?;
        lens!(OP; x = out.len() * v);
        self.check(OP, &[out], &[x])?;
        self.all_are(OP, DType::I32, &[out])?;
        self.all_are(OP, DType::F32, &[x])?;
        self.timed(OP, || self.argmax_in_parts(out, x, v))
    }

    fn step_rows(&self) -> usize {
        super::step::FEW
    }

    fn step_embed(&self, o: &StepEmbed<'_>) -> Result<()> {
        self.embed_step(o)
    }

    fn step_linear(&self, o: &StepLinear<'_>) -> Result<()> {
        self.linear_step(o)
    }

    fn step_attention(&self, o: &StepAttention<'_>) -> Result<()> {
        self.attention_step(o)
    }

    fn replay(&self, key: &[u64], run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.replayed(key, run)
    }

    fn replay_ahead(
        &self,
        key: &[u64],
        ahead: &Ahead<'_>,
        run: &mut dyn FnMut() -> Result<()>,
    ) -> Result<usize> {
        if self.replayed_ahead(key, ahead, run)? {
            return Ok(ahead.steps);
        }
        if let Some(found) = ahead.found {
            // Numbers of 32 bits are copied, whatever they are.
            let found = found.slice(0..ahead.ids.len()).cast(DType::F32);
            self.copy(&found, &ahead.ids.cast(DType::F32))?;
        }
        Ok(1)
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
        self.check(OP, &[dx], &[out, rstd, cos, sin])?;
        self.all_are(OP, DType::F32, &[rstd, cos, sin])?;
        expect_positions(OP, cos.len(), s, rstd.len())?;
        let dtype = self.one_type(OP, &[dx, out])?;
        let (heads, t, h, d, start) = (rstd.len(), int(s.t), int(s.h), int(s.d), int(s.start));
        let args = args![dx, out, rstd, cos, sin, heads, t, h, d, start, s.scale];
        let (kernel, grid) =
            rope_launch("rope_norm_backward", s, heads, dtype, &[dx, out, cos, sin]);
        self.timed(OP, || self.launch(&kernel, grid, args))
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
        self.check(OP, &[v, gate], &[table, ids, y, w])?;
        self.all_are(OP, DType::F32, &[gate, table, w])?;
        self.all_are(OP, DType::I32, &[ids])?;
        let dtype = self.one_type(OP, &[v, y])?;
        let kernel = format!("value_gate_{}", suffix(dtype, &[s.d], &[v, table]));
        let (rows, vocab) = (ids.len(), int(table.len() / (s.hkv * s.d)));
        let (c, hkv, d, channels) = (int(s.c), int(s.hkv), int(s.d), int(s.channels));
        let args = args![v, gate, table, ids, y, w, rows, vocab, c, hkv, d, channels, s.scale];
        self.timed(OP, || self.launch(&kernel, warps(rows * s.hkv), args))
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
        self.check(OP, &[dtable, dw, dy], &[dv, table, ids, y, w, gate])?;
        self.all_are(OP, DType::F32, &[dtable, dw, table, w, gate])?;
        self.all_are(OP, DType::I32, &[ids])?;
        let dtype = self.one_type(OP, &[dy, dv, y])?;
        let rows = ids.len();
        let z = self.work(Work::Gates, rows * s.hkv, DType::F32)?;
        self.timed(OP, || {
            let kernel = format!("value_gate_backward_{}", suffix(dtype, &[s.d], &[dv, table]));
            let vocab = int(table.len() / (s.hkv * s.d));
            let (c, hkv, d, channels) = (int(s.c), int(s.hkv), int(s.d), int(s.channels));
            let args =
                args![dy, &z, dv, table, ids, w, gate, rows, vocab, c, hkv, d, channels, s.scale];
            self.launch(&kernel, warps(rows), args)?;
            self.gate_grad(dw, &z, y, (rows, s.c), (s.hkv, s.channels))?;
            self.add_rows(dtable, dv, Some(gate), ids, (s.hkv * s.d, s.d))
        })
    }

    fn relu2(&self, out: &Tensor, x: &Tensor) -> Result<()> {
        const OP: &str = "relu2";
        lens!(OP; x = out.len());
        self.check(OP, &[out, x], &[])?;
        let dtype = self.one_type(OP, &[out, x])?;
        let kernel = format!("relu2_{}", suffix(dtype, &[x.len()], &[out, x]));
        self.timed(OP, || self.launch(&kernel, walk(x.len()), args![out, x, x.len()]))
    }

    fn relu2_backward(&self, d: &Tensor, r: &Tensor) -> Result<()> {
        const OP: &str = "relu2_backward";
        lens!(OP; r = d.len());
        self.check(OP, &[d], &[r])?;
        let dtype = self.one_type(OP, &[d, r])?;
        let kernel = format!("relu2_backward_{}", suffix(dtype, &[d.len()], &[d, r]));
        self.timed(OP, || self.launch(&kernel, walk(d.len()), args![d, r, d.len()]))
    }

    fn relu2_in_place(&self, x: &Tensor) -> Result<()> {
        const OP: &str = "relu2_in_place";
        self.check(OP, &[x], &[])?;
        let dtype = self.one_type(OP, &[x])?;
        let kernel = format!("relu2_in_place_{}", suffix(dtype, &[x.len()], &[x]));
        self.timed(OP, || self.launch(&kernel, walk(x.len()), args![x, x.len()]))
    }

    fn relu2_in_place_backward(&self, d: &Tensor, a: &Tensor) -> Result<()> {
        const OP: &str = "relu2_in_place_backward";
        lens!(OP; a = d.len());
        self.check(OP, &[d], &[a])?;
        let dtype = self.one_type(OP, &[d, a])?;
        let kernel = format!("relu2_in_place_backward_{}", suffix(dtype, &[d.len()], &[d, a]));
        self.timed(OP, || self.launch(&kernel, walk(d.len()), args![d, a, d.len()]))
    }

    fn square(&self, out: &Tensor, r: &Tensor) -> Result<()> {
        const OP: &str = "square";
        lens!(OP; r = out.len());
        self.check(OP, &[out], &[r])?;
        let dtype = self.one_type(OP, &[out, r])?;
        let kernel = format!("square_{}", suffix(dtype, &[r.len()], &[out, r]));
        self.timed(OP, || self.launch(&kernel, walk(r.len()), args![out, r, r.len()]))
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
        self.check(OP, &[out, lse], &[q, k, v])?;
        self.all_are(OP, DType::F32, &[lse])?;
        let dtype = self.one_type(OP, &[out, q, k, v])?;
        self.timed(OP, || self.attention_forward(dtype, out, lse, (q, k, v), s))
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
        self.check(OP, &[dq, dk, dv], &[dout, out, lse, q, k, v])?;
        self.all_are(OP, DType::F32, &[lse])?;
        let dtype = self.one_type(OP, &[dq, dk, dv, dout, out, q, k, v])?;
        self.timed(OP, || {
            self.attention_gradients(dtype, (dq, dk, dv), (dout, out, lse), (q, k, v), s)
        })
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
        self.check(OP, &[out], &[q, k, v, places])?;
        self.all_are(OP, DType::I32, &[places])?;
        self.one_type(OP, &[out, q])?;
        self.one_type(OP, &[k, v])?;
        self.timed(OP, || self.attention_on_pages(out, q, (k, v), places, s))
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
        self.check(OP, &[losses, logits], &[targets])?;
        self.all_are(OP, DType::F32, &[losses])?;
        self.all_are(OP, DType::I32, &[targets])?;
        self.one_type(OP, &[logits])?;
        self.timed(OP, || self.loss_rows(losses, logits, targets, (v, cap), None))
    }

    fn softcap(&self, x: &Tensor, cap: f32) -> Result<()> {
        const OP: &str = "softcap";
        self.check(OP, &[x], &[])?;
        let dtype = self.one_type(OP, &[x])?;
        let kernel = format!("softcap_{}", suffix(dtype, &[x.len()], &[x]));
        self.timed(OP, || self.launch(&kernel, walk(x.len()), args![x, cap, x.len()]))
    }

    fn adamw(&self, p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, s: &AdamW) -> Result<()> {
        const OP: &str = "adamw";
        lens!(OP; m = p.len(), v = p.len(), g = p.len());
        self.check(OP, &[p, m, v], &[g])?;
        self.all_are(OP, DType::F32, &[p, m, v, g])?;
        let c1 = 1.0 - f64::from(s.beta1).powf(s.t as f64);
        let c2 = (1.0 - f64::from(s.beta2).powf(s.t as f64)) as f32;
        let step = (f64::from(s.lr) / c1) as f32;
        let (keep, take1, take2) = (1.0 - s.lr * s.wd, 1.0 - s.beta1, 1.0 - s.beta2);
        let args = args![p, m, v, g, p.len(), keep, take1, take2, step, c2, s.eps];
        self.timed(OP, || self.launch("adamw", walk(p.len()), args))
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
        self.check(OP, &[p, buf, second, scratch], &[g])?;
        self.all_are(OP, DType::F32, &[p, buf, second, scratch, g])?;
        let [p, buf, second, g] = [p, buf, second, g].map(Tensor::clone);
        self.timed(OP, || self.muon_steps(&[MuonMatrix { p, buf, second, g }], scratch, s))
    }

    fn muon_batch(&self, all: &[MuonMatrix], scratch: &Tensor, s: &Muon) -> Result<()> {
        const OP: &str = "muon";
        expect(OP, s.m > 0 && s.n > 0, "the matrix is empty")?;
        lens!(OP; scratch = all.len() * s.scratch_len());
        self.all_are(OP, DType::F32, &[scratch])?;
        for MuonMatrix { p, buf, second, g } in all {
            lens!(OP;
                p = s.m * s.n, buf = s.m * s.n, g = s.m * s.n, second = s.second_len()
            );
            self.check(OP, &[p, buf, second, scratch], &[g])?;
            self.all_are(OP, DType::F32, &[p, buf, second, g])?;
        }
        if all.is_empty() {
            return Ok(());
        }
        self.timed(OP, || self.muon_steps(all, scratch, s))
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
        lens!(OP; losses = s.n, targets = s.n, x = s.n * s.c);
        // A longer scratch holds more rows at a time.
        if scratch.len() < s.scratch_len() {
            expect_len(OP, "scratch", scratch.len(), s.scratch_len())?;
        }
        if w.len() < s.v * s.c {
            return Err(Error::Shape { op: OP, what: "w", have: w.len(), need: s.v * s.c });
        }
        self.all_are(OP, DType::F32, &[losses, w])?;
        self.all_are(OP, DType::I32, &[targets])?;
        // Where there are no weights another tensor stands in their place.
        let factors = weights.unwrap_or(x);
        if let Some(weights) = weights {
            expect_len(OP, "weights", weights.len(), s.n)?;
            self.all_are(OP, DType::F32, &[weights])?;
        }
        self.one_type(OP, &[x])?;
        self.one_type(OP, &[scratch])?;
        match grads {
            None => self.check(OP, &[losses, scratch], &[x, w, targets, factors])?,
            Some((dx, dw)) => {
                lens!(OP; dx = s.n * s.c, dw = w.len());
                self.check(OP, &[losses, dx, dw, scratch], &[x, w, targets, factors])?;
                self.one_type(OP, &[dx, x])?;
                self.all_are(OP, DType::F32, &[dw])?;
            }
        }
        self.head(losses, grads, scratch, x, w, targets, weights, s)
    }
}

impl Cuda {
    /// `dw[h, i] += sum_n z[n, h] x[n, i]` for the first `channels` of `c` channels.
    fn gate_grad(
        &self,
        dw: &Tensor,
        z: &Tensor,
        x: &Tensor,
        (rows, c): (usize, usize),
        (heads, channels): (usize, usize),
    ) -> Result<()> {
        let n = rows.div_ceil(GATE_ROWS);
        let columns = heads * channels;
        let partial = self.partial(n, columns)?;
        let kernel = format!("gate_grad_{}", x.dtype().name());
        let (c, heads, channels, each) = (int(c), int(heads), int(channels), int(GATE_ROWS));
        let args = args![&partial, z, x, rows, c, heads, channels, each];
        self.launch(&kernel, blocks(n, 128, 0), args)?;
        self.add_sums(dw, (&partial, 0), n, columns)
    }
}
