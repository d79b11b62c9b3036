//! `cargo xtask lint`: format, clippy on the host, warnings on BPF, layers and rooms.
//!
//! Not for behaviour: that is `test`, which lints first.

use anyhow::{Context, Result, bail};

use crate::{ebpf, layers, rooms, setup, workspace};

/// One thing that a lint looks at.
pub struct Check {
    pub name: &'static str,
    pub run: fn() -> Result<()>,
}

/// Every check, the quick ones first.
pub const CHECKS: [Check; 5] = [
    Check {
        name: "rooms",
        run: rooms::check,
    },
    Check {
        name: "layers",
        run: layers::check,
    },
    Check {
        name: "format",
        run: format,
    },
    Check {
        name: "clippy",
        run: clippy,
    },
    Check {
        name: "warnings on bpf",
        run: warnings_on_bpf,
    },
];

/// Runs all checks and fails when one failed.
pub fn run() -> Result<()> {
    setup::ensure(&[setup::For::Build, setup::For::Lint])?;
    let failed = run_checks();
    if failed.is_empty() {
        println!("lint: {} checks passed", CHECKS.len());
        return Ok(());
    }
    bail!("lint failed: {}", failed.join(", "));
}

/// Runs all checks, prints what they find, and returns the names of those that failed.
pub fn run_checks() -> Vec<&'static str> {
    let mut failed = Vec::new();
    for check in CHECKS {
        println!("lint: {}", check.name);
        if let Err(error) = (check.run)() {
            println!("{error:#}");
            failed.push(check.name);
        }
    }
    failed
}

fn format() -> Result<()> {
    workspace::run(
        workspace::cargo().args(["fmt", "--all", "--check"]),
        "checking the format (`cargo fmt` mends it)",
    )
}

fn clippy() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]);
    workspace::run(&mut cargo, "running clippy")
}

/// Clippy has no `core` for BPF on the prebuilt road, so on the target itself the compiler's own lints speak.
fn warnings_on_bpf() -> Result<()> {
    let target = workspace::target()?;
    for bin in [ebpf::PACKAGE, ebpf::BENCH] {
        ebpf::build(
            workspace::root(),
            &ebpf::target_folder(workspace::root(), &target),
            bin,
            &["-Dwarnings"],
        )
        .map_err(anyhow::Error::msg)
        .context("building an eBPF object with warnings as errors")?;
    }
    Ok(())
}
