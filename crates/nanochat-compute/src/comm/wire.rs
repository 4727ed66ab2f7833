//! All collectives from one: every rank sends bytes to every other. Sums are taken here, pairwise in the
//! order of the ranks, so they have the same bits whatever carries the bytes.

use super::{Comm, Part};
use crate::tensor::bytes;
use crate::{Error, Result, Tensor};

/// A means of passing bytes between ranks.
pub trait Wire {
    /// This rank.
    fn rank(&self) -> usize;
    /// How many there are.
    fn world(&self) -> usize;
    /// In words.
    fn name(&self) -> &'static str;
    /// Sends `send[r]` to each rank r and returns what each of them sent to this one, by rank. What a rank
    /// sends to itself comes back.
    fn exchange(&self, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>>;
}

/// The collectives of CPU ranks over a wire.
///
/// A reduce-scatter sends each part straight to its owner, which adds: every rank sends and receives
/// `(world - 1) / world` of the data, the least there is.
#[derive(Debug)]
pub struct OverWire<W>(pub W);

impl<W: Wire> OverWire<W> {
    /// The same bytes to every rank.
    fn to_all(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.0.exchange(vec![bytes.to_vec(); self.0.world()])
    }

    fn reduce(&self, values: &mut [f64], of: fn(f64, f64) -> f64) -> Result<()> {
        let mine: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = self.to_all(&mine)?;
        let mut columns = Vec::with_capacity(all.len());
        for (rank, bytes) in all.iter().enumerate() {
            expect(rank, bytes.len(), mine.len())?;
            let numbers = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b));
            columns.push(numbers.collect::<Vec<_>>());
        }
        values.copy_from_slice(&pairwise(columns, of));
        Ok(())
    }
}

impl<W: Wire> Comm for OverWire<W> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world(&self) -> usize {
        self.0.world()
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn reduce_scatter(&self, data: &Tensor, parts: &[Part]) -> Result<()> {
        let to = |rank: usize| gathered(data, parts, |part| part.is_of(rank));
        let send = (0..self.world()).map(to).collect::<Result<_>>()?;
        let (rank, mut all) = (self.rank(), Vec::new());
        for (from, bytes) in self.0.exchange(send)?.into_iter().enumerate() {
            expect(from, bytes.len(), 4 * length(parts, |part| part.is_of(rank)))?;
            all.push(numbers(&bytes));
        }
        let sum = pairwise(all, |a, b| a + b);
        spread(data, parts, |part| part.is_of(rank), &sum)
    }

    fn all_gather(&self, data: &Tensor, parts: &[Part]) -> Result<()> {
        let mine = gathered(data, parts, |part| part.owner == Some(self.rank()))?;
        for (from, bytes) in self.to_all(&mine)?.into_iter().enumerate() {
            let is_theirs = |part: &Part| part.owner == Some(from);
            expect(from, bytes.len(), 4 * length(parts, is_theirs))?;
            if from != self.rank() {
                spread(data, parts, is_theirs, &numbers(&bytes))?;
            }
        }
        Ok(())
    }

    fn all_reduce_sum(&self, values: &mut [f64]) -> Result<()> {
        self.reduce(values, |a, b| a + b)
    }

    fn all_reduce_max(&self, values: &mut [f64]) -> Result<()> {
        self.reduce(values, f64::max)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let mine = if self.rank() == 0 { std::mem::take(bytes) } else { Vec::new() };
        *bytes = self.to_all(&mine)?.swap_remove(0);
        Ok(())
    }
}

/// Adds up columns pairwise: (0 + 1) + (2 + 3) and so on; one that is left over goes up a level. The same
/// sums come out when some of the pairs were added before, on their own rank.
///
/// Panics without a column; all are of one length.
pub(crate) fn pairwise<T: Copy>(mut columns: Vec<Vec<T>>, of: impl Fn(T, T) -> T) -> Vec<T> {
    while columns.len() > 1 {
        let mut above = Vec::with_capacity(columns.len().div_ceil(2));
        let mut rest = columns.into_iter();
        while let Some(mut left) = rest.next() {
            if let Some(right) = rest.next() {
                left.iter_mut().zip(right).for_each(|(a, b)| *a = of(*a, b));
            }
            above.push(left);
        }
        columns = above;
    }
    columns.swap_remove(0)
}

fn expect(rank: usize, have: usize, need: usize) -> Result<()> {
    if have == need {
        return Ok(());
    }
    let detail = format!(
        "sent {have} bytes where {need} were due: the ranks are not at the same place of the same run"
    );
    Err(Error::Rank { rank, detail })
}

fn length(parts: &[Part], is_wanted: impl Fn(&Part) -> bool) -> usize {
    parts.iter().filter(|part| is_wanted(part)).map(|part| part.range.len()).sum()
}

fn gathered(data: &Tensor, parts: &[Part], is_wanted: impl Fn(&Part) -> bool) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(4 * length(parts, &is_wanted));
    for part in parts.iter().filter(|part| is_wanted(part)) {
        out.extend_from_slice(bytes(&data.slice(part.range.clone()).to_vec_f32()?));
    }
    Ok(out)
}

fn spread(
    data: &Tensor,
    parts: &[Part],
    is_wanted: impl Fn(&Part) -> bool,
    mut values: &[f32],
) -> Result<()> {
    for part in parts.iter().filter(|part| is_wanted(part)) {
        let (these, rest) = values.split_at(part.range.len());
        data.slice(part.range.clone()).write_f32(these)?;
        values = rest;
    }
    Ok(())
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
