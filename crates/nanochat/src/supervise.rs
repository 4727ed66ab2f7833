//! `--supervise`: the trainer in a process of its own, started again after a crash.
//!
//! In: the command line. Out: the trainer's exit code. A crash is an end by a signal, a panic, or an error;
//! what was asked for (code 75), what cannot help (2, 65) and success are passed on. Crashes without a new
//! checkpoint in between are a loop, and end.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nanochat_gpt::checkpoint;
use nanochat_train::stop::StopSignal;

use crate::exit;
use crate::run_dir::RunDir;
use crate::screen::Screen;

/// Crashes in a row without a new checkpoint.
const MAX_CRASHES: u32 = 3;
/// Before the first new start; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How often the trainer and the signals are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Runs this command line without `--supervise` until it ends, and passes its code on by ending this
/// process.
///
/// Errors: a crash loop, with what was seen.
pub fn run(run: &RunDir, stage: &str, resume: bool, stop: &StopSignal) -> Result<()> {
    let dir = run.join(stage);
    if !resume && newest(&dir).is_some() {
        bail!(
            "{} already holds checkpoints: go on with --resume, or choose another --run",
            dir.display()
        );
    }
    let (mut crashes, mut wait, mut resume) = (0, FIRST_WAIT, resume);
    let mut seen = Vec::new();
    loop {
        let before = newest(&dir);
        let began = Instant::now();
        let mut child = start(resume)?;
        let status = watch(&mut child, stop)?;
        let mut screen = Screen::open_log(run)?;
        match status.code() {
            Some(code @ (0 | 2)) => std::process::exit(code),
            Some(code) if code == i32::from(exit::RESUME) || code == i32::from(exit::DIVERGED) => {
                std::process::exit(code)
            }
            Some(exit::AT_ONCE) => std::process::exit(exit::AT_ONCE),
            _ => {}
        }
        if stop.asked(Duration::ZERO).is_some() {
            bail!(
                "the trainer ended with {status} while it was asked to stop: go on with --resume"
            );
        }
        let after = newest(&dir);
        if after > before {
            (crashes, wait) = (0, FIRST_WAIT);
            seen.clear();
        }
        crashes += 1;
        let seconds = began.elapsed().as_secs_f64();
        seen.push(format!("{status} after {seconds:.0}s"));
        if crashes >= MAX_CRASHES {
            bail!(
                "a crash loop: {crashes} times in a row without a new checkpoint after step {} ({}): see {} \
                 and what the trainer said above, then go on with --resume",
                after.unwrap_or(0),
                seen.join("; "),
                run.join("log.txt").display()
            );
        }
        screen.say(&format!(
            "ALARM: the trainer ended with {status}; it goes on from step {} in {}s (start {crashes} of {} \
             without a new checkpoint)",
            after.unwrap_or(0),
            wait.as_secs(),
            MAX_CRASHES - 1
        ));
        drop(screen);
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if let Some(why) = stop.asked(Duration::ZERO) {
                bail!("stopped by {why} between two starts: go on with --resume");
            }
            std::thread::sleep(LOOK);
        }
        wait = (2 * wait).min(LONGEST_WAIT);
        resume = resume || after.is_some();
    }
}

fn newest(dir: &Path) -> Option<u64> {
    checkpoint::steps(dir).ok()?.last().map(|(step, _)| *step)
}

/// The same command line in a process group of its own: a Ctrl-C of the terminal reaches this process
/// alone, which passes it on once.
fn start(resume: bool) -> Result<Child> {
    let me = std::env::current_exe().context("cannot find this program")?;
    let mut args: Vec<_> = std::env::args_os().skip(1).filter(|a| a != "--supervise").collect();
    if resume && !args.iter().any(|a| a == "--resume") {
        args.push("--resume".into());
    }
    let mut command = Command::new(me);
    command.args(args);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().context("cannot start the trainer")
}

/// Waits for the trainer; what this process is told is passed on to it.
fn watch(child: &mut Child, stop: &StopSignal) -> Result<ExitStatus> {
    let mut passed = None;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the trainer")? {
            return Ok(status);
        }
        let asked = stop.asked(Duration::ZERO);
        if asked.is_some() && asked != passed {
            pass_on(child, asked);
            passed = asked;
        }
        std::thread::sleep(LOOK);
    }
}

/// Sends a child the signal that this process was sent.
#[cfg(unix)]
pub fn pass_on(child: &Child, why: Option<nanochat_train::stop::Why>) {
    use nanochat_train::stop::Why;
    use rustix::process::{Pid, Signal, kill_process};
    let signal = match why {
        Some(Why::Signal(2)) => Signal::INT,
        Some(Why::Signal(10)) => Signal::USR1,
        _ => Signal::TERM,
    };
    // It may just have ended.
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Sends a child the signal that this process was sent.
#[cfg(not(unix))]
pub fn pass_on(_: &Child, _: Option<nanochat_train::stop::Why>) {}
