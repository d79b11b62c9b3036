//! Builds the datapath's object and puts it into `OUT_DIR/fairlead.o`, where the agent embeds it:
//! `aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead.o"))`.
//!
//! Not for deciding how: that is `xtask/src/ebpf.rs`.

use std::{env, fs, path::PathBuf};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

/// What the object is made of.
const INPUTS: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "common/Cargo.toml",
    "common/src",
    "dataplane-ebpf/Cargo.toml",
    "dataplane-ebpf/build.rs",
    "dataplane-ebpf/src",
    "xtask/src/ebpf.rs",
];

fn main() {
    if let Err(message) = embed() {
        // Cargo prints this one line and fails, without the noise of a build script's failure.
        println!("cargo::error={message}");
    }
}

fn embed() -> Result<(), String> {
    let folder = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or_else(|| format!("cargo did not set {name}"))
    };
    let out = folder("OUT_DIR")?;
    let manifest = folder("CARGO_MANIFEST_DIR")?;
    let workspace = manifest.parent().ok_or("control/ has no parent folder")?;

    println!("cargo::rerun-if-env-changed={}", ebpf::ROAD_VARIABLE);
    let inputs = INPUTS.map(|path| workspace.join(path));
    for input in inputs.into_iter().chain(ebpf::find_tools().linker) {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let object = ebpf::build(
        workspace,
        &ebpf::target_folder(workspace, &out),
        ebpf::PACKAGE,
        &[],
    )?;
    let embedded = out.join("fairlead.o");
    fs::copy(&object, &embedded).map_err(|error| {
        format!(
            "copying {} to {}: {error}",
            object.display(),
            embedded.display()
        )
    })?;
    Ok(())
}
