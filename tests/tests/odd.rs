//! Packets to the addresses of services that are not plain, through the real programs.

use fairlead_common::addr::Proto;
use fairlead_common::fragment::LIFETIME_S;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, forward};
use fairlead_common::tables::{Fragments, ServiceStats};
use fairlead_tests::kernel::{Action, BACKEND0, BACKEND1, Node, ROUTER, Ran, UP0, on_a_node};
use fairlead_tests::packet::{Packet, eth};
use rstest::rstest;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";
const CLIENT_V4: &str = "203.0.113.9";
const CLIENT_V6: &str = "2001:db8:9::9";
/// A router on the way to the client.
const HOP_V4: &str = "198.51.100.77";
const HOP_V6: &str = "2001:db8:77::7";

fn steady(backend: u32) -> Slot {
    Slot {
        current: backend,
        previous: 0,
    }
}

/// Makes TCP and UDP services of both families at port 80 with this ring.
fn serve(node: &mut Node, ring: &[Slot]) {
    for addr in [SERVICE_V4, SERVICE_V6] {
        for proto in [Proto::TCP, Proto::UDP] {
            node.service(addr, 80, proto, ring);
        }
    }
}

/// Services with one backend of each family's address; the slot is the same for all.
fn served_by(node: &mut Node, backend: &str, forward: u8) {
    let id = node.backend(backend, forward);
    serve(node, &[steady(id)]);
}

/// What a backend on the link would be sent.
fn to_backend(packet: &Packet) -> Vec<u8> {
    packet.clone().macs(UP0.mac, BACKEND0).bytes()
}

fn is_sent_to_backend(ran: &Ran, packet: &Packet, reason: Reason) {
    assert_eq!((ran.reason, ran.action), (reason, Action::Back));
    assert_eq!(ran.frame, to_backend(packet));
}

mod icmp_errors {
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
}

mod echo {
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
}

mod headers {
    use super::*;

    const PADDED: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

    fn v4() -> Packet {
        eth().ip(CLIENT_V4, SERVICE_V4)
    }

    fn v6() -> Packet {
        eth().ip(CLIENT_V6, SERVICE_V6)
    }

    #[rstest]
    #[case::options(v4().options(&[1; 4]).tcp(40000, 80))]
    #[case::as_many_options_as_fit(v4().options(&[1; 40]).udp(40000, 80).payload(*b"hello"))]
    #[case::hop_by_hop(v6().extension(0, &PADDED).tcp(40000, 80))]
    #[case::destination_options(v6().extension(60, &PADDED).udp(40000, 80))]
    #[case::a_routing_header_that_has_led_here(v6().extension(43, &[2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).tcp(40000, 80))]
    #[case::authentication(v6().extension(51, &[4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).tcp(40000, 80))]
    #[case::an_atomic_fragment(v6().fragment_header(7, 0, false).udp(40000, 80))]
    #[case::seven_headers(v6().extension(0, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).tcp(40000, 80))]
    #[case::tagged(eth().vlan(10).ip(CLIENT_V4, SERVICE_V4).options(&[1; 4]).tcp(40000, 80))]
    fn a_packet_is_balanced_by_the_ports_behind_its_headers(#[case] packet: Packet) {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);

            let ran = node.arrives(UP0, &packet);

            is_sent_to_backend(&ran, &packet, Reason::ServiceL2);
        });
    }

    #[rstest]
    #[case::ipv4(v4().options(&[1; 4]), v4(), "10.50.0.", 30)]
    #[case::ipv6(v6().extension(60, &PADDED), v6(), "fd00:50::", 14 + 24)]
    fn headers_do_not_change_which_backend_a_flow_has(
        #[case] odd: Packet,
        #[case] plain: Packet,
        #[case] backends: &str,
        #[case] at: usize,
    ) {
        on_a_node(|node| {
            let ring: Vec<_> = (1..=4)
                .map(|last| node.backend(&format!("{backends}{last}"), forward::ENCAPSULATE))
                .map(steady)
                .collect();
            serve(node, &ring);
            for port in 40000..40040 {
                let with = node.arrives(UP0, &odd.clone().tcp(port, 80)).frame;
                let without = node.arrives(UP0, &plain.clone().tcp(port, 80)).frame;

                assert_eq!(with[at..at + 4], without[at..at + 4], "port {port}");
            }
        });
    }

    #[rstest]
    #[case::segments_left(v6().extension(43, &[2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).tcp(40000, 80), Reason::ServiceHeaders)]
    #[case::nine_headers(v6().extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).extension(60, &PADDED).tcp(40000, 80), Reason::ServiceHeaders)]
    #[case::encrypted(v6().extension(60, &PADDED).extension(50, &[0; 7]).payload([0; 40]), Reason::ServiceOther)]
    #[case::nothing_behind(v6().extension(60, &PADDED).payload([]), Reason::ServiceOther)]
    #[case::no_room_for_tcp(v4().options(&[1; 4]).proto(6).payload([0; 19]), Reason::ServiceHeaders)]
    #[case::a_header_that_leaves_the_packet(v6().extension(60, &[9, 0, 0, 0, 0, 0, 0]).tcp(40000, 80), Reason::Malformed)]
    fn what_hides_its_ports_is_counted(#[case] packet: Packet, #[case] reason: Reason) {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);

            assert_eq!(node.arrives(UP0, &packet).reason, reason);
        });
    }
}

