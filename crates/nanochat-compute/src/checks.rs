//! What every backend refuses, whatever it computes on.

pub(crate) mod step;

use crate::ops::{Attention, CachedAttention, Muon, RopeNorm, Smear, ValueGate};
use crate::{Error, Result, Tensor};

/// Every operand has its length.
macro_rules! lens {
    ($op:expr; $($x:ident = $len:expr),*) => {
        $(crate::error::expect_len($op, stringify!($x), $x.len(), $len)?;)*
    };
}
pub(crate) use lens;

/// `Ok` when `holds`: sizes that a kernel divides by, multiples that it relies on.
pub(crate) fn expect(op: &'static str, holds: bool, detail: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Invalid { op, detail: detail.into() }) }
}

/// Every key/value head serves equally many query heads.
fn expect_heads(op: &'static str, h: usize, hkv: usize) -> Result<()> {
    expect(op, hkv > 0 && h.is_multiple_of(hkv), "n_head is not a multiple of n_kv_head")
}

/// The gate reads channels that exist, and heads are not empty.
fn expect_gate(op: &'static str, s: &ValueGate) -> Result<()> {
    let channels = s.channels > 0 && s.channels <= s.c;
    expect(op, channels, "the gate reads none of the channels, or more than there are")?;
    expect(op, s.hkv > 0 && s.d > 0, "heads are empty")
}

/// Heads come in pairs of halves and whole rows, and the tables hold every position.
pub(crate) fn expect_positions(
    op: &'static str,
    table: usize,
    s: &RopeNorm,
    heads: usize,
) -> Result<()> {
    expect(op, s.d > 0 && s.d.is_multiple_of(2), "head_dim is not even")?;
    expect(op, s.t > 0 && s.h > 0 && heads.is_multiple_of(s.h), "rows of heads are not whole")?;
    let need = (s.start + s.t.min(heads / s.h)) * (s.d / 2);
    if table < need {
        return Err(Error::Shape { op, what: "cos", have: table, need });
    }
    Ok(())
}

/// Whole rows of whole heads, each with as many numbers of its place; how many.
pub(crate) fn expect_places(
    op: &'static str,
    places: usize,
    s: &RopeNorm,
    heads: usize,
) -> Result<usize> {
    let row = s.t * s.h;
    expect(op, s.d > 0 && s.d.is_multiple_of(2), "head_dim is not even")?;
    expect(op, row > 0 && heads > 0 && heads.is_multiple_of(row), "rows of heads are not whole")?;
    let rows = heads / row;
    expect(op, places > 0 && places.is_multiple_of(rows), "rows have no places, or unequal ones")?;
    Ok(places / rows)
}

/// Operands of [`crate::Backend::smear`].
pub(crate) fn smear(
    op: &'static str,
    [out, gate, x, w, lambda]: [&Tensor; 5],
    s: &Smear,
) -> Result<()> {
    expect(op, s.c > 0 && s.channels <= s.c, "the gate reads more channels than there are")?;
    lens!(op;
        out = s.b * s.t * s.c, x = s.b * s.t * s.c, gate = s.b * s.t, w = s.channels,
        lambda = 1
    );
    Ok(())
}

/// Operands of [`crate::Backend::smear_backward`].
pub(crate) fn smear_backward(
    op: &'static str,
    [dx, dw, dlambda, dout, x, gate, w, lambda]: [&Tensor; 8],
    s: &Smear,
) -> Result<()> {
    expect(op, s.c > 0 && s.channels <= s.c, "the gate reads more channels than there are")?;
    lens!(op;
        dx = s.b * s.t * s.c, dout = s.b * s.t * s.c, x = s.b * s.t * s.c, gate = s.b * s.t,
        w = s.channels, dw = s.channels, lambda = 1, dlambda = 1
    );
    Ok(())
}

/// Operands of [`crate::Backend::value_gate`].
pub(crate) fn value_gate(
    op: &'static str,
    [v, gate, ids, y, w]: [&Tensor; 5],
    s: &ValueGate,
) -> Result<()> {
    expect_gate(op, s)?;
    lens!(op;
        v = ids.len() * s.hkv * s.d, gate = ids.len() * s.hkv, y = ids.len() * s.c,
        w = s.hkv * s.channels
    );
    Ok(())
}

/// Operands of [`crate::Backend::value_gate_backward`].
pub(crate) fn value_gate_backward(
    op: &'static str,
    [dtable, dw, dy, dv, table, ids, y, w, gate]: [&Tensor; 9],
    s: &ValueGate,
) -> Result<()> {
    expect_gate(op, s)?;
    lens!(op;
        dv = ids.len() * s.hkv * s.d, gate = ids.len() * s.hkv, y = ids.len() * s.c,
        dy = ids.len() * s.c, w = s.hkv * s.channels, dw = s.hkv * s.channels,
        table = dtable.len()
    );
    Ok(())
}

/// Operands of [`crate::Backend::attention`].
pub(crate) fn attention(
    op: &'static str,
    [out, lse, q, k, v]: [&Tensor; 5],
    s: &Attention,
) -> Result<()> {
    expect_heads(op, s.h, s.hkv)?;
    lens!(op;
        out = s.b * s.t * s.h * s.d, q = s.b * s.t * s.h * s.d, lse = s.b * s.t * s.h,
        k = s.b * s.t * s.hkv * s.d, v = s.b * s.t * s.hkv * s.d
    );
    Ok(())
}

/// Operands of [`crate::Backend::attention_backward`].
pub(crate) fn attention_backward(
    op: &'static str,
    [dq, dk, dv, dout, out, lse, q, k, v]: [&Tensor; 9],
    s: &Attention,
) -> Result<()> {
    expect_heads(op, s.h, s.hkv)?;
    lens!(op;
        dq = s.b * s.t * s.h * s.d, q = s.b * s.t * s.h * s.d, out = s.b * s.t * s.h * s.d,
        dout = s.b * s.t * s.h * s.d, lse = s.b * s.t * s.h, k = s.b * s.t * s.hkv * s.d,
        v = s.b * s.t * s.hkv * s.d, dk = s.b * s.t * s.hkv * s.d,
        dv = s.b * s.t * s.hkv * s.d
    );
    Ok(())
}

/// Operands of [`crate::Backend::attention_cached`].
pub(crate) fn attention_cached(
    op: &'static str,
    [out, q, k, v, places]: [&Tensor; 5],
    s: &CachedAttention,
) -> Result<()> {
    expect_heads(op, s.h, s.hkv)?;
    lens!(op;
        out = s.rows * s.t * s.h * s.d, q = s.rows * s.t * s.h * s.d, v = k.len(),
        places = s.rows * s.place_len()
    );
    Ok(())
}

/// Operands of [`crate::Backend::muon`].
pub(crate) fn muon(
    op: &'static str,
    [p, buf, second, scratch, g]: [&Tensor; 5],
    s: &Muon,
) -> Result<()> {
    expect(op, s.m > 0 && s.n > 0, "the matrix is empty")?;
    lens!(op;
        p = s.m * s.n, buf = s.m * s.n, g = s.m * s.n, second = s.second_len(),
        scratch = s.scratch_len()
    );
    Ok(())
}
