//! What the node should be: one plain, ordered value, computed from what the sources say.
//!
//! `merge` makes it from the sources' objects and the configuration, `readiness` takes away the backends that
//! operators drain or health checks find dead, `announce` says what of it BGP peers are told, `plan` compares it
//! with the kernel. Not here: maps, sockets, clocks, files.

pub mod announce;
pub mod check;
pub mod drain;
pub mod merge;
pub mod readiness;
pub mod surroundings;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use fairlead_bgp::{BfdConfig, LargeCommunity, Password, Role};
use fairlead_common::addr::Proto;
use imbl::OrdMap;
use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

pub use crate::object::{Condition, LabelSelector, ObjectName, Requirement};

/// What the node should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// This node.
    pub node: NodeState,
    /// Addresses of the other nodes, where this node's sockets reach node ports.
    pub other_nodes: BTreeSet<IpAddr>,
    /// Services by where clients reach them; one that did not change is the same value as before.
    pub services: OrdMap<Frontend, Arc<Service>>,
    /// What load balancers in front of the cluster ask this node, by TCP port.
    pub health_checks: BTreeMap<u16, HealthCheck>,
    /// How pods leave the cluster; `None`: untranslated.
    pub egress: Option<Egress>,
    /// The BGP instances of this node by their name; that of a peering policy's is its AS number.
    pub routers: BTreeMap<String, VirtualRouter>,
    /// What was wrong with the sources' objects, or in conflict between them.
    pub conditions: Vec<Condition>,
}

/// This node, as its `Node` object and configuration say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// Its labels, for node selectors.
    pub labels: BTreeMap<String, String>,
    /// Its IPv4 address (`InternalIP`).
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address (`InternalIP`).
    pub ipv6: Option<Ipv6Addr>,
    /// All of its addresses that its object names, of whatever type.
    pub addresses: BTreeSet<IpAddr>,
    /// The prefixes its pods get addresses from.
    pub pod_cidrs: BTreeSet<IpNetwork>,
    /// Whether clients are told that a service has no backend.
    pub refuses: bool,
}

/// Where clients reach a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The service address.
    pub addr: IpAddr,
    /// The service port.
    pub port: u16,
    /// TCP or UDP.
    pub proto: Proto,
    /// Whose packets are meant.
    pub scope: Scope,
}

impl Frontend {
    /// The first one in their order.
    pub const FIRST: Self = Self {
        addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        port: 0,
        proto: Proto(0),
        scope: Scope::Outside,
    };
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = std::net::SocketAddr::new(self.addr, self.port);
        write!(f, "{addr}/{}", self.proto)?;
        match self.scope {
            Scope::Outside => Ok(()),
            Scope::Inside => f.write_str(" inside"),
        }
    }
}

/// Where the clients of a frontend are. Traffic policies differ between the two, and some addresses exist for
/// one of them only.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Beyond the uplinks.
    #[default]
    Outside,
    /// Pods of this node and its own sockets.
    Inside,
}

impl Scope {
    /// The printed name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Inside => "inside",
        }
    }
}

/// A service of one address, port and protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The object it comes from.
    pub object: ObjectName,
    /// The labels of that object, for service selectors.
    pub labels: BTreeMap<String, String>,
    /// Which fields of the object name its address.
    pub address_kinds: BTreeSet<AddressKind>,
    /// How packets get to its backends.
    pub forwarding: Forwarding,
    /// Session affinity: how long a client that opens no connection stays with its backend.
    pub affinity: Option<Duration>,
    /// The only sources that are let in; none: all. An empty set lets nobody in.
    pub source_ranges: Option<BTreeSet<IpNetwork>>,
    /// How its backends are asked whether they serve; absent: only their objects say so.
    pub check: Option<check::Check>,
    /// Each node serves it by its own backends alone.
    pub only_local: bool,
    /// Its backends; the frontends of one port share them.
    pub backends: Arc<BTreeMap<BackendAddr, Backend>>,
}

/// What `spec.healthCheckNodePort` answers: whether this node has backends of a service that is served by its
/// own backends only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealthCheck {
    /// The service.
    pub object: ObjectName,
    /// How many of its ready backends are on this node.
    pub local_endpoints: u32,
}

/// How packets get to the backends of a service that have no agent of their own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// `nat` to those that listen on another port than the service; else `dsr-l2` to those on a link of this node,
    /// `dsr-ipip` to those behind a router.
    #[default]
    Auto,
    /// The MAC addresses are rewritten; the backend carries the service address.
    DsrL2,
    /// Wrapped in IPv4 or IPv6; the backend unwraps and carries the service address.
    DsrIpip,
    /// Wrapped in UDP and GUE; the backend unwraps and carries the service address.
    DsrGue,
    /// Both ends are translated; the backend answers this node, and knows nothing of the service.
    Nat,
}

impl Forwarding {
    /// The name in annotations, and as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::DsrL2 => "dsr-l2",
            Self::DsrIpip => "dsr-ipip",
            Self::DsrGue => "dsr-gue",
            Self::Nat => "nat",
        }
    }
}

/// Which field of a service names an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AddressKind {
    /// `spec.loadBalancerIP` or `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// `spec.externalIPs[]`.
    External,
    /// `spec.clusterIPs[]`.
    Cluster,
    /// An address of this node, or the unspecified one for those of all others, with `spec.ports[].nodePort`.
    Node,
}

/// Where a backend listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddr {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.addr, self.port).fmt(f)
    }
}

/// What is known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Takes new flows.
    pub ready: bool,
    /// Still answers the flows it has.
    pub serving: bool,
    /// Its share of the ring, relative to the others'. 0: none.
    pub weight: u32,
    /// Whose work the last step to it is.
    pub home: Home,
}

