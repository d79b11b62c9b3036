//! A peer of raw bytes: what we answer to garbage, refused OPENs and faulty UPDATEs.

use super::raw::{AS_PATH, NEXT_HOP, ORIGIN, Raw, TEN_SLASH_EIGHT, open, update, with};
use super::*;
use crate::wire::{self, Open};

#[test]
fn http_on_the_bgp_port_gets_connection_not_synchronized() {
    let mut raw = Raw::connected();
    raw.send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(raw.refusal(), (1, 1, vec![]));
}

#[test]
fn garbage_is_followed_by_a_rest_in_which_nobody_gets_in() {
    let mut raw = Raw::connected();
    raw.send(b"garbage");
    raw.refusal();
    let local = SocketAddr::new(address(1), 179);
    let remote = SocketAddr::new(address(2), 50_001);
    let mut now = raw.now;
    assert_eq!(raw.speaker.handle_incoming(local, remote, now), None);
    now += 6 * SECOND;
    raw.speaker.handle_timeout(now);
    assert!(raw.speaker.handle_incoming(local, remote, now).is_some());
}

#[test]
fn bad_opens_get_the_subcode_that_says_why() {
    type Change = fn(&mut Open);
    let cases: [(Change, (u8, u8)); 4] = [
        (|open| open.asn = 65009, (2, 2)),
        (|open| open.router_id = Ipv4Addr::UNSPECIFIED, (2, 3)),
        (|open| open.hold_time_s = 2, (2, 6)),
        (|open| open.asn = 23456, (2, 2)),
    ];
    for (change, expected) in cases {
        let mut raw = Raw::connected();
        let mut open = open();
        change(&mut open);
        raw.send(&wire::encode_open(&open));
        let (code, subcode, _) = raw.refusal();
        assert_eq!((code, subcode), expected);
    }
    let mut raw = Raw::connected();
    let mut version_three = wire::encode_open(&open()).to_vec();
    version_three[19] = 3;
    raw.send(&version_three);
    assert_eq!(raw.refusal(), (2, 1, vec![0, 4]));
}

#[test]
fn a_message_out_of_turn_is_a_state_machine_error_that_names_the_state() {
    let mut raw = Raw::connected();
    raw.send(&wire::encode_keepalive());
    assert_eq!(raw.refusal(), (5, 1, vec![]));

    let mut raw = Raw::connected();
    raw.send(&wire::encode_open(&open()));
    raw.answers();
    raw.send(&with(&[]));
    assert_eq!(raw.refusal(), (5, 2, vec![]));

    let mut raw = Raw::established();
    raw.send(&wire::encode_open(&open()));
    assert_eq!(raw.refusal(), (5, 3, vec![]));
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut raw = Raw::connected();
    let bytes = [
        wire::encode_open(&open()).to_vec(),
        wire::encode_keepalive().to_vec(),
        with(&[]),
    ]
    .concat();
    for byte in bytes {
        raw.send(&[byte]);
    }
    assert_eq!(raw.speaker.learnt().len(), 1);
}

#[test]
fn a_bad_origin_costs_the_route_and_not_the_session() {
    let mut raw = Raw::established();
    raw.send(&with(&[]));
    assert_eq!(raw.speaker.learnt().len(), 1);
    raw.send(&update(
        &[],
        &[&[0x40, 1, 1, 9], AS_PATH, NEXT_HOP].concat(),
        TEN_SLASH_EIGHT,
    ));
    assert_eq!(raw.speaker.learnt().len(), 0, "treated as withdrawn");
    assert_eq!(raw.faults(), 1);
    let peer = &raw.speaker.peers(raw.now)[0];
    assert_eq!(peer.state, State::Established);
    assert_eq!(peer.counters.treated_as_withdraw, 1);
}

#[test]
fn missing_mandatory_attributes_cost_the_route() {
    for attributes in [
        [AS_PATH, NEXT_HOP].concat(),
        [ORIGIN, NEXT_HOP].concat(),
        [ORIGIN, AS_PATH].concat(),
    ] {
        let mut raw = Raw::established();
        raw.send(&with(&[]));
        raw.send(&update(&[], &attributes, TEN_SLASH_EIGHT));
        assert_eq!(raw.speaker.learnt().len(), 0);
        assert_eq!(raw.faults(), 1);
        assert_eq!(raw.speaker.peers(raw.now)[0].state, State::Established);
    }
}

