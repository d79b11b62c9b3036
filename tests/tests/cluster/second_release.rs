//! The chart is installed a second time: a node's agent says so to the other one, and nobody else notices.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::Cluster;
use fairlead_tests::netns::{run, wait_for};
use serde_json::Value;

use super::chart::CHART;
use super::web::Asking;
use super::{NODES, SERVICE, announced, dpctl, on, to};

const VALUES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../xtask/src/cluster/values.yaml"
);
const NAMESPACE: &str = "second";
const RELEASE: &str = "other";
const OF_RELEASE: &str = "app.kubernetes.io/instance=other";

/// It waits, or ends and says who holds the node, and goes without a trace; when the first one goes, it takes over.
pub fn it_is_told_who_holds_the_node_and_takes_over_when_that_goes(
    cluster: &Cluster,
) -> Result<()> {
    let client = cluster.host("client");
    let asking = SERVICE
        .map(|service| Ok(Asking::start(&client, to(service, 80)?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let before = Standing::look(cluster)?;

    // What belongs to no namespace has the release's name.
    let error = install(cluster, "fairlead", &[]).err();
    let error = error.context("a second release of the same name")?;
    let said = r#"ClusterRole "fairlead" in namespace "" exists and cannot be imported"#;
    ensure!(error.to_string().contains(said), "{error}");

    install(cluster, RELEASE, &[])?;
    it_waits_for_the_port(cluster)?;
    install(cluster, RELEASE, &["listen.port=7180"])?;
    it_says_who_holds_the_node(cluster)?;
    // The one that holds the node is asked.
    let peers = cluster.kubectl(&["fairlead", "bgp", "peers"])?;
    ensure!(NODES.iter().all(|node| peers.contains(node)), "{peers}");
    helm(cluster, &["uninstall", RELEASE, "--namespace", NAMESPACE])?;
    let after = Standing::look(cluster)?;
    ensure!(after == before, "{before:?} became {after:?}");

    install(cluster, RELEASE, &[])?;
    it_waits_for_the_port(cluster)?;
    helm(
        cluster,
        &["uninstall", "fairlead", "--namespace", "kube-system"],
    )?;
    wait_for("the second release to take over", 60, || {
        for node in NODES {
            let status = dpctl(cluster, node, &["status", "-o", "json"])?;
            let pod = status["pod"].as_str().unwrap_or_default();
            ensure!(pod.starts_with("second/other-fairlead-"), "{node}: {pod}");
            ensure!(
                status["inSync"] == true && status["peers"]["good"] == 1,
                "{status}"
            );
        }
        Ok(Some(()))
    })?;
    announced(cluster, &[2, 1], 30)?;
    // Whoever gives addresses does so for the whole cluster.
    wait_for("one of them to give addresses", 30, || {
        let status = dpctl(cluster, NODES[0], &["status", "-o", "json"])?;
        let leader = status["loadBalancerIPAM"]["leader"].as_str();
        ensure!(
            leader.is_some_and(|leader| NODES.contains(&leader)),
            "{status}"
        );
        let names = "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}";
        let leases = cluster.kubectl(&["get", "leases", "--all-namespaces", "-o", names])?;
        let ours: Vec<_> = leases
            .split_whitespace()
            .filter(|name| name.contains("fairlead"))
            .collect();
        ensure!(ours == ["kube-system/fairlead-lb-ipam"], "{leases}");
        Ok(Some(()))
    })?;
    for asking in asking {
        let account = asking.stop()?;
        ensure!(
            account.trouble.is_empty() && account.asked > 100,
            "{account:?}"
        );
    }
    Ok(())
}

fn helm(cluster: &Cluster, words: &[&str]) -> Result<String> {
    run(cluster.xtask(&["helm", "--"])?.args(words))
}

fn install(cluster: &Cluster, release: &str, sets: &[&str]) -> Result<()> {
    let words = [
        "upgrade",
        "--install",
        release,
        CHART,
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        "--skip-crds",
        "--values",
        VALUES,
        "--set",
        "cni.enabled=true,cni.binDir=/usr/lib/cni",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let words: Vec<_> = words.into_iter().chain(sets).collect();
    helm(cluster, &words).map(drop)
}

/// Both want the same port of the node: the scheduler keeps the second away.
fn it_waits_for_the_port(cluster: &Cluster) -> Result<()> {
    wait_for("the pods of the second to be kept away", 30, || {
        let pods = pods(cluster)?;
        ensure!(pods.len() == NODES.len(), "{pods:?}");
        for pod in &pods {
            let conditions = pod["status"]["conditions"].to_string();
            ensure!(
                pod["status"]["phase"] == "Pending"
                    && conditions.contains("didn't have free ports"),
                "{pod}"
            );
        }
        Ok(Some(()))
    })
}

/// They start, and end: their status names the pod that holds their node.
fn it_says_who_holds_the_node(cluster: &Cluster) -> Result<()> {
    let holders = NODES
        .map(|node| {
            let status = dpctl(cluster, node, &["status", "-o", "json"])?;
            let pod = status["pod"]
                .as_str()
                .context("the agent's pod")?
                .to_owned();
            Ok((node, pod))
        })
        .into_iter()
        .collect::<Result<BTreeMap<_, _>>>()?;
    wait_for("every pod of the second to say why it ended", 60, || {
        let pods = pods(cluster)?;
        for (node, holder) in &holders {
            let of_node = |pod: &&Value| pod["spec"]["nodeName"] == *node;
            let pod = pods.iter().find(of_node);
            let pod = pod.with_context(|| format!("no pod on {node}: {pods:?}"))?;
            let container = &pod["status"]["containerStatuses"][0];
            ensure!(container["ready"] == false, "{container}");
            let ended = ["state", "lastState"]
                .map(|state| container[state]["terminated"]["message"].as_str());
            let said = ended.into_iter().flatten().next();
            let said = said.with_context(|| container.to_string())?;
            let who = format!("the pod {holder} holds this node");
            ensure!(holder.starts_with("kube-system/fairlead-"), "{holder}");
            ensure!(said.contains(&who), "{said}");
        }
        Ok(Some(()))
    })
}

fn pods(cluster: &Cluster) -> Result<Vec<Value>> {
    let get = [
        "get", "pods", "-n", NAMESPACE, "-l", OF_RELEASE, "-o", "json",
    ];
    let list: Value = serde_json::from_str(&cluster.kubectl(&get)?)?;
    list["items"].as_array().cloned().context("a list of pods")
}

/// What a second agent might harm: of every node pins and the runtime's configuration; of every router, how often a
/// session came up and went.
#[derive(Debug, PartialEq)]
struct Standing {
    nodes: Vec<[String; 2]>,
    sessions: BTreeMap<String, [Value; 2]>,
}

impl Standing {
    fn look(cluster: &Cluster) -> Result<Self> {
        let of_node = |node| {
            let say = |what: &str| run(on(cluster, node)?.args(["sh", "-c", what]));
            let pins = say("find /sys/fs/bpf/fairlead -printf '%i %p\\n' | sort")?;
            let runtime = say("cd /etc/cni/net.d && stat --format '%n %i %y' * && cat *")?;
            Ok([pins, runtime])
        };
        let nodes = NODES.map(of_node).into_iter().collect::<Result<_>>()?;
        let mut sessions = BTreeMap::new();
        for router in ["tor0", "tor1"] {
            let peers = cluster.frr(router, "show bgp neighbors")?;
            for (address, peer) in peers.as_object().context("peers")? {
                let counts = ["connectionsEstablished", "connectionsDropped"];
                let counts = counts.map(|count| peer[count].clone());
                sessions.insert(format!("{router} {address}"), counts);
            }
        }
        Ok(Self { nodes, sessions })
    }
}
