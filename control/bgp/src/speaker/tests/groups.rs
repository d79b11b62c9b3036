//! Peers that are told the same by one computation know what each alone would have been told.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::config::ExportRule;
use crate::group::Pace;
use crate::wire::{self, Attributes, Message, Open, Reading, Refresh};

/// The AS of each peer; that of the speaker is 65001.
const ASES: [u32; 6] = [65002, 65003, 65004, 65002, 65001, 65001];
const PREFIXES: [&str; 8] = [
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
const OURS: [usize; 3] = [0, 3, 5];
const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const OTHER_NEXT_HOP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
const NO_EXPORT: u32 = 0xFFFF_FF01;
const NO_ADVERTISE: u32 = 0xFFFF_FF02;
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

/// A peer at the other end of a connection.
#[derive(Default)]
struct Peer {
    connection: Option<ConnectionId>,
    inbox: Vec<u8>,
    /// What it was told and does not know to be gone.
    told: BTreeMap<IpNetwork, Attributes>,
    /// Prefixes of a refresh that it was not told again yet.
    unconfirmed: BTreeMap<Family, BTreeSet<IpNetwork>>,
    ends: BTreeSet<Family>,
    /// It takes nothing, and so many octets wait for it.
    stalled: Option<usize>,
}

/// A speaker with its peers, which are numbered from 2.
struct Star {
    speaker: Speaker,
    peers: BTreeMap<u8, Peer>,
    configs: BTreeMap<u8, PeerConfig>,
    announcements: Announcements,
    now: Instant,
    /// What went out, in order.
    sent: Vec<(u8, Bytes)>,
}

fn number(peer: u8) -> usize {
    usize::from(peer) - 2
}

impl Star {
    /// Peers that are told what others told; little is told at a time, so that it takes many times.
    fn new(peers: u8) -> Self {
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

    fn configure(&mut self, peer: u8, config: PeerConfig) {
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

    fn reset(&mut self, peer: u8) {
        let connection = self.peers[&peer].connection.unwrap();
        self.speaker.handle_closed(connection, "reset", self.now);
        self.flow();
        self.connect(peer);
    }

    fn hear(&mut self, peer: u8, bytes: &[u8]) {
        let connection = self.peers[&peer].connection.unwrap();
        self.speaker.handle_bytes(connection, bytes, self.now);
        self.flow();
    }

    fn announce(&mut self, peer: u8, prefix: &str, kind: u8) {
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

    fn withdraw(&mut self, peer: u8, prefix: &str) {
        let prefix = net(prefix);
        let packed = wire::pack_withdrawals(Family::of(&prefix), &[prefix], wire::Encoding::PLAIN);
        self.hear(peer, &packed.concat());
    }

    fn originate(&mut self, announcements: Announcements) {
        self.announcements = announcements.clone();
        self.speaker.set_announcements(announcements, self.now);
        self.flow();
    }

    fn stall(&mut self, peer: u8) {
        self.peers.get_mut(&peer).unwrap().stalled.get_or_insert(0);
    }

    fn go_on(&mut self, peer: u8) {
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
    fn check(&mut self) -> Result<(), TestCaseError> {
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

/// Peers 2 to 5 are external and told the same, 6 and 7 internal and told the same.
#[test]
fn peers_that_are_told_the_same_are_told_it_in_the_same_bytes() {
    let mut star = Star::new(6);
    let groups = star.speaker.groups();
    let peers: Vec<_> = groups.iter().map(|group| group.peers.clone()).collect();
    assert_eq!(
        peers,
        [
            vec!["node2", "node3", "node4", "node5"],
            vec!["node6", "node7"]
        ]
    );
    star.sent.clear();
    star.announce(2, PREFIXES[1], 6);
    let to: BTreeMap<u8, &Bytes> = star.sent.iter().map(|(peer, sent)| (*peer, sent)).collect();
    assert_eq!(star.sent.len(), 5, "once each, and not who told it");
    assert_eq!(to.keys().copied().collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    for (one, other, is_shared) in [(3, 4, true), (3, 5, true), (6, 7, true), (3, 6, false)] {
        assert_eq!(to[&one].as_ptr() == to[&other].as_ptr(), is_shared);
    }
}

#[test]
fn what_we_originate_is_written_once_for_all_that_hear_the_same_of_it() {
    let mut star = Star::new(6);
    let mut marked = star.configs[&4].clone();
    marked.export.push(ExportRule {
        prefixes: [net(PREFIXES[0])].into(),
        communities: [42].into(),
        ..ExportRule::default()
    });
    star.configure(4, marked);
    star.sent.clear();
    let mut ours = announce(&[PREFIXES[0], PREFIXES[5]]);
    let for_two = ours.get_mut(&net(PREFIXES[5])).unwrap();
    for_two.peers = Some(["node2", "node3"].map(ToOwned::to_owned).into());
    star.originate(ours);
    star.check().unwrap();
    let to: BTreeMap<u8, &Bytes> = star.sent.iter().map(|(peer, sent)| (*peer, sent)).collect();
    for (one, other, is_shared) in [(2, 3, true), (6, 7, true), (2, 5, false), (4, 5, false)] {
        let is_same = to[&one].as_ptr() == to[&other].as_ptr();
        assert_eq!(is_same, is_shared, "node{one} and node{other}");
    }
    star.sent.clear();
    star.originate(Announcements::new());
    star.check().unwrap();
    let (first, second) = (&star.sent[0], &star.sent[1]);
    assert_eq!((first.0, second.0), (2, 3));
    assert_eq!(first.1.as_ptr(), second.1.as_ptr());
}

#[test]
fn who_told_the_better_path_itself_hears_that_the_other_one_is_gone_and_nothing_else() {
    let mut star = Star::new(4);
    star.announce(2, PREFIXES[1], 7);
    assert!(star.peers[&3].told.contains_key(&net(PREFIXES[1])));
    star.sent.clear();
    star.announce(3, PREFIXES[1], 6);
    let to: Vec<u8> = star.sent.iter().map(|(peer, _)| *peer).collect();
    assert_eq!(to, [2, 3, 4, 5]);
    assert!(star.peers[&3].told.is_empty());
    star.check().unwrap();
    star.sent.clear();
    star.withdraw(3, PREFIXES[1]);
    assert!(star.peers[&2].told.is_empty(), "its own is best again");
    star.check().unwrap();
}

#[test]
fn a_slow_peer_falls_behind_holds_up_nobody_and_catches_up() {
    let mut star = Star::new(4);
    star.stall(5);
    for (at, prefix) in PREFIXES.iter().enumerate() {
        star.announce(2, prefix, 6 + at as u8 % 3);
        star.check().unwrap();
    }
    star.withdraw(2, PREFIXES[6]);
    star.announce(2, PREFIXES[7], 6);
    star.check().unwrap();
    assert_eq!(star.speaker.groups()[0].behind, ["node5"]);
    let late = &star.peers[&5].told;
    assert!(!late.contains_key(&net(PREFIXES[7])));
    star.sent.clear();
    star.go_on(5);
    star.check().unwrap();
    assert!(star.sent.iter().all(|(peer, _)| *peer == 5));
    assert!(star.speaker.groups()[0].behind.is_empty());
    star.sent.clear();
    star.announce(2, PREFIXES[0], 8);
    let to_4 = star.sent.iter().find(|(peer, _)| *peer == 4).unwrap();
    let to_5 = star.sent.iter().find(|(peer, _)| *peer == 5).unwrap();
    assert_eq!(to_4.1.as_ptr(), to_5.1.as_ptr(), "it is in step again");
}

#[test]
fn while_nobody_takes_more_changes_are_said_once_and_to_all() {
    let mut star = Star::new(4);
    for peer in 3..=5 {
        star.stall(peer);
    }
    for prefix in &PREFIXES[..4] {
        star.announce(2, prefix, 6);
    }
    star.sent.clear();
    for kind in [7, 8, 6, 7] {
        for prefix in PREFIXES {
            star.announce(2, prefix, kind);
        }
    }
    let group = &star.speaker.groups()[0];
    assert_eq!(group.waiting, PREFIXES.len());
    assert!(group.behind.is_empty());
    assert!(star.sent.is_empty());
    for peer in 3..=5 {
        star.go_on(peer);
    }
    star.check().unwrap();
    let told = star.sent.iter().filter(|(peer, _)| *peer == 4);
    let told: usize = told.map(|(_, bytes)| bytes.len()).sum();
    assert!(told < 500, "each prefix once: {told} octets");
}

#[test]
fn who_joins_is_told_all_before_the_end_and_who_leaves_takes_nothing_from_others() {
    let mut star = Star::new(4);
    for prefix in PREFIXES {
        star.announce(2, prefix, 6);
    }
    star.sent.clear();
    star.reset(4);
    star.check().unwrap();
    assert!(
        star.sent.iter().all(|(peer, _)| *peer == 4),
        "others hear nothing of it"
    );
    let last = star.sent.last().unwrap();
    let end = wire::end_of_rib(Family::Ipv6Unicast);
    assert!(last.1.ends_with(&end), "the end comes last");
    for peer in 3..=5 {
        let connection = star.peers[&peer].connection.unwrap();
        star.speaker.handle_closed(connection, "reset", star.now);
    }
    assert_eq!(star.speaker.groups()[0].peers, ["node2"]);
    star.reset(2);
    assert_eq!(
        star.speaker.groups().len(),
        1,
        "none is left without a peer"
    );
}

#[test]
fn a_changed_export_moves_one_peer_and_tells_the_others_nothing() {
    let mut star = Star::new(4);
    for prefix in PREFIXES {
        star.announce(2, prefix, 6);
    }
    star.sent.clear();
    let mut changed = star.configs[&4].clone();
    changed.next_hop_v4 = Some(OTHER_NEXT_HOP);
    star.configure(4, changed);
    star.check().unwrap();
    assert!(star.sent.iter().all(|(peer, _)| *peer == 4));
    let groups = star.speaker.groups();
    assert_eq!(groups[0].peers, ["node2", "node3", "node5"]);
    assert_eq!(groups[1].peers, ["node4"]);

    // What it need not be told again it is not.
    star.sent.clear();
    let mut marked = star.configs[&4].clone();
    marked.max_prefixes = Some(1000);
    star.configure(4, marked);
    assert!(star.sent.is_empty());
    let mut back = star.configs[&4].clone();
    back.next_hop_v4 = None;
    star.configure(4, back);
    star.check().unwrap();
    assert_eq!(star.speaker.groups().len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Announce(u8, usize, u8),
    Withdraw(u8, usize),
    /// Of what may be ours the prefixes of these bits, those of the second to two peers only.
    Originate(u8, u8),
    Stall(u8),
    GoOn(u8),
    Refresh(u8, Family),
    Reset(u8),
    /// Which switches of a peer's export are on.
    Configure(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let peer = || 2..2 + ASES.len() as u8;
    let prefix = || 0..PREFIXES.len();
    prop_oneof![
        8 => (peer(), prefix(), 0..12_u8).prop_map(|(peer, at, kind)| Step::Announce(peer, at, kind)),
        4 => (peer(), prefix()).prop_map(|(peer, at)| Step::Withdraw(peer, at)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(ours, chosen)| Step::Originate(ours, chosen)),
        2 => peer().prop_map(Step::Stall),
        2 => peer().prop_map(Step::GoOn),
        1 => (peer(), any::<bool>()).prop_map(|(peer, v4)| Step::Refresh(peer, Family::ALL[usize::from(v4)])),
        1 => peer().prop_map(Step::Reset),
        2 => (peer(), any::<u8>()).prop_map(|(peer, switches)| Step::Configure(peer, switches)),
    ]
}

fn take_step(star: &mut Star, step: &Step) {
    match *step {
        Step::Announce(peer, prefix, kind) => star.announce(peer, PREFIXES[prefix], kind),
        Step::Withdraw(peer, prefix) => star.withdraw(peer, PREFIXES[prefix]),
        Step::Originate(ours, chosen) => {
            let ours = OURS.iter().filter(|at| ours & (1 << **at) != 0);
            let all = ours.map(|at| {
                let names = ["node2", "node5"].map(ToOwned::to_owned);
                let announcement = Announcement {
                    peers: (chosen & (1 << at) != 0).then(|| names.into()),
                    ..Announcement::default()
                };
                (net(PREFIXES[*at]), announcement)
            });
            star.originate(all.collect());
        }
        Step::Stall(peer) => star.stall(peer),
        Step::GoOn(peer) => star.go_on(peer),
        Step::Refresh(peer, family) => {
            star.hear(peer, &wire::encode_route_refresh(family, Refresh::Ask));
        }
        Step::Reset(peer) => star.reset(peer),
        Step::Configure(peer, switches) => {
            let is_on = |bit: u8| switches & (1 << bit) != 0;
            let mut config = star.configs[&peer].clone();
            config.transit = is_on(0) || is_on(1);
            config.graceful_shutdown = is_on(2) && is_on(3);
            config.next_hop_v4 = (is_on(4) && is_on(5)).then_some(OTHER_NEXT_HOP);
            config.export = Vec::new();
            if is_on(6) {
                config.export.push(ExportRule {
                    prefixes: [net(PREFIXES[0])].into(),
                    communities: [42].into(),
                    ..ExportRule::default()
                });
            }
            star.configure(peer, config);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn each_peer_knows_what_it_would_be_told_alone(
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut star = Star::new(ASES.len() as u8);
        star.check()?;
        for step in steps {
            take_step(&mut star, &step);
            star.check()?;
        }
        for peer in 2..2 + ASES.len() as u8 {
            star.go_on(peer);
        }
        star.check()?;
    }
}
