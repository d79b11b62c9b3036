//! A speaker amid peers that remember what they were told, and what each should have been told.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::*;
use crate::group::Pace;
use crate::wire::{self, Attributes, Message, Open, Reading, Refresh};

/// The AS of each peer; that of the speaker is 65001.
pub(super) const ASES: [u32; 6] = [65002, 65003, 65004, 65002, 65001, 65001];
pub(super) const PREFIXES: [&str; 8] = [
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.2.0/24",
    "10.0.3.0/24",
    "10.0.4.0/24",
    "2001:db8::/64",
    "2001:db8:0:1::/64",
    "2001:db8:0:2::/64",
];
/// Of these, those that the speaker may originate.
pub(super) const OURS: [usize; 3] = [0, 3, 5];
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
pub(super) const OTHER_NEXT_HOP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const NO_EXPORT: u32 = 0xFFFF_FF01;
const NO_ADVERTISE: u32 = 0xFFFF_FF02;
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

/// A peer at the other end of a connection.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) connection: Option<ConnectionId>,
    inbox: Vec<u8>,
    /// What it was told and does not know to be gone.
    pub(super) told: BTreeMap<IpNetwork, Attributes>,
    /// Prefixes of a refresh that it was not told again yet.
    unconfirmed: BTreeMap<Family, BTreeSet<IpNetwork>>,
    ends: BTreeSet<Family>,
    /// It takes nothing, and so many octets wait for it.
    stalled: Option<usize>,
}

/// A speaker with its peers, which are numbered from 2.
pub(super) struct Star {
    pub(super) speaker: Speaker,
    pub(super) peers: BTreeMap<u8, Peer>,
    pub(super) configs: BTreeMap<u8, PeerConfig>,
    announcements: Announcements,
    pub(super) now: Instant,
    /// What went out, in order.
    pub(super) sent: Vec<(u8, Bytes)>,
}

fn number(peer: u8) -> usize {
    usize::from(peer) - 2
}

impl Star {
    /// Peers that are told what others told; little is told at a time, so that it takes many times.
    pub(super) fn new(peers: u8) -> Self {
        let now = network::origin();
        let mut star = Self {
            speaker: Speaker::new(config(1, 65001), 1),
            peers: BTreeMap::new(),
            configs: BTreeMap::new(),
            announcements: Announcements::new(),
            now,
            sent: Vec::new(),
        };
        star.speaker.shared.groups.pace = Pace {
            low_water: 100,
            high_water: 300,
            batch: 3,
        };
        star.speaker.set_announcements(Announcements::new(), now);
        for peer in 2..2 + peers {
            let mut config = toward(peer, ASES[number(peer)]);
            config.passive = true;
            config.transit = true;
            config.next_hop_v6 = Some(NEXT_HOP_V6);
            star.peers.insert(peer, Peer::default());
            star.configure(peer, config);
            star.connect(peer);
        }
        star
    }

    pub(super) fn configure(&mut self, peer: u8, config: PeerConfig) {
        self.configs.insert(peer, config.clone());
        self.speaker.set_peer(config, self.now);
        self.flow();
    }

    fn connect(&mut self, peer: u8) {
        let local = SocketAddr::new(address(1), 179);
        let remote = SocketAddr::new(address(peer), 50_000);
        let accepted = self.speaker.handle_incoming(local, remote, self.now);
        let connection = accepted.unwrap().connection;
        *self.peers.get_mut(&peer).unwrap() = Peer {
            connection: Some(connection),
            ..Peer::default()
        };
        let open = Open {
            families: BTreeSet::from(Family::ALL),
            four_octet_as: true,
            route_refresh: true,
            enhanced_route_refresh: true,
            ..Open::bare(ASES[number(peer)], 90, Ipv4Addr::new(10, 255, 0, peer))
        };
        self.hear(peer, &wire::encode_open(&open));
        self.hear(peer, &wire::encode_keepalive());
    }

    pub(super) fn reset(&mut self, peer: u8) {
        let connection = self.peers[&peer].connection.unwrap();
        self.speaker.handle_closed(connection, "reset", self.now);
        self.flow();
        self.connect(peer);
    }

