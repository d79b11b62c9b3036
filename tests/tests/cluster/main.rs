//! Fairlead on a real Kubernetes cluster: API server, kubelets, pods, and FRR around them.
//!
//! One cluster serves all that can be told beside another CNI plugin, in the order of a story: bringing one up costs
//! more than everything else. A second one has no network but ours.

mod chart;
mod leftovers;
mod outage;
mod pod_network;
mod pod_pools;
mod pools;
mod refusals;
mod second_release;
mod versions;
mod web;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::{run, wait_for};
use fairlead_tests::root;
use leftovers::Machine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use web::{Answer, Asking, ask};

/// What a person would apply: a workload behind a service of both families.
const DOCUMENTS: &str = include_str!("documents.yaml");
const SERVICE: [&str; 2] = ["203.0.113.10", "2001:db8:5e::10"];
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:c::2"];
const NAME: &str = "fl-test";
const NODES: [&str; 3] = ["node1", "node2", "node3"];

#[test]
fn services_are_served_by_a_daemon_set_and_it_may_restart_and_the_api_server_may_go() {
    if !root::is_root() {
        return;
    }
    let before = Machine::look().unwrap();
    let cluster = Cluster::up(NAME, &[]).unwrap();
    let again = cluster.xtask(&["up"]).unwrap().output().unwrap();
    assert!(again.status.success(), "a second `up` finds it there");
    let other = cluster
        .xtask(&["up", "--nodes", "2"])
        .unwrap()
        .output()
        .unwrap();
    assert!(!other.status.success(), "and does not change it");

    chart::it_is_accepted_for_every_documented_set_of_values(&cluster).unwrap();
    deploy(&cluster).unwrap();
    announced(&cluster, &[2, 1], 90).unwrap();

    the_client_is_seen_by_every_pod(&cluster).unwrap();
    pods_and_nodes_reach_it_by_its_cluster_address(&cluster).unwrap();
    all_nodes_are_asked_at_once(&cluster).unwrap();
    agents_restart_under_traffic(&cluster).unwrap();

    scale(&cluster, 0).unwrap();
    announced(&cluster, &[0, 0], 30).unwrap();
    scale(&cluster, 3).unwrap();
    announced(&cluster, &[2, 1], 60).unwrap();

    pod_pools::what_a_node_has_of_a_pool_is_told_as_it_changes(&cluster).unwrap();
    refusals::a_kind_that_is_forbidden_leaves_the_rest_at_work(&cluster).unwrap();
    pools::addresses_are_given_once_whoever_leads(&cluster).unwrap();
    without_api_server(&cluster).unwrap();

    cluster.down().unwrap();
    let after = Machine::look().unwrap();
    assert_eq!(after.beyond(&before, NAME), Vec::<String>::new());
}

/// The workload, until every pod of it is ready.
fn deploy(cluster: &Cluster) -> Result<()> {
    cluster.apply(DOCUMENTS)?;
    let rolled = ["rollout", "status", "deployment/web", "--timeout=120s"];
    cluster.kubectl(&rolled).map(drop)
}

