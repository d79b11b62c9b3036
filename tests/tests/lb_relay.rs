//! Full NAT: hosts that do not carry the service's address answer the node.

use fairlead_common::addr::{Cidr4, Port, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::route::{NATIVE_CIDRS, node_flags};
use fairlead_common::service::{Slot, forward};
use fairlead_common::snat::{State, bucket, whose};
use fairlead_common::tables::{BackendStats, NatRecent, SnatRev};
use fairlead_tests::kernel::{
    Action, BACKEND0, EGRESS, Node, POD, POD0, ROUTER, Ran, TUNNEL_V4, TUNNEL_V6, UP0, addr_of,
    flow, on_a_node,
};
use fairlead_tests::packet::{Packet, eth, tcp};
use rstest::rstest;

const SERVICE: [&str; 2] = ["192.0.2.80", "2001:db8::80"];
const CLIENT: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const POD_ADDR: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
const BACKEND: [&str; 2] = ["10.1.0.11", "fd00:1::11"];
const OWN: [&str; 2] = [TUNNEL_V4, TUNNEL_V6];

/// The families.
const V4: usize = 0;
const V6: usize = 1;

/// A host listens on port 8080 behind a service at port 80.
fn serve(node: &mut Node, family: usize, proto: Proto) -> u32 {
    let current = node.backend(BACKEND[family], forward::NAT);
    node.listens(current, 8080);
    let ring = [Slot {
        current,
        previous: 0,
    }];
    node.service(SERVICE[family], 80, proto, &ring);
    node.change(|row| row.flags |= node_flags::ANSWERS_RETURN);
    current
}

fn over(packet: Packet, proto: Proto, from: u16, to: u16) -> Packet {
    match proto {
        Proto::TCP => packet.tcp(from, to).payload(*b"hello"),
        _ => packet.udp(from, to).payload(*b"hello"),
    }
}

/// The port at the node's address under which a packet left for the backend.
fn port_of(ran: &Ran, family: usize) -> u16 {
    let at = [34, 54][family];
    u16::from_be_bytes([ran.frame[at], ran.frame[at + 1]])
}

#[rstest]
fn a_client_reaches_the_host_from_the_node_and_is_answered_by_the_service(
    #[values(V4, V6)] family: usize,
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        let backend = serve(node, family, proto);
        let asks = over(eth().ip(CLIENT[family], SERVICE[family]), proto, 40000, 80);

        let ran = node.arrives(UP0, &asks);

        assert_eq!(ran.reason, Reason::ServiceTranslated);
        let port = port_of(&ran, family);
        assert!([1, 60].contains(&bucket(Port::new(port))), "{port}");
        let expected = over(eth().ip(OWN[family], BACKEND[family]), proto, port, 8080);
        assert_eq!(ran.frame, expected.ttl(63).macs(UP0.mac, BACKEND0).bytes());
        assert_eq!(node.count::<BackendStats>(&backend).packets, 1);
        // The next packet leaves by the same port.
        assert_eq!(port_of(&node.arrives(UP0, &asks), family), port);

        let answers = over(eth().ip(BACKEND[family], OWN[family]), proto, 8080, port);
        let ran = node.arrives(UP0, &answers);

        assert_eq!(ran.reason, Reason::ServiceAnswered);
        let expected = over(eth().ip(SERVICE[family], CLIENT[family]), proto, 80, 40000);
        assert_eq!(ran.frame, expected.ttl(63).macs(UP0.mac, ROUTER).bytes());
    });
}

#[rstest]
fn a_pod_reaches_the_host_from_the_node_and_is_answered_by_the_service(
    #[values(V4, V6)] family: usize,
    #[values(Proto::TCP, Proto::UDP)] proto: Proto,
) {
    on_a_node(|node| {
        serve(node, family, proto);
        let pod = POD_ADDR[family];

        let ran = node.pod_sends(&over(eth().ip(pod, SERVICE[family]), proto, 40000, 80));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceTranslated, Action::Redirect)
        );
        let port = port_of(&ran, family);
        let expected = over(eth().ip(OWN[family], BACKEND[family]), proto, port, 8080);
        assert_eq!(ran.frame, expected.ttl(63).macs(UP0.mac, BACKEND0).bytes());

        let answers = over(eth().ip(BACKEND[family], OWN[family]), proto, 8080, port);
        let ran = node.arrives(UP0, &answers);

        assert_eq!(ran.reason, Reason::ServiceAnswered);
        let expected = over(eth().ip(SERVICE[family], pod), proto, 80, 40000);
        assert_eq!(ran.frame, expected.ttl(63).macs(POD0.mac, POD).bytes());
    });
}

