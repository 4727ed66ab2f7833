//! Ranks that are threads of one process: for tests, and for looking at what ranks do in a debugger.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::wire::{OverWire, Wire};
use crate::{Error, Result};

/// One rank of a group of threads. Tensors stay on their thread; only bytes pass.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Threads {
    /// All ranks of a world, each to be moved to its thread.
    pub fn group(world: usize) -> Vec<OverWire<Self>> {
        let mut from: Vec<Vec<_>> = (0..world).map(|_| Vec::new()).collect();
        let mut to: Vec<Vec<_>> = (0..world).map(|_| Vec::new()).collect();
        for sends in &mut to {
            for receives in &mut from {
                let (sender, receiver) = channel();
                sends.push(sender);
                receives.push(receiver);
            }
        }
        let ends = to.into_iter().zip(from).enumerate();
        ends.map(|(rank, (to, from))| OverWire(Self { rank, to, from })).collect()
    }
}

impl Wire for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.to.len()
    }

    fn name(&self) -> &'static str {
        "threads"
    }

    fn exchange(&self, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let gone = |rank| Error::Rank { rank, detail: "its thread has ended".into() };
        for (rank, (to, bytes)) in self.to.iter().zip(send).enumerate() {
            to.send(bytes).map_err(|_| gone(rank))?;
        }
        let from = self.from.iter().enumerate();
        from.map(|(rank, from)| from.recv().map_err(|_| gone(rank))).collect()
    }
}
