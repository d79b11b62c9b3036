//! Balancing: packets to services, through the real program.

use std::collections::BTreeMap;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header};
use fairlead_common::addr::{Port, Proto};
use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::hash;
use fairlead_common::reason::Reason;
use fairlead_common::service::{ServiceKey, Slot, forward};
use fairlead_common::tables::{Flows, ServiceCells, Services};
use fairlead_tests::kernel::{
    Action, BACKEND0, BACKEND1, Node, ROUTER, TUNNEL_V4, TUNNEL_V6, UP0, UP1, addr_of, flow,
    on_a_node,
};
use fairlead_tests::packet::{Packet, eth, tcp};
use rstest::rstest;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";
const CLIENT_V4: &str = "203.0.113.9";
const CLIENT_V6: &str = "2001:db8:9::9";
/// Behind the router.
const FAR_V4: &str = "10.50.0.1";
const FAR_V6: &str = "fd00:50::1";

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

fn v4() -> Packet {
    eth().ip(CLIENT_V4, SERVICE_V4)
}

fn v6() -> Packet {
    eth().ip(CLIENT_V6, SERVICE_V6)
}

#[rstest]
#[case::tcp_over_ipv4("10.1.0.11", v4().tcp(40000, 80))]
#[case::udp_over_ipv4("10.1.0.11", v4().udp(40000, 80).payload(*b"hello"))]
#[case::udp_without_checksum("10.1.0.11", v4().udp(40000, 80).without_checksum())]
#[case::tcp_over_ipv6("fd00:1::11", v6().tcp(40000, 80))]
#[case::udp_over_ipv6("fd00:1::11", v6().udp(40000, 80).payload(*b"hello"))]
#[case::tagged_ipv4("10.1.0.11", eth().vlan(10).ip(CLIENT_V4, SERVICE_V4).tcp(40000, 80))]
#[case::tagged_ipv6("fd00:1::11", eth().vlan(10).ip(CLIENT_V6, SERVICE_V6).tcp(40000, 80))]
#[case::twice_tagged_ipv4("10.1.0.11", eth().vlan(7).vlan(10).ip(CLIENT_V4, SERVICE_V4).tcp(40000, 80))]
#[case::twice_tagged_ipv6("fd00:1::11", eth().vlan(7).vlan(10).ip(CLIENT_V6, SERVICE_V6).tcp(40000, 80))]
fn a_packet_reaches_a_backend_on_the_link_with_new_macs_only(
    #[case] backend: &str,
    #[case] packet: Packet,
) {
    on_a_node(|node| {
        let backend = node.backend(backend, forward::L2);
        serve(node, &[steady(backend)]);

        let ran = node.arrives(UP0, &packet);

        assert_eq!((ran.reason, ran.action), (Reason::ServiceL2, Action::Back));
        assert_eq!(ran.frame, packet.macs(UP0.mac, BACKEND0).bytes());
    });
}

#[rstest]
#[case::ipv4("10.1.0.11", SERVICE_V4, v4().tcp(40000, 80))]
#[case::ipv6("fd00:1::11", SERVICE_V6, v6().tcp(40000, 80))]
fn a_service_is_found_by_its_copy_without_one_and_where_another_has_its_cell(
    #[case] backend: &str,
    #[case] service: &str,
    #[case] packet: Packet,
) {
    on_a_node(|node| {
        let backend = node.backend(backend, forward::L2);
        serve(node, &[steady(backend)]);
        let key = |proto| ServiceKey::new(addr_of(service), Port::new(80), proto);
        let cell = key(Proto::TCP).cell();
        let own = node.get::<ServiceCells>(&cell).expect("a cell");
        let anothers = node.get::<ServiceCells>(&key(Proto::UDP).cell());
        assert_ne!(own, 0);

        for named in [own, 0, anothers.expect("a cell")] {
            node.set::<ServiceCells>(&cell, &named);
            assert_eq!(node.arrives(UP0, &packet).reason, Reason::ServiceL2);
        }

        node.remove::<Services>(&key(Proto::TCP));
        assert_eq!(node.arrives(UP0, &packet).reason, Reason::ServiceOther);
        node.set::<ServiceCells>(&cell, &own);
        assert_eq!(node.arrives(UP0, &packet).reason, Reason::ServiceL2);
    });
}