#[test]
fn what_a_host_sends_to_the_node_and_is_no_answer_is_the_nodes() {
    on_a_node(|node| {
        serve(node, V4, Proto::TCP);

        let ran = node.arrives(UP0, &eth().ip(BACKEND[V4], TUNNEL_V4).tcp(8080, 40000));

        assert_eq!(ran.reason, Reason::Local);
    });
}

#[test]
fn a_pods_own_connection_to_the_host_is_another_flow() {
    on_a_node(|node| {
        serve(node, V4, Proto::TCP);
        // Pods leave under the address that clients of services do.
        node.change(|row| {
            row.egress = addr_of(TUNNEL_V4);
            row.native = [Cidr4::NONE; NATIVE_CIDRS];
            row.flags |= node_flags::EGRESS_IS_LOCAL;
        });
        let to = |dst: &str, port: u16| eth().ip(POD_ADDR[V4], dst).tcp(40000, port);
        let by_service = node.pod_sends(&to(SERVICE[V4], 80));
        let directly = node.leaves(&to(BACKEND[V4], 8080));
        assert_eq!(directly.reason, Reason::Translated);
        let ports = [by_service, directly].map(|ran| port_of(&ran, V4));
        assert_ne!(ports[0], ports[1]);

        let answer = |port: u16| eth().ip(BACKEND[V4], TUNNEL_V4).tcp(8080, port);
        let ran = node.arrives(UP0, &answer(ports[0]));
        assert_eq!(ran.reason, Reason::ServiceAnswered);
        assert_eq!(ran.frame[26..30], [192, 0, 2, 80]);
        let ran = node.arrives(UP0, &answer(ports[1]));
        assert_eq!(ran.reason, Reason::TranslatedBack);
        assert_eq!(ran.frame[26..30], [10, 1, 0, 11]);
    });
}

#[test]
fn an_answer_whose_service_is_forgotten_is_dropped_until_the_client_sends_again() {
    on_a_node(|node| {
        serve(node, V4, Proto::TCP);
        let asks = eth().ip(CLIENT[V4], SERVICE[V4]).tcp(40000, 80);
        let port = port_of(&node.arrives(UP0, &asks), V4);
        let key = flow((BACKEND[V4], 8080), (CLIENT[V4], 40000), Proto::TCP);
        node.remove::<NatRecent>(&key);
        let answers = eth().ip(BACKEND[V4], TUNNEL_V4).tcp(8080, port);

        assert_eq!(node.arrives(UP0, &answers).reason, Reason::NoBinding);

        node.arrives(UP0, &asks);
        assert_eq!(node.arrives(UP0, &answers).reason, Reason::ServiceAnswered);
    });
}

#[test]
fn a_flow_is_remembered_with_its_client_and_how_far_it_has_come() {
    on_a_node(|node| {
        serve(node, V4, Proto::TCP);
        let asks = eth().ip(CLIENT[V4], SERVICE[V4]).tcp(40000, 80);
        let port = port_of(&node.arrives(UP0, &asks.clone().flags(tcp::SYN)), V4);
        let key = flow((TUNNEL_V4, port), (BACKEND[V4], 8080), Proto::TCP);
        let row = node.get::<SnatRev>(&key).expect("a row");
        assert_eq!(
            (row.inside, row.inside_port, row.whose),
            (addr_of(CLIENT[V4]), Port::new(40000), whose::CLIENT)
        );
        assert_eq!(State::from_row(row.state), State::New);

        node.arrives(UP0, &eth().ip(BACKEND[V4], TUNNEL_V4).tcp(8080, port));

        let row = node.get::<SnatRev>(&key).expect("a row");
        assert_eq!(State::from_row(row.state), State::Established);
    });
}

#[test]
fn what_is_not_plain_or_leads_nowhere_is_dropped_with_its_reason() {
    on_a_node(|node| {
        serve(node, V4, Proto::TCP);
        let to = || eth().ip(CLIENT[V4], SERVICE[V4]);
        let tagged = eth().vlan(10).ip(CLIENT[V4], SERVICE[V4]).tcp(40000, 80);
        let quoted = eth().ip(SERVICE[V4], CLIENT[V4]).tcp(80, 40000);
        for packet in [
            tagged,
            to().options(&[1, 1, 1, 1]).tcp(40000, 80),
            to().icmp(3, 4, 1400).inside(&quoted),
        ] {
            assert_eq!(
                node.arrives(UP0, &packet).reason,
                Reason::ServiceUntranslated
            );
        }
        node.change(|row| row.tunnel_v4 = addr_of(EGRESS));
        node.change(|row| row.own_buckets = [0; 64]);
        let ran = node.arrives(UP0, &to().tcp(40001, 80));
        assert_eq!(ran.reason, Reason::PortsExhausted);
    });
}
