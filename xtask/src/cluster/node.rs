//! A node: a network namespace, and in it mount, host name and cgroup namespaces with containerd and a kubelet.
//!
//! containerd makes the namespaces and keeps them; everything else enters through it. A node has the files of
//! `/var/lib`, `/var/log` and `/etc` for itself, under their usual names, and a BPF file system of its own.
//!
//! Not for what runs in pods.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{
    daemon::{self, Daemon},
    fabric,
    groups::Groups,
    image, kubernetes,
    place::{Cluster, Cni, IpFamily, KubeProxy, Node, word},
    progress::Progress,
};
use crate::workspace;

const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where containerd looks for the pod network; the node is ready when something is there.
const CNI_FOLDER: &str = "etc/cni/net.d";
/// Layers of a node's own: what it adds to /etc and to the machine's CNI plugins.
const LAYERS: [&str; 4] = ["etc", "etc.work", "cni", "cni.work"];

/// Starts containerd, which makes the node's namespaces.
pub fn start(cluster: &Cluster, node: Node) -> Result<()> {
    let name = node.name();
    let folder = cluster.folder().join(&name);
    let parts = ["lib/kubelet", "log", "etc/containerd", CNI_FOLDER];
    for part in parts.into_iter().chain(LAYERS) {
        fs::create_dir_all(folder.join(part)).with_context(|| folder.display().to_string())?;
    }
    write(
        &folder.join("etc/containerd/config.toml"),
        &containerd_config(),
    )?;
    // By the API server's certificate a kubelet knows who gives it orders.
    copy(
        &cluster.folder().join("pki/ca.crt"),
        &folder.join("lib/kubelet/ca.crt"),
    )?;
    copy(
        &cluster.kubeconfig(&format!("system:node:{name}")),
        &folder.join("lib/kubelet/kubeconfig"),
    )?;
    write(&folder.join("lib/kubelet/config.yaml"), KUBELET)?;
    start_containerd(cluster, node, &folder)?;
    Ok(())
}

/// Starts the kubelet, when there is a containerd for it to ask: it asks at once, and ends without an answer.
pub fn start_kubelet(cluster: &Cluster, node: Node, progress: &Progress) -> Result<()> {
    let name = node.name();
    let containerd = daemon::find(cluster, &format!("containerd-{name}"))?;
    progress.wait(&format!("containerd of {name}"), 30, || {
        containerd.check()?;
        let is_there = containerd.is_program("containerd") && containerd.path(SOCKET).exists();
        Ok(is_there.then_some(()).ok_or_else(|| "no socket".to_owned()))
    })?;
    let mut addresses = node.ipv4().to_string();
    if cluster.ip_family == IpFamily::Dual {
        addresses += &format!(",{}", node.ipv6());
    }
    let rack = node.rack().name();
    let mut kubelet = enter(cluster, node)?;
    kubelet.arg(kubernetes::program("kubelet")?).args([
        "--config=/var/lib/kubelet/config.yaml".to_owned(),
        "--kubeconfig=/var/lib/kubelet/kubeconfig".to_owned(),
        format!("--hostname-override={name}"),
        format!("--node-ip={addresses}"),
        // A zone each: what tells zones apart has something to tell.
        format!("--node-labels=rack={rack},topology.kubernetes.io/zone=zone-of-{name}"),
    ]);
    daemon::start(cluster, &format!("kubelet-{name}"), &mut kubelet)?;
    Ok(())
}

/// A command on a node.
fn enter(cluster: &Cluster, node: Node) -> Result<Command> {
    let groups = Groups::recorded(&cluster.name)?.make(&node.name())?;
    Ok(daemon::find(cluster, &format!("containerd-{}", node.name()))?.enter(&groups))
}

fn start_containerd(cluster: &Cluster, node: Node, folder: &Path) -> Result<Daemon> {
    let groups = Groups::recorded(&cluster.name)?.make(&node.name())?;
    let joined = |words: Vec<String>| words.join(" ");
    let mut containerd = daemon::in_netns(&cluster.netns(&node.name()), "sh");
    containerd
        .args(["-c", include_str!("node.sh")])
        .env("NODE", node.name())
        .env("FOLDER", folder)
        .env(
            "GROUPS_IN",
            joined(groups.folders().map(|g| g.display().to_string()).collect()),
        )
        .env(
            "CONTROLLERS",
            joined(
                groups
                    .controllers
                    .iter()
                    .map(|(name, _)| name.clone())
                    .collect(),
            ),
        );
    daemon::start(
        cluster,
        &format!("containerd-{}", node.name()),
        &mut containerd,
    )
}

