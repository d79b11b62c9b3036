//! The one interface for people and CI: `cargo xtask VERB`.
//!
//! A verb is a room: `setup` (what this machine needs), `build`, `run`, `lint` (format, clippy, layers), `test`,
//! `bench`, `cluster` (a real Kubernetes on this machine), `dist` (what is delivered).
//! Beside them stand `ebpf` (how the datapath's object is built), `image` and `tar` (how an image and an archive are written), `layers` and `rooms` (the checks on the
//! tree) and `workspace` (where everything is, and running a tool).
//!
//! Not for anything that the agent or `dpctl` does: they must work without this crate.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "every verb speaks to a person"
)]

mod bench;
mod build;
mod cluster;
mod dist;
mod ebpf;
mod image;
mod layers;
mod lint;
mod rooms;
mod run;
mod setup;
mod tar;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fairlead's workshop: set up, build, lint and test.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building, running and testing need on this machine
    Setup(setup::Arguments),
    /// Build the agent, dpctl and the datapath inside the agent
    Build(build::Arguments),
    /// Check format, clippy, layers and the shape of the tree
    Lint,
    /// Show all of Fairlead on this machine, or run the agent on this host: `run -- <agent flags>`
    Run(run::Arguments),
    /// A real Kubernetes cluster in network namespaces: up, kubectl, helm, e2e, down
    Cluster(cluster::Arguments),
    /// Make what is delivered: the image of the DaemonSet, the plugin of kubectl, the chart's kinds
    Dist(dist::Arguments),
    /// Measure, and compare with goals
    Bench(bench::Arguments),
    /// Lint, then run every test and fail when one was skipped
    Test(test::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Lint => lint::run(),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Cluster(arguments) => cluster::run(&arguments),
        Verb::Dist(arguments) => dist::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
