//! `cargo xtask dist image`: what is delivered. Two programs, linked with nothing, in an image of one layer without a
//! shell: the agent, to which `dpctl` is a link, and the CNI plugin.
//!
//! Not for pushing it: `skopeo copy docker-archive:FILE docker://…`, `docker load`, or `ctr images import` do.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::{image::Image, setup, workspace};

/// What the chart asks for unless told otherwise.
pub const TAG: &str = concat!("localhost/fairlead:", env!("CARGO_PKG_VERSION"));

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The image of the DaemonSet, as the archive that `docker save` writes
    Image {
        /// What it is called
        #[arg(long, default_value = TAG)]
        tag: String,
        /// Build for development, not for use: faster to build, several times as large
        #[arg(long)]
        debug: bool,
    },
    /// The definitions of our own kinds, into the chart
    Crds,
}

/// Makes it and says where it is.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::For::Build])?;
    match &arguments.what {
        What::Image { tag, debug } => println!("{}", image(tag, *debug)?.display()),
        What::Crds => write_crds()?,
    }
    Ok(())
}

/// Makes the image and returns its archive.
pub fn image(tag: &str, debug: bool) -> Result<PathBuf> {
    setup::ensure(&[setup::For::Build])?;
    let [agent, plugin] = static_programs(debug)?;
    let folder = workspace::target()?.join("dist");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Image {
        tag,
        programs: vec![&agent, &plugin],
        entrypoint: vec!["/bin/fairlead".to_owned()],
        links: vec!["dpctl".to_owned()],
        ..Image::default()
    }
    .write(&folder)
}

/// Asks the agent, which reads the kinds, for their definitions.
fn write_crds() -> Result<()> {
    let mut agent = workspace::cargo();
    agent.args([
        "run",
        "--quiet",
        "--package",
        "fairlead-control",
        "--bin",
        "fairlead",
        "--",
        "crds",
    ]);
    let output = agent.output().context("starting the agent")?;
    ensure!(
        output.status.success(),
        "fairlead crds: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let file = workspace::root().join("control/packaging/helm/fairlead/crds/fairlead.io.yaml");
    fs::write(&file, output.stdout).with_context(|| file.display().to_string())?;
    println!("{}", file.display());
    Ok(())
}

/// Builds the agent and the CNI plugin with the C library in them.
fn static_programs(debug: bool) -> Result<[PathBuf; 2]> {
    const PROGRAMS: [&str; 2] = ["fairlead", "fairlead-cni"];
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        triple.to_uppercase().replace('-', "_")
    );
    let mut cargo = workspace::cargo();
    // With a target named, build scripts and macros are linked as ever: a macro cannot be static.
    cargo
        .args(["build", "--package", "fairlead-control"])
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .args(["--target", &triple])
        .env(flags, "-C target-feature=+crt-static");
    if !debug {
        cargo.arg("--release");
    }
    workspace::run(&mut cargo, "building the agent and the CNI plugin")?;
    let profile = if debug { "debug" } else { "release" };
    let folder = workspace::target()?.join(triple).join(profile);
    let programs = PROGRAMS.map(|program| folder.join(program));
    for program in &programs {
        ensure!(
            program.is_file(),
            "{}: the build left no such file",
            program.display()
        );
    }
    Ok(programs)
}
