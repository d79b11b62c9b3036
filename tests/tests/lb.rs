//! Balancing: packets to services, through the real program.

use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Slot, forward};
use fairlead_tests::kernel::{Action, BACKEND0, UP0, on_a_node};
use fairlead_tests::packet::eth;

const SERVICE_V4: &str = "192.0.2.80";

#[test]
fn a_packet_to_a_service_goes_to_a_backend_on_the_link() {
    on_a_node(|node| {
        let backend = node.backend("10.1.0.11", forward::L2);
        let slot = Slot {
            current: backend,
            previous: 0,
        };
        node.service(SERVICE_V4, 80, Proto::TCP, &[slot]);
        let packet = eth().ip("203.0.113.9", SERVICE_V4).tcp(40000, 80);

        let ran = node.arrives(UP0, &packet);

        assert_eq!(ran.reason, Reason::ServiceL2);
        assert_eq!(ran.action, Action::Back);
        assert_eq!(ran.frame, packet.macs(UP0.mac, BACKEND0).bytes());
    });
}
