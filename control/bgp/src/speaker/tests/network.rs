//! Nodes that run speakers, a wire with latency, and a clock that jumps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::jitter::Jitter;
use crate::speaker::{Accepted, ConnectionId, ConnectionRequest, Event, Speaker};

const LATENCY: Duration = Duration::from_millis(5);
/// How much later what was lost arrives.
const RETRANSMISSION: Duration = Duration::from_millis(1500);

static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant serves as the origin"
    )]
    Instant::now()
});

/// The instant at which every network begins.
pub(super) fn origin() -> Instant {
    *ORIGIN
}

/// The address of a node.
pub(super) fn address(node: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, node])
}

fn socket(node: u8, port: u16) -> SocketAddr {
    SocketAddr::new(address(node), port)
}

type End = (u8, ConnectionId);

#[derive(Debug)]
enum Arrival {
    Dial { from: End, to: u8 },
    Answered { end: End },
    Refused { end: End },
    Bytes { end: End, bytes: Vec<u8> },
    Closed { end: End },
}

struct Node {
    speaker: Speaker,
    events: Vec<Event>,
    reports_writes: bool,
    /// Something happened to its speaker since it was last asked what it wants.
    is_touched: bool,
    /// When its speaker wants to be woken, as it said then.
    wake: Option<Instant>,
}

