//! Several processes that train one run: who they are, how they meet, what ends all of them.
//!
//! In: the launcher's environment, flags. Out: a [`Comm`], on which a stage runs as it would alone; rank 0
//! is the one that speaks and writes. An end that not all ranks know of is told to the others.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nanochat_compute::comm::Solo;
use nanochat_compute::comm::heartbeat::Heartbeat;
use nanochat_compute::comm::identity::Identity;
use nanochat_compute::comm::nccl::Nccl;
use nanochat_compute::comm::rendezvous::{self, Met, Terms};
use nanochat_compute::comm::tcp::Tcp;
use nanochat_compute::{Backend, Comm, cuda};
use nanochat_train::Error;
use nanochat_train::batch_size::{Choice, Job};
use nanochat_train::ranks::sums::Sum;

use crate::batch::{self, BatchFlags, Wanted};
use crate::cli::{Device, Global};
use crate::cmd::train::Time;
use crate::screen::Screen;
use crate::{exit, machine};

/// What the launcher gives ranks so that no others join them.
pub const TOKEN: &str = "NANOCHAT_RANKS_TOKEN";

/// How several processes train one run.
#[derive(Args, Clone, Debug)]
pub struct RanksFlags {
    /// How ranks pass numbers; `auto` is nccl on GPUs, mpi under mpirun where it is built in, else tcp.
    #[arg(long, value_enum, default_value_t = Means::Auto)]
    pub comm: Means,
    /// Sums gradients pairwise: the same bits on 1, 2, 4 ... ranks, for more memory.
    #[arg(long)]
    pub same_bits: bool,
    /// How long to wait for the other ranks at the start.
    #[arg(long, value_name = "TIME", default_value = "9s")]
    pub rank_wait: Time,
}

impl RanksFlags {
    /// How gradients are summed.
    pub fn sum(&self) -> Sum {
        if self.same_bits { Sum::Pairwise } else { Sum::Running }
    }
}

/// Ways to pass numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Means {
    /// As the device and the launcher have it.
    Auto,
    /// Alone, whatever the environment says.
    Solo,
    /// A connection between every two ranks.
    Tcp,
    /// MPI (a program built with `--features mpi`).
    Mpi,
    /// NVIDIA's library.
    Nccl,
}

/// Errors: a launcher started this process as one of several ranks, and `command` is for one.
pub fn expect_one(command: &str) -> Result<()> {
    match Identity::read(&|name| std::env::var(name).ok())?.filter(|me| me.world > 1) {
        Some(me) => bail!(
            "{command} runs on one rank, and this is rank {} of {}: start it without the launcher",
            me.rank,
            me.world
        ),
        None => Ok(()),
    }
}

/// This process among the others.
pub struct Ranks {
    comm: Box<dyn Comm>,
    beat: Option<Heartbeat>,
    /// Ranks on this machine.
    neighbours: usize,
    /// Which of its GPUs this rank takes.
    local_rank: usize,
}

