//! Routing: plain packets from uplinks (XDP) and from pods (TC), through the real programs.

use fairlead_common::reason::Reason;
use fairlead_common::route::Device;
use fairlead_common::tables::{Devices, NodeTable};
use fairlead_tests::kernel::{
    Action, BACKEND1, LAN0, Node, POD, POD0, ROUTER, Ran, TUNNEL_V4, TUNNEL_V6, UP0, UP1, on_a_node,
};
use fairlead_tests::packet::{Mac, Packet, eth};
use rstest::rstest;

const FAR_V4: &str = "203.0.113.9";
const FAR_V6: &str = "2001:db8:9::9";
const POD_V4: &str = "10.244.1.5";
const POD_V6: &str = "fd00:244:1::5";

#[rstest]
#[case::tcp_v4_to_a_pod(eth().ip(FAR_V4, POD_V4).tcp(80, 40000), POD0.mac, POD)]
#[case::tcp_v6_to_a_pod(eth().ip(FAR_V6, POD_V6).tcp(80, 40000), POD0.mac, POD)]
#[case::udp_v4_to_a_pod(eth().ip(FAR_V4, POD_V4).udp(53, 40000).payload(*b"a"), POD0.mac, POD)]
#[case::udp_v6_to_a_pod(eth().ip(FAR_V6, POD_V6).udp(53, 40000).payload(*b"a"), POD0.mac, POD)]
#[case::icmp_to_a_pod(eth().ip(FAR_V4, POD_V4).ping(1, 2), POD0.mac, POD)]
#[case::icmpv6_to_a_pod(eth().ip(FAR_V6, POD_V6).icmp(128, 0, 7), POD0.mac, POD)]
#[case::an_icmp_error_to_a_pod(eth().ip(FAR_V4, POD_V4).icmp(3, 1, 0).payload([0; 28]), POD0.mac, POD)]
#[case::another_protocol_v4(eth().ip(FAR_V4, POD_V4).proto(50).payload(*b"esp"), POD0.mac, POD)]
#[case::another_protocol_v6(eth().ip(FAR_V6, POD_V6).proto(50).payload(*b"esp"), POD0.mac, POD)]
#[case::v4_by_another_uplink(eth().ip(FAR_V4, "10.60.0.1").tcp(1, 2), UP1.mac, BACKEND1)]
#[case::v6_by_another_uplink(eth().ip(FAR_V6, "fd00:60::1").tcp(1, 2), UP1.mac, BACKEND1)]
#[case::v4_by_the_same_uplink(eth().ip(POD_V4, FAR_V4).tcp(1, 2), UP0.mac, ROUTER)]
#[case::v6_by_the_same_uplink(eth().ip(POD_V6, FAR_V6).tcp(1, 2), UP0.mac, ROUTER)]
fn a_packet_is_forwarded_with_one_hop_less_and_new_macs(
    #[case] packet: Packet,
    #[case] from: Mac,
    #[case] to: Mac,
    #[values(64, 2)] ttl: u8,
) {
    on_a_node(|node| {
        let packet = packet.ttl(ttl);
        let expected = packet.clone().ttl(ttl - 1).macs(from, to).bytes();
        let back = from == UP0.mac;

        let by_xdp = node.arrives(UP0, &packet);
        let by_tc = node.pod_sends(&packet);

        assert_eq!(
            (by_xdp.reason, by_xdp.action),
            (
                Reason::Routed,
                if back { Action::Back } else { Action::Redirect }
            )
        );
        assert_eq!(by_xdp.frame, expected);
        assert_eq!(
            (by_tc.reason, by_tc.action),
            (Reason::Routed, Action::Redirect)
        );
        assert_eq!(by_tc.frame, expected);
    });
}

