//! Two ends of a session in virtual time, over a line that delays, loses and is cut.

#![expect(
    clippy::disallowed_methods,
    reason = "any instant serves as the origin of virtual time"
)]

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const LATENCY: Duration = Duration::from_micros(300);

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

const fn timing(transmit: u64, receive: u64, multiplier: u8) -> Timing {
    Timing {
        min_transmit: ms(transmit),
        min_receive: ms(receive),
        multiplier,
    }
}

const fn key(peer: IpAddr) -> Key {
    Key {
        peer,
        local: None,
        hops: Hops::Single,
    }
}

/// An end, and what it sent and said, each with its time.
struct End {
    bfd: Bfd,
    address: IpAddr,
    peer: IpAddr,
    sent: Vec<(Duration, Packet)>,
    said: Vec<(Duration, Standing)>,
}

struct Line {
    start: Instant,
    now: Instant,
    ends: [End; 2],
    /// Packets under way: when they arrive, at which end.
    under_way: Vec<(Instant, usize, Vec<u8>)>,
    /// Whether a packet to an end gets through, by its number.
    passes: Box<dyn FnMut(usize) -> bool>,
}

impl Line {
    fn new(a: Timing, b: Timing) -> Self {
        let start = Instant::now();
        let end = |seed, address, peer, timing| {
            let mut bfd = Bfd::new(seed);
            bfd.set_sessions(&BTreeMap::from([(key(peer), timing)]), start);
            End {
                bfd,
                address,
                peer,
                sent: Vec::new(),
                said: Vec::new(),
            }
        };
        Self {
            start,
            now: start,
            ends: [end(1, A, B, a), end(2, B, A, b)],
            under_way: Vec::new(),
            passes: Box::new(|_| true),
        }
    }

    fn up(a: Timing, b: Timing) -> Self {
        let mut line = Self::new(a, b);
        line.run(ms(5000));
        assert_eq!(line.states(), [State::Up, State::Up]);
        line
    }

    fn drain(&mut self) {
        for (index, end) in self.ends.iter_mut().enumerate() {
            while let Some(transmit) = end.bfd.poll_transmit() {
                let packet = Packet::decode(&transmit.bytes).unwrap();
                end.sent.push((self.now - self.start, packet));
                if (self.passes)(1 - index) {
                    let bytes = transmit.bytes.to_vec();
                    self.under_way.push((self.now + LATENCY, 1 - index, bytes));
                }
            }
            while let Some(event) = end.bfd.poll_event() {
                end.said.push((self.now - self.start, event.standing));
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.drain();
            let next = self
                .under_way
                .iter()
                .map(|(at, ..)| *at)
                .chain(self.ends.iter().filter_map(|end| end.bfd.poll_timeout()))
                .min()
                .filter(|at| *at <= until);
            let Some(next) = next else { break };
            self.now = next.max(self.now);
            let (arrived, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.under_way)
                .into_iter()
                .partition(|(at, ..)| *at <= self.now);
            self.under_way = later;
            for (_, at, bytes) in arrived {
                let end = &mut self.ends[at];
                let arrived = Arrived {
                    from: end.peer,
                    to: end.address,
                    hops: Hops::Single,
                    ttl: 255,
                };
                end.bfd.handle_packet(arrived, &bytes, self.now);
            }
            for end in &mut self.ends {
                end.bfd.handle_timeout(self.now);
            }
        }
        self.now = until;
    }

    fn cut(&mut self) {
        self.passes = Box::new(|_| false);
        self.under_way.clear();
    }

    fn states(&self) -> [State; 2] {
        [0, 1].map(|index| self.snapshot(index).standing.state)
    }

    fn snapshot(&self, index: usize) -> Snapshot {
        self.ends[index].bfd.sessions(self.now)[0].clone()
    }

    /// The times between packets of an end since a moment.
    fn gaps(&self, index: usize, since: Instant) -> Vec<Duration> {
        let since = since - self.start;
        let times: Vec<_> = self.ends[index]
            .sent
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| *at > since)
            .collect();
        times
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .collect()
    }

    /// Gives an end a packet that the other did not send.
    fn inject(&mut self, index: usize, arrived: Arrived, packet: &Packet) -> Option<Discard> {
        let end = &mut self.ends[index];
        let before = end.bfd.discarded().clone();
        end.bfd.handle_packet(arrived, &packet.encode(), self.now);
        let after = end.bfd.discarded();
        after
            .iter()
            .find(|(why, count)| before.get(why) != Some(count))
            .map(|(why, _)| *why)
    }

