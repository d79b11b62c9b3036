//! Our codec and another one: what either writes the other reads, and both read the same.
//!
//! Default routes are left out: the other one takes a prefix of no bits for the sign of path identifiers (RFC 7911),
//! as readers of archives do that were not there when that was negotiated.

use std::collections::BTreeSet;

use bgpkit_parser::models::{
    AsPathSegment, AsnLength, AttributeValue, BgpMessage, BgpUpdateMessage, NextHopAddress,
};
use bgpkit_parser::parser::bgp::messages::parse_bgp_message;
use proptest::prelude::*;

use super::mutated::{Dice, seeds};
use super::*;
use crate::wire::{
    Aggregator, ExtendedCommunity, LargeCommunity, Origin, RareAttributes, UnknownAttribute,
};

/// How the other one reads a message.
fn theirs(bytes: &Bytes, four_octet_as: bool) -> Option<BgpUpdateMessage> {
    let width = if four_octet_as {
        AsnLength::Bits32
    } else {
        AsnLength::Bits16
    };
    match parse_bgp_message(&mut bytes.clone(), false, &width) {
        Ok(BgpMessage::Update(update)) => Some(update),
        _ => None,
    }
}

/// All that it announces, whatever section that stands in.
fn prefixes(update: &BgpUpdateMessage) -> BTreeSet<String> {
    let reachable = update.attributes.get_reachable_nlri();
    let reachable = reachable.into_iter().flat_map(|nlri| &nlri.prefixes);
    let all = update.announced_prefixes.iter().chain(reachable);
    // It keeps host bits, which RFC 4271 §4.3 calls irrelevant.
    all.map(|prefix| prefix.prefix.trunc().to_string())
        .collect()
}

fn as_path(update: &BgpUpdateMessage) -> Vec<u32> {
    let path = update.attributes.as_path();
    path.into_iter()
        .flat_map(|path| path.iter_segments())
        .flat_map(|segment| {
            let AsPathSegment::AsSequence(ases) = segment else {
                panic!("{segment:?}");
            };
            ases.iter().map(|asn| u32::from(*asn))
        })
        .collect()
}

fn address_of(next_hop: NextHopAddress) -> IpAddr {
    match next_hop {
        NextHopAddress::Ipv4(address) => address.into(),
        NextHopAddress::Ipv6(address) | NextHopAddress::Ipv6LinkLocal(address, _) => address.into(),
        NextHopAddress::VpnIpv6(..) | NextHopAddress::VpnIpv6LinkLocal(..) => {
            panic!("{next_hop:?}")
        }
    }
}

fn agree(update: &BgpUpdateMessage, ours: &Attributes, all: &[IpNetwork]) {
    let all: BTreeSet<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes(update), all);
    assert_eq!(as_path(update), ours.as_path);
    let theirs = &update.attributes;
    assert_eq!(theirs.multi_exit_discriminator(), ours.med);
    assert_eq!(theirs.local_preference(), ours.local_pref);
    assert_eq!(
        theirs.origin() as u8,
        match ours.origin {
            Origin::Igp => 0,
            Origin::Egp => 1,
            Origin::Incomplete => 2,
        }
    );
    let nlri = theirs.get_reachable_nlri();
    let (next_hop, link_local) = match nlri.and_then(|nlri| nlri.next_hop) {
        Some(NextHopAddress::Ipv6LinkLocal(global, link_local)) => {
            (Some(global.into()), Some(link_local))
        }
        Some(other) => (Some(address_of(other)), None),
        None => (theirs.next_hop(), None),
    };
    assert_eq!(
        (next_hop, link_local),
        (Some(ours.next_hop), ours.link_local)
    );
    let rare = ours.rare();
    assert_eq!(theirs.atomic_aggregate(), rare.atomic_aggregate);
    assert_eq!(
        theirs.aggregator().map(|(asn, id)| (u32::from(asn), id)),
        rare.aggregator.map(|by| (by.asn, by.router_id))
    );
    for value in theirs {
        if let AttributeValue::LargeCommunities(communities) = value {
            let theirs = communities.iter().map(|c| (c.global_admin, c.local_data));
            let ours = ours.large_communities.iter();
            let ours = ours.map(|c| (c.global, [c.local1, c.local2]));
            assert!(theirs.eq(ours), "{communities:?}");
        }
        if let AttributeValue::Communities(communities) = value {
            assert_eq!(communities.len(), ours.communities.len());
        }
        if let AttributeValue::ExtendedCommunities(communities) = value {
            assert_eq!(communities.len(), rare.extended_communities.len());
        }
    }
}

