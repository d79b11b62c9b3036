//! What a client is told.

use super::*;
use fairlead_common::route::node_flags;
use fairlead_tests::kernel::{Link, POD, POD0, TUNNEL_V4, TUNNEL_V6};
use fairlead_tests::packet::{Mac, tcp};

fn v4() -> Packet {
    eth().ip(CLIENT_V4, SERVICE_V4)
}

fn v6() -> Packet {
    eth().ip(CLIENT_V6, SERVICE_V6)
}

/// The error of this family about a packet, with as much of it as fits.
fn about(packet: &Packet, src: &str, kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let bytes = packet.bytes();
    let tags = if bytes[12..14] == [0x81, 0] { 4 } else { 0 };
    let tags = if tags == 4 && bytes[16..18] == [0x81, 0] {
        8
    } else {
        tags
    };
    let ip = &bytes[14 + tags..];
    let (client, most) = match ip[0] >> 4 {
        4 => (CLIENT_V4, 576 - 28),
        _ => (CLIENT_V6, 1280 - 48),
    };
    let mut answer = eth();
    for tag in bytes[12..12 + tags].chunks(4) {
        answer = answer.vlan(u16::from_be_bytes([tag[2], tag[3]]));
    }
    let answer = answer.ip(src, client).icmp(kind, code, rest);
    let answer = answer.payload(&ip[..ip.len().min(most)]);
    let answer = match client {
        CLIENT_V4 => answer.traffic_class(0xc0).id(0),
        _ => answer.flow_label(0),
    };
    answer.macs(UP0.mac, ROUTER).bytes()
}

#[rstest]
#[case::ipv4(v4(), "10.51.0.1", 1280, 3, 4)]
#[case::ipv4_over_ipv6(v4(), "fd00:51::1", 1260, 3, 4)]
#[case::without_df(v4().fragment(0, false), "10.51.0.1", 1280, 3, 4)]
#[case::a_first_fragment(v4().fragment(0, true), "10.51.0.1", 1280, 3, 4)]
#[case::options(v4().options(&[1; 8]), "10.51.0.1", 1280, 3, 4)]
#[case::tagged(eth().vlan(10).ip(CLIENT_V4, SERVICE_V4), "10.51.0.1", 1280, 3, 4)]
#[case::twice_tagged(eth().vlan(7).vlan(10).ip(CLIENT_V4, SERVICE_V4), "10.51.0.1", 1280, 3, 4)]
#[case::ipv6_over_ipv4(v6(), "10.51.0.1", 1280, 2, 0)]
#[case::ipv6(v6(), "fd00:51::1", 1260, 2, 0)]
#[case::tagged_ipv6(eth().vlan(10).ip(CLIENT_V6, SERVICE_V6), "10.51.0.1", 1280, 2, 0)]
fn the_sender_of_what_does_not_fit_is_told_what_would(
    #[case] head: Packet,
    #[case] backend: &str,
    #[case] mtu: u32,
    #[case] kind: u8,
    #[case] code: u8,
    #[values(false, true)] is_resolved: bool,
    #[values(1300, 1303, 1454)] bytes: usize,
) {
    on_a_node(|node| {
        let id = node.backend(backend, forward::ENCAPSULATE);
        if is_resolved {
            node.next_hop(id, UP0, Some(ROUTER), 1300);
        }
        serve(node, &[steady(id)]);
        let packet = head.tcp(40000, 80).payload(vec![7; bytes]);

        let ran = node.arrives(UP0, &packet);

        let src = if kind == 3 { SERVICE_V4 } else { SERVICE_V6 };
        let expected = about(&packet.clone().macs(ROUTER, UP0.mac), src, kind, code, mtu);
        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceTooBigTold, Action::Back)
        );
        assert_eq!(ran.frame, expected);
    });
}

#[rstest]
#[case::to_a_host("10.1.0.11", forward::L2, UP0, BACKEND0)]
#[case::to_a_pod("10.244.1.5", forward::HERE, POD0, POD)]
fn what_does_not_fit_a_link_is_told_its_mtu(
    #[case] backend: &str,
    #[case] forward: u8,
    #[case] link: Link,
    #[case] mac: Mac,
) {
    on_a_node(|node| {
        let id = node.backend(backend, forward);
        node.next_hop(id, link, Some(mac), 1400);
        serve(node, &[steady(id)]);
        let packet = v4().udp(40000, 80).payload([7; 1400]);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(ran.reason, Reason::ServiceTooBigTold);
        assert_eq!(ran.frame, about(&packet, SERVICE_V4, 3, 4, 1400));
    });
}

