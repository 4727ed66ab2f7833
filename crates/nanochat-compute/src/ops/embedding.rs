//! Rows of a table by id: looked up, put there, added to.

use crate::FloatsMut;

/// Looks rows up: `out[n,c] = table[ids[n],c]`.
///
/// Shapes: `out` (N, C), `table` (V, C), `ids` (N) in 0..V. Panics when an id leaves the table:
/// ids are checked where they enter the program. Plain reference; never optimise it.
pub fn embedding(out: &mut [f32], table: &[f32], ids: &[i32], c: usize) {
    for (row, &id) in out.chunks_exact_mut(c).zip(ids) {
        row.copy_from_slice(&table[id as usize * c..][..c]);
    }
}

/// Puts rows where they belong: `table[ids[n],c] = x[n,c]`, in the order of n; other rows stay.
///
/// Shapes: `x` (N, C), `table` (V, C) in f32 or bf16, `ids` (N) in 0..V. Plain reference; never
/// optimise it.
pub fn place_rows(mut table: FloatsMut<'_>, x: &[f32], ids: &[i32], c: usize) {
    for (row, &id) in x.chunks_exact(c).zip(ids) {
        table.store(id as usize * c, row);
    }
}

/// Scatters gradients: `dtable[ids[n],c] += dout[n,c]`, in the order of n.
///
/// Shapes as [`embedding`]. Plain reference; never optimise it.
pub fn embedding_backward(dtable: &mut [f32], dout: &[f32], ids: &[i32], c: usize) {
    for (row, &id) in dout.chunks_exact(c).zip(ids) {
        for (d, g) in dtable[id as usize * c..][..c].iter_mut().zip(row) {
            *d += g;
        }
    }
}
