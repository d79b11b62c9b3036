//! What a speaker shows of itself: plain values for people and for the FIB.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::best_path::Reason;
use crate::bfd;
use crate::config::{ExportRule, ImportPolicy, PeerConfig, PrefixRule};
use crate::fsm::State;
use crate::policy::Rejection;
use crate::session::Direction;
use crate::speaker::{Distance, DownReason};
use crate::wire::{Attributes, Family, Notification, Open, Role};

/// A peer as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSnapshot {
    /// Its configured name.
    pub name: String,
    /// Another name that people know it by.
    pub alias: Option<String>,
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
    /// How the last established session ended.
    pub last_reset: Option<Reset>,
    /// The last NOTIFICATION that either side sent, collisions of connections aside.
    pub last_notification: Option<Said>,
    /// Its latest OPEN, whether it was accepted or not.
    pub heard: Option<Open>,
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
    /// Prefixes that the peer told us; paths, where it tells several of a prefix.
    pub received: usize,
    /// Those that the import policy lets in.
    pub accepted: usize,
    /// Prefixes that we told the peer.
    pub advertised: usize,
    /// Prefixes that we would tell it, had we a next hop of the family.
    pub without_next_hop: usize,
}

/// The end of an established session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// How long ago.
    pub ago: Duration,
    /// Why.
    pub reason: DownReason,
}

/// A NOTIFICATION that went either way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// How long ago.
    pub ago: Duration,
    /// We sent it.
    pub by_us: bool,
    /// What was said.
    pub notification: Notification,
}

/// Everything about one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborSnapshot {
    /// How it stands.
    pub peer: PeerSnapshot,
    /// What was asked of it.
    pub config: PeerConfig,
    /// The range that let it in, when it is not named itself.
    pub range: Option<String>,
    /// The OPEN that we send.
    pub offered: Open,
    /// Who opened the connection of the established session.
    pub opened: Option<Direction>,
    /// How far its packets and ours may go.
    pub distance: Distance,
    /// Families whose routes are kept while it restarts, and for how long still (RFC 4724 §4.2).
    pub stale: BTreeMap<Family, Duration>,
    /// Families of which it has told all routes in this session.
    pub end_of_rib: Vec<Family>,
    /// It was told that it knows all of our routes.
    pub end_of_rib_sent: bool,
    /// The peers that are told the same, this one included, while there is a session.
    pub group: Option<GroupSnapshot>,
    /// When the session is sought again, while it rests.
    pub rests: Option<Duration>,
    /// Its paths that are not used, by the reason.
    pub rejected: BTreeMap<Rejection, usize>,
}

/// Peers that are told the same, by one computation and in the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSnapshot {
    /// Its number, which no other group of the speaker has had.
    pub number: u32,
    /// The names of its peers, in their order.
    pub peers: Vec<String>,
    /// Those of them that know less than the group was told, and catch up on their own.
    pub behind: Vec<String>,
    /// They are of our AS.
    pub internal: bool,
    /// The next hop that each family of theirs is told; `None`: we have none of the family.
    pub next_hops: BTreeMap<Family, Option<IpAddr>>,
    /// The longest message that they take, in octets.
    pub longest_message: u16,
    /// What we are to them (RFC 9234).
    pub role: Option<Role>,
    /// Their sessions are marked for graceful shutdown (RFC 8326).
    pub graceful_shutdown: bool,
    /// They are told what other peers told.
    pub transit: bool,
    /// Prefixes of other peers that the group was told.
    pub passed_on: BTreeMap<Family, usize>,
    /// Prefixes that changed and wait until one of the peers takes more.
    pub waiting: usize,
}

/// What decides which routes a peer's session carries, and how many each rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySnapshot {
    /// The peer's name.
    pub peer: String,
    /// Which of its routes are used.
    pub import: ImportPolicy,
    /// The rules of a prefix list with the paths that each lets in, as the first one that names them.
    pub rules: Vec<(PrefixRule, usize)>,
    /// Paths in use or ready for it.
    pub accepted: usize,
    /// Paths that are not used, by the reason.
    pub rejected: BTreeMap<Rejection, usize>,
    /// What announcements carry towards it, with the prefixes of each rule that it was told.
    pub export: Vec<(ExportRule, usize)>,
    /// Prefixes of ours that it was told.
    pub announced: usize,
    /// It is told what other peers told.
    pub transit: bool,
    /// Prefixes of others that it was told.
    pub passed_on: usize,
}

/// Messages by their type (RFC 4271 §4, RFC 2918).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// OPEN.
    pub opens: u64,
    /// UPDATE, End-of-RIB markers included.
    pub updates: u64,
    /// NOTIFICATION.
    pub notifications: u64,
    /// KEEPALIVE.
    pub keepalives: u64,
    /// ROUTE-REFRESH.
    pub route_refreshes: u64,
}

impl Messages {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.opens + self.updates + self.notifications + self.keepalives + self.route_refreshes
    }

    /// Counts each message of whole ones.
    pub(crate) fn count(&mut self, mut bytes: &[u8]) {
        // RFC 4271 §4.1: 16 octets of marker, two of length, one of type.
        while let [high, low, kind] = *bytes.get(16..19).unwrap_or_default() {
            match kind {
                1 => self.opens += 1,
                2 => self.updates += 1,
                3 => self.notifications += 1,
                4 => self.keepalives += 1,
                _ => self.route_refreshes += 1,
            }
            let length = usize::from(u16::from_be_bytes([high, low])).max(19);
            bytes = bytes.get(length..).unwrap_or_default();
        }
    }
}

/// Messages since the peer was configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Messages received.
    pub received: Messages,
    /// Messages sent.
    pub sent: Messages,
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
    /// Its peer is restarting, or tells its routes again, and has not confirmed it.
    pub stale: bool,
    /// Which of its peer's paths to the prefix it is (RFC 7911 §3); 0 where there is one only.
    pub identifier: u32,
}

/// A prefix that a peer was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertisedRoute {
    /// The prefix.
    pub prefix: IpNetwork,
    /// What we said about it.
    pub attributes: Attributes,
}