#[rstest]
#[case::ipv4("10.2.0.12", v4().tcp(40000, 80))]
#[case::ipv6("fd00:2::12", v6().tcp(40000, 80))]
fn a_backend_on_another_link_is_reached_by_redirection(
    #[case] backend: &str,
    #[case] packet: Packet,
) {
    on_a_node(|node| {
        let backend = node.backend(backend, forward::L2);
        serve(node, &[steady(backend)]);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceL2, Action::Redirect)
        );
        assert_eq!(ran.frame, packet.macs(UP1.mac, BACKEND1).bytes());
    });
}

/// The frame that must come out, with an outer header built by etherparse.
fn encapsulated(packet: &Packet, flow: &FlowKey, backend: &str, tags: usize) -> Vec<u8> {
    let bytes = packet.clone().macs(UP0.mac, ROUTER).bytes();
    let (ethernet, inner) = bytes.split_at(14 + tags);
    let traffic_class = match inner[0] >> 4 {
        4 => inner[1],
        _ => inner[0] << 4 | inner[1] >> 4,
    };
    let number = match inner[0] >> 4 {
        4 => IpNumber::IPV4,
        _ => IpNumber::IPV6,
    };
    let (ether_type, outer): (u16, Vec<u8>) = match backend.parse().expect("an address") {
        std::net::IpAddr::V4(backend) => {
            let source: std::net::Ipv4Addr = TUNNEL_V4.parse().expect("an address");
            let mut header = Ipv4Header::new(
                inner.len() as u16,
                64,
                number,
                source.octets(),
                backend.octets(),
            )
            .expect("a header");
            header.identification = 0;
            header.dont_fragment = true;
            header.dscp = etherparse::IpDscp::try_new(traffic_class >> 2).expect("six bits");
            header.ecn = etherparse::IpEcn::try_new(traffic_class & 3).expect("two bits");
            header.header_checksum = header.calc_header_checksum();
            (0x0800, header.to_bytes().to_vec())
        }
        std::net::IpAddr::V6(backend) => {
            let source: std::net::Ipv6Addr = TUNNEL_V6.parse().expect("an address");
            let header = Ipv6Header {
                traffic_class,
                flow_label: Ipv6FlowLabel::try_new(flow.hash() & 0xf_ffff).expect("20 bits"),
                payload_length: inner.len() as u16,
                next_header: number,
                hop_limit: 64,
                source: source.octets(),
                destination: backend.octets(),
            };
            (0x86dd, header.to_bytes().to_vec())
        }
    };
    let addresses_and_tags = &ethernet[..ethernet.len() - 2];
    [addresses_and_tags, &ether_type.to_be_bytes(), &outer, inner].concat()
}

