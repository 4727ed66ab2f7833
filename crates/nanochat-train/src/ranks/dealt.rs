//! Batches that ranks share between them: rank r takes every world-th from the r-th on.

use nanochat_compute::Comm;
use nanochat_data::{Batch, Batches};

use crate::Result;
use crate::eval::bpb::BitsPerByte;

/// One rank's batches of a stream that every rank reads.
pub struct Dealt {
    inner: Box<dyn Batches>,
    /// To be passed over before the next one of this rank.
    skip: usize,
    world: usize,
}

/// A rank's share of the first `n` batches of a stream, and how many they are.
pub fn of_rank(inner: Box<dyn Batches>, n: usize, comm: &dyn Comm) -> (Dealt, usize) {
    let (rank, world) = (comm.rank(), comm.world());
    (Dealt { inner, skip: rank, world }, n.saturating_sub(rank).div_ceil(world))
}

impl Batches for Dealt {
    fn next_batch(&mut self) -> nanochat_data::Result<Batch> {
        for _ in 0..std::mem::replace(&mut self.skip, self.world - 1) {
            self.inner.next_batch()?;
        }
        self.inner.next_batch()
    }

    fn state(&self) -> Vec<u8> {
        self.inner.state()
    }

    fn restore(&mut self, state: &[u8]) -> nanochat_data::Result<()> {
        self.inner.restore(state)
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }

    fn progress(&self) -> f64 {
        self.inner.progress()
    }
}

/// What all ranks have counted together.
pub fn total(mine: BitsPerByte, comm: &dyn Comm) -> Result<BitsPerByte> {
    // Counts below 2^53 are whole as f64.
    let mut sums = [mine.nats, mine.bytes as f64, mine.tokens as f64];
    comm.all_reduce_sum(&mut sums)?;
    Ok(BitsPerByte { nats: sums[0], bytes: sums[1] as u64, tokens: sums[2] as u64 })
}