    fn arrived(&self, index: usize) -> Arrived {
        Arrived {
            from: self.ends[index].peer,
            to: self.ends[index].address,
            hops: Hops::Single,
            ttl: 255,
        }
    }

    /// The last packet that the other end sent to this one.
    fn last_packet_to(&self, index: usize) -> Packet {
        self.ends[1 - index].sent.last().unwrap().1
    }
}

#[test]
fn two_ends_come_up_by_three_packets_and_then_speak_at_the_slower_of_their_wishes() {
    let mut line = Line::up(timing(50, 20, 3), timing(30, 70, 5));
    // A sends no faster than B takes; B no faster than it wants.
    assert_eq!(line.snapshot(0).transmit_interval, ms(70));
    assert_eq!(line.snapshot(1).transmit_interval, ms(30));
    assert_eq!(line.snapshot(0).detection_time, ms(5 * 30));
    assert_eq!(line.snapshot(1).detection_time, ms(3 * 70));
    let since = line.now;
    line.run(ms(10_000));
    for (index, interval) in [(0, ms(70)), (1, ms(30))] {
        let gaps = line.gaps(index, since);
        let jittered = interval * 3 / 4..=interval;
        assert!(gaps.iter().all(|gap| jittered.contains(gap)), "{gaps:?}");
        // The jitter is one: not all gaps are alike (§6.8.7).
        assert!(gaps.iter().max() > gaps.iter().min(), "{gaps:?}");
    }
    assert_eq!(line.states(), [State::Up, State::Up]);
    for end in &line.ends {
        let said: Vec<_> = end.said.iter().map(|(_, s)| s.state).collect();
        assert!(said.ends_with(&[State::Up]), "{said:?}");
        assert!(!said.contains(&State::AdminDown));
    }
}

#[test]
fn while_a_session_is_not_up_a_packet_a_second_is_the_most() {
    let mut line = Line::new(timing(10, 10, 3), timing(10, 10, 3));
    line.cut();
    line.run(ms(20_000));
    let gaps = line.gaps(0, line.start);
    assert!(gaps.len() >= 18, "{gaps:?}");
    assert!(gaps.iter().all(|gap| (ms(750)..=ms(1000)).contains(gap)));
}

#[test]
fn with_a_multiplier_of_one_a_packet_comes_a_tenth_early_at_least() {
    let mut line = Line::up(timing(100, 100, 1), timing(100, 100, 1));
    let since = line.now;
    line.run(ms(20_000));
    let gaps = line.gaps(0, since);
    assert!(
        gaps.iter().all(|gap| (ms(75)..=ms(90)).contains(gap)),
        "{gaps:?}"
    );
    assert_eq!(line.states(), [State::Up, State::Up]);
}

#[test]
fn a_cut_is_detected_within_the_detection_time_and_said_with_its_reason() {
    let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
    let cut_at = line.now - line.start;
    line.cut();
    line.run(ms(1000));
    for end in &line.ends {
        let (at, standing) = *end.said.last().unwrap();
        assert_eq!(standing.state, State::Down);
        assert_eq!(standing.diagnostic, Diagnostic::TIME_EXPIRED);
        let took = at.saturating_sub(cut_at);
        assert!(took > ms(90) && took <= ms(151), "{took:?}");
    }
    // A name that was not heard for that long is not used any more (§6.8.1).
    assert_eq!(line.snapshot(0).remote_discriminator, 0);
    assert_eq!(line.snapshot(0).failures, 1);

    line.passes = Box::new(|_| true);
    line.run(ms(5000));
    assert_eq!(line.states(), [State::Up, State::Up]);
    assert_eq!(line.snapshot(0).ups, 2);
}

#[test]
fn one_deaf_end_takes_both_down() {
    let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
    // Only packets to the first end are lost: it times out and says so.
    line.passes = Box::new(|to| to != 0);
    line.run(ms(300));
    assert_ne!(line.states()[0], State::Up);
    let (_, standing) = *line.ends[1]
        .said
        .iter()
        .find(|(_, s)| s.state == State::Down)
        .unwrap();
    assert_eq!(standing.diagnostic, Diagnostic::NEIGHBOR_DOWN);
}

