//! The way to a backend: by its next hop's row where that is resolved, by asking the kernel where it is not.

use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, forward};
use fairlead_tests::kernel::{Action, BACKEND0, Node, ROUTER, UP0, UP1, on_a_node};
use fairlead_tests::packet::{Mac, Packet, eth};
use rstest::rstest;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";
/// A neighbour that the kernel knows nothing of: only a row can have told it.
const ROW_ONLY: Mac = [2, 0, 0, 9, 9, 9];

fn v4() -> Packet {
    eth().ip("203.0.113.9", SERVICE_V4)
}

fn v6() -> Packet {
    eth().ip("2001:db8:9::9", SERVICE_V6)
}

/// A backend that serves everything at both service addresses.
fn serve(node: &mut Node, addr: &str, forward: u8) -> u32 {
    let backend = node.backend(addr, forward);
    let slot = Slot {
        current: backend,
        previous: 0,
    };
    for service in [SERVICE_V4, SERVICE_V6] {
        node.service(service, 80, Proto::TCP, &[slot]);
    }
    backend
}

#[rstest]
#[case::ipv4("10.1.0.77", v4())]
#[case::ipv6("fd00:1::77", v6())]
fn a_resolved_next_hop_is_the_way_though_the_kernel_knows_none(
    #[case] backend: &str,
    #[case] head: Packet,
    #[values(true, false)] turns: bool,
) {
    on_a_node(|node| {
        let backend = serve(node, backend, forward::L2);
        let (link, action) = if turns {
            (UP0, Action::Back)
        } else {
            (UP1, Action::Redirect)
        };
        node.next_hop(backend, link, Some(ROW_ONLY), 1500);
        let packet = head.tcp(40000, 80);

        let ran = node.arrives(UP0, &packet);

        assert_eq!((ran.reason, ran.action), (Reason::ServiceL2, action));
        assert_eq!(ran.frame, packet.macs(link.mac, ROW_ONLY).bytes());
    });
}

#[rstest]
#[case::ipv4_in_ipv4(v4(), "10.50.0.1")]
#[case::ipv6_in_ipv6(v6(), "fd00:50::1")]
#[case::ipv6_in_ipv4(v6(), "10.50.0.1")]
#[case::ipv4_in_ipv6(v4(), "fd00:50::1")]
fn a_wrapped_packet_takes_the_next_hop_and_is_otherwise_the_same(
    #[case] head: Packet,
    #[case] backend: &str,
) {
    on_a_node(|node| {
        let backend = serve(node, backend, forward::ENCAPSULATE);
        let packet = head.tcp(40000, 80).payload(*b"hello");
        let asked = node.arrives(UP0, &packet);
        assert_eq!(asked.frame[..6], ROUTER);

        node.next_hop(backend, UP0, Some(ROW_ONLY), 1500);
        let told = node.arrives(UP0, &packet);

        assert_eq!(told.reason, Reason::ServiceEncapsulated);
        assert_eq!(told.frame[..6], ROW_ONLY);
        assert_eq!(told.frame[6..], asked.frame[6..]);
    });
}

#[rstest]
#[case::ipv4("10.1.0.11", v4())]
#[case::ipv6("fd00:1::11", v6())]
fn an_unresolved_next_hop_leaves_the_question_to_the_kernel(
    #[case] backend: &str,
    #[case] head: Packet,
) {
    on_a_node(|node| {
        let backend = serve(node, backend, forward::L2);
        node.next_hop(backend, UP1, None, 1);
        let packet = head.tcp(40000, 80);

        let ran = node.arrives(UP0, &packet);

        assert_eq!((ran.reason, ran.action), (Reason::ServiceL2, Action::Back));
        assert_eq!(ran.frame, packet.macs(UP0.mac, BACKEND0).bytes());
    });
}

#[rstest]
#[case::ipv4_in_ipv4(v4(), "10.50.0.1", 1280 - 20)]
#[case::ipv6_in_ipv4(v6(), "10.50.0.1", 1280 - 20)]
#[case::ipv4_in_ipv6(v4(), "fd00:50::1", 1280 - 40)]
#[case::ipv6_in_ipv6(v6(), "fd00:50::1", 1280 - 40)]
fn what_fits_the_next_hops_mtu_with_its_outer_header_goes_and_one_byte_more_does_not(
    #[case] head: Packet,
    #[case] backend: &str,
    #[case] fits: usize,
) {
    on_a_node(|node| {
        let backend = serve(node, backend, forward::ENCAPSULATE);
        node.next_hop(backend, UP0, Some(ROW_ONLY), 1280);
        let header = head.clone().tcp(40000, 80).bytes().len() - 14;
        let packet = |bytes: usize| head.clone().tcp(40000, 80).payload(vec![0; bytes - header]);

        let goes = node.arrives(UP0, &packet(fits));
        let too_big = node.arrives(UP0, &packet(fits + 1));

        assert_eq!(goes.reason, Reason::ServiceEncapsulated);
        assert_eq!(too_big.reason, Reason::ServiceTooBigTold);
    });
}

#[test]
fn a_device_that_is_no_port_drops_rather_than_sending_by_another() {
    on_a_node(|node| {
        let backend = serve(node, "10.1.0.11", forward::L2);
        let nowhere = fairlead_tests::kernel::LAN0;
        node.next_hop(backend, nowhere, Some(ROW_ONLY), 1500);

        let ran = node.arrives(UP0, &v4().tcp(40000, 80));

        assert_eq!(ran.reason, Reason::HelperFailed);
    });
}
