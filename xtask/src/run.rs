//! `cargo xtask run`: shows all of Fairlead on this machine; with `-- FLAGS`, runs the agent on this host.
//!
//! Not for the show itself: that is the program `demo` of the crate `tests`, which the tests share.

use anyhow::{Result, bail};

use crate::{setup, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave everything running, and say how to look around
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Take away what --keep left
    #[arg(long)]
    down: bool,
    /// Flags of `fairlead run`: the agent runs on this host instead
    #[arg(last = true, conflicts_with_all = ["keep", "down"])]
    agent: Vec<String>,
}

/// Builds what is needed, then shows or runs it.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!("network namespaces and BPF need root: `sudo -E cargo xtask run`");
    }
    let on_this_host = !arguments.agent.is_empty();
    setup::ensure(&[setup::For::Build])?;
    if !on_this_host {
        setup::ensure(&[setup::For::Test])?;
    }
    let mut build = workspace::cargo();
    build.args([
        "build",
        "--quiet",
        "--package",
        "fairlead-control",
        "--bins",
    ]);
    if !on_this_host {
        build.args(["--package", "fairlead-tests", "--bin", "demo"]);
    }
    println!("run: building");
    workspace::run(&mut build, "building")?;

    let programs = workspace::target()?.join("debug");
    if on_this_host {
        let mut agent = std::process::Command::new(programs.join("fairlead"));
        return workspace::run(agent.arg("run").args(&arguments.agent), "running the agent");
    }
    let mut demo = std::process::Command::new(programs.join("demo"));
    if arguments.keep {
        demo.arg("--keep");
    }
    if arguments.down {
        demo.arg("--down");
    }
    workspace::run(&mut demo, "showing Fairlead")
}