mod fragments {
    use super::*;

    fn v4(offset: u16, more: bool) -> Packet {
        eth().ip(CLIENT_V4, SERVICE_V4).fragment(offset, more)
    }

    fn v6(offset: u16, more: bool) -> Packet {
        eth()
            .ip(CLIENT_V6, SERVICE_V6)
            .fragment_header(0x0102_0304, offset, more)
    }

    /// The first fragment, the next and the last, as in one packet of UDP.
    fn all(head: fn(u16, bool) -> Packet) -> [Packet; 3] {
        let first = head(0, true).udp(40000, 80).payload([1; 24]);
        let is_v4 = first.bytes()[12..14] == [0x08, 0x00];
        let later = |packet: Packet, byte| {
            let packet = if is_v4 { packet.proto(17) } else { packet };
            packet.payload([byte; 32])
        };
        [first, later(head(4, true), 2), later(head(8, false), 3)]
    }

    fn udp_after_fragment_header(mut frame: Vec<u8>) -> Vec<u8> {
        // The next header of what follows: UDP, though no UDP header stands in this frame.
        if frame[12..14] == [0x86, 0xdd] {
            frame[14 + 40] = 17;
        }
        frame
    }

    fn arrives(node: &mut Node, packet: &Packet) -> Ran {
        let frame = udp_after_fragment_header(packet.clone().macs(ROUTER, UP0.mac).bytes());
        node.xdp("xdp_ingress", UP0, &frame)
    }

    #[rstest]
    #[case::ipv4(v4, "10.50.0.", 30, 4)]
    #[case::ipv6(v6, "fd00:50::", 14 + 24, 16)]
    fn all_fragments_of_a_packet_go_to_the_backend_of_its_flow(
        #[case] head: fn(u16, bool) -> Packet,
        #[case] backends: &str,
        #[case] at: usize,
        #[case] bytes: usize,
    ) {
        on_a_node(|node| {
            let ring: Vec<_> = (1..=16)
                .map(|last| node.backend(&format!("{backends}{last}"), forward::ENCAPSULATE))
                .map(steady)
                .collect();
            serve(node, &ring);
            let whole = if backends.contains(':') {
                eth().ip(CLIENT_V6, SERVICE_V6).udp(40000, 80)
            } else {
                eth().ip(CLIENT_V4, SERVICE_V4).udp(40000, 80)
            };
            let expected = node.arrives(UP0, &whole).frame[at..at + bytes].to_vec();

            for packet in all(head) {
                let ran = arrives(node, &packet);

                assert_eq!(ran.reason, Reason::ServiceEncapsulated);
                assert_eq!(ran.frame[at..at + bytes], expected);
            }
        });
    }

