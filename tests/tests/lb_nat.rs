//! Pods as backends: packets to services are translated to them, and their answers back.

use fairlead_common::addr::{Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::route::node_flags;
use fairlead_common::service::{Slot, flags, forward};
use fairlead_common::snat::State;
use fairlead_common::tables::{BackendStats, NatRecent};
use fairlead_tests::kernel::{
    Action, Node, POD, POD0, ROUTER, TUNNEL_V4, TUNNEL_V6, UP0, addr_of, flow, on_a_node,
};
use fairlead_tests::packet::{Packet, eth, tcp};
use rstest::rstest;

const SERVICE: [&str; 2] = ["192.0.2.80", "2001:db8::80"];
const CLIENT: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const POD_ADDR: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
/// A balancer on another node.
const OTHER_NODE: [&str; 2] = ["10.50.0.9", "fd00:50::9"];

/// The families.
const V4: usize = 0;
const V6: usize = 1;

fn ring(backend: u32) -> [Slot; 1] {
    [Slot {
        current: backend,
        previous: 0,
    }]
}

/// The pod listens on port 8080 behind TCP and UDP services at port 80.
fn serve(node: &mut Node, family: usize) -> u32 {
    let backend = node.backend(POD_ADDR[family], forward::HERE);
    node.listens(backend, 8080);
    for proto in [Proto::TCP, Proto::UDP] {
        node.service(SERVICE[family], 80, proto, &ring(backend));
        node.arrives_for((SERVICE[family], 80, proto), backend);
    }
    backend
}

fn asks(family: usize, proto: Proto) -> Packet {
    over(eth().ip(CLIENT[family], SERVICE[family]), proto, 40000, 80)
}

fn answers(family: usize, proto: Proto) -> Packet {
    over(
        eth().ip(POD_ADDR[family], CLIENT[family]),
        proto,
        8080,
        40000,
    )
}

fn over(packet: Packet, proto: Proto, from: u16, to: u16) -> Packet {
    match proto {
        Proto::TCP => packet.tcp(from, to).payload(*b"hello"),
        _ => packet.udp(from, to).payload(*b"hello"),
    }
}

#[rstest]
fn a_packet_is_translated_to_the_pod_and_its_answer_back(
    #[values(V4, V6)] family: usize,
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        serve(node, family);

        let ran = node.arrives(UP0, &asks(family, proto));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceTranslated, Action::Redirect)
        );
        let expected = over(
            eth().ip(CLIENT[family], POD_ADDR[family]),
            proto,
            40000,
            8080,
        );
        assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());

        let ran = node.pod_sends(&answers(family, proto));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceAnswered, Action::Redirect)
        );
        let expected = over(eth().ip(SERVICE[family], CLIENT[family]), proto, 80, 40000);
        assert_eq!(ran.frame, expected.ttl(63).macs(UP0.mac, ROUTER).bytes());
    });
}

#[test]
fn a_udp_packet_without_a_checksum_stays_without() {
    on_a_node(|node| {
        serve(node, V4);
        let asked = eth().ip(CLIENT[V4], SERVICE[V4]).udp(40000, 80);
        let answered = eth().ip(POD_ADDR[V4], CLIENT[V4]).udp(8080, 40000);

        let ran = node.arrives(UP0, &asked.without_checksum());
        assert_eq!(ran.reason, Reason::ServiceTranslated);
        assert_eq!(ran.frame[40..42], [0, 0]);
        let ran = node.pod_sends(&answered.without_checksum());
        assert_eq!(ran.reason, Reason::ServiceAnswered);
        assert_eq!(ran.frame[40..42], [0, 0]);
    });
}

