//! The configuration document: every field, its default and what it means.
//!
//! Field names are the YAML names in camelCase. Not here: reading files and checks across fields
//! ([`super::load`]).

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Deserializer, Serialize};

use super::listen::Listen;

/// Where the configuration is read from unless another file is named.
pub const DEFAULT_CONFIG: &str = "/etc/fairlead/config.yaml";
/// Default of [`Document::socket`].
pub const DEFAULT_SOCKET: &str = "/run/fairlead/agent.sock";
/// Default of [`Document::state_dir`].
pub const DEFAULT_STATE_DIR: &str = "/var/lib/fairlead";
/// Default of [`Cni::config_dir`].
pub const DEFAULT_CNI_CONFIG_DIR: &str = "/etc/cni/net.d";
/// Default of [`Bpf::pin_path`].
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/fairlead";

/// `/etc/fairlead/config.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Document {
    /// The name of this node's `Node` object. Default: the host name.
    pub node_name: Option<String>,
    /// The devices that Fairlead receives packets on. Default: none.
    pub devices: Vec<Device>,
    /// Where and how programs are loaded.
    pub bpf: Bpf,
    /// IPv4 destinations that pods reach without translation: one prefix or a list. Default: none.
    #[serde(
        rename = "ipv4NativeRoutingCIDR",
        deserialize_with = "one_or_many_prefixes"
    )]
    pub ipv4_native_routing_cidr: Vec<Ipv4Network>,
    /// How pods leave for the outside.
    pub masquerade: Masquerade,
    /// The watched folder of Kubernetes manifests. Default: none.
    pub manifests: Option<PathBuf>,
    /// The API server that objects are read from, in place of a folder.
    pub kubernetes: Kubernetes,
    /// The agent's socket. Default: `/run/fairlead/agent.sock`.
    pub socket: PathBuf,
    /// The folder of what survives a reboot: which backends are drained, and the objects of the API server for
    /// an agent that starts while it is away. It is made when there is something to keep.
    /// Default: `/var/lib/fairlead`.
    pub state_dir: PathBuf,
    /// What the BGP speaker does beyond its peering policies.
    pub bgp: Bgp,
    /// How services are balanced.
    pub load_balancer: LoadBalancer,
    /// How sockets of this host reach services.
    pub socket_load_balancing: SocketLoadBalancing,
    /// What the agent tells of itself.
    pub telemetry: Telemetry,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            node_name: None,
            devices: Vec::new(),
            bpf: Bpf::default(),
            ipv4_native_routing_cidr: Vec::new(),
            masquerade: Masquerade::default(),
            manifests: None,
            kubernetes: Kubernetes::default(),
            socket: PathBuf::from(DEFAULT_SOCKET),
            state_dir: PathBuf::from(DEFAULT_STATE_DIR),
            bgp: Bgp::default(),
            load_balancer: LoadBalancer::default(),
            socket_load_balancing: SocketLoadBalancing::default(),
            telemetry: Telemetry::default(),
        }
    }
}

/// A device and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Device {
    /// Its interface name.
    pub name: String,
    /// What is behind it.
    pub role: Role,
}

/// What is behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The fabric: services, returning translations and forwarding arrive here.
    Uplink,
    /// Hosts of the local network.
    Lan,
}

/// Where and how programs are loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Bpf {
    /// The folder of the pins, on a BPF file system. Default: `/sys/fs/bpf/fairlead`.
    pub pin_path: PathBuf,
    /// How XDP programs are attached. Default: `auto`.
    pub xdp_mode: XdpMode,
}

impl Default for Bpf {
    fn default() -> Self {
        Self {
            pin_path: PathBuf::from(DEFAULT_PIN_PATH),
            xdp_mode: XdpMode::default(),
        }
    }
}

/// How XDP programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, or generic where the driver cannot.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Driver,
    /// Generic: after the kernel has built its packet.
    Generic,
}

