//! Where the workspace is, and running a tool in it.
//!
//! Not for what the tools are asked to do: each verb knows that.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Returns the folder of the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// Returns the target folder that this very program was built into.
pub fn target() -> Result<PathBuf> {
    let program = env::current_exe().context("asking where xtask itself lies")?;
    let marked = program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file());
    Ok(marked.map_or_else(|| root().join("target"), Path::to_path_buf))
}

/// Says whether we may change the machine.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Returns the cargo that started us, ready to be told what to do in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.current_dir(root());
    // What the cargo that started us says of its own package: ring's build script looks at it, and with it half of
    // the agent would be built anew each time that another program asks.
    let of_package = |name: &OsString| {
        let name = name.to_string_lossy();
        ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    for (name, _) in env::vars_os().filter(|(name, _)| of_package(name)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Finds a program in `PATH` or in the folders that a user's `PATH` often lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo = env::var_os("CARGO")
        .map(PathBuf::from)
        .and_then(|cargo| Some(cargo.parent()?.to_path_buf()));
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/lib/frr"].map(PathBuf::from))
        .chain(cargo)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Runs a command to its end with our own output.
///
/// # Errors
/// When it does not start or does not succeed; `doing` says what it was for.
pub fn run(command: &mut Command, doing: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{doing}: starting {command:?}"))?;
    if !status.success() {
        bail!(
            "{doing}: {} ended with {status}",
            command.get_program().to_string_lossy()
        );
    }
    Ok(())
}

/// Runs a command to its end and shows what it said only when it failed.
///
/// # Errors
/// When it does not start or does not succeed; `doing` says what it was for.
pub fn run_quietly(command: &mut Command, doing: &str) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{doing}: starting {command:?}"))?;
    if !output.status.success() {
        let program = command.get_program().to_string_lossy();
        let said = [output.stdout, output.stderr].concat();
        bail!(
            "{doing}: {program} ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&said).trim_end()
        );
    }
    Ok(())
}

/// Lists all files below `folder` whose name ends in `.rs`, in a stable order.
pub fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let listing =
            fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
        for file in listing {
            let file = file
                .with_context(|| format!("listing {}", folder.display()))?
                .path();
            let name = file
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if file.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(file);
                }
            } else if file.extension().is_some_and(|extension| extension == "rs") {
                found.push(file);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The clock by which tools are waited for.
#[expect(
    clippy::disallowed_methods,
    reason = "an edge: it times real processes"
)]
pub fn now() -> Instant {
    Instant::now()
}