pub(super) struct Network {
    now: Instant,
    nodes: BTreeMap<u8, Node>,
    /// Both directions of each open connection.
    wires: BTreeMap<End, End>,
    /// Who opened each connection that is or was.
    openers: BTreeMap<End, u8>,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    sequence: u64,
    is_cut: bool,
    weather: Option<Jitter>,
    /// When what was sent last to an end gets there: nothing that is sent later overtakes it.
    last_arrival: BTreeMap<End, Instant>,
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            now: origin(),
            nodes: BTreeMap::new(),
            wires: BTreeMap::new(),
            openers: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            sequence: 0,
            is_cut: false,
            weather: None,
            last_arrival: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, index: u8, speaker: Speaker) {
        let node = Node {
            speaker,
            events: Vec::new(),
            reports_writes: true,
            is_touched: true,
            wake: None,
        };
        self.nodes.insert(index, node);
    }

    /// Another process on the same node.
    pub(super) fn replace(&mut self, index: u8, speaker: Speaker) {
        self.add(index, speaker);
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn speaker(&mut self, index: u8) -> &mut Speaker {
        let node = self.nodes.get_mut(&index).unwrap();
        node.is_touched = true;
        &mut node.speaker
    }

    pub(super) fn events(&self, index: u8) -> &[Event] {
        &self.nodes[&index].events
    }

    pub(super) fn sessions_up(&self, index: u8) -> usize {
        self.events(index)
            .iter()
            .filter(|event| matches!(event, Event::PeerUp { .. }))
            .count()
    }

    pub(super) fn open_connections(&self) -> usize {
        self.wires.len() / 2
    }

    /// Who opened the connections that are.
    pub(super) fn openers(&self) -> Vec<u8> {
        self.wires
            .keys()
            .filter_map(|end| self.openers.get(end).copied())
            .collect()
    }

    /// How many connections were ever accepted.
    pub(super) fn connections_made(&self) -> usize {
        self.openers.len()
    }

    pub(super) fn stop_reporting_writes(&mut self, index: u8) {
        self.nodes.get_mut(&index).unwrap().reports_writes = false;
    }

    /// From now on everything takes longer or shorter than what was sent before elsewhere, and some is lost
    /// and sent again.
    pub(super) fn worsen(&mut self, seed: u64) {
        self.weather = Some(Jitter::from_seed(seed));
    }

    /// The clock stands still for every speaker, and then is later at once.
    pub(super) fn jump(&mut self, duration: Duration) {
        self.now += duration;
    }

    /// Nothing gets through any more, and nobody notices.
    pub(super) fn cut(&mut self) {
        self.is_cut = true;
        self.wires.clear();
        self.arrivals.clear();
    }

    pub(super) fn heal(&mut self) {
        self.is_cut = false;
    }

    /// Every connection is reset; both ends notice.
    pub(super) fn reset_connections(&mut self) {
        self.arrivals.clear();
        for end in std::mem::take(&mut self.wires).into_keys() {
            self.schedule(Arrival::Closed { end });
        }
    }

    /// A node loses its connections without telling anybody.
    pub(super) fn forget_connections_of(&mut self, index: u8) {
        self.wires
            .retain(|from, to| from.0 != index && to.0 != index);
    }

    /// A node's process ends without a word, and what was on its way to it is lost; another one takes its place.
    pub(super) fn crash(&mut self, index: u8, speaker: Speaker) {
        self.forget_connections_of(index);
        self.arrivals.retain(|_, arrival| {
            let end = match arrival {
                Arrival::Dial { from, .. } => from,
                Arrival::Answered { end }
                | Arrival::Refused { end }
                | Arrival::Bytes { end, .. }
                | Arrival::Closed { end } => end,
            };
            end.0 != index
        });
        self.last_arrival.retain(|end, _| end.0 != index);
        self.replace(index, speaker);
    }

    /// Lets virtual time pass.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.drain();
            let timeout = self.nodes.values().filter_map(|node| node.wake).min();
            let arrival = self.arrivals.keys().next().map(|(at, _)| *at);
            let Some(next) = [timeout, arrival].into_iter().flatten().min() else {
                break;
            };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, arrival) = self.arrivals.pop_first().unwrap();
                self.deliver(arrival);
            } else {
                let is_due = |node: &&mut Node| node.wake.is_some_and(|wake| wake <= self.now);
                for node in self.nodes.values_mut().filter(is_due) {
                    node.is_touched = true;
                    node.speaker.handle_timeout(self.now);
                }
            }
        }
        self.now = end;
    }

    fn schedule(&mut self, arrival: Arrival) {
        if self.is_cut {
            return;
        }
        let latency = self.latency();
        let mut at = self.now + latency;
        if let Arrival::Bytes { end, .. } | Arrival::Closed { end } = &arrival {
            let last = self.last_arrival.entry(*end).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        self.sequence += 1;
        self.arrivals.insert((at, self.sequence), arrival);
    }

    fn latency(&mut self) -> Duration {
        let Some(weather) = &mut self.weather else {
            return LATENCY;
        };
        let latency = weather.between(LATENCY / 5, 10 * LATENCY);
        let is_lost =
            weather.between(Duration::ZERO, Duration::from_secs(16)) < Duration::from_secs(1);
        latency
            + if is_lost {
                RETRANSMISSION
            } else {
                Duration::ZERO
            }
    }

    fn deliver(&mut self, arrival: Arrival) {
        let now = self.now;
        match arrival {
            Arrival::Dial { from, to } => {
                let local = socket(to, 179);
                let remote = socket(from.0, 40_000);
                let accepted = self.nodes.get_mut(&to).and_then(|node| {
                    node.is_touched = true;
                    node.speaker.handle_incoming(local, remote, now)
                });
                if let Some(Accepted { connection, .. }) = accepted {
                    self.openers.insert(from, from.0);
                    self.wires.insert((to, connection), from);
                    self.wires.insert(from, (to, connection));
                    self.schedule(Arrival::Answered { end: from });
                } else {
                    self.schedule(Arrival::Refused { end: from });
                }
            }
            Arrival::Answered { end } => {
                let local = socket(end.0, 40_000);
                self.speaker(end.0).handle_connected(end.1, local, now);
            }
            Arrival::Refused { end } => {
                self.speaker(end.0)
                    .handle_connect_failed(end.1, "connection refused", now);
            }
            Arrival::Bytes { end, bytes } => self.speaker(end.0).handle_bytes(end.1, &bytes, now),
            Arrival::Closed { end } => {
                self.speaker(end.0)
                    .handle_closed(end.1, "closed by the peer", now);
            }
        }
    }

    fn drain(&mut self) {
        let now = self.now;
        let touched = self.nodes.iter().filter(|(_, node)| node.is_touched);
        let touched: Vec<_> = touched.map(|(index, _)| *index).collect();
        for index in touched {
            while let Some(transmit) = self.speaker(index).poll_transmit() {
                if self.nodes[&index].reports_writes {
                    let octets = transmit.bytes.len();
                    self.speaker(index)
                        .handle_written(transmit.connection, octets, now);
                }
                if let Some(end) = self.wires.get(&(index, transmit.connection)).copied() {
                    self.schedule(Arrival::Bytes {
                        end,
                        bytes: transmit.bytes.to_vec(),
                    });
                }
            }
            while let Some(request) = self.speaker(index).poll_connection() {
                match request {
                    ConnectionRequest::Connect {
                        connection,
                        address: to,
                        ..
                    } => {
                        let from = (index, connection);
                        let IpAddr::V4(to) = to else {
                            unreachable!("nodes have IPv4 addresses")
                        };
                        self.schedule(Arrival::Dial {
                            from,
                            to: to.octets()[3],
                        });
                    }
                    ConnectionRequest::Close { connection } => {
                        if let Some(end) = self.wires.remove(&(index, connection)) {
                            self.wires.remove(&end);
                            self.schedule(Arrival::Closed { end });
                        }
                    }
                }
            }
            let node = self.nodes.get_mut(&index).unwrap();
            node.events
                .extend(std::iter::from_fn(|| node.speaker.poll_event()));
            node.is_touched = false;
            node.wake = node.speaker.poll_timeout();
        }
    }
}
