//! The answers' shapes: stable JSON, lower camelCase keys as Kubernetes has them.
//!
//! Only plain values; `view` fills them, `dpctl` prints them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::desired::Condition;

mod bgp;

pub use bgp::*;

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// This node's name.
    pub node: String,
    /// The pod that the agent runs in (`NAMESPACE/NAME`), where it was told so by `FAIRLEAD_POD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Where programs, maps and links are pinned.
    pub pin_path: String,
    /// Whether the last plan was carried out in full.
    pub in_sync: bool,
    /// Programs on devices.
    pub attachments: Vec<Attachment>,
    /// How many services, and how many of them are announced.
    pub services: Tally,
    /// How many BGP peers, and how many of them are established.
    pub peers: Tally,
    /// How many prefixes were learnt, and how many of them are in the kernel's table.
    pub learnt_routes: Tally,
    /// The address pods leave under, when they are translated.
    pub egress_address: Option<String>,
    /// Pods attached on this node.
    pub pods: Vec<Pod>,
    /// Backends that operators have drained, as `dpctl backends drain` was told.
    pub drained: Vec<String>,
    /// Who gives addresses to services, where agents do (`kubernetes.loadBalancerIPAM`).
    #[serde(rename = "loadBalancerIPAM")]
    pub load_balancer_ipam: Option<LoadBalancerIpam>,
    /// What is wrong or in conflict.
    pub conditions: Vec<Condition>,
}

/// Who gives addresses to services of type LoadBalancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIpam {
    /// The node whose agent does, by the Lease; absent: not known, or nobody.
    pub leader: Option<String>,
    /// Said by the leader: how many services have all addresses that they ask for, of those that ask.
    pub services: Option<Tally>,
    /// What keeps this agent from knowing, or from giving.
    pub trouble: Option<String>,
}

/// Whether the agent has become ready, as `/readyz` has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// What is waited for; nothing: it is ready.
    pub waits_for: Vec<String>,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many are as they should be.
    pub good: usize,
    /// How many there are.
    pub all: usize,
}

/// A program on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The device's name.
    pub device: String,
    /// `xdp_ingress`, `tc_egress` and so on.
    pub program: String,
    /// `driver`, `generic`, `tcx`; or why it is not attached.
    pub state: String,
    /// Whether packets meet the program.
    pub attached: bool,
}

/// A pod's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The host's end of its link.
    pub device: String,
    /// Its addresses.
    pub addresses: Vec<String>,
}

/// A row of `GET /v1/services`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// The service address.
    pub address: String,
    /// The service port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Whose packets are meant: `outside` the uplinks, or `inside`, from pods of this node and its own sockets.
    pub scope: String,
    /// Slots of its ring; 0: none in the kernel.
    pub slots: u32,
    /// Slots in transition.
    pub slots_in_transition: u32,
    /// Whether its address is announced.
    pub announced: bool,
    /// Why, or why not; empty for an address that is none to be announced.
    pub reason: String,
    /// What was balanced.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// What was dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// How packets get to backends that have no agent: `auto`, `dsr-l2`, `dsr-ipip`, `dsr-gue` or `nat`.
    pub forwarding: String,
    /// Session affinity in seconds; absent: none.
    pub affinity_s: Option<u64>,
    /// The only sources that are let in; absent: all.
    pub source_ranges: Option<Vec<String>>,
    /// How its backends are asked whether they serve, as the annotation says it.
    pub health_check: Option<String>,
    /// What to look at, when something is off.
    pub hint: Option<String>,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// What a service or a backend has carried since it got its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// TCP flows that began. Of UDP nothing says that a flow begins.
    pub new_flows: u64,
    /// Packets whose slot was in transition.
    pub in_transition: u64,
}

/// A backend of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// `ready`, `terminating`, `drained`, `unhealthy`, `not-ready` or `unreachable`.
    pub state: String,
    /// `l2`, `encapsulate`, or `-` when it has no row.
    pub forward: String,
    /// Its share relative to the others'.
    pub weight: u32,
    /// Slots of the ring that are its own.
    pub slots: u32,
    /// The neighbour that packets to it are sent to; absent: none is known.
    pub next_hop: Option<String>,
    /// What its health checks say; absent: it is not checked.
    pub health: Option<BackendHealth>,
    /// What was sent to it, for all services that it is a backend of.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What the health checks of a backend say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendHealth {
    /// `pending`, `healthy` or `unhealthy`.
    pub verdict: String,
    /// Seconds since it is so.
    pub since_s: u64,
    /// Why the last check failed; absent: it did not.
    pub last_error: Option<String>,
    /// Answers in a row that speak against the verdict.
    pub against: u32,
    /// Milliseconds until the next check; 0 while one is under way.
    pub next_ms: u64,
}

