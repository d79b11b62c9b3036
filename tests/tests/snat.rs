//! Translation: what pods send to the outside, and what comes back, through the real programs.

use fairlead_common::addr::{Addr, Cidr4, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::route::node_flags;
use fairlead_common::snat::{self, Binding, PROBES, State};
use fairlead_common::tables::{NodeTable, SnatFwd, SnatRev};
use fairlead_tests::kernel::{
    Action, EGRESS, Node, POD, POD0, ROUTER, SNAT_ROWS, UP0, addr_of, flow, on_a_node,
};
use fairlead_tests::packet::{Packet, eth, tcp};
use rstest::rstest;

const POD_V4: &str = "10.244.1.5";
const FAR: &str = "203.0.113.9";

fn out() -> Packet {
    eth().ip(POD_V4, FAR)
}

fn back() -> Packet {
    eth().ip(FAR, EGRESS)
}

/// The ports that the flow may have, in the order of probing.
fn probes(node: &mut Node, inside: &FlowKey) -> Vec<Port> {
    let row = node.get::<NodeTable>(&0).expect("a row");
    let hash = snat::port_hash(inside, row.port_secret);
    let bucket = row.buckets[snat::cell(hash)];
    (0..PROBES)
        .map(|probe| snat::port(hash, bucket, probe))
        .collect()
}

/// The key of a binding under this port.
fn outside(inside: &FlowKey, port: Port) -> FlowKey {
    snat::outside(inside, addr_of(EGRESS), port)
}

fn tcp_flow() -> FlowKey {
    flow((POD_V4, 40000), (FAR, 80), Proto::TCP)
}

/// A binding of another pod, last seen now.
fn of_another_pod(node: &mut Node) -> Binding {
    Binding {
        inside: addr_of("10.244.1.99"),
        inside_port: Port::new(7),
        state: State::Established as u8,
        whose: 0,
        last_seen_s: now_s(node),
    }
}

/// The datapath's clock: what it writes for a flow that begins.
fn now_s(node: &mut Node) -> u32 {
    let probe = eth().ip(POD_V4, "203.0.113.250").udp(9, 9);
    assert_eq!(node.leaves(&probe).reason, Reason::Translated);
    let inside = flow((POD_V4, 9), ("203.0.113.250", 9), Proto::UDP);
    let port = node.get::<SnatFwd>(&inside).expect("a cached port").port;
    let row = node.get::<SnatRev>(&outside(&inside, port)).expect("a row");
    node.remove::<SnatRev>(&outside(&inside, port));
    node.remove::<SnatFwd>(&inside);
    row.last_seen_s
}

/// The source port, or echo identifier, of a translated frame.
fn port_of(frame: &[u8]) -> u16 {
    let at = if frame[23] == 1 { 38 } else { 34 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn sent(node: &mut Node, packet: &Packet) -> u16 {
    let ran = node.leaves(packet);
    assert_eq!(ran.reason, Reason::Translated);
    port_of(&ran.frame)
}

#[rstest]
#[case::tcp(
    out().tcp(40000, 80),
    |port| out().addresses(EGRESS, FAR).tcp(port, 80),
    |port| back().tcp(80, port),
    eth().ip(FAR, POD_V4).tcp(80, 40000)
)]
#[case::udp(
    out().udp(40000, 53),
    |port| out().addresses(EGRESS, FAR).udp(port, 53),
    |port| back().udp(53, port),
    eth().ip(FAR, POD_V4).udp(53, 40000)
)]
#[case::udp_without_checksum(
    out().udp(40000, 53).without_checksum(),
    |port| out().addresses(EGRESS, FAR).udp(port, 53).without_checksum(),
    |port| back().udp(53, port).without_checksum(),
    eth().ip(FAR, POD_V4).udp(53, 40000).without_checksum()
)]
#[case::icmp_echo(
    out().ping(40000, 3),
    |port| out().addresses(EGRESS, FAR).ping(port, 3),
    |port| back().pong(port, 3),
    eth().ip(FAR, POD_V4).pong(40000, 3)
)]
fn a_flow_leaves_under_the_egress_address_and_its_answer_comes_back(
    #[case] packet: Packet,
    #[case] expected_out: fn(u16) -> Packet,
    #[case] answer: fn(u16) -> Packet,
    #[case] expected_back: Packet,
    #[values(0, 5)] payload: usize,
) {
    on_a_node(|node| {
        let payload = vec![0x61; payload];

        let left = node.leaves(&packet.payload(payload.clone()));
        let port = port_of(&left.frame);
        let came = node.arrives(UP0, &answer(port).payload(payload.clone()));

        assert_eq!(left.reason, Reason::Translated);
        let expected = expected_out(port).payload(payload.clone());
        assert_eq!(left.frame, expected.macs(UP0.mac, ROUTER).bytes());
        assert_eq!(
            (came.reason, came.action),
            (Reason::TranslatedBack, Action::Redirect)
        );
        let expected = expected_back.payload(payload).ttl(63);
        assert_eq!(came.frame, expected.macs(POD0.mac, POD).bytes());
    });
}