fn rare() -> impl Strategy<Value = RareAttributes> {
    (
        any::<bool>(),
        proptest::option::of((1..=u32::MAX, any::<u32>())),
        proptest::collection::vec((0..3_u8, any::<[u8; 7]>()), 0..5),
        proptest::collection::vec(any::<u8>(), 0..300),
        any::<bool>(),
    )
        .prop_map(
            |(atomic_aggregate, aggregator, extended, unknown, is_partial)| {
                let aggregator = aggregator.map(|(asn, id)| Aggregator {
                    asn,
                    router_id: id.into(),
                });
                RareAttributes {
                    atomic_aggregate,
                    partial: if is_partial && aggregator.is_some() {
                        [7].into()
                    } else {
                        BTreeSet::new()
                    },
                    aggregator,
                    extended_communities: extended
                        .into_iter()
                        .map(|(kind, [subtype, rest @ ..])| {
                            let mut octets = [kind, subtype, 0, 0, 0, 0, 0, 0];
                            octets[2..].copy_from_slice(&rest);
                            ExtendedCommunity(octets)
                        })
                        .collect(),
                    unknown: vec![UnknownAttribute {
                        code: 200,
                        value: unknown,
                    }],
                    ..RareAttributes::default()
                }
            },
        )
}

proptest! {
    #[test]
    fn what_we_write_the_other_reads_and_what_it_writes_again_is_the_same_to_us(
        all in proptest::collection::btree_set(prefix().prop_filter("the default route", |p| p.prefix() > 0), 1..40),
        ases in proptest::collection::vec(1..=u32::MAX, 0..300),
        (med, local_pref) in any::<(Option<u32>, Option<u32>)>(),
        communities in proptest::collection::btree_set(any::<u32>(), 0..20),
        large in proptest::collection::btree_set(any::<(u32, u32, u32)>(), 0..10),
        rare in rare(),
        link_local in any::<bool>(),
    ) {
        for (family, next_hop) in [
            (Family::Ipv4Unicast, "192.0.2.1"),
            (Family::Ipv4Unicast, "2001:db8::1"),
            (Family::Ipv6Unicast, "2001:db8::1"),
        ] {
            let all: Vec<_> = all.iter().filter(|p| Family::of(p) == family).copied().collect();
            if all.is_empty() {
                continue;
            }
            let mut ours = Attributes::local(next_hop.parse().unwrap());
            if link_local && ours.next_hop.is_ipv6() {
                ours.link_local = Some("fe80::7".parse().unwrap());
            }
            ours.as_path.clone_from(&ases);
            (ours.med, ours.local_pref) = (med, local_pref);
            ours.communities = communities.iter().copied().collect();
            ours.large_communities = large
                .iter()
                .map(|&(global, local1, local2)| LargeCommunity { global, local1, local2 })
                .collect();
            ours.set_rare(rare.clone());
            let messages = pack_announcements(&ours, family, &all, Encoding::PLAIN).unwrap();
            prop_assert_eq!(messages.len(), 1);
            let update = theirs(&messages[0], true).expect("the other one refuses it");
            agree(&update, &ours, &all);

            let again = BgpMessage::Update(update).encode(AsnLength::Bits32).unwrap();
            let back = read(&again, true, true);
            prop_assert!(back.faults.is_empty(), "{:?}", back.faults);
            prop_assert_eq!(&*back.reach[0].attributes, &ours);
            prop_assert_eq!(&back.reach[0].prefixes, &all);
        }
    }
}

#[test]
fn of_damaged_messages_that_both_accept_both_read_the_same() {
    let seeds = seeds(false);
    let mut dice = Dice(3);
    let mut compared = 0;
    for _ in 0..5_000 {
        let mut shape = seeds[dice.below(seeds.len())].clone();
        for _ in 0..=dice.below(3) {
            shape.damage(&mut dice, &seeds);
        }
        let bytes = shape.bytes();
        let Ok(Message::Update(raw)) = decode(bytes.clone()) else {
            continue;
        };
        let both = BTreeSet::from(Family::ALL);
        let Ok(update) = decode_update(
            &raw,
            Reading {
                four_octet_as: true,
                internal: true,
                families: &both,
                add_path: &BTreeSet::new(),
                on_link: true,
            },
        ) else {
            continue;
        };
        let is_default = |prefix: &IpNetwork| prefix.prefix() == 0;
        if update
            .reach
            .iter()
            .any(|reach| reach.prefixes.iter().any(is_default))
        {
            continue;
        }
        if let ([reach], [], Some(theirs)) =
            (&update.reach[..], &update.faults[..], theirs(&bytes, true))
        {
            let all: BTreeSet<_> = reach.prefixes.iter().map(ToString::to_string).collect();
            assert_eq!(prefixes(&theirs), all, "{bytes:02x?}");
            assert_eq!(as_path(&theirs), reach.attributes.as_path, "{bytes:02x?}");
            assert_eq!(
                theirs.attributes.multi_exit_discriminator(),
                reach.attributes.med
            );
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared} were compared");
}
