//! The backend's end of a tunnel, through the real program.

use fairlead_common::reason::Reason;
use fairlead_common::tables::DecapAddrs;
use fairlead_tests::kernel::{Action, Node, ROUTER, Ran, UP0, addr_of, on_a_node};
use fairlead_tests::packet::{Packet, eth};
use rstest::rstest;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";
const BALANCER_V4: &str = "10.9.9.9";
const BALANCER_V6: &str = "fd00:9::9";
const HERE_V4: &str = "10.1.0.1";
const HERE_V6: &str = "fd00:1::1";

fn accept(node: &mut Node) {
    for addr in [SERVICE_V4, SERVICE_V6] {
        node.set::<DecapAddrs>(&addr_of(addr), &0);
    }
}

fn arrives(node: &mut Node, packet: &Packet) -> Ran {
    let frame = packet.clone().macs(ROUTER, UP0.mac).bytes();
    node.xdp("xdp_decap", UP0, &frame)
}

fn over_v4() -> Packet {
    eth().ip(BALANCER_V4, HERE_V4)
}

fn over_v6() -> Packet {
    eth().ip(BALANCER_V6, HERE_V6)
}

fn inner_v4(outer: Packet) -> Packet {
    outer
        .ip("203.0.113.9", SERVICE_V4)
        .tcp(40000, 80)
        .payload(*b"hello")
}

fn inner_v6(outer: Packet) -> Packet {
    outer
        .ip("2001:db8:9::9", SERVICE_V6)
        .udp(40000, 80)
        .payload(*b"hello")
}

#[rstest]
#[case::ipv4_in_ipv4(inner_v4(over_v4()), inner_v4(eth()))]
#[case::ipv6_in_ipv6(inner_v6(over_v6()), inner_v6(eth()))]
#[case::ipv6_in_ipv4(inner_v6(over_v4()), inner_v6(eth()))]
#[case::ipv4_in_ipv6(inner_v4(over_v6()), inner_v4(eth()))]
#[case::tagged(
    inner_v4(eth().vlan(10).ip(BALANCER_V4, HERE_V4)),
    inner_v4(eth().vlan(10))
)]
#[case::twice_tagged(
    inner_v6(eth().vlan(7).vlan(10).ip(BALANCER_V4, HERE_V4)),
    inner_v6(eth().vlan(7).vlan(10))
)]
#[case::a_fragment_inside(
    over_v4().inside(&eth().ip("203.0.113.9", SERVICE_V4).fragment(0, true).proto(6).payload([7; 24])),
    eth().ip("203.0.113.9", SERVICE_V4).fragment(0, true).proto(6).payload([7; 24])
)]
fn a_packet_for_a_service_address_loses_its_outer_header(
    #[case] packet: Packet,
    #[case] inside: Packet,
) {
    on_a_node(|node| {
        accept(node);

        let ran = arrives(node, &packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::Decapsulated, Action::Pass)
        );
        assert_eq!(ran.frame, inside.macs(ROUTER, UP0.mac).bytes());
    });
}

#[rstest]
#[case::ipv4(over_v4(), "203.0.113.9", SERVICE_V4)]
#[case::ipv6(over_v6(), "2001:db8:9::9", SERVICE_V6)]
fn a_congestion_mark_on_the_way_is_carried_inside(
    #[case] outer: Packet,
    #[case] src: &str,
    #[case] dst: &str,
) {
    on_a_node(|node| {
        accept(node);
        let outer = outer.traffic_class(3);
        let inner = |traffic_class| eth().ip(src, dst).traffic_class(traffic_class).tcp(1, 2);
        let wrapped = |traffic_class| outer.clone().inside(&inner(traffic_class));

        let marked = arrives(node, &wrapped(0xb8 | 2));
        let cannot_be_marked = arrives(node, &wrapped(0xb8));

        assert_eq!(marked.reason, Reason::Decapsulated);
        assert_eq!(marked.frame, inner(0xb8 | 3).macs(ROUTER, UP0.mac).bytes());
        assert_eq!(cannot_be_marked.reason, Reason::CongestionLost);
    });
}

#[test]
fn a_backend_that_does_not_forward_takes_packets_too() {
    on_a_node(|node| {
        accept(node);
        node.sysctl("net/ipv4/ip_forward", "0");

        let ran = arrives(node, &inner_v4(over_v4()));

        assert_eq!(ran.reason, Reason::Decapsulated);
    });
}

#[rstest]
#[case::plain_v4(eth().ip("203.0.113.9", SERVICE_V4).tcp(1, 2), Reason::NotEncapsulated)]
#[case::plain_v6(eth().ip("2001:db8:9::9", SERVICE_V6).udp(1, 2), Reason::NotEncapsulated)]
#[case::on_its_way_to_another_backend_v4(inner_v4(eth().ip(BALANCER_V4, "10.50.0.1")), Reason::NotEncapsulated)]
#[case::on_its_way_to_another_backend_v6(inner_v4(eth().ip(BALANCER_V6, "fd00:50::1")), Reason::NotEncapsulated)]
#[case::on_its_way_to_an_unknown_neighbour(inner_v4(eth().ip(BALANCER_V4, "10.1.0.77")), Reason::NotEncapsulated)]
#[case::for_another_address_v4(over_v4().ip("203.0.113.9", "192.0.2.81").tcp(1, 2), Reason::InnerForeign)]
#[case::for_another_address_v6(over_v6().ip("2001:db8:9::9", "2001:db8::81").tcp(1, 2), Reason::InnerForeign)]
#[case::options_outside(inner_v4(over_v4().options(&[1, 1, 1, 1])), Reason::IpOptions)]
#[case::a_fragment_outside(inner_v4(over_v4().fragment(0, true)), Reason::Fragment)]
#[case::no_room_inside_v4(over_v4().proto(4).payload([0x45; 19]), Reason::Malformed)]
#[case::no_room_inside_v6(over_v6().proto(41).payload([0x60; 39]), Reason::Malformed)]
#[case::the_other_version_inside(inner_v6(over_v4().proto(4)), Reason::Malformed)]
#[case::arp(eth().ether_type(0x0806).payload([0; 28]), Reason::NotIp)]
fn anything_else_is_passed_untouched(#[case] packet: Packet, #[case] reason: Reason) {
    on_a_node(|node| {
        accept(node);

        assert_eq!(arrives(node, &packet).reason, reason);
    });
}

#[rstest]
#[case::ipv4(inner_v4(over_v4()), 14 + 20 + 3)]
#[case::ipv6(inner_v6(over_v4()), 14 + 20 + 5)]
fn an_inner_packet_that_claims_more_than_the_tunnel_holds_is_malformed(
    #[case] packet: Packet,
    #[case] length_at: usize,
) {
    on_a_node(|node| {
        accept(node);
        let mut frame = packet.macs(ROUTER, UP0.mac).bytes();
        frame[length_at] += 1;

        let ran = node.xdp("xdp_decap", UP0, &frame);

        assert_eq!(ran.reason, Reason::Malformed);
    });
}
