//! Runs that span processes, through the program: the same end on 1, 2 and 4 ranks, ranks that are lost,
//! ranks that were not started alike.
//!
//! Over TCP always; over MPI where the program was built with it (`--features mpi`) and `mpirun` is there.
#![cfg(unix)]

mod deploy;
#[path = "../survival/lab.rs"]
#[allow(dead_code)]
mod lab;
mod lost;
mod met;
#[cfg(feature = "mpi")]
mod mpi;
mod same;
