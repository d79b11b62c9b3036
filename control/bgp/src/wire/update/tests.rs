//! Packing, and what comes back from it.

mod mutated;
mod second_opinion;

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::wire::{
    LargeCommunity, MAX_MESSAGE_LEN, Message, decode, decode_update, message_length,
};

fn attributes(next_hop: &str) -> Attributes {
    let mut attributes = Attributes::local(next_hop.parse().unwrap());
    attributes.as_path = vec![65001, 4_200_000_000];
    attributes
}

fn networks(count: u32) -> Vec<IpNetwork> {
    (0..count)
        .map(|index| IpNetwork::new(Ipv4Addr::from(0x0A00_0000 + (index << 8)).into(), 24).unwrap())
        .collect()
}

fn read(bytes: &Bytes, four_octet_as: bool, internal: bool) -> Update {
    assert_eq!(
        message_length(bytes, MAX_MESSAGE_LEN),
        Ok(Some(bytes.len()))
    );
    assert!(bytes.len() <= 4096);
    let Ok(Message::Update(raw)) = decode(bytes.clone()) else {
        panic!("not an UPDATE");
    };
    decode_update(
        &raw,
        Reading {
            four_octet_as,
            internal,
            families: &BTreeSet::from(Family::ALL),
            add_path: &BTreeSet::new(),
            on_link: false,
        },
    )
    .unwrap()
}

#[test]
fn prefixes_with_the_same_attributes_share_messages_up_to_their_limit() {
    let prefixes = networks(3000);
    let messages = pack_announcements(
        &attributes("192.0.2.1"),
        Family::Ipv4Unicast,
        &prefixes,
        Encoding::PLAIN,
    )
    .unwrap();
    assert_eq!(messages.len(), 3, "about a thousand /24 fit one message");
    assert!(messages[0].len() > 4090);
    let back: Vec<_> = messages
        .iter()
        .flat_map(|message| read(message, true, false).reach.remove(0).prefixes)
        .collect();
    assert_eq!(back, prefixes);
}

#[test]
fn what_tables_are_told_in_is_read_without_the_codec() {
    let prefixes = networks(3000);
    let mut usual = attributes("192.0.2.1");
    usual.med = Some(7);
    usual.communities = vec![0xFDE9_0001, 0xFFFF_FF01];
    usual.large_communities = vec![LargeCommunity {
        global: 65001,
        local1: 1,
        local2: 2,
    }];
    let said = pack_announcements(&usual, Family::Ipv4Unicast, &prefixes, Encoding::PLAIN);
    for message in said.unwrap() {
        let Ok(Message::Update(raw)) = decode(message) else {
            panic!("not an UPDATE");
        };
        let reading = Reading {
            four_octet_as: true,
            internal: false,
            families: &BTreeSet::from(Family::ALL),
            add_path: &BTreeSet::new(),
            on_link: false,
        };
        let update = plain::read(&raw.0, &reading).unwrap();
        assert_eq!(*update.reach[0].attributes, usual);
    }
}

#[test]
fn withdrawals_are_packed_too() {
    let prefixes = networks(3000);
    let messages = pack_withdrawals(Family::Ipv4Unicast, &prefixes, Encoding::PLAIN);
    assert_eq!(messages.len(), 3);
    let back: Vec<_> = messages
        .iter()
        .flat_map(|message| read(message, true, false).withdrawn)
        .collect();
    assert_eq!(back, prefixes);
}

#[test]
fn attributes_that_fill_a_message_are_refused_and_not_sent_broken() {
    let mut huge = attributes("192.0.2.1");
    huge.communities = (0..1100).collect();
    assert_eq!(
        pack_announcements(&huge, Family::Ipv4Unicast, &networks(1), Encoding::PLAIN),
        Err(TooLong)
    );
    huge.communities.truncate(1000);
    assert!(pack_announcements(&huge, Family::Ipv4Unicast, &networks(9), Encoding::PLAIN).is_ok());
}

