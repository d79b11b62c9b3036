//! IPv4 options and IPv6 extension headers.

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
