//! Ranks: processes that train one model together, and how numbers pass between them.
//!
//! | room | what |
//! |---|---|
//! | [`Comm`] | the collectives that a train step needs; [`Solo`] is the world of one |
//! | [`wire`] | all of them over any means of passing bytes: sums in one fixed order |
//! | [`threads`] | ranks that are threads of one process |
//! | [`tcp`] | ranks that are processes, on one machine or several |
//! | [`identity`] | who this process is, from the environment that a launcher made |
//! | [`rendezvous`] | how ranks find each other, and that all of them are of one mind |
//! | [`heartbeat`] | a rank that died or hangs ends the others, by name |
//!
//! `mpi` (Cargo feature) and `nccl` are the other two means.

pub mod heartbeat;
pub mod identity;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod rendezvous;
pub mod tcp;
pub mod threads;
pub mod wire;

use std::ops::Range;

use crate::{Result, Tensor};

/// A stretch of parameters (or of what is laid out as they are), and the rank that steps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Elements.
    pub range: Range<usize>,
    /// Its rank; none: every rank keeps and steps it.
    pub owner: Option<usize>,
}

impl Part {
    /// True when this rank steps it.
    pub fn is_of(&self, rank: usize) -> bool {
        self.owner.is_none_or(|owner| owner == rank)
    }
}

/// The collectives of one rank. Object-safe: hold it as `&dyn Comm`.
///
/// Every rank calls the same methods in the same order with the same `parts` and lengths. Sums are taken
/// in an order that depends on the number of ranks alone. Errors of every method:
/// [`crate::Error::Rank`] naming the rank that could not be reached, [`crate::Error::Device`] of the
/// library in use.
pub trait Comm {
    /// This process, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn world(&self) -> usize;
    /// In words: `tcp`.
    fn name(&self) -> &'static str;
    /// Adds up f32 `data` over the ranks: each rank gets the sums of the parts that it steps; what
    /// stands in the others afterwards is not defined.
    fn reduce_scatter(&self, data: &Tensor, parts: &[Part]) -> Result<()>;
    /// Gives every rank the parts of f32 `data` that their owners have; parts of all are left alone.
    fn all_gather(&self, data: &Tensor, parts: &[Part]) -> Result<()>;
    /// Adds up a few numbers over the ranks.
    fn all_reduce_sum(&self, values: &mut [f64]) -> Result<()>;
    /// The largest of each of a few numbers over the ranks; NaNs count as less than all others.
    fn all_reduce_max(&self, values: &mut [f64]) -> Result<()>;
    /// Gives every rank the bytes of rank 0.
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()>;
    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()> {
        self.all_reduce_sum(&mut [0.0])
    }
}

/// The world of one rank: nothing is sent, nothing is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn name(&self) -> &'static str {
        "solo"
    }

    fn reduce_scatter(&self, _: &Tensor, _: &[Part]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&self, _: &Tensor, _: &[Part]) -> Result<()> {
        Ok(())
    }

    fn all_reduce_sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn all_reduce_max(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }
}
