//! Questions about the BGP speakers, and their answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A row of `GET /v1/bgp/peers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Our AS number.
    pub local_asn: u32,
    /// The peer's AS number; 0 until it has said it.
    pub peer_asn: u32,
    /// The peer's address.
    pub address: String,
    /// The peer's port, when we dial.
    pub port: u16,
    /// `Idle`, `Connect`, `Active`, `OpenSent`, `OpenConfirm` or `Established`.
    pub state: String,
    /// Seconds in that state.
    pub since_s: u64,
    /// The name it sent (FQDN capability), if any.
    pub hostname: Option<String>,
    /// `up`, `init`, `down` or `admin-down`, when it is watched by BFD.
    pub bfd: Option<String>,
    /// Per address family: prefixes received, accepted, advertised.
    pub families: Vec<PeerFamily>,
    /// Negotiated hold time in seconds; 0 until established, or for none.
    pub hold_s: u64,
    /// Negotiated keepalive time in seconds.
    pub keepalive_s: u64,
    /// Messages received and sent.
    pub messages_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Why the last session ended, or why none comes up.
    pub last_error: Option<String>,
    /// What to look at, when something is off.
    pub hint: Option<String>,
}

/// The counts of a peer in one address family.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerFamily {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Prefixes it sent.
    pub received: usize,
    /// Of these, passed by the import policy.
    pub accepted: usize,
    /// Prefixes we sent.
    pub advertised: usize,
}

/// `GET /v1/bgp/bfd`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bfd {
    /// Its sessions.
    pub sessions: Vec<BfdSession>,
    /// Packets that were not taken, by the reason.
    pub discarded: BTreeMap<String, u64>,
}

/// A BFD session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BfdSession {
    /// The other end's address.
    pub peer: String,
    /// Our end's, when it is not left to the host.
    pub local: Option<String>,
    /// The other end may be behind routers.
    pub multihop: bool,
    /// `up`, `init`, `down` or `admin-down`.
    pub state: String,
    /// Why it is that.
    pub reason: String,
    /// Seconds in that state.
    pub since_s: u64,
    /// Time between our packets, before jitter.
    pub transmit_interval_ms: u64,
    /// How long nothing may be heard; 0 until something was.
    pub detection_time_ms: u64,
    /// The other end's state.
    pub remote_state: String,
    /// Why it is that.
    pub remote_reason: String,
    /// Our name for the session.
    pub discriminator: u32,
    /// The other end's; 0: not known.
    pub remote_discriminator: u32,
    /// How many times it came up.
    pub ups: u64,
    /// How many times it failed.
    pub failures: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets taken.
    pub packets_received: u64,
}

/// A row of `GET /v1/bgp/routes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpRoute {
    /// Our AS number.
    pub local_asn: u32,
    /// The prefix.
    pub prefix: String,
    /// The next hop.
    pub next_hop: String,
    /// The peer it came from or goes to; `local` for our own.
    pub peer: String,
    /// The AS path as text.
    pub as_path: String,
    /// `igp`, `egp` or `incomplete`.
    pub origin: String,
    /// LOCAL_PREF, when it has one.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC, when it has one.
    pub med: Option<u32>,
    /// Communities as text: standard, large, extended.
    pub communities: Vec<String>,
    /// Attributes that are passed on and not acted upon, as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// Which of its peer's paths to the prefix it is (RFC 7911), where it tells several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_identifier: Option<u32>,
    /// Whether it is the best path.
    pub best: bool,
    /// Whether it is used beside the best (multipath).
    pub multipath: bool,
    /// Why it is or is not the best, or why it was rejected.
    pub reason: String,
}

/// Which routes `GET /v1/bgp/routes` lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteSet {
    /// Everything received and originated, with the reason for each.
    #[default]
    Available,
    /// What is sent to each peer, or to one.
    Advertised,
    /// What one peer sent, refused paths included.
    Received,
}

/// A row of `GET /v1/bgp/neighbor`: everything about a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in the configuration"
)]
pub struct Neighbor {
    /// What `GET /v1/bgp/peers` says of it.
    #[serde(flatten)]
    pub peer: Peer,
    /// Its name in our configuration.
    pub name: String,
    /// What its object calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The range that let it in, when it is not named itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Our BGP identifier.
    pub local_router_id: String,
    /// Its BGP identifier.
    pub peer_router_id: Option<String>,
    /// Our end of the connection.
    pub local_address: Option<String>,
    /// `us` or `it`, while established.
    pub opened_by: Option<String>,
    /// It is waited for, never dialled.
    pub passive: bool,
    /// Why there shall be no session.
    pub shutdown: Option<String>,
    /// Seconds until the session is sought again, while it rests.
    pub next_attempt_s: Option<u64>,
    /// How many times the session was established.
    pub established_count: u64,
    /// How the last established session ended.
    pub last_reset: Option<Past>,
    /// The last NOTIFICATION that we sent or received.
    pub last_notification: Option<Past>,
    /// The hold time that we propose, in seconds.
    pub configured_hold_s: u64,
    /// The keepalive time that is configured, in seconds.
    pub configured_keepalive_s: u64,
    /// The hold time that it proposed, in seconds.
    pub proposed_hold_s: Option<u16>,
    /// The connect retry time in seconds: it is dialled again after once to twice of it.
    pub connect_retry_s: u64,
    /// What both sides said they can do.
    pub capabilities: Vec<Capability>,
    /// Codes of capabilities that it named and we do not know.
    pub other_capabilities: Vec<u8>,
    /// Messages by type.
    pub messages: Vec<MessageCount>,
    /// UPDATEs of which an attribute was discarded (RFC 7606).
    pub attributes_discarded: u64,
    /// UPDATEs treated as a withdrawal (RFC 7606).
    pub treated_as_withdraw: u64,
    /// Which of its prefixes are used, in words.
    pub import: String,
    /// Its paths that are not used, by the reason.
    pub rejected: BTreeMap<String, usize>,
    /// How many prefixes per family it may send.
    pub max_prefixes: Option<usize>,
    /// Our paths are about to go (RFC 8326).
    pub graceful_shutdown: bool,
    /// It is told what other peers told.
    pub transit: bool,
    /// What we are to it and it to us (RFC 9234), when that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<BgpRole>,
    /// Who keeps whose routes over a restart.
    pub graceful_restart: GracefulRestart,
    /// The peers that are told the same, this one included, while established.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<BgpGroup>,
    /// Its segments are signed with TCP MD5 (RFC 2385).
    pub md5: bool,
    /// TTL of our packets; absent: the host's default.
    pub ttl: Option<u8>,
    /// The least TTL of its packets that is taken (RFC 5082); absent: any.
    pub least_ttl: Option<u8>,
    /// What to look at, when something is off.
    pub hints: Vec<String>,
}

