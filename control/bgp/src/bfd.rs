//! Bidirectional Forwarding Detection (RFC 5880): whether packets still get to a neighbour, told within a
//! few packets that did not come. No sockets, no clock.
//!
//! ```text
//!   handle_packet / handle_timeout / set_sessions
//!        |
//!        v
//!      [Bfd] finds the session ----> session: timers, poll sequence ----> state: the table of §6.2
//!        |
//!        v
//!   poll_transmit / poll_event / poll_timeout
//! ```
//!
//! Single-hop (RFC 5881) and multihop (RFC 5883) sessions, asynchronous mode. We never ask for echoes or
//! for demand mode, and do what a peer that asks for demand mode wants. An embedder takes in all packets
//! that have arrived before it says that time has passed: a packet that waits is no packet that did not
//! come.
//!
//! Not for: what a session that goes down means for routes (`peer`), authentication (§6.7).

mod packet;
mod session;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::jitter::Jitter;
use session::Session;

pub use packet::{Diagnostic, Discard, Packet};
pub use state::State;

/// How many hops away the other end may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hops {
    /// On the link (RFC 5881): packets that crossed a router are not believed.
    Single,
    /// Behind routers (RFC 5883).
    Multi,
}

impl Hops {
    /// The UDP port that packets are sent to: RFC 5881 §4, RFC 5883 §5.
    pub const fn port(self) -> u16 {
        match self {
            Self::Single => 3784,
            Self::Multi => 4784,
        }
    }
}

/// Which session: there is one between two addresses (RFC 5881 §2, RFC 5883 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The other end.
    pub peer: IpAddr,
    /// Our end; `None` lets the host choose.
    pub local: Option<IpAddr>,
    /// How far away it may be.
    pub hops: Hops,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.peer)?;
        if let Some(local) = self.local {
            write!(f, " from {local}")?;
        }
        match self.hops {
            Hops::Single => Ok(()),
            Hops::Multi => f.write_str(" multihop"),
        }
    }
}

/// How fast a session detects; the peer's wishes are heard as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timing {
    /// The least time between two packets that we send (bfd.DesiredMinTxInterval).
    pub min_transmit: Duration,
    /// The least time between two packets that we can take (bfd.RequiredMinRxInterval).
    pub min_receive: Duration,
    /// How many packets that did not come make a failure (bfd.DetectMult); not 0.
    pub multiplier: u8,
}

impl Default for Timing {
    /// 300 ms and 3, as routers have it.
    fn default() -> Self {
        Self {
            min_transmit: Duration::from_millis(300),
            min_receive: Duration::from_millis(300),
            multiplier: 3,
        }
    }
}

/// What a packet came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Its source address.
    pub from: IpAddr,
    /// Its destination address.
    pub to: IpAddr,
    /// The port that it came to.
    pub hops: Hops,
    /// Its TTL or hop limit.
    pub ttl: u8,
}

/// A packet to send, with TTL 255, from the session's own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Whose.
    pub key: Key,
    /// The payload.
    pub bytes: [u8; packet::LENGTH],
}

/// A session that changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which.
    pub key: Key,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a session stands, for those who rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The state of our end.
    pub state: State,
    /// Why it is that.
    pub diagnostic: Diagnostic,
    /// The other end says that it takes no part (RFC 5882 §3.2): not heard from is not gone.
    pub peer_admin_down: bool,
    /// The other end's packets do not depend on its control plane (the C bit): when they stop, forwarding
    /// has stopped, also while its control plane restarts (RFC 5882 §4.3).
    pub independent: bool,
}

impl Standing {
    /// Of a session that has heard nothing yet.
    pub const UNHEARD: Self = Self {
        state: State::Down,
        diagnostic: Diagnostic::NONE,
        peer_admin_down: false,
        independent: false,
    };
}

/// A session as it stands, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Which.
    pub key: Key,
    /// Where it stands.
    pub standing: Standing,
    /// How long it has stood there.
    pub in_state: Duration,
    /// The state of the other end, as last heard.
    pub remote_state: State,
    /// The reason that the other end gave.
    pub remote_diagnostic: Diagnostic,
    /// Time between our packets, before jitter.
    pub transmit_interval: Duration,
    /// How long nothing may be heard.
    pub detection_time: Duration,
    /// The other end's multiplier; 0 until it was heard.
    pub remote_multiplier: u8,
    /// Our name for the session.
    pub discriminator: u32,
    /// The other end's; 0 until it was heard.
    pub remote_discriminator: u32,
    /// How many times it came up.
    pub ups: u64,
    /// How many times it failed.
    pub failures: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets taken.
    pub received: u64,
}