/// Waits until the cluster has said which addresses a node's pods get, and gives the node their network where that is
/// ours to make: `ptp` links, and routes that others make (see `fabric`).
pub fn join(cluster: &Cluster, node: Node, progress: &Progress) -> Result<()> {
    let name = node.name();
    let kubelet = daemon::find(cluster, &format!("kubelet-{name}"))?;
    let cidrs = progress.wait(&format!("{name} to register"), 60, || {
        kubelet.check()?;
        let mut question = kubernetes::kubectl(cluster)?;
        question.args([
            "get",
            "node",
            &name,
            "--output=jsonpath={.spec.podCIDRs[*]}",
        ]);
        let answer = question.output().context("asking for the node")?;
        let text = String::from_utf8_lossy(&answer.stdout);
        let cidrs: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Ok(if cidrs.is_empty() {
            Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned())
        } else {
            Ok(cidrs)
        })
    })?;
    if cluster.cni == Cni::Ptp {
        // Through the node's own view: a layer of an overlay is not written to behind its back.
        let mut put = enter(cluster, node)?;
        put.args([
            "sh",
            "-euc",
            "printf %s \"$1\" >\"$0.new\"; mv \"$0.new\" \"$0\"",
        ])
        .arg(Path::new("/").join(CNI_FOLDER).join("90-ptp.conflist"))
        .arg(pod_network(&cidrs).to_string());
        workspace::run_quietly(&mut put, "writing the pod network")?;
    }
    if cluster.kube_proxy != KubeProxy::None {
        for cidr in &cidrs {
            fabric::route_to_pods(cluster, node, cidr)?;
        }
        start_kube_proxy(cluster, node)?;
    }
    Ok(())
}

fn pod_network(cidrs: &[String]) -> serde_json::Value {
    let ranges: Vec<_> = cidrs
        .iter()
        .map(|cidr| serde_json::json!([{"subnet": cidr}]))
        .collect();
    let routes: Vec<_> = cidrs
        .iter()
        .map(|cidr| {
            if cidr.contains(':') {
                "::/0"
            } else {
                "0.0.0.0/0"
            }
        })
        .map(|all| serde_json::json!({"dst": all}))
        .collect();
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "ptp",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
        }, {
            // `hostPort`s of pods.
            "type": "portmap",
            "capabilities": {"portMappings": true},
        }],
    })
}

fn start_kube_proxy(cluster: &Cluster, node: Node) -> Result<()> {
    let name = node.name();
    let kubeconfig = cluster
        .folder()
        .join(&name)
        .join("lib/kubelet/kube-proxy.kubeconfig");
    copy(&cluster.kubeconfig("system:kube-proxy"), &kubeconfig)?;
    let mut proxy = enter(cluster, node)?;
    proxy.arg(kubernetes::program("kube-proxy")?).args([
        "--kubeconfig=/var/lib/kubelet/kube-proxy.kubeconfig".to_owned(),
        format!("--proxy-mode={}", word(&cluster.kube_proxy)),
        format!("--hostname-override={name}"),
        // The kernel's limits are the machine's, not this namespace's.
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
    ]);
    daemon::start(cluster, &format!("kube-proxy-{name}"), &mut proxy)?;
    Ok(())
}

/// Waits until Kubernetes calls a node ready.
pub fn wait_until_ready(cluster: &Cluster, node: Node, progress: &Progress) -> Result<()> {
    let name = node.name();
    let parts = [
        daemon::find(cluster, &format!("containerd-{name}"))?,
        daemon::find(cluster, &format!("kubelet-{name}"))?,
    ];
    progress.wait(&format!("{name} to be ready"), 120, || {
        parts.iter().try_for_each(Daemon::check)?;
        let mut question = kubernetes::kubectl(cluster)?;
        let condition = "{range .status.conditions[?(@.type==\"Ready\")]}{.status} {.message}{end}";
        question.args([
            "get",
            "node",
            &name,
            &format!("--output=jsonpath={condition}"),
        ]);
        let answer = question.output().context("asking for the node")?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        Ok(if text.starts_with("True") {
            Ok(())
        } else {
            Err(text)
        })
    })
}

/// Gives a node an image.
pub fn import(cluster: &Cluster, node: Node, archive: &Path) -> Result<()> {
    let file = fs::File::open(archive).with_context(|| archive.display().to_string())?;
    let mut ctr = enter(cluster, node)?;
    ctr.args(["ctr", "-n", "k8s.io", "images", "import", "-"]);
    let output = ctr.stdin(file).output().context("starting ctr")?;
    ensure!(
        output.status.success(),
        "importing {} into {}: {}",
        archive.display(),
        node.name(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

fn containerd_config() -> String {
    format!(
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{}\"\n\
         # A process without CAP_SYS_RESOURCE may not lower what the kernel kills last.\n\
         restrict_oom_score_adj = true\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/usr/lib/cni\"\nconf_dir = \"/etc/cni/net.d\"\n",
        image::PAUSE
    )
}

const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: { anonymous: { enabled: false }, webhook: { enabled: true }, x509: { clientCAFile: /var/lib/kubelet/ca.crt } }
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
# The disk is the machine's: what others fill must not evict pods.
evictionHard: {}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 2s
protectKernelDefaults: false
";
