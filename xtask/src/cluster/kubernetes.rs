//! The programs of Kubernetes: one binary from the Go module `k8s.io/kubernetes`, called by many names.
//!
//! It is built once and kept under `target/cluster`, by version. The module is not made to be depended on: its own
//! `go.mod` replaces its parts by folders, which are replaced here by the published modules of the same version.
//!
//! Not for starting them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{daemon, place::Cluster, progress::Progress};
use crate::workspace;

/// The one place that says which Kubernetes it is: `v1.MINOR.PATCH`.
const VERSION: &str = "v1.34.4";

const PROGRAMS: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];

/// Where a program is; [`build`] has put it there.
pub fn program(name: &str) -> Result<PathBuf> {
    Ok(folder()?.join(name))
}

/// `kubectl` as the cluster's administrator.
pub fn kubectl(cluster: &Cluster) -> Result<Command> {
    Ok(as_administrator(cluster, program("kubectl")?))
}

/// A client of the API server as the cluster's administrator. It finds others of its folder, and what is built here:
/// plugins of `kubectl` start it by its name, and are found by theirs.
pub fn as_administrator(cluster: &Cluster, program: PathBuf) -> Command {
    let of_program = program.parent().map(Path::to_path_buf);
    let of_build = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = of_program
        .into_iter()
        .chain(of_build)
        .chain(std::env::split_paths(&path));
    let mut client = daemon::in_netns(&cluster.netns("api"), program);
    client.env("KUBECONFIG", cluster.kubeconfig("admin"));
    // A folder with a colon in its name cannot be in it.
    if let Ok(path) = std::env::join_paths(folders) {
        client.env("PATH", path);
    }
    client
}

/// What [`VERSION`] begins with: `1`, `MINOR`.
pub fn major_minor() -> (&'static str, &'static str) {
    let mut parts = VERSION.trim_start_matches('v').split('.');
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}

fn folder() -> Result<PathBuf> {
    beside("kubernetes")
}

/// Where something of this version of Kubernetes is built and kept.
pub fn beside(what: &str) -> Result<PathBuf> {
    Ok(workspace::target()?
        .join("cluster")
        .join(format!("{what}-{VERSION}")))
}

/// Makes a folder one of a Go module that builds parts of Kubernetes.
pub fn module(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let file = downloaded(folder, "GoMod")?;
    let own = fs::read_to_string(&file)
        .with_context(|| format!("reading go.mod of k8s.io/kubernetes {VERSION}"))?;
    fs::write(folder.join("go.mod"), go_mod(&own)?).with_context(|| folder.display().to_string())
}

/// Where the sources of Kubernetes are.
pub fn module_folder(folder: &Path) -> Result<PathBuf> {
    downloaded(folder, "Dir")
}

/// Flags of the linker by which a program knows its version: the API server refuses to be without.
pub fn version_flags() -> String {
    let (major, minor) = major_minor();
    let version = "-X k8s.io/component-base/version.git";
    format!("-s -w {version}Version={VERSION} {version}Major={major} {version}Minor={minor}")
}

/// Builds the programs unless they are there.
pub fn build(progress: &Progress) -> Result<()> {
    let folder = folder()?;
    if PROGRAMS.iter().all(|name| folder.join(name).exists()) {
        progress.step(&format!("Kubernetes {VERSION}, built before"));
        return Ok(());
    }
    progress.step(&format!(
        "building Kubernetes {VERSION} (once; 3 to 10 minutes)"
    ));
    module(&folder)?;
    fs::write(folder.join("main.go"), include_str!("kubernetes.go"))
        .with_context(|| folder.display().to_string())?;
    workspace::run_quietly(
        go(&folder).args(["mod", "tidy"]),
        "collecting the modules of Kubernetes",
    )?;
    progress.step("modules downloaded");
    workspace::run(
        go(&folder).args([
            "build",
            "-ldflags",
            &version_flags(),
            "-o",
            "kubernetes.new",
            ".",
        ]),
        "building Kubernetes",
    )?;
    // Renamed when whole: an interrupted build leaves nothing that looks like one.
    fs::rename(folder.join("kubernetes.new"), folder.join("kubernetes"))
        .context("putting the programs of Kubernetes in place")?;
    for name in PROGRAMS {
        let link = folder.join(name);
        if !link.exists() {
            symlink("kubernetes", &link).with_context(|| link.display().to_string())?;
        }
    }
    progress.step(&format!("Kubernetes {VERSION} built"));
    Ok(())
}

/// Go, with the lowest priority: it takes all cores for minutes.
pub fn go(folder: &Path) -> Command {
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go"]);
    go.current_dir(folder)
        .env("GOFLAGS", "-mod=mod -buildvcs=false");
    go
}

/// What `go mod download` says of the module of Kubernetes: the path in this field.
fn downloaded(folder: &Path, field: &str) -> Result<PathBuf> {
    let module = format!("k8s.io/kubernetes@{VERSION}");
    // Outside of any module: there is none yet.
    let output = go(folder)
        .env("GO111MODULE", "on")
        .args(["mod", "download", "-json", &module])
        .output()
        .context("starting go")?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("go mod download {module}: {}", output.status))?;
    let path = answer[field].as_str();
    path.map(PathBuf::from)
        .with_context(|| format!("go mod download {module}: {}", answer["Error"]))
}

/// The wrapper's `go.mod`, by that of Kubernetes.
fn go_mod(own: &str) -> Result<String> {
    let published = VERSION.replacen("v1.", "v0.", 1);
    let go = own
        .lines()
        .find(|line| line.starts_with("go "))
        .context("go.mod of Kubernetes names no Go version")?;
    let parts: Vec<&str> = own
        .lines()
        .filter_map(|line| line.trim().split_once(" => ./staging/"))
        .map(|(module, _)| module)
        .collect();
    ensure!(
        !parts.is_empty(),
        "go.mod of Kubernetes replaces nothing by ./staging/"
    );
    let mut text = format!(
        "module fairlead.io/kubernetes\n\n{go}\n\nrequire k8s.io/kubernetes {VERSION}\n\nreplace (\n"
    );
    for module in parts {
        text += &format!("\t{module} => {module} {published}\n");
    }
    Ok(text + ")\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_module_become_published_modules() {
        let own = "module k8s.io/kubernetes\n\ngo 1.24.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let text = go_mod(own).unwrap();
        assert!(text.contains("\ngo 1.24.0\n"));
        assert!(text.contains("\tk8s.io/api => k8s.io/api v0.34."), "{text}");
        assert!(go_mod("module m\n\ngo 1.24\n").is_err());
    }
}