/// The API server that objects are read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Kubernetes {
    /// Whether they are. Default: no.
    pub enabled: bool,
    /// The file that says where it is and who we are. Default: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Its address, where the one in the kubeconfig or the pod's environment does not serve: the API server's
    /// cluster address needs a proxy, and that may be us. `https://HOST:PORT`.
    pub api_server: Option<String>,
    /// Whether this agent may be the one that gives addresses of `CiliumLoadBalancerIPPool`s to services of type
    /// LoadBalancer. Not beside Cilium's operator, which does the same. Default: no.
    #[serde(rename = "loadBalancerIPAM")]
    pub load_balancer_ipam: bool,
    /// The network of this node's pods, where it is ours to make.
    pub cni: Cni,
}

/// The network of this node's pods: the plugin `fairlead-cni`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Cni {
    /// Whether container runtimes are told to use it, once the agent is ready and the `Node` object says which
    /// addresses pods get (`podCIDRs`). Default: no.
    pub enabled: bool,
    /// The folder that the container runtime reads network configurations from. Default: `/etc/cni/net.d`.
    pub config_dir: PathBuf,
    /// The version of CNI that the configuration is in. All of its plugins must know it, and GC and STATUS are asked
    /// for from 1.1.0 on. Default: 1.0.0.
    pub version: CniVersion,
    /// The largest packet that a pod sends, in bytes. Default: that of the uplink that takes the least.
    pub mtu: Option<u32>,
    /// The plugins that are run after ours, as in a network configuration list. Default: `portmap`, for `hostPort`.
    pub chained: Vec<serde_json::Value>,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            enabled: false,
            config_dir: PathBuf::from(DEFAULT_CNI_CONFIG_DIR),
            version: CniVersion::default(),
            mtu: None,
            chained: vec![serde_json::json!({
                "type": "portmap", "capabilities": {"portMappings": true},
            })],
        }
    }
}

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CniVersion {
    /// The oldest that runtimes of today write.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// What every runtime and plugin of today knows.
    #[default]
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// With GC and STATUS.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

/// How pods leave for the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Masquerade {
    /// Whether pods leave under an egress address. Default: no.
    pub enabled: bool,
    /// That address; it is announced by BGP. Default: the node's own `InternalIP`, with ports outside
    /// the range that the host's own connections take theirs from.
    pub egress_address: Option<Ipv4Addr>,
}

/// What the BGP speaker does beyond its peering policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Bgp {
    /// Which learnt routes go to the kernel. Default: `none`.
    pub import: Import,
    /// How many prefixes a peer may send before its session ends. Default: no limit.
    pub max_prefixes: Option<u32>,
    /// The host name that peers are told. Default: the node's name.
    pub hostname: Option<String>,
    /// The namespace of the Secrets that peering policies name. Default: `kube-system`.
    pub secrets_namespace: Option<String>,
}

impl Bgp {
    /// Where the Secrets of peers are; by default where Cilium looks for them.
    pub fn namespace_of_secrets(&self) -> &str {
        self.secrets_namespace.as_deref().unwrap_or("kube-system")
    }
}

/// Which learnt routes go to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Import {
    /// None: learnt routes are seen, not used.
    #[default]
    None,
    /// All of them.
    All,
    /// Those that one of these rules matches.
    Prefixes(Vec<PrefixRule>),
}

impl Import {
    /// Whether a learnt route to this prefix goes to the kernel.
    pub fn accepts(&self, prefix: IpNetwork) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Prefixes(rules) => rules.iter().any(|rule| rule.matches(prefix)),
        }
    }
}

/// Prefixes within a prefix, by their length: `{prefix: 10.0.0.0/8, ge: 16, le: 24}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    try_from = "UncheckedPrefixRule"
)]
pub struct PrefixRule {
    /// What they lie in; host bits are cleared.
    pub prefix: IpNetwork,
    /// Their smallest length. Default: the prefix's own.
    pub ge: u8,
    /// Their greatest length. Default: the longest there is when `ge` is given, else the prefix's own.
    pub le: u8,
}

