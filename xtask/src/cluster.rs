//! `cargo xtask cluster VERB`: a real Kubernetes cluster on this machine, in network namespaces.
//!
//! ```text
//!       client 192.0.2.2        control plane 172.31.0.2 (etcd, API server, controllers, scheduler)
//!              │                       │
//!          ┌───┴───────────────────────┴───┐
//!          │ router  AS 65000              │ FRR
//!          └───┬───────────────────────┬───┘
//!     ┌────────┴────────┐     ┌────────┴────────┐
//!     │ tor0  AS 65010  │     │ tor1  AS 65011  │ FRR, one link layer per rack
//!     └──┬───────────┬──┘     └──┬──────────────┘
//!      node1       node3       node2               containerd, kubelet, pods
//! ```
//!
//! Everything runs in one control group, named after the cluster: what it holds is what `down` ends. Mounts are
//! made in namespaces of the nodes' own, links in network namespaces: they go with what runs in them.
//!
//! Not for what is tested on it: that is the crate `tests`.

mod chart;
mod control_plane;
mod daemon;
mod e2e;
mod fabric;
mod groups;
mod helm;
mod image;
mod kubernetes;
mod node;
mod place;
mod progress;
mod teardown;

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

use crate::{setup, workspace};
use groups::Groups;
use place::{Cluster, Cni, IpFamily, KubeProxy};
use progress::Progress;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Which cluster: several can stand side by side
    #[arg(
        long,
        global = true,
        default_value = "fairlead",
        env = "FAIRLEAD_CLUSTER"
    )]
    name: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring a cluster up, with Fairlead installed by its chart, and wait until all is ready
    Up(Up),
    /// Take it away, with everything that runs in it
    Down,
    /// Say what runs, and how to look around
    Status,
    /// Give an image to every node: a docker-archive, or programs that become one
    LoadImage {
        /// A file ending in .tar, or programs, of which the first is started
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// What the image of programs is called; default: localhost/PROGRAM:latest
        #[arg(long)]
        tag: Option<String>,
    },
    /// Run kubectl on it; where KUBECONFIG is set, on that cluster
    Kubectl {
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run helm on it; `lint` and `template` need no cluster
    Helm {
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run Kubernetes' own tests of the network on it
    E2e(e2e::Arguments),
    /// Show what one of its parts printed, or name the parts
    Logs {
        part: Option<String>,
        /// Go on as it prints more
        #[arg(short, long)]
        follow: bool,
    },
}

#[derive(clap::Args)]
struct Up {
    /// How many nodes, in turn in the one rack and in the other; with 0 it is the control plane and the routers alone
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=9))]
    nodes: u8,
    /// Who translates services; with `none` Fairlead does, and its routes lead from pod to pod
    #[arg(long, value_enum, default_value_t = KubeProxy::None)]
    kube_proxy: KubeProxy,
    /// Addresses of nodes, pods and services
    #[arg(long, value_enum, default_value_t = IpFamily::Dual)]
    ip_family: IpFamily,
    /// Leave Fairlead out; a cluster with kube-proxy is always bare
    #[arg(long)]
    bare: bool,
    /// Who makes the network of pods
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    cni: Cni,
    /// Build Fairlead's image for development, not for use: faster to build, slower to run
    #[arg(long)]
    debug: bool,
}

/// Does what was asked.
pub fn run(arguments: &Arguments) -> Result<()> {
    if let (Verb::Kubectl { arguments }, true) = (&arguments.verb, has_foreign_cluster()) {
        let kubectl = workspace::find_program("kubectl")
            .context("KUBECONFIG names a cluster, and there is no kubectl in PATH")?;
        return Err(Command::new(kubectl).args(arguments).exec()).context("starting kubectl");
    }
    let is_beside =
        matches!(&arguments.verb, Verb::Helm { arguments } if helm::is_beside(arguments));
    ensure!(
        is_beside || workspace::is_root(),
        "namespaces and mounts need root: `sudo -E cargo xtask cluster …`"
    );
    let name = &arguments.name;
    match &arguments.verb {
        Verb::Up(up) => bring_up(name, up),
        Verb::Down => {
            let progress = Progress::start();
            if teardown::down(name)? {
                progress.step(&format!("{name} is gone"));
            } else {
                progress.step(&format!("there is no cluster {name}"));
            }
            Ok(())
        }
        Verb::Status => status(&Cluster::existing(name)?),
        Verb::LoadImage { files, tag } => {
            ensure!(
                !has_foreign_cluster(),
                "KUBECONFIG names a cluster that was not made here: push the image to its registry instead"
            );
            let cluster = Cluster::existing(name)?;
            let archive = image::archive(&cluster, files, tag.as_deref())?;
            for node in cluster.nodes() {
                node::import(&cluster, node, &archive)?;
            }
            Ok(())
        }
        Verb::Kubectl { arguments } => {
            let mut kubectl = kubernetes::kubectl(&Cluster::existing(name)?)?;
            Err(kubectl.args(arguments).exec()).context("starting kubectl")
        }
        Verb::Helm { arguments } => {
            let is_beside = is_beside || has_foreign_cluster();
            let cluster = (!is_beside).then(|| Cluster::existing(name)).transpose()?;
            let mut helm = helm::command(cluster.as_ref())?;
            Err(helm.args(arguments).exec()).context("starting helm")
        }
        Verb::E2e(arguments) => e2e::run(&Cluster::existing(name)?, arguments),
        Verb::Logs { part, follow } => logs(&Cluster::existing(name)?, part.as_deref(), *follow),
    }
}

fn has_foreign_cluster() -> bool {
    std::env::var_os("KUBECONFIG").is_some_and(|file| !file.is_empty())
}

