//! Fragments to services.

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
