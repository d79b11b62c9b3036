//! Flows that are kept because their backend has taken them up: where they find room, and the way that their answers
//! have learnt.

use fairlead_common::addr::{Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::nat;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, forward};
use fairlead_common::snat::{Binding, State};
use fairlead_common::tables::{Devices, NatFlows, NatRecent, NatWays, NodeTable, WayEpoch};
use fairlead_control::dataplane::observe;
use fairlead_tests::kernel::{Node, ROUTER, Ran, UP0, UP1, addr_of, flow, on_a_node};
use fairlead_tests::packet::{Packet, eth, tcp};
use rstest::rstest;

const SERVICE: [&str; 2] = ["192.0.2.80", "2001:db8::80"];
const CLIENT: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const POD_ADDR: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];

/// The families.
const V4: usize = 0;
const V6: usize = 1;

/// A route to the client by the other uplink.
const TURN: [&str; 2] = [
    "route replace 203.0.113.0/24 via 10.2.0.12",
    "route replace 2001:db8:9::/48 via fd00:2::12",
];

fn serve(node: &mut Node, family: usize) {
    let backend = node.backend(POD_ADDR[family], forward::HERE);
    node.listens(backend, 8080);
    let slot = Slot {
        current: backend,
        previous: 0,
    };
    node.service(SERVICE[family], 80, Proto::TCP, &[slot]);
}

fn asks(node: &mut Node, family: usize, flags: u8) {
    let packet = eth()
        .ip(CLIENT[family], SERVICE[family])
        .tcp(40000, 80)
        .flags(flags);
    assert_eq!(node.arrives(UP0, &packet).reason, Reason::ServiceTranslated);
}

fn answer(family: usize) -> Packet {
    eth()
        .ip(POD_ADDR[family], CLIENT[family])
        .tcp(8080, 40000)
        .flags(tcp::ACK)
}

fn answers(node: &mut Node, family: usize) -> Ran {
    let ran = node.pod_sends(&answer(family));
    assert_eq!(ran.reason, Reason::ServiceAnswered);
    ran
}

fn key(family: usize) -> FlowKey {
    flow(
        (POD_ADDR[family], 8080),
        (CLIENT[family], 40000),
        Proto::TCP,
    )
}

/// A client has connected.
fn connect(node: &mut Node, family: usize) {
    asks(node, family, tcp::SYN);
    asks(node, family, tcp::ACK);
    answers(node, family);
}

/// Does something within the time that ways are known for.
fn within_a_span<T>(mut work: impl FnMut() -> T) -> T {
    for _ in 0..20 {
        let span = || observe::now_s().expect("a clock") / nat::WAY_S;
        let began = span();
        let done = work();
        if span() == began {
            return done;
        }
    }
    panic!("twenty times it has taken too long");
}

/// The MAC address that a frame goes out from.
fn source(ran: &Ran) -> [u8; 6] {
    ran.frame[6..12].try_into().expect("a MAC address")
}

#[rstest]
fn a_flow_without_room_stays_a_recent_one_and_takes_the_place_of_one_that_has_ended(
    #[values(V4, V6)] family: usize,
) {
    on_a_node(|node| {
        serve(node, family);
        let now = observe::now_s().expect("a clock");
        let secret = node.get::<NodeTable>(&0).expect("a node").port_secret;
        let first = nat::row(&key(family), secret);
        let other = |port: u16, silent_s: u32| {
            let answer = flow((POD_ADDR[family], 8080), ("198.18.0.1", port), Proto::TCP);
            let binding = Binding {
                inside: addr_of(SERVICE[family]),
                inside_port: Port::new(80),
                state: State::Established as u8,
                whose: 0,
                // A machine may be younger than that: the clock is one that wraps.
                last_seen_s: now.wrapping_sub(silent_s),
            };
            nat::NatFlow::new(&answer, binding)
        };
        let places: Vec<u32> = (0..nat::PROBES)
            .map(|probe| nat::probe(first, probe))
            .collect();
        for (port, at) in (1..).zip(&places) {
            node.set::<NatFlows>(at, &other(port, 0));
        }

        connect(node, family);
        answers(node, family);

        assert_eq!(node.kept_flow(&key(family)), None);
        let recent = node.get::<NatRecent>(&key(family)).expect("a recent one");
        assert_eq!(recent.state, State::Established as u8);

        // An established connection that was silent for longer than 2 h 4 min.
        node.set::<NatFlows>(&places[3], &other(4, 7441));
        asks(node, family, tcp::ACK);
        answers(node, family);

        let (at, kept) = node.kept_flow(&key(family)).expect("a kept one");
        assert_eq!(at, places[3]);
        assert_eq!(
            (kept.inside, kept.inside_port, kept.state),
            (
                addr_of(SERVICE[family]),
                Port::new(80),
                State::Established as u8
            )
        );
        for (port, at) in (1..).zip(&places).filter(|(port, _)| *port != 4) {
            assert_eq!(node.get::<NatFlows>(at), Some(other(port, 0)));
        }
        assert_eq!(source(&answers(node, family)), UP0.mac);
    });
}