impl PrefixRule {
    /// Whether this rule covers a prefix.
    pub fn matches(&self, prefix: IpNetwork) -> bool {
        self.prefix.is_ipv4() == prefix.is_ipv4()
            && self.prefix.contains(prefix.network())
            && (self.ge..=self.le).contains(&prefix.prefix())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct UncheckedPrefixRule {
    prefix: IpNetwork,
    ge: Option<u8>,
    le: Option<u8>,
}

impl TryFrom<UncheckedPrefixRule> for PrefixRule {
    type Error = String;

    fn try_from(rule: UncheckedPrefixRule) -> Result<Self, String> {
        let prefix = masked(rule.prefix);
        let own = prefix.prefix();
        let longest = if prefix.is_ipv4() { 32 } else { 128 };
        let ge = rule.ge.unwrap_or(own);
        let le = rule
            .le
            .unwrap_or(if rule.ge.is_some() { longest } else { own });
        if ge < own || le < ge || le > longest {
            return Err(format!(
                "lengths {ge} to {le} do not fit {prefix}: choose {own} <= ge <= le <= {longest}"
            ));
        }
        Ok(Self { prefix, ge, le })
    }
}

/// How services are balanced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// How long flows that began before a change stay with their backend. Default: 60s.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub drain_window: Duration,
    /// Which of this node's addresses node ports are served at: those within these prefixes; a prefix of full
    /// length is served itself. Default: the node's `InternalIP`s.
    pub node_port_addresses: Vec<IpNetwork>,
    /// Whether `hints` of endpoints (of topology aware routing and `trafficDistribution`) choose backends near this
    /// node, whoever asks. Default: no, only for clients inside of services with `trafficDistribution`.
    pub topology_aware_hints: bool,
    /// What becomes of connections to a service without a backend, and to ports of a service address that no
    /// service has. Default: reject.
    pub no_backend: NoBackend,
}

/// What a client learns of a service that nobody serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoBackend {
    /// It gets an ICMP error, "port unreachable".
    #[default]
    Reject,
    /// Nothing.
    Drop,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            drain_window: Duration::from_mins(1),
            node_port_addresses: Vec::new(),
            topology_aware_hints: false,
            no_backend: NoBackend::default(),
        }
    }
}

/// How sockets of this host reach services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SocketLoadBalancing {
    /// Whether sockets, of pods too, are given a backend when they connect or send to a service, so that no
    /// packet carries the service's address. Default: yes.
    pub enabled: bool,
    /// The folder of the cgroup whose sockets are meant, with those of all cgroups below. Default: the root of
    /// the unified hierarchy; none when the agent is in a network namespace other than the host's, whose
    /// services are not those of the host's processes.
    pub cgroup: Option<PathBuf>,
}

impl Default for SocketLoadBalancing {
    fn default() -> Self {
        Self {
            enabled: true,
            cgroup: None,
        }
    }
}

/// What the agent tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Telemetry {
    /// Where `/livez`, `/readyz` and `/metrics` are served: an address and port, or `none`. Default:
    /// `127.0.0.1:7179`.
    pub listen: Listen,
}

/// The prefix without its host bits.
fn masked(prefix: IpNetwork) -> IpNetwork {
    match prefix {
        IpNetwork::V4(v4) => IpNetwork::V4(masked_v4(v4)),
        IpNetwork::V6(v6) => {
            let network = ipnetwork::Ipv6Network::new_checked(v6.network(), v6.prefix());
            IpNetwork::V6(network.unwrap_or(v6))
        }
    }
}

fn masked_v4(prefix: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new_checked(prefix.network(), prefix.prefix()).unwrap_or(prefix)
}

fn one_or_many_prefixes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Ipv4Network>, D::Error> {
    struct OneOrMany;

    impl<'de> serde::de::Visitor<'de> for OneOrMany {
        type Value = Vec<Ipv4Network>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an IPv4 prefix such as 10.0.0.0/8, or a list of them")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let prefix = text.parse().map_err(|why| {
                E::custom(format!(
                    "{text:?} is not an IPv4 prefix such as 10.0.0.0/8: {why}"
                ))
            })?;
            Ok(vec![masked_v4(prefix)])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> Result<Self::Value, A::Error> {
            let mut prefixes = Vec::new();
            while let Some(prefix) = list.next_element::<Ipv4Network>()? {
                prefixes.push(masked_v4(prefix));
            }
            Ok(prefixes)
        }
    }

    deserializer.deserialize_any(OneOrMany)
}
