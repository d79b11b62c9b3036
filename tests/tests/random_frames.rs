//! Frames that nobody would send: whatever comes, the real programs end it for one counted reason, and what leaves is
//! as whole as what came.
//!
//! A frame is a good one with some of its bytes changed, cut off or put in. Of every run [`Node`] checks that one
//! reason is counted, that the action is that of its verdict, and that what is passed is untouched.

use std::panic::catch_unwind;

use fairlead_common::addr::Proto;
use fairlead_common::service::{Slot, forward};
use fairlead_tests::kernel::{Node, POD, POD0, ROUTER, UP0, on_a_node};
use fairlead_tests::packet::{Packet, check, eth};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Services behind a pod, a host on the link and one behind a router, by family.
const SERVICES: [[&str; 2]; 3] = [
    ["192.0.2.80", "2001:db8::80"],
    ["192.0.2.81", "2001:db8::81"],
    ["192.0.2.82", "2001:db8::82"],
];
const BACKENDS: [([&str; 2], u8); 3] = [
    (["10.244.1.5", "fd00:244:1::5"], forward::HERE),
    (["10.1.0.11", "fd00:1::11"], forward::L2),
    (["10.50.0.1", "fd00:50::1"], forward::ENCAPSULATE),
];
const CLIENT: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const OTHER_NODE: [&str; 2] = ["10.50.0.9", "fd00:50::9"];
/// Frames that are tried.
const FRAMES: u32 = 20_000;

fn serve(node: &mut Node) {
    for (service, (backend, forward)) in SERVICES.into_iter().zip(BACKENDS) {
        for (service, backend) in service.into_iter().zip(backend) {
            let current = node.backend(backend, forward);
            if forward == forward::HERE {
                node.listens(current, 8080);
            }
            for proto in [Proto::TCP, Proto::UDP] {
                let slot = Slot {
                    current,
                    previous: 0,
                };
                node.service(service, 80, proto, &[slot]);
                if forward == forward::HERE {
                    node.arrives_for((service, 80, proto), current);
                }
            }
        }
    }
}

/// A good packet: to a service, to a pod or from it; by itself, tagged, or in a tunnel.
fn good() -> impl Strategy<Value = Packet> {
    (0_usize..2, 0_usize..5, 0_u8..5, 0_u8..8, 0_usize..64).prop_map(
        |(family, to, front, shape, bytes)| {
            let pod = BACKENDS[0].0[family];
            let tunnel = |packet: Packet| packet.ip(OTHER_NODE[family], pod);
            let front = match front {
                0 => eth(),
                1 => eth().vlan(10),
                2 => eth().vlan(7).vlan(10),
                3 => tunnel(eth()),
                _ => tunnel(eth()).udp(50000, 6080).without_checksum(),
            };
            let client = CLIENT[family];
            let (from, to) = match (to, SERVICES.get(to)) {
                (_, Some(service)) => ((client, 40000), (service[family], 80)),
                (3, None) => ((client, 40000), (pod, 8080)),
                (_, None) => ((pod, 8080), (client, 40000)),
            };
            let packet = eth().ip(from.0, to.0);
            let body = vec![7; bytes];
            let packet = match (shape, family) {
                (0, 0) => packet.options(&[1; 8]).tcp(from.1, to.1),
                (0, _) => packet.extension(60, &[0; 7]).tcp(from.1, to.1),
                (1, 0) => packet.fragment(0, true).udp(from.1, to.1).payload([1; 24]),
                (1, _) => {
                    let packet = packet.fragment_header(9, 0, true);
                    packet.udp(from.1, to.1).payload([1; 24])
                }
                (2, 0) => packet.fragment(4, false).next(17).payload(body),
                (2, _) => packet.fragment_header(9, 4, false).next(17).payload(body),
                (3, _) => {
                    let about = eth().ip(to.0, from.0).tcp(to.1, from.1);
                    let (kind, code) = [(3, 4), (2, 0)][family];
                    packet.icmp(kind, code, 1400).inside(&about)
                }
                (4, 0) => packet.ping(1, 1),
                (4, _) => packet.icmp(128, 0, 1),
                (5, _) => packet.udp(from.1, to.1).payload(body),
                _ => packet.tcp(from.1, to.1).payload(body),
            };
            front.inside(&packet)
        },
    )
}

/// What is done to the bytes of a good frame.
#[derive(Clone, Debug)]
enum Spoil {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    PutIn(prop::sample::Index, Vec<u8>),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        8 => (at(), any::<u8>()).prop_map(|(at, byte)| Spoil::Set(at, byte)),
        2 => at().prop_map(Spoil::Cut),
        2 => (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Spoil::PutIn(at, bytes)),
    ]
}

/// The MAC addresses stay: others' frames are not looked into. The kernel takes no empty one for a test run.
fn spoilt(mut frame: Vec<u8>, spoils: Vec<Spoil>) -> Vec<u8> {
    const LEAST: usize = 15;
    for spoil in spoils {
        let room = frame.len() - 12;
        match spoil {
            Spoil::Set(at, byte) => frame[12 + at.index(room)] = byte,
            Spoil::Cut(at) => frame.truncate(LEAST.max(12 + at.index(room))),
            Spoil::PutIn(at, bytes) => {
                let at = 12 + at.index(room);
                frame.splice(at..at, bytes);
            }
        }
    }
    frame
}

#[test]
fn whatever_comes_ends_for_one_reason_and_what_leaves_is_as_whole_as_what_came() {
    on_a_node(|node| {
        node.accept_spoilt();
        serve(node);
        let node = std::cell::RefCell::new(node);
        let left = std::cell::Cell::new(0);
        let mut runner = TestRunner::new(Config {
            cases: FRAMES,
            max_global_rejects: FRAMES,
            ..Config::default()
        });
        let frames = (good(), vec(spoil(), 0..4), any::<bool>());
        // What etherparse finds wrong it says by a panic, which is expected of most.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let end = runner.run(&frames, |(packet, spoils, is_pods)| {
            let node = &mut **node.borrow_mut();
            let (macs, link) = if is_pods {
                ((POD, POD0.mac), POD0)
            } else {
                ((ROUTER, UP0.mac), UP0)
            };
            let frame = spoilt(packet.macs(macs.0, macs.1).bytes(), spoils);
            // The kernel takes no frame without a whole IP header for a test run of a TC program.
            prop_assume!(!is_pods || frame.len() >= 14 + 40);

            let ran = if is_pods {
                node.tc("tc_ingress", link, &frame, 0)
            } else {
                node.xdp("xdp_ingress", link, &frame)
            };

            if ran.frame != frame && catch_unwind(|| check(&frame)).is_ok() {
                left.set(left.get() + 1);
                let is_whole = catch_unwind(|| check(&ran.frame)).is_ok();
                prop_assert!(is_whole, "{}: {:02x?}", ran.reason, ran.frame);
            }
            Ok(())
        });
        std::panic::set_hook(hook);
        end.unwrap_or_else(|error| panic!("{error}"));
        assert!(left.get() > FRAMES / 20, "only {} frames left", left.get());
    });
}