#[test]
fn an_extended_message_holds_sixteen_times_as_much_and_never_more() {
    let extended = Encoding {
        longest: EXTENDED_MESSAGE_LEN,
        ..Encoding::PLAIN
    };
    let prefixes = networks(20_000);
    let whole = |messages: &[Bytes]| {
        assert_eq!(messages.len(), 2);
        assert!(messages[0].len() > 65_520);
        let lengths = messages
            .iter()
            .map(|message| message_length(message, EXTENDED_MESSAGE_LEN));
        let expected = messages.iter().map(|message| Ok(Some(message.len())));
        assert!(lengths.eq(expected));
    };
    let mut huge = attributes("192.0.2.1");
    huge.communities = (0..1100).collect();
    for attributes in [&attributes("192.0.2.1"), &huge] {
        let family = Family::Ipv4Unicast;
        whole(&pack_announcements(attributes, family, &prefixes, extended).unwrap());
    }
    whole(&pack_withdrawals(Family::Ipv4Unicast, &prefixes, extended));
    huge.communities = (0..17_000).collect();
    let refused = pack_announcements(&huge, Family::Ipv4Unicast, &networks(1), extended);
    assert_eq!(refused, Err(TooLong));
}

#[test]
fn the_end_of_rib_of_each_family_is_recognised() {
    for family in Family::ALL {
        let update = read(&end_of_rib(family), true, false);
        assert_eq!(update.end_of_rib, Some(family));
        assert!(update.withdrawn.is_empty() && update.reach.is_empty());
    }
    let withdrawal = pack_withdrawals(
        Family::Ipv6Unicast,
        &["2001:db8::/32".parse().unwrap()],
        Encoding::PLAIN,
    );
    assert_eq!(read(&withdrawal[0], true, false).end_of_rib, None);
}

#[test]
fn a_peer_of_two_octets_gets_the_whole_path_beside_the_short_one() {
    let packed = pack_announcements(
        &attributes("192.0.2.1"),
        Family::Ipv4Unicast,
        &networks(1),
        Encoding {
            four_octet_as: false,
            ..Encoding::PLAIN
        },
    )
    .unwrap();
    let update = read(&packed[0], false, false);
    assert_eq!(update.reach[0].attributes.as_path, [65001, 4_200_000_000]);
}

fn prefix() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        (any::<u32>(), 0..=32_u8)
            .prop_map(|(address, length)| (Ipv4Addr::from(address).into(), length)),
        (any::<u128>(), 0..=128_u8)
            .prop_map(|(address, length)| (Ipv6Addr::from(address).into(), length)),
    ]
    .prop_map(|(address, length): (IpAddr, u8)| {
        let network = IpNetwork::new(address, length).unwrap();
        IpNetwork::new(network.network(), length).unwrap()
    })
}

proptest! {
    #[test]
    fn an_announcement_comes_back_as_it_went(
        prefixes in proptest::collection::vec(prefix(), 1..2000),
        med in proptest::option::of(any::<u32>()),
        local_pref in proptest::option::of(any::<u32>()),
        mut communities in proptest::collection::vec(any::<u32>(), 0..40),
        as_path in proptest::collection::vec(1..=u32::MAX, 0..300),
        link_local in any::<bool>(),
    ) {
        communities.sort_unstable();
        communities.dedup();
        for family in Family::ALL {
            let prefixes: Vec<_> = prefixes.iter().filter(|p| Family::of(p) == family).copied().collect();
            let mut attributes = match family {
                Family::Ipv4Unicast => Attributes::local(IpAddr::from([192, 0, 2, 1])),
                Family::Ipv6Unicast => Attributes::local("2001:db8::1".parse().unwrap()),
            };
            if link_local && family == Family::Ipv6Unicast {
                attributes.link_local = Some("fe80::1".parse().unwrap());
            }
            attributes.med = med;
            attributes.local_pref = local_pref;
            attributes.communities.clone_from(&communities);
            attributes.as_path.clone_from(&as_path);
            let mut back = Vec::new();
            for message in pack_announcements(&attributes, family, &prefixes, Encoding::PLAIN).unwrap() {
                let update = read(&message, true, true);
                prop_assert!(update.faults.is_empty(), "{:?}", update.faults);
                prop_assert_eq!(&*update.reach[0].attributes, &attributes);
                back.extend(update.reach.into_iter().flat_map(|reach| reach.prefixes));
            }
            prop_assert_eq!(back, prefixes.clone());
            let withdrawn: Vec<_> = pack_withdrawals(family, &prefixes, Encoding::PLAIN)
                .iter()
                .flat_map(|message| read(message, true, true).withdrawn)
                .collect();
            prop_assert_eq!(withdrawn, prefixes);
        }
    }
}
