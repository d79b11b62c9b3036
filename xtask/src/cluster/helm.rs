//! `helm`, from its Go module, built once and kept under `target/cluster` by version.
//!
//! Not for the chart: that is `control/packaging/helm/fairlead`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{kubernetes, place::Cluster};
use crate::workspace;

const VERSION: &str = "v3.22.0";

/// Whether these words of helm are not about a cluster.
pub fn is_beside(words: &[String]) -> bool {
    words.first().is_none_or(|verb| {
        matches!(
            verb.as_str(),
            "lint" | "template" | "package" | "show" | "help" | "version"
        )
    })
}

/// `helm` on a cluster, or beside one.
pub fn command(cluster: Option<&Cluster>) -> Result<Command> {
    let helm = program()?;
    Ok(match cluster {
        Some(cluster) => kubernetes::as_administrator(cluster, helm),
        None => Command::new(helm),
    })
}

fn program() -> Result<PathBuf> {
    let folder = workspace::target()?
        .join("cluster")
        .join(format!("helm-{VERSION}"));
    let program = folder.join("helm");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("cluster: building helm {VERSION} (once; 1 to 3 minutes)");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    // Without a version of Kubernetes, `lint` and `template` take the cluster for one that no chart supports.
    let (major, minor) = kubernetes::major_minor();
    let flags = ["pkg/lint/rules", "pkg/chartutil"]
        .map(|package| {
            format!(
                "-X helm.sh/helm/v3/{package}.k8sVersionMajor={major} \
                 -X helm.sh/helm/v3/{package}.k8sVersionMinor={minor}"
            )
        })
        .join(" ");
    let module = format!("helm.sh/helm/v3/cmd/helm@{VERSION}");
    let mut go = kubernetes::go(&folder);
    go.args(["install", "-ldflags", &format!("-s -w {flags}"), &module])
        .env("GOBIN", &folder);
    workspace::run_quietly(&mut go, "building helm")?;
    Ok(program)
}