#[test]
fn many_flows_come_back_to_where_they_began() {
    on_a_node(|node| {
        // A linear congruence: any packets, but the same in every run.
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as u16
        };
        for _ in 0..200 {
            let (inside, remote, bytes) = (random() | 1, random() | 1, random() as usize % 100);
            let payload: Vec<u8> = (0..bytes).map(|_| random() as u8).collect();
            let is_tcp = random() % 2 == 0;
            let make = |packet: Packet, from, to| {
                let packet = if is_tcp {
                    packet.tcp(from, to)
                } else {
                    packet.udp(from, to)
                };
                packet.payload(payload.clone())
            };

            let left = node.leaves(&make(out(), inside, remote));
            let port = port_of(&left.frame);
            let came = node.arrives(UP0, &make(back(), remote, port));

            let expected = make(out().addresses(EGRESS, FAR), port, remote);
            assert_eq!(left.frame, expected.macs(UP0.mac, ROUTER).bytes());
            let expected = make(eth().ip(FAR, POD_V4).ttl(63), remote, inside);
            assert_eq!(came.frame, expected.macs(POD0.mac, POD).bytes());
        }
    });
}

#[test]
fn a_packet_that_is_cut_later_is_translated_whole() {
    on_a_node(|node| {
        let packet = out().tcp(40000, 80).payload(vec![7; 3000]);
        let frame = packet.clone().macs(UP0.mac, ROUTER).bytes();

        let ran = node.tc("tc_egress", UP0, &frame, 1400);

        assert_eq!(ran.reason, Reason::Translated);
        let expected = packet.addresses(EGRESS, FAR).ports(port_of(&ran.frame), 80);
        assert_eq!(ran.frame, expected.macs(UP0.mac, ROUTER).bytes());
    });
}

#[test]
fn a_flow_gets_the_first_of_its_ports_and_keeps_it() {
    on_a_node(|node| {
        let first = probes(node, &tcp_flow())[0];

        for flags in [tcp::SYN, tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK] {
            let port = sent(node, &out().tcp(40000, 80).flags(flags));
            assert_eq!(port, first.number());
        }

        assert_eq!(node.rows::<SnatRev>().len(), 1);
    });
}

#[test]
fn flows_to_several_destinations_share_a_port_when_they_want_the_same() {
    on_a_node(|node| {
        let inside = tcp_flow();
        let port = probes(node, &inside)[0];
        let elsewhere = FlowKey::new(
            addr_of(EGRESS),
            port,
            addr_of("203.0.113.10"),
            Port::new(80),
            Proto::TCP,
        );
        let binding = of_another_pod(node);
        node.set::<SnatRev>(&elsewhere, &binding);

        assert_eq!(sent(node, &out().tcp(40000, 80)), port.number());
    });
}

