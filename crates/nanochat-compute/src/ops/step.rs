//! Fused operations of a decode step of few rows: what a device offers that launches few kernels for it.
//!
//! Each is a chain of the other operations, named in its formula; the functions here run that chain,
//! which is the law and the default of every backend. Streams are f32 on every device: few rows cost
//! nothing. Steps are worth fusing where a backend says so ([`Backend::step_rows`]).

use super::{CachedAttention, MatMul, PackedWeight, RopeNorm, Smear, ValueGate};
use crate::{Backend, DType, Result, Tensor, checks};

/// A weight (n, k) of a linear layer, as a step reads it.
#[derive(Clone, Debug)]
pub enum Weight<'a> {
    /// Made ready by [`Backend::pack`].
    Packed(&'a PackedWeight),
    /// f32, where it lies.
    Plain(Tensor),
}

impl Weight<'_> {
    /// `out = x W^T`, or added to `out`.
    fn multiply(
        &self,
        be: &(impl Backend + ?Sized),
        out: &Tensor,
        x: &Tensor,
        s: &MatMul,
    ) -> Result<()> {
        match self {
            Weight::Packed(w) => be.matmul_packed(out, x, w, s),
            Weight::Plain(w) => be.matmul(out, x, w, s),
        }
    }
}

/// One of the results of [`step_linear`].
#[derive(Clone, Debug)]
pub struct StepOut<'a> {
    /// (m, n)
    pub out: &'a Tensor,
    /// (n, k)
    pub w: Weight<'a>,
    /// Columns.
    pub n: usize,
}

/// What the rows of `x` become before they are normalised.
#[derive(Clone, Copy, Debug)]
pub enum StepMix<'a> {
    /// [`super::mix::mix`]: `a x + b y`.
    Mix {
        /// (1)
        a: &'a Tensor,
        /// (1)
        b: &'a Tensor,
    },
    /// [`super::mix::backout`]: `x - lambda y`.
    Backout {
        /// (1)
        lambda: &'a Tensor,
    },
}

/// What is done to the results of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// Nothing.
    Nothing,
    /// `max(z, 0)^2`.
    Relu2,
    /// `cap tanh(z / cap)`.
    Softcap(f32),
}

/// The value embedding that the last result gets.
#[derive(Clone, Copy, Debug)]
pub struct StepGate<'a> {
    /// (V, Hkv, D), f32
    pub table: &'a Tensor,
    /// (m), i32
    pub ids: &'a Tensor,
    /// (Hkv, channels), f32
    pub w: &'a Tensor,
    /// Shape and scale.
    pub s: ValueGate,
}

/// Operands of [`step_linear`].
#[derive(Clone, Copy, Debug)]
pub struct StepLinear<'a> {
    /// One to three weights that multiply the same rows.
    pub outs: &'a [StepOut<'a>],
    /// (m, k), f32
    pub x: &'a Tensor,
    /// What is mixed, `y` (m, k), and where the mixture is kept (m, k).
    pub mix: Option<(StepMix<'a>, &'a Tensor, &'a Tensor)>,
    /// For the last of `outs`.
    pub gate: Option<StepGate<'a>>,
    /// For all of `outs`.
    pub after: After,
    /// Rows.
    pub m: usize,
    /// Channels.
    pub k: usize,
    /// Added to the mean square of a row.
    pub eps: f32,
}

/// `out = after(norm(mix(x, y)) W^T)` for each of `outs`, the last one with [`Backend::value_gate`]: mix or
/// backout, norm, products, value gate, ReLU squared or softcap, in that order.
///
/// Shapes: `x`, `y`, mixture (m, k), a result (m, n); all f32. With a gate nothing is done after.
/// Errors: those of the operations that it is made of, before anything is written.
pub fn step_linear(be: &(impl Backend + ?Sized), o: &StepLinear<'_>) -> Result<()> {
    checks::step::linear("step_linear", o)?;
    let (m, k) = (o.m, o.k);
    let x = match &o.mix {
        Some((StepMix::Mix { a, b }, y, to)) => {
            be.mix(to, o.x, y, a, b)?;
            to
        }
        Some((StepMix::Backout { lambda }, y, to)) => {
            be.backout(to, o.x, y, lambda)?;
            to
        }
        None => o.x,
    };
    let (normed, rstd) = (be.alloc(m * k, DType::F32)?, be.alloc(m, DType::F32)?);
    be.norm(&normed, &rstd, x, k, o.eps)?;
    for StepOut { out, w, n } in o.outs {
        w.multiply(be, out, &normed, &MatMul::forward(m, k, *n))?;
    }
    if let (Some(g), Some(v)) = (&o.gate, o.outs.last()) {
        let gates = be.alloc(m * g.s.hkv, DType::F32)?;
        be.value_gate(v.out, &gates, g.table, g.ids, &normed, g.w, &g.s)?;
    }
    for StepOut { out, .. } in o.outs {
        match o.after {
            After::Nothing => {}
            After::Relu2 => be.relu2_in_place(out)?,
            After::Softcap(cap) => be.softcap(out, cap)?,
        }
    }
    Ok(())
}

