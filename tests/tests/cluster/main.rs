//! Fairlead on a real Kubernetes cluster: API server, kubelets, pods, and FRR around them.
//!
//! One cluster serves all of it, in the order of a story: bringing one up costs more than everything else.

mod leftovers;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::wait_for;
use fairlead_tests::root;
use leftovers::Machine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const INSTALL: &str = include_str!("../../../control/packaging/kubernetes/fairlead.yaml");
/// What a person would apply: Cilium's definition, a policy per rack, a workload behind a service.
const DOCUMENTS: &str = include_str!("documents.yaml");
const DEFINITION: &str = include_str!("definition.yaml");
const SERVICE: &str = "203.0.113.10/32";

#[test]
fn services_are_announced_by_a_daemon_set_and_the_api_server_may_go() {
    if !root::is_root() {
        return;
    }
    let before = Machine::look().unwrap();
    let cluster = Cluster::up("fl-test", &[]).unwrap();
    let again = cluster.xtask(&["up"]).unwrap().output().unwrap();
    assert!(again.status.success(), "a second `up` finds it there");
    let other = cluster
        .xtask(&["up", "--nodes", "2"])
        .unwrap()
        .output()
        .unwrap();
    assert!(!other.status.success(), "and does not change it");

    cluster.load(&["fairlead", "dpctl"]).unwrap();
    cluster.apply(INSTALL).unwrap();
    let rolled_out = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        "daemonset/fairlead",
        "--timeout=180s",
    ];
    cluster.kubectl(&rolled_out).unwrap();

    // The kind appears while the agents run.
    cluster.apply(DEFINITION).unwrap();
    let established = [
        "wait",
        "--for=condition=Established",
        "crd/ciliumbgppeeringpolicies.cilium.io",
    ];
    cluster.kubectl(&established).unwrap();
    cluster.apply(DOCUMENTS).unwrap();
    let status = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.10"}]}}}"#;
    let patch = [
        "patch",
        "service",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    cluster.kubectl(&patch).unwrap();
    announced(&cluster, &[2, 1], 90).unwrap();

    scale(&cluster, 0).unwrap();
    announced(&cluster, &[0, 0], 30).unwrap();
    scale(&cluster, 3).unwrap();
    announced(&cluster, &[2, 1], 60).unwrap();

    without_api_server(&cluster).unwrap();

    cluster.down().unwrap();
    let after = Machine::look().unwrap();
    assert_eq!(after.beyond(&before), Vec::<String>::new());
}

/// The API server is stopped, an agent is killed and started again: it goes on from its snapshot, and says so.
fn without_api_server(cluster: &Cluster) -> Result<()> {
    // Within this time a change has been written down.
    std::thread::sleep(Duration::from_secs(6));
    let server = Pid::from_raw(cluster.pid("kube-apiserver")?);
    kill(server, Signal::SIGSTOP)?;
    let agent = agent_on(cluster, "node2")?;
    kill(agent, Signal::SIGKILL)?;
    let result = wait_for("node2's agent to go on without the API server", 60, || {
        let status = dpctl(cluster, "node2", &["status", "-o", "json"])?;
        let conditions = status["conditions"].to_string();
        ensure!(conditions.contains("NoApiServer"), "{conditions}");
        Ok(Some(()))
    })
    .and_then(|()| announced(cluster, &[2, 1], 30));
    kill(server, Signal::SIGCONT)?;
    result?;
    wait_for("the agents to hear of the API server again", 60, || {
        let status = dpctl(cluster, "node2", &["status", "-o", "json"])?;
        ensure!(
            !status["conditions"].to_string().contains("ApiServer"),
            "{status}"
        );
        Ok(Some(()))
    })
}

/// Waits until each rack's router has this many next hops for the service.
fn announced(cluster: &Cluster, wanted: &[usize; 2], seconds: u64) -> Result<()> {
    wait_for(
        &format!("{wanted:?} next hops to {SERVICE}"),
        seconds,
        || {
            for (rack, wanted) in wanted.iter().enumerate() {
                let host = format!("tor{rack}");
                let routes = cluster.frr(&host, &format!("show ip route {SERVICE}"))?;
                let own = format!("10.10.{rack}.");
                let hops = routes[SERVICE][0]["nexthops"].as_array().cloned();
                let found = hops
                    .unwrap_or_default()
                    .iter()
                    .filter(|hop| hop["ip"].as_str().is_some_and(|ip| ip.starts_with(&own)))
                    .count();
                ensure!(found == *wanted, "{host} has {found}: {routes}");
            }
            Ok(Some(()))
        },
    )
}

fn scale(cluster: &Cluster, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster
        .kubectl(&["scale", "deployment/web", &replicas])
        .map(drop)
}

fn agent_on(cluster: &Cluster, node: &str) -> Result<Pid> {
    let group = std::fs::read_to_string(cluster.folder().join("groups.json"))?;
    let groups: serde_json::Value = serde_json::from_str(&group)?;
    let unified = groups["unified"].as_str().context("the cluster's group")?;
    processes(Path::new(unified).join(node).as_path())
        .into_iter()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == "fairlead")
        })
        .map(Pid::from_raw)
        .with_context(|| format!("no agent runs on {node}"))
}

/// All processes of a control group and of those within it.
fn processes(group: &Path) -> Vec<i32> {
    let own = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = own.lines().filter_map(|pid| pid.parse().ok()).collect();
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// Asks an agent in its pod, without the API server: from the node, by its socket.
fn dpctl(cluster: &Cluster, node: &str, words: &[&str]) -> Result<serde_json::Value> {
    let pid = cluster.pid(&format!("containerd-{node}"))?;
    let mut enter = std::process::Command::new("nsenter");
    enter.args(["--mount", "--net", "--target", &pid.to_string()]);
    let output = enter
        .arg(fairlead_tests::lab::binary("dpctl")?)
        .args(words)
        .output()?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "dpctl {words:?} on {node}: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}
