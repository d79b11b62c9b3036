//! Kinds in the version that the API server has: its definitions may be older than the agent, or newer.

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::bpffs::BpfFs;
use fairlead_tests::cluster::Cluster;
use fairlead_tests::lab::binary;
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::process::Process;
use fairlead_tests::root;
use serde_json::{Value, json};

/// A definition of objects of whatever shape, with these versions and whether each is served; the last is stored.
pub fn definition(name: &str, versions: &[(&str, bool)]) -> String {
    let plural = format!("{}s", name.to_lowercase());
    let shape = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let versions: Vec<_> = (1..)
        .zip(versions)
        .map(|(number, (version, served))| {
            json!({
                "name": version, "served": served, "storage": number == versions.len(),
                "schema": {"openAPIV3Schema": shape},
            })
        })
        .collect();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.cilium.io")},
        "spec": {
            "group": "cilium.io", "scope": "Cluster",
            "names": {"kind": name, "plural": plural},
            "versions": versions,
        },
    });
    definition.to_string()
}

/// A configuration with these peers.
fn config(version: &str, peers: &[&str]) -> String {
    let peers: Vec<_> = (0..)
        .zip(peers)
        .map(|(n, ip)| json!({"name": format!("tor{n}"), "peerASN": 65000, "peerAddress": ip}))
        .collect();
    let config = json!({
        "apiVersion": format!("cilium.io/{version}"), "kind": "CiliumBGPClusterConfig", "metadata": {"name": "rack0"},
        "spec": {"bgpInstances": [{"name": "i", "localASN": 65001, "peers": peers}]},
    });
    config.to_string()
}

/// A pool with this many addresses of each family.
fn pool(version: &str, addresses: u8) -> String {
    let blocks = ["198.51.100", "2001:db8:64:"].map(|of| {
        let colon = if of.contains(':') { ":" } else { "." };
        json!({"start": format!("{of}{colon}1"), "stop": format!("{of}{colon}{addresses}")})
    });
    let pool = json!({
        "apiVersion": format!("cilium.io/{version}"), "kind": "CiliumLoadBalancerIPPool", "metadata": {"name": "public"},
        "spec": {"blocks": blocks},
    });
    pool.to_string()
}

/// A new service gets these addresses.
fn a_service_has(cluster: &Cluster, name: &str, wanted: [&str; 2]) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}],
            "ipFamilies": ["IPv4", "IPv6"],
        },
    });
    cluster.apply(&service.to_string())?;
    wait_for(&format!("{name} to have {wanted:?}"), 60, || {
        let addresses = "jsonpath={.status.loadBalancer.ingress[*].ip}";
        let has = cluster.kubectl(&["get", "service", name, "-o", addresses])?;
        ensure!(has.split_whitespace().eq(wanted), "{has}");
        Ok(Some(()))
    })
}

/// What is said in `v2` only.
const PORT: u16 = 1790;

/// Of what a peer's configuration says, one version lacks the port, which `v2` has.
fn a_better_version_comes_beside_the_other(cluster: &Cluster) -> Result<()> {
    let versions = [("v3", true), ("v2alpha1", true), ("v2", true)];
    let mut renewed: Value = serde_json::from_str(&definition("CiliumBGPPeerConfig", &versions))?;
    renewed["spec"]["versions"][1]["schema"]["openAPIV3Schema"] = json!({
        "type": "object", "properties": {"spec": {"type": "object"}},
    });
    cluster.apply(&renewed.to_string())?;
    let written = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumBGPPeerConfig", "metadata": {"name": "tor"},
        "spec": {"transport": {"peerPort": PORT}},
    });
    wait_for("the API server to have v2", 60, || {
        cluster.apply(&written.to_string()).map(Some)
    })?;
    for (version, wanted) in [("v2alpha1", String::new()), ("v2", PORT.to_string())] {
        let kind = format!("ciliumbgppeerconfigs.{version}.cilium.io");
        let port = "jsonpath={.spec.transport.peerPort}";
        let port = cluster.kubectl(&["get", &kind, "tor", "-o", port])?;
        ensure!(port == wanted, "{version}: {port:?}");
    }
    let reference = json!([{
        "op": "add", "path": "/spec/bgpInstances/0/peers/0/peerConfigRef", "value": {"name": "tor"},
    }]);
    let patch = [
        "patch",
        "ciliumbgpclusterconfig",
        "rack0",
        "--type=json",
        "-p",
    ];
    let patched = cluster.kubectl(&[&patch[..], &[&reference.to_string()]].concat());
    patched.map(drop)
}

