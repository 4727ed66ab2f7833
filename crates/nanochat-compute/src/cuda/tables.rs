//! Gradients of tables: positions sorted by id, then rows added up in their order.

use super::driver::Arg;
use super::launch::{args, blocks, int, suffix};
use super::{Cuda, Work};
use crate::{DType, Result, Tensor};

/// Positions that a block ranks: CHUNK in scatter.cu.
const CHUNK: usize = 1024;

impl Cuda {
    /// `table[ids[n], i] += gate[n, i / d] x[n, i]` for rows of `c` channels; without a gate, 1.
    pub(super) fn add_rows(
        &self,
        table: &Tensor,
        x: &Tensor,
        gate: Option<&Tensor>,
        ids: &Tensor,
        (c, d): (usize, usize),
    ) -> Result<()> {
        let (n, vocab) = (ids.len(), table.len() / c);
        if n == 0 || vocab == 0 {
            return Ok(());
        }
        let (order, start) = self.sort_by_id(ids, vocab)?;
        let kernel = format!("add_rows_{}", suffix(x.dtype(), &[c, d], &[table, x]));
        let gate = gate.map_or(Arg::Ptr(0), Arg::from);
        let threads = c.div_ceil(4).next_multiple_of(32).clamp(32, 256) as u32;
        let mut all = args![table, x].to_vec();
        all.push(gate);
        all.extend(args![&order, &start, int(c), int(d)]);
        self.launch(&kernel, blocks(vocab, threads, 0), &all)
    }

    /// Positions in the order of their ids, and where those of each id begin.
    fn sort_by_id(&self, ids: &Tensor, vocab: usize) -> Result<(Tensor, Tensor)> {
        let n = ids.len();
        let chunks = n.div_ceil(CHUNK);
        let lens = [chunks * vocab, vocab, vocab + 1, n, n];
        let all = self.work(Work::Order, lens.iter().sum(), DType::I32)?;
        let mut at = 0;
        let [count, total, start, rank, order] = lens.map(|len| {
            at += len;
            all.slice(at - len..at)
        });
        let (_, counts) = count.device().expect("worked in on the device");
        self.driver.zero(counts, count.bytes())?;
        let (shared, v) = (4 * CHUNK as u32, int(vocab));
        let grid = blocks(chunks, CHUNK as u32, shared);
        self.launch("rank_ids", grid, args![&count, &rank, ids, int(n), v])?;
        let columns = blocks(vocab.div_ceil(256), 256, 0);
        self.launch("scan_chunks", columns, args![&count, &total, int(chunks), v])?;
        self.launch("scan_ids", blocks(1, CHUNK as u32, shared), args![&start, &total, v])?;
        let args = args![&order, ids, &rank, &count, &start, int(n), v];
        self.launch("place_ids", blocks(chunks, CHUNK as u32, 0), args)?;
        Ok((order, start))
    }
}
