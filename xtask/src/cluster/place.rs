//! What a cluster is made of, and where each part has its files, namespace and addresses.
//!
//! Not for making any of it.

use std::{
    fmt, fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

const FOLDER: &str = "/var/lib/fairlead-cluster";
/// Written last: a cluster without it was interrupted while it was made.
const COMPLETE: &str = "cluster.json";

/// The control plane's own address, behind the router.
pub const API_ADDRESS: &str = "172.31.0.2";
pub const API_PORT: u16 = 6443;
/// Cluster addresses of services; the API server's own is the first.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
pub const FIRST_SERVICE_ADDRESSES: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
/// Addresses of pods; each node gets a part.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];

/// Who translates services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KubeProxy {
    None,
    Iptables,
    Nftables,
}

/// Who makes the network of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// The standard plugin of this name.
    #[default]
    Ptp,
    /// Fairlead, once it is installed: until then no node is ready.
    Fairlead,
}

/// Which families nodes, pods and services have addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    Ipv4,
    Dual,
}

impl IpFamily {
    /// One text for the families that are there: `10.96.0.0/16` or `10.96.0.0/16,fd00::/112`.
    pub fn join(self, both: [&str; 2]) -> String {
        match self {
            Self::Ipv4 => both[0].to_owned(),
            Self::Dual => both.join(","),
        }
    }
}

/// A cluster, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    pub node_count: u8,
    pub kube_proxy: KubeProxy,
    pub ip_family: IpFamily,
    #[serde(default)]
    pub cni: Cni,
    /// Whether Fairlead's chart is installed on it.
    pub has_fairlead: bool,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} nodes, kube-proxy {}, {}, pods by {}, {}",
            self.name,
            self.node_count,
            word(&self.kube_proxy),
            word(&self.ip_family),
            word(&self.cni),
            if self.has_fairlead {
                "Fairlead"
            } else {
                "bare"
            }
        )
    }
}

/// What a person types for a value.
pub fn word(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

impl Cluster {
    /// The cluster that is up under this name.
    ///
    /// # Errors
    /// There is none.
    pub fn existing(name: &str) -> Result<Self> {
        check_name(name)?;
        let file = folder(name).join(COMPLETE);
        let text = fs::read_to_string(&file).with_context(|| {
            format!("there is no cluster {name}; `cargo xtask cluster up` makes one")
        })?;
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }

    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.node_count).map(Node)
    }

    pub fn folder(&self) -> PathBuf {
        folder(&self.name)
    }

    /// Where a part's output is kept.
    pub fn log(&self, part: &str) -> PathBuf {
        self.folder().join("log").join(part)
    }

    /// The namespace of a host, as `ip netns` knows it.
    pub fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    /// The file with a user's way to the API server.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder().join("pki").join(format!("{user}.kubeconfig"))
    }

    pub fn prepare(&self) -> Result<()> {
        for part in ["log", "pid", "pki", "etcd", "image"] {
            let folder = self.folder().join(part);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    }

    pub fn mark_complete(&self) -> Result<()> {
        let file = self.folder().join(COMPLETE);
        fs::write(&file, serde_json::to_string(self)?).with_context(|| file.display().to_string())
    }
}

pub fn folder(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Also keeps `down` from following a name out of its folder.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        (1..=40).contains(&name.len()) && name.chars().all(fits),
        "--name {name:?}: choose 1 to 40 lower case letters, digits and dashes"
    );
    Ok(())
}

/// A node by its number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub u8);

impl Node {
    pub fn name(self) -> String {
        format!("node{}", self.0)
    }

    pub fn rack(self) -> Rack {
        Rack((self.0 - 1) % 2)
    }

    pub fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, self.rack().0, 10 + self.0)
    }

    pub fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x10,
            0x10,
            u16::from(self.rack().0),
            0,
            0,
            0,
            0x10 + u16::from(self.0),
        )
    }
}

/// A rack by its number, 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rack(pub u8);

impl Rack {
    pub const BOTH: [Self; 2] = [Self(0), Self(1)];

    /// The label that its nodes carry.
    pub fn name(self) -> String {
        format!("rack{}", self.0)
    }

    /// The name of its router.
    pub fn router(self) -> String {
        format!("tor{}", self.0)
    }

    pub fn asn(self) -> u32 {
        65010 + u32::from(self.0)
    }

    /// Its router's address towards the nodes.
    pub fn gateways(self) -> [String; 2] {
        let n = self.0;
        [format!("10.10.{n}.1"), format!("fd00:10:10:{n}::1")]
    }

    /// The link between the router and its own: ours, then the other end's.
    pub fn uplink(self) -> [[String; 2]; 2] {
        let n = self.0;
        [
            [format!("10.0.{n}.2"), format!("fd00:10:0:{n}::2")],
            [format!("10.0.{n}.1"), format!("fd00:10:0:{n}::1")],
        ]
    }
}
