//! What some services ask for: sources that are let in, and clients that stay with their backends.

use fairlead_common::addr::Proto;
use fairlead_common::hash;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, SourceRange, forward, service_flags};
use fairlead_common::tables::{BackendStats, SourceRanges};
use fairlead_tests::kernel::{BACKEND0, Node, UP0, addr_of, flow, on_a_node};
use fairlead_tests::packet::{Packet, eth};
use rstest::rstest;

const SERVICE_V4: &str = "192.0.2.80";
const SERVICE_V6: &str = "2001:db8::80";

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

/// The backend that a packet to the services of [`serve`] is counted for, if any.
fn chosen(node: &mut Node, backends: &[u32], packet: &Packet) -> Option<u32> {
    let counts = |node: &mut Node| -> Vec<u64> {
        let of = |id: &u32| node.count::<BackendStats>(id).packets;
        backends.iter().map(of).collect()
    };
    let before = counts(node);
    node.arrives(UP0, packet);
    let after = counts(node);
    let mut grown = backends.iter().zip(before.iter().zip(&after));
    grown
        .find(|(_, (before, after))| before != after)
        .map(|(id, _)| *id)
}

#[rstest]
#[case::ipv4(SERVICE_V4, ["203.0.113.0/24", "198.51.100.7/32"], ["203.0.113.9", "198.51.100.7"], ["203.0.112.9", "198.51.100.6"])]
#[case::ipv6(SERVICE_V6, ["2001:db8:9::/48", "2001:db8:a::1/128"], ["2001:db8:9::9", "2001:db8:a::1"], ["2001:db8:8::9", "2001:db8:a::2"])]
fn only_sources_in_the_ranges_of_a_service_are_let_in(
    #[case] service: &str,
    #[case] ranges: [&str; 2],
    #[case] inside: [&str; 2],
    #[case] outside: [&str; 2],
) {
    on_a_node(|node| {
        let backend = if service == SERVICE_V4 {
            "10.1.0.11"
        } else {
            "fd00:1::11"
        };
        let backend = node.backend(backend, forward::L2);
        serve(node, &[steady(backend)]);
        let mut id = 0;
        node.change_service(service, 80, Proto::TCP, |row| {
            row.flags = service_flags::SOURCE_RANGES;
            id = row.id;
        });
        for range in ranges {
            let (addr, length) = range.split_once('/').expect("a prefix");
            let length = length.parse().expect("a length");
            let range = SourceRange::new(id, addr_of(addr), length);
            node.set::<SourceRanges>(&range, &1);
        }
        // Another service's range is nobody else's.
        let other = SourceRange::new(
            id + 1,
            addr_of(outside[0]),
            if service == SERVICE_V4 { 32 } else { 128 },
        );
        node.set::<SourceRanges>(&other, &1);

        for (sources, expected) in [
            (inside, Reason::ServiceL2),
            (outside, Reason::ServiceSourceDenied),
        ] {
            for source in sources {
                let ran = node.arrives(UP0, &eth().ip(source, service).tcp(40000, 80));
                assert_eq!(ran.reason, expected, "{source}");
            }
        }
        // The service of the other protocol has no ranges.
        let ran = node.arrives(UP0, &eth().ip(outside[1], service).udp(40000, 80));
        assert_eq!(ran.reason, Reason::ServiceL2);
    });
}

#[rstest]
#[case::ipv4(SERVICE_V4, "203.0.113.", ["10.1.0.11", "10.1.0.12"])]
#[case::ipv6(SERVICE_V6, "2001:db8:9::", ["fd00:1::11", "fd00:1::12"])]
fn with_affinity_all_flows_of_a_client_go_to_the_slot_of_its_address(
    #[case] service: &str,
    #[case] clients: &str,
    #[case] backends: [&str; 2],
) {
    on_a_node(|node| {
        let backends = backends.map(|addr| {
            let backend = node.backend(addr, forward::L2);
            node.next_hop(backend, UP0, Some(BACKEND0), 1500);
            backend
        });
        let ring: Vec<_> = (0..251).map(|slot| steady(backends[slot % 2])).collect();
        serve(node, &ring);
        for proto in [Proto::TCP, Proto::UDP] {
            node.change_service(service, 80, proto, |row| {
                row.flags = service_flags::AFFINITY;
            });
        }
        let mut used = [0; 2];
        for client in 1..40 {
            let client = format!("{clients}{client}");
            let key = flow((&client, 1), (service, 80), Proto::TCP);
            let slot = hash::slot(key.client_hash(), 251);
            let expected = backends[slot as usize % 2];
            used[slot as usize % 2] += 1;
            for port in [1, 40000, 65535] {
                let packet = eth().ip(&client, service);
                for packet in [packet.clone().tcp(port, 80), packet.udp(port, 80)] {
                    assert_eq!(chosen(node, &backends, &packet), Some(expected));
                }
            }
        }
        assert!(used.iter().all(|clients| *clients > 5), "{used:?}");
    });
}