/// All sessions of a node.
#[derive(Debug)]
pub struct Bfd {
    sessions: BTreeMap<Key, Session>,
    jitter: Jitter,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    discarded: BTreeMap<Discard, u64>,
}

impl Bfd {
    /// No sessions yet. The seed feeds discriminators and jitter: it should differ between two lives of a
    /// process, so that packets for the one are not taken by the other.
    pub fn new(seed: u64) -> Self {
        Self {
            sessions: BTreeMap::new(),
            jitter: Jitter::from_seed(seed),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            discarded: BTreeMap::new(),
        }
    }

    /// Makes the sessions exactly these, by difference. A session that stays keeps its state, and tells
    /// the peer of other timing by a poll sequence (§6.8.3). One that goes says so to the peer for a
    /// detection time (§6.8.16), so that the peer does not take it for a failure.
    pub fn set_sessions(&mut self, wanted: &BTreeMap<Key, Timing>, now: Instant) {
        for (key, session) in &mut self.sessions {
            if !wanted.contains_key(key) {
                session.leave(now);
            }
        }
        for (key, timing) in wanted {
            if let Some(session) = self.sessions.get_mut(key).filter(|s| !s.is_leaving()) {
                session.retime(*timing, now);
                continue;
            }
            let discriminator = self.fresh_discriminator();
            let session = Session::new(*timing, discriminator, now);
            self.sessions.insert(*key, session);
        }
        self.collect(now);
    }

    /// Says on all sessions that we leave on purpose, once, and forgets them: for the end of a process.
    pub fn leave_all(&mut self, now: Instant) {
        self.set_sessions(&BTreeMap::new(), now);
        self.sessions.clear();
    }

    /// A packet came in (§6.8.6).
    pub fn handle_packet(&mut self, arrived: Arrived, bytes: &[u8], now: Instant) {
        if let Err(why) = self.receive(arrived, bytes, now) {
            *self.discarded.entry(why).or_default() += 1;
        }
        self.collect(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for session in self.sessions.values_mut() {
            session.handle_timeout(now);
        }
        self.collect(now);
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// A session that changed.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.values().filter_map(Session::next_due).min()
    }

    /// Where a session stands.
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        self.sessions.get(key).map(Session::standing)
    }

    /// All sessions that are wanted.
    pub fn sessions(&self, now: Instant) -> Vec<Snapshot> {
        self.sessions
            .iter()
            .filter(|(_, session)| !session.is_leaving())
            .map(|(key, session)| session.snapshot(*key, now))
            .collect()
    }

    /// Packets that were not taken, by the reason.
    pub const fn discarded(&self) -> &BTreeMap<Discard, u64> {
        &self.discarded
    }

    fn receive(&mut self, arrived: Arrived, bytes: &[u8], now: Instant) -> Result<(), Discard> {
        // RFC 5881 §5: a packet from the link has not been forwarded.
        if arrived.hops == Hops::Single && arrived.ttl != 255 {
            return Err(Discard::Forwarded);
        }
        let packet = Packet::decode(bytes)?;
        let belongs = |key: &Key| {
            key.peer == arrived.from
                && key.hops == arrived.hops
                && key.local.is_none_or(|local| local == arrived.to)
        };
        let session = if packet.your_discriminator == 0 {
            let mut found = self.sessions.iter_mut().filter(|(key, _)| belongs(key));
            found.next().ok_or(Discard::NoSession)?.1
        } else {
            let mut sessions = self.sessions.iter_mut();
            let named = sessions.find(|(_, s)| s.discriminator() == packet.your_discriminator);
            let (key, session) = named.ok_or(Discard::UnknownDiscriminator)?;
            if !belongs(key) {
                return Err(Discard::OtherSource);
            }
            session
        };
        session.receive(&packet, now)
    }

    /// Takes what sessions want sent and said; forgets those that have left.
    fn collect(&mut self, now: Instant) {
        for (key, session) in &mut self.sessions {
            while let Some(packet) = session.poll_packet(now, &mut self.jitter) {
                self.transmits.push_back(Transmit {
                    key: *key,
                    bytes: packet.encode(),
                });
            }
            if let Some(standing) = session.take_change() {
                self.events.push_back(Event {
                    key: *key,
                    standing,
                });
            }
        }
        self.sessions.retain(|_, session| !session.has_left(now));
    }

    fn fresh_discriminator(&mut self) -> u32 {
        loop {
            let drawn = self.jitter.number();
            let taken = |s: &Session| s.discriminator() == drawn;
            if drawn != 0 && !self.sessions.values().any(taken) {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests;
