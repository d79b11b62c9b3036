//! ICMP errors about packets of a service's backends.

use super::*;

fn v4(kind: u8, code: u8) -> Packet {
    eth().ip(HOP_V4, SERVICE_V4).icmp(kind, code, 1400)
}

fn v6(kind: u8, code: u8) -> Packet {
    eth().ip(HOP_V6, SERVICE_V6).icmp(kind, code, 1400)
}

/// What the backend sent to the client.
fn reply_v4() -> Packet {
    eth().ip(SERVICE_V4, CLIENT_V4).ttl(1)
}

fn reply_v6() -> Packet {
    eth().ip(SERVICE_V6, CLIENT_V6).ttl(1)
}

/// The IP packet of a frame, cut.
fn cut(packet: &Packet, bytes: usize) -> Vec<u8> {
    packet.bytes()[14..14 + bytes].to_vec()
}

#[rstest]
#[case::fragmentation_needed(v4(3, 4).inside(&reply_v4().tcp(80, 40000)))]
#[case::port_unreachable_about_udp(v4(3, 3).inside(&reply_v4().udp(80, 40000).payload(*b"hello")))]
#[case::time_exceeded(v4(11, 0).inside(&reply_v4().tcp(80, 40000)))]
#[case::parameter_problem(v4(12, 0).inside(&reply_v4().tcp(80, 40000)))]
#[case::the_eight_bytes_of_rfc_792(v4(3, 4).payload(cut(&reply_v4().tcp(80, 40000), 28)))]
#[case::options_in_the_quoted_header(v4(3, 4).inside(&reply_v4().options(&[1; 40]).tcp(80, 40000)))]
#[case::a_first_fragment_quoted(v4(3, 4).inside(&reply_v4().fragment(0, true).udp(80, 40000).payload([7; 32])))]
#[case::options_in_the_header(v4(3, 4).options(&[1; 8]).inside(&reply_v4().tcp(80, 40000)))]
#[case::tagged(eth().vlan(10).ip(HOP_V4, SERVICE_V4).icmp(3, 4, 1400).inside(&reply_v4().tcp(80, 40000)))]
#[case::twice_tagged(eth().vlan(7).vlan(10).ip(HOP_V4, SERVICE_V4).icmp(3, 4, 1400).inside(&reply_v4().tcp(80, 40000)))]
#[case::too_big(v6(2, 0).inside(&reply_v6().tcp(80, 40000)))]
#[case::unreachable_v6(v6(1, 4).inside(&reply_v6().udp(80, 40000)))]
#[case::time_exceeded_v6(v6(3, 0).inside(&reply_v6().tcp(80, 40000)))]
#[case::parameter_problem_v6(v6(4, 0).inside(&reply_v6().tcp(80, 40000)))]
#[case::eight_bytes_v6(v6(2, 0).payload(cut(&reply_v6().tcp(80, 40000), 48)))]
#[case::a_first_fragment_quoted_v6(v6(2, 0).inside(&reply_v6().fragment_header(9, 0, true).udp(80, 40000).payload([7; 32])))]
#[case::extensions_quoted_v6(v6(2, 0).inside(&reply_v6().extension(60, &[0; 7]).tcp(80, 40000)))]
#[case::extensions_v6(eth().ip(HOP_V6, SERVICE_V6).extension(0, &[0; 7]).icmp(2, 0, 1400).inside(&reply_v6().tcp(80, 40000)))]
#[case::tagged_v6(eth().vlan(10).ip(HOP_V6, SERVICE_V6).icmp(2, 0, 1400).inside(&reply_v6().tcp(80, 40000)))]
fn an_error_reaches_the_backend_of_the_flow_that_it_quotes(#[case] packet: Packet) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        let ran = node.arrives(UP0, &packet);

        is_sent_to_backend(&ran, &packet, Reason::ServiceIcmpError);
    });
}

/// The slot of the client's flow is in transition; both backends are told apart by MAC.
#[rstest]
#[case::old(false, BACKEND0)]
#[case::new(true, BACKEND1)]
fn in_a_transition_an_error_goes_where_the_flows_own_packets_go(
    #[case] is_new: bool,
    #[case] expected: [u8; 6],
) {
    use fairlead_tests::packet::tcp;
    on_a_node(|node| {
        let previous = node.backend("10.1.0.11", forward::L2);
        let current = node.backend("10.2.0.12", forward::L2);
        serve(node, &[Slot { current, previous }]);
        if is_new {
            let syn = eth()
                .ip(CLIENT_V4, SERVICE_V4)
                .tcp(40000, 80)
                .flags(tcp::SYN);
            assert_eq!(node.arrives(UP0, &syn).frame[..6], BACKEND1);
        }

        let ran = node.arrives(UP0, &v4(3, 4).inside(&reply_v4().tcp(80, 40000)));

        assert_eq!(ran.reason, Reason::ServiceIcmpError);
        assert_eq!(ran.frame[..6], expected);
    });
}

