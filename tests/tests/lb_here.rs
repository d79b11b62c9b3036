//! What is not plain, to pods of this node and from them: fragments, options, extension headers, tags, ICMP errors,
//! packets that do not fit; by itself and out of other nodes' tunnels.

use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, flags, forward};
use fairlead_common::tables::{BackendStats, NatRecent};
use fairlead_tests::kernel::{
    Action, Node, POD, POD0, ROUTER, Ran, TUNNEL_V4, UP0, flow, on_a_node,
};
use fairlead_tests::packet::{Packet, eth};
use rstest::rstest;

const SERVICE: [&str; 2] = ["192.0.2.80", "2001:db8::80"];
const CLIENT: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const POD_ADDR: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
/// A balancer on another node.
const OTHER_NODE: [&str; 2] = ["10.50.0.9", "fd00:50::9"];
/// A router on the way to the client.
const HOP: [&str; 2] = ["198.51.100.77", "2001:db8:77::7"];

/// The families.
const V4: usize = 0;
const V6: usize = 1;

/// The pod listens on port 8080 behind TCP and UDP services at port 80.
fn serve(node: &mut Node, family: usize) -> u32 {
    let backend = node.backend(POD_ADDR[family], forward::HERE);
    node.listens(backend, 8080);
    let slot = Slot {
        current: backend,
        previous: 0,
    };
    for proto in [Proto::TCP, Proto::UDP] {
        node.service(SERVICE[family], 80, proto, &[slot]);
        node.arrives_for((SERVICE[family], 80, proto), backend);
    }
    backend
}

/// One shape of a packet, between any two ends.
type Shape = fn(usize, Packet, (&str, &str), (u16, u16)) -> Packet;

fn options(family: usize, packet: Packet, ends: (&str, &str), ports: (u16, u16)) -> Packet {
    let packet = packet.ip(ends.0, ends.1);
    let packet = match family {
        V4 => packet.options(&[1; 8]),
        _ => packet.extension(60, &[0; 7]),
    };
    packet.tcp(ports.0, ports.1).payload(*b"hello")
}

fn most_options(family: usize, packet: Packet, ends: (&str, &str), ports: (u16, u16)) -> Packet {
    let packet = packet.ip(ends.0, ends.1);
    let packet = match family {
        V4 => packet.options(&[1; 40]),
        // 24 bytes are two units more than the first.
        _ => packet
            .extension(0, &[&[2], &[0; 22][..]].concat())
            .extension(60, &[0; 7]),
    };
    packet.udp(ports.0, ports.1).payload(*b"hello")
}

fn first_fragment(family: usize, packet: Packet, ends: (&str, &str), ports: (u16, u16)) -> Packet {
    let packet = packet.ip(ends.0, ends.1);
    let packet = match family {
        V4 => packet.id(77).fragment(0, true),
        _ => packet.fragment_header(77, 0, true),
    };
    packet.udp(ports.0, ports.1).payload([7; 24])
}

fn later_fragment(family: usize, packet: Packet, ends: (&str, &str), _: (u16, u16)) -> Packet {
    let packet = packet.ip(ends.0, ends.1);
    match family {
        V4 => packet.id(77).fragment(4, false).proto(17).payload([8; 21]),
        _ => packet
            .fragment_header(77, 4, false)
            .next(17)
            .payload([8; 21]),
    }
}

fn plain(_: usize, packet: Packet, ends: (&str, &str), ports: (u16, u16)) -> Packet {
    packet
        .ip(ends.0, ends.1)
        .tcp(ports.0, ports.1)
        .payload(*b"hello")
}

/// A client's packet of this shape, in front of which stands what is given.
fn asks(family: usize, shape: Shape, front: Packet) -> Packet {
    let ends = (CLIENT[family], SERVICE[family]);
    front.inside(&shape(family, eth(), ends, (40000, 80)))
}