/// Something that happened to a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Past {
    /// How many seconds ago.
    pub ago_s: u64,
    /// What it was, with the text that came with it.
    pub what: String,
}

/// A capability of RFC 5492.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capability {
    /// Its name, with the address family where it has one.
    pub name: String,
    /// We offer it.
    pub sent: bool,
    /// It offered it in its latest OPEN.
    pub received: bool,
}

/// Messages of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageCount {
    /// `OPEN`, `UPDATE`, `NOTIFICATION`, `KEEPALIVE` or `ROUTE-REFRESH`.
    pub kind: String,
    /// Those that it sent.
    pub received: u64,
    /// Those that we sent.
    pub sent: u64,
}

/// What both ends of a session are to each other (RFC 9234).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpRole {
    /// What we are: `provider`, `rs-server`, `rs-client`, `customer` or `peer`.
    pub ours: Option<String>,
    /// There is no session unless it says what it is.
    pub strict: bool,
    /// What it said that it is.
    pub its: Vec<String>,
}

/// How a session stands with graceful restart (RFC 4724).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GracefulRestart {
    /// Seconds that we ask it to keep our routes; absent: it is not offered.
    pub offered_s: Option<u64>,
    /// Seconds that it asks us to keep its routes; absent: it does not offer it.
    pub peer_s: Option<u64>,
    /// Seconds that we ask it to keep our routes after that, marked stale (RFC 9494); absent: it is not offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_long_lived_s: Option<u64>,
    /// Seconds that it asks us to keep its routes after that, by family; empty: it does not offer it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_long_lived_s: BTreeMap<String, u64>,
    /// It said that it had just restarted.
    pub peer_restarted: bool,
    /// Families whose forwarding it preserves.
    pub peer_preserves: Vec<String>,
    /// Families whose routes are kept while it is away, and for how many seconds still.
    pub kept_s: BTreeMap<String, u64>,
    /// Families of which it has told all routes.
    pub end_of_rib_received: Vec<String>,
    /// We told it that it knows all of our routes.
    pub end_of_rib_sent: bool,
}

/// A row of `GET /v1/bgp/groups`: peers that are told the same, by one computation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpGroup {
    /// Our AS number.
    pub local_asn: u32,
    /// Its number, which no other group of the virtual router has had.
    pub number: u32,
    /// The peers are of our AS.
    pub internal: bool,
    /// The families that they are told.
    pub families: Vec<BgpGroupFamily>,
    /// The longest message that they take, in octets.
    pub longest_message: u16,
    /// What we are to them (RFC 9234).
    pub role: Option<String>,
    /// Our paths are about to go (RFC 8326).
    pub graceful_shutdown: bool,
    /// They are told what other peers told.
    pub transit: bool,
    /// Prefixes that changed and wait until one of the peers takes more.
    pub waiting: usize,
    /// The peers, by name.
    pub peers: Vec<String>,
    /// Those of them that were told less, and catch up on their own.
    pub behind: Vec<String>,
}

/// What an update group is told of a family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpGroupFamily {
    /// Such as `ipv4-unicast`.
    pub family: String,
    /// The next hop that we are; absent: we have no address of the family.
    pub next_hop: Option<String>,
    /// Prefixes of other peers that were passed on.
    pub passed_on: usize,
}

/// A row of `GET /v1/bgp/policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Our AS number.
    pub local_asn: u32,
    /// The peer's address.
    pub peer: String,
    /// `in` or `out`.
    pub direction: String,
    /// The rule.
    pub rule: String,
    /// What it does: `use`, `do not use`, `announce`, `mark`, `pass on`.
    pub does: String,
    /// How many prefixes it decided.
    pub prefixes: usize,
}

/// A row of `GET /v1/bgp/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpEvent {
    /// Its number: each of a speaker has a higher one than those before.
    pub number: u64,
    /// Our AS number.
    pub local_asn: u32,
    /// When, in UTC.
    pub at: String,
    /// The peer that it is about.
    pub peer: Option<String>,
    /// What happened.
    pub what: String,
    /// What about it, and why.
    pub why: String,
}
