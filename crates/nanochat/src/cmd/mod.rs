//! One file a command; this one only hands over.

pub mod bench;
pub mod chat;
pub mod checkpoint;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod import;
pub mod launch;
pub mod report;
pub mod sandbox;
pub mod serve;
pub mod speedrun;
pub mod tokenizer;
pub mod train;
pub mod verify;

use crate::cli::{Cli, Command};

/// Runs the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let global = cli.global;
    match cli.command {
        Command::Speedrun(args) => speedrun::run(&args, &global),
        Command::Chat(args) => chat::run(&args, &global),
        Command::Serve(args) => serve::run(&args, &global),
        Command::Launch(args) => launch::run(&args, &global),
        Command::Train(command) => train::run(&command, &global),
        Command::Eval(command) => eval::run(&command, &global),
        Command::Tokenizer(command) => tokenizer::run(&command, &global),
        Command::Data(command) => data::run(&command, &global),
        Command::Bench(command) => bench::run(&command, &global),
        Command::Verify(args) => verify::run(&args, &global),
        Command::Report(command) => report::run(&command, &global),
        Command::Import(args) => import::run(&args, &global),
        Command::Sandbox(command) => sandbox::run(&command, &global),
        Command::Doctor => doctor::run(&global),
        Command::Checkpoint(command) => checkpoint::run(&command, &global),
    }
}