#[rstest]
#[case::ipv4_in_ipv4(v4(), FAR_V4, 0)]
#[case::ipv6_in_ipv6(v6(), FAR_V6, 0)]
#[case::ipv6_in_ipv4(v6(), FAR_V4, 0)]
#[case::ipv4_in_ipv6(v4(), FAR_V6, 0)]
#[case::tagged_ipv4_in_ipv4(eth().vlan(10).ip(CLIENT_V4, SERVICE_V4), FAR_V4, 4)]
#[case::tagged_ipv6_in_ipv6(eth().vlan(10).ip(CLIENT_V6, SERVICE_V6), FAR_V6, 4)]
#[case::twice_tagged_ipv4_in_ipv6(eth().vlan(7).vlan(10).ip(CLIENT_V4, SERVICE_V4), FAR_V6, 8)]
fn a_backend_behind_a_router_gets_the_packet_wrapped(
    #[case] head: Packet,
    #[case] backend: &str,
    #[case] tags: usize,
    #[values(0, 0xb9)] traffic_class: u8,
    #[values("tcp", "udp")] proto: &str,
) {
    on_a_node(|node| {
        let id = node.backend(backend, forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        let head = head.traffic_class(traffic_class);
        let (packet, number) = match proto {
            "tcp" => (head.tcp(40000, 80).payload(*b"hello"), Proto::TCP),
            _ => (head.udp(40000, 80).payload(*b"hello"), Proto::UDP),
        };
        let is_v4 = packet.bytes()[14 + tags] >> 4 == 4;
        let key = if is_v4 {
            flow((CLIENT_V4, 40000), (SERVICE_V4, 80), number)
        } else {
            flow((CLIENT_V6, 40000), (SERVICE_V6, 80), number)
        };

        let ran = node.arrives(UP0, &packet);

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::ServiceEncapsulated, Action::Back)
        );
        assert_eq!(ran.frame, encapsulated(&packet, &key, backend, tags));
    });
}