#[test]
fn a_flow_whose_cache_entry_is_lost_keeps_its_port_though_an_earlier_one_is_free() {
    on_a_node(|node| {
        let inside = tcp_flow();
        let probes = probes(node, &inside);
        let binding = of_another_pod(node);
        for &port in &probes[..5] {
            node.set::<SnatRev>(&outside(&inside, port), &binding);
        }
        assert_eq!(sent(node, &out().tcp(40000, 80)), probes[5].number());
        for &port in &probes[..5] {
            node.remove::<SnatRev>(&outside(&inside, port));
        }

        node.remove::<SnatFwd>(&inside);

        assert_eq!(sent(node, &out().tcp(40000, 80)), probes[5].number());
        let cached = node.get::<SnatFwd>(&inside).expect("repaired");
        assert_eq!(cached.port, probes[5]);
    });
}

#[test]
fn a_cache_entry_that_names_another_flows_port_is_not_believed() {
    on_a_node(|node| {
        let inside = tcp_flow();
        let probes = probes(node, &inside);
        assert_eq!(sent(node, &out().tcp(40000, 80)), probes[0].number());
        let binding = of_another_pod(node);
        node.set::<SnatRev>(&outside(&inside, probes[0]), &binding);

        assert_eq!(sent(node, &out().tcp(40000, 80)), probes[1].number());

        let row = node.get::<SnatRev>(&outside(&inside, probes[0]));
        assert_eq!(row, Some(binding));
    });
}

#[test]
fn when_all_its_ports_are_taken_a_flow_is_refused_and_nobody_else_is_hurt() {
    on_a_node(|node| {
        let inside = tcp_flow();
        let binding = of_another_pod(node);
        let probes = probes(node, &inside);
        for &port in &probes {
            node.set::<SnatRev>(&outside(&inside, port), &binding);
        }

        for flags in [tcp::SYN, tcp::ACK] {
            let ran = node.leaves(&out().tcp(40000, 80).flags(flags));
            assert_eq!(ran.reason, Reason::PortsExhausted);
        }

        assert!(
            node.rows::<SnatRev>()
                .iter()
                .all(|(_, row)| *row == binding)
        );
        assert_eq!(node.rows::<SnatRev>().len(), probes.len());
        sent(node, &eth().ip(POD_V4, "203.0.113.10").tcp(40000, 80));
    });
}

#[test]
fn a_flow_without_a_bucket_is_refused() {
    on_a_node(|node| {
        node.change(|row| row.buckets = [0; snat::CELLS]);

        let ran = node.leaves(&out().tcp(40000, 80));

        assert_eq!(ran.reason, Reason::PortsExhausted);
    });
}

#[rstest]
#[case::syn(tcp::SYN)]
#[case::ack(tcp::ACK)]
fn the_port_of_an_expired_flow_is_taken_over(#[case] flags: u8) {
    on_a_node(|node| {
        let inside = tcp_flow();
        let probes = probes(node, &inside);
        let living = of_another_pod(node);
        let expired = Binding {
            last_seen_s: living.last_seen_s.wrapping_sub(7441),
            ..living
        };
        for &port in &probes {
            node.set::<SnatRev>(&outside(&inside, port), &living);
        }
        node.set::<SnatRev>(&outside(&inside, probes[20]), &expired);

        let port = sent(node, &out().tcp(40000, 80).flags(flags));

        assert_eq!(port, probes[20].number());
        let row = node
            .get::<SnatRev>(&outside(&inside, probes[20]))
            .expect("a row");
        assert_eq!(row.inside, addr_of(POD_V4));
        assert_eq!(row.inside_port, Port::new(40000));
        assert_eq!(row.state, State::New as u8);
        assert!(row.last_seen_s >= living.last_seen_s);
    });
}