/// A control plane without nodes, with the kinds of the chart, while `work` asks its API server: it is given the
/// network namespace of the server and the administrator's kubeconfig.
///
/// # Errors
/// It could not be made, or taken away; or those of `work`.
pub fn with_control_plane(name: &str, work: impl FnOnce(&str, &Path) -> Result<()>) -> Result<()> {
    let up = Up {
        nodes: 0,
        kube_proxy: KubeProxy::None,
        ip_family: IpFamily::Dual,
        bare: true,
        cni: Cni::Ptp,
        debug: false,
    };
    bring_up(name, &up)?;
    let done = Cluster::existing(name).and_then(|cluster| {
        chart::install_kinds(&cluster)?;
        work(&cluster.netns("api"), &cluster.kubeconfig("admin"))
    });
    let gone = teardown::down(name);
    done.and(gone.map(drop))
}

fn bring_up(name: &str, up: &Up) -> Result<()> {
    place::check_name(name)?;
    let wanted = Cluster {
        name: name.to_owned(),
        node_count: up.nodes,
        kube_proxy: up.kube_proxy,
        ip_family: up.ip_family,
        cni: up.cni,
        has_fairlead: !up.bare && up.nodes > 0 && up.kube_proxy == KubeProxy::None,
    };
    let progress = Progress::start();
    match Cluster::existing(name) {
        Ok(there) if there == wanted => {
            progress.step(&format!("{name} is up already"));
            return status(&there);
        }
        Ok(there) => bail!(
            "{name} is up with other options ({there}); `cargo xtask cluster down` first, or choose a --name"
        ),
        Err(_) => {}
    }
    setup::ensure(&[setup::For::Cluster])?;
    kubernetes::build(&progress)?;
    let image = wanted
        .has_fairlead
        .then(|| chart::build(up.debug, &progress))
        .transpose()?;
    if teardown::down(name)? {
        progress.step("took away what an interrupted start had left");
    }
    progress.listen()?;
    if let Err(error) = make(&wanted, image.as_deref(), &progress) {
        progress.step("taking away what was made so far");
        teardown::down(name).context("after a failed start")?;
        return Err(error);
    }
    let rest = match wanted.cni {
        Cni::Fairlead if !wanted.has_fairlead && wanted.node_count > 0 => {
            "; its nodes are ready when Fairlead is installed (docs/kubernetes.md)"
        }
        Cni::Ptp | Cni::Fairlead => "",
    };
    progress.step(&format!(
        "{name} is up: `cargo xtask cluster kubectl -- get nodes`{rest}"
    ));
    Ok(())
}

fn make(cluster: &Cluster, fairlead: Option<&Path>, progress: &Progress) -> Result<()> {
    cluster.prepare()?;
    Groups::create(&cluster.name)?;
    fabric::make(cluster)?;
    progress.step("namespaces, links and routers");
    control_plane::start(cluster, progress)?;
    for node in cluster.nodes() {
        node::start(cluster, node)?;
    }
    for node in cluster.nodes() {
        node::start_kubelet(cluster, node, progress)?;
    }
    if cluster.node_count == 0 {
        return cluster.mark_complete();
    }
    progress.step("containerd and kubelets started");
    for archive in image::own(cluster)? {
        for node in cluster.nodes() {
            node::import(cluster, node, &archive)?;
        }
    }
    progress.step("images loaded");
    for node in cluster.nodes() {
        node::join(cluster, node, progress)?;
        progress.step(&format!("{} has joined", node.name()));
    }
    if cluster.cni == Cni::Ptp {
        wait_for_nodes(cluster, progress)?;
    }
    if let Some(image) = fairlead {
        chart::install(cluster, image, progress)?;
        if cluster.cni == Cni::Fairlead {
            wait_for_nodes(cluster, progress)?;
        }
    }
    cluster.mark_complete()
}

fn wait_for_nodes(cluster: &Cluster, progress: &Progress) -> Result<()> {
    for node in cluster.nodes() {
        node::wait_until_ready(cluster, node, progress)?;
        progress.step(&format!("{} is ready", node.name()));
    }
    Ok(())
}

fn status(cluster: &Cluster) -> Result<()> {
    println!("{cluster}");
    for daemon in daemon::all(cluster)? {
        let state = if daemon.is_running() {
            "runs"
        } else {
            "has ended"
        };
        println!("  {:28} {state} (pid {})", daemon.name, daemon.pid);
    }
    let name = &cluster.name;
    println!("client   ip netns exec {name}-client …");
    let sockets = cluster.folder().join("router");
    println!(
        "routers  ip netns exec {name}-router vtysh --vty_socket {}",
        sockets.display()
    );
    let mut nodes = kubernetes::kubectl(cluster)?;
    workspace::run(
        nodes.args(["get", "nodes", "-o", "wide"]),
        "asking for the nodes",
    )
}

fn logs(cluster: &Cluster, part: Option<&str>, follow: bool) -> Result<()> {
    let Some(part) = part else {
        for daemon in daemon::all(cluster)? {
            println!("{}", daemon.name);
        }
        return Ok(());
    };
    let log = cluster.log(part);
    ensure!(
        fs::exists(&log).unwrap_or(false),
        "{part} is no part of {}; `cargo xtask cluster logs` names them",
        cluster.name
    );
    let mut tail = Command::new("tail");
    tail.args(["-n", "200"]);
    if follow {
        tail.arg("-F");
    }
    let status: ExitStatus = tail.arg(log).status().context("starting tail")?;
    ensure!(status.success(), "tail ended with {status}");
    Ok(())
}
