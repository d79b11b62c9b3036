//! Builds the datapath's object and puts it into `OUT_DIR/fairlead.o`, where the agent embeds it:
//! `aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/fairlead.o"))`.
//!
//! Not for deciding how: that is `xtask/src/ebpf.rs`.

use std::{env, fs, path::PathBuf};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

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

    println!(
        "cargo::rerun-if-changed={}",
        workspace.join("xtask/src/ebpf.rs").display()
    );
    println!("cargo::rerun-if-env-changed={}", ebpf::ROAD_VARIABLE);
    for input in ebpf::inputs(workspace) {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let object = ebpf::build(workspace, &ebpf::target_folder(workspace, &out), &[])?;
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