#[rstest]
#[case::local_v4(eth().ip(FAR_V4, "10.1.0.1").tcp(1, 2), Reason::Local)]
#[case::local_v6(eth().ip(FAR_V6, "fd00:1::1").tcp(1, 2), Reason::Local)]
#[case::local_with_the_last_hop_v4(eth().ip(FAR_V4, "10.1.0.1").ttl(1).tcp(1, 2), Reason::Local)]
#[case::local_with_the_last_hop_v6(eth().ip(FAR_V6, "fd00:1::1").ttl(1).tcp(1, 2), Reason::Local)]
#[case::subnet_broadcast(eth().ip(FAR_V4, "10.1.0.255").udp(1, 2), Reason::Local)]
#[case::blackhole_v4(eth().ip(FAR_V4, "10.66.0.1").tcp(1, 2), Reason::NoRoute)]
#[case::blackhole_v6(eth().ip(FAR_V6, "fd00:66::1").tcp(1, 2), Reason::NoRoute)]
#[case::not_our_device_v4(eth().ip(FAR_V4, "10.3.0.9").tcp(1, 2), Reason::OtherDevice)]
#[case::not_our_device_v6(eth().ip(FAR_V6, "fd00:3::9").tcp(1, 2), Reason::OtherDevice)]
#[case::unknown_neighbour_v4(eth().ip(FAR_V4, "10.1.0.77").tcp(1, 2), Reason::NeighbourUnresolved)]
#[case::unknown_neighbour_v6(eth().ip(FAR_V6, "fd00:1::77").tcp(1, 2), Reason::NeighbourUnresolved)]
#[case::last_hop_v4(eth().ip(FAR_V4, POD_V4).ttl(1).tcp(1, 2), Reason::TtlExceeded)]
#[case::last_hop_v6(eth().ip(FAR_V6, POD_V6).ttl(1).tcp(1, 2), Reason::TtlExceeded)]
#[case::no_hop_v4(eth().ip(FAR_V4, POD_V4).ttl(0).tcp(1, 2), Reason::TtlExceeded)]
#[case::no_hop_v6(eth().ip(FAR_V6, POD_V6).ttl(0).tcp(1, 2), Reason::TtlExceeded)]
#[case::too_large_v4(eth().ip(FAR_V4, "10.51.0.1").udp(1, 2).payload([0; 1300]), Reason::MtuExceeded)]
#[case::too_large_v6(eth().ip(FAR_V6, "fd00:51::1").udp(1, 2).payload([0; 1300]), Reason::MtuExceeded)]
#[case::options(eth().ip(FAR_V4, POD_V4).options(&[1, 1, 1, 0]).tcp(1, 2), Reason::IpOptions)]
#[case::hop_by_hop(eth().ip(FAR_V6, POD_V6).proto(0).payload([6, 0, 1, 4, 0, 0, 0, 0]), Reason::IpOptions)]
#[case::routing_header(eth().ip(FAR_V6, POD_V6).proto(43).payload([6, 0, 4, 0, 0, 0, 0, 0]), Reason::IpOptions)]
#[case::destination_options(eth().ip(FAR_V6, POD_V6).proto(60).payload([6, 0, 1, 4, 0, 0, 0, 0]), Reason::IpOptions)]
#[case::authentication_header(eth().ip(FAR_V6, POD_V6).proto(51).payload([6, 0, 1, 4, 0, 0, 0, 0]), Reason::IpOptions)]
#[case::first_fragment_v4(eth().ip(FAR_V4, POD_V4).fragment(0, true).udp(1, 2), Reason::Fragment)]
#[case::last_fragment_v4(eth().ip(FAR_V4, POD_V4).fragment(9, false).udp(1, 2), Reason::Fragment)]
#[case::fragment_v6(eth().ip(FAR_V6, POD_V6).proto(44).payload([17, 0, 0, 1, 0, 0, 0, 9]), Reason::Fragment)]
#[case::bad_header_checksum(eth().ip(FAR_V4, POD_V4).bad_header_checksum().tcp(1, 2), Reason::Malformed)]
#[case::cut_tcp_v4(eth().ip(FAR_V4, POD_V4).proto(6).payload([0; 19]), Reason::Malformed)]
#[case::cut_tcp_v6(eth().ip(FAR_V6, POD_V6).proto(6).payload([0; 19]), Reason::Malformed)]
#[case::cut_icmp(eth().ip(FAR_V4, POD_V4).proto(1).payload([8, 0, 0, 0]), Reason::Malformed)]
#[case::arp(eth().ether_type(0x0806).payload([0; 28]), Reason::NotIp)]
#[case::lldp(eth().ether_type(0x88cc).payload([0; 28]), Reason::NotIp)]
#[case::tagged_arp(eth().vlan(10).ether_type(0x0806).payload([0; 28]), Reason::NotIp)]
#[case::tagged_v4(eth().vlan(10).ip(FAR_V4, POD_V4).tcp(1, 2), Reason::Tagged)]
#[case::tagged_v6(eth().vlan(10).ip(FAR_V6, POD_V6).tcp(1, 2), Reason::Tagged)]
#[case::twice_tagged_v4(eth().vlan(7).vlan(10).ip(FAR_V4, POD_V4).tcp(1, 2), Reason::Tagged)]
#[case::thrice_tagged_v4(eth().vlan(1).vlan(7).vlan(10).ip(FAR_V4, POD_V4).tcp(1, 2), Reason::NotIp)]
#[case::from_loopback_v4(eth().ip("127.0.0.1", POD_V4).tcp(1, 2), Reason::Unforwardable)]
#[case::from_loopback_v6(eth().ip("::1", POD_V6).tcp(1, 2), Reason::Unforwardable)]
#[case::to_link_local_v4(eth().ip(FAR_V4, "169.254.1.1").tcp(1, 2), Reason::Unforwardable)]
#[case::to_link_local_v6(eth().ip(FAR_V6, "fe80::1").tcp(1, 2), Reason::Unforwardable)]
#[case::from_multicast_v4(eth().ip("224.0.0.1", POD_V4).udp(1, 2), Reason::Unforwardable)]
#[case::to_multicast_v6(eth().ip(FAR_V6, "ff02::1").udp(1, 2), Reason::Unforwardable)]
#[case::to_broadcast(eth().ip(FAR_V4, "255.255.255.255").udp(1, 2), Reason::Unforwardable)]
#[case::from_nowhere_v4(eth().ip("0.0.0.0", POD_V4).udp(1, 2), Reason::Unforwardable)]
#[case::from_nowhere_v6(eth().ip("::", POD_V6).udp(1, 2), Reason::Unforwardable)]
fn a_packet_that_is_not_forwarded_is_passed_untouched(
    #[case] packet: Packet,
    #[case] reason: Reason,
) {
    on_a_node(|node| {
        assert_eq!(node.arrives(UP0, &packet).reason, reason, "XDP");
        assert_eq!(node.pod_sends(&packet).reason, reason, "TC");
    });
}

