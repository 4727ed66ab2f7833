//! Who this process is among the ranks, from the environment that a launcher made.
//!
//! | launcher | rank | world | rank on its machine |
//! |---|---|---|---|
//! | torchrun, `nanochat launch` | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` |
//! | `mpirun` of Open MPI | `OMPI_COMM_WORLD_RANK` | `.._SIZE` | `.._LOCAL_RANK` |
//! | `srun` | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID` |
//!
//! `MASTER_ADDR` and `MASTER_PORT` say where rank 0 listens. torchrun keeps that port for itself, so the
//! next one is taken there.

use crate::{Error, Result};

/// Where rank 0 listens when nobody says.
pub const PORT: u16 = 29500;

/// A process among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// From 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// Rank among those of this machine: which of its GPUs to take.
    pub local_rank: usize,
    /// Host where rank 0 listens.
    pub host: String,
    /// Port where rank 0 listens.
    pub port: u16,
    /// Who started it, in words.
    pub launcher: &'static str,
}

/// (launcher, rank, world, local rank), in the order in which they are looked for.
const NAMES: [(&str, &str, &str, &str); 3] = [
    ("torchrun's environment", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
];

impl Identity {
    /// What the environment says through `var`; none where no launcher says anything.
    ///
    /// Errors: [`Error::Invalid`] for numbers that are none, a rank outside its world, and several
    /// machines without `MASTER_ADDR`.
    pub fn read(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let known =
            NAMES.iter().find(|(_, rank, world, _)| var(rank).is_some() && var(world).is_some());
        let Some((launcher, rank, world, local)) = known else { return Ok(None) };
        let number = |name: &str| match var(name) {
            None => Ok(None),
            Some(text) => text.trim().parse::<usize>().map(Some).map_err(|_| {
                invalid(format!("{name}={text} of {launcher} is no number: set or unset it"))
            }),
        };
        let (rank_name, world_name) = (*rank, *world);
        let rank = number(rank_name)?.unwrap_or(0);
        let world = number(world_name)?.unwrap_or(1);
        if rank >= world {
            return Err(invalid(format!(
                "{rank_name}={rank} is outside of {world_name}={world}: ranks count from 0"
            )));
        }
        let local_rank = number(local)?.unwrap_or(0);
        let host = var("MASTER_ADDR").unwrap_or_else(|| "127.0.0.1".into());
        let port = match number("MASTER_PORT")? {
            None => PORT,
            Some(port) => u16::try_from(port)
                .map_err(|_| invalid(format!("MASTER_PORT={port} is above 65535")))?,
        };
        let is_taken = var("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
        let port = if is_taken { port.wrapping_add(1) } else { port };
        Ok(Some(Self { rank, world, local_rank, host, port, launcher }))
    }
}

fn invalid(detail: String) -> Error {
    Error::Invalid { op: "ranks", detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Identity>> {
        let find = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        Identity::read(&find)
    }

    #[test]
    fn each_launcher_is_understood() {
        assert_eq!(read(&[]).expect("nothing"), None);
        let torch = [
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "node7"),
            ("MASTER_PORT", "1234"),
        ];
        let me = read(&torch).expect("sound").expect("there");
        assert_eq!((me.rank, me.world, me.local_rank), (3, 8, 1));
        assert_eq!((me.host.as_str(), me.port), ("node7", 1234));
        let agent = [&torch[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
        assert_eq!(read(&agent).expect("sound").map(|me| me.port), Some(1235));
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        let me = read(&mpi).expect("sound").expect("there");
        assert_eq!((me.rank, me.world, me.launcher), (1, 2, "mpirun"));
        assert_eq!((me.host.as_str(), me.port), ("127.0.0.1", PORT));
        let slurm = [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "6"), ("SLURM_LOCALID", "2")];
        let me = read(&slurm).expect("sound").expect("there");
        assert_eq!((me.rank, me.world, me.local_rank, me.launcher), (5, 6, 2, "srun"));
        // A batch script that did not call srun is one process.
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).expect("sound"), None);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let why = |vars: &[(&str, &str)]| read(vars).map(|_| ()).expect_err("refused").to_string();
        assert!(why(&[("RANK", "4"), ("WORLD_SIZE", "4")]).contains("outside of WORLD_SIZE=4"));
        assert!(why(&[("RANK", "x"), ("WORLD_SIZE", "4")]).contains("RANK=x"));
        let port = [("RANK", "0"), ("WORLD_SIZE", "4"), ("MASTER_PORT", "70000")];
        assert!(why(&port).contains("above 65535"));
        assert!(why(&[("RANK", "0"), ("WORLD_SIZE", "0")]).contains("outside"));
    }
}