#[test]
fn a_bad_aggregator_costs_only_itself() {
    let mut raw = Raw::established();
    raw.send(&with(&[0xC0, 7, 3, 1, 2, 3]));
    assert_eq!(raw.speaker.learnt().len(), 1);
    assert_eq!(raw.faults(), 1);
    assert_eq!(
        raw.speaker.peers(raw.now)[0].counters.attributes_discarded,
        1
    );
}

#[test]
fn a_prefix_that_cannot_be_read_ends_the_session() {
    let mut raw = Raw::established();
    raw.send(&update(
        &[],
        &[ORIGIN, AS_PATH, NEXT_HOP].concat(),
        &[33, 10, 0, 0, 0, 0],
    ));
    let (code, subcode, _) = raw.refusal();
    assert_eq!((code, subcode), (3, 10));
}

#[test]
fn sections_that_overlap_end_the_session() {
    let mut raw = Raw::established();
    let mut bytes = with(&[]);
    bytes[19] = 0xFF;
    raw.send(&bytes);
    assert_eq!(raw.refusal(), (3, 1, vec![]));
}

#[test]
fn an_attribute_fault_without_any_prefix_ends_the_session() {
    let mut raw = Raw::established();
    raw.send(&update(&[], &[0x40, 1, 1, 9], &[]));
    assert_eq!(raw.refusal(), (3, 1, vec![]));
}

#[test]
fn local_preference_of_an_external_peer_is_ignored() {
    let mut raw = Raw::established();
    raw.send(&with(&[0x40, 5, 4, 0, 0, 3, 0xE8]));
    let route = &raw.speaker.loc_rib()[0];
    assert_eq!(route.paths[0].attributes.local_pref, None);
    assert!(route.paths[0].used);
}

#[test]
fn our_own_as_in_the_path_is_kept_and_not_used() {
    let mut raw = Raw::established();
    let looped = [0x40, 2, 10, 2, 2, 0, 0, 0xFD, 0xEA, 0, 0, 0xFD, 0xE9];
    raw.send(&update(
        &[],
        &[ORIGIN, &looped, NEXT_HOP].concat(),
        TEN_SLASH_EIGHT,
    ));
    assert!(raw.speaker.learnt().is_empty());
    let route = &raw.speaker.adj_rib_in("node2")[0];
    assert_eq!(route.paths[0].rejection, Some(Rejection::AsLoop));
}

#[test]
fn ipv4_prefixes_in_mp_reach_are_learnt() {
    let mut raw = Raw::established();
    let reach = [0x80, 14, 11, 0, 1, 1, 4, 192, 0, 2, 2, 0, 8, 10];
    raw.send(&update(&[], &[&reach, ORIGIN, AS_PATH].concat(), &[]));
    assert_eq!(
        raw.speaker.learnt().into_keys().collect::<Vec<_>>(),
        [net("10.0.0.0/8")]
    );
}

#[test]
fn a_peer_without_four_octet_as_is_understood() {
    let mut raw = Raw::connected();
    let mut two_octets = open();
    two_octets.four_octet_as = false;
    raw.send(&wire::encode_open(&two_octets));
    raw.send(&wire::encode_keepalive());
    raw.send(&update(
        &[],
        &[ORIGIN, &[0x40, 2, 4, 2, 1, 0xFD, 0xEA], NEXT_HOP].concat(),
        TEN_SLASH_EIGHT,
    ));
    let route = &raw.speaker.loc_rib()[0];
    assert_eq!(route.paths[0].attributes.as_path, [65002]);
}

#[test]
fn an_open_without_capabilities_means_ipv4_alone() {
    let mut raw = Raw::connected();
    let bare = [
        &[0xFF; 16][..],
        &[0, 29, 1, 4, 0xFD, 0xEA, 0, 90, 10, 255, 0, 2, 0],
    ]
    .concat();
    raw.send(&bare);
    raw.send(&wire::encode_keepalive());
    let peer = &raw.speaker.peers(raw.now)[0];
    assert_eq!(peer.state, State::Established);
    assert!(peer.families[&Family::Ipv4Unicast].negotiated);
    assert!(!peer.families[&Family::Ipv6Unicast].negotiated);
}

#[test]
fn an_unknown_neighbour_is_not_let_in() {
    let mut raw = Raw::connected();
    let local = SocketAddr::new(address(1), 179);
    let stranger = SocketAddr::new(address(9), 50_000);
    assert_eq!(raw.speaker.handle_incoming(local, stranger, raw.now), None);
}

