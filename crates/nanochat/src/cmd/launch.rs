//! `nanochat launch`: one command as several processes of this machine, each a rank of one run.

use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nanochat_train::stop::StopSignal;

use super::train::listen;
use crate::cli::{Device, Global};
use crate::ranks::{TOKEN, has_gpus};
use crate::run_dir::RunDir;
use crate::{exit, supervise};

/// Flags of `launch`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example: nanochat launch --nproc 4 -- train base --run runs/d4 --depth 4 --resume\n\
                  With --supervise among the command's flags, all ranks are started again after a crash."
)]
pub struct LaunchArgs {
    /// Ranks.
    #[arg(long, short)]
    pub nproc: usize,
    /// Port of the rendezvous; none: a free one.
    #[arg(long)]
    pub port: Option<u16>,
    /// Starts them through `mpirun`, so that they talk by MPI (a program built with `--features mpi`).
    #[arg(long)]
    pub mpi: bool,
    /// The command: `train base ...` or `train sft ...`.
    #[arg(last = true, required = true, num_args = 1..)]
    pub command: Vec<String>,
}

/// How often the ranks and the signals are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// After the first rank ended badly the others have this long to do so too: they know by then, and one
/// that is stopped never will.
const GRACE: Duration = Duration::from_secs(4);

/// Runs the command.
pub fn run(args: &LaunchArgs, global: &Global) -> Result<()> {
    if args.nproc == 0 {
        bail!("--nproc 0 starts nothing: give at least 1");
    }
    let stage = match args.command.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["train", stage @ ("base" | "sft"), ..] => stage,
        _ => bail!(
            "launch starts \"train base\" and \"train sft\", not \"{}\"",
            args.command.iter().take(2).cloned().collect::<Vec<_>>().join(" ")
        ),
    };
    let stop = StopSignal::default();
    listen(&stop).context("cannot listen for signals")?;
    if args.command.iter().any(|word| word == "--supervise") {
        let Some(run) = value(&args.command, "--run") else {
            bail!("--supervise looks at the run's checkpoints: give the run with --run DIR");
        };
        let run = RunDir::open_or_create(Some(run.as_ref()), "")?;
        let resume = args.command.iter().any(|word| word == "--resume");
        return supervise::run(&run, stage, resume, &stop);
    }
    if args.mpi {
        return mpirun(args, global);
    }
    let ranks = start(args, global)?;
    let code = watch(ranks, &stop)?;
    std::process::exit(code.into())
}

/// The value of a flag, written with a space or with `=`.
fn value<'a>(words: &'a [String], flag: &str) -> Option<&'a str> {
    let with_equals = format!("{flag}=");
    words.iter().enumerate().find_map(|(i, word)| match word.strip_prefix(&with_equals) {
        Some(value) => Some(value),
        None if word == flag => words.get(i + 1).map(String::as_str),
        None => None,
    })
}

/// The command with this machine's threads dealt to the ranks, unless somebody said how many.
fn words(args: &LaunchArgs, global: &Global) -> Vec<String> {
    let mut words = args.command.clone();
    let is_cpu = global.device == Device::Cpu || !has_gpus();
    if is_cpu && value(&words, "--threads").is_none() {
        let threads = (global.threads_given() / args.nproc).max(1);
        words.push(format!("--threads={threads}"));
    }
    words
}

struct Started {
    rank: usize,
    child: Child,
    end: Option<ExitStatus>,
}

fn start(args: &LaunchArgs, global: &Global) -> Result<Vec<Started>> {
    let me = std::env::current_exe().context("cannot find this program")?;
    let port = match args.port {
        Some(port) => port,
        None => {
            // Free now; given back so that rank 0 can take it.
            let probe = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
            probe.local_addr()?.port()
        }
    };
    let token = format!("{}-{:?}", std::process::id(), std::time::SystemTime::now());
    let words = words(args, global);
    let mut ranks: Vec<Started> = Vec::new();
    for rank in 0..args.nproc {
        let mut command = Command::new(&me);
        command.args(&words).stdin(Stdio::null());
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", args.nproc.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env(TOKEN, &token);
        // A Ctrl-C of the terminal reaches this process alone, which passes it on once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        match command.spawn() {
            Ok(child) => ranks.push(Started { rank, child, end: None }),
            Err(e) => {
                for started in &mut ranks {
                    end(started);
                }
                return Err(e).with_context(|| format!("cannot start rank {rank}"));
            }
        }
    }
    Ok(ranks)
}

fn end(started: &mut Started) {
    // It may just have ended by itself.
    let _ = started.child.kill();
    let _ = started.child.wait();
}

/// Waits for all; passes signals on; ends what does not end by itself after one ended badly. Returns the
/// exit code: of the first rank that ended badly, for a run that was asked to stop that of rank 0.
fn watch(mut ranks: Vec<Started>, stop: &StopSignal) -> Result<u8> {
    let (mut passed, mut first_bad, mut code) = (None, None::<Instant>, 0);
    loop {
        for started in ranks.iter_mut().filter(|r| r.end.is_none()) {
            let Some(status) = started.child.try_wait().context("cannot wait for a rank")? else {
                continue;
            };
            started.end = Some(status);
            if status.success() {
                continue;
            }
            let its = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
            // A rank that was lost is the reason, those that stop because of it are not.
            if code == 0 || code == exit::RANK_LOST {
                code = its;
            }
            if its != exit::RESUME && its != exit::RANK_LOST {
                eprintln!("launch: rank {} ended with {status}", started.rank);
            }
            if its != exit::RESUME {
                first_bad.get_or_insert_with(Instant::now);
            }
        }
        if ranks.iter().all(|r| r.end.is_some()) {
            return Ok(code);
        }
        if first_bad.is_some_and(|since| since.elapsed() > GRACE) {
            for started in ranks.iter_mut().filter(|r| r.end.is_none()) {
                eprintln!(
                    "launch: rank {} does not end: it is killed now ({}s after the first)",
                    started.rank,
                    GRACE.as_secs()
                );
                end(started);
            }
        }
        let asked = stop.asked(Duration::ZERO);
        if asked.is_some() && asked != passed {
            for started in ranks.iter().filter(|r| r.end.is_none()) {
                supervise::pass_on(&started.child, asked);
            }
            passed = asked;
        }
        std::thread::sleep(LOOK);
    }
}

/// The same through `mpirun`, which starts, watches and ends the ranks.
fn mpirun(args: &LaunchArgs, global: &Global) -> Result<()> {
    if !cfg!(feature = "mpi") {
        bail!(
            "this program was built without MPI: build it with \"cargo build --release --features mpi\" \
             (needs an MPI and libclang), or leave --mpi out"
        );
    }
    let me = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "-n", &args.nproc.to_string()]);
    if is_root() {
        command.arg("--allow-run-as-root");
    }
    let port = args.port.map_or_else(
        || -> Result<u16> { Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port()) },
        Ok,
    )?;
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.arg(me).args(words(args, global));
    let status = command.status().context(
        "cannot start mpirun: install it (Debian: apt-get install openmpi-bin), or leave --mpi out",
    )?;
    std::process::exit(status.code().unwrap_or(1))
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::getuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}