#[rstest]
fn a_packet_out_of_another_nodes_tunnel_is_translated_for_the_pod_that_it_names(
    #[values(V4, V6)] family: usize,
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        let backend = serve(node, family);
        let wrapped = eth()
            .ip(OTHER_NODE[family], POD_ADDR[family])
            .ip(CLIENT[family], SERVICE[family]);

        let ran = node.arrives(UP0, &over(wrapped, proto, 40000, 80));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceTranslated, Action::Redirect)
        );
        let expected = over(
            eth().ip(CLIENT[family], POD_ADDR[family]),
            proto,
            40000,
            8080,
        );
        assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());
        assert_eq!(node.count::<BackendStats>(&backend).packets, 1);
    });
}

#[test]
fn a_tunnels_packet_that_is_for_no_backend_of_ours_is_left_alone() {
    on_a_node(|node| {
        serve(node, V4);
        let to = |outer: &str, service: &str| {
            let wrapped = eth().ip(OTHER_NODE[V4], outer).ip(CLIENT[V4], service);
            over(wrapped, Proto::TCP, 40000, 80)
        };

        // To the pod, but for no service of ours: it may have a tunnel of its own.
        let ran = node.arrives(UP0, &to(POD_ADDR[V4], "192.0.2.81"));
        assert_eq!(ran.reason, Reason::Routed);
        assert_eq!(ran.frame[23], 4);
        // For a service of ours, but to somebody else.
        let ran = node.arrives(UP0, &to(TUNNEL_V4, SERVICE[V4]));
        assert_eq!(ran.reason, Reason::Local);
    });
}

#[test]
fn what_a_pod_sends_from_its_port_without_having_been_asked_is_routed_as_it_is() {
    on_a_node(|node| {
        serve(node, V4);

        let ran = node.pod_sends(&answers(V4, Proto::TCP));

        assert_eq!(ran.reason, Reason::Routed);
        assert_eq!(ran.frame[26..30], [10, 244, 1, 5]);
    });
}

#[test]
fn a_flow_is_kept_once_its_backend_has_taken_it_up() {
    on_a_node(|node| {
        serve(node, V4);
        let sends = |node: &mut Node, flags: u8| {
            let ran = node.arrives(
                UP0,
                &eth()
                    .ip(CLIENT[V4], SERVICE[V4])
                    .tcp(40000, 80)
                    .flags(flags),
            );
            assert_eq!(ran.reason, Reason::ServiceTranslated);
        };
        let answers = |node: &mut Node, flags: u8| {
            let ran = node.pod_sends(
                &eth()
                    .ip(POD_ADDR[V4], CLIENT[V4])
                    .tcp(8080, 40000)
                    .flags(flags),
            );
            assert_eq!(ran.reason, Reason::ServiceAnswered);
        };
        let key = flow((POD_ADDR[V4], 8080), (CLIENT[V4], 40000), Proto::TCP);
        let kept = |node: &mut Node| {
            let (_, row) = node.kept_flow(&key)?;
            assert_eq!(
                (row.inside, row.inside_port),
                (addr_of(SERVICE[V4]), Port::new(80))
            );
            Some(State::from_row(row.state))
        };

        sends(node, tcp::SYN);
        answers(node, tcp::SYN | tcp::ACK);
        sends(node, tcp::ACK);
        assert_eq!(kept(node), None, "the handshake proves nothing to us");
        assert!(node.get::<NatRecent>(&key).is_some());
        answers(node, tcp::ACK);
        assert_eq!(kept(node), Some(State::Established));
        sends(node, tcp::FIN | tcp::ACK);
        answers(node, tcp::FIN | tcp::ACK);
        assert_eq!(kept(node), Some(State::Closed));
        sends(node, tcp::SYN);
        assert_eq!(kept(node), Some(State::New), "the same ports are used anew");
        answers(node, tcp::RST);
        assert_eq!(kept(node), Some(State::Reset));
    });
}

