//! Every way a packet can end is reached by a packet: a reason that no test can give is dead, and one that
//! has just been declared does not compile here until a packet stands beside it.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::thread;

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::detour;
use fairlead_common::reason::Reason;
use fairlead_common::route::node_flags;
use fairlead_common::service::{Slot, flags, forward, service_flags};
use fairlead_common::snat::{self, Binding, State};
use fairlead_common::tables::{DecapAddrs, NodeTable, SnatRev};
use fairlead_tests::kernel::{EGRESS, Node, ROUTER, Ran, SNAT_ROWS, UP0, addr_of, flow, on_a_node};
use fairlead_tests::packet::{Packet, eth};

const POD_V4: &str = "10.244.1.5";
const FAR: &str = "203.0.113.9";
const SERVICE: &str = "192.0.2.80";

fn to_pod() -> Packet {
    eth().ip(FAR, POD_V4)
}

fn from_pod() -> Packet {
    eth().ip(POD_V4, FAR)
}

/// A packet to a service with this one backend.
fn served(node: &mut Node, backend: &str, forward: u8, packet: &Packet) -> Ran {
    let current = node.backend(backend, forward);
    let slot = Slot {
        current,
        previous: 0,
    };
    node.service(SERVICE, 80, Proto::TCP, &[slot]);
    node.arrives(UP0, packet)
}

fn to_service() -> Packet {
    eth().ip(FAR, SERVICE).tcp(40000, 80)
}

fn ping() -> Packet {
    eth().ip(FAR, SERVICE).ping(1, 1)
}

/// A pod that serves on its service's port, of which a client has asked something.
fn asked(node: &mut Node) -> Ran {
    let current = node.backend(POD_V4, forward::HERE);
    node.listens(current, 80);
    let ring = [Slot {
        current,
        previous: 0,
    }];
    for service in [SERVICE, "192.0.2.81"] {
        node.service(service, 80, Proto::TCP, &ring);
    }
    node.arrives(UP0, &to_service())
}

/// A packet that comes back to what `pod` sent.
fn answered(node: &mut Node, pod: &str) -> Ran {
    let left = node.leaves(&eth().ip(pod, FAR).tcp(40000, 80));
    let port = u16::from_be_bytes([left.frame[34], left.frame[35]]);
    node.arrives(UP0, &eth().ip(FAR, EGRESS).tcp(80, port))
}

/// A packet at the tunnel's end, with this outer traffic class.
fn unwrapped(node: &mut Node, to: &str, traffic_class: u8) -> Ran {
    node.set::<DecapAddrs>(&addr_of(SERVICE), &0);
    let packet = eth()
        .ip("10.9.9.9", "10.1.0.1")
        .traffic_class(traffic_class);
    let packet = packet.ip(FAR, to).tcp(1, 80).macs(ROUTER, UP0.mac);
    node.xdp("xdp_decap", UP0, &packet.bytes())
}

fn taken(node: &mut Node) -> Ran {
    let inside = flow((POD_V4, 40000), (FAR, 80), Proto::UDP);
    let row = node.get::<NodeTable>(&0).expect("a row");
    let hash = snat::port_hash(&inside, row.port_secret);
    let bucket = row.buckets[snat::cell(hash)];
    let other = Binding {
        inside: addr_of("10.244.1.99"),
        state: State::Established as u8,
        // In the future, so that it lives whatever the clock says.
        last_seen_s: i32::MAX as u32 / 2,
        ..Binding::default()
    };
    for probe in 0..snat::PROBES {
        let port = snat::port(hash, bucket, probe);
        node.set::<SnatRev>(&snat::outside(&inside, addr_of(EGRESS), port), &other);
    }
    node.leaves(&from_pod().udp(40000, 80))
}

fn full(node: &mut Node) -> Ran {
    for i in 0..SNAT_ROWS {
        let mut key = flow((EGRESS, 1), (FAR, 1), Proto::UDP);
        (key.dst, key.dst_port) = (Addr::from_v4_word(i), Port::new(1));
        node.set::<SnatRev>(&key, &Binding::default());
    }
    node.leaves(&from_pod().udp(40000, 80))
}