#[test]
fn a_notification_is_not_answered_and_said() {
    let mut raw = Raw::established();
    raw.send(&wire::encode_notification(
        &Notification::administrative_shutdown("bye"),
    ));
    assert!(raw.answers().is_empty());
    assert_eq!(
        raw.speaker.peers(raw.now)[0].last_error.as_deref(),
        Some("received 6/2 Administrative Shutdown (\"bye\")")
    );
}

/// MP_REACH_NLRI with a next hop of four octets and a prefix field that no decoder needs to know.
fn mp_reach(afi: u16, safi: u8, nlri: &[u8]) -> Vec<u8> {
    let [high, low] = afi.to_be_bytes();
    let value = [&[high, low, safi, 4, 192, 0, 2, 2, 0], nlri].concat();
    [&[0x80, 14, value.len() as u8], &value[..]].concat()
}

fn mp_unreach(afi: u16, safi: u8, nlri: &[u8]) -> Vec<u8> {
    let [high, low] = afi.to_be_bytes();
    let value = [&[high, low, safi], nlri].concat();
    [&[0x80, 15, value.len() as u8], &value[..]].concat()
}

#[test]
fn a_family_that_the_session_has_not_is_ignored_and_the_rest_of_the_message_is_not() {
    // EVPN, one that nobody has assigned, VPNv4, multicast: none of them decodes.
    for (afi, safi) in [(25, 70), (77, 1), (1, 77), (1, 128), (1, 2), (2, 4)] {
        let mut raw = Raw::established();
        let reach = mp_reach(afi, safi, &[0xFF, 0xEE]);
        raw.send(&with(&reach));
        assert_eq!(raw.speaker.learnt().len(), 1, "AFI {afi} SAFI {safi}");
        assert_eq!(raw.faults(), 1);
        raw.send(&update(&[], &[&reach, ORIGIN, AS_PATH].concat(), &[]));
        raw.send(&update(&[], &mp_unreach(afi, safi, &[0xFF]), &[]));
        raw.send(&update(&[], &mp_unreach(afi, safi, &[]), &[]));
        // Attributes of the other family's routes may be wrong: they are not ours.
        raw.send(&update(&[], &[&reach, &[0x40, 1, 1, 9][..]].concat(), &[]));
        assert_eq!(raw.faults(), 4);
        assert_eq!(raw.speaker.peers(raw.now)[0].state, State::Established);
        assert_eq!(raw.speaker.learnt().len(), 1);
        assert!(raw.answers().is_empty());
    }
}

#[test]
fn a_family_of_ours_that_this_session_has_not_is_ignored_too() {
    let mut raw = Raw::connected();
    let mut alone = open();
    alone.families = BTreeSet::from([Family::Ipv6Unicast]);
    raw.send(&wire::encode_open(&alone));
    raw.send(&wire::encode_keepalive());
    raw.answers();
    raw.send(&with(&[]));
    // The End-of-RIB marker of IPv4 unicast is the empty UPDATE.
    raw.send(&update(&[], &[], &[]));
    let told = std::iter::from_fn(|| raw.speaker.poll_event())
        .any(|event| matches!(event, Event::EndOfRib { .. }));
    assert!(!told, "the End-of-RIB of a family that is not there");
    assert!(raw.speaker.loc_rib().is_empty());
    assert_eq!(raw.speaker.peers(raw.now)[0].state, State::Established);
}

#[test]
fn multiprotocol_attributes_that_occur_twice_end_the_session() {
    let mut raw = Raw::established();
    let twice = [mp_unreach(25, 70, &[]), mp_unreach(2, 1, &[])].concat();
    raw.send(&update(&[], &twice, &[]));
    assert_eq!(raw.refusal(), (3, 1, vec![]));
}

#[test]
fn an_ipv4_route_by_an_ipv6_next_hop_is_kept_and_not_used() {
    let mut raw = Raw::established();
    let mut value = vec![0, 1, 1, 16, 0x20, 1, 0x0d, 0xb8];
    value.extend([0; 11]);
    value.extend([2, 0, 8, 10]);
    let reach = [&[0x80, 14, value.len() as u8], &value[..]].concat();
    raw.send(&update(&[], &[&reach, ORIGIN, AS_PATH].concat(), &[]));
    assert!(raw.speaker.learnt().is_empty());
    let route = &raw.speaker.adj_rib_in("node2")[0];
    assert_eq!(route.paths[0].rejection, Some(Rejection::BadNextHop));
}

