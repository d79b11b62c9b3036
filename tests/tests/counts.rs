//! What is counted for services and backends, by the real program.

use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;
use fairlead_common::service::{ServiceDrop, Slot, forward};
use fairlead_common::tables::{BackendStats, ServiceDrops, ServiceStats};
use fairlead_tests::kernel::{UP0, on_a_node};
use fairlead_tests::packet::{Packet, eth, tcp};

const SERVICE_V4: &str = "192.0.2.80";
const CLIENT_V4: &str = "203.0.113.9";
/// On the link of the first uplink.
const NEXT_DOOR: &str = "10.1.0.11";
/// Behind the router.
const FAR_V6: &str = "fd00:50::1";

fn steady(backend: u32) -> Slot {
    Slot {
        current: backend,
        previous: 0,
    }
}

fn v4() -> Packet {
    eth().ip(CLIENT_V4, SERVICE_V4)
}

#[test]
fn packets_and_bytes_are_counted_for_service_and_backend() {
    on_a_node(|node| {
        let backend = node.backend(FAR_V6, forward::ENCAPSULATE);
        let service = node.service(SERVICE_V4, 80, Proto::TCP, &[steady(backend)]);
        let packet = v4().tcp(40000, 80).payload(*b"hello");
        let bytes = packet.bytes().len() as u64;

        node.arrives(UP0, &packet);
        node.arrives(UP0, &packet);

        for count in [
            node.count::<ServiceStats>(&service),
            node.count::<BackendStats>(&backend),
        ] {
            assert_eq!((count.packets, count.bytes), (2, 2 * bytes));
        }
    });
}

#[test]
fn a_dropped_packet_is_not_counted_for_its_service() {
    on_a_node(|node| {
        let backend = node.backend("10.1.0.77", forward::L2);
        let service = node.service(SERVICE_V4, 80, Proto::TCP, &[steady(backend)]);

        node.arrives(UP0, &v4().tcp(40000, 80));

        assert_eq!(node.count::<ServiceStats>(&service).packets, 0);
        assert_eq!(node.count::<BackendStats>(&backend).packets, 0);
    });
}

#[test]
fn a_dropped_packet_is_counted_for_its_service_by_its_reason() {
    on_a_node(|node| {
        let away = node.backend("10.1.0.77", forward::L2);
        let near = node.backend(NEXT_DOOR, forward::L2);
        let broken = node.service(SERVICE_V4, 80, Proto::TCP, &[steady(away)]);
        let works = node.service(SERVICE_V4, 81, Proto::TCP, &[steady(near)]);

        node.arrives(UP0, &v4().tcp(40000, 80));
        node.arrives(UP0, &v4().tcp(40001, 80));
        node.arrives(UP0, &v4().ttl(1).tcp(40000, 80));
        node.arrives(UP0, &v4().tcp(40000, 81));

        let mut drops = |service, reason: Reason| {
            node.count::<ServiceDrops>(&ServiceDrop {
                service,
                reason: reason as u32,
            })
        };
        assert_eq!(drops(broken, Reason::ServiceUnresolved), 2);
        assert_eq!(drops(broken, Reason::ServiceTtl), 1);
        assert_eq!(drops(works, Reason::ServiceUnresolved), 0);
    });
}

#[test]
fn a_tcp_flow_is_counted_as_new_by_its_syn_and_a_datagram_never() {
    on_a_node(|node| {
        let backend = node.backend(NEXT_DOOR, forward::L2);
        let tcp_service = node.service(SERVICE_V4, 80, Proto::TCP, &[steady(backend)]);
        let udp_service = node.service(SERVICE_V4, 80, Proto::UDP, &[steady(backend)]);

        node.arrives(UP0, &v4().tcp(40000, 80).flags(tcp::SYN));
        node.arrives(UP0, &v4().tcp(40000, 80).flags(tcp::ACK));
        node.arrives(UP0, &v4().tcp(40000, 80).flags(tcp::SYN | tcp::ACK));
        node.arrives(UP0, &v4().udp(40000, 80));

        let of_tcp = node.count::<ServiceStats>(&tcp_service);
        assert_eq!((of_tcp.packets, of_tcp.new_flows), (3, 1));
        assert_eq!(node.count::<ServiceStats>(&udp_service).new_flows, 0);
        let of_backend = node.count::<BackendStats>(&backend);
        assert_eq!(
            (
                of_backend.packets,
                of_backend.new_flows,
                of_backend.in_transition
            ),
            (4, 1, 0)
        );
    });
}

#[test]
fn packets_of_a_slot_in_transition_are_counted_as_such() {
    on_a_node(|node| {
        let old = node.backend(FAR_V6, forward::ENCAPSULATE);
        let new = node.backend(NEXT_DOOR, forward::L2);
        let slot = Slot {
            current: new,
            previous: old,
        };
        let service = node.service(SERVICE_V4, 80, Proto::TCP, &[slot]);

        node.arrives(UP0, &v4().tcp(40000, 80).flags(tcp::SYN));
        node.arrives(UP0, &v4().tcp(40001, 80).flags(tcp::ACK));

        assert_eq!(node.count::<ServiceStats>(&service).in_transition, 2);
        assert_eq!(node.count::<BackendStats>(&new).in_transition, 1);
        assert_eq!(node.count::<BackendStats>(&old).in_transition, 1);
    });
}
