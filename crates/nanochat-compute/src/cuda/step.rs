//! Fused operations of a decode step of few rows: see [`crate::ops::step`].

use super::backend::ABSENT;
use super::driver::{Arg, Grid};
use super::launch::{args, int};
use super::{Cuda, Work};
use crate::checks::{self, expect, lens};
use crate::ops::{After, PAGE, StepAttention, StepEmbed, StepLinear, StepMix, Weight, step};
use crate::{DType, Error, Result, Tensor};

/// Rows that kernels of few rows take at most.
pub(super) const FEW: usize = 8;
/// Warps of a block: GEMV_WARPS in gemv.cuh.
const WARPS: usize = 4;
/// Rows of weights from which on a warp takes four of them.
const WIDE: usize = 16384;
/// Warps that a product is shared out to if it has fewer rows: 12 for each multiprocessor of a large GPU.
const ENOUGH_WARPS: usize = 12 * 132;
/// Shared memory that every GPU gives a block.
const MOST_SHARED: usize = 96 << 10;
/// Blocks that attention of a step is shared out to, if there are pages enough.
const ATTENTION_BLOCKS: usize = 264;

/// The kernels' least number of rows that has room for `m`.
fn room(m: usize) -> usize {
    m.next_power_of_two()
}

/// A grid whose blocks begin while those of the kernel before still run.
fn early(blocks: [usize; 3], threads: u32, shared: usize) -> Grid {
    Grid { blocks: blocks.map(|n| n as u32), threads, shared: shared as u32, early: true }
}

/// Warps that share a row of n rows of k weights: powers of two, with 256 weights each at least.
fn parts(n: usize, k: usize) -> usize {
    let mut parts = 1;
    while parts < WARPS && n * parts < ENOUGH_WARPS && k >= 512 * parts {
        parts *= 2;
    }
    parts
}

/// Warps and shared memory of a block that makes `groups` of 8 rows of weights by tiles.cuh, as TileSpace
/// lays it out; none where that is more than there is.
fn tiles(m: usize, k: usize, groups: usize) -> Option<(u32, usize)> {
    let each = 12 / groups;
    let warps = k.div_ceil(32).div_ceil(each).next_power_of_two().clamp(4, 16);
    let row = (2 * k).next_multiple_of(128) + 64;
    let shared = 2 * m * row + 4 * (FEW * 16 + warps * groups * 64);
    (shared <= MOST_SHARED).then_some((32 * warps as u32, shared))
}

impl Cuda {
    /// A linear layer forward of few rows, `types` those of its rows and of what it makes.
    pub(super) fn linear_of_few(
        &self,
        (c, a, w): (&Tensor, &Tensor, &Tensor),
        types: &str,
        (m, n, k): (usize, usize, usize),
        beta: f32,
    ) -> Result<()> {
        // Up to four rows the tiles wait longer than they save: 5.4 us against 4.4 for 1 x 3072 by 768.
        let tiles = if m > 4 { tiles(m, k, 1) } else { None };
        if let ("f32_f32", Some((threads, shared))) = (types, tiles) {
            let args = args![c, a, w, int(m), int(n), int(k), beta];
            return self.launch(
                "linear_tiles_f32",
                early([n.div_ceil(8), 1, 1], threads, shared),
                args,
            );
        }
        let parts = parts(n, k);
        let kernel = format!("linear{}_{types}", room(m));
        let args = args![c, a, w, int(m), int(n), int(k), beta, int(parts)];
        self.launch(&kernel, early([(n * parts).div_ceil(WARPS), 1, 1], 128, 128), args)
    }

    /// [`crate::Backend::step_embed`].
    pub(super) fn embed_step(&self, o: &StepEmbed<'_>) -> Result<()> {
        const OP: &str = "step_embed";
        let (m, c) = (o.ids.len(), o.c);
        expect(OP, c > 0, "rows have no channels")?;
        let StepEmbed { x0, last, table, ids, .. } = *o;
        lens!(OP; x0 = m * c, last = m * c);
        self.check(OP, &[x0, last], &[table, ids])?;
        self.all_are(OP, DType::F32, &[x0, table])?;
        self.all_are(OP, DType::I32, &[ids])?;
        let dtype = self.one_type(OP, &[last])?;
        let (mut gate, mut factor, mut reads) = (ABSENT, ABSENT, 0);
        if let Some((w, lambda, channels)) = o.smear {
            expect(OP, channels <= c, "smear reads more channels than there are")?;
            lens!(OP; w = channels, lambda = 1);
            self.check(OP, &[x0, last], &[w, lambda])?;
            self.all_are(OP, DType::F32, &[w, lambda])?;
            (gate, factor, reads) = (w.into(), lambda.into(), channels);
        }
        let (vocab, reads) = (int(table.len() / c), int(reads));
        let args = args![x0, last, table, ids, gate, factor, vocab, int(c), reads, o.eps];
        if self.is_building() {
            self.build_embed(o);
            return Ok(());
        }
        let kernel = format!("step_embed_{}", dtype.name());
        self.timed(OP, || self.launch(&kernel, early([m, 1, 1], 256, 128), args))
    }

