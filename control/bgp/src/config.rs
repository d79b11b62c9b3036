//! What an embedder asks of a speaker: itself, its peers, its announcements.
//!
//! Not for manifests: these are meant values, already checked and defaulted by the embedder.

mod password;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use imbl::OrdMap;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::bfd;
use crate::wire::{Family, LargeCommunity, Role};

pub use password::{NoPassword, Password};

/// One speaker: a virtual router of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeakerConfig {
    /// The AS this speaker belongs to, 1..=4294967295.
    pub local_as: u32,
    /// The BGP identifier (RFC 6286): not zero, unique within the AS.
    pub router_id: Ipv4Addr,
    /// The name sent in the FQDN capability; `None` sends no such capability.
    pub hostname: Option<String>,
    /// How many equally good paths of a prefix are used together; 1 uses the best one only.
    pub multipath_limit: usize,
}

/// One neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in the configuration"
)]
pub struct PeerConfig {
    /// What people call it; unique within the speaker.
    pub name: String,
    /// Another name that people know it by; several may have the same.
    pub alias: Option<String>,
    /// Where it listens and whence it dials; unique within the speaker, with its link.
    pub address: IpAddr,
    /// The link that it is on, by the host's index: needed with a link-local address, which means nothing
    /// without. Its next hops are on that link.
    pub interface: Option<u32>,
    /// IPv4 routes may have IPv6 next hops, both ways (RFC 8950).
    pub extended_next_hop: bool,
    /// The TCP port that we dial.
    pub port: u16,
    /// Its AS; 0 accepts any and learns it from the OPEN.
    pub remote_as: u32,
    /// The hold time that we propose; whole seconds, 0 or at least 3 s (RFC 4271 §4.2).
    pub hold_time: Duration,
    /// How often we say that we live; at most a third of the negotiated hold time is used.
    pub keepalive_time: Duration,
    /// How long to wait before dialling again; used as `[t, 2t)`.
    pub connect_retry_time: Duration,
    /// Waits to be dialled and never dials.
    pub passive: bool,
    /// TTL of packets to an external peer; 1 is a peer on the link. Internal peers use 64.
    pub ebgp_multihop_ttl: u8,
    /// The peer is at most this many hops away, 1 to 254: packets that come from farther are not taken, and
    /// ours have TTL 255 (GTSM, RFC 5082). Goes before `ebgp_multihop_ttl`.
    pub ttl_security: Option<u8>,
    /// No session, for this reason, which the peer is told (RFC 9003).
    pub shutdown: Option<String>,
    /// Our paths are about to go: the peer should prefer others (RFC 8326).
    pub graceful_shutdown: bool,
    /// It is told the best paths of what other peers told, too: the node is a transit router for it.
    pub transit: bool,
    /// It may tell several paths per prefix, and each is kept (RFC 7911).
    #[serde(default)]
    pub add_path: bool,
    /// What we are to it, when it is of another AS (RFC 9234).
    pub role: Option<Role>,
    /// No session with a peer that does not say what it is to us.
    #[serde(default)]
    pub role_strict: bool,
    /// Address families offered in the OPEN.
    pub families: BTreeSet<Family>,
    /// Which of the routes it sends are used.
    pub import: ImportPolicy,
    /// What our announcements carry towards it beside what they carry towards all; all rules that name
    /// a prefix count.
    pub export: Vec<ExportRule>,
    /// How many prefixes per family it may send before the session is closed with Cease/1.
    pub max_prefixes: Option<usize>,
    /// Watched by BFD (RFC 5882); `None`: only the hold time tells that it is gone.
    pub bfd: Option<BfdConfig>,
    /// Offered graceful restart (RFC 4724); `None` offers none.
    pub graceful_restart: Option<GracefulRestart>,
    /// How long either side keeps the other's routes after the restart time, for who has no better ones (RFC 9494);
    /// whole seconds. Only with `graceful_restart`.
    pub long_lived_stale_time: Option<Duration>,
    /// The source address of our dial; `None` lets the host choose.
    pub local_address: Option<IpAddr>,
    /// The source port of our dial; `None` lets the host choose.
    pub local_port: Option<u16>,
    /// Next hop of IPv4 announcements; `None` uses the connection's own IPv4 address.
    pub next_hop_v4: Option<Ipv4Addr>,
    /// Next hop of IPv6 announcements; `None` uses the connection's own IPv6 address.
    pub next_hop_v6: Option<Ipv6Addr>,
    /// TCP MD5 password (RFC 2385); `None`: segments are not signed. Not written down anywhere.
    #[serde(skip)]
    pub password: Option<Password>,
}

/// Neighbours that are not named one by one: who dials from a prefix, and is of one of some ASes, is a peer as long
/// as its session lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRange {
    /// Where they dial from, host bits zero; of two ranges the longer prefix counts.
    pub prefix: IpNetwork,
    /// Their ASes; any when empty.
    pub asns: BTreeSet<u32>,
    /// How many of them there may be at a time.
    pub limit: usize,
    /// What each of them is. Its name is the range's, by which announcements may name all of them; each is called by its
    /// address. They are never dialled, and none has a password or is watched by BFD.
    pub template: PeerConfig,
}

impl PeerRange {
    /// The peer at an address of the range.
    pub(crate) fn peer(&self, address: IpAddr) -> PeerConfig {
        PeerConfig {
            name: address.to_string(),
            address,
            passive: true,
            password: None,
            bfd: None,
            ..self.template.clone()
        }
    }
}