#[rstest]
fn answers_keep_their_way_until_something_has_changed(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        connect(node, family);
        let mut epoch = 1;
        node.ip(TURN[family]);
        let [learnt, later] = within_a_span(|| {
            node.ip(&TURN[family].replace("replace", "del"));
            epoch += 1;
            node.set::<WayEpoch>(&0, &epoch);
            answers(node, family);
            node.ip(TURN[family]);
            let learnt = source(&answers(node, family));
            epoch += 1;
            node.set::<WayEpoch>(&0, &epoch);
            [learnt, source(&answers(node, family))]
        });

        assert_eq!(learnt, UP0.mac, "nobody has said that a route has changed");
        assert_eq!(later, UP1.mac);
    });
}

#[rstest]
fn a_packet_with_a_dscp_asks_for_its_own_way(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        connect(node, family);
        let urgent = answer(family).traffic_class(46 << 2);
        node.ip(TURN[family]);
        let mut epoch = 1;
        let [asked, learnt] = within_a_span(|| {
            node.ip(&TURN[family].replace("replace", "del"));
            epoch += 1;
            node.set::<WayEpoch>(&0, &epoch);
            answers(node, family);
            node.ip(TURN[family]);
            let asked = source(&node.pod_sends(&urgent));
            [asked, source(&answers(node, family))]
        });

        assert_eq!(asked, UP1.mac, "a rule might look at it");
        assert_eq!(learnt, UP0.mac, "and the others learn nothing of it");
    });
}

#[rstest]
fn a_way_is_at_most_a_few_seconds_old(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        connect(node, family);
        answers(node, family);
        node.ip(TURN[family]);

        let span = || observe::now_s().expect("a clock") / nat::WAY_S;
        let learnt_in = span();
        while span() == learnt_in {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }

        // What the client sends says that the time is another one, too.
        asks(node, family, tcp::ACK);
        assert_eq!(source(&answers(node, family)), UP1.mac);
    });
}

#[rstest]
fn nothing_is_learnt_without_an_epoch(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        node.set::<WayEpoch>(&0, &0);
        connect(node, family);
        answers(node, family);

        node.ip(TURN[family]);

        assert_eq!(source(&answers(node, family)), UP1.mac);
    });
}

#[rstest]
fn a_packet_that_is_too_large_for_a_learnt_way_is_not_sent_by_it(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        connect(node, family);
        let large = answer(family).payload(vec![7; 1400]);

        let [whole, refused] = within_a_span(|| {
            let mut device = node.get::<Devices>(&UP0.ifindex).expect("a device");
            device.mtu = 1500;
            node.ip("link set up0 mtu 1500");
            node.set::<Devices>(&UP0.ifindex, &device);
            answers(node, family);
            let whole = node.pod_sends(&large).reason;
            // The agent says so in the table before it says that something has changed.
            device.mtu = 1400;
            node.ip("link set up0 mtu 1400");
            node.set::<Devices>(&UP0.ifindex, &device);
            [whole, node.pod_sends(&large).reason]
        });

        assert_eq!(whole, Reason::ServiceAnswered);
        assert_eq!(refused, Reason::ServiceAnsweredByStack);
    });
}

#[rstest]
fn a_route_that_takes_less_than_its_device_is_not_learnt(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        let narrow = [
            "route replace 203.0.113.0/24 via 10.1.0.254 mtu lock 1300",
            "route replace 2001:db8:9::/48 via fd00:1::fe mtu lock 1300",
        ];
        node.ip(narrow[family]);
        connect(node, family);
        answers(node, family);

        let ran = node.pod_sends(&answer(family).payload(vec![7; 1350]));

        assert_eq!(ran.reason, Reason::ServiceAnsweredByStack);
    });
}

#[rstest]
fn flows_share_what_was_learnt_of_a_way(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        connect(node, family);
        answers(node, family);
        let other = eth().ip(CLIENT[family], SERVICE[family]).tcp(40001, 80);
        for flags in [tcp::SYN, tcp::ACK] {
            node.arrives(UP0, &other.clone().flags(flags));
        }
        let answer = eth().ip(POD_ADDR[family], CLIENT[family]).tcp(8080, 40001);
        for _ in 0..2 {
            let ran = node.pod_sends(&answer.clone().flags(tcp::ACK));
            assert_eq!(source(&ran), UP0.mac);
        }

        let learnt: Vec<_> = (0..nat::WAYS)
            .filter_map(|at| Some((at, node.get::<NatWays>(&at)?)))
            .filter(|(_, way)| *way != nat::NatWay::default())
            .collect();
        let way = nat::NatWay {
            mac: ROUTER,
            device: u16::try_from(UP0.ifindex).expect("a small index"),
        };
        assert_eq!(learnt, [(nat::way_row(bytemuck::cast(way), 0), way)]);
    });
}

#[rstest]
fn a_way_for_which_there_is_no_room_is_asked_for_each_time(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        let way = nat::NatWay {
            mac: ROUTER,
            device: u16::try_from(UP0.ifindex).expect("a small index"),
        };
        let other = nat::NatWay {
            mac: [2, 0, 0, 9, 9, 9],
            ..way
        };
        for probe in 0..nat::WAY_PROBES {
            let at = nat::way_row(bytemuck::cast(way), probe);
            node.set::<NatWays>(&at, &other);
        }
        connect(node, family);
        let before = answers(node, family);
        assert_eq!(before.frame[..6], ROUTER);

        node.ip(TURN[family]);

        assert_eq!(source(&answers(node, family)), UP1.mac);
    });
}
