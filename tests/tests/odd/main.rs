//! Packets to the addresses of services that are not plain, through the real programs.

use fairlead_common::addr::Proto;
use fairlead_common::fragment::LIFETIME_S;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, forward};
use fairlead_common::tables::{Fragments, ServiceStats};
use fairlead_tests::kernel::{Action, BACKEND0, BACKEND1, Node, ROUTER, Ran, UP0, on_a_node};
use fairlead_tests::packet::{Packet, eth};
use rstest::rstest;

mod answers;
mod echo;
mod fragments;
mod headers;
mod icmp_errors;
mod other_ports;

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

#[test]
fn without_the_program_for_odd_packets_they_are_dropped_and_counted() {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);
        node.close_detours();

        let ran = node.arrives(UP0, &eth().ip(CLIENT_V4, SERVICE_V4).ping(1, 1));

        assert_eq!((ran.reason, ran.action), (Reason::ServiceOdd, Action::Drop));
    });
}

#[test]
fn without_the_program_for_tagged_frames_they_are_the_stacks() {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);
        node.close_detours();

        let packet = eth().vlan(10).ip(CLIENT_V4, SERVICE_V4).tcp(40000, 80);
        let ran = node.arrives(UP0, &packet);

        assert_eq!((ran.reason, ran.action), (Reason::Tagged, Action::Pass));
    });
}