#[test]
fn a_flood_of_openings_evicts_no_flow_that_goes_on() {
    on_a_node(|node| {
        serve(node, V4);
        for flags in [tcp::SYN, tcp::ACK] {
            node.arrives(
                UP0,
                &eth()
                    .ip(CLIENT[V4], SERVICE[V4])
                    .tcp(40000, 80)
                    .flags(flags),
            );
            node.pod_sends(&eth().ip(POD_ADDR[V4], CLIENT[V4]).tcp(8080, 40000));
        }
        for host in 0..64 {
            for port in 0..64 {
                let client = format!("198.18.{host}.1");
                let opening = eth()
                    .ip(&client, SERVICE[V4])
                    .tcp(1024 + port, 80)
                    .flags(tcp::SYN);
                assert_eq!(
                    node.arrives(UP0, &opening).reason,
                    Reason::ServiceTranslated
                );
                let accepted = eth().ip(POD_ADDR[V4], &client).tcp(8080, 1024 + port);
                let ran = node.pod_sends(&accepted.flags(tcp::SYN | tcp::ACK));
                assert_eq!(ran.reason, Reason::ServiceAnswered);
            }
        }

        let ran = node.pod_sends(&answers(V4, Proto::TCP));

        assert_eq!(ran.reason, Reason::ServiceAnswered);
        let key = flow((POD_ADDR[V4], 8080), (CLIENT[V4], 40000), Proto::TCP);
        assert!(node.kept_flow(&key).is_some());
        for (host, port) in (0..64).flat_map(|host| (0..64).map(move |port| (host, port))) {
            let client = format!("198.18.{host}.1");
            let key = flow((POD_ADDR[V4], 8080), (&client, 1024 + port), Proto::TCP);
            assert_eq!(node.kept_flow(&key), None);
        }
    });
}

#[test]
fn a_flow_that_was_forgotten_is_restored_by_its_next_packet() {
    on_a_node(|node| {
        serve(node, V4);
        let key = flow((POD_ADDR[V4], 8080), (CLIENT[V4], 40000), Proto::TCP);
        node.arrives(UP0, &asks(V4, Proto::TCP));
        node.remove::<NatRecent>(&key);

        node.arrives(UP0, &asks(V4, Proto::TCP));

        let ran = node.pod_sends(&answers(V4, Proto::TCP));
        assert_eq!(ran.reason, Reason::ServiceAnswered);
    });
}

#[test]
fn one_port_of_a_client_cannot_reach_one_backend_by_two_services() {
    on_a_node(|node| {
        let backend = serve(node, V4);
        for proto in [Proto::TCP, Proto::UDP] {
            node.service("192.0.2.81", 80, proto, &ring(backend));
        }
        let by = |service: &str, proto| over(eth().ip(CLIENT[V4], service), proto, 40000, 80);
        for packet in [asks(V4, Proto::TCP), asks(V4, Proto::UDP)] {
            node.arrives(UP0, &packet);
        }
        node.pod_sends(&answers(V4, Proto::TCP));

        let ran = node.arrives(UP0, &by("192.0.2.81", Proto::TCP));
        assert_eq!(ran.reason, Reason::ServiceFlowTaken);
        // A datagram opens no connection: the last question is answered.
        let ran = node.arrives(UP0, &by("192.0.2.81", Proto::UDP));
        assert_eq!(ran.reason, Reason::ServiceTranslated);
        let ran = node.pod_sends(&answers(V4, Proto::UDP));
        assert_eq!(ran.frame[26..30], [192, 0, 2, 81]);
    });
}

#[rstest]
fn a_process_of_this_node_gets_the_packet_from_the_stack_and_answers_as_the_service(
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        let backend = node.backend(TUNNEL_V4, forward::HERE);
        node.listens(backend, 8080);
        node.set_flags(backend, flags::ALIVE | flags::STACK);
        node.service(SERVICE[V4], 80, proto, &ring(backend));
        node.change(|row| row.flags |= node_flags::ANSWERS_LEAVE);

        let ran = node.arrives(UP0, &asks(V4, proto));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceToStack, Action::Pass)
        );
        let expected = over(eth().ip(CLIENT[V4], TUNNEL_V4), proto, 40000, 8080);
        assert_eq!(ran.frame, expected.macs(ROUTER, UP0.mac).bytes());

        let ran = node.leaves(&over(eth().ip(TUNNEL_V4, CLIENT[V4]), proto, 8080, 40000));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceAnsweredByStack, Action::Pass)
        );
        let expected = over(eth().ip(SERVICE[V4], CLIENT[V4]), proto, 80, 40000);
        assert_eq!(ran.frame, expected.macs(UP0.mac, ROUTER).bytes());
    });
}