#[test]
fn other_timing_is_polled_for_and_slower_sending_waits_for_the_answer() {
    let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
    line.passes = Box::new(|to| to != 0);
    let wanted = BTreeMap::from([(key(B), timing(400, 20, 3))]);
    line.ends[0].bfd.set_sessions(&wanted, line.now);
    line.run(ms(60));
    // No answer yet: as fast as before, and what B may take for us unchanged.
    assert_eq!(line.snapshot(0).transmit_interval, ms(50));
    assert_eq!(line.snapshot(0).detection_time, ms(150));
    let asking = line.last_packet_to(1);
    assert!(asking.poll && !asking.is_final);
    assert_eq!(asking.desired_min_transmit, ms(400));

    line.passes = Box::new(|_| true);
    line.run(ms(200));
    assert_eq!(line.snapshot(0).transmit_interval, ms(400));
    assert!(line.ends[1].sent.iter().any(|(_, packet)| packet.is_final));
    assert!(!line.last_packet_to(1).poll);
    line.run(ms(20_000));
    assert_eq!(line.states(), [State::Up, State::Up]);
    assert_eq!(line.snapshot(0).failures, 0);
}

#[test]
fn a_poll_is_answered_at_once_with_the_final_bit() {
    let mut line = Line::up(timing(500, 500, 3), timing(500, 500, 3));
    let mut poll = line.last_packet_to(0);
    poll.poll = true;
    poll.is_final = false;
    let sent = line.ends[0].sent.len();
    assert_eq!(line.inject(0, line.arrived(0), &poll), None);
    line.drain();
    let (at, answer) = line.ends[0].sent[sent];
    assert_eq!(at, line.now - line.start);
    assert!(answer.is_final && !answer.poll);
    assert_eq!(line.ends[0].sent.len(), sent + 1);
}

#[test]
fn a_session_that_is_taken_away_says_so_and_is_not_a_failure_to_the_peer() {
    let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
    line.ends[0].bfd.set_sessions(&BTreeMap::new(), line.now);
    line.run(ms(10));
    let (_, standing) = *line.ends[1].said.last().unwrap();
    assert_eq!(standing.state, State::Down);
    assert!(standing.peer_admin_down);
    assert_eq!(
        line.snapshot(1).remote_diagnostic,
        Diagnostic::ADMINISTRATIVELY_DOWN
    );
    assert!(line.ends[0].bfd.sessions(line.now).is_empty());
    // It says so for a while, and then nothing.
    line.run(ms(4000));
    let sent = line.ends[0].sent.len();
    assert!(line.ends[0].sent[sent - 1].1.state == State::AdminDown);
    line.run(ms(10_000));
    assert_eq!(line.ends[0].sent.len(), sent);
    assert_eq!(line.ends[0].bfd.poll_timeout(), None);
}

#[test]
fn a_peer_in_demand_mode_hears_only_polls_and_one_that_takes_nothing_hears_nothing() {
    let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
    let mut demand = line.last_packet_to(0);
    demand.demand = true;
    demand.desired_min_transmit = ms(60_000);
    assert_eq!(line.inject(0, line.arrived(0), &demand), None);
    line.drain();
    let sent = line.ends[0].sent.len();
    line.cut();
    line.run(ms(1000));
    assert_eq!(line.ends[0].sent.len(), sent);
    assert_eq!(line.states()[0], State::Up);
    // Other timing is told even so.
    let wanted = BTreeMap::from([(key(B), timing(40, 40, 3))]);
    line.ends[0].bfd.set_sessions(&wanted, line.now);
    line.run(ms(1000));
    assert!(line.ends[0].sent.len() > sent + 10);
    assert!(
        line.ends[0].sent[sent..]
            .iter()
            .all(|(_, packet)| packet.poll)
    );

    let mut deaf = demand;
    deaf.demand = false;
    deaf.required_min_receive = Duration::ZERO;
    deaf.is_final = true;
    assert_eq!(line.inject(0, line.arrived(0), &deaf), None);
    line.drain();
    let sent = line.ends[0].sent.len();
    line.run(ms(1000));
    assert_eq!(line.ends[0].sent.len(), sent);
}