#[test]
fn padding_behind_a_short_packet_is_not_part_of_the_tunnel() {
    on_a_node(|node| {
        let id = node.backend(FAR_V4, forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        let packet = v4().udp(40000, 80);
        let padding = [0xee; 18];
        let frame = [
            packet.clone().macs(ROUTER, UP0.mac).bytes(),
            padding.to_vec(),
        ]
        .concat();

        let ran = node.xdp("xdp_ingress", UP0, &frame);

        let key = flow((CLIENT_V4, 40000), (SERVICE_V4, 80), Proto::UDP);
        let expected = [encapsulated(&packet, &key, FAR_V4, 0), padding.to_vec()].concat();
        assert_eq!(ran.frame, expected);
    });
}

#[test]
fn in_the_steady_state_no_packet_of_a_connection_touches_the_flow_table() {
    on_a_node(|node| {
        let backend = node.backend("10.1.0.11", forward::L2);
        serve(node, &[steady(backend)]);
        for flags in [
            tcp::SYN,
            tcp::ACK,
            tcp::FIN | tcp::ACK,
            tcp::RST,
            tcp::SYN | tcp::ACK,
        ] {
            for port in 40000..40010 {
                let ran = node.arrives(UP0, &v4().tcp(port, 80).flags(flags));
                assert_eq!(ran.reason, Reason::ServiceL2);
            }
        }

        assert_eq!(node.rows::<Flows>(), []);
    });
}

#[test]
fn flows_go_where_userspace_computes_that_their_slot_is() {
    on_a_node(|node| {
        // A prime number of slots over three pages, and four backends told apart by the outer address.
        let backends: Vec<_> = (1..=4)
            .map(|last| node.backend(&format!("10.50.0.{last}"), forward::ENCAPSULATE))
            .collect();
        let ring: Vec<_> = (0..1031)
            .map(|slot| steady(backends[slot * 7 % 4]))
            .collect();
        serve(node, &ring);
        let mut served = BTreeMap::new();

        for port in 20000..20400 {
            let ran = node.arrives(UP0, &v4().tcp(port, 80));

            let key = flow((CLIENT_V4, port), (SERVICE_V4, 80), Proto::TCP);
            let slot = hash::slot(key.hash(), 1031);
            let last = (slot as usize * 7 % 4 + 1) as u8;
            assert_eq!(ran.frame[30..34], [10, 50, 0, last], "port {port}");
            *served.entry(last).or_insert(0) += 1;
        }

        assert_eq!(served.len(), 4);
        assert!(served.values().all(|&flows| flows > 60), "{served:?}");
    });
}

/// Two backends told apart by MAC, and one slot in transition from the first to the second.
fn in_transition(node: &mut Node) -> (u32, u32) {
    let previous = node.backend("10.1.0.11", forward::L2);
    let current = node.backend("10.2.0.12", forward::L2);
    serve(node, &[Slot { current, previous }]);
    (previous, current)
}

const OLD: (Action, [u8; 6]) = (Action::Back, BACKEND0);
const NEW: (Action, [u8; 6]) = (Action::Redirect, BACKEND1);

fn destination(node: &mut Node, packet: &Packet) -> (Action, [u8; 6]) {
    let ran = node.arrives(UP0, packet);
    assert_eq!(ran.reason, Reason::ServiceL2);
    let mut mac = [0; 6];
    mac.copy_from_slice(&ran.frame[..6]);
    (ran.action, mac)
}

#[test]
fn in_a_transition_a_new_connection_takes_the_current_backend_and_stays_there() {
    on_a_node(|node| {
        let (_, current) = in_transition(node);
        let packet = v4().tcp(40000, 80);

        assert_eq!(destination(node, &packet.clone().flags(tcp::SYN)), NEW);
        assert_eq!(destination(node, &packet), NEW);

        let rows = node.rows::<Flows>();
        let key = flow((CLIENT_V4, 40000), (SERVICE_V4, 80), Proto::TCP);
        assert!(matches!(
            rows[..],
            [(found, Flow { backend, .. })] if found == key && backend == current
        ));
    });
}

#[rstest]
#[case::tcp(v4().tcp(40000, 80))]
#[case::syn_ack(v4().tcp(40000, 80).flags(tcp::SYN | tcp::ACK))]
#[case::udp(v4().udp(40000, 80))]
fn in_a_transition_a_flow_that_is_not_remembered_stays_with_the_previous_backend(
    #[case] packet: Packet,
) {
    on_a_node(|node| {
        in_transition(node);

        assert_eq!(destination(node, &packet), OLD);

        assert_eq!(node.rows::<Flows>(), []);
    });
}

#[test]
fn in_a_transition_a_dead_previous_backend_is_left() {
    on_a_node(|node| {
        let (previous, _) = in_transition(node);
        node.set_alive(previous, false);

        assert_eq!(destination(node, &v4().tcp(40000, 80)), NEW);
    });
}

#[test]
fn a_remembered_flow_stays_with_its_backend_when_the_slot_changes_again() {
    on_a_node(|node| {
        let first = node.backend("10.1.0.11", forward::L2);
        let second = node.backend("10.2.0.12", forward::L2);
        let third = node.backend("10.1.0.254", forward::L2);
        let changing = |previous, current| Slot { current, previous };
        let service = node.service(SERVICE_V4, 80, Proto::TCP, &[changing(first, second)]);
        let packet = v4().tcp(40000, 80);
        assert_eq!(destination(node, &packet.clone().flags(tcp::SYN)), NEW);

        node.set_ring(service, &[changing(third, first)]);

        assert_eq!(destination(node, &packet), NEW);
    });
}

#[test]
fn a_remembered_flow_whose_backend_died_takes_the_current_one() {
    on_a_node(|node| {
        let (previous, _) = in_transition(node);
        let third = node.backend("10.1.0.254", forward::L2);
        node.set_alive(third, false);
        let key = flow((CLIENT_V4, 40000), (SERVICE_V4, 80), Proto::TCP);
        let remembered = Flow {
            backend: third,
            last_seen_s: 0,
        };
        node.set::<Flows>(&key, &remembered);
        node.set_alive(previous, true);

        assert_eq!(destination(node, &v4().tcp(40000, 80)), NEW);
    });
}

#[test]
fn the_memory_of_a_flow_notes_when_it_was_last_seen() {
    on_a_node(|node| {
        let (previous, _) = in_transition(node);
        let key = flow((CLIENT_V4, 40000), (SERVICE_V4, 80), Proto::TCP);
        let remembered = Flow {
            backend: previous,
            last_seen_s: 0,
        };
        node.set::<Flows>(&key, &remembered);

        assert_eq!(destination(node, &v4().tcp(40000, 80)), OLD);

        let row = node.get::<Flows>(&key).expect("a row");
        assert_eq!(row.backend, previous);
        assert_ne!(row.last_seen_s, 0);
    });
}

#[rstest]
#[case::ipv4(v4())]
#[case::ipv6(v6())]
fn a_service_without_slots_drops(#[case] packet: Packet) {
    on_a_node(|node| {
        serve(node, &[]);

        let ran = node.arrives(UP0, &packet.tcp(40000, 80));

        assert_eq!(ran.reason, Reason::ServiceNoBackend);
    });
}

#[rstest]
#[case::an_empty_slot(0)]
#[case::a_row_that_is_not_used(9)]
#[case::an_id_beyond_the_table(1 << 20)]
fn a_slot_without_a_backend_drops(#[case] backend: u32) {
    on_a_node(|node| {
        serve(node, &[steady(backend)]);

        let ran = node.arrives(UP0, &v4().tcp(40000, 80));

        assert_eq!(ran.reason, Reason::ServiceNoBackend);
    });
}

#[rstest]
#[case::ipv4(v4().ttl(1))]
#[case::ipv4_at_zero(v4().ttl(0))]
#[case::ipv6(v6().ttl(1))]
fn a_packet_whose_ttl_ends_here_goes_no_further(#[case] packet: Packet) {
    on_a_node(|node| {
        let backend = node.backend("10.1.0.11", forward::L2);
        serve(node, &[steady(backend)]);

        let ran = node.arrives(UP0, &packet.tcp(40000, 80));

        assert_eq!(ran.reason, Reason::ServiceTtlTold);
    });
}

#[rstest]
#[case::unknown_neighbour_v4("10.1.0.77", forward::L2, Reason::ServiceUnresolved)]
#[case::unknown_neighbour_v6("fd00:1::77", forward::L2, Reason::ServiceUnresolved)]
#[case::wrapped_to_an_unknown_neighbour_v4(
    "10.1.0.77",
    forward::ENCAPSULATE,
    Reason::ServiceUnresolved
)]
#[case::wrapped_to_an_unknown_neighbour_v6(
    "fd00:1::77",
    forward::ENCAPSULATE,
    Reason::ServiceUnresolved
)]
#[case::blackhole_v4("10.66.0.1", forward::L2, Reason::ServiceNoRoute)]
#[case::blackhole_v6("fd00:66::1", forward::ENCAPSULATE, Reason::ServiceNoRoute)]
#[case::this_node_v4("10.1.0.1", forward::L2, Reason::ServiceNoRoute)]
#[case::this_node_v6("fd00:1::1", forward::ENCAPSULATE, Reason::ServiceNoRoute)]
#[case::a_device_that_is_not_ours_v4("10.3.0.9", forward::L2, Reason::ServiceNoRoute)]
#[case::a_device_that_is_not_ours_v6("fd00:3::9", forward::ENCAPSULATE, Reason::ServiceNoRoute)]
fn a_backend_that_cannot_be_reached_drops(
    #[case] backend: &str,
    #[case] forward: u8,
    #[case] reason: Reason,
) {
    on_a_node(|node| {
        let id = node.backend(backend, forward);
        serve(node, &[steady(id)]);
        let packet = if backend.contains(':') { v6() } else { v4() };

        let ran = node.arrives(UP0, &packet.tcp(40000, 80));

        assert_eq!(ran.reason, reason);
    });
}

