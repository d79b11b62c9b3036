//! A cluster whose pods get their network from us: nodes become ready by it, and it leaves nothing.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::{run, wait_for};
use fairlead_tests::root;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::leftovers::Machine;
use super::web::ask;
use super::{
    CLIENT, NODES, SERVICE, announced, deploy, dpctl, group, on, outage,
    pods_and_nodes_reach_it_by_its_cluster_address, processes, scale, second_release, to,
};

const NAME: &str = "fl-test-cni";

#[test]
fn nodes_become_ready_by_our_plugin_and_pods_leave_nothing_however_it_ends() {
    if !root::is_root() {
        return;
    }
    let before = Machine::look().unwrap();
    let cluster = Cluster::up(NAME, &["--cni", "fairlead"]).unwrap();
    agents_may_be_away(&cluster).unwrap();
    deploy(&cluster).unwrap();
    announced(&cluster, &[2, 1], 90).unwrap();
    pods_reach_each_other(&cluster).unwrap();
    pods_and_nodes_reach_it_by_its_cluster_address(&cluster).unwrap();
    a_pod_comes_while_its_agent_is_away(&cluster).unwrap();
    outage::nothing_is_lost_while_the_control_plane_is_away(&cluster).unwrap();
    second_release::it_is_told_who_holds_the_node_and_takes_over_when_that_goes(&cluster).unwrap();
    the_plugin_is_killed_while_pods_come(&cluster).unwrap();

    scale(&cluster, 0).unwrap();
    cluster
        .kubectl(&["delete", "pod", "late", "--wait=true"])
        .unwrap();
    wait_for("nothing to be left of the pods", 60, || {
        for node in NODES {
            nothing_is_left(&cluster, node).context(node)?;
        }
        Ok(Some(()))
    })
    .unwrap();

    cluster.down().unwrap();
    let after = Machine::look().unwrap();
    assert_eq!(after.beyond(&before, NAME), Vec::<String>::new());
}

/// From now on a node without a label is one whose agent is down.
fn agents_may_be_away(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["label", "node", "--all", "agent=wanted"])?;
    let set = "daemonset/fairlead";
    let selector = r#"{"spec":{"template":{"spec":{"nodeSelector":{"agent":"wanted"}}}}}"#;
    cluster.kubectl(&["-n", "kube-system", "patch", set, "-p", selector])?;
    let rolled = ["rollout", "status", set, "--timeout=180s"];
    cluster
        .kubectl(&[&["-n", "kube-system"], &rolled[..]].concat())
        .map(drop)
}

/// The pods of the web server: name, node, addresses.
fn pods(cluster: &Cluster) -> Result<Vec<(String, String, Vec<String>)>> {
    let text = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().context("a list of pods")?.iter();
    let read = |pod: &Value| {
        let ips = pod["status"]["podIPs"].as_array().cloned();
        let ips = ips.unwrap_or_default();
        (
            text(&pod["metadata"]["name"]),
            text(&pod["spec"]["nodeName"]),
            ips.iter().map(|ip| text(&ip["ip"])).collect(),
        )
    };
    Ok(pods.map(read).collect())
}

/// Across racks, by the routes that agents announce to them; in both families.
fn pods_reach_each_other(cluster: &Cluster) -> Result<()> {
    let pods = pods(cluster)?;
    let nodes: BTreeSet<_> = pods.iter().map(|(_, node, _)| node.as_str()).collect();
    ensure!(nodes == NODES.into(), "{pods:?}");
    for (name, _, _) in &pods {
        for (target, _, addresses) in &pods {
            ensure!(addresses.len() == 2, "{target}: {addresses:?}");
            for address in addresses {
                // Its node's prefix of this family may still be on its way.
                wait_for(&format!("{target} to answer {name}"), 20, || {
                    let said = get(cluster, name, address)?;
                    ensure!(said.contains(target), "{address}: {said}");
                    Ok(Some(()))
                })?;
            }
        }
    }
    // Every node's pods of every family are known to the rack of the others.
    for (rack, other) in [("tor0", "node2"), ("tor1", "node1")] {
        let cidrs = "jsonpath={.spec.podCIDRs[*]}";
        let cidrs = cluster.kubectl(&["get", "node", other, "-o", cidrs])?;
        for (cidr, family) in cidrs.split_whitespace().zip(["ip", "ipv6"]) {
            let routes = cluster.frr(rack, &format!("show {family} route {cidr}"))?;
            ensure!(
                routes[cidr][0]["protocol"] == "bgp",
                "{rack}: {cidr}: {routes}"
            );
        }
    }
    Ok(())
}

/// What a web server says to a pod.
fn get(cluster: &Cluster, pod: &str, address: &str) -> Result<String> {
    let get = format!(
        r"printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n' | busybox nc -w 5 {address} 80 | tail -n 1"
    );
    cluster.kubectl(&["exec", pod, "--", "sh", "-c", &get])
}

