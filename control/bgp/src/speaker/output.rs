//! What a speaker asks of its embedder and tells it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::config::{Announcement, Password};
use crate::snapshot::PathSnapshot;
use crate::wire::{Attributes, Fault, Notification};

/// A TCP connection, dialled or accepted; never used twice by a speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnectionId(pub u64);

/// A connection that was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Its name from now on.
    pub connection: ConnectionId,
    /// How far away the other end may be.
    pub distance: Distance,
}

/// How far the packets of a connection go, and from how far they are taken, as TTL or hop limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distance {
    /// That of our packets; `None` leaves the host's default.
    pub ttl: Option<u8>,
    /// The least of the peer's packets that is taken (RFC 5082 §3); `None` takes any.
    pub least_ttl: Option<u8>,
}

/// Bytes to write to a connection, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub connection: ConnectionId,
    /// One or more whole messages.
    pub bytes: Bytes,
}

/// A connection to open or close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionRequest {
    /// Dial; answer with `handle_connected` or `handle_connect_failed`.
    Connect {
        /// The connection's name from now on.
        connection: ConnectionId,
        /// The peer's configured name.
        peer: String,
        /// Where to.
        address: IpAddr,
        /// The link it is on, with a link-local address.
        interface: Option<u32>,
        /// TCP port.
        port: u16,
        /// The source address, when configured.
        local_address: Option<IpAddr>,
        /// The source port, when configured.
        local_port: Option<u16>,
        /// How far away the other end may be.
        distance: Distance,
        /// TCP MD5 password (RFC 2385), when configured. Not written down anywhere.
        #[serde(skip)]
        password: Option<Password>,
    },
    /// Write what was transmitted, then close, or give up dialling. No answer is expected.
    Close {
        /// Which.
        connection: ConnectionId,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A session is established.
    PeerUp {
        /// The peer's name.
        peer: String,
        /// Its AS.
        remote_as: u32,
        /// Its identifier.
        router_id: Ipv4Addr,
    },
    /// An established session ended.
    PeerDown {
        /// The peer's name.
        peer: String,
        /// Why.
        reason: DownReason,
    },
    /// An attempt failed before the session was established.
    AttemptFailed {
        /// The peer's name.
        peer: String,
        /// Why.
        reason: DownReason,
    },
    /// An UPDATE had faults that RFC 7606 lets the session survive.
    UpdateFaults {
        /// The peer's name.
        peer: String,
        /// What was wrong.
        faults: Vec<Fault>,
    },
    /// A peer has told all its routes of a family after the session was established.
    EndOfRib {
        /// The peer's name.
        peer: String,
        /// The family.
        family: crate::wire::Family,
    },
    /// A peer asked for our routes of a family again (RFC 2918).
    RefreshAsked {
        /// The peer's name.
        peer: String,
        /// The family.
        family: crate::wire::Family,
    },
    /// A peer told its routes of a family again; what it did not is gone (RFC 7313 §4).
    RefreshOver {
        /// The peer's name.
        peer: String,
        /// The family.
        family: crate::wire::Family,
        /// How many prefixes that were.
        dropped: usize,
    },
    /// A peer that restarts gracefully is away; its routes stay (RFC 4724 §4.2).
    RoutesKept {
        /// The peer's name.
        peer: String,
        /// The family.
        family: crate::wire::Family,
        /// How long they stay.
        restart_time: Duration,
    },
    /// A peer's restart time is over and it is not back: its routes stay, for who has no better ones (RFC 9494 §4.2).
    RoutesOutlive {
        /// The peer's name.
        peer: String,
        /// The family.
        family: crate::wire::Family,
        /// How long they stay at most.
        stale_time: Duration,
        /// How many prefixes are gone, as whoever told them wants it.
        dropped: usize,
    },
    /// A peer's restart is over, well or not: what it did not tell again is gone.
    RestartOver {
        /// The peer's name.
        peer: String,
        /// The family.
        family: crate::wire::Family,
        /// How many prefixes that were.
        dropped: usize,
    },
    /// Somebody dialled from a range that has as many peers as it may.
    RangeFull {
        /// The range's name.
        peer: String,
        /// Who.
        address: IpAddr,
    },
    /// Announcements could not be told: their attributes do not fit a message.
    AnnouncementsRefused {
        /// The peer's name.
        peer: String,
        /// The prefixes.
        prefixes: Vec<IpNetwork>,
    },
}

/// Why a session or an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DownReason {
    /// We sent a NOTIFICATION.
    Sent(Notification),
    /// The peer sent one.
    Received(Notification),
    /// The connection closed or failed.
    Closed(String),
    /// The peer, which restarts gracefully, opened another connection (RFC 4724 §5).
    Replaced,
    /// The peer took nothing from us for the send hold time (RFC 9687).
    SendHoldExpired,
    /// We stopped an attempt that was no longer needed.
    Stopped,
    /// The configuration wants no session, for this reason.
    ShutDown(String),
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent(notification) => write!(f, "sent {notification}"),
            Self::Received(notification) => write!(f, "received {notification}"),
            Self::Closed(why) => write!(f, "connection: {why}"),
            Self::Replaced => f.write_str("the peer opened another connection"),
            Self::SendHoldExpired => f.write_str("send hold timer expired"),
            Self::Stopped => f.write_str("stopped"),
            Self::ShutDown(text) => write!(f, "shut down by configuration ({text:?})"),
        }
    }
}

/// An announcement as a path of the Loc-RIB.
pub(super) fn originated(prefix: &IpNetwork, announcement: &Announcement) -> PathSnapshot {
    let unspecified = match prefix {
        IpNetwork::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpNetwork::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut attributes = Attributes::local(unspecified);
    attributes.med = announcement.med;
    attributes.local_pref = announcement.local_pref;
    attributes.communities = announcement.communities.iter().copied().collect();
    attributes.large_communities = announcement.large_communities.iter().copied().collect();
    PathSnapshot {
        peer: None,
        attributes,
        best: true,
        used: true,
        reason: None,
        rejection: None,
        stale: false,
        identifier: 0,
    }
}
