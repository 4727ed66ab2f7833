//! `nanochat report`: a run's page, two runs compared, a log summed up.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::cli::Global;
use crate::report::{self, compare, log};
use crate::run_dir::RunDir;

const COMPARE_HELP: &str = "Example:
  nanochat report compare runs/baseline runs/optimized --out results";

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
    /// Compare an optimized run with its baseline: table, checklist, every figure.
    #[command(after_help = COMPARE_HELP)]
    Compare {
        /// Directory of the baseline.
        #[arg(value_name = "BASE")]
        base: PathBuf,
        /// Directory of the optimized run; its verify.json and quick.json fill the checklist.
        #[arg(value_name = "OPT")]
        optimized: PathBuf,
        /// Where compare.md and compare.html go; without it the optimized run's directory.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
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
        ReportCommand::Compare { base, optimized, out } => {
            compare(base, optimized, out.as_deref(), global)
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

fn compare(base: &Path, optimized: &Path, out: Option<&Path>, global: &Global) -> Result<()> {
    let (base, optimized) = (RunDir::find(Some(base))?, RunDir::find(Some(optimized))?);
    let comparison = compare::compare(&base, &optimized);
    print!("{}", comparison.text());
    let files = comparison.write(out.unwrap_or(optimized.root()))?;
    let [markdown, html] = files.map(|f| f.display().to_string());
    println!("\n{markdown}\n{html}");
    if global.json {
        let mut object = serde_json::to_value(&comparison)?;
        object["markdown"] = markdown.into();
        object["html"] = html.into();
        println!("{object}");
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
