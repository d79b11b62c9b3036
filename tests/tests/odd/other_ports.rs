//! What no service takes.

use super::*;

#[rstest]
#[case::tcp(eth().ip(CLIENT_V4, SERVICE_V4).tcp(40000, 22))]
#[case::udp(eth().ip(CLIENT_V6, SERVICE_V6).udp(40000, 33434))]
#[case::sctp(eth().ip(CLIENT_V4, SERVICE_V4).proto(132).payload([0; 12]))]
#[case::gre(eth().ip(CLIENT_V6, SERVICE_V6).proto(47).payload([0; 12]))]
fn what_no_service_takes_is_not_sent_back_into_the_fabric(#[case] packet: Packet) {
    on_a_node(|node| {
        served_by(node, "10.1.0.11", forward::L2);

        assert_eq!(node.arrives(UP0, &packet).reason, Reason::ServiceOther);
    });
}

#[rstest]
#[case::ipv4("10.1.0.1", eth().ip(CLIENT_V4, "10.1.0.1"))]
#[case::ipv6("fd00:1::1", eth().ip(CLIENT_V6, "fd00:1::1"))]
fn where_the_address_is_the_hosts_own_too_the_stack_takes_it(
    #[case] addr: &str,
    #[case] head: Packet,
) {
    on_a_node(|node| {
        let id = node.backend("10.1.0.11", forward::L2);
        node.service(addr, 80, Proto::TCP, &[steady(id)]);

        for packet in [
            head.clone().tcp(40000, 22),
            head.clone().proto(47).payload([0; 12]),
        ] {
            assert_eq!(node.arrives(UP0, &packet).reason, Reason::Local);
        }
    });
}
