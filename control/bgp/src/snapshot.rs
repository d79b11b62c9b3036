//! What a speaker shows of itself: plain values for people and for the FIB.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::best_path::Reason;
use crate::bfd;
use crate::fsm::State;
use crate::policy::Rejection;
use crate::wire::{Attributes, Family};

/// A peer as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// Its configured name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// The port that we dial.
    pub port: u16,
    /// Where the session stands.
    pub state: State,
    /// How long it has stood there.
    pub in_state: Duration,
    /// The configured AS, or the one learnt from the OPEN; 0 when not known.
    pub remote_as: u32,
    /// Its BGP identifier.
    pub router_id: Option<Ipv4Addr>,
    /// Its name for itself.
    pub hostname: Option<String>,
    /// Same AS as ours; `None` when not known.
    pub internal: Option<bool>,
    /// Negotiated hold time.
    pub hold_time: Option<Duration>,
    /// Negotiated keepalive time.
    pub keepalive_time: Option<Duration>,
    /// Its segments are signed with TCP MD5 (RFC 2385).
    pub signed: bool,
    /// What BFD says of it, when it is watched by BFD.
    pub bfd: Option<bfd::Standing>,
    /// No session is sought until BFD is up.
    pub waits_for_bfd: bool,
    /// Our end of the connection.
    pub local_address: Option<IpAddr>,
    /// Routes by family: those negotiated, or those configured when the session is down.
    pub families: BTreeMap<Family, FamilySnapshot>,
    /// Why the last session or attempt ended.
    pub last_error: Option<String>,
    /// How many times the session was established.
    pub established_count: u64,
    /// Messages.
    pub counters: Counters,
}

/// The routes of a family with a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilySnapshot {
    /// Whether both sides speak it in this session.
    pub negotiated: bool,
    /// Prefixes that the peer told us.
    pub received: usize,
    /// Those that the import policy lets in.
    pub accepted: usize,
    /// Prefixes that we told the peer.
    pub advertised: usize,
    /// Prefixes that we would tell it, had we a next hop of the family.
    pub without_next_hop: usize,
}

/// Messages since the peer was configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// All messages received.
    pub received: u64,
    /// All messages sent.
    pub sent: u64,
    /// UPDATEs received.
    pub updates_received: u64,
    /// UPDATEs sent.
    pub updates_sent: u64,
    /// UPDATEs of which an attribute was discarded (RFC 7606).
    pub attributes_discarded: u64,
    /// UPDATEs treated as a withdrawal (RFC 7606).
    pub treated_as_withdraw: u64,
}

/// A learnt path that packets should take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearntPath {
    /// Where packets go.
    pub next_hop: IpAddr,
    /// The same hop on its link, when the peer told it.
    pub link_local: Option<Ipv6Addr>,
    /// The link it is on, by the host's index, when the peer is known by its link.
    pub interface: Option<u32>,
    /// Who told us.
    pub peer: String,
}

/// A prefix with everything known about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteSnapshot {
    /// The prefix.
    pub prefix: IpNetwork,
    /// Its paths, best first.
    pub paths: Vec<PathSnapshot>,
}

/// A path with its place and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathSnapshot {
    /// Who told us; `None` for what we originate.
    pub peer: Option<String>,
    /// What was said.
    pub attributes: Attributes,
    /// It is the best one.
    pub best: bool,
    /// Packets use it: the best one and those used with it.
    pub used: bool,
    /// What decided between it and its strongest rival.
    pub reason: Option<Reason>,
    /// Why it may not be used.
    pub rejection: Option<Rejection>,
    /// Its peer is restarting and has not confirmed it.
    pub stale: bool,
}

/// A prefix that a peer was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertisedRoute {
    /// The prefix.
    pub prefix: IpNetwork,
    /// What we said about it.
    pub attributes: Attributes,
}