    /// [`crate::Backend::step_linear`]; shapes that the kernels do not take by the plain chain.
    pub(super) fn linear_step(&self, o: &StepLinear<'_>) -> Result<()> {
        const OP: &str = "step_linear";
        let (m, k) = (o.m, o.k);
        let gated = o.gate.is_some();
        if m == 0 || m > FEW || o.outs.is_empty() || o.outs.len() > 3 {
            return step::step_linear(self, o);
        }
        expect(OP, k > 0, "rows have no channels")?;
        expect(OP, !gated || o.after == After::Nothing, "a gated result is the last")?;
        expect(OP, !gated || o.outs.len() == 3, "a gate is for the values: the third result")?;
        let x = o.x;
        lens!(OP; x = m * k);
        let mut writes: Vec<&Tensor> = o.outs.iter().map(|part| part.out).collect();
        let mut reads: Vec<&Tensor> = vec![x];
        let (mut to, mut w, mut n) = ([ABSENT; 3], [ABSENT; 3], [0; 3]);
        let mut weights = Vec::new();
        for (i, part) in o.outs.iter().enumerate() {
            expect(OP, part.n > 0, "the weight is empty")?;
            let (out, weight) = (part.out, self.weight(OP, &part.w, part.n, k)?);
            lens!(OP; out = m * part.n);
            (to[i], w[i], n[i]) = (out.into(), weight.into(), part.n);
            weights.push(weight);
        }
        let dtype = weights[0].dtype();
        self.all_are(OP, dtype, &weights)?;
        let (mut y, mut a, mut b, mut sign, mut mixed) = (ABSENT, ABSENT, ABSENT, 1.0, ABSENT);
        if let Some((how, other, kept)) = &o.mix {
            let (other, kept): (&Tensor, &Tensor) = (other, kept);
            lens!(OP; other = m * k, kept = m * k);
            writes.push(kept);
            reads.push(other);
            (y, mixed) = (other.into(), kept.into());
            let factors: &[&Tensor] = match how {
                StepMix::Mix { a: first, b: second } => {
                    (a, b) = ((*first).into(), (*second).into());
                    &[first, second]
                }
                StepMix::Backout { lambda } => {
                    (b, sign) = ((*lambda).into(), -1.0);
                    &[lambda]
                }
            };
            for factor in factors {
                lens!(OP; factor = 1);
                reads.push(factor);
            }
        }
        let (mut table, mut ids, mut gate) = (ABSENT, ABSENT, ABSENT);
        let (mut vocab, mut d, mut channels, mut scale) = (0, 0, 0, 0.0);
        if let Some(g) = &o.gate {
            let (s, w, of) = (g.s, g.w, g.ids);
            let sizes = s.hkv > 0 && s.hkv * s.d == o.outs[2].n && s.c == k && s.channels <= k;
            expect(OP, sizes, "the gate's heads or channels are not those of the values")?;
            lens!(OP; of = m, w = s.hkv * s.channels);
            self.check(OP, &[], &[of])?;
            self.all_are(OP, DType::I32, &[of])?;
            reads.extend([g.table, w]);
            (table, ids, gate) = (g.table.into(), g.ids.into(), g.w.into());
            vocab = int(g.table.len() / (s.hkv * s.d));
            (d, channels, scale) = (int(s.d), int(s.channels), s.scale);
        }
        self.all_are(OP, DType::F32, &[&writes[..], &reads].concat())?;
        reads.extend(&weights);
        self.check(OP, &writes, &reads)?;
        if self.is_building() {
            self.build_linear(o, &weights);
            return Ok(());
        }
        let aligned = |t: &&Tensor| t.address().is_multiple_of(16);
        let fast = dtype == DType::BF16
            && k % 8 == 0
            && weights.iter().chain(&[x]).all(aligned)
            && o.mix.iter().all(|(_, y, kept)| aligned(y) && aligned(kept));
        let rows: usize = n.iter().sum();
        // One row is all memory, and so are two of many weights: warps that share nothing are the best
        // there. On an H100, 1, 2 and 8 rows of q, k and v by tiles: 4.2, 4.5 and 7.0 us; by warps: 4.1, 6.1
        // and 20.2.
        let wide = fast && !gated && rows >= WIDE;
        let by_warps = m == 1 || (wide && m == 2);
        let tiles = if fast && !by_warps { tiles(m, k, 2) } else { None };
        let kernel = match (fast, wide, tiles) {
            (_, _, Some(_)) => "step_linear_tiles_bf16".to_owned(),
            (true, false, _) => format!("step_linear_bf16x8_{}", room(m)),
            (true, true, _) => format!("step_linear_wide_bf16x8_{}", room(m)),
            _ => format!("step_linear_{}x1_8", dtype.name()),
        };
        let (after, cap) = match o.after {
            After::Nothing => (0, 0.0),
            After::Relu2 => (1, 0.0),
            After::Softcap(cap) => (2, cap),
        };
        let grid = match tiles {
            Some((threads, shared)) => early([rows.div_ceil(16), 1, 1], threads, shared),
            None => early([rows.div_ceil(WARPS * if wide { 4 } else { 1 }), 1, 1], 128, 0),
        };
        let n = n.map(int);
        let mut all = [to, w].concat();
        all.extend(n.map(Arg::from));
        all.extend([x.into(), y, a, b, sign.into(), mixed]);
        all.extend_from_slice(args![int(m), int(k), o.eps, after, cap]);
        all.extend([table, ids, gate]);
        all.extend_from_slice(args![vocab, d, channels, scale]);
        self.timed(OP, || self.launch(&kernel, grid, &all))
    }