/// Whose work the last step to a backend is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// Its own: a host without an agent.
    #[default]
    Bare,
    /// This node's: one of its pods, or a process in its own network.
    Here,
    /// Another node's, whose agent translates for it.
    Elsewhere,
}

/// How pods leave for the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The address they leave under.
    pub address: Ipv4Addr,
    /// Whether that is the node's own address, whose ports it shares with the host; else it is announced.
    pub is_node_address: bool,
    /// Destinations that are reached without translation.
    pub native: BTreeSet<Ipv4Network>,
}

/// A BGP instance: `bgpInstances[]` of a cluster configuration that selects this node, or `virtualRouters[]`
/// of a peering policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualRouter {
    /// `Kind name` of the object it comes from.
    pub object: String,
    /// Our AS number.
    pub local_asn: u32,
    /// The BGP identifier; absent: the node's IPv4 address.
    pub router_id: Option<Ipv4Addr>,
    /// The TCP port to listen on; absent: do not listen.
    pub local_port: Option<u16>,
    /// Links on which peers are sought: we advertise ourselves there, so that they find us.
    pub links: BTreeSet<String>,
    /// Peers by address and port.
    pub neighbors: BTreeMap<(IpAddr, u16), Neighbor>,
}

/// A BGP peer of a virtual router, with Cilium's defaults where the object is silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Its AS number; 0: whatever it says.
    pub asn: u32,
    /// What its object calls it.
    pub name: Option<String>,
    /// The `CiliumBGPPeerConfig` that it is spoken to by.
    pub peer_config: Option<String>,
    /// TTL of our packets towards an eBGP peer.
    pub ebgp_multihop_ttl: u8,
    /// Time between attempts to connect.
    pub connect_retry: Duration,
    /// Hold time that we propose.
    pub hold: Duration,
    /// Time between our KEEPALIVEs.
    pub keepalive: Duration,
    /// Graceful restart time, when on.
    pub graceful_restart: Option<Duration>,
    /// The index of the link that it is known by: its address is link-local.
    pub interface: Option<u32>,
    /// The source address of our connections, when it is not left to the host.
    pub local_address: Option<IpAddr>,
    /// The source port of our connections, when it is not left to the host.
    pub local_port: Option<u16>,
    /// TCP MD5 password (RFC 2385).
    pub password: Option<Password>,
    /// What a profile adds.
    pub profile: Profile,
    /// The address families that are spoken, and what is told in each.
    pub advertised: BTreeMap<Family, Vec<Advertised>>,
}

/// Routers that are peers when they dial from a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where they dial from, host bits zero.
    pub prefix: IpNetwork,
    /// Their ASes; any when empty.
    pub asns: BTreeSet<u32>,
    /// How many there may be at a time.
    pub limit: usize,
}

/// What Cilium's objects have no field for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in the configuration"
)]
pub struct Profile {
    /// The peer stands for all who dial from here.
    pub range: Option<Range>,
    /// How the peer is watched by BFD.
    pub bfd: Option<BfdConfig>,
    /// How many hops away it is at most (RFC 5082).
    pub ttl_security: Option<u8>,
    /// It is waited for, never dialled.
    pub passive: bool,
    /// How many prefixes per family it may send.
    pub max_prefixes: Option<u32>,
    /// No session, for this reason.
    pub shutdown: Option<String>,
    /// It is asked to prefer other paths than ours (RFC 8326).
    pub graceful_shutdown: bool,
    /// It is told what other peers told, too.
    pub transit: bool,
    /// How long routes are kept after the restart time (RFC 9494).
    pub long_lived_stale_time: Option<Duration>,
    /// It may tell several paths per prefix (RFC 7911).
    pub add_path: bool,
    /// What we are to it (RFC 9234).
    pub role: Option<Role>,
    /// No session with it unless it says what it is to us.
    pub role_strict: bool,
}

/// Something that a peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// What.
    pub what: What,
    /// What its paths carry.
    pub attributes: PathAttributes,
}

/// What a peer may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// This node's pod CIDRs.
    PodCidrs,
    /// Addresses of services.
    Services {
        /// Of which services.
        selector: LabelSelector,
        /// Which of their addresses.
        kinds: BTreeSet<AddressKind>,
        /// IPv4 addresses are told as prefixes of this length.
        aggregate_v4: Option<u8>,
        /// IPv6 addresses are told as prefixes of this length.
        aggregate_v6: Option<u8>,
    },
    /// What this node has of a pool of pod addresses.
    Pool {
        /// The pool's name.
        name: String,
        /// The prefixes, host bits zero.
        prefixes: BTreeSet<IpNetwork>,
    },
    /// Addresses of a device.
    Interface {
        /// Its name.
        name: String,
        /// Those that it has now.
        addresses: BTreeSet<IpAddr>,
    },
}

/// Attributes that paths carry towards a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathAttributes {
    /// RFC 1997 communities.
    pub communities: BTreeSet<u32>,
    /// RFC 8092 large communities.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// LOCAL_PREF, towards an internal peer.
    pub local_preference: Option<u32>,
}

impl PathAttributes {
    /// Adds what else is said of a path: all communities count, and the highest preference.
    pub fn add(&mut self, other: &Self) {
        self.communities.extend(&other.communities);
        self.large_communities.extend(&other.large_communities);
        self.local_preference = self.local_preference.max(other.local_preference);
    }
}

/// An address family, always unicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 unicast.
    Ipv4,
    /// IPv6 unicast.
    Ipv6,
}

impl Family {
    /// That of a prefix.
    pub const fn of(prefix: &IpNetwork) -> Self {
        match prefix {
            IpNetwork::V4(_) => Self::Ipv4,
            IpNetwork::V6(_) => Self::Ipv6,
        }
    }
}