/// It has its network at once, and services when the agent is back.
fn a_pod_comes_while_its_agent_is_away(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["label", "node", "node3", "agent-"])?;
    wait_for("the agent of node3 to be away", 60, || {
        Ok(super::agent_on(cluster, "node3").is_err().then_some(()))
    })?;
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: { name: late, labels: { app: web } }\nspec:\n  \
         nodeName: node3\n  terminationGracePeriodSeconds: 1\n  containers:\n    \
         - { name: web, image: \"localhost/busybox:1\" }\n",
    )?;
    let running = ["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"];
    cluster.kubectl(&running)?;
    let pods = pods(cluster)?;
    let of = |name: &str| {
        let found = pods.iter().find(|(pod, ..)| pod == name);
        found.with_context(|| format!("{name}: {pods:?}"))
    };
    let (_, _, addresses) = of("late")?;
    let (other, ..) = pods
        .iter()
        .find(|(_, node, _)| node == "node1")
        .context("a pod on node1")?;
    for address in addresses {
        wait_for("the pod to answer", 10, || {
            let said = get(cluster, other, address)?;
            ensure!(said.contains("late"), "{other} to {address}: {said}");
            Ok(Some(()))
        })?;
    }

    cluster.kubectl(&["label", "node", "node3", "agent=wanted"])?;
    wait_for("the pod to be attached", 60, || {
        let status = dpctl(cluster, "node3", &["status", "-o", "json"])?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let late = pods.iter().find(|pod| pod["name"] == "default/late");
        let device = &late.with_context(|| status.to_string())?["device"];
        let programs = status["attachments"].as_array().cloned();
        let attached = programs
            .unwrap_or_default()
            .into_iter()
            .filter(|one| one["device"] == *device && one["attached"] == true)
            .count();
        ensure!(attached == 2, "{status}");
        Ok(Some(()))
    })?;
    // It is a backend, and a client.
    let client = cluster.host("client");
    for (service, seen_as) in SERVICE.into_iter().zip(CLIENT) {
        let to = to(service, 80)?;
        wait_for("the service to be served by it", 60, || {
            let answer = client.enter(|| ask(to))??;
            ensure!(answer.client == seen_as, "{answer:?}");
            Ok((answer.pod == "late").then_some(()))
        })?;
    }
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let own = cluster.kubectl(&["get", "service", "web", "-o", path])?;
    for address in own.split_whitespace() {
        let said = get(cluster, "late", address)?;
        ensure!(said.split_whitespace().count() == 2, "{address}: {said}");
    }
    Ok(())
}

/// `kill -9` in the middle of ADDs: the runtime undoes and repeats them, and each pod has its network in the end.
fn the_plugin_is_killed_while_pods_come(cluster: &Cluster) -> Result<()> {
    let group = group(cluster)?;
    scale(cluster, 24)?;
    let mut killed = 0;
    wait_for("enough ADDs to be killed", 60, || {
        // Again and again: an ADD takes no longer than the pause between two questions.
        for pid in (0..50).flat_map(|_| processes(&group)) {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            if comm.is_ok_and(|comm| comm.trim() == "fairlead-cni")
                && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
            {
                killed += 1;
            }
        }
        ensure!(killed >= 10, "{killed} are");
        Ok(Some(()))
    })?;
    let rolled = ["rollout", "status", "deployment/web", "--timeout=180s"];
    cluster.kubectl(&rolled)?;
    let pods = pods(cluster)?;
    let addresses: Vec<_> = pods.iter().flat_map(|(_, _, ips)| ips).collect();
    let different: BTreeSet<_> = addresses.iter().collect();
    ensure!(different.len() == 2 * 25, "{pods:?}");
    // As many addresses are taken as there are pods.
    let mut taken = 0;
    wait_for("what was killed to be undone", 60, || {
        taken = 0;
        for node in NODES {
            taken += listed(cluster, node, ADDRESSES)?.len();
        }
        ensure!(taken == addresses.len(), "{taken} are taken");
        Ok(Some(()))
    })?;
    Ok(())
}

const ADDRESSES: &str = "/run/cni/networks/fairlead";

/// The files of a node's folder that are named after an address or a container.
fn listed(cluster: &Cluster, node: &str, folder: &str) -> Result<Vec<String>> {
    let text = run(on(cluster, node)?.args(["sh", "-c", &format!("ls {folder}")]))?;
    let is_ours = |name: &&str| *name != "lock" && !name.starts_with("last_reserved_ip");
    Ok(text.lines().filter(is_ours).map(str::to_owned).collect())
}

fn nothing_is_left(cluster: &Cluster, node: &str) -> Result<()> {
    let links = run(on(cluster, node)?.args(["ip", "-o", "link"]))?;
    ensure!(!links.contains("alias fairlead pod"), "{links}");
    let routes = run(on(cluster, node)?.args(["ip", "route", "show", "proto", "static"]))?;
    ensure!(!routes.contains(" dev fl"), "{routes}");
    for folder in [ADDRESSES, "/run/cni/fairlead/fairlead"] {
        let left = listed(cluster, node, folder)?;
        ensure!(left.is_empty(), "{folder}: {left:?}");
    }
    Ok(())
}