    pub(super) fn hear(&mut self, peer: u8, bytes: &[u8]) {
        let connection = self.peers[&peer].connection.unwrap();
        self.speaker.handle_bytes(connection, bytes, self.now);
        self.flow();
    }

    pub(super) fn announce(&mut self, peer: u8, prefix: &str, kind: u8) {
        let prefix = net(prefix);
        let mut attributes = Attributes::local(match prefix {
            IpNetwork::V4(_) => address(peer),
            IpNetwork::V6(_) => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, peer.into()).into(),
        });
        let asn = ASES[number(peer)];
        if asn == 65001 {
            attributes.local_pref = Some(100);
            attributes.as_path = vec![64999; 1 + usize::from(kind % 3)];
        } else {
            attributes.as_path = vec![asn; 1 + usize::from(kind % 3)];
            attributes.med = Some(7);
        }
        attributes.communities = match kind / 3 {
            0 => vec![NO_EXPORT],
            1 => vec![NO_ADVERTISE],
            _ => vec![u32::from(kind)],
        };
        let family = Family::of(&prefix);
        let packed =
            wire::pack_announcements(&attributes, family, &[prefix], wire::Encoding::PLAIN);
        self.hear(peer, &packed.unwrap().concat());
    }

    pub(super) fn withdraw(&mut self, peer: u8, prefix: &str) {
        let prefix = net(prefix);
        let packed = wire::pack_withdrawals(Family::of(&prefix), &[prefix], wire::Encoding::PLAIN);
        self.hear(peer, &packed.concat());
    }

    pub(super) fn originate(&mut self, announcements: Announcements) {
        self.announcements = announcements.clone();
        self.speaker.set_announcements(announcements, self.now);
        self.flow();
    }

    pub(super) fn stall(&mut self, peer: u8) {
        self.peers.get_mut(&peer).unwrap().stalled.get_or_insert(0);
    }

    pub(super) fn go_on(&mut self, peer: u8) {
        let there = self.peers.get_mut(&peer).unwrap();
        if let Some(octets) = there.stalled.take() {
            let connection = there.connection.unwrap();
            self.speaker.handle_written(connection, octets, self.now);
            self.flow();
        }
    }

    /// Bytes go to the peers until none are left.
    fn flow(&mut self) {
        while let Some(transmit) = self.speaker.poll_transmit() {
            let mut peers = self.peers.iter_mut();
            let Some((number, peer)) =
                peers.find(|(_, peer)| peer.connection == Some(transmit.connection))
            else {
                continue;
            };
            self.sent.push((*number, transmit.bytes.clone()));
            peer.take(ASES[self::number(*number)] == 65001, &transmit.bytes);
            match &mut peer.stalled {
                Some(octets) => *octets += transmit.bytes.len(),
                None => {
                    let octets = transmit.bytes.len();
                    self.speaker
                        .handle_written(transmit.connection, octets, self.now);
                }
            }
        }
        while self.speaker.poll_connection().is_some() {}
    }

    /// What a peer should know, worked out for it alone from what is best.
    fn model(&self, peer: u8) -> BTreeMap<IpNetwork, Attributes> {
        let config = &self.configs[&peer];
        let internal = config.remote_as == 65001;
        let next_hop = |prefix: &IpNetwork| match prefix {
            IpNetwork::V4(_) => config.next_hop_v4.map_or(address(1), Into::into),
            IpNetwork::V6(_) => config.next_hop_v6.unwrap().into(),
        };
        let mut known = BTreeMap::new();
        for route in self.speaker.loc_rib() {
            let Some(best) = route.paths.iter().find(|path| path.best) else {
                continue;
            };
            let Some(source) = &best.peer else {
                continue;
            };
            let source_as = self.configs[&source[4..].parse().unwrap()].remote_as;
            let says = |community| best.attributes.communities.contains(&community);
            let is_held_back = (internal && source_as == 65001)
                || (!internal && says(NO_EXPORT))
                || says(NO_ADVERTISE);
            if !config.transit || *source == config.name || is_held_back {
                continue;
            }
            let mut told = best.attributes.clone();
            told.next_hop = next_hop(&route.prefix);
            if internal {
                told.local_pref = Some(told.local_pref.unwrap_or(100));
            } else {
                told.as_path.insert(0, 65001);
                told.local_pref = None;
                told.med = None;
            }
            known.insert(route.prefix, told);
        }
        for (prefix, announcement) in &self.announcements {
            let hears = |peers: &BTreeSet<String>| peers.contains(&config.name);
            if !announcement.peers.as_ref().is_none_or(hears) {
                continue;
            }
            let mut told = Attributes::local(next_hop(prefix));
            if internal {
                told.local_pref = Some(100);
            } else {
                told.as_path = vec![65001];
            }
            let rules = config.export.iter();
            let rules = rules.filter(|rule| rule.prefixes.contains(prefix));
            told.communities = rules.flat_map(|rule| rule.communities.clone()).collect();
            known.insert(*prefix, told);
        }
        if config.graceful_shutdown {
            for told in known.values_mut() {
                told.communities.push(GRACEFUL_SHUTDOWN);
                told.communities.sort_unstable();
                told.local_pref = told.local_pref.map(|_| 0);
            }
        }
        known
    }

    /// Whoever takes what it is told knows what it should.
    pub(super) fn check(&mut self) -> Result<(), TestCaseError> {
        let going = self.peers.iter().filter(|(_, p)| p.stalled.is_none());
        for (number, peer) in going {
            let model = self.model(*number);
            let mut told = peer.told.clone();
            for attributes in told.values_mut() {
                attributes.communities.sort_unstable();
            }
            prop_assert_eq!(&told, &model, "node{}", number);
            prop_assert_eq!(peer.ends.len(), 2, "node{} was told the end", number);
            prop_assert!(peer.unconfirmed.is_empty(), "node{} refreshes", number);
            let shown = self.speaker.adj_rib_out(&format!("node{number}"));
            let shown: BTreeMap<_, _> = shown
                .into_iter()
                .map(|mut route| {
                    route.attributes.communities.sort_unstable();
                    (route.prefix, route.attributes)
                })
                .collect();
            prop_assert_eq!(&shown, &model, "node{} as shown", number);
        }
        Ok(())
    }
}