#[test]
fn both_next_hops_of_an_ipv6_route_are_learnt() {
    let mut raw = Raw::established();
    let mut value = vec![0, 2, 1, 32, 0x20, 1, 0x0d, 0xb8];
    value.extend([0; 11]);
    value.push(2);
    value.extend([0xfe, 0x80]);
    value.extend([0; 13]);
    value.extend([2, 0, 16, 0xfd, 0x09]);
    let reach = [&[0x80, 14, value.len() as u8], &value[..]].concat();
    raw.send(&update(&[], &[&reach, ORIGIN, AS_PATH].concat(), &[]));
    let learnt = raw.speaker.learnt();
    let path = &learnt[&net("fd09::/16")][0];
    assert_eq!(path.next_hop, "2001:db8::2".parse::<IpAddr>().unwrap());
    assert_eq!(path.link_local, Some("fe80::2".parse().unwrap()));
}

#[test]
fn a_next_hop_that_we_tell_others_is_ours_whatever_the_connection() {
    let mut raw = Raw::established();
    let mut peer = toward(2, 65002);
    peer.passive = true;
    peer.next_hop_v4 = Some(Ipv4Addr::new(192, 0, 2, 2));
    raw.send(&with(&[]));
    assert_eq!(raw.speaker.learnt().len(), 1);
    raw.speaker.set_peer(peer, raw.now);
    assert!(raw.speaker.learnt().is_empty());
}

#[test]
fn a_message_beyond_4096_octets_is_a_bad_length() {
    let mut raw = Raw::established();
    let mut long = vec![0xFF; 16];
    long.extend(4097_u16.to_be_bytes());
    long.push(2);
    raw.send(&long);
    assert_eq!(raw.refusal(), (1, 2, 4097_u16.to_be_bytes().to_vec()));
}

#[test]
fn a_hold_time_of_zero_needs_no_keepalives_and_sends_none() {
    let mut raw = Raw::connected();
    let mut eternal = open();
    eternal.hold_time_s = 0;
    raw.send(&wire::encode_open(&eternal));
    raw.send(&wire::encode_keepalive());
    raw.answers();
    // More than was ever sent: the kernel took it all, so the send hold timer rests.
    raw.speaker.handle_written(raw.connection, 4096, raw.now);
    raw.now += 100_000 * SECOND;
    raw.speaker.handle_timeout(raw.now);
    assert_eq!(raw.speaker.peers(raw.now)[0].state, State::Established);
    assert!(raw.answers().is_empty());
}

#[test]
fn long_updates_are_read_and_written_with_a_peer_that_offers_them() {
    let mut communities = vec![0xD0, 8];
    communities.extend(5000_u16.to_be_bytes());
    communities.resize(4 + 5000, 0);
    for is_offered in [true, false] {
        let mut raw = Raw::connected();
        raw.send(&wire::encode_open(&Open {
            extended_messages: is_offered,
            ..open()
        }));
        raw.send(&wire::encode_keepalive());
        raw.answers();
        let mut announcements = announce(&["10.9.0.0/24"]);
        if let Some(announcement) = announcements.get_mut(&net("10.9.0.0/24")) {
            announcement.communities = (0..1250).collect();
        }
        let now = raw.now;
        raw.speaker.set_announcements(announcements, now);
        let longest = std::iter::from_fn(|| raw.speaker.poll_transmit());
        let longest = longest.map(|transmit| transmit.bytes.len()).max().unwrap();
        assert_eq!(longest > 5000, is_offered);
        raw.send(&with(&communities));
        if is_offered {
            assert_eq!(raw.speaker.learnt().len(), 1);
        } else {
            let length = with(&communities).len() as u16;
            assert_eq!(raw.refusal(), (1, 2, length.to_be_bytes().to_vec()));
        }
    }
}

#[test]
fn what_was_told_and_fits_no_message_any_more_is_withdrawn() {
    let mut raw = Raw::established();
    let now = raw.now;
    let announcements = announce(&["10.9.0.0/24"]);
    raw.speaker.set_announcements(announcements.clone(), now);
    assert_eq!(raw.speaker.adj_rib_out("node2").len(), 1);
    raw.answers_all();
    let too_much = announcements.into_iter().map(|(prefix, mut announcement)| {
        announcement.communities = (0..1250).collect();
        (prefix, announcement)
    });
    raw.speaker.set_announcements(too_much.collect(), now);
    assert!(raw.speaker.adj_rib_out("node2").is_empty());
    let withdrawal = wire::pack_withdrawals(
        Family::Ipv4Unicast,
        &[net("10.9.0.0/24")],
        wire::Encoding::PLAIN,
    );
    assert_eq!(raw.answers_all(), withdrawal[0]);
}