/// Operands of [`step_embed`].
#[derive(Clone, Copy, Debug)]
pub struct StepEmbed<'a> {
    /// (m, c), f32: where the residual stream begins.
    pub x0: &'a Tensor,
    /// (m, c), an activation: the normalised embedding of the step before; becomes that of this one.
    pub last: &'a Tensor,
    /// (V, c), f32
    pub table: &'a Tensor,
    /// (m), i32
    pub ids: &'a Tensor,
    /// Gate (channels) and lambda (1) of smear, and its channels.
    pub smear: Option<(&'a Tensor, &'a Tensor, usize)>,
    /// Channels of a row.
    pub c: usize,
    /// Added to the mean square of a row.
    pub eps: f32,
}

/// `e = norm(table[ids])`; `x0 = e + lambda sigmoid(w . e[..channels]) last` where there is smear, else
/// `e`; `last = e`: embedding, norm, and [`Backend::smear`] with `last` as every row's neighbour.
///
/// Errors: those of the operations that it is made of, before anything is written.
pub fn step_embed(be: &(impl Backend + ?Sized), o: &StepEmbed<'_>) -> Result<()> {
    checks::step::embed("step_embed", o)?;
    let (m, c) = (o.ids.len(), o.c);
    let rows = |step: usize, first: usize| {
        let ids: Vec<i32> = (0..m).map(|row| (step * row + first) as i32).collect();
        be.place_i32(&ids)
    };
    let [raw, e, one] =
        [be.alloc(m * c, DType::F32), be.alloc(m * c, DType::F32), be.alloc(m * c, DType::F32)];
    let (raw, e, one) = (raw?, e?, one?);
    be.embedding(&raw, o.table, o.ids, c)?;
    be.norm(&e, &be.alloc(m, DType::F32)?, &raw, c, o.eps)?;
    match o.smear {
        Some((w, lambda, channels)) => {
            // Pairs of the two are rows of two positions, of which the second counts.
            let pair = be.alloc(2 * m * c, DType::F32)?;
            let (smeared, gate) = (be.alloc(2 * m * c, DType::F32)?, be.alloc(2 * m, DType::F32)?);
            let (first, second) = (rows(2, 0)?, rows(2, 1)?);
            let wide = match o.last.dtype() {
                DType::F32 => o.last,
                _ => {
                    be.place_rows(&one, o.last, &rows(1, 0)?, c)?;
                    &one
                }
            };
            be.place_rows(&pair, wide, &first, c)?;
            be.place_rows(&pair, &e, &second, c)?;
            let s = Smear { b: m, t: 2, c, channels };
            be.smear(&smeared, &gate, &pair, w, lambda, &s)?;
            be.embedding(o.x0, &smeared, &second, c)?;
        }
        None => be.copy(o.x0, &e)?,
    }
    be.place_rows(o.last, &e, &rows(1, 0)?, c)
}

/// Operands of [`step_attention`].
#[derive(Clone, Copy, Debug)]
pub struct StepAttention<'a> {
    /// (rows, H, D), f32
    pub out: &'a Tensor,
    /// (rows, H, D), f32: anything afterwards
    pub q: &'a Tensor,
    /// (rows, Hkv, D), f32: anything afterwards
    pub k: &'a Tensor,
    /// (rows, Hkv, D), f32
    pub v: &'a Tensor,
    /// (rows, H), f32: anything afterwards
    pub rstd: &'a Tensor,
    /// (pages, Hkv, [`super::PAGE`], D)
    pub keys: &'a Tensor,
    /// The same.
    pub values: &'a Tensor,
    /// (positions, D / 2)
    pub cos: &'a Tensor,
    /// (positions, D / 2)
    pub sin: &'a Tensor,
    /// (rows, 1 + pages): where each row stands, and its pages.
    pub places: &'a Tensor,
    /// (rows, Hkv): which row of D of the cache its new key and value become.
    pub rows: &'a Tensor,
    /// Shape of the attention; t is 1.
    pub s: CachedAttention,
    /// Multiplies normalised queries and keys, each.
    pub qk_scale: f32,
    /// Added to the mean square of a head.
    pub eps: f32,
}

/// Rotates and normalises queries and keys ([`Backend::rope_norm_placed`]), stores keys and values
/// ([`Backend::place_rows`]), and attends ([`Backend::attention_cached`]).
///
/// Errors: those of the operations that it is made of, before anything is written.
pub fn step_attention(be: &(impl Backend + ?Sized), o: &StepAttention<'_>) -> Result<()> {
    checks::step::attention("step_attention", o)?;
    let s = &o.s;
    let heads = |h| RopeNorm { t: 1, h, d: s.d, start: 0, scale: o.qk_scale, eps: o.eps };
    be.rope_norm_placed(o.q, &o.rstd.slice(0..s.rows * s.h), o.cos, o.sin, o.places, &heads(s.h))?;
    let rstd = o.rstd.slice(0..s.rows * s.hkv);
    be.rope_norm_placed(o.k, &rstd, o.cos, o.sin, o.places, &heads(s.hkv))?;
    be.place_rows(o.keys, o.k, o.rows, s.d)?;
    be.place_rows(o.values, o.v, o.rows, s.d)?;
    be.attention_cached(o.out, o.q, o.keys, o.values, o.places, s)
}