#[rstest]
fn a_process_of_this_node_answers_a_pod_as_the_service(
    #[values(V4, V6)] family: usize,
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        let host = [TUNNEL_V4, TUNNEL_V6][family];
        let pod = POD_ADDR[family];
        let backend = node.backend(host, forward::HERE);
        node.listens(backend, 8080);
        node.set_flags(backend, flags::ALIVE | flags::STACK);
        node.service(SERVICE[family], 80, proto, &ring(backend));
        node.change(|row| row.flags |= node_flags::ANSWERS_LEAVE);

        let ran = node.pod_sends(&over(eth().ip(pod, SERVICE[family]), proto, 40000, 80));

        assert_eq!(ran.reason, Reason::ServiceToStack);
        let expected = over(eth().ip(pod, host), proto, 40000, 8080);
        assert_eq!(ran.frame, expected.macs(POD, POD0.mac).bytes());

        let ran = node.reaches_pod(&over(eth().ip(host, pod), proto, 8080, 40000));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceAnsweredByStack, Action::Pass)
        );
        let expected = over(eth().ip(SERVICE[family], pod), proto, 80, 40000);
        assert_eq!(ran.frame, expected.macs(POD0.mac, POD).bytes());
    });
}

#[test]
fn what_reaches_a_pod_and_is_no_answer_is_neither_changed_nor_counted() {
    on_a_node(|node| {
        let backend = node.backend(TUNNEL_V4, forward::HERE);
        node.listens(backend, 8080);
        node.change(|row| row.flags |= node_flags::ANSWERS_LEAVE);
        let from_a_backend = eth().ip(TUNNEL_V4, POD_ADDR[V4]).tcp(8080, 40000);
        let from_a_client = eth().ip(CLIENT[V4], POD_ADDR[V4]).tcp(40000, 8080);

        for packet in [from_a_backend, from_a_client] {
            node.reaches_pod_unseen(&packet);
        }
    });
}

#[rstest]
fn a_pod_reaches_itself_under_another_name(
    #[values(V4, V6)] family: usize,
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        serve(node, family);
        let pod = POD_ADDR[family];
        let mirror = ["169.254.42.1", "100::a9fe:2a01"][family];

        let ran = node.pod_sends(&over(eth().ip(pod, SERVICE[family]), proto, 40000, 80));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceTranslated, Action::Redirect)
        );
        let expected = over(eth().ip(mirror, pod), proto, 40000, 8080);
        assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());

        let ran = node.pod_sends(&over(eth().ip(pod, mirror), proto, 8080, 40000));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceAnswered, Action::Redirect)
        );
        let expected = over(eth().ip(SERVICE[family], pod), proto, 80, 40000);
        assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());
    });
}

#[rstest]
fn a_pod_reaches_a_pod_of_another_node_through_a_tunnel(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        let far = ["10.50.0.1", "fd00:50::1"][family];
        let backend = node.backend(far, forward::ENCAPSULATE);
        node.service(SERVICE[family], 80, Proto::TCP, &ring(backend));
        let packet = over(
            eth().ip(POD_ADDR[family], SERVICE[family]),
            Proto::TCP,
            40000,
            80,
        );

        let ran = node.pod_sends(&packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceEncapsulated, Action::Redirect)
        );
        let header = [20, 40][family];
        assert_eq!(
            ran.frame[..12],
            packet.clone().macs(UP0.mac, ROUTER).bytes()[..12]
        );
        assert_eq!(ran.frame[14 + header..], packet.bytes()[14..]);
    });
}
