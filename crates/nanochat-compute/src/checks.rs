//! What every backend refuses, whatever it computes on.

use crate::ops::{RopeNorm, ValueGate};
use crate::{Error, Result};

/// `Ok` when `holds`: sizes that a kernel divides by, multiples that it relies on.
pub(crate) fn expect(op: &'static str, holds: bool, detail: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Invalid { op, detail: detail.into() }) }
}

/// Every key/value head serves equally many query heads.
pub(crate) fn expect_heads(op: &'static str, h: usize, hkv: usize) -> Result<()> {
    expect(op, hkv > 0 && h.is_multiple_of(hkv), "n_head is not a multiple of n_kv_head")
}

/// The gate reads channels that exist, and heads are not empty.
pub(crate) fn expect_gate(op: &'static str, s: &ValueGate) -> Result<()> {
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

/// Every operand has its length.
macro_rules! lens {
    ($op:expr; $($x:ident = $len:expr),*) => {
        $(crate::error::expect_len($op, stringify!($x), $x.len(), $len)?;)*
    };
}
pub(crate) use lens;
