//! Attributes that we do not act upon, on their way through us, octet by octet.

use std::collections::BTreeSet;

use super::*;
use crate::wire::{self, Open};

/// What a message says: flags and value of each attribute by its code.
type Said = BTreeMap<u8, (u8, Vec<u8>)>;

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 2];
const ATOMIC_AGGREGATE: &[u8] = &[0x40, 6, 0];
/// AS 4200000000, 10.9.9.9.
const AGGREGATOR: &[u8] = &[0xE0, 7, 8, 0xFA, 0x56, 0xEA, 0x00, 10, 9, 9, 9];
/// RT:65000:7, and a link bandwidth that stays inside its AS.
const EXTENDED: &[u8] = &[
    0xC0, 16, 16, 0, 2, 0xFD, 0xE8, 0, 0, 0, 7, 0x40, 4, 0xFD, 0xE8, 0x4B, 0, 0, 0,
];
const LARGE: &[u8] = &[0xE0, 32, 12, 0, 0, 0xFD, 0xE8, 0, 0, 0, 1, 0, 0, 0, 2];
const ONLY_TO_CUSTOMER: &[u8] = &[0xC0, 35, 4, 0, 0, 0xFD, 0xEA];
const UNKNOWN: &[u8] = &[0xC0, 200, 3, 1, 2, 3];
const UNKNOWN_LONG: &[u8] = &[0xF0, 201, 0, 1, 9];
const UNKNOWN_NOT_TRANSITIVE: &[u8] = &[0x80, 202, 1, 5];

/// RFC 5701: one that may leave the AS, one that may not.
fn ipv6_extended() -> Vec<u8> {
    let mut bytes = vec![0xC0, 25, 40];
    for first in [0x00, 0x40] {
        bytes.extend([first, 2]);
        bytes.extend([0x20; 16]);
        bytes.extend([0, 9]);
    }
    bytes
}

/// What node 3 of `heir_as` hears when node 2, of AS 65002 or ours, says all of the above.
fn passed(sender_as: u16, heir_as: u16, four_octet_as: bool) -> Said {
    let now = network::origin();
    let mut speaker = Speaker::new(config(1, 65001), 1);
    speaker.set_announcements(Announcements::new(), now);
    let mut connections = Vec::new();
    for (node, asn) in [(2, sender_as), (3, heir_as)] {
        let mut peer = toward(node, asn.into());
        peer.passive = true;
        peer.transit = node == 3;
        speaker.set_peer(peer, now);
        let (local, remote) = (
            SocketAddr::new(address(1), 179),
            SocketAddr::new(address(node), 50_000),
        );
        let accepted = speaker.handle_incoming(local, remote, now).unwrap();
        let open = Open {
            families: BTreeSet::from(Family::ALL),
            four_octet_as: four_octet_as || node == 2,
            route_refresh: true,
            ..Open::bare(asn.into(), 90, Ipv4Addr::new(10, 255, 0, node))
        };
        speaker.handle_bytes(accepted.connection, &wire::encode_open(&open), now);
        speaker.handle_bytes(accepted.connection, &wire::encode_keepalive(), now);
        connections.push(accepted.connection);
    }
    while speaker.poll_transmit().is_some() {}
    let is_external = sender_as != 65001;
    let as_path: &[u8] = if is_external {
        &[0x40, 2, 6, 2, 1, 0, 0, 0xFD, 0xEA]
    } else {
        &[0x40, 2, 0]
    };
    let attributes = [
        ORIGIN,
        as_path,
        NEXT_HOP,
        ATOMIC_AGGREGATE,
        AGGREGATOR,
        EXTENDED,
        &ipv6_extended(),
        LARGE,
        ONLY_TO_CUSTOMER,
        UNKNOWN,
        UNKNOWN_LONG,
        UNKNOWN_NOT_TRANSITIVE,
    ]
    .concat();
    speaker.handle_bytes(connections[0], &update(&attributes), now);
    let told: Vec<_> = std::iter::from_fn(|| speaker.poll_transmit()).collect();
    assert_eq!(told.len(), 1, "one UPDATE, and not to its sender");
    assert_eq!(told[0].connection, connections[1]);
    said(&told[0].bytes)
}

