//! `cargo xtask bench NAME`: measures, prints a table, writes `target/bench/NAME.json`.
//!
//! Not for the measuring itself: that is the program `bench` of the crate `tests`. Not a test: figures are for
//! a quiet machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cluster, ebpf, setup, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// What a balanced packet costs, beside programs that do less
    Lb,
    /// How long services take from objects into the kernel, and off the wire
    Plan,
    /// The same from a real API server: five thousand services with a hundred thousand endpoints
    Cluster,
    /// What a socket pays to reach a service, beside rules that translate
    Sock,
    /// How long a table of routes takes through our BGP speaker, beside those of others
    Bgp,
    /// How fast BFD sees a failure, and whether it sees one where none is: eleven minutes
    Bfd,
}

/// Builds what is needed, and measures.
///
/// # Errors
/// It could not be measured, or a ratio does not hold.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!("BPF needs root: `sudo -E cargo xtask bench NAME`");
    }
    setup::ensure(&[setup::For::Build, setup::For::Bench])?;
    println!("bench: building");
    let target = workspace::target()?;
    match arguments.name {
        Name::Lb => lb(&target),
        Name::Plan => plan(&target),
        Name::Cluster => cluster(&target),
        Name::Sock => sock(&target),
        Name::Bgp => bgp(&target),
        Name::Bfd => bfd(&target),
    }
}

/// The agent is measured as it is delivered.
fn plan(target: &Path) -> Result<()> {
    let mut bench = with_agent(target)?;
    bench.arg(target.join("bench/plan.json"));
    workspace::run(&mut bench, "measuring")
}

/// As [`plan`], with a real API server and etcd instead of the benchmark's own server.
fn cluster(target: &Path) -> Result<()> {
    let mut bench = with_agent(target)?;
    bench.arg(target.join("bench/cluster.json"));
    cluster::with_control_plane("fl-bench", |netns, kubeconfig| {
        bench.arg(netns).arg(kubeconfig);
        workspace::run(&mut bench, "measuring")
    })
}

fn with_agent(target: &Path) -> Result<Command> {
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--release"]);
    build.args(["--package", "fairlead-control", "--bin", "fairlead"]);
    build.args(["--package", "fairlead-tests", "--bin", "bench_plan"]);
    workspace::run(&mut build, "building the benchmark")?;
    Ok(Command::new(target.join("release/bench_plan")))
}

fn sock(target: &Path) -> Result<()> {
    let mut bench = built(target, "bench_sock")?;
    bench.arg(target.join("bench/sock.json"));
    workspace::run(&mut bench, "measuring")
}

/// In release mode, as what it is compared with: here the time is spent outside of the kernel.
fn bgp(target: &Path) -> Result<()> {
    let mut bench = released(target, "bench_bgp")?;
    bench.arg(target.join("bench/bgp.json"));
    workspace::run(&mut bench, "measuring")
}

/// In release mode, as the agent is delivered.
fn bfd(target: &Path) -> Result<()> {
    const NOTHING_FAILS_FOR_S: &str = "600";
    let mut bench = released(target, "bench_bfd")?;
    bench
        .arg(target.join("bench/bfd.json"))
        .arg(NOTHING_FAILS_FOR_S);
    workspace::run(&mut bench, "measuring")
}

fn lb(target: &Path) -> Result<()> {
    let objects = ebpf::target_folder(workspace::root(), target);
    let object = ebpf::build(workspace::root(), &objects, ebpf::BENCH, &[])
        .map_err(anyhow::Error::msg)
        .context("building the benchmark's eBPF object")?;
    let mut bench = built(target, "bench")?;
    bench.arg(object).arg(target.join("bench/lb.json"));
    workspace::run(&mut bench, "measuring")
}

/// As [`built`], in release mode.
fn released(target: &Path, name: &str) -> Result<Command> {
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--release"]);
    build.args(["--package", "fairlead-tests", "--bin", name]);
    workspace::run(&mut build, "building the benchmark")?;
    Ok(Command::new(target.join("release").join(name)))
}

/// Builds a program of the crate `tests`; the command that runs it.
fn built(target: &Path, name: &str) -> Result<Command> {
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--package", "fairlead-tests"]);
    workspace::run(build.args(["--bin", name]), "building the benchmark")?;
    Ok(Command::new(target.join("debug").join(name)))
}
