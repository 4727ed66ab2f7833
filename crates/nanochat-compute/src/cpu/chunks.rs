//! Outputs split into equal chunks, one task a chunk: the only place of the plain operations, here
//! and in [`crate::eager`], that shares memory between threads.

use std::mem::MaybeUninit;

use super::pool::Pool;

/// Floats of a chunk: large against the cost of handing it out, small against a level-2 cache.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Rows of `c` floats that make up about one [`CHUNK`].
pub(crate) fn rows_per_chunk(c: usize) -> usize {
    (CHUNK / c.max(1)).max(1)
}

struct Shared<T>(*mut T);

// SAFETY: only `each` uses it, and its tasks touch disjoint chunks.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Calls `f(i, chunks)` for every i, in parallel: output j comes in pieces of `outs[j].1` floats (the
/// last one shorter), and task i gets the i-th piece of each output.
///
/// Panics unless all outputs have the same number of pieces.
pub(crate) fn each<T: Send, const W: usize>(
    pool: &Pool,
    outs: [(&mut [T], usize); W],
    f: impl Fn(usize, [&mut [T]; W]) + Sync,
) {
    let mut parts = outs.map(|(x, chunk)| (Shared(x.as_mut_ptr()), x.len(), chunk));
    let tasks = parts[0].1.div_ceil(parts[0].2.max(1));
    for (_, len, chunk) in &mut parts {
        assert_eq!(len.div_ceil((*chunk).max(1)), tasks, "outputs have as many chunks as another");
    }
    let parts = &parts;
    pool.run(tasks, move |i| {
        let pieces = std::array::from_fn(|j| {
            let (base, len, chunk) = &parts[j];
            let (start, end) = (i * chunk, ((i + 1) * chunk).min(*len));
            // SAFETY: start <= end <= len (i < tasks = len.div_ceil(chunk)), so the piece lies in
            // the slice that `outs` borrowed for the whole call; pieces of other tasks begin at other
            // multiples of chunk and end before this one begins or begin after it ends; outputs are
            // distinct `&mut` slices, so they do not overlap each other.
            unsafe { std::slice::from_raw_parts_mut(base.0.add(start), end - start) }
        });
        f(i, pieces);
    });
}

/// A piece of an output that is written from its beginning to its end.
pub(crate) struct Piece<'a> {
    memory: &'a mut [MaybeUninit<f32>],
    /// Floats that are written.
    filled: usize,
}

impl Piece<'_> {
    /// Floats it takes in all.
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Writes the next floats, as many as there is room for.
    #[inline(always)]
    pub(crate) fn extend(&mut self, values: impl Iterator<Item = f32>) {
        let mut n = 0;
        for (to, value) in self.memory[self.filled..].iter_mut().zip(values) {
            to.write(value);
            n += 1;
        }
        self.filled += n;
    }

    /// Writes the next floats; panics if there is no room.
    #[inline(always)]
    pub(crate) fn extend_from_slice(&mut self, values: &[f32]) {
        self.memory[self.filled..][..values.len()].write_copy_of_slice(values);
        self.filled += values.len();
    }
}

/// `f(i, piece)` for every piece of `chunk` floats, in parallel, as [`each`].
///
/// Panics unless `f` fills each of them.
fn fill(
    pool: &Pool,
    memory: &mut [MaybeUninit<f32>],
    chunk: usize,
    f: impl Fn(usize, &mut Piece<'_>) + Sync,
) {
    each(pool, [(memory, chunk)], |i, [memory]| {
        let mut piece = Piece { memory, filled: 0 };
        f(i, &mut piece);
        assert_eq!(piece.filled, piece.len(), "piece {i} is written whole");
    });
}

/// Writes all of `out` by pieces.
pub(crate) fn overwrite(
    pool: &Pool,
    out: &mut [f32],
    chunk: usize,
    f: impl Fn(usize, &mut Piece<'_>) + Sync,
) {
    // SAFETY: a `MaybeUninit<f32>` has the layout of an f32, and a `Piece` writes nothing but f32.
    let memory = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) };
    fill(pool, memory, chunk, f);
}

/// As [`overwrite`], into new memory of `len` floats, which is not zeroed first.
pub(crate) fn fresh(
    pool: &Pool,
    len: usize,
    chunk: usize,
    f: impl Fn(usize, &mut Piece<'_>) + Sync,
) -> Vec<f32> {
    assert!(chunk > 0 || len == 0, "pieces are not empty");
    let mut out = Vec::with_capacity(len);
    fill(pool, &mut out.spare_capacity_mut()[..len], chunk, f);
    // SAFETY: the capacity is at least `len`, and `fill` has written the first `len` elements: it
    // panics unless every piece is whole.
    unsafe { out.set_len(len) };
    out
}

/// `f(i)` for `n` chunks in parallel, then the results in order: for sums whose order is fixed.
pub(crate) fn map<const R: usize>(
    pool: &Pool,
    n: usize,
    f: impl Fn(usize) -> [f64; R] + Sync,
) -> Vec<[f64; R]> {
    // f64 values travel as pairs of f32 words through `each`.
    let mut words = vec![0f32; n * R * 2];
    each(pool, [(words.as_mut_slice(), 2 * R)], |i, [out]| {
        for (x, pair) in f(i).into_iter().zip(out.chunks_exact_mut(2)) {
            let bits = x.to_bits();
            pair[0] = f32::from_bits((bits >> 32) as u32);
            pair[1] = f32::from_bits(bits as u32);
        }
    });
    let join =
        |p: &[f32]| f64::from_bits((u64::from(p[0].to_bits()) << 32) | u64::from(p[1].to_bits()));
    words
        .chunks_exact(2 * R)
        .map(|row| std::array::from_fn(|r| join(&row[2 * r..2 * r + 2])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_holds_what_its_pieces_wrote() {
        for threads in [1, 3] {
            let pool = Pool::new(threads);
            for len in [0, 1, 7, 8, 1003] {
                let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
                let fresh = fresh(&pool, len, 4, |i, out| {
                    let x = &x[4 * i..][..out.len()];
                    let (first, rest) = x.split_at(1);
                    out.extend_from_slice(first);
                    out.extend(rest.iter().copied());
                });
                assert_eq!(fresh, x);
                let mut given = vec![f32::NAN; len];
                overwrite(&pool, &mut given, 4, |i, out| out.extend((4 * i..).map(|i| i as f32)));
                assert_eq!(given, x);
            }
        }
    }

    #[test]
    #[should_panic(expected = "piece 1 is written whole")]
    fn a_piece_that_is_not_written_whole_is_a_panic() {
        fresh(&Pool::new(1), 8, 4, |i, out| out.extend(std::iter::repeat_n(1.0, 4 - i)));
    }
}