    /// [`crate::Backend::step_attention`]; shapes that the kernels do not take by the plain chain.
    pub(super) fn attention_step(&self, o: &StepAttention<'_>) -> Result<()> {
        const OP: &str = "step_attention";
        let s = &o.s;
        let cache = o.keys.dtype();
        if !(s.d == 64 || s.d == 128) || s.t != 1 || !matches!(cache, DType::F32 | DType::BF16) {
            return step::step_attention(self, o);
        }
        checks::attention_cached(OP, [o.out, o.q, o.keys, o.values, o.places], s)?;
        let StepAttention { k, v, rstd, cos, .. } = *o;
        lens!(OP; k = s.rows * s.hkv * s.d, v = s.rows * s.hkv * s.d, rstd = s.rows * s.h);
        expect(OP, cos.len() == o.sin.len(), "the rotary tables are of different lengths")?;
        let written = [o.out, o.q, o.k, o.keys, o.values];
        self.check(OP, &written, &[v, cos, o.sin, o.places])?;
        self.all_are(OP, DType::F32, &[o.out, o.q, k, v, cos, o.sin])?;
        self.all_are(OP, cache, &[o.values])?;
        self.all_are(OP, DType::I32, &[o.places])?;

        if self.is_building() {
            self.build_attention(o);
            return Ok(());
        }
        let (group, window) = (s.h / s.hkv, s.window.min(s.pages * PAGE));
        let heads = if group > 1 { 4 } else { 1 };
        let columns = s.hkv * group.div_ceil(heads);
        let seen = s.pages.min(window / PAGE + 2);
        let splits = ATTENTION_BLOCKS.div_ceil(columns * s.rows).clamp(1, seen);
        let partial = s.rows * s.h * splits * (s.d + 4);
        let partial = self.work(Work::Attention, partial, DType::F32)?;
        let arrived = self.work(Work::Arrived, columns * s.rows, DType::I32)?;
        let shared = 16 * heads * (s.d + 4) + 4 * (heads + 1) * s.d + 16;
        let grid = early([splits, columns, s.rows], 128, shared);
        let (pages, h, hkv, window) = (int(s.pages), int(s.h), int(s.hkv), int(window));
        let mut all = args![o.out, &partial, &arrived, o.q, k, v, o.keys, o.values, cos].to_vec();
        all.extend_from_slice(args![o.sin, o.places, pages, h, hkv, window]);
        all.extend_from_slice(args![s.scale, o.qk_scale, o.eps]);
        let kernel = format!("attention_step_{}_{}_{heads}", cache.name(), s.d);
        self.timed(OP, || self.launch(&kernel, grid, &all))
    }

    /// A weight as the kernels read it.
    fn weight<'a>(
        &self,
        op: &'static str,
        w: &'a Weight<'_>,
        n: usize,
        k: usize,
    ) -> Result<&'a Tensor> {
        match w {
            Weight::Plain(w) => {
                crate::error::expect_len(op, "w", w.len(), n * k)?;
                Ok(w)
            }
            Weight::Packed(w) => {
                expect(op, (w.n, w.k) == (n, k), "the packed weight has another shape")?;
                match super::backend::packed(w) {
                    Some(w) => Ok(w),
                    None => Err(Error::Invalid {
                        op,
                        detail: "the weight was packed by another backend".into(),
                    }),
                }
            }
        }
    }

    /// Parts of a row that are searched for its largest number.
    pub(super) fn argmax_in_parts(&self, out: &Tensor, x: &Tensor, v: usize) -> Result<()> {
        if self.is_building() {
            self.build_argmax(out, x);
            return Ok(());
        }
        let rows = out.len();
        let parts = (132usize.div_ceil(rows.max(1))).clamp(1, v.div_ceil(1024));
        let found = self.work(Work::Found, 2 * rows * parts, DType::F32)?;
        let values = found.slice(0..rows * parts);
        let places = found.slice(rows * parts..2 * rows * parts);
        let arrived = self.work(Work::Arrived, rows, DType::I32)?;
        let args = args![out, x, int(v), &values, &places, &arrived];
        self.launch("argmax", early([parts, rows, 1], 256, 272), args)
    }
}
