//! `nanochat serve`: a run's model behind HTTP, for a browser and for programs.
//!
//! In: a run or a checkpoint, and who may ask. Out: the chat page, OpenAI's API, metrics, until a signal.

mod flags;
pub mod model;

use std::io::Write;
use std::net::TcpListener;

use anyhow::{Context, Result};
use nanochat_serve::Server;

use crate::cli::Global;
pub use flags::{ServeArgs, Which};

/// Runs `nanochat serve`.
pub fn run(args: &ServeArgs, global: &Global) -> Result<()> {
    // Wrong flags and a busy port are told before a large model is read.
    let mut config = args.config()?;
    config.check()?;
    drop(TcpListener::bind(config.address).with_context(|| {
        let address = config.address;
        format!("cannot listen on {address}: give another --port, or end the program that has it")
    })?);
    let opened = model::open(&args.which, global)?;
    config.model = opened.model;
    config.device = opened.device.clone();
    // Whoever reads the address may send a signal at once.
    let server = Server::start(config, opened.generator, opened.tokenizer)?.hear_signals()?;
    let url = format!("http://{}", server.address());
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} on {}", opened.summary, opened.device)?;
    writeln!(out, "chat: {url}    API: {url}/v1    Ctrl-C stops.")?;
    out.flush()?;
    drop(out);
    if args.open {
        open_browser(&url);
    }
    let ended = server.run_until_signal(|under_way| match under_way {
        0 => eprintln!("stopping"),
        n => {
            eprintln!("stopping: {n} requests under way are finished; another Ctrl-C stops at once")
        }
    })?;
    if ended.cut_off > 0 {
        eprintln!("{} requests took longer than --drain-timeout and were cut off", ended.cut_off);
    }
    Ok(())
}

/// Failing is no fault: the address stands on the screen.
fn open_browser(url: &str) {
    let program = match std::env::consts::OS {
        "macos" => "open",
        "windows" => "explorer",
        _ => "xdg-open",
    };
    if std::process::Command::new(program).arg(url).spawn().is_err() {
        eprintln!("warning: no {program} to open {url} with");
    }
}