#[rstest]
#[case::ipv4(v4(3, 4).inside(&reply_v4().tcp(80, 40000)), "10.50.0.1", 20)]
#[case::ipv6_in_ipv4(v6(2, 0).inside(&reply_v6().tcp(80, 40000)), "10.50.0.1", 20)]
#[case::ipv6(v6(2, 0).inside(&reply_v6().tcp(80, 40000)), "fd00:50::1", 40)]
fn an_error_for_a_backend_behind_a_router_is_wrapped(
    #[case] packet: Packet,
    #[case] backend: &str,
    #[case] outer_bytes: usize,
) {
    on_a_node(|node| {
        served_by(node, backend, forward::ENCAPSULATE);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceIcmpError, Action::Back)
        );
        assert_eq!(ran.frame[..6], ROUTER);
        assert_eq!(ran.frame[14 + outer_bytes..], packet.bytes()[14..]);
    });
}

#[test]
fn errors_are_counted_with_the_service() {
    on_a_node(|node| {
        let id = node.backend("10.1.0.11", forward::L2);
        let service = node.service(SERVICE_V4, 80, Proto::TCP, &[steady(id)]);

        node.arrives(UP0, &v4(3, 4).inside(&reply_v4().tcp(80, 40000)));

        assert_eq!(node.count::<ServiceStats>(&service).packets, 1);
    });
}

#[rstest]
#[case::a_port_that_no_service_has(v4(3, 4).inside(&reply_v4().tcp(81, 40000)), Reason::ServiceIcmpForeign)]
#[case::a_packet_of_another_host(v4(3, 4).inside(&eth().ip("192.0.2.81", CLIENT_V4).tcp(80, 40000)), Reason::ServiceIcmpForeign)]
#[case::a_packet_to_the_service(v4(3, 4).inside(&eth().ip(CLIENT_V4, SERVICE_V4).tcp(40000, 80)), Reason::ServiceIcmpForeign)]
#[case::no_ports(v4(3, 4).inside(&reply_v4().proto(47).payload([0; 20])), Reason::ServiceIcmpUnreadable)]
#[case::an_echo_quoted(v4(3, 1).inside(&reply_v4().pong(1, 1)), Reason::ServiceIcmpUnreadable)]
#[case::a_later_fragment_quoted(v4(3, 4).inside(&reply_v4().fragment(100, false).udp(80, 40000)), Reason::ServiceIcmpUnreadable)]
#[case::a_later_fragment_quoted_v6(v6(2, 0).inside(&reply_v6().fragment_header(9, 100, false).udp(80, 40000)), Reason::ServiceIcmpUnreadable)]
#[case::seven_bytes(v4(3, 4).payload(cut(&reply_v4().tcp(80, 40000), 27)), Reason::ServiceIcmpUnreadable)]
#[case::seven_bytes_v6(v6(2, 0).payload(cut(&reply_v6().tcp(80, 40000), 47)), Reason::ServiceIcmpUnreadable)]
#[case::half_a_header(v4(3, 4).payload(cut(&reply_v4().tcp(80, 40000), 12)), Reason::ServiceIcmpUnreadable)]
#[case::nothing_quoted(v4(3, 4), Reason::ServiceIcmpUnreadable)]
#[case::the_other_version_quoted(v4(3, 4).inside(&reply_v6().tcp(80, 40000)), Reason::ServiceIcmpUnreadable)]
#[case::source_quench(v4(4, 0).inside(&reply_v4().tcp(80, 40000)), Reason::ServiceOther)]
#[case::redirect(v4(5, 1).inside(&reply_v4().tcp(80, 40000)), Reason::ServiceOther)]
#[case::a_ttl_that_ends_here(v4(3, 4).ttl(1).inside(&reply_v4().tcp(80, 40000)), Reason::ServiceTtl)]
fn an_error_that_is_about_no_flow_of_ours_is_dropped(
    #[case] packet: Packet,
    #[case] reason: Reason,
) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        assert_eq!(node.arrives(UP0, &packet).reason, reason);
    });
}

#[test]
fn errors_to_other_addresses_are_not_looked_into() {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);
        let packet = v4(3, 4).addresses(HOP_V4, "10.1.0.1");

        let ran = node.arrives(UP0, &packet.inside(&reply_v4().tcp(80, 40000)));

        assert_eq!(ran.reason, Reason::Local);
    });
}