fn answers(family: usize, shape: Shape) -> Packet {
    shape(
        family,
        eth(),
        (POD_ADDR[family], CLIENT[family]),
        (8080, 40000),
    )
}

fn is_at_the_pod(ran: &Ran, family: usize, shape: Shape) {
    assert_eq!(
        (ran.reason, ran.action),
        (Reason::ServiceTranslated, Action::Redirect)
    );
    let expected = shape(
        family,
        eth(),
        (CLIENT[family], POD_ADDR[family]),
        (40000, 8080),
    );
    assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());
}

fn is_at_the_client(ran: &Ran, family: usize, shape: Shape) {
    assert_eq!(
        (ran.reason, ran.action),
        (Reason::ServiceAnswered, Action::Redirect)
    );
    let expected = shape(
        family,
        eth(),
        (SERVICE[family], CLIENT[family]),
        (80, 40000),
    );
    assert_eq!(ran.frame, expected.ttl(63).macs(UP0.mac, ROUTER).bytes());
}

/// What can stand in front of a client's packet.
#[derive(Clone, Copy, Debug)]
enum Front {
    Nothing,
    Tag,
    TwoTags,
    Tunnel,
    TaggedTunnel,
    Gue,
}

impl Front {
    fn packet(self, family: usize) -> Packet {
        let tunnel = |packet: Packet| packet.ip(OTHER_NODE[family], POD_ADDR[family]);
        match self {
            Self::Nothing => eth(),
            Self::Tag => eth().vlan(10),
            Self::TwoTags => eth().vlan(7).vlan(10),
            Self::Tunnel => tunnel(eth()),
            Self::TaggedTunnel => tunnel(eth().vlan(10)),
            Self::Gue => tunnel(eth()).udp(50000, 6080).without_checksum(),
        }
    }
}

#[rstest]
fn whatever_its_shape_and_whatever_stands_before_it_a_packet_is_translated_to_the_pod(
    #[values(V4, V6)] family: usize,
    #[values(
        Front::Nothing,
        Front::Tag,
        Front::TwoTags,
        Front::Tunnel,
        Front::TaggedTunnel,
        Front::Gue
    )]
    front: Front,
) {
    on_a_node(|node| {
        let backend = serve(node, family);
        let shapes: [Shape; 5] = [plain, options, most_options, first_fragment, later_fragment];
        for (before, shape) in (0..).zip(shapes) {
            assert_eq!(node.count::<BackendStats>(&backend).packets, before);

            let ran = node.arrives(UP0, &asks(family, shape, front.packet(family)));

            is_at_the_pod(&ran, family, shape);
        }
    });
}

#[rstest]
fn an_answer_of_any_shape_comes_from_the_service(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        for shape in [plain as Shape, most_options] {
            node.arrives(UP0, &asks(family, shape, eth()));
        }
        let shapes: [Shape; 4] = [options, most_options, first_fragment, later_fragment];
        for shape in shapes {
            let ran = node.pod_sends(&answers(family, shape));

            is_at_the_client(&ran, family, shape);
        }
    });
}

#[rstest]
fn what_a_pod_sends_to_nobody_who_asked_is_left_to_the_stack_or_routed(
    #[values(V4, V6)] family: usize,
) {
    on_a_node(|node| {
        serve(node, family);

        for (shape, reason) in [
            (options as Shape, Reason::IpOptions),
            (first_fragment, Reason::Fragment),
            (later_fragment, Reason::Fragment),
        ] {
            let ran = node.pod_sends(&answers(family, shape));
            assert_eq!((ran.reason, ran.action), (reason, Action::Pass));
        }
        let about = plain(
            family,
            eth(),
            (CLIENT[family], POD_ADDR[family]),
            (40000, 8080),
        );
        let ran =
            node.pod_sends(&unreachable(family, POD_ADDR[family], CLIENT[family]).inside(&about));
        assert_eq!((ran.reason, ran.action), (Reason::Routed, Action::Redirect));
    });
}