/// No nodes are needed: an agent beside the API server, which is a real one.
#[test]
fn a_kind_is_read_in_the_version_that_is_served_and_an_unknown_one_is_named() {
    if !root::is_root() {
        return;
    }
    let cluster = Cluster::up("fl-kinds", &["--nodes", "0"]).unwrap();
    for (name, version) in [
        ("CiliumBGPClusterConfig", "v2alpha1"),
        ("CiliumBGPPeerConfig", "v3"),
        ("CiliumLoadBalancerIPPool", "v2alpha1"),
    ] {
        cluster
            .apply(&definition(name, &[(version, true)]))
            .unwrap();
    }
    let established = ["wait", "--for=condition=Established", "crd", "--all"];
    cluster.kubectl(&established).unwrap();
    // Its IPv4 address is the router id, without which there is no speaker to have peers.
    let addresses =
        ["172.30.0.1", "fd00:30::1"].map(|ip| json!({"type": "InternalIP", "address": ip}));
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}, "status": {"addresses": addresses},
    });
    cluster.apply(&node.to_string()).unwrap();
    cluster
        .apply(&config("v2alpha1", &["172.30.0.2", "fd00:30::2"]))
        .unwrap();
    cluster.apply(&pool("v2alpha1", 1)).unwrap();

    let (host, server) = (Netns::unique("fl-kinds-node").unwrap(), cluster.host("api"));
    veth((&host, "eth0"), (&server, "node1")).unwrap();
    for (netns, link, [v4, v6]) in [
        (&host, "eth0", ["172.30.0.1/24", "fd00:30::1/64"]),
        (&server, "node1", ["172.30.0.2/24", "fd00:30::2/64"]),
    ] {
        for address in [v4, v6] {
            netns
                .ip(&format!("address add {address} dev {link}"))
                .unwrap();
        }
        netns.ip(&format!("link set {link} up")).unwrap();
    }
    host.ip("route add default via 172.30.0.2").unwrap();
    let (fs, folder) = (BpfFs::mount().unwrap(), tempfile::tempdir().unwrap());
    let place = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "nodeName: node1\ndevices: [{{name: eth0, role: uplink}}]\nbpf: {{pinPath: {}}}\nsocket: {}\nstateDir: {}\n\
         kubernetes: {{enabled: true, loadBalancerIPAM: true, kubeconfig: {}}}\nsocketLoadBalancing: {{enabled: false}}\n",
        fs.path().join("fairlead").display(),
        place("agent.sock"),
        place("state"),
        cluster.folder().join("pki/admin.kubeconfig").display(),
    );
    std::fs::write(place("config.yaml"), text).unwrap();
    let mut command = host.command(binary("fairlead").unwrap());
    command.args(["run", "--config", &place("config.yaml")]);
    let log = folder.path().join("log");
    let mut agent = Process::start(&mut command, &log).unwrap();

    let ask = |words: &[&str]| -> anyhow::Result<Value> {
        let mut dpctl = host.command(binary("dpctl")?);
        dpctl.args(["--socket", &place("agent.sock"), "-o", "json"]);
        // What is wrong makes `status` exit with 1.
        let output = dpctl.args(words).output()?;
        let text = || String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_slice(&output.stdout).with_context(text)
    };
    // The peers that there must be, and what is said of kinds in unknown versions.
    let look = |peers: &[&str], unknown: Option<&str>| -> anyhow::Result<Option<()>> {
        let (there, status) = (ask(&["bgp", "peers"])?, ask(&["status"])?);
        let addresses = there.as_array().context("peers")?.iter();
        let addresses: Vec<_> = addresses.map(|one| one["address"].as_str()).collect();
        let wanted: Vec<_> = peers.iter().copied().map(Some).collect();
        ensure!(addresses == wanted, "peers {there}, {status}");
        let conditions = status["conditions"].as_array().context("conditions")?;
        let said = conditions
            .iter()
            .find(|one| one["reason"] == "UnknownVersion");
        ensure!(said.is_some() == unknown.is_some(), "{status}");
        if let (Some(said), Some(unknown)) = (said, unknown) {
            ensure!(said["object"] == "CiliumBGPPeerConfig", "{said}");
            let message = said["message"].as_str().unwrap_or_default();
            ensure!(message.contains(unknown), "{said}");
        }
        Ok(Some(()))
    };
    let unknown = "the API server has it in version v3, and v2 or v2alpha1 is read";
    let looked = wait_for("the agent to read what is served", 60, || {
        ensure!(agent.ended()?.is_none(), "{}", agent.printed());
        look(&["172.30.0.2", "fd00:30::2"], Some(unknown))
    });
    let printed = agent.printed();
    looked.with_context(|| printed).unwrap();
    a_service_has(&cluster, "first", ["198.51.100.1", "2001:db8:64::1"]).unwrap();

    // The definitions are renewed under the agent: the version that is watched goes, and what was missing comes.
    for (name, versions) in [
        (
            "CiliumBGPClusterConfig",
            [("v2alpha1", false), ("v2", true)],
        ),
        ("CiliumBGPPeerConfig", [("v3", true), ("v2alpha1", true)]),
        (
            "CiliumLoadBalancerIPPool",
            [("v2alpha1", false), ("v2", true)],
        ),
    ] {
        cluster.apply(&definition(name, &versions)).unwrap();
    }
    let renewed = ["172.30.0.3", "fd00:30::3"];
    wait_for("the API server to have v2", 60, || {
        cluster.apply(&config("v2", &renewed))?;
        cluster.apply(&pool("v2", 2)).map(Some)
    })
    .unwrap();
    let looked = wait_for("the agent to read what is served then", 60, || {
        ensure!(agent.ended()?.is_none(), "{}", agent.printed());
        look(&renewed, None)
    });
    let looked = looked.and_then(|()| {
        a_service_has(&cluster, "second", ["198.51.100.2", "2001:db8:64::2"])?;
        a_better_version_comes_beside_the_other(&cluster)?;
        // It is looked for once a minute.
        wait_for("the agent to read it in that version", 90, || {
            let peers = ask(&["bgp", "peers"])?;
            ensure!(peers[0]["port"] == PORT, "{peers}");
            Ok(Some(()))
        })?;
        look(&renewed, None).map(drop)
    });
    let printed = agent.printed();
    agent.stop().unwrap();
    looked.with_context(|| printed).unwrap();
    cluster.down().unwrap();
}