#[rstest]
#[case::v4(eth().ip(FAR_V4, TUNNEL_V4).ping(1, 1), Reason::Local)]
#[case::v6(eth().ip(FAR_V6, TUNNEL_V6).icmp(128, 0, 7), Reason::Local)]
#[case::error_v4(eth().ip(FAR_V4, TUNNEL_V4).icmp(3, 1, 0).payload([0; 28]), Reason::Local)]
#[case::error_v6(eth().ip(FAR_V6, TUNNEL_V6).icmp(1, 0, 0).payload([0; 48]), Reason::Local)]
#[case::options(eth().ip(FAR_V4, TUNNEL_V4).options(&[1, 1, 1, 0]).ping(1, 1), Reason::IpOptions)]
#[case::first_fragment(eth().ip(FAR_V4, TUNNEL_V4).fragment(0, true).ping(1, 1), Reason::Fragment)]
#[case::last_fragment(eth().ip(FAR_V4, TUNNEL_V4).fragment(9, false).ping(1, 1), Reason::Fragment)]
#[case::cut(eth().ip(FAR_V4, TUNNEL_V4).proto(1).payload([8, 0, 0, 0]), Reason::Malformed)]
#[case::tagged_v4(eth().vlan(10).ip(FAR_V4, TUNNEL_V4).ping(1, 1), Reason::Local)]
#[case::tagged_v6(eth().vlan(10).ip(FAR_V6, TUNNEL_V6).icmp(128, 0, 7), Reason::Local)]
fn icmp_to_the_node_itself_is_the_hosts(#[case] packet: Packet, #[case] reason: Reason) {
    on_a_node(|node| {
        let ran = node.arrives(UP0, &packet);

        assert_eq!((ran.reason, ran.action), (reason, Action::Pass));
    });
}

#[rstest]
#[case::broadcast([0xff; 6])]
#[case::ipv6_multicast([0x33, 0x33, 0, 0, 0, 1])]
#[case::another_host([2, 0, 0, 9, 9, 9])]
#[case::differing_in_the_last_byte([2, 0, 0, 0, 0, 0x7f])]
fn a_frame_to_another_mac_is_passed(#[case] mac: Mac) {
    on_a_node(|node| {
        let frame = eth().macs(ROUTER, mac).ip(FAR_V4, POD_V4).tcp(1, 2).bytes();

        assert_eq!(
            node.xdp("xdp_ingress", UP0, &frame).reason,
            Reason::OtherMac
        );
        assert_eq!(
            node.tc("tc_ingress", POD0, &frame, 0).reason,
            Reason::OtherMac
        );
    });
}

fn cut(node: &mut Node, packet: &Packet, bytes: usize) -> Ran {
    let frame = packet.clone().macs(ROUTER, UP0.mac).bytes();
    node.xdp("xdp_ingress", UP0, &frame[..bytes])
}