    #[rstest]
    #[case::ipv4(v4)]
    #[case::ipv6(v6)]
    fn fragments_reach_a_backend_on_the_link_as_they_are(#[case] head: fn(u16, bool) -> Packet) {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);

            for packet in all(head) {
                let ran = arrives(node, &packet);

                assert_eq!((ran.reason, ran.action), (Reason::ServiceL2, Action::Back));
                assert_eq!(ran.frame, udp_after_fragment_header(to_backend(&packet)));
            }
        });
    }

    #[rstest]
    #[case::ipv4(v4)]
    #[case::ipv6(v6)]
    fn what_comes_before_the_first_is_lost_and_counted(#[case] head: fn(u16, bool) -> Packet) {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);
            let [first, second, _] = all(head);

            let early = arrives(node, &second);
            arrives(node, &first);
            let late = arrives(node, &second);

            assert_eq!(early.reason, Reason::ServiceFragmentUnknown);
            assert_eq!(late.reason, Reason::ServiceL2);
        });
    }

    #[test]
    fn an_identification_of_long_ago_is_not_believed() {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);
            let [first, second, _] = all(v4);
            arrives(node, &first);
            let (key, mut ports) = node.rows::<Fragments>()[0];
            ports.seen_s = ports.seen_s.wrapping_sub(LIFETIME_S + 1);
            node.set::<Fragments>(&key, &ports);

            assert_eq!(
                arrives(node, &second).reason,
                Reason::ServiceFragmentUnknown
            );
        });
    }

    #[rstest]
    #[case::a_header_that_goes_on_in_the_next(v4(0, true).proto(6).payload([0; 16]), Reason::ServiceHeaders)]
    #[case::of_an_echo_request(v4(0, true).ping(1, 1), Reason::ServiceFragmentUnknown)]
    #[case::of_another_port(v4(0, true).udp(40000, 81), Reason::ServiceOther)]
    fn a_first_fragment_of_no_service_is_dropped(#[case] packet: Packet, #[case] reason: Reason) {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);

            assert_eq!(node.arrives(UP0, &packet).reason, reason);
        });
    }
}

/// What a client is told.
mod answers {
    use super::*;
    use fairlead_common::route::node_flags;
    use fairlead_tests::kernel::{TUNNEL_V4, TUNNEL_V6};
    use fairlead_tests::packet::tcp;

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

    #[test]
    fn what_does_not_fit_a_link_is_told_its_mtu() {
        on_a_node(|node| {
            let id = node.backend("10.1.0.11", forward::L2);
            node.next_hop(id, UP0, Some(BACKEND0), 1400);
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
}

mod other_ports {
    use super::*;

    #[rstest]
    #[case::tcp(eth().ip(CLIENT_V4, SERVICE_V4).tcp(40000, 22))]
    #[case::udp(eth().ip(CLIENT_V6, SERVICE_V6).udp(40000, 33434))]
    #[case::sctp(eth().ip(CLIENT_V4, SERVICE_V4).proto(132).payload([0; 12]))]
    #[case::gre(eth().ip(CLIENT_V6, SERVICE_V6).proto(47).payload([0; 12]))]
    fn what_no_service_takes_is_not_sent_back_into_the_fabric(#[case] packet: Packet) {
        on_a_node(|node| {
            served_by(node, "10.1.0.11", forward::L2);

            assert_eq!(node.arrives(UP0, &packet).reason, Reason::ServiceOther);
        });
    }

    #[rstest]
    #[case::ipv4("10.1.0.1", eth().ip(CLIENT_V4, "10.1.0.1"))]
    #[case::ipv6("fd00:1::1", eth().ip(CLIENT_V6, "fd00:1::1"))]
    fn where_the_address_is_the_hosts_own_too_the_stack_takes_it(
        #[case] addr: &str,
        #[case] head: Packet,
    ) {
        on_a_node(|node| {
            let id = node.backend("10.1.0.11", forward::L2);
            node.service(addr, 80, Proto::TCP, &[steady(id)]);

            for packet in [
                head.clone().tcp(40000, 22),
                head.clone().proto(47).payload([0; 12]),
            ] {
                assert_eq!(node.arrives(UP0, &packet).reason, Reason::Local);
            }
        });
    }
}

#[test]
fn without_the_program_for_odd_packets_they_are_dropped_and_counted() {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);
        node.close_detours();

        let ran = node.arrives(UP0, &eth().ip(CLIENT_V4, SERVICE_V4).ping(1, 1));

        assert_eq!((ran.reason, ran.action), (Reason::ServiceOdd, Action::Drop));
    });
}
