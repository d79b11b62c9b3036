//! `cargo xtask dist`: what is delivered. `image`: two programs, linked with nothing, in one layer without a shell: the
//! agent, to which `dpctl` is a link, and the CNI plugin. `plugin`: `kubectl fairlead`, as an archive.
//!
//! Not for pushing it: `skopeo copy docker-archive:FILE docker://…`, `docker load`, or `ctr images import` do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::{
    image::{Image, sha256},
    setup,
    tar::Tar,
    workspace,
};

/// What the chart asks for unless told otherwise.
pub const TAG: &str = concat!("localhost/fairlead:", env!("CARGO_PKG_VERSION"));
/// Of this name `kubectl` makes `kubectl fairlead`.
const PLUGIN: &str = "kubectl-fairlead";

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
    /// `kubectl fairlead`, as an archive with its checksum
    Plugin {
        /// Also write a manifest for krew: the archive is to be fetched from URL/ARCHIVE
        #[arg(long)]
        url: Option<String>,
    },
    /// The definitions of our own kinds, into the chart
    Crds,
}

/// Makes it and says where it is.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(&[setup::For::Build])?;
    match &arguments.what {
        What::Image { tag, debug } => println!("{}", image(tag, *debug)?.display()),
        What::Plugin { url } => {
            for file in plugin(url.as_deref())? {
                println!("{}", file.display());
            }
        }
        What::Crds => write_crds()?,
    }
    Ok(())
}

/// Makes the image and returns its archive.
pub fn image(tag: &str, debug: bool) -> Result<PathBuf> {
    setup::ensure(&[setup::For::Build])?;
    let [agent, plugin] = static_programs(["fairlead", "fairlead-cni"], debug)?;
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

/// Builds the plugin of kubectl and returns what is written: archive, checksum, manifest.
fn plugin(url: Option<&str>) -> Result<Vec<PathBuf>> {
    let [program] = static_programs([PLUGIN], false)?;
    let folder = workspace::target()?.join("dist");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    archive(&program, &folder, url)
}

/// How Go, and so krew, calls the processor.
const ARCH: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// One program and the licences, packed; `sha256sum -c` reads the checksum.
fn archive(program: &Path, folder: &Path, url: Option<&str>) -> Result<Vec<PathBuf>> {
    let mut tar = Tar::default();
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    tar.file(PLUGIN, 0o755, &bytes)?;
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let file = workspace::root().join(licence);
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        tar.file(licence, 0o644, &bytes)?;
    }
    let name = format!("{PLUGIN}-{}-linux-{ARCH}.tar", env!("CARGO_PKG_VERSION"));
    let file = folder.join(&name);
    fs::write(&file, tar.end()).with_context(|| file.display().to_string())?;
    // Without name and time: the same program makes the same checksum.
    let mut gzip = Command::new("gzip");
    gzip.args(["--best", "--no-name", "--force"]).arg(&file);
    workspace::run(&mut gzip, "packing the archive")?;
    let name = name + ".gz";
    let file = folder.join(&name);
    let packed = fs::read(&file).with_context(|| file.display().to_string())?;
    let sum = sha256(&packed)?;
    let sum_file = folder.join(format!("{name}.sha256"));
    fs::write(&sum_file, format!("{sum}  {name}\n"))
        .with_context(|| sum_file.display().to_string())?;
    let mut written = vec![file, sum_file];
    if let Some(url) = url {
        let manifest = folder.join("fairlead.yaml");
        let url = url.trim_end_matches('/');
        fs::write(&manifest, krew(&format!("{url}/{name}"), &sum))
            .with_context(|| manifest.display().to_string())?;
        written.push(manifest);
    }
    Ok(written)
}

