//! Several paths of a prefix by one peer (RFC 7911): a peer of raw bytes.

use super::raw::{AS_PATH, ORIGIN, Raw, open, update};
use super::*;
use crate::wire::{self, Open};

/// A session in which the peer may tell several paths per prefix.
fn established() -> Raw {
    let mut raw = Raw::connected();
    let mut peer = toward(2, 65002);
    (peer.passive, peer.add_path) = (true, true);
    let now = raw.now;
    raw.speaker.set_peer(peer, now);
    let local = SocketAddr::new(address(1), 179);
    let remote = SocketAddr::new(address(2), 50_001);
    raw.connection = raw
        .speaker
        .handle_incoming(local, remote, now)
        .unwrap()
        .connection;
    raw.send(&wire::encode_open(&Open {
        add_path_send: Family::ALL.into(),
        ..open()
    }));
    raw.send(&wire::encode_keepalive());
    raw
}

fn next_hop(last: u8) -> [u8; 7] {
    [0x40, 3, 4, 192, 0, 2, last]
}

/// 10.0.0.0/8 as the path of an identifier.
fn identified(identifier: u8) -> [u8; 6] {
    [0, 0, 0, identifier, 8, 10]
}

fn told(identifier: u8, by: u8) -> Vec<u8> {
    update(
        &[],
        &[ORIGIN, AS_PATH, &next_hop(by)].concat(),
        &identified(identifier),
    )
}

fn used(raw: &Raw) -> Vec<IpAddr> {
    let learnt = raw.speaker.learnt();
    let paths = learnt.get(&net("10.0.0.0/8")).cloned().unwrap_or_default();
    paths.iter().map(|path| path.next_hop).collect()
}

#[test]
fn paths_of_a_prefix_are_used_together_and_withdrawn_one_by_one() {
    let mut raw = established();
    raw.send(&told(1, 2));
    raw.send(&told(2, 3));
    assert_eq!(used(&raw), [address(2), address(3)]);
    let peer = &raw.speaker.peers(raw.now)[0];
    assert_eq!(peer.families[&Family::Ipv4Unicast].received, 2);
    let rib = raw.speaker.adj_rib_in("node2");
    assert_eq!(rib.len(), 1);
    let identifiers: Vec<_> = rib[0].paths.iter().map(|path| path.identifier).collect();
    assert_eq!(identifiers, [1, 2]);

    raw.send(&told(2, 9));
    assert_eq!(used(&raw), [address(2), address(9)], "told otherwise");
    raw.send(&update(&identified(1), &[], &[]));
    assert_eq!(used(&raw), [address(9)]);
    raw.send(&update(&identified(7), &[], &[]));
    assert_eq!(used(&raw), [address(9)], "never told");
    raw.send(&update(&identified(2), &[], &[]));
    assert!(raw.speaker.adj_rib_in("node2").is_empty());
}

#[test]
fn ipv6_paths_have_identifiers_too_and_all_go_with_the_session() {
    let mut raw = established();
    let reach = |identifier: u8, last: u8| {
        let mut value = vec![0, 2, 1, 16];
        value.extend("fd00::".parse::<Ipv6Addr>().unwrap().octets());
        value[19] = last;
        value.extend([0, 0, 0, 0, identifier, 16, 0x20, 1]);
        [&[0x80, 14, value.len() as u8][..], &value].concat()
    };
    for (identifier, last) in [(4, 1), (5, 2)] {
        raw.send(&update(
            &[],
            &[&reach(identifier, last), ORIGIN, AS_PATH].concat(),
            &[],
        ));
    }
    let prefix = net("2001::/16");
    assert_eq!(raw.speaker.learnt()[&prefix].len(), 2);
    let gone = [0x80, 15, 10, 0, 2, 1, 0, 0, 0, 4, 16, 0x20, 1];
    raw.send(&update(&[], &gone, &[]));
    let left = &raw.speaker.learnt()[&prefix];
    assert_eq!(left[0].next_hop, "fd00::2".parse::<IpAddr>().unwrap());
    let (connection, now) = (raw.connection, raw.now);
    raw.speaker.handle_closed(connection, "reset", now);
    assert!(raw.speaker.learnt().is_empty());
}

#[test]
fn a_faulty_update_withdraws_the_path_that_it_names_and_no_other() {
    let mut raw = established();
    raw.send(&told(1, 2));
    raw.send(&told(2, 3));
    let origin = [0x40, 1, 1, 9];
    let faulty = [&origin[..], AS_PATH, &next_hop(2)].concat();
    raw.send(&update(&[], &faulty, &identified(1)));
    assert_eq!(used(&raw), [address(3)]);
}
