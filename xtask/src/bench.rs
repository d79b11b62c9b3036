//! `cargo xtask bench NAME`: measures, prints a table, writes `target/bench/NAME.json`.
//!
//! Not for the measuring itself: that is the program `bench` of the crate `tests`. Not a test: figures are for
//! a quiet machine.

use anyhow::{Context, Result, bail};

use crate::{ebpf, setup, workspace};

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
}

/// Builds what is needed, and measures.
///
/// # Errors
/// It could not be measured, or a ratio does not hold.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Name::Lb = arguments.name;
    if !workspace::is_root() {
        bail!("BPF needs root: `sudo -E cargo xtask bench lb`");
    }
    setup::ensure(&[setup::For::Build, setup::For::Bench])?;
    println!("bench: building");
    let target = workspace::target()?;
    let objects = ebpf::target_folder(workspace::root(), &target);
    let object = ebpf::build(workspace::root(), &objects, ebpf::BENCH, &[])
        .map_err(anyhow::Error::msg)
        .context("building the benchmark's eBPF object")?;
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--package", "fairlead-tests"]);
    workspace::run(build.args(["--bin", "bench"]), "building the benchmark")?;
    let mut bench = std::process::Command::new(target.join("debug/bench"));
    bench.arg(object).arg(target.join("bench/lb.json"));
    workspace::run(&mut bench, "measuring")
}