fn update(attributes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(23 + attributes.len() + 2).unwrap();
    let mut bytes = vec![0xFF; 16];
    bytes.extend(length.to_be_bytes());
    bytes.extend([2, 0, 0]);
    bytes.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    bytes.extend(attributes);
    bytes.extend([8, 10]);
    bytes
}

fn said(message: &[u8]) -> Said {
    let length = usize::from(u16::from_be_bytes([message[21], message[22]]));
    let mut rest = &message[23..23 + length];
    let mut said = Said::new();
    let mut last = 0;
    while let [flags, code, ..] = *rest {
        let (header, length) = if flags & 0x10 == 0 {
            (3, usize::from(rest[2]))
        } else {
            (4, usize::from(u16::from_be_bytes([rest[2], rest[3]])))
        };
        let (value, after) = rest[header..].split_at(length);
        // RFC 4271 §5 wants their order; what is told twice is told wrongly.
        assert!(
            code > last || matches!(code, 17 | 18),
            "{code} after {last}"
        );
        last = last.max(if matches!(code, 17 | 18) { 0 } else { code });
        assert!(said.insert(code, (flags & !0x10, value.to_vec())).is_none());
        rest = after;
    }
    said
}

fn value(attribute: &[u8]) -> Vec<u8> {
    attribute[3..].to_vec()
}

#[test]
fn across_a_border_all_that_is_transitive_goes_on_and_the_partial_bit_is_true() {
    let said = passed(65002, 65003, true);
    assert_eq!(said[&6], (0x40, vec![]));
    assert_eq!(
        said[&7],
        (0xE0, value(AGGREGATOR)),
        "Partial is not taken back"
    );
    assert_eq!(said[&16], (0xC0, EXTENDED[3..11].to_vec()));
    assert_eq!(said[&25], (0xC0, ipv6_extended()[3..23].to_vec()));
    assert_eq!(said[&32], (0xE0, value(LARGE)));
    assert_eq!(said[&35], (0xC0, value(ONLY_TO_CUSTOMER)));
    assert_eq!(said[&200], (0xE0, value(UNKNOWN)), "we do not know it");
    assert_eq!(said[&201], (0xE0, vec![9]));
    assert_eq!(
        said.keys().copied().collect::<Vec<_>>(),
        [1, 2, 3, 6, 7, 16, 25, 32, 35, 200, 201]
    );
}

#[test]
fn inside_an_as_what_is_not_transitive_goes_on_too() {
    let said = passed(65002, 65001, true);
    assert_eq!(said[&16], (0xC0, value(EXTENDED)));
    assert_eq!(said[&25], (0xC0, ipv6_extended()[3..].to_vec()));
    assert_eq!(said[&5], (0x40, vec![0, 0, 0, 100]));
    assert!(!said.contains_key(&202), "RFC 4271 §5: it is ignored");
}

#[test]
fn an_old_speaker_gets_the_aggregator_in_two_attributes() {
    let said = passed(65002, 65003, false);
    assert_eq!(said[&7], (0xE0, vec![0x5B, 0xA0, 10, 9, 9, 9]), "AS_TRANS");
    assert_eq!(said[&18], (0xE0, value(AGGREGATOR)));
    assert_eq!(said[&200], (0xE0, value(UNKNOWN)));
}

#[test]
fn what_an_inner_peer_told_leaves_the_as_without_what_must_not() {
    let said = passed(65001, 65003, true);
    assert_eq!(said[&16], (0xC0, EXTENDED[3..11].to_vec()));
    assert_eq!(said[&2].1, [2, 1, 0, 0, 0xFD, 0xE9]);
}