#[test]
fn a_full_table_refuses_new_flows_and_serves_the_old_ones() {
    on_a_node(|node| {
        let port = sent(node, &out().tcp(40000, 80));
        let binding = of_another_pod(node);
        for i in 1..SNAT_ROWS {
            let remote = Addr::from_v4_word(i);
            let key = FlowKey::new(
                addr_of(EGRESS),
                Port::new(1),
                remote,
                Port::new(1),
                Proto::UDP,
            );
            node.set::<SnatRev>(&key, &binding);
        }

        let refused = node.leaves(&out().tcp(40001, 80));

        assert_eq!(refused.reason, Reason::BindingsFull);
        assert_eq!(sent(node, &out().tcp(40000, 80)), port);
    });
}

#[rstest]
#[case::another_protocol(out().proto(50).payload(*b"esp"), Reason::ProtocolUntranslatable)]
#[case::sctp(out().proto(132).payload([0; 12]), Reason::ProtocolUntranslatable)]
#[case::echo_reply(out().pong(1, 2), Reason::ProtocolUntranslatable)]
#[case::icmp_error(out().icmp(3, 3, 0).payload([0; 28]), Reason::ProtocolUntranslatable)]
#[case::options(out().options(&[1, 1, 1, 1]).tcp(40000, 80), Reason::ProtocolUntranslatable)]
#[case::first_fragment(out().fragment(0, true).udp(1, 2), Reason::FragmentUntranslatable)]
#[case::later_fragment(out().fragment(9, false).udp(1, 2), Reason::FragmentUntranslatable)]
#[case::cut_tcp_header(out().proto(6).payload([0; 10]), Reason::MalformedUntranslatable)]
#[case::cut_udp_header(out().proto(17).payload([0; 7]), Reason::MalformedUntranslatable)]
#[case::cut_icmp_header(out().proto(1).payload([8, 0, 0]), Reason::MalformedUntranslatable)]
fn a_pods_packet_that_cannot_be_translated_never_leaves(
    #[case] packet: Packet,
    #[case] reason: Reason,
) {
    on_a_node(|node| {
        assert_eq!(node.leaves(&packet).reason, reason);
    });
}

#[test]
fn a_pods_packet_that_claims_more_bytes_than_it_has_never_leaves() {
    on_a_node(|node| {
        let mut frame = out().macs(UP0.mac, ROUTER).tcp(40000, 80).bytes();
        frame[17] += 1;

        let ran = node.tc("tc_egress", UP0, &frame, 0);

        assert_eq!(ran.reason, Reason::MalformedUntranslatable);
    });
}

#[rstest]
#[case::from_the_node_itself(eth().ip("10.1.0.1", FAR).tcp(1, 2), Reason::NotFromPod)]
#[case::from_another_nodes_pod(eth().ip("10.244.2.5", FAR).tcp(1, 2), Reason::NotFromPod)]
#[case::ipv6(eth().ip("fd00:244:1::5", "2001:db8::1").tcp(1, 2), Reason::NotFromPod)]
#[case::a_fragment_of_the_node(eth().ip("10.1.0.1", FAR).fragment(9, false).udp(1, 2), Reason::NotFromPod)]
#[case::native(eth().ip(POD_V4, "10.244.2.5").tcp(1, 2), Reason::Native)]
#[case::a_native_fragment(eth().ip(POD_V4, "10.244.2.5").fragment(9, true).udp(1, 2), Reason::Native)]
#[case::arp(eth().ether_type(0x0806).payload([0; 28]), Reason::NotIp)]
fn what_needs_no_translation_leaves_untouched(#[case] packet: Packet, #[case] reason: Reason) {
    on_a_node(|node| {
        assert_eq!(node.leaves(&packet).reason, reason);
    });
}

#[test]
fn without_an_egress_address_pods_leave_as_they_are() {
    on_a_node(|node| {
        node.change(|row| row.egress = Addr::NONE);

        assert_eq!(node.leaves(&out().tcp(1, 2)).reason, Reason::TranslationOff);
    });
}

