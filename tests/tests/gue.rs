//! Generic UDP encapsulation, through the real programs of both ends.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, forward};
use fairlead_common::tables::DecapAddrs;
use fairlead_tests::kernel::{
    Action, Node, ROUTER, Ran, TUNNEL_V4, TUNNEL_V6, UP0, addr_of, flow, on_a_node,
};
use fairlead_tests::packet::{Packet, eth};
use rstest::rstest;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";
/// This node itself, so that its own program for backends unwraps what it wrapped.
const HERE_V4: &str = "10.1.0.1";
const HERE_V6: &str = "fd00:1::1";
const GUE: u16 = 6080;

fn v4(port: u16) -> Packet {
    let packet = eth().ip("203.0.113.9", SERVICE_V4).traffic_class(0xb8);
    packet.tcp(port, 80).payload(*b"hello")
}

fn v6(port: u16) -> Packet {
    let packet = eth().ip("2001:db8:9::9", SERVICE_V6).traffic_class(0xb8);
    packet.tcp(port, 80).payload(*b"hello")
}

/// Sends a packet to a service whose one backend is reached by GUE; the way has this MTU.
fn wrapped(node: &mut Node, backend: &str, mtu: u32, packet: &Packet) -> Ran {
    let current = node.backend(backend, forward::GUE);
    node.next_hop(current, UP0, Some(ROUTER), mtu);
    let slot = Slot {
        current,
        previous: 0,
    };
    for service in [SERVICE_V4, SERVICE_V6] {
        node.service(service, 80, Proto::TCP, &[slot]);
    }
    node.arrives(UP0, packet)
}

/// The source port, and what the outer headers must say of an inner packet of so many bytes.
fn outer_port(frame: &[u8], backend: &str, inner_bytes: usize) -> u16 {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a packet");
    let (src, dst, traffic_class, ttl) = match sliced.net.expect("a network header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert!(header.dont_fragment());
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum()
            );
            let class = header.dcp().value() << 2 | header.ecn().value();
            let (src, dst) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (src, dst, class, header.ttl())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (src, dst): (std::net::IpAddr, std::net::IpAddr) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            (src, dst, header.traffic_class(), header.hop_limit())
        }
        NetSlice::Arp(_) => panic!("ARP"),
    };
    let source = if backend.contains(':') {
        TUNNEL_V6
    } else {
        TUNNEL_V4
    };
    assert_eq!(
        (src.to_string(), dst.to_string()),
        (source.to_owned(), backend.to_owned())
    );
    assert_eq!((traffic_class, ttl), (0xb8, 64));
    let Some(TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("no UDP");
    };
    assert_eq!(udp.destination_port(), GUE);
    assert_eq!(usize::from(udp.length()), 8 + inner_bytes);
    assert_eq!(udp.checksum(), 0);
    udp.source_port()
}

#[rstest]
#[case::ipv4_in_ipv4(v4(40000), HERE_V4)]
#[case::ipv6_in_ipv6(v6(40000), HERE_V6)]
#[case::ipv6_in_ipv4(v6(40000), HERE_V4)]
#[case::ipv4_in_ipv6(v4(40000), HERE_V6)]
fn what_a_balancer_wraps_a_backend_unwraps(#[case] packet: Packet, #[case] backend: &str) {
    on_a_node(|node| {
        for addr in [SERVICE_V4, SERVICE_V6] {
            node.set::<DecapAddrs>(&addr_of(addr), &0);
        }
        let inner = packet.bytes()[14..].to_vec();

        let sent = wrapped(node, backend, 1500, &packet);
        assert_eq!(
            (sent.reason, sent.action),
            (Reason::ServiceEncapsulated, Action::Back)
        );
        outer_port(&sent.frame, backend, inner.len());
        let taken = node.xdp("xdp_decap", UP0, &sent.frame);

        assert_eq!(
            (taken.reason, taken.action),
            (Reason::Decapsulated, Action::Pass)
        );
        assert_eq!(taken.frame[14..], inner);
    });
}

#[test]
fn flows_are_spread_by_the_outer_source_port_and_one_flow_keeps_it() {
    on_a_node(|node| {
        let mut ports = std::collections::BTreeSet::new();
        for client in 40000..40064 {
            let packet = v4(client);
            let first = wrapped(node, HERE_V4, 1500, &packet);
            let again = node.arrives(UP0, &packet);
            let port = outer_port(&first.frame, HERE_V4, packet.bytes().len() - 14);
            assert_eq!(first.frame, again.frame);
            let hash = flow(("203.0.113.9", client), (SERVICE_V4, 80), Proto::TCP).hash();
            assert_eq!(port, 0xc000 | (hash & 0x3fff) as u16);
            ports.insert(port);
        }
        assert!(ports.len() > 60, "{} ports", ports.len());
    });
}

#[rstest]
#[case::over_ipv4(HERE_V4, 20 + 8)]
#[case::over_ipv6(HERE_V6, 40 + 8)]
fn all_outer_headers_count_for_the_mtu(#[case] backend: &str, #[case] headers: u32) {
    on_a_node(|node| {
        let packet = v4(40000);
        let fits = packet.bytes().len() as u32 - 14 + headers;

        let sent = wrapped(node, backend, fits, &packet);
        let too_big = wrapped(node, backend, fits - 1, &packet);

        assert_eq!(sent.reason, Reason::ServiceEncapsulated);
        assert_eq!(too_big.reason, Reason::ServiceTooBigTold);
    });
}

#[rstest]
#[case::another_port(eth().ip("10.9.9.9", HERE_V4).udp(50000, 6081).without_checksum().inside(&v4(1)))]
#[case::with_a_checksum(eth().ip("10.9.9.9", HERE_V4).udp(50000, GUE).inside(&v4(1)))]
#[case::with_a_header(eth().ip("10.9.9.9", HERE_V4).udp(50000, GUE).without_checksum().payload([0, 4, 0, 0]).inside(&v4(1)))]
#[case::nothing_inside(eth().ip("10.9.9.9", HERE_V4).udp(50000, GUE).without_checksum())]
fn what_is_not_a_packet_right_behind_udp_is_for_the_kernel(#[case] packet: Packet) {
    on_a_node(|node| {
        node.set::<DecapAddrs>(&addr_of(SERVICE_V4), &0);
        let frame = packet.macs(ROUTER, UP0.mac).bytes();

        let ran = node.xdp("xdp_decap", UP0, &frame);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::NotEncapsulated, Action::Pass)
        );
        assert_eq!(ran.frame, frame);
    });
}