/// krew's manifest; its file is called as the plugin is.
fn krew(uri: &str, sum: &str) -> String {
    format!(
        "apiVersion: krew.googlecontainertools.github.com/v1alpha2\nkind: Plugin\nmetadata: {{ name: fairlead }}\n\
         spec:\n  version: v{}\n  shortDescription: Ask the Fairlead agents of all nodes at once\n  \
         description: |\n    dpctl for a cluster: it asks in every agent's pod by `kubectl exec`.\n  platforms:\n    \
         - selector: {{ matchLabels: {{ os: linux, arch: {ARCH} }} }}\n      uri: {uri}\n      sha256: {sum}\n      \
         bin: {PLUGIN}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// Builds these programs with the C library in them.
fn static_programs<const N: usize>(programs: [&str; N], debug: bool) -> Result<[PathBuf; N]> {
    if debug {
        return static_for_development(programs);
    }
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        triple.to_uppercase().replace('-', "_")
    );
    let mut cargo = workspace::cargo();
    // With a target named, build scripts and macros are linked as ever: a macro cannot be static.
    cargo
        .args(["build", "--package", "fairlead-control"])
        .args(programs.iter().flat_map(|program| ["--bin", program]))
        .args(["--target", &triple])
        .arg("--release")
        .env(flags, "-C target-feature=+crt-static");
    workspace::run(&mut cargo, &format!("building {}", programs.join(" and ")))?;
    built(programs, &workspace::target()?.join(triple).join("release"))
}

/// As [`static_programs`], of what is built for development anyway: only the last step is another one. They stand
/// where those do, until the next build.
fn static_for_development<const N: usize>(programs: [&str; N]) -> Result<[PathBuf; N]> {
    for program in programs {
        let mut cargo = workspace::cargo();
        cargo
            .args(["rustc", "--package", "fairlead-control", "--bin", program])
            .args(["--", "-C", "target-feature=+crt-static"])
            .args(["-C", "strip=debuginfo"]);
        workspace::run(&mut cargo, &format!("building {program}"))?;
    }
    built(programs, &workspace::target()?.join("debug"))
}

fn built<const N: usize>(programs: [&str; N], folder: &Path) -> Result<[PathBuf; N]> {
    let programs = programs.map(|program| folder.join(program));
    for program in &programs {
        ensure!(
            program.is_file(),
            "{}: the build left no such file",
            program.display()
        );
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Runs a tool in a folder and returns what it printed.
    fn say(folder: &Path, program: &str, words: &[&str]) -> String {
        let mut command = Command::new(program);
        let output = command.args(words).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_plugin_comes_out_of_its_archive_as_it_went_in_and_the_checksum_is_its() {
        let folder = std::env::temp_dir().join(format!("fairlead-dist-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("built");
        fs::write(&program, "#!/bin/sh\necho it runs\n").unwrap();

        let written = archive(&program, &folder, Some("https://example.com/releases/")).unwrap();
        let again = archive(&program, &folder, None).unwrap();

        assert_eq!(again, written[..2]);
        let name = written[0].file_name().unwrap().to_str().unwrap();
        assert_eq!(
            say(
                &folder,
                "sha256sum",
                &["--check", &format!("{name}.sha256")]
            ),
            format!("{name}: OK\n")
        );
        say(&folder, "tar", &["-xzf", name]);
        let unpacked = folder.join(PLUGIN);
        let mode = fs::metadata(&unpacked).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(say(&folder, "./kubectl-fairlead", &[]), "it runs\n");
        assert_eq!(
            say(&folder, "tar", &["-tzf", name]),
            "kubectl-fairlead\nLICENSE-APACHE\nLICENSE-MIT\n"
        );
        let manifest = fs::read_to_string(&written[2]).unwrap();
        let sum = sha256(&fs::read(&written[0]).unwrap()).unwrap();
        for line in [
            format!("      uri: https://example.com/releases/{name}\n"),
            format!("      sha256: {sum}\n"),
            "      bin: kubectl-fairlead\n".to_owned(),
        ] {
            assert!(manifest.contains(&line), "{manifest}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