/// Makes a packet end so. `None`: no packet can, and the arm says why.
fn end_as(reason: Reason, node: &mut Node) -> Option<Ran> {
    Some(match reason {
        Reason::ServiceL2 => served(node, "10.1.0.11", forward::L2, &to_service()),
        Reason::ServiceEncapsulated => {
            served(node, "10.50.0.1", forward::ENCAPSULATE, &to_service())
        }
        Reason::ServiceTranslated => asked(node),
        Reason::ServiceToStack => {
            let current = node.backend("10.1.0.1", forward::HERE);
            node.set_flags(current, flags::STACK);
            let ring = [Slot {
                current,
                previous: 0,
            }];
            node.service(SERVICE, 80, Proto::TCP, &ring);
            node.arrives(UP0, &to_service())
        }
        Reason::ServiceAnswered => {
            asked(node);
            node.pod_sends(&from_pod().tcp(80, 40000))
        }
        Reason::ServiceAnsweredByStack => {
            asked(node);
            node.ip("route add 203.0.113.0/24 via 10.3.0.9\n");
            node.pod_sends(&from_pod().tcp(80, 40000))
        }
        Reason::ServiceUntranslated => {
            asked(node);
            node.close_detour(detour::HERE);
            node.arrives(UP0, &eth().vlan(10).ip(FAR, SERVICE).tcp(40000, 80))
        }
        Reason::ServiceRelay => {
            node.close_detours();
            served(node, "10.1.0.11", forward::NAT, &to_service())
        }
        Reason::ServiceFlowTaken => {
            asked(node);
            node.pod_sends(&from_pod().tcp(80, 40000));
            node.arrives(UP0, &eth().ip(FAR, "192.0.2.81").tcp(40000, 80))
        }
        Reason::Decapsulated => unwrapped(node, SERVICE, 0),
        Reason::Routed => node.arrives(UP0, &to_pod().tcp(1, 2)),
        Reason::Translated => node.leaves(&from_pod().tcp(1, 2)),
        Reason::TranslatedBack => answered(node, POD_V4),
        Reason::TranslatedToStack => {
            node.ip("route add 10.244.1.6/32 dev pod0\n");
            answered(node, "10.244.1.6")
        }
        Reason::ServiceIcmpError => {
            let quoted = eth().ip(SERVICE, FAR).tcp(80, 40000);
            let packet = eth().ip(FAR, SERVICE).icmp(3, 4, 1400).inside(&quoted);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceEcho => served(node, "10.1.0.11", forward::L2, &ping()),
        Reason::ServiceTooBigTold => {
            let packet = to_service().payload([0; 1300]);
            served(node, "10.51.0.1", forward::ENCAPSULATE, &packet)
        }
        Reason::ServiceTtlTold => served(node, "10.1.0.11", forward::L2, &to_service().ttl(1)),
        Reason::ServiceRefused => {
            node.change(|row| row.flags |= node_flags::REFUSES);
            served(node, "10.1.0.11", forward::FREE, &to_service())
        }
        Reason::NotIp => node.arrives(UP0, &eth().ether_type(0x0806).payload([0; 28])),
        Reason::OtherMac => {
            let frame = to_pod().tcp(1, 2).macs(ROUTER, [0xff; 6]).bytes();
            node.xdp("xdp_ingress", UP0, &frame)
        }
        Reason::Tagged => node.arrives(UP0, &eth().vlan(10).ip(FAR, POD_V4).tcp(1, 2)),
        Reason::Unforwardable => node.arrives(UP0, &eth().ip("127.0.0.1", POD_V4).tcp(1, 2)),
        Reason::Local => node.arrives(UP0, &eth().ip(FAR, "10.1.0.1").tcp(1, 2)),
        Reason::NoRoute => node.arrives(UP0, &eth().ip(FAR, "10.66.0.1").tcp(1, 2)),
        Reason::OtherDevice => node.arrives(UP0, &eth().ip(FAR, "10.3.0.9").tcp(1, 2)),
        Reason::NeighbourUnresolved => node.arrives(UP0, &eth().ip(FAR, "10.1.0.77").tcp(1, 2)),
        Reason::TtlExceeded => node.arrives(UP0, &to_pod().ttl(1).tcp(1, 2)),
        Reason::MtuExceeded => {
            let packet = eth().ip(FAR, "10.51.0.1").udp(1, 2).payload([0; 1300]);
            node.arrives(UP0, &packet)
        }
        Reason::IpOptions => node.arrives(UP0, &to_pod().options(&[1, 1, 1, 1]).tcp(1, 2)),
        Reason::PodOdd => {
            node.close_detours();
            node.pod_sends(&from_pod().fragment(9, false).udp(1, 2))
        }
        Reason::Fragment => node.arrives(UP0, &to_pod().fragment(9, false).udp(1, 2)),
        Reason::Malformed => node.arrives(UP0, &to_pod().bad_header_checksum().tcp(1, 2)),
        Reason::Native => node.leaves(&eth().ip(POD_V4, "10.244.2.5").tcp(1, 2)),
        Reason::NotFromPod => node.leaves(&eth().ip("10.1.0.1", FAR).tcp(1, 2)),
        Reason::TranslationOff => {
            node.change(|row| row.egress = Addr::NONE);
            node.leaves(&from_pod().tcp(1, 2))
        }
        Reason::NotEncapsulated => {
            let frame = to_pod().tcp(1, 2).macs(ROUTER, UP0.mac).bytes();
            node.xdp("xdp_decap", UP0, &frame)
        }
        Reason::Wrapped => {
            node.close_detours();
            let outer = eth().ip("10.9.9.9", POD_V4);
            node.arrives(UP0, &outer.ip(FAR, SERVICE).tcp(1, 80))
        }
        Reason::InnerForeign => unwrapped(node, "192.0.2.81", 0),
        Reason::ServiceNoBackend => served(node, "10.1.0.11", forward::FREE, &to_service()),
        Reason::ServiceUnresolved => served(node, "10.1.0.77", forward::L2, &to_service()),
        Reason::ServiceNoRoute => served(node, "10.66.0.1", forward::L2, &to_service()),
        Reason::ServiceTooBig => {
            let quoted = eth().ip(SERVICE, FAR).tcp(80, 40000).payload([0; 1300]);
            let packet = eth().ip(FAR, SERVICE).icmp(3, 4, 1400).inside(&quoted);
            served(node, "10.51.0.1", forward::ENCAPSULATE, &packet)
        }
        Reason::ServiceTtl => {
            let quoted = eth().ip(SERVICE, FAR).tcp(80, 40000);
            let packet = eth()
                .ip(FAR, SERVICE)
                .ttl(1)
                .icmp(3, 4, 1400)
                .inside(&quoted);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceAnswerLimited => {
            node.exhaust_answers();
            served(node, "10.1.0.11", forward::L2, &to_service().ttl(1))
        }
        Reason::ServiceOdd => {
            node.close_detours();
            served(node, "10.1.0.11", forward::L2, &ping())
        }
        Reason::ServiceOther => {
            let packet = eth().ip(FAR, SERVICE).proto(47).payload([0; 8]);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceEchoUnserved => {
            node.service(SERVICE, 80, Proto::TCP, &[]);
            node.arrives(UP0, &ping())
        }
        Reason::ServiceIcmpForeign => {
            let quoted = eth().ip(SERVICE, FAR).tcp(81, 40000);
            let packet = eth().ip(FAR, SERVICE).icmp(3, 4, 1400).inside(&quoted);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceIcmpUnreadable => {
            let packet = eth().ip(FAR, SERVICE).icmp(3, 4, 1400);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceHeaders => {
            let packet = eth().ip(FAR, SERVICE).options(&[1; 4]).ping(1, 1);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceFragmentUnknown => {
            let packet = eth().ip(FAR, SERVICE).fragment(9, false).udp(1, 2);
            served(node, "10.1.0.11", forward::L2, &packet)
        }
        Reason::ServiceSourceDenied => {
            served(node, "10.1.0.11", forward::L2, &to_service());
            node.change_service(SERVICE, 80, Proto::TCP, |row| {
                row.flags = service_flags::SOURCE_RANGES;
            });
            node.arrives(UP0, &to_service())
        }
        Reason::PortsExhausted => taken(node),
        Reason::BindingsFull => full(node),
        Reason::ProtocolUntranslatable => node.leaves(&from_pod().proto(50).payload([0; 8])),
        Reason::FragmentUntranslatable => node.leaves(&from_pod().fragment(9, false).udp(1, 2)),
        Reason::MalformedUntranslatable => node.leaves(&from_pod().proto(6).payload([0; 8])),
        Reason::NoBinding => node.arrives(UP0, &eth().ip(FAR, EGRESS).tcp(80, 2000)),
        Reason::IcmpErrorUntranslated => {
            let packet = eth().ip(FAR, EGRESS).icmp(3, 1, 0).payload([0; 28]);
            node.arrives(UP0, &packet)
        }
        Reason::CongestionLost => unwrapped(node, SERVICE, 3),
        // No packet: a system call (`sock.rs`).
        Reason::ServiceSocket | Reason::ServiceSocketRefused => return None,
        // The helpers do not fail on a packet that has come this far.
        Reason::HelperFailed => return None,
    })
}

/// How a packet for this reason ended, if there can be one, and how often the reason was counted. `None`: not root,
/// which `on_a_node` has said.
fn end_of(reason: Reason) -> Option<(Option<Reason>, u64)> {
    let mut given = None;
    on_a_node(|node| {
        let ended = end_as(reason, node).map(|ran| ran.reason);
        let counted = node.reasons()[reason as usize].packets;
        given = Some((ended, counted));
    });
    given
}

#[test]
fn every_reason_is_the_end_of_some_packet() {
    // Each has a node of its own, whose programs are verified first: on all cores.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let ends: Vec<_> = thread::scope(|scope| {
        let share = |core| {
            let reasons = Reason::ALL.iter().skip(core).step_by(cores);
            reasons.map(|&reason| (reason, end_of(reason))).collect()
        };
        let shares: Vec<_> = (0..cores)
            .map(|core| scope.spawn(move || -> Vec<_> { share(core) }))
            .collect();
        let ends = shares.into_iter().map(thread::ScopedJoinHandle::join);
        ends.flat_map(|share| share.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    });
    let mut never = BTreeSet::new();
    for (reason, given) in ends {
        match given {
            None => return,
            Some((None, _)) => {
                never.insert(reason);
            }
            Some((Some(ended), counted)) => {
                assert_eq!(ended, reason);
                assert_eq!(counted, 1, "{reason} in REASONS");
            }
        }
    }
    assert_eq!(
        never,
        BTreeSet::from([
            Reason::HelperFailed,
            Reason::ServiceSocket,
            Reason::ServiceSocketRefused
        ])
    );
}
