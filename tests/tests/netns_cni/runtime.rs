//! A container runtime, as far as a plugin sees one: a node, a network configuration, pods, and the protocol.
//!
//! Addresses come from Debian's `host-local`, or from a script that stands for another plugin.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};
use fairlead_tests::lab::binary;
use fairlead_tests::netns::Netns;
use fairlead_tests::root::is_root;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where Debian has the standard plugins.
const PLUGINS: &str = "/usr/lib/cni";
pub const NETWORK: &str = "pods";

/// A node whose runtime uses the plugin.
pub struct Runtime {
    pub node: Netns,
    pub dir: TempDir,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    pub succeeded: bool,
    /// Null when it said nothing.
    pub json: Value,
}

impl Answer {
    /// The result of what should have been done.
    #[track_caller]
    pub fn done(self) -> Value {
        assert!(self.succeeded, "{}", self.json);
        self.json
    }

    /// The code and message of what should not.
    #[track_caller]
    pub fn refused(self) -> (u64, String) {
        assert!(!self.succeeded, "{}", self.json);
        let message = self.json["msg"].as_str().unwrap().to_owned();
        (self.json["code"].as_u64().unwrap(), message)
    }
}

/// A runtime; absent without the rights to be one.
pub fn runtime() -> Option<Runtime> {
    is_root().then(|| {
        let runtime = Runtime {
            node: Netns::unique("fl-plug").unwrap(),
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(runtime.dir.path().join("bin")).unwrap();
        for own in ["10.9.9.9/32", "fd00:9::9/128"] {
            runtime.node.ip(&format!("addr add {own} dev lo")).unwrap();
        }
        runtime
    })
}

/// A namespace for a pod.
pub fn new_pod() -> Netns {
    Netns::unique("fl-plug").unwrap()
}

impl Runtime {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration that most stories begin with.
    pub fn network(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "type": "fairlead-cni",
            "dataDir": self.path("records"),
            "pinPath": self.path("pins"),
            "agentSocket": self.path("agent.sock"),
            "ipam": {
                "type": "host-local",
                "dataDir": self.path("store"),
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]],
            },
        })
    }

    /// A network whose addresses come from a shell script of this text; `$input` is its file of what it reads.
    pub fn network_of_script(&self, text: &str) -> Value {
        let file = self.path("bin").join("scripted");
        let text = format!("#!/bin/sh\ninput=$(cat)\n{text}\n");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut network = self.network();
        network["ipam"]["type"] = json!("scripted");
        network
    }

    /// Starts the plugin with these variables and this input.
    pub fn start(&self, variables: &[(&str, &str)], input: &str) -> Child {
        let mut plugin = self.node.command(binary("fairlead-cni").unwrap());
        let path = format!("{}:{PLUGINS}", self.path("bin").display());
        plugin.env("CNI_PATH", path).envs(variables.iter().copied());
        let mut child = plugin
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        child
    }

    pub fn run(&self, variables: &[(&str, &str)], input: &str) -> Answer {
        let output = self.start(variables, input).wait_with_output().unwrap();
        let json = if output.stdout.iter().all(u8::is_ascii_whitespace) {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).unwrap()
        };
        Answer {
            succeeded: output.status.success(),
            json,
        }
    }

    /// A command about the container `id`, in a pod's namespace.
    pub fn ask(&self, command: &str, id: &str, pod: &Netns, network: &Value) -> Answer {
        let namespace = pod.path().display().to_string();
        let variables = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &namespace),
            ("CNI_IFNAME", "eth0"),
        ];
        self.run(&variables, &network.to_string())
    }

    pub fn add(&self, id: &str, pod: &Netns) -> Value {
        self.ask("ADD", id, pod, &self.network()).done()
    }

    /// CHECK, with what ADD gave.
    pub fn check(&self, id: &str, pod: &Netns, result: &Value) -> Answer {
        let mut network = self.network();
        network["prevResult"] = result.clone();
        self.ask("CHECK", id, pod, &network)
    }

    pub fn del(&self, id: &str, pod: &Netns) {
        self.ask("DEL", id, pod, &self.network()).done();
    }

    /// GC, with the containers that are to stay.
    pub fn collect(&self, valid: &[&str], mut network: Value) -> Answer {
        network["cniVersion"] = json!("1.1.0");
        network["cni.dev/valid-attachments"] = valid
            .iter()
            .map(|id| json!({"containerID": id, "ifname": "eth0"}))
            .collect();
        self.run(&[("CNI_COMMAND", "GC")], &network.to_string())
    }

    /// The addresses that `host-local` holds.
    pub fn taken(&self) -> Vec<String> {
        let names = list(&self.path("store").join(NETWORK)).into_iter();
        let is_address = |name: &String| name.contains(':') || name.matches('.').count() == 3;
        names.filter(is_address).collect()
    }

    /// The attachments that are recorded.
    pub fn records(&self) -> Vec<String> {
        list(&self.path("records").join(NETWORK))
    }

    /// The pods' devices.
    pub fn links(&self) -> Vec<String> {
        let text = self.node.run("ip -o link show type veth").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Nothing is left of any pod on an agent's node.
    pub fn is_clean_but_for_the_uplink(&self) -> Result<()> {
        let left = (self.taken(), self.records());
        ensure!(left == Default::default(), "{left:?}");
        ensure!(self.links().len() == 1, "{:?}", self.links());
        Ok(())
    }

    /// Nothing is left of any pod.
    pub fn is_clean(&self) -> Result<()> {
        let left = (self.links(), self.taken(), self.records());
        let routes =
            self.node.run("ip route")? + &self.node.run("ip -6 route show proto static")?;
        ensure!(left == Default::default(), "{left:?}");
        ensure!(routes.is_empty(), "{routes}");
        Ok(())
    }
}

fn list(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A pod's address of a family, as a result has it, without its length.
pub fn address(result: &Value, index: usize) -> String {
    let text = result["ips"][index]["address"].as_str();
    let (address, _) = text.and_then(|text| text.split_once('/')).unwrap();
    address.to_owned()
}

/// Both addresses answer from a namespace.
pub fn reaches(from: &Netns, result: &Value) -> Result<()> {
    for index in [0, 1] {
        from.run(&format!("ping -c1 -W2 {}", address(result, index)))
            .with_context(|| result.to_string())?;
    }
    Ok(())
}