#[rstest]
#[case::over_ipv4(FAR_V4)]
#[case::over_ipv6(FAR_V6)]
fn a_node_without_a_tunnel_source_drops(#[case] backend: &str) {
    on_a_node(|node| {
        let id = node.backend(backend, forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        node.change(|row| {
            row.tunnel_v4 = fairlead_common::addr::Addr::NONE;
            row.tunnel_v6 = fairlead_common::addr::Addr::NONE;
        });

        let ran = node.arrives(UP0, &v4().tcp(40000, 80));

        assert_eq!(ran.reason, Reason::ServiceNoRoute);
    });
}

#[rstest]
#[case::ipv4_in_ipv4(v4(), "10.51.0.1", 1300 - 20)]
#[case::ipv6_in_ipv4(v6(), "10.51.0.1", 1300 - 20)]
#[case::ipv4_in_ipv6(v4(), "fd00:51::1", 1300 - 40)]
#[case::ipv6_in_ipv6(v6(), "fd00:51::1", 1300 - 40)]
fn what_fits_into_the_way_with_its_outer_header_goes_and_one_byte_more_does_not(
    #[case] head: Packet,
    #[case] backend: &str,
    #[case] fits: usize,
) {
    on_a_node(|node| {
        let id = node.backend(backend, forward::ENCAPSULATE);
        serve(node, &[steady(id)]);
        let header = head.clone().tcp(40000, 80).bytes().len() - 14;
        let packet = |bytes: usize| head.clone().tcp(40000, 80).payload(vec![0; bytes - header]);

        let goes = node.arrives(UP0, &packet(fits));
        let too_big = node.arrives(UP0, &packet(fits + 1));

        assert_eq!(goes.reason, Reason::ServiceEncapsulated);
        assert_eq!(too_big.reason, Reason::ServiceTooBigTold);
    });
}

/// To addresses beside the services'.
fn stranger_v4() -> Packet {
    eth().ip(CLIENT_V4, "192.0.2.81")
}

fn stranger_v6() -> Packet {
    eth().ip(CLIENT_V6, "2001:db8::81")
}

#[rstest]
#[case::another_address(eth().ip(CLIENT_V4, "192.0.2.81").tcp(40000, 80))]
#[case::the_way_back(eth().ip(SERVICE_V4, CLIENT_V4).tcp(80, 40000))]
#[case::icmp(stranger_v4().ping(1, 1))]
#[case::another_protocol(stranger_v4().proto(132).payload(*b"\x9c\x40\x00\x50"))]
fn what_is_not_the_services_is_routed(#[case] packet: Packet) {
    on_a_node(|node| {
        let id = node.backend("10.1.0.11", forward::L2);
        node.service(SERVICE_V4, 80, Proto::TCP, &[steady(id)]);
        node.ip("route add 192.0.2.0/24 via 10.2.0.12\n");

        let ran = node.arrives(UP0, &packet);

        assert_eq!(ran.reason, Reason::Routed);
    });
}

#[rstest]
#[case::first_fragment(stranger_v4().fragment(0, true).tcp(40000, 80), Reason::Fragment)]
#[case::later_fragment(stranger_v4().fragment(64, false).proto(6).payload(vec![0; 64]), Reason::Fragment)]
#[case::ipv6_fragment(stranger_v6().proto(44).payload(*b"\x06\0\0\x01\0\0\0\x01aaaaaaaaaaaaaaaaaaaaaaaa"), Reason::Fragment)]
#[case::ipv4_options(stranger_v4().options(&[1, 1, 1, 1]).tcp(40000, 80), Reason::IpOptions)]
#[case::ipv6_hop_by_hop(stranger_v6().proto(0).payload(*b"\x06\0\x01\x04\0\0\0\0aaaaaaaaaaaaaaaaaaaaaaaa"), Reason::IpOptions)]
#[case::cut_tcp_header_v4(stranger_v4().proto(6).payload(*b"\x9c\x40\x00\x50"), Reason::Malformed)]
#[case::cut_tcp_header_v6(stranger_v6().proto(6).payload(*b"\x9c\x40\x00\x50"), Reason::Malformed)]
#[case::cut_udp_header_v4(stranger_v4().proto(17).payload(*b"\x9c\x40\x00\x50"), Reason::Malformed)]
#[case::cut_udp_header_v6(stranger_v6().proto(17).payload(*b"\x9c\x40\x00\x50"), Reason::Malformed)]
fn what_is_not_plain_and_not_the_services_is_passed_untouched(
    #[case] packet: Packet,
    #[case] reason: Reason,
) {
    on_a_node(|node| {
        let id = node.backend("10.1.0.11", forward::L2);
        serve(node, &[steady(id)]);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(ran.reason, reason);
    });
}
