//! `nanochat report`: a run's page, two runs compared, a log summed up.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::cli::Global;
use crate::report::{self, compare, log};
use crate::run_dir::RunDir;

const FROM_LOG_HELP: &str = "Example:
  nanochat report from-log runs/speedrun/log.txt";

/// What to report.
#[derive(Subcommand)]
pub enum ReportCommand {
    /// Write report.md and report.html into a run's directory.
    Build {
        /// The run's directory; without it the run that changed last.
        #[arg(long, value_name = "DIR")]
        run: Option<PathBuf>,
    },
    /// Compare the figures and settings of two runs.
    Compare {
        /// Directory of the first run.
        #[arg(value_name = "RUN_A")]
        a: PathBuf,
        /// Directory of the second run.
        #[arg(value_name = "RUN_B")]
        b: PathBuf,
    },
    /// Sum up a log of this program, of upstream nanochat or in the benchmark's words.
    #[command(after_help = FROM_LOG_HELP)]
    FromLog {
        /// The log.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Runs the command.
pub fn run(command: &ReportCommand, global: &Global) -> Result<()> {
    match command {
        ReportCommand::Build { run } => build(run.as_deref(), global),
        ReportCommand::Compare { a, b } => {
            let (a, b) = (RunDir::find(Some(a))?, RunDir::find(Some(b))?);
            let comparison = compare::compare(&a, &b);
            print!("{}", comparison.table());
            if global.json {
                println!("{}", serde_json::to_string(&comparison)?);
            }
            Ok(())
        }
        ReportCommand::FromLog { file } => from_log(file),
    }
}

fn build(given: Option<&Path>, global: &Global) -> Result<()> {
    let run = RunDir::find(given)?;
    report::build(&run)?;
    let [markdown, html] = report::FILES.map(|f| run.join(f).display().to_string());
    println!("{markdown}\n{html}");
    if global.json {
        println!("{}", serde_json::json!({ "markdown": markdown, "html": html }));
    }
    Ok(())
}

fn from_log(path: &Path) -> Result<()> {
    let reading = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let summary = log::parse(BufReader::new(file)).with_context(reading)?;
    print!("{}\n{}\n", summary.text(), summary.table());
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}
