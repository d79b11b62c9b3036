//! `cargo xtask build`: the two programs that a node needs.
//!
//! Not for the datapath's object: `control/build.rs` embeds it, by the road that `ebpf` chooses.

use anyhow::Result;

use crate::{setup, workspace};

#[derive(clap::Args)]
pub struct Arguments {
    /// Build for use, not for development
    #[arg(long)]
    release: bool,
}

/// Builds the agent and dpctl and says where they are.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::For::Build])?;
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "fairlead-control", "--bins"]);
    if arguments.release {
        cargo.arg("--release");
    }
    workspace::run(&mut cargo, "building the agent and dpctl")?;
    let profile = if arguments.release {
        "release"
    } else {
        "debug"
    };
    let folder = workspace::target()?.join(profile);
    for program in ["fairlead", "dpctl"] {
        println!("{}", folder.join(program).display());
    }
    Ok(())
}