impl Peer {
    fn take(&mut self, internal: bool, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        while let Some(length) = wire::message_length(&self.inbox, wire::MAX_MESSAGE_LEN).unwrap() {
            let message: Bytes = self.inbox.drain(..length).collect();
            match wire::decode(message).unwrap() {
                Message::Update(raw) => self.learn(internal, &raw),
                Message::RouteRefresh(Some(family), Some(Refresh::Begin)) => {
                    let known = self.told.keys().copied();
                    let known = known.filter(|prefix| Family::of(prefix) == family);
                    self.unconfirmed.insert(family, known.collect());
                }
                Message::RouteRefresh(Some(family), Some(Refresh::End)) => {
                    let left = self.unconfirmed.remove(&family);
                    for prefix in left.expect("a refresh ends that began") {
                        self.told.remove(&prefix);
                    }
                }
                Message::Open(_) | Message::Keepalive => {}
                other @ (Message::Notification(_) | Message::RouteRefresh(..)) => {
                    panic!("{other:?}")
                }
            }
        }
    }

    fn learn(&mut self, internal: bool, raw: &wire::RawUpdate) {
        let update = wire::decode_update(
            raw,
            Reading {
                four_octet_as: true,
                internal,
                families: &BTreeSet::from(Family::ALL),
                add_path: &BTreeSet::new(),
                on_link: false,
            },
        )
        .unwrap();
        assert!(update.faults.is_empty(), "{:?}", update.faults);
        for prefix in update.withdrawn {
            // One that was ours meanwhile may be withdrawn twice.
            let is_known = self.told.remove(&prefix).is_some();
            let may_be_ours = OURS.iter().any(|at| net(PREFIXES[*at]) == prefix);
            assert!(is_known || may_be_ours, "{prefix} was not told");
        }
        for reach in update.reach {
            for prefix in reach.prefixes {
                if let Some(left) = self.unconfirmed.get_mut(&Family::of(&prefix)) {
                    left.remove(&prefix);
                }
                self.told
                    .insert(prefix, Attributes::clone(&reach.attributes));
            }
        }
        self.ends.extend(update.end_of_rib);
    }
}
