//! Fairlead on a cluster, as people install it: the image of this tree, the chart by `helm`, and objects by which its
//! nodes and routers know each other and services get addresses.
//!
//! Not for what the chart holds: that is `control/packaging/helm/fairlead`.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};

use super::{
    helm, kubernetes, node,
    place::{Cluster, Cni},
    progress::Progress,
};
use crate::{dist, workspace};

const CHART: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../control/packaging/helm/fairlead"
);
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/values.yaml");
/// Peers, what they are told, and a pool of addresses.
const OBJECTS: &str = include_str!("objects.yaml");

/// Builds the image; for development it takes less time, and its agents more.
pub fn build(debug: bool, progress: &Progress) -> Result<PathBuf> {
    progress.step("building Fairlead's image (once per change; minutes)");
    let archive = dist::image(dist::TAG, debug)?;
    progress.step("image built");
    Ok(archive)
}

/// Installs it and waits until every node runs its agent.
pub fn install(cluster: &Cluster, archive: &Path, progress: &Progress) -> Result<()> {
    for node in cluster.nodes() {
        node::import(cluster, node, archive)?;
    }
    let mut helm = helm::command(Some(cluster))?;
    helm.args(["upgrade", "--install", "fairlead", CHART])
        .args(["--namespace", "kube-system", "--values", VALUES])
        // helm never updates kinds that are there: the next step does.
        .args(["--skip-crds", "--wait", "--timeout=180s"]);
    if cluster.cni == Cni::Fairlead {
        // Where a node of ours has its plugins.
        helm.args(["--set", "cni.enabled=true,cni.binDir=/usr/lib/cni"]);
    }
    workspace::run_quietly(&mut helm, "installing the chart")?;
    install_kinds(cluster)?;
    apply_objects(cluster)?;
    progress.step("Fairlead runs on every node and speaks BGP with its rack's router");
    Ok(())
}

/// Defines the kinds that the agent reads, and waits until the API server serves them.
pub fn install_kinds(cluster: &Cluster) -> Result<()> {
    let kinds = format!("{CHART}/crds");
    let mut apply = kubernetes::kubectl(cluster)?;
    apply.args(["apply", "--server-side", "--filename", &kinds]);
    workspace::run_quietly(&mut apply, "installing the kinds")?;
    let mut wait = kubernetes::kubectl(cluster)?;
    wait.args(["wait", "--for=condition=Established", "crd", "--all"]);
    workspace::run_quietly(&mut wait, "waiting for the kinds")
}

fn apply_objects(cluster: &Cluster) -> Result<()> {
    let mut kubectl = kubernetes::kubectl(cluster)?
        .args(["apply", "--filename", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting kubectl")?;
    let mut input = kubectl.stdin.take().context("writing to kubectl")?;
    input
        .write_all(OBJECTS.as_bytes())
        .context("writing to kubectl")?;
    drop(input);
    let status = kubectl.wait().context("waiting for kubectl")?;
    ensure!(status.success(), "applying peers and pools: {status}");
    Ok(())
}
