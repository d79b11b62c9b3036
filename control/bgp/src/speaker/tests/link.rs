//! Peers that are known by their link: link-local addresses, IPv4 routes by IPv6 next hops (RFC 8950).

use std::collections::BTreeSet;
use std::net::SocketAddrV6;

use super::*;
use crate::wire::{self, Message, Open};

const LINK: u32 = 7;
const US: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const THEM: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// MP_REACH_NLRI of 10.0.0.0/8 by a link-local next hop, and the attributes beside it.
fn ten_by_them() -> Vec<u8> {
    let mut attributes = vec![0x80, 14, 23, 0, 1, 1, 16];
    attributes.extend(THEM.octets());
    attributes.extend([0, 8, 10]);
    attributes.extend([0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xFD, 0xEA]);
    let mut message = vec![0xFF; 16];
    message.extend((23 + attributes.len() as u16).to_be_bytes());
    message.extend([2, 0, 0]);
    message.extend((attributes.len() as u16).to_be_bytes());
    message.extend(attributes);
    message
}

/// A session with a peer on our link, which knows RFC 8950 or not.
fn established(theirs: bool) -> (Speaker, ConnectionId, Vec<Message>) {
    let now = network::origin();
    let mut speaker = Speaker::new(config(1, 65001), 1);
    let mut peer = PeerConfig::new("leaf", THEM.into(), 65002);
    peer.interface = Some(LINK);
    peer.extended_next_hop = true;
    peer.passive = true;
    peer.import = ImportPolicy::All;
    speaker.set_peer(peer, now);
    speaker.set_announcements(announce(&["10.1.0.0/24", "2001:db8:1::/64"]), now);
    let at = |scope| SocketAddr::V6(SocketAddrV6::new(THEM, 50_000, 0, scope));
    let local = SocketAddr::V6(SocketAddrV6::new(US, 179, 0, LINK));
    let strangers = speaker.handle_incoming(local, at(LINK + 1), now);
    assert_eq!(
        strangers, None,
        "another link's neighbour of the same address"
    );
    let connection = speaker
        .handle_incoming(local, at(LINK), now)
        .unwrap()
        .connection;
    let open = Open {
        families: BTreeSet::from(Family::ALL),
        four_octet_as: true,
        route_refresh: true,
        extended_next_hop: theirs,
        ..Open::bare(65002, 90, Ipv4Addr::new(10, 255, 0, 2))
    };
    speaker.handle_bytes(connection, &wire::encode_open(&open), now);
    speaker.handle_bytes(connection, &wire::encode_keepalive(), now);
    let mut heard: Vec<u8> = std::iter::from_fn(|| speaker.poll_transmit())
        .flat_map(|transmit| transmit.bytes)
        .collect();
    let mut messages = Vec::new();
    while let Ok(Some(length)) = wire::message_length(&heard, wire::MAX_MESSAGE_LEN) {
        let rest = heard.split_off(length);
        messages.push(wire::decode(std::mem::replace(&mut heard, rest).into()).unwrap());
    }
    (speaker, connection, messages)
}

fn told(messages: &[Message]) -> BTreeMap<IpNetwork, IpAddr> {
    let updates = messages.iter().filter_map(|message| {
        if let Message::Update(raw) = message {
            Some(raw)
        } else {
            None
        }
    });
    updates
        .flat_map(|raw| {
            wire::decode_update(
                raw,
                crate::wire::Reading {
                    four_octet_as: true,
                    internal: false,
                    families: &BTreeSet::from(Family::ALL),
                    add_path: &BTreeSet::new(),
                    on_link: true,
                },
            )
            .unwrap()
            .reach
        })
        .flat_map(|reach| {
            let next_hop = reach.attributes.next_hop;
            reach
                .prefixes
                .into_iter()
                .map(move |prefix| (prefix, next_hop))
        })
        .collect()
}

#[test]
fn ipv4_goes_by_ipv6_next_hops_both_ways() {
    let (mut speaker, connection, messages) = established(true);
    assert!(matches!(&messages[0], Message::Open(open) if open.extended_next_hop));
    let ours = IpAddr::from(US);
    let expected = [(net("10.1.0.0/24"), ours), (net("2001:db8:1::/64"), ours)];
    assert_eq!(told(&messages), BTreeMap::from(expected));

    speaker.handle_bytes(connection, &ten_by_them(), network::origin());
    let learnt = &speaker.learnt()[&net("10.0.0.0/8")];
    assert_eq!(
        (learnt[0].next_hop, learnt[0].interface),
        (THEM.into(), Some(LINK))
    );
}

#[test]
fn without_the_capability_no_ipv4_route_goes_either_way() {
    let (mut speaker, connection, messages) = established(false);
    let expected = [(net("2001:db8:1::/64"), IpAddr::from(US))];
    assert_eq!(told(&messages), BTreeMap::from(expected));
    let peers = speaker.peers(network::origin());
    assert_eq!(peers[0].families[&Family::Ipv4Unicast].without_next_hop, 1);

    speaker.handle_bytes(connection, &ten_by_them(), network::origin());
    assert!(speaker.learnt().is_empty());
    let path = &speaker.adj_rib_in("leaf")[0].paths[0];
    assert_eq!(path.rejection, Some(Rejection::BadNextHop));
}