fn unreachable(family: usize, from: &str, to: &str) -> Packet {
    let packet = eth().ip(from, to);
    match family {
        V4 => packet.icmp(3, 3, 0),
        _ => packet.icmp(1, 4, 0),
    }
}

fn too_big(family: usize, packet: Packet, from: &str, to: &str, mtu: u32) -> Packet {
    let packet = packet.ip(from, to);
    match family {
        V4 => packet.icmp(3, 4, mtu),
        _ => packet.icmp(2, 0, mtu),
    }
}

/// An answer as the client's side sees it, and as the pod has sent it.
fn answer_outside(family: usize, shape: Shape) -> Packet {
    shape(
        family,
        eth(),
        (SERVICE[family], CLIENT[family]),
        (80, 40000),
    )
    .ttl(3)
}

fn answer_inside(family: usize, shape: Shape) -> Packet {
    shape(
        family,
        eth(),
        (POD_ADDR[family], CLIENT[family]),
        (8080, 40000),
    )
    .ttl(3)
}

#[rstest]
fn an_error_about_an_answer_reaches_the_pod_as_if_about_what_it_sent(
    #[values(V4, V6)] family: usize,
    #[values(Front::Nothing, Front::TwoTags, Front::Tunnel, Front::TaggedTunnel)] front: Front,
) {
    on_a_node(|node| {
        serve(node, family);
        let outer = |packet, to: &str| too_big(family, packet, HOP[family], to, 1400);
        let mut reaches = |quotes: &dyn Fn(Packet, &Packet) -> Packet, shape: Shape| {
            let error = outer(front.packet(family), SERVICE[family]);

            let ran = node.arrives(UP0, &quotes(error, &answer_outside(family, shape)));

            assert_eq!(
                (ran.reason, ran.action),
                (Reason::ServiceIcmpError, Action::Redirect)
            );
            let expected = outer(eth(), POD_ADDR[family]);
            let expected = quotes(expected, &answer_inside(family, shape));
            assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());
        };
        let shapes: [Shape; 4] = [plain, options, most_options, first_fragment];
        for shape in shapes {
            reaches(&|error, packet| error.inside(packet), shape);
        }
        // The eight bytes behind the header that RFC 792 asks for: without the checksum.
        let end = 14 + [28, 48][family];
        reaches(
            &|error, packet| error.payload(&packet.bytes()[14..end]),
            plain,
        );
    });
}

#[rstest]
fn an_error_about_a_request_reaches_the_client_as_if_about_what_it_sent(
    #[values(V4, V6)] family: usize,
    // The pod itself, or a router behind it.
    #[values(POD_ADDR, HOP)] by: [&str; 2],
) {
    on_a_node(|node| {
        serve(node, family);
        for shape in [plain as Shape, most_options] {
            node.arrives(UP0, &asks(family, shape, eth()));
        }
        let about = |to: &str, port: u16, shape: Shape| {
            shape(family, eth(), (CLIENT[family], to), (40000, port)).ttl(1)
        };
        let shapes: [Shape; 4] = [plain, options, most_options, first_fragment];
        for shape in shapes {
            let error = unreachable(family, by[family], CLIENT[family]);

            let ran = node.pod_sends(&error.inside(&about(POD_ADDR[family], 8080, shape)));

            assert_eq!(
                (ran.reason, ran.action),
                (Reason::ServiceIcmpError, Action::Redirect)
            );
            let expected = unreachable(family, SERVICE[family], CLIENT[family]);
            let expected = expected.inside(&about(SERVICE[family], 80, shape));
            assert_eq!(ran.frame, expected.ttl(63).macs(UP0.mac, ROUTER).bytes());
        }
    });
}