#[rstest]
#[case::tcp(v4().tcp(40000, 80).flags(tcp::SYN), 3, 3)]
#[case::udp(v4().udp(40000, 80).payload(*b"hello"), 3, 3)]
#[case::tcp_v6(v6().tcp(40000, 80).flags(tcp::SYN), 1, 4)]
#[case::udp_v6(v6().udp(40000, 80).payload(*b"odd"), 1, 4)]
#[case::tagged(eth().vlan(10).ip(CLIENT_V4, SERVICE_V4).tcp(40000, 80), 3, 3)]
#[case::another_port(v4().udp(40000, 33434), 3, 3)]
#[case::another_port_v6(v6().tcp(40000, 22), 1, 4)]
fn a_client_of_a_service_without_backend_is_refused(
    #[case] packet: Packet,
    #[case] kind: u8,
    #[case] code: u8,
) {
    on_a_node(|node| {
        serve(node, &[]);
        node.change(|row| row.flags |= node_flags::REFUSES);

        let ran = node.arrives(UP0, &packet);

        let src = if kind == 3 { SERVICE_V4 } else { SERVICE_V6 };
        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceRefused, Action::Back)
        );
        assert_eq!(ran.frame, about(&packet, src, kind, code, 0));
    });
}

#[rstest]
#[case::ipv4(v4().ttl(1).tcp(40000, 80), TUNNEL_V4, 11)]
#[case::ipv6(v6().ttl(1).udp(40000, 80), TUNNEL_V6, 3)]
fn a_packet_whose_ttl_ends_here_is_answered_by_this_node(
    #[case] packet: Packet,
    #[case] src: &str,
    #[case] kind: u8,
) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceTtlTold, Action::Back)
        );
        assert_eq!(ran.frame, about(&packet, src, kind, 0, 0));
    });
}

#[test]
fn padding_is_not_quoted() {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);
        let packet = v4().ttl(1).udp(40000, 80);
        let mut frame = packet.clone().macs(ROUTER, UP0.mac).bytes();
        frame.resize(60, 0xee);

        let ran = node.xdp("xdp_ingress", UP0, &frame);

        assert_eq!(ran.frame, about(&packet, TUNNEL_V4, 11, 0, 0));
    });
}

#[rstest]
#[case::to_a_group(eth().ip("224.0.0.9", SERVICE_V4).ttl(1).udp(40000, 80), Reason::ServiceTtl)]
#[case::to_everybody(eth().ip("255.255.255.255", SERVICE_V4).ttl(1).udp(40000, 80), Reason::ServiceTtl)]
#[case::to_nobody(eth().ip("::", SERVICE_V6).ttl(1).udp(40000, 80), Reason::ServiceTtl)]
#[case::to_a_service(eth().ip(SERVICE_V4, SERVICE_V4).ttl(1).udp(40000, 80), Reason::ServiceTtl)]
fn an_error_goes_to_single_hosts_only(#[case] packet: Packet, #[case] reason: Reason) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        assert_eq!(node.arrives(UP0, &packet).reason, reason);
    });
}

#[test]
fn no_error_is_sent_about_an_error_or_a_later_fragment() {
    on_a_node(|node| {
        let id = node.backend("10.51.0.1", forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        let reply = eth()
            .ip(SERVICE_V4, CLIENT_V4)
            .tcp(80, 40000)
            .payload([0; 1300]);
        let error = v4().icmp(3, 4, 1400).inside(&reply);
        let first = v4().fragment(0, true).udp(40000, 80).payload([0; 24]);
        let later = v4().fragment(4, false).proto(17).payload([0; 1300]);

        assert_eq!(node.arrives(UP0, &error).reason, Reason::ServiceTooBig);
        assert_eq!(
            node.arrives(UP0, &first).reason,
            Reason::ServiceEncapsulated
        );
        assert_eq!(node.arrives(UP0, &later).reason, Reason::ServiceTooBig);
    });
}

#[test]
fn answers_come_to_an_end_and_that_is_counted() {
    on_a_node(|node| {
        let id = node.backend("10.51.0.1", forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        node.exhaust_answers();
        node.change(|row| row.flags |= node_flags::REFUSES);

        for packet in [
            v4().tcp(40000, 80).payload([0; 1300]),
            v4().tcp(40000, 80).ttl(1),
            v4().tcp(40000, 81),
        ] {
            assert_eq!(
                node.arrives(UP0, &packet).reason,
                Reason::ServiceAnswerLimited
            );
        }
    });
}

#[test]
fn without_the_program_for_odd_packets_the_reasons_stay() {
    on_a_node(|node| {
        let id = node.backend("10.51.0.1", forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        node.close_detours();

        let big = node.arrives(UP0, &v4().tcp(40000, 80).payload([0; 1300]));
        let old = node.arrives(UP0, &v4().tcp(40000, 80).ttl(1));

        assert_eq!(big.reason, Reason::ServiceTooBig);
        assert_eq!(old.reason, Reason::ServiceTtl);
    });
}
