//! `fairlead-cni`: what a container runtime starts to give a pod its network (the CNI specification, versions 0.3.0
//! to 1.1.0).
//!
//! ```text
//!  runtime ── environment, JSON ──> request, network
//!                                       │
//!        ┌──────────────────────────────┼───────────────────────────┐
//!        ▼                              ▼                           ▼
//!     record                          ipam                       attachment
//!  what was begun is written    addresses: another plugin     host::pods joins and parts
//!  before it is done            (host-local) is started       by netlink
//! ```
//!
//! The agent is not asked: it sees the pod's device, as it sees those of `fairlead pod add`, and attaches its programs
//! to it, at once or when it is back.
//!
//! # Why records
//! An ADD that is killed leaves an address taken at the IPAM plugin, a link, or both, and once the pod's namespace
//! has gone nothing in the kernel tells of it. So a file is written first and removed last, and DEL, a repeated ADD
//! and GC go by it. It lies below `/run`: after a reboot there are no pods.
//!
//! Not for the datapath's part: nothing here knows BPF.

pub mod answer;
mod attachment;
mod collect;
pub mod conflist;
pub mod failure;
mod install;
mod ipam;
pub mod network;
mod record;
pub mod request;
mod status;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use failure::{Code, Failure};
use network::Network;
use request::{Command, Request};

/// The program's name, by which network configurations name it (`type`).
pub const PROGRAM: &str = "fairlead-cni";

/// Runs the plugin on the process's environment, arguments and input.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some(command) = std::env::var_os("CNI_COMMAND") else {
        return install::main(&words);
    };
    let mut input = Vec::new();
    let read = std::io::stdin().lock().read_to_end(&mut input);
    let version = network::version_of(&input);
    let outcome = read
        .map_err(|error| Failure::new(Code::Io, format!("reading the standard input: {error}")))
        .and_then(|_| Command::parse(&command))
        .and_then(|command| run(command, &input));
    let (text, code) = match outcome {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (
            failure.render(version.as_deref()).to_string(),
            ExitCode::FAILURE,
        ),
    };
    // A runtime that does not listen is not helped by another error.
    let _ = writeln!(std::io::stdout(), "{text}");
    code
}

/// Does what was asked and gives what is said; nothing is said of what needs no answer.
fn run(command: Command, input: &[u8]) -> Result<String, Failure> {
    if command == Command::Version {
        return Ok(answer::versions(network::version_of(input).as_deref()).to_string());
    }
    let network = Network::parse(input)?;
    let request = Request::read(command, |name| std::env::var(name).ok())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Io, format!("starting the async runtime: {error}")))?;
    let said = runtime.block_on(async {
        match command {
            Command::Add => attachment::add(&request, &network).await.map(Some),
            Command::Del => attachment::del(&request, &network).await.map(|()| None),
            Command::Check => attachment::check(&request, &network).await.map(|()| None),
            Command::Gc => collect::collect(&request, &network).await.map(|()| None),
            Command::Status => status::status(&request, &network).await.map(|()| None),
            Command::Version => unreachable!("answered above"),
        }
    })?;
    Ok(said.map_or_else(String::new, |said| said.to_string()))
}