#[rstest]
fn what_does_not_fit_the_pods_link_is_told_to_the_client(
    #[values(V4, V6)] family: usize,
    #[values(Front::Nothing, Front::Tag, Front::Tunnel, Front::TaggedTunnel)] front: Front,
) {
    on_a_node(|node| {
        let backend = serve(node, family);
        node.next_hop(backend, POD0, Some(POD), 1280);
        let asked = |packet: Packet| asks(family, options, packet).payload([7; 1280]);

        let ran = node.arrives(UP0, &asked(front.packet(family)));

        assert_eq!(ran.reason, Reason::ServiceTooBigTold);
        let tag = match front {
            Front::Tag | Front::TaggedTunnel => eth().vlan(10),
            Front::Nothing | Front::TwoTags | Front::Tunnel | Front::Gue => eth(),
        };
        let quoted = [548, 1232][family];
        let expected = too_big(family, tag, SERVICE[family], CLIENT[family], 1280)
            .payload(asked(eth()).bytes()[14..14 + quoted].to_vec())
            .macs(UP0.mac, ROUTER);
        let expected = match family {
            V4 => expected.traffic_class(0xc0).id(0),
            _ => expected.flow_label(0),
        };
        assert_eq!(ran.frame, expected.bytes());
    });
}

#[rstest]
fn a_tunnels_odd_packet_that_is_for_no_backend_of_ours_is_left_alone(
    #[values(V4, V6)] family: usize,
) {
    on_a_node(|node| {
        serve(node, family);
        // To a service of ours, but to a pod that is none of its backends: the stack routes it. And to no service.
        for (pod, service, reason) in [
            (
                ["10.244.1.6", "fd00:244:1::6"][family],
                SERVICE[family],
                Reason::Wrapped,
            ),
            (
                POD_ADDR[family],
                ["192.0.2.81", "2001:db8::81"][family],
                Reason::Routed,
            ),
        ] {
            let packet = options(family, eth(), (CLIENT[family], service), (40000, 80));
            let packet = eth().ip(OTHER_NODE[family], pod).inside(&packet);

            let ran = node.arrives(UP0, &packet);

            assert_eq!(ran.reason, reason);
            assert_eq!(ran.frame[40..], packet.bytes()[40..]);
        }
    });
}

#[test]
fn a_process_of_this_node_gets_odd_packets_from_the_stack() {
    on_a_node(|node| {
        let backend = node.backend(TUNNEL_V4, forward::HERE);
        node.listens(backend, 8080);
        node.set_flags(backend, flags::ALIVE | flags::STACK);
        let slot = Slot {
            current: backend,
            previous: 0,
        };
        node.service(SERVICE[V4], 80, Proto::TCP, &[slot]);
        node.arrives_for((SERVICE[V4], 80, Proto::TCP), backend);
        let wrapped = eth().ip(OTHER_NODE[V4], TUNNEL_V4);

        for front in [eth(), eth().vlan(10), wrapped] {
            let is_tagged = front == eth().vlan(10);
            let ran = node.arrives(UP0, &asks(V4, options, front));

            assert_eq!(
                (ran.reason, ran.action),
                (Reason::ServiceToStack, Action::Pass)
            );
            let front = if is_tagged { eth().vlan(10) } else { eth() };
            let expected = options(V4, front, (CLIENT[V4], TUNNEL_V4), (40000, 8080));
            assert_eq!(ran.frame, expected.macs(ROUTER, UP0.mac).bytes());
        }
    });
}

#[rstest]
fn an_error_keeps_no_flow_alive(#[values(V4, V6)] family: usize) {
    on_a_node(|node| {
        serve(node, family);
        let key = flow(
            (POD_ADDR[family], 8080),
            (CLIENT[family], 40000),
            Proto::TCP,
        );
        let error = too_big(family, eth(), HOP[family], SERVICE[family], 1400);

        node.arrives(UP0, &error.inside(&answer_outside(family, plain)));

        assert_eq!(node.get::<NatRecent>(&key).map(|row| row.state), None);
    });
}
