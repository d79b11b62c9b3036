//! Many speakers that pass routes on, in bad weather: they come to the same routes, by the shortest ways.

use proptest::prelude::*;

use super::*;

/// What happens to a fabric.
#[derive(Debug, Clone, Copy)]
enum Disturbance {
    /// A process ends and another one takes its place; its peers are not told.
    Crash(u8),
    /// Every connection is reset.
    Flap,
    /// Nothing gets through, for this many milliseconds.
    Cut(u16),
    /// All clocks are later at once, by this many seconds.
    Jump(u16),
    /// A node announces this many prefixes.
    Announce(u8, u8),
    /// Milliseconds pass.
    Wait(u16),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        any::<u8>().prop_map(Disturbance::Crash),
        Just(Disturbance::Flap),
        (0..20_000_u16).prop_map(Disturbance::Cut),
        (0..300_u16).prop_map(Disturbance::Jump),
        (any::<u8>(), 0..4_u8).prop_map(|(node, count)| Disturbance::Announce(node, count)),
        any::<u16>().prop_map(Disturbance::Wait),
    ]
}

/// Nodes 1 to `size`, each an AS of its own: a ring, so that there are two ways, and chords.
struct Fabric {
    network: Network,
    size: u8,
    links: BTreeSet<(u8, u8)>,
    announced: BTreeMap<u8, u8>,
    starts: u64,
}

impl Fabric {
    fn new(size: u8, chords: &[(u8, u8)], weather: u64) -> Self {
        let place = |number: u8| number % size + 1;
        let ring = (0..size).map(|number| (place(number), place(number.wrapping_add(1))));
        let chords = chords.iter().map(|(a, b)| (place(*a), place(*b)));
        let links = ring
            .chain(chords)
            .filter(|(a, b)| a != b)
            .map(|(a, b)| (a.min(b), a.max(b)))
            .collect();
        let mut network = Network::new();
        network.worsen(weather);
        let mut fabric = Self {
            network,
            size,
            links,
            announced: (1..=size).map(|node| (node, 1)).collect(),
            starts: 0,
        };
        for node in 1..=size {
            fabric.start(node);
        }
        fabric
    }

    fn neighbours(&self, node: u8) -> Vec<u8> {
        let ends = self.links.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
        ends.filter(|(a, _)| *a == node).map(|(_, b)| b).collect()
    }

    /// Starts the node's speaker, in the place of one that may have been there.
    fn start(&mut self, node: u8) {
        self.starts += 1;
        let asn = 65000 + u32::from(node);
        self.network
            .crash(node, Speaker::new(config(node, asn), self.starts));
        let now = self.network.now();
        for other in self.neighbours(node) {
            let mut peer = toward(other, 65000 + u32::from(other));
            peer.transit = true;
            self.network.speaker(node).set_peer(peer, now);
        }
        self.announce(node);
    }

    fn announce(&mut self, node: u8) {
        let now = self.network.now();
        let announcements = self.prefixes_of(node).into_iter();
        let announcements = announcements.map(|prefix| (prefix, Announcement::default()));
        self.network
            .speaker(node)
            .set_announcements(announcements.collect(), now);
    }

    fn prefixes_of(&self, node: u8) -> Vec<IpNetwork> {
        (0..self.announced[&node])
            .flat_map(|third| {
                [
                    format!("10.{node}.{third}.0/24"),
                    format!("2001:db8:{node:x}:{third:x}::/64"),
                ]
            })
            .map(|text| net(&text))
            .collect()
    }

    fn disturb(&mut self, disturbance: Disturbance) {
        let place = |number: u8| number % self.size + 1;
        match disturbance {
            Disturbance::Crash(node) => self.start(place(node)),
            Disturbance::Flap => self.network.reset_connections(),
            Disturbance::Cut(ms) => {
                self.network.cut();
                self.network.run(Duration::from_millis(ms.into()));
                self.network.heal();
            }
            Disturbance::Jump(seconds) => self.network.jump(u32::from(seconds) * SECOND),
            Disturbance::Announce(node, count) => {
                let node = place(node);
                self.announced.insert(node, count);
                self.announce(node);
            }
            Disturbance::Wait(ms) => self.network.run(Duration::from_millis(ms.into())),
        }
    }

    /// How many links it is from a node to each other one.
    fn distances(&self, from: u8) -> BTreeMap<u8, usize> {
        let mut known = BTreeMap::from([(from, 0)]);
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            for next in self.neighbours(node) {
                if !known.contains_key(&next) {
                    known.insert(next, known[&node] + 1);
                    queue.push_back(next);
                }
            }
        }
        known
    }

    /// What a node should use: every other node's prefixes, by paths as long as the way is.
    fn expected(&self, node: u8) -> BTreeMap<IpNetwork, usize> {
        let distances = self.distances(node);
        let others = (1..=self.size).filter(|other| *other != node);
        others
            .flat_map(|other| {
                let length = distances[&other];
                self.prefixes_of(other)
                    .into_iter()
                    .map(move |prefix| (prefix, length))
            })
            .collect()
    }

    fn used(&mut self, node: u8) -> BTreeMap<IpNetwork, usize> {
        let routes = self.network.speaker(node).loc_rib().into_iter();
        routes
            .filter_map(|route| {
                let best = route
                    .paths
                    .into_iter()
                    .find(|path| path.best && path.peer.is_some())?;
                Some((route.prefix, best.attributes.as_path.len()))
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_fabric_comes_to_the_shortest_ways_whatever_happened_before(
        size in prop_oneof![19 => 2..8_u8, 1 => 8..=50_u8],
        chords in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..4),
        weather in any::<u64>(),
        disturbances in proptest::collection::vec(disturbance(), 0..12),
    ) {
        let mut fabric = Fabric::new(size, &chords, weather);
        for disturbance in disturbances {
            fabric.disturb(disturbance);
        }
        fabric.network.run(900 * SECOND);
        for node in 1..=size {
            prop_assert_eq!(fabric.used(node), fabric.expected(node), "node {}", node);
        }
    }
}

#[test]
fn fifty_speakers_come_to_the_shortest_ways_after_crashes_and_flaps() {
    let chords: Vec<(u8, u8)> = (0..25).map(|number| (number, number * 7 + 11)).collect();
    let mut fabric = Fabric::new(50, &chords, 7);
    fabric.network.run(30 * SECOND);
    for disturbance in [
        Disturbance::Crash(3),
        Disturbance::Flap,
        Disturbance::Announce(9, 0),
        Disturbance::Jump(20),
        Disturbance::Crash(40),
        Disturbance::Cut(12_000),
    ] {
        fabric.disturb(disturbance);
    }
    fabric.network.run(300 * SECOND);
    for node in 1..=50 {
        assert_eq!(fabric.used(node), fabric.expected(node), "node {node}");
    }
}