#[test]
fn packets_that_are_for_no_session_of_ours_are_discarded_and_counted() {
    let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
    let sound = line.last_packet_to(0);
    let arrived = line.arrived(0);
    let other: IpAddr = [10, 0, 0, 3].into();
    for (arrived, packet, why) in [
        (
            Arrived {
                ttl: 254,
                ..arrived
            },
            sound,
            Discard::Forwarded,
        ),
        (
            Arrived {
                from: other,
                ..arrived
            },
            sound,
            Discard::OtherSource,
        ),
        (
            Arrived {
                hops: Hops::Multi,
                ..arrived
            },
            sound,
            Discard::OtherSource,
        ),
        (
            arrived,
            Packet {
                your_discriminator: sound.your_discriminator ^ 1,
                ..sound
            },
            Discard::UnknownDiscriminator,
        ),
        (
            Arrived {
                from: other,
                ..arrived
            },
            Packet {
                your_discriminator: 0,
                state: State::Down,
                ..sound
            },
            Discard::NoSession,
        ),
        (
            arrived,
            Packet {
                your_discriminator: 0,
                ..sound
            },
            Discard::NotDown,
        ),
    ] {
        assert_eq!(line.inject(0, arrived, &packet), Some(why));
    }
    assert_eq!(line.states(), [State::Up, State::Up]);
    // A restarted peer does not know us: it is believed that it is down.
    let restarted = Packet {
        your_discriminator: 0,
        state: State::Down,
        ..sound
    };
    assert_eq!(line.inject(0, arrived, &restarted), None);
    assert_eq!(line.states()[0], State::Down);
    // A session that leaves takes no part.
    line.ends[0].bfd.set_sessions(&BTreeMap::new(), line.now);
    assert_eq!(line.inject(0, arrived, &sound), Some(Discard::AdminDown));
}

#[test]
fn multihop_packets_may_have_crossed_routers_and_our_end_tells_sessions_apart() {
    let mut bfd = Bfd::new(1);
    let now = Instant::now();
    let of = |local: [u8; 4]| Key {
        peer: B,
        local: Some(local.into()),
        hops: Hops::Multi,
    };
    let (first, second) = (of([10, 0, 0, 1]), of([10, 0, 0, 9]));
    let wanted = BTreeMap::from([(first, Timing::default()), (second, Timing::default())]);
    bfd.set_sessions(&wanted, now);
    let packet = Packet {
        state: State::Down,
        your_discriminator: 0,
        my_discriminator: 77,
        ..Packet::decode(&bfd.poll_transmit().unwrap().bytes).unwrap()
    };
    let arrived = Arrived {
        from: B,
        to: [10, 0, 0, 9].into(),
        hops: Hops::Multi,
        ttl: 61,
    };
    bfd.handle_packet(arrived, &packet.encode(), now);
    assert_eq!(bfd.standing(&first).unwrap().state, State::Down);
    assert_eq!(bfd.standing(&second).unwrap().state, State::Init);
}

proptest! {
    /// Two packets in a row may be lost of three.
    #[test]
    fn losing_less_than_the_multiplier_is_never_a_failure(
        lost in prop::collection::vec(prop::bool::ANY, 200),
        a in 10_u64..400,
        b in 10_u64..400,
    ) {
        let mut line = Line::up(timing(a, a, 3), timing(b, b, 3));
        let mut in_a_row = [0; 2];
        let mut number = 0;
        line.passes = Box::new(move |to| {
            number += 1;
            let is_lost = lost[number % lost.len()] && in_a_row[to] < 2;
            in_a_row[to] = if is_lost { in_a_row[to] + 1 } else { 0 };
            !is_lost
        });
        line.run(ms(30_000));
        prop_assert_eq!(line.states(), [State::Up, State::Up]);
        prop_assert_eq!(line.snapshot(0).failures + line.snapshot(1).failures, 0);
    }

    #[test]
    fn after_any_loss_both_ends_agree_again(
        seed in any::<u64>(),
        share in 0_u64..100,
        time in 100_u64..5000,
    ) {
        let mut line = Line::new(timing(50, 50, 3), timing(80, 20, 2));
        let mut jitter = Jitter::from_seed(seed);
        line.passes = Box::new(move |_| u64::from(jitter.number() % 100) >= share);
        line.run(ms(time));
        line.passes = Box::new(|_| true);
        line.run(ms(8000));
        prop_assert_eq!(line.states(), [State::Up, State::Up]);
        let (a, b) = (line.snapshot(0), line.snapshot(1));
        prop_assert_eq!(a.discriminator, b.remote_discriminator);
        prop_assert_eq!(b.discriminator, a.remote_discriminator);
    }

    #[test]
    fn no_octets_from_the_line_bring_the_engine_down(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40),
    ) {
        let mut line = Line::up(timing(50, 50, 3), timing(50, 50, 3));
        for bytes in packets {
            let arrived = line.arrived(0);
            line.ends[0].bfd.handle_packet(arrived, &bytes, line.now);
        }
        line.run(ms(8000));
        prop_assert_eq!(line.states(), [State::Up, State::Up]);
    }
}
