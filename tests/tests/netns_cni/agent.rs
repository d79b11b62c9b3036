//! The plugin beside an agent: which is asked nothing by ADD, finds pods by itself, and says when pods may come.

use std::path::PathBuf;

use anyhow::ensure;
use fairlead_control::host::pods::device_name;
use fairlead_tests::host::{Host, host};
use fairlead_tests::netns::{Netns, veth, wait_for};
use fairlead_tests::process::Process;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::runtime::{Answer, NETWORK, Runtime, new_pod, reaches, runtime};

/// The agent's host, and the runtime that is on it.
struct Node {
    host: Host,
    runtime: Runtime,
    fabric: Netns,
}

fn node() -> Option<Node> {
    let host = host()?;
    let runtime = Runtime {
        node: Netns::existing(host.netns.name()),
        dir: TempDir::new().unwrap(),
    };
    std::fs::create_dir(runtime.dir.path().join("bin")).unwrap();
    std::fs::create_dir(runtime.dir.path().join("net.d")).unwrap();
    Some(Node {
        host,
        runtime,
        fabric: Netns::unique("fl-plug").unwrap(),
    })
}

impl Node {
    fn join_fabric(&self) {
        veth((&self.host.netns, "eth0"), (&self.fabric, "eth0")).unwrap();
        self.host.netns.ip("addr add 10.9.0.1/24 dev eth0").unwrap();
    }

    fn start(&self) -> Process {
        let config = format!(
            "devices: [{{name: eth0, role: uplink}}]\nmanifests: DIR/m\n\
             kubernetes: {{cni: {{enabled: true, configDir: {}, chained: []}}}}\n",
            self.folder().display()
        )
        .replace("DIR", &self.host.dir.path().display().to_string());
        self.host.write("config.yaml", &config);
        let log = self.host.dir.path().join("agent.log");
        let mut run = self.host.command("fairlead run --config DIR/config.yaml");
        Process::start(&mut run, &log).unwrap()
    }

    /// The Node object, with these prefixes for pods.
    fn says(&self, cidrs: &[&str]) {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node1}}\nspec: {{podCIDRs: {cidrs:?}}}\n\
             status: {{addresses: [{{type: InternalIP, address: 10.9.0.1}}]}}\n"
        );
        self.host.write("m/node.yaml", &text);
    }

    fn folder(&self) -> PathBuf {
        self.runtime.dir.path().join("net.d")
    }

    fn conflist(&self) -> Option<Value> {
        let text = std::fs::read(self.folder().join("05-fairlead.conflist")).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// What a runtime makes of the list for its first plugin; records and addresses in the test's own folders.
    fn network(&self) -> Value {
        let list = self.conflist().unwrap();
        let mut network = list["plugins"][0].clone();
        network["cniVersion"] = list["cniVersion"].clone();
        network["name"] = json!(NETWORK);
        network["dataDir"] = json!(self.runtime.dir.path().join("records"));
        network["ipam"]["dataDir"] = json!(self.runtime.dir.path().join("store"));
        network
    }

    fn status(&self, mut network: Value) -> Answer {
        network["cniVersion"] = json!("1.1.0");
        self.runtime
            .run(&[("CNI_COMMAND", "STATUS")], &network.to_string())
    }

    fn wait_attached(&self, id: &str) {
        let device = device_name(&format!("{id}/eth0"));
        wait_for("the pod to be attached", 10, || {
            let said = self.host.say("dpctl status -o json").out;
            let status: Value = serde_json::from_str(&said)?;
            let attached = status["attachments"].as_array().map_or(0, |all| {
                all.iter()
                    .filter(|one| one["device"] == device && one["attached"] == true)
                    .count()
            });
            ensure!(attached == 2, "{status}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

#[test]
fn pods_may_come_when_the_agent_is_ready_and_knows_their_addresses() {
    let Some(node) = node() else { return };
    node.says(&[]);
    // Of before a reboot.
    std::fs::write(node.folder().join("05-fairlead.conflist"), "{}").unwrap();
    let agent = node.start();
    let says = |what: &str| {
        wait_for(what, 10, || {
            let said = node.host.say("dpctl status").out;
            ensure!(said.contains(what), "{said}");
            Ok(Some(()))
        })
        .unwrap();
    };
    says("DeviceMissing");
    assert_eq!(node.conflist(), None, "its programs are not attached");
    node.join_fabric();
    says("PodCIDRsMissing");
    assert_eq!(node.conflist(), None, "it does not know the addresses");

    node.says(&["10.77.0.0/24", "fd00:77::/64"]);
    let list = wait_for("the configuration", 10, || Ok(node.conflist())).unwrap();
    assert_eq!(list["plugins"][0]["mtu"], 1500);
    assert_eq!(list["plugins"].as_array().unwrap().len(), 1);
    node.says(&["10.78.0.0/24"]);
    wait_for("other addresses", 10, || {
        let ranges = node.conflist().unwrap()["plugins"][0]["ipam"]["ranges"].clone();
        ensure!(ranges == json!([[{"subnet": "10.78.0.0/24"}]]), "{ranges}");
        Ok(Some(()))
    })
    .unwrap();
    assert_eq!(std::fs::read_dir(node.folder()).unwrap().count(), 1);

    drop(agent);
    assert!(
        node.conflist().is_some(),
        "an agent that ends takes nothing back"
    );
    let said = node.host.say("fairlead cleanup --config DIR/config.yaml");
    assert!(said.out.contains("05-fairlead.conflist"), "{said:?}");
    assert_eq!(node.conflist(), None);
}

#[test]
fn a_pod_that_comes_while_the_agent_is_down_is_attached_when_it_is_back() {
    let Some(node) = node() else { return };
    node.join_fabric();
    node.says(&["10.77.0.0/24", "fd00:77::/64"]);
    let agent = node.start();
    wait_for("the configuration", 20, || Ok(node.conflist())).unwrap();
    let network = node.network();
    let (a, b) = (new_pod(), new_pod());

    let first = node.runtime.ask("ADD", "a", &a, &network).done();
    node.wait_attached("a");
    node.status(network.clone()).done();
    agent.signal(Signal::SIGKILL).unwrap();
    drop(agent);
    let second = node.runtime.ask("ADD", "b", &b, &network).done();
    reaches(&b, &first).unwrap();
    let (code, message) = node.status(network.clone()).refused();
    assert_eq!(code, 50, "{message}");
    assert!(message.contains("the agent is not ready"), "{message}");

    let _agent = node.start();
    // It is waited for.
    node.status(network.clone()).done();
    for id in ["a", "b"] {
        node.wait_attached(id);
    }
    reaches(&a, &second).unwrap();
    for (id, pod) in [("a", &a), ("b", &b)] {
        node.runtime.ask("DEL", id, pod, &network).done();
    }
    node.runtime.is_clean_but_for_the_uplink().unwrap();
}

#[test]
fn status_without_an_agent_ever_says_so() {
    let Some(runtime) = runtime() else { return };
    let network = runtime.network().to_string();

    let (code, message) = runtime
        .run(&[("CNI_COMMAND", "STATUS")], &network)
        .refused();

    assert_eq!(code, 51);
    assert!(
        message.contains("no agent has programmed this node since it started"),
        "{message}"
    );
}