impl Ranks {
    /// Meets the ranks that the environment tells of; a process that `is_supervisor` meets nobody.
    ///
    /// Errors: who is missing or was started otherwise.
    pub fn meet(flags: &RanksFlags, global: &Global, is_supervisor: bool) -> Result<Self> {
        let me = match flags.comm {
            Means::Solo => None,
            _ => Identity::read(&|name| std::env::var(name).ok())?.filter(|me| me.world > 1),
        };
        let Some(me) = me else {
            if matches!(flags.comm, Means::Tcp | Means::Mpi | Means::Nccl) {
                bail!(
                    "--comm {:?} is for several ranks, and no launcher says that there are: start them with \
                     \"nanochat launch --nproc N -- train ...\", torchrun, mpirun or srun",
                    flags.comm
                );
            }
            let comm = Box::new(Solo);
            return Ok(Self { comm, beat: None, neighbours: 1, local_rank: 0 });
        };
        if is_supervisor {
            bail!(
                "--supervise starts one process again, this is rank {} of {}: give it to \"nanochat launch \
                 --nproc N -- train ... --supervise\", or start the job again from its script",
                me.rank,
                me.world
            );
        }
        let terms = Terms {
            version: machine::VERSION.into(),
            command: std::env::args().skip(1).collect::<Vec<_>>().join("\0"),
            token: std::env::var(TOKEN).unwrap_or_default(),
            patience: flags.rank_wait.0,
        };
        let mut met = rendezvous::meet(&me, &terms)?;
        let ip = met.addresses[me.rank].ip();
        let neighbours = met.addresses.iter().filter(|a| a.ip() == ip).count();
        let rank = me.rank;
        let comm = wire(flags.comm, global, &met)?;
        let beat = Heartbeat::start(&mut met, move |lost| {
            // In one piece: several ranks write to one terminal.
            let text = format!("error: rank {rank}: {lost}\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            std::process::exit(exit::RANK_LOST.into());
        });
        Ok(Self { comm, beat: Some(beat), neighbours, local_rank: me.local_rank })
    }

    /// The collectives.
    pub fn comm(&self) -> &dyn Comm {
        &*self.comm
    }

    /// True on the rank that speaks and writes.
    pub fn is_first(&self) -> bool {
        self.comm.rank() == 0
    }

    /// Opens this rank's device: of several GPUs the one of its place on the machine.
    pub fn backend(&self, global: &Global) -> Result<Box<dyn Backend>> {
        if self.comm.world() == 1 {
            return global.backend();
        }
        let gpus = cuda::gpus().map_or(1, |gpus| gpus.len().max(1));
        match global.gpu_of(self.local_rank % gpus)? {
            Some(gpu) => Ok(Box::new(gpu)),
            None => Ok(Box::new(global.cpu()?)),
        }
    }

    /// Rows of a step on one rank. Errors: ranks do not divide them.
    pub fn share(&self, rows: usize) -> Result<usize> {
        let world = self.comm.world();
        if !rows.is_multiple_of(world) {
            bail!(
                "{rows} rows a step cannot be shared by {world} ranks: give a --total-batch-size that is a \
                 multiple of {world} rows"
            );
        }
        Ok(rows / world)
    }

    /// B, the same on every rank: rank 0 chooses, the others see whether it fits.
    pub fn settle(
        &self,
        be: &dyn Backend,
        job: &Job<'_>,
        wanted: Wanted,
        flags: &BatchFlags,
        screen: &mut Screen,
    ) -> Result<(usize, Option<Choice>)> {
        let margin = match be.own_memory() {
            // Ranks of one machine share its memory.
            None => flags.batch_size_margin / self.neighbours as f64,
            Some(_) => flags.batch_size_margin,
        };
        let flags = BatchFlags { batch_size_margin: margin, ..*flags };
        let mut say = |line: &str| screen.say(line);
        if self.comm.world() == 1 {
            return batch::settle(be, job, wanted, &flags, &mut say);
        }
        let mut word = Vec::new();
        let mut choice = None;
        if self.is_first() {
            let (b, how) = batch::settle(be, job, wanted, &flags, &mut say)?;
            (word, choice) = ((b as u64).to_le_bytes().to_vec(), how);
        }
        self.comm.broadcast(&mut word)?;
        let word: [u8; 8] = word.try_into().ok().context("rank 0 gave no batch size")?;
        let b = usize::try_from(u64::from_le_bytes(word))?;
        if !self.is_first() {
            batch::settle(be, job, Wanted::Given(b), &flags, &mut say)?;
        }
        Ok((b, choice))
    }

    /// Runs a stage; what ends this rank alone is told to the others.
    pub fn run(self, stage: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let end = stage(&self);
        let Some(beat) = &self.beat else { return end };
        match &end {
            // Nobody leaves before the last one is done: rank 0 may still be writing.
            Ok(()) => self.comm.barrier()?,
            Err(e) if is_of_all(e) => {}
            Err(e) if is_of_another(e) => {
                // The heartbeat knows better who it was, and ends this process.
                std::thread::sleep(std::time::Duration::from_secs(2));
            }
            Err(e) => beat.fail(&format!("{e:#}")),
        }
        beat.bye();
        if end.is_err() {
            // What a library does at its end may wait for ranks that are gone.
            std::mem::forget(self.comm);
        }
        end
    }
}

/// What all ranks meet alike.
fn is_of_all(e: &anyhow::Error) -> bool {
    let ours = e.chain().find_map(|cause| cause.downcast_ref::<Error>());
    matches!(
        ours,
        Some(
            Error::Stopped { .. }
                | Error::Diverged { .. }
                | Error::Unsaved { .. }
                | Error::Disagree { .. }
                | Error::Resume { .. }
                | Error::Recipe { .. }
        )
    )
}

fn is_of_another(e: &anyhow::Error) -> bool {
    let is_rank = |cause: &(dyn std::error::Error + 'static)| {
        matches!(
            cause.downcast_ref::<nanochat_compute::Error>(),
            Some(nanochat_compute::Error::Rank { .. })
        ) || matches!(
            cause.downcast_ref::<Error>(),
            Some(Error::Compute(nanochat_compute::Error::Rank { .. }))
        )
    };
    e.chain().any(is_rank)
}

/// The collectives of a world of several.
fn wire(means: Means, global: &Global, met: &Met) -> Result<Box<dyn Comm>> {
    let means = match means {
        // What lies on the host goes by TCP there, too.
        Means::Auto if global.device != Device::Cpu && has_gpus() => Means::Nccl,
        Means::Auto if cfg!(feature = "mpi") && met.me.launcher == "mpirun" => Means::Mpi,
        Means::Auto => Means::Tcp,
        given => given,
    };
    match means {
        Means::Mpi => mpi(met),
        Means::Nccl => Ok(Box::new(Nccl::over(Tcp::connect(met)?))),
        _ => Ok(Box::new(Tcp::connect(met)?)),
    }
}

/// True where there is a GPU to run on.
pub fn has_gpus() -> bool {
    cuda::gpus().is_ok_and(|gpus| !gpus.is_empty())
}

#[cfg(feature = "mpi")]
fn mpi(met: &Met) -> Result<Box<dyn Comm>> {
    Ok(Box::new(nanochat_compute::comm::mpi::Mpi::open(&met.me)?))
}

#[cfg(not(feature = "mpi"))]
fn mpi(_: &Met) -> Result<Box<dyn Comm>> {
    bail!(
        "this program was built without MPI: build it with \"cargo build --release --features mpi\" (needs \
         an MPI and libclang), or leave --comm mpi out"
    )
}
