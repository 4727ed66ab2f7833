//! `nanochat sandbox`: runs Python that a model wrote, where it can do no harm.
//!
//! In: a program. Out: what it wrote, how it ended, and one JSON object as the last line.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use nanochat_sandbox::{Limits, Program, Sandbox, Verdict};
use serde_json::json;

use crate::cli::Global;

/// What to do in the sandbox.
#[derive(Subcommand)]
pub enum SandboxCommand {
    /// Run a Python program; exit code 0 says that it ran to its end.
    #[command(after_help = "Examples:\n  \
        nanochat sandbox run solution.py --timeout 5\n  \
        nanochat sandbox run solution.py --tests tests.py\n  \
        echo 'assert 1 + 1 == 2' | nanochat sandbox run /dev/stdin\n\n\
        The last line of standard output is a JSON object; \"passed\" is true only if the whole\n\
        program ran to its end. An exit code of 0 alone is no pass: see docs/SANDBOX.md.")]
    Run(RunArgs),
    /// Time empty programs, several at once.
    #[command(after_help = "Example:\n  nanochat sandbox bench --programs 1000 --workers 2")]
    Bench(BenchArgs),
}

/// Flags of `sandbox run`.
#[derive(Args)]
pub struct RunArgs {
    /// The program; - or /dev/stdin reads standard input.
    #[arg(value_name = "FILE.py")]
    file: PathBuf,
    /// Tests, run in a process of their own that the program cannot reach; they call it by name.
    #[arg(long, value_name = "TESTS.py")]
    tests: Option<PathBuf>,
    /// Wall time in seconds.
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    timeout: f64,
}

/// Flags of `sandbox bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Programs to run.
    #[arg(long, default_value_t = 200)]
    programs: usize,
    /// Programs at a time.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

/// Runs `nanochat sandbox`.
pub fn run(command: &SandboxCommand, global: &Global) -> Result<()> {
    match command {
        SandboxCommand::Run(args) => run_file(args),
        SandboxCommand::Bench(args) => bench(args, global),
    }
}

fn run_file(args: &RunArgs) -> Result<()> {
    let timeout = Duration::try_from_secs_f64(args.timeout)
        .ok()
        .filter(|t| !t.is_zero() && t.as_secs() <= 3600)
        .with_context(|| format!("--timeout {}: give seconds between 0 and 3600", args.timeout))?;
    let source = source(&args.file)?;
    let mut program = Program::new(source).timeout(timeout);
    if let Some(tests) = &args.tests {
        program = program.judged_by(self::source(tests)?);
    }
    let (outcome, refusal) = match Sandbox::open(Limits::default()) {
        Ok(sandbox) => (Some(sandbox.run(&program)), None),
        Err(e) => (None, Some(Verdict::Unavailable(e))),
    };
    let verdict = outcome.as_ref().map(|o| &o.verdict).or(refusal.as_ref());
    let verdict = verdict.context("the sandbox gave no verdict")?;
    if let Some(outcome) = &outcome {
        print!("{}", outcome.stdout);
        eprint!("{}", outcome.stderr);
        if !outcome.stdout.is_empty() && !outcome.stdout.ends_with('\n') {
            println!();
        }
    }
    let (stdout, stderr) = outcome.as_ref().map_or(("", ""), |o| (&o.stdout, &o.stderr));
    println!(
        "{}",
        json!({
            "passed": *verdict == Verdict::Passed,
            "verdict": verdict.name(),
            "reason": verdict.to_string(),
            "exit": outcome.as_ref().and_then(|o| o.exit),
            "timed_out": *verdict == Verdict::Timeout,
            "stdout": stdout,
            "stderr": stderr,
            "wall_ms": outcome.as_ref().map_or(0.0, |o| o.wall.as_secs_f64() * 1e3),
        })
    );
    match verdict {
        Verdict::Passed => Ok(()),
        Verdict::Unavailable(why) => bail!("{why}"),
        other => bail!("{}: {other}", args.file.display()),
    }
}

/// The program's text; bytes that are not UTF-8 are no Python.
fn source(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") || file == Path::new("/dev/stdin") {
        std::io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(file).map(|b| bytes = b)
    };
    read.with_context(|| format!("cannot read the program {}", file.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", file.display()))
}

fn bench(args: &BenchArgs, global: &Global) -> Result<()> {
    let (programs, workers) = (args.programs.max(1), args.workers.max(1));
    let sandbox = Sandbox::open(Limits::default())?;
    let program = Program::new("pass");
    let (next, passed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Instant::now();
    let mut each_ms: Vec<f64> = std::thread::scope(|scope| {
        let worker = || {
            let mut times = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < programs {
                let outcome = sandbox.run(&program);
                passed.fetch_add(usize::from(outcome.passed()), Ordering::Relaxed);
                times.push(outcome.wall.as_secs_f64() * 1e3);
            }
            times
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    each_ms.sort_by(f64::total_cmp);
    let passed = passed.into_inner();
    let (mean, median) = (seconds * 1e3 / programs as f64, each_ms[each_ms.len() / 2]);
    println!("{programs} empty programs, {workers} at a time: {mean:.1} ms each by the clock,");
    println!("{median:.1} ms from start to verdict (median); {passed} passed");
    if global.json {
        println!(
            "{}",
            json!({
                "programs": programs, "workers": workers, "passed": passed, "seconds": seconds,
                "ms_per_program": mean, "wall_ms_p50": median,
                "wall_ms_p95": each_ms[each_ms.len() * 95 / 100],
            })
        );
    }
    if passed < programs {
        bail!("{} of {programs} empty programs did not pass", programs - passed);
    }
    Ok(())
}