#[test]
fn every_pod_and_native_cidr_counts() {
    on_a_node(|node| {
        node.change(|row| {
            row.pods = [Cidr4::NONE; 4];
            row.pods[3] = Cidr4::new([172, 16, 0, 0].into(), 16);
            row.native = [Cidr4::NONE; 8];
            row.native[7] = Cidr4::new([198, 18, 0, 0].into(), 15);
        });

        for (src, dst, reason) in [
            ("172.16.0.1", "198.19.255.255", Reason::Native),
            ("172.16.0.1", "198.20.0.0", Reason::Translated),
            (POD_V4, FAR, Reason::NotFromPod),
        ] {
            let ran = node.leaves(&eth().ip(src, dst).udp(1, 2));
            assert_eq!(ran.reason, reason, "{src} to {dst}");
        }
    });
}

#[rstest]
#[case::tcp(back().tcp(80, 2000), Reason::NoBinding, Reason::Local)]
#[case::udp(back().udp(80, 2000), Reason::NoBinding, Reason::Local)]
#[case::echo_reply(back().pong(2000, 1), Reason::NoBinding, Reason::Local)]
#[case::echo_request(back().ping(2000, 1), Reason::NoBinding, Reason::Local)]
#[case::another_protocol(back().proto(50).payload(*b"esp"), Reason::NoBinding, Reason::Local)]
#[case::fragment(back().fragment(9, false).udp(1, 2), Reason::NoBinding, Reason::Fragment)]
#[case::options(back().options(&[1, 1, 1, 1]).tcp(1, 2), Reason::NoBinding, Reason::IpOptions)]
#[case::cut(back().proto(6).payload([0; 4]), Reason::NoBinding, Reason::Malformed)]
#[case::icmp_error(back().icmp(3, 1, 0).payload([0; 28]), Reason::IcmpErrorUntranslated, Reason::Local)]
fn what_comes_to_the_egress_address_without_a_binding_is_dropped_unless_the_address_is_the_nodes(
    #[case] packet: Packet,
    #[case] reason: Reason,
    #[case] reason_when_local: Reason,
) {
    on_a_node(|node| {
        assert_eq!(node.arrives(UP0, &packet).reason, reason);

        node.change(|row| row.flags |= node_flags::EGRESS_IS_LOCAL);

        assert_eq!(node.arrives(UP0, &packet).reason, reason_when_local);
    });
}

#[rstest]
#[case::another_remote_address(eth().ip("203.0.113.8", EGRESS), 80)]
#[case::another_remote_port(back(), 81)]
fn a_stranger_cannot_use_a_binding(#[case] head: Packet, #[case] from: u16) {
    on_a_node(|node| {
        let port = sent(node, &out().tcp(40000, 80));

        let ran = node.arrives(UP0, &head.tcp(from, port));

        assert_eq!(ran.reason, Reason::NoBinding);
    });
}

#[test]
fn an_expired_binding_lets_nothing_back() {
    on_a_node(|node| {
        let port = sent(node, &out().tcp(40000, 80));
        let key = outside(&tcp_flow(), Port::new(port));
        let mut row = node.get::<SnatRev>(&key).expect("a row");
        row.last_seen_s = row.last_seen_s.wrapping_sub(121);
        node.set::<SnatRev>(&key, &row);

        let ran = node.arrives(UP0, &back().tcp(80, port));

        assert_eq!(ran.reason, Reason::NoBinding);
    });
}

#[rstest]
#[case::the_last_hop(back().ttl(1), Reason::TtlExceeded)]
#[case::a_wrong_header_checksum(back().bad_header_checksum(), Reason::Malformed)]
#[case::a_tag(eth().vlan(10).ip(FAR, EGRESS), Reason::Tagged)]
fn a_packet_that_must_not_be_forwarded_is_passed_before_it_is_translated(
    #[case] head: Packet,
    #[case] reason: Reason,
) {
    on_a_node(|node| {
        let port = sent(node, &out().tcp(40000, 80));

        assert_eq!(node.arrives(UP0, &head.tcp(80, port)).reason, reason);
    });
}