/// The answer to `POST /v1/backends/drain` and `/undrain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainOutcome {
    /// The drains that were added or taken away.
    pub changed: Vec<String>,
    /// The backends that are meant, each with its service: `10.0.0.1:80 of service default/web`.
    pub backends: Vec<String>,
    /// All drains that are in force now.
    pub drained: Vec<String>,
}

/// A row of `GET /v1/routes`: a learnt prefix and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The prefix.
    pub prefix: String,
    /// Its next hops.
    pub next_hops: Vec<String>,
    /// Whether the kernel's table has it so.
    pub installed: bool,
    /// Why not, when it has not.
    pub reason: String,
}

/// A row of `GET /v1/nat`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The pod's address and port.
    pub inside: String,
    /// The egress address and port.
    pub egress: String,
    /// The destination's address and port.
    pub remote: String,
    /// `new`, `established`, `closing`, `closed` or `reset`.
    pub state: String,
    /// Seconds since its last packet from inside.
    pub idle_s: u64,
    /// Seconds until it expires.
    pub expires_in_s: u64,
}

/// A row of `GET /v1/drops`: a reason and its count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    /// The reason's name.
    pub reason: String,
    /// `forward`, `pass` or `drop`.
    pub verdict: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// What it means.
    pub about: String,
}

/// What `GET /v1/trace` asks: `device=eth0&src=192.0.2.7:40000&dst=203.0.113.10:80&proto=tcp&flags=syn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceQuestion {
    /// The device that the packet comes in by.
    pub device: String,
    /// From whom.
    pub src: SocketAddr,
    /// To whom.
    pub dst: SocketAddr,
    /// `tcp` or `udp`.
    pub proto: String,
    /// TCP flags: `syn,ack`.
    pub flags: String,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// Bytes of the IP packet; 0: its headers alone.
    pub size: u16,
    /// The node whose balancer has wrapped it.
    #[serde(default)]
    pub wrapped_by: Option<IpAddr>,
    /// The backend that this node has wrapped it for.
    #[serde(default)]
    pub wrapped_for: Option<IpAddr>,
}

/// The answer: what would become of the packet, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// The device that the packet comes in by.
    pub device: String,
    /// The program that meets it.
    pub program: String,
    /// `forward`, `pass` or `drop`, as the program itself decided.
    pub verdict: String,
    /// The reason that it counted.
    pub reason: String,
    /// What it told the kernel.
    pub action: String,
    /// What it looked at, in order.
    pub stages: Vec<Stage>,
    /// The packet's headers, the outermost first.
    pub packet: Vec<String>,
    /// The headers of what came out.
    pub result: Vec<String>,
    /// Where the explanation and the program disagree; absent: nowhere.
    pub disagreement: Option<String>,
}

/// One step of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// `device`, `service`, `slot`, `flow memory`, `backend`, `way` or `verdict`.
    pub name: String,
    /// What was found there.
    pub text: String,
}

/// `GET /v1/flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// How many flows are meant.
    pub all: usize,
    /// The first of them.
    pub flows: Vec<Flow>,
}

/// A row of `GET /v1/flows`: a flow that this node translates, or that began while its slot was in transition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// `namespace/name` of its service; absent: no service has that address now.
    pub service: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client's address and port.
    pub client: String,
    /// The service's address and port.
    pub address: String,
    /// The backend's address and port; absent: its row has gone.
    pub backend: Option<String>,
    /// Whether that backend is alive, so that the flow stays with it.
    pub alive: bool,
    /// How far a translated flow has come: `new`, `established`, `closing`, `closed`, `reset`. Absent: it is not
    /// translated, but began in a transition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translation: Option<String>,
    /// Seconds since its last packet.
    pub idle_s: u64,
}

/// An answer that says what went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What, where, what to do.
    pub error: String,
}
