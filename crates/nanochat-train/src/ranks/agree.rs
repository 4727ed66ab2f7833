//! Decisions that all ranks take alike: what one of them met, all of them act on.

use nanochat_compute::Comm;
use sha2::{Digest, Sha256};

use crate::stop::Why;
use crate::{Error, Result};

/// Why to stop, when any rank was asked to: a signal by its number, which wins over the time.
pub fn stop(comm: &dyn Comm, mine: Option<Why>) -> Result<Option<Why>> {
    if comm.world() == 1 {
        return Ok(mine);
    }
    // Deadlines are 1, signals above.
    let mut code = [match mine {
        None => 0.0,
        Some(Why::Deadline) => 1.0,
        Some(Why::Signal(n)) => 1.0 + n as f64,
    }];
    comm.all_reduce_max(&mut code)?;
    Ok(match code[0] as usize {
        0 => None,
        1 => Some(Why::Deadline),
        n => Some(Why::Signal(n - 1)),
    })
}

/// True when it is on any rank.
pub fn any(comm: &dyn Comm, mine: bool) -> Result<bool> {
    let mut value = [f64::from(u8::from(mine))];
    comm.all_reduce_max(&mut value)?;
    Ok(value[0] > 0.0)
}

/// The least of a number over the ranks; none counts as more than all.
pub fn least(comm: &dyn Comm, mine: Option<usize>) -> Result<Option<usize>> {
    if comm.world() == 1 {
        return Ok(mine);
    }
    let mut value = [mine.map_or(f64::NEG_INFINITY, |n| -(n as f64))];
    comm.all_reduce_max(&mut value)?;
    Ok(value[0].is_finite().then_some(-value[0] as usize))
}

/// Rank 0's text on every rank.
pub fn of_rank_0(comm: &dyn Comm, mine: String) -> Result<String> {
    if comm.world() == 1 {
        return Ok(mine);
    }
    let mut bytes = mine.into_bytes();
    comm.broadcast(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Errors: [`Error::Disagree`] on every rank when they do not all have the same text.
pub fn same(comm: &dyn Comm, what: &'static str, mine: &str) -> Result<()> {
    if comm.world() == 1 {
        return Ok(());
    }
    let digest = Sha256::digest(mine.as_bytes());
    // 48 bits are a whole f64 of either sign: the largest and the smallest agree only when all do.
    let number = digest[..6].iter().fold(0.0, |sum, byte| sum * 256.0 + f64::from(*byte));
    let mut both = [number, -number];
    comm.all_reduce_max(&mut both)?;
    if both[0] == -both[1] {
        return Ok(());
    }
    let rank_0 = of_rank_0(comm, mine.to_owned())?;
    Err(Error::Disagree { what, rank: comm.rank(), mine: mine.to_owned(), rank_0 })
}