#[rstest]
#[case::an_unknown_neighbour("10.244.1.6")]
#[case::a_device_that_is_not_ours("10.244.1.7")]
fn an_answer_whose_way_only_the_stack_knows_is_translated_and_passed(#[case] pod: &str) {
    on_a_node(|node| {
        node.ip("route add 10.244.1.6/32 dev pod0\nroute add 10.244.1.7/32 via 10.3.0.9\n");
        let port = sent(node, &eth().ip(pod, FAR).tcp(40000, 80));

        let ran = node.arrives(UP0, &back().tcp(80, port));

        assert_eq!(
            (ran.reason, ran.action),
            (Reason::TranslatedToStack, Action::Pass)
        );
        let expected = eth().ip(FAR, pod).tcp(80, 40000);
        assert_eq!(ran.frame, expected.macs(ROUTER, UP0.mac).bytes());
    });
}

#[test]
fn the_state_of_a_connection_follows_its_packets() {
    on_a_node(|node| {
        let packet = |flags| out().tcp(40000, 80).flags(flags);
        let port = sent(node, &packet(tcp::SYN));
        let key = outside(&tcp_flow(), Port::new(port));
        let state =
            |node: &mut Node| State::from_row(node.get::<SnatRev>(&key).expect("a row").state);
        let answer = |flags| back().tcp(80, port).flags(flags);
        assert_eq!(state(node), State::New);

        node.arrives(UP0, &answer(tcp::SYN | tcp::ACK));
        assert_eq!(state(node), State::Established);
        node.leaves(&packet(tcp::ACK));
        assert_eq!(state(node), State::Established);
        node.leaves(&packet(tcp::FIN | tcp::ACK));
        assert_eq!(state(node), State::Closing);
        node.arrives(UP0, &answer(tcp::FIN | tcp::ACK));
        assert_eq!(state(node), State::Closed);
        node.leaves(&packet(tcp::SYN));
        assert_eq!(state(node), State::New);
        node.arrives(UP0, &answer(tcp::RST));
        assert_eq!(state(node), State::Reset);
    });
}

#[rstest]
#[case::of_an_established_tcp_flow_keeps_it(out().tcp(40000, 80), |port| back().tcp(80, port), Proto::TCP, true)]
#[case::of_a_udp_flow_does_not(out().udp(40000, 80), |port| back().udp(80, port), Proto::UDP, false)]
fn an_answer(
    #[case] packet: Packet,
    #[case] answer: fn(u16) -> Packet,
    #[case] proto: Proto,
    #[case] keeps: bool,
) {
    on_a_node(|node| {
        let port = sent(node, &packet);
        let key = outside(&flow((POD_V4, 40000), (FAR, 80), proto), Port::new(port));
        let mut row = node.get::<SnatRev>(&key).expect("a row");
        let now_s = row.last_seen_s;
        row.last_seen_s = row.last_seen_s.wrapping_sub(20);
        node.set::<SnatRev>(&key, &row);

        let ran = node.arrives(UP0, &answer(port));

        assert_eq!(ran.reason, Reason::TranslatedBack);
        let row = node.get::<SnatRev>(&key).expect("a row");
        assert_eq!(row.last_seen_s >= now_s, keeps);
    });
}

#[test]
fn a_packet_from_inside_keeps_its_binding() {
    on_a_node(|node| {
        let port = sent(node, &out().udp(40000, 80));
        let key = outside(
            &flow((POD_V4, 40000), (FAR, 80), Proto::UDP),
            Port::new(port),
        );
        let mut row = node.get::<SnatRev>(&key).expect("a row");
        let now_s = row.last_seen_s;
        row.last_seen_s = row.last_seen_s.wrapping_sub(20);
        node.set::<SnatRev>(&key, &row);

        sent(node, &out().udp(40000, 80));

        let row = node.get::<SnatRev>(&key).expect("a row");
        assert!(row.last_seen_s >= now_s);
    });
}