fn to(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

/// From beyond the routers, with the client's own address, on whichever node the pod is.
fn the_client_is_seen_by_every_pod(cluster: &Cluster) -> Result<()> {
    let host = cluster.host("client");
    for (service, client) in SERVICE.into_iter().zip(CLIENT) {
        let to = to(service, 80)?;
        // Every agent hears in its own time of the last pod that became ready.
        let mut answers = BTreeSet::new();
        wait_for(&format!("three pods of {service} to answer"), 60, || {
            answers.insert(host.enter(|| ask(to))??);
            Ok((answers.len() >= 3).then_some(()))
        })?;
        let again = (0..60)
            .map(|_| host.enter(|| ask(to))?)
            .collect::<Result<BTreeSet<Answer>>>()?;
        answers.extend(again.iter().cloned());
        ensure!(
            answers.len() == 3 && answers.iter().all(|answer| answer.client == client),
            "{service}: {answers:?}"
        );
        ensure!(again == answers, "{service}: {again:?}");
    }
    Ok(())
}

/// By packets (from pods) and by sockets (of nodes).
fn pods_and_nodes_reach_it_by_its_cluster_address(cluster: &Cluster) -> Result<()> {
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let addresses = cluster.kubectl(&["get", "service", "web", "-o", path])?;
    let names = "jsonpath={.items[*].metadata.name}";
    let pods = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", names])?;
    for address in addresses.split_whitespace() {
        // The last line is the answer. Not wget: a static one that looks names up needs a whole libc beside it.
        let get = format!(
            r"printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n' | busybox nc -w 5 {address} 80 | tail -n 1"
        );
        for pod in pods.split_whitespace() {
            let mut seen = BTreeSet::new();
            // Its own turn comes, too.
            for _ in 0..20 {
                let said = cluster.kubectl(&["exec", pod, "--", "sh", "-c", &get])?;
                seen.insert(Answer::read(&said)?.pod);
            }
            ensure!(seen.len() == 3, "{pod} to {address}: {seen:?}");
        }
        for node in NODES {
            let mut seen = BTreeSet::new();
            for _ in 0..20 {
                let said = run(on(cluster, node)?.args(["sh", "-c", &get]))?;
                seen.insert(Answer::read(&said)?.pod);
            }
            ensure!(seen.len() == 3, "{node} to {address}: {seen:?}");
        }
    }
    Ok(())
}

/// `kubectl fairlead`: tables become one, everything else stands by node.
fn all_nodes_are_asked_at_once(cluster: &Cluster) -> Result<()> {
    let ask = |words: &[&str]| cluster.kubectl(&[&["fairlead"], words].concat());
    let peers = ask(&["bgp", "peers"])?;
    let mut lines = peers.lines();
    ensure!(
        lines
            .next()
            .is_some_and(|header| header.starts_with("NODE ")),
        "{peers}"
    );
    let nodes: BTreeSet<_> = lines.filter_map(|line| line.split(' ').next()).collect();
    ensure!(nodes == NODES.into(), "{peers}");
    let status = ask(&["--node", "node2,node3", "status"])?;
    for (node, is_asked) in NODES.into_iter().zip([false, true, true]) {
        let says = status.contains(&format!("==> {node} <==\nNode            {node}\n"));
        ensure!(says == is_asked, "{node}: {status}");
    }
    let services: serde_json::Value = serde_json::from_str(&ask(&["services", "-o", "json"])?)?;
    for node in NODES {
        ensure!(
            services[node].to_string().contains("default/web"),
            "{node}: {services}"
        );
    }
    let error = ask(&["--node", "node9", "status"]).err();
    let error = error.context("a node that is not there")?.to_string();
    ensure!(
        error.contains("no agent runs on the node node9; there are: node1, node2, node3"),
        "{error}"
    );
    Ok(())
}

/// A rolling restart, then all agents killed at once: no request fails.
fn agents_restart_under_traffic(cluster: &Cluster) -> Result<()> {
    let client = cluster.host("client");
    let asking = SERVICE
        .map(|service| Ok(Asking::start(&client, to(service, 80)?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let daemon_set = "daemonset/fairlead";
    cluster.kubectl(&["-n", "kube-system", "rollout", "restart", daemon_set])?;
    let rolled = [
        "-n",
        "kube-system",
        "rollout",
        "status",
        daemon_set,
        "--timeout=180s",
    ];
    cluster.kubectl(&rolled)?;
    let agents = NODES
        .map(|node| agent_on(cluster, node))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for agent in &agents {
        kill(*agent, Signal::SIGKILL)?;
    }
    wait_for("all agents to be back", 90, || {
        for (node, old) in NODES.iter().zip(&agents) {
            ensure!(agent_on(cluster, node)? != *old, "{node}");
            dpctl(cluster, node, &["status", "-o", "json"])?;
        }
        Ok(Some(()))
    })?;
    // Whatever they did at their start has been done.
    std::thread::sleep(Duration::from_secs(2));
    for asking in asking {
        let account = asking.stop()?;
        ensure!(
            account.trouble.is_empty() && account.asked > 100 && account.answers.len() == 3,
            "{account:?}"
        );
    }
    Ok(())
}

/// A command of a node: in its network and mount namespaces and in its control group.
fn on(cluster: &Cluster, node: &str) -> Result<Command> {
    let pid = cluster.pid(&format!("containerd-{node}"))?;
    let group = group(cluster)?.join(node).join("cgroup.procs");
    let mut enter = Command::new("sh");
    enter
        .args([
            "-c",
            "echo $$ >\"$GROUP\" && exec nsenter --mount --net --cgroup --target \"$PID\" \"$@\"",
            "sh",
        ])
        .env("GROUP", group)
        .env("PID", pid.to_string());
    Ok(enter)
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
        &format!("{wanted:?} next hops to {}", SERVICE[0]),
        seconds,
        || {
            for (rack, wanted) in wanted.iter().enumerate() {
                let host = format!("tor{rack}");
                let prefix = format!("{}/32", SERVICE[0]);
                let routes = cluster.frr(&host, &format!("show ip route {prefix}"))?;
                let own = format!("10.10.{rack}.");
                let hops = routes[&prefix][0]["nexthops"].as_array().cloned();
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
    processes(&group(cluster)?.join(node))
        .into_iter()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == "fairlead")
        })
        .map(Pid::from_raw)
        .with_context(|| format!("no agent runs on {node}"))
}

/// The cluster's group in the unified hierarchy.
fn group(cluster: &Cluster) -> Result<PathBuf> {
    let text = std::fs::read_to_string(cluster.folder().join("groups.json"))?;
    let groups: serde_json::Value = serde_json::from_str(&text)?;
    let unified = groups["unified"].as_str().context("the cluster's group")?;
    Ok(PathBuf::from(unified))
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