impl PeerConfig {
    /// A peer with the defaults of Cilium's objects: 90 s hold, 30 s keepalive, 120 s connect
    /// retry, both families, nothing imported.
    pub fn new(name: impl Into<String>, address: IpAddr, remote_as: u32) -> Self {
        Self {
            name: name.into(),
            alias: None,
            address,
            interface: None,
            extended_next_hop: false,
            port: 179,
            remote_as,
            hold_time: Duration::from_secs(90),
            keepalive_time: Duration::from_secs(30),
            connect_retry_time: Duration::from_mins(2),
            passive: false,
            ebgp_multihop_ttl: 1,
            ttl_security: None,
            shutdown: None,
            graceful_shutdown: false,
            transit: false,
            add_path: false,
            role: None,
            role_strict: false,
            families: BTreeSet::from(Family::ALL),
            import: ImportPolicy::Nothing,
            export: Vec::new(),
            max_prefixes: None,
            bfd: None,
            graceful_restart: None,
            long_lived_stale_time: None,
            local_address: None,
            local_port: None,
            next_hop_v4: None,
            next_hop_v6: None,
            password: None,
        }
    }

    /// The BFD session that watches the peer, if one does.
    pub fn bfd_session(&self) -> Option<(bfd::Key, bfd::Timing)> {
        let bfd = self.bfd?;
        let key = bfd::Key {
            peer: self.address,
            local: self.local_address,
            hops: bfd.hops,
        };
        Some((key, bfd.timing))
    }

    /// Whether `other` needs another OPEN or another connection than `self`.
    pub(crate) fn needs_reset(&self, other: &Self) -> bool {
        let capability = |config: &Self| {
            config
                .graceful_restart
                .map(|restart| (restart.restart_time, restart.forwarding_preserved))
        };
        self.address != other.address
            || self.interface != other.interface
            || self.extended_next_hop != other.extended_next_hop
            || self.port != other.port
            || self.remote_as != other.remote_as
            || self.hold_time != other.hold_time
            || self.ebgp_multihop_ttl != other.ebgp_multihop_ttl
            || self.ttl_security != other.ttl_security
            || self.families != other.families
            || self.add_path != other.add_path
            || self.long_lived_stale_time != other.long_lived_stale_time
            || (self.role, self.role_strict) != (other.role, other.role_strict)
            || self.local_address != other.local_address
            || self.local_port != other.local_port
            || self.password != other.password
            || capability(self) != capability(other)
    }
}

/// How a peer is watched by BFD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BfdConfig {
    /// How fast a failure is detected.
    pub timing: bfd::Timing,
    /// Whether the peer is on the link.
    pub hops: bfd::Hops,
    /// No BGP session unless BFD is up (draft-ietf-idr-bgp-bfd-strict-mode, without its capability). By
    /// default a session comes up without waiting, and ends when BFD, having been up, goes down.
    pub strict: bool,
}

/// Which routes of a peer are used. Martians, our own prefixes and loops are refused by every
/// policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportPolicy {
    /// No route (RFC 8212: no policy means no route).
    #[default]
    Nothing,
    /// Every route, the default route included.
    All,
    /// The routes that at least one rule names.
    Prefixes(Vec<PrefixRule>),
}

/// A line of a prefix list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixRule {
    /// The prefix that covers the route.
    pub prefix: IpNetwork,
    /// The shortest length that matches; alone it means "up to a host route".
    pub ge: Option<u8>,
    /// The longest length that matches; alone it means "from the prefix's own length".
    pub le: Option<u8>,
}

/// Attributes that some of our announcements carry towards a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExportRule {
    /// The announced prefixes that it is for.
    pub prefixes: BTreeSet<IpNetwork>,
    /// RFC 1997 communities, added to the announcement's.
    pub communities: BTreeSet<u32>,
    /// RFC 8092 large communities, added to the announcement's.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// LOCAL_PREF towards an internal peer (RFC 4271 §5.1.5): the highest that is said counts.
    pub local_pref: Option<u32>,
}

/// What the graceful restart capability says about us (RFC 4724 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GracefulRestart {
    /// How long the peer keeps our routes while we are away; whole seconds, at most 4095.
    pub restart_time: Duration,
    /// The R bit of the first session: this speaker is new, its predecessor's routes may stand.
    pub restarting: bool,
    /// The F bit of every family: forwarding went on while the speaker was away.
    pub forwarding_preserved: bool,
}

/// One prefix that this speaker originates.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Announcement {
    /// RFC 1997 communities.
    pub communities: BTreeSet<u32>,
    /// RFC 8092 large communities.
    pub large_communities: BTreeSet<LargeCommunity>,
    /// LOCAL_PREF towards internal peers; 100 when absent, never sent to external ones.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC; absent when `None`.
    pub med: Option<u32>,
    /// How many times more our AS stands in the path towards external peers.
    pub prepend: u8,
    /// The peers that hear it; `None` means all.
    pub peers: Option<BTreeSet<String>>,
}

/// Everything that a speaker originates.
///
/// A copy costs nothing and shares what has not changed, so that a change of a few costs what a few cost.
pub type Announcements = OrdMap<IpNetwork, Announcement>;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_recording_from_before_a_field_was_there_is_read_as_without_it() {
        let peer = PeerConfig::new("tor", Ipv4Addr::new(10, 0, 0, 1).into(), 65000);
        let mut recorded = serde_json::to_value(&peer).unwrap();
        let fields = recorded.as_object_mut().unwrap();
        for new in [
            "alias",
            "add_path",
            "role",
            "role_strict",
            "long_lived_stale_time",
        ] {
            assert!(fields.remove(new).is_some(), "{new}");
        }

        let read: PeerConfig = serde_json::from_value(recorded).unwrap();

        assert_eq!(read, peer);
    }
}
