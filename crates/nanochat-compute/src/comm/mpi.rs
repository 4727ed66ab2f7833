//! Ranks that MPI connects (Cargo feature `mpi`): any network that the cluster's MPI knows.
//!
//! Only bytes pass through it; sums are [`super::wire`]'s, so they have the same bits as over TCP. `mpirun`
//! says who is who; [`super::rendezvous`] and [`super::heartbeat`] still see to it that all are of one mind
//! and that a lost rank is named.

use std::mem::ManuallyDrop;

use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Source};

use super::identity::Identity;
use super::wire::{OverWire, Wire};
use crate::{Error, Result};

/// Bytes of a message at most: MPI counts in `int`.
const MOST: usize = 1 << 30;

/// One rank of MPI's world.
pub struct Mpi {
    /// Ended by [`Mpi::drop`] alone: a rank that fails must not wait for the others there.
    _universe: ManuallyDrop<Universe>,
    world: SimpleCommunicator,
}

impl Mpi {
    /// Opens MPI. Errors: it is open already, or has other ranks than the launcher said.
    pub fn open(me: &Identity) -> Result<OverWire<Self>> {
        let failed = |detail: String| Error::Device { what: "MPI", detail };
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| failed("it is open already in this process".into()))?;
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        if (rank, size) != (me.rank, me.world) {
            return Err(failed(format!(
                "it says rank {rank} of {size}, {} says {} of {}: start all ranks with one mpirun of the \
                 MPI that this program was built with",
                me.launcher, me.rank, me.world
            )));
        }
        Ok(OverWire(Self { _universe: ManuallyDrop::new(universe), world }))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // SAFETY: dropped here once and never used afterwards; `world` holds no borrow of it.
        unsafe { ManuallyDrop::drop(&mut self._universe) }
    }
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world(&self) -> usize {
        self.world.size() as usize
    }

    fn name(&self) -> &'static str {
        "mpi"
    }

    fn exchange(&self, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let me = Wire::rank(self);
        let lengths: Vec<u64> = send.iter().map(|bytes| bytes.len() as u64).collect();
        let mut due = vec![0u64; lengths.len()];
        self.world.all_to_all_into(&lengths[..], &mut due[..]);
        let mut all: Vec<Vec<u8>> = due.iter().map(|&n| vec![0; n as usize]).collect();
        mpi::request::scope(|scope| {
            let mut requests = Vec::new();
            for (rank, bytes) in all.iter_mut().enumerate().filter(|(rank, _)| *rank != me) {
                let from = self.world.process_at_rank(rank as i32);
                for piece in bytes.chunks_mut(MOST) {
                    requests.push(from.immediate_receive_into(scope, piece));
                }
            }
            let mut sent = Vec::new();
            for (rank, bytes) in send.iter().enumerate().filter(|(rank, _)| *rank != me) {
                let to = self.world.process_at_rank(rank as i32);
                for piece in bytes.chunks(MOST) {
                    sent.push(to.immediate_send(scope, piece));
                }
            }
            requests.into_iter().for_each(|request| {
                request.wait_without_status();
            });
            sent.into_iter().for_each(|request| request.wait_without_status());
        });
        all[me].clone_from(&send[me]);
        Ok(all)
    }
}
