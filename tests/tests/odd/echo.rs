//! Echo requests to the address of a service.

use super::*;

fn answer(packet: &Packet) -> Vec<u8> {
    packet.clone().ttl(64).macs(UP0.mac, ROUTER).bytes()
}

#[rstest]
#[case::ipv4(
    eth().ip(CLIENT_V4, SERVICE_V4).ttl(9).traffic_class(0xb9).ping(77, 3).payload(*b"odd"),
    eth().ip(SERVICE_V4, CLIENT_V4).traffic_class(0xb9).pong(77, 3).payload(*b"odd")
)]
#[case::a_ttl_of_one(
    eth().ip(CLIENT_V4, SERVICE_V4).ttl(1).ping(77, 3),
    eth().ip(SERVICE_V4, CLIENT_V4).pong(77, 3)
)]
#[case::ipv6(
    eth().ip(CLIENT_V6, SERVICE_V6).ttl(9).icmp(128, 0, 77).payload(*b"odd"),
    eth().ip(SERVICE_V6, CLIENT_V6).icmp(129, 0, 77).payload(*b"odd")
)]
#[case::tagged(
    eth().vlan(10).ip(CLIENT_V4, SERVICE_V4).ping(77, 3),
    eth().vlan(10).ip(SERVICE_V4, CLIENT_V4).pong(77, 3)
)]
#[case::twice_tagged_ipv6(
    eth().vlan(7).vlan(10).ip(CLIENT_V6, SERVICE_V6).icmp(128, 0, 77),
    eth().vlan(7).vlan(10).ip(SERVICE_V6, CLIENT_V6).icmp(129, 0, 77)
)]
fn a_request_to_a_service_address_is_answered(#[case] packet: Packet, #[case] reply: Packet) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceEcho, Action::Back)
        );
        assert_eq!(ran.frame, answer(&reply));
    });
}

#[rstest]
#[case::ipv4(eth().ip(CLIENT_V4, SERVICE_V4).ping(77, 3))]
#[case::ipv6(eth().ip(CLIENT_V6, SERVICE_V6).icmp(128, 0, 77))]
fn where_no_service_has_a_backend_nobody_answers(#[case] packet: Packet) {
    on_a_node(|node| {
        serve(node, &[]);

        assert_eq!(
            node.arrives(UP0, &packet).reason,
            Reason::ServiceEchoUnserved
        );
    });
}

#[rstest]
#[case::options(eth().ip(CLIENT_V4, SERVICE_V4).options(&[7, 7, 4, 0, 0, 0, 0, 0]).ping(1, 1), Reason::ServiceHeaders)]
#[case::extensions(eth().ip(CLIENT_V6, SERVICE_V6).extension(60, &[0; 7]).icmp(128, 0, 1), Reason::ServiceHeaders)]
#[case::from_loopback(eth().ip("127.0.0.1", SERVICE_V4).ping(1, 1), Reason::Unforwardable)]
#[case::from_a_group(eth().ip("224.0.0.1", SERVICE_V4).ping(1, 1), Reason::Unforwardable)]
#[case::from_a_service_address(eth().ip(SERVICE_V4, SERVICE_V4).ping(1, 1), Reason::Unforwardable)]
#[case::from_nowhere(eth().ip("::", SERVICE_V6).icmp(128, 0, 1), Reason::Unforwardable)]
#[case::a_reply(eth().ip(CLIENT_V4, SERVICE_V4).pong(1, 1), Reason::ServiceOther)]
#[case::a_timestamp(eth().ip(CLIENT_V4, SERVICE_V4).icmp(13, 0, 1).payload([0; 12]), Reason::ServiceOther)]
#[case::neighbour_discovery(eth().ip(CLIENT_V6, SERVICE_V6).icmp(135, 0, 0).payload([0; 16]), Reason::Local)]
fn what_must_not_be_answered_is_not(#[case] packet: Packet, #[case] reason: Reason) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        assert_eq!(node.arrives(UP0, &packet).reason, reason);
    });
}

#[test]
fn other_addresses_are_the_stacks() {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        let ran = node.arrives(UP0, &eth().ip(CLIENT_V4, "10.1.0.1").ping(1, 1));

        assert_eq!(ran.reason, Reason::Local);
    });
}
