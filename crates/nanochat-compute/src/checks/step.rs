//! What the fused operations of a decode step refuse before they write anything: the operations that
//! they are made of would refuse it after some of them have run.

use super::{attention_cached, expect, expect_gate, expect_places, lens};
use crate::error::expect_len;
use crate::ops::{After, RopeNorm, StepAttention, StepEmbed, StepLinear, StepMix, Weight};
use crate::{DType, Error, Result, Tensor, host};

/// Nothing that is written shares memory with another operand.
fn apart(op: &'static str, writes: &[&Tensor], reads: &[&Tensor]) -> Result<()> {
    let shared =
        |i: usize, a: &Tensor| writes[..i].iter().chain(reads).any(|other| a.overlaps(other));
    match writes.iter().enumerate().any(|(i, a)| shared(i, a)) {
        true => Err(Error::Overlap { op }),
        false => Ok(()),
    }
}

/// All of these are of one type.
fn are(op: &'static str, need: DType, all: &[&Tensor]) -> Result<()> {
    match all.iter().find(|t| t.dtype() != need) {
        Some(t) => Err(Error::DType { op, have: t.dtype().name(), need: need.name() }),
        None => Ok(()),
    }
}

/// Each of these is f32 or bf16.
fn are_floats(op: &'static str, all: &[&Tensor]) -> Result<()> {
    match all.iter().find(|t| t.dtype() == DType::I32) {
        Some(t) => Err(Error::DType { op, have: t.dtype().name(), need: DType::F32.name() }),
        None => Ok(()),
    }
}

/// Ids that lie on the host are rows of a table; those on a device are looked at by its kernels.
fn ids(op: &'static str, ids: &Tensor, rows: usize) -> Result<()> {
    match ids.device() {
        Some(_) => Ok(()),
        None => host::check_ids(op, &ids.to_vec_i32()?, rows),
    }
}

/// Operands of [`crate::Backend::step_embed`].
pub(crate) fn embed(op: &'static str, o: &StepEmbed<'_>) -> Result<()> {
    let StepEmbed { x0, last, table, .. } = *o;
    expect(op, o.c > 0, "rows have no channels")?;
    lens!(op; x0 = o.ids.len() * o.c, last = o.ids.len() * o.c);
    expect(op, table.len().is_multiple_of(o.c), "the table is not whole rows")?;
    let (mut reads, mut floats) = (vec![table, o.ids], vec![x0, table]);
    if let Some((w, lambda, channels)) = o.smear {
        expect(op, channels <= o.c, "smear reads more channels than there are")?;
        lens!(op; w = channels, lambda = 1);
        reads.extend([w, lambda]);
        floats.extend([w, lambda]);
    }
    apart(op, &[x0, last], &reads)?;
    are(op, DType::F32, &floats)?;
    are_floats(op, &[last])?;
    are(op, DType::I32, &[o.ids])?;
    ids(op, o.ids, table.len() / o.c)
}

/// Operands of [`crate::Backend::step_linear`].
pub(crate) fn linear(op: &'static str, o: &StepLinear<'_>) -> Result<()> {
    let (m, k, x) = (o.m, o.k, o.x);
    expect(op, k > 0, "rows have no channels")?;
    expect(op, !o.outs.is_empty(), "there is no weight")?;
    expect(op, o.gate.is_none() || o.after == After::Nothing, "a gated result is the last")?;
    lens!(op; x = m * k);
    let (mut writes, mut reads) = (Vec::new(), vec![x]);
    for part in o.outs {
        let out = part.out;
        lens!(op; out = m * part.n);
        match &part.w {
            Weight::Plain(w) => {
                expect_len(op, "w", w.len(), part.n * k)?;
                reads.push(w);
            }
            Weight::Packed(w) => {
                expect(op, (w.n, w.k) == (part.n, k), "the packed weight has another shape")?;
            }
        }
        writes.push(out);
    }
    if let Some((how, y, kept)) = &o.mix {
        let (y, kept): (&Tensor, &Tensor) = (y, kept);
        lens!(op; y = m * k, kept = m * k);
        reads.push(y);
        writes.push(kept);
        let factors: &[&Tensor] = match how {
            StepMix::Mix { a, b } => &[a, b],
            StepMix::Backout { lambda } => &[lambda],
        };
        for factor in factors {
            lens!(op; factor = 1);
            reads.push(factor);
        }
    }
    if let (Some(g), Some(v)) = (&o.gate, o.outs.last()) {
        let (s, w, table, of) = (g.s, g.w, g.table, g.ids);
        expect_gate(op, &s)?;
        let width = s.hkv * s.d;
        expect(op, width == v.n && s.c == k, "the gate's heads are not those of the values")?;
        lens!(op; of = m, w = s.hkv * s.channels);
        expect(op, table.len().is_multiple_of(width), "the gate's table is not whole rows")?;
        apart(op, &writes, &[of])?;
        reads.extend([table, w]);
    }
    apart(op, &writes, &reads)?;
    are(op, DType::F32, &[&writes[..], &reads].concat())?;
    match &o.gate {
        Some(g) => {
            are(op, DType::I32, &[g.ids])?;
            ids(op, g.ids, g.table.len() / (g.s.hkv * g.s.d))
        }
        None => Ok(()),
    }
}

/// Operands of [`crate::Backend::step_attention`].
pub(crate) fn attention(op: &'static str, o: &StepAttention<'_>) -> Result<()> {
    let StepAttention { out, q, k, v, rstd, keys, values, cos, sin, places, rows, .. } = *o;
    let s = &o.s;
    expect(op, s.t == 1, "a step is one token a row")?;
    attention_cached(op, [out, q, keys, values, places], s)?;
    let heads = s.rows * s.hkv;
    lens!(op; k = heads * s.d, v = heads * s.d, rstd = s.rows * s.h, rows = heads, cos = sin.len());
    let rope = RopeNorm { t: 1, h: s.h, d: s.d, start: 0, scale: o.qk_scale, eps: o.eps };
    expect_places(op, places.len(), &rope, s.rows * s.h)?;
    apart(op, &[out, q, k, rstd, keys, values], &[v, cos, sin, places, rows])?;
    are(op, DType::F32, &[out, q, k, v, rstd, cos, sin])?;
    are(op, DType::I32, &[places, rows])?;
    are_floats(op, &[keys])?;
    are(op, keys.dtype(), &[values])?;
    if places.device().is_some() {
        return Ok(());
    }
    let at = places.to_vec_i32()?;
    host::check_places(op, &at, keys.len(), s)?;
    let reach = cos.len() / (s.d / 2);
    // Positions are at least 0, as has just been seen.
    if let Some(place) = at.iter().step_by(s.place_len()).find(|place| **place as usize >= reach) {
        let detail = format!("a row is at position {place}, the tables reach {reach}");
        return Err(Error::Invalid { op, detail });
    }
    ids(op, rows, keys.len() / s.d)
}
