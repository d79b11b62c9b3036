//! `dpctl`: what was typed -> what is meant -> ask -> print.
//!
//! Data goes to stdout, words go to stderr. Exit codes: 0 yes or done, 1 asked and the answer is no, 2
//! error. A reader that goes away (a closed pipe) is success.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};

use crate::telemetry::cause;

mod args;
mod backends;
mod bgp;
pub mod everywhere;
mod flows;
mod import;
mod render;
mod run;
mod services;
mod tables;
mod trace;

/// What a question came to.
enum Outcome {
    /// Yes, or done.
    Yes,
    /// Asked, and the answer is no.
    No,
    /// Nothing was asked.
    NotAsked,
}

/// Runs `dpctl` on the process's arguments.
pub fn main() -> ExitCode {
    if std::env::args_os().len() < 2 {
        // Flags that come from the environment would make clap believe that something was asked.
        let help = args::Dpctl::command().render_help();
        // Nothing is left to do when stderr is closed.
        let _ = write!(std::io::stderr(), "{help}");
        return ExitCode::from(2);
    }
    let typed = args::Dpctl::parse();
    match answer(typed) {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Ok(Outcome::NotAsked) => ExitCode::from(2),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when stderr is closed as well.
            let _ = writeln!(std::io::stderr(), "dpctl: {}", cause::line(&error));
            ExitCode::from(2)
        }
    }
}

fn answer(typed: args::Dpctl) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run::run(typed))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
