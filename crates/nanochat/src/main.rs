//! nanochat: train a tokenizer, pretrain a GPT, finetune it, evaluate it, and chat with it.
//!
//! `cli` the commands and flags | `cmd` one file a command | `figures` numbers as people read them |
//! `batch` rows of a micro batch | `memory` what this process may still have |
//! `run_dir` where a run keeps its files | `sampling` a test of first tokens |
//! `pipeline` the stages | `stage` what a stage says of itself |
//! `run_lock` one trainer a run | `supervise` starting it again | `preflight` room on the disk |
//! `ranks` several processes, one run | `exit` what the exit code says |
//! `screen` what a person sees while it goes | `machine` what it runs on | `report` what it reached
#![forbid(unsafe_code)]

mod batch;
mod cli;
mod cmd;
mod exit;
mod figures;
mod machine;
mod memory;
mod pipeline;
mod preflight;
mod ranks;
mod report;
mod run_dir;
mod run_lock;
mod sampling;
mod screen;
mod stage;
mod supervise;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a process of the sandbox is this program, started again.
    nanochat_sandbox::serve_if_launcher();
    quiet_broken_pipes();
    match cmd::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // `nanochat ... | head` is no failure.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let (code, begin) = exit::code(&e);
            eprintln!("{begin}{}", message(&e));
            ExitCode::from(code)
        }
    }
}

/// A reader that went away (`nanochat bench ops | head`) ends the program, without a backtrace.
fn quiet_broken_pipes() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        if said.is_some_and(|s| s.starts_with("failed printing to stdout")) {
            std::process::exit(0);
        }
        report(panic);
    }));
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    let kind = |c: &(dyn std::error::Error + 'static)| {
        c.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
    };
    e.chain().any(|c| kind(c) == Some(std::io::ErrorKind::BrokenPipe))
}

/// One line: what, where, what next; causes follow after colons, each said once.
fn message(e: &anyhow::Error) -> String {
    let mut text = e.to_string();
    for cause in e.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