#[rstest]
#[case::v4(eth().ip(FAR_V4, POD_V4).tcp(1, 2).payload(*b"hello"))]
#[case::v6(eth().ip(FAR_V6, POD_V6).tcp(1, 2).payload(*b"hello"))]
#[case::tagged_v4(eth().vlan(10).ip(FAR_V4, POD_V4).tcp(1, 2))]
#[case::tagged_v6(eth().vlan(10).ip(FAR_V6, POD_V6).tcp(1, 2))]
fn a_frame_cut_anywhere_behind_its_ethernet_header_is_malformed(#[case] packet: Packet) {
    on_a_node(|node| {
        let whole = packet.bytes().len();
        for bytes in 14..whole {
            assert_eq!(
                cut(node, &packet, bytes).reason,
                Reason::Malformed,
                "{bytes} bytes"
            );
        }
    });
}

#[rstest]
#[case::ipv4_says_6(0x65)]
#[case::ipv4_header_of_16_bytes(0x44)]
fn a_header_that_contradicts_itself_is_malformed(#[case] first: u8) {
    on_a_node(|node| {
        let mut frame = eth()
            .macs(ROUTER, UP0.mac)
            .ip(FAR_V4, POD_V4)
            .tcp(1, 2)
            .bytes();
        frame[14] = first;

        assert_eq!(
            node.xdp("xdp_ingress", UP0, &frame).reason,
            Reason::Malformed
        );
    });
}

#[test]
fn a_device_without_a_row_is_not_ours() {
    on_a_node(|node| {
        node.set::<Devices>(&UP1.ifindex, &Device::default());

        let ran = node.arrives(UP1, &eth().ip(FAR_V4, POD_V4).tcp(1, 2));

        assert_eq!(ran.reason, Reason::OtherDevice);
    });
}

#[test]
fn a_device_whose_row_another_one_holds_is_not_ours() {
    on_a_node(|node| {
        let row = Device {
            ifindex: UP1.ifindex + 4096,
            mac: UP1.mac,
            flags: 0,
            pad: 0,
            mtu: 1500,
        };
        node.set::<Devices>(&UP1.ifindex, &row);

        let ran = node.arrives(UP1, &eth().ip(FAR_V4, POD_V4).tcp(1, 2));

        assert_eq!(ran.reason, Reason::OtherDevice);
    });
}

#[rstest]
#[case::v4(eth().ip(POD_V4, FAR_V4))]
#[case::v6(eth().ip(POD_V6, FAR_V6))]
fn a_large_packet_that_is_cut_later_is_forwarded_whole(#[case] head: Packet) {
    on_a_node(|node| {
        let packet = head.tcp(40000, 80).payload(vec![7; 3000]);
        let frame = packet.clone().macs(POD, POD0.mac).bytes();

        let segments = node.tc("tc_ingress", POD0, &frame, 1400);
        let too_large = node.tc("tc_ingress", POD0, &frame, 0);

        assert_eq!(segments.reason, Reason::Routed);
        assert_eq!(segments.frame, packet.ttl(63).macs(UP0.mac, ROUTER).bytes());
        assert_eq!(too_large.reason, Reason::MtuExceeded);
    });
}

#[rstest]
#[case::v4(eth().ip(FAR_V4, POD_V4))]
#[case::v6(eth().ip(FAR_V6, POD_V6))]
fn a_node_that_does_not_forward_passes(#[case] head: Packet) {
    on_a_node(|node| {
        node.sysctl("net/ipv4/ip_forward", "0");
        node.sysctl("net/ipv6/conf/all/forwarding", "0");
        node.sysctl("net/ipv6/conf/up0/forwarding", "0");

        let ran = node.arrives(UP0, &head.tcp(1, 2));

        assert_eq!(ran.reason, Reason::NoRoute);
    });
}

#[test]
fn routing_needs_no_row_of_the_node() {
    on_a_node(|node| {
        node.set::<NodeTable>(&0, &bytemuck::Zeroable::zeroed());

        let ran = node.arrives(UP0, &eth().ip(FAR_V4, POD_V4).tcp(1, 2));

        assert_eq!(ran.reason, Reason::Routed);
    });
}

#[test]
fn a_device_is_forwarded_to_as_soon_as_it_is_managed() {
    on_a_node(|node| {
        let packet = eth().ip(POD_V4, "10.3.0.9").tcp(1, 2);
        assert_eq!(node.pod_sends(&packet).reason, Reason::OtherDevice);

        node.manage(LAN0);

        assert_eq!(node.pod_sends(&packet).reason, Reason::Routed);
    });
}
