//! The ring of a service: which backend each slot belongs to (Eisenbud et al., "Maglev", NSDI 2016,
//! section 3.4), with weights.
//!
//! Every backend has its own permutation of the slots and backends take turns claiming their next free
//! slot; a backend of half the greatest weight claims every other turn. A ring depends only on the
//! addresses, ports and weights of its backends, so every node computes the same one, and a change of
//! one backend moves few slots of the others.
//!
//! Not here: backend ids, transitions and places in `RINGS` (`plan::services`).

use std::net::IpAddr;

use fairlead_common::hash::{finish, fold};

use crate::desired::BackendAddr;

/// A backend of a ring and its weight; at least 1.
pub type Member = (BackendAddr, u32);

/// The permutation of one backend: slots `offset + n * skip`, all of them because `slots` is prime.
struct Claims {
    /// The next slot to try.
    next: u32,
    skip: u32,
    weight: u64,
    credit: u64,
}

/// For each of `slots` slots (a prime) the index of its backend in `members`.
///
/// `members` must be sorted and distinct; a member beyond the number of slots gets none. Empty when
/// there are no members.
pub fn ring(members: &[Member], slots: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    debug_assert!(members.is_sorted() && slots >= 2);
    let turn = u64::from(members.iter().map(|(_, weight)| *weight).max().unwrap_or(0));
    if turn == 0 {
        return Vec::new();
    }
    let mut claims: Vec<Claims> = members
        .iter()
        .map(|(address, weight)| {
            let hash = hash_of(*address);
            Claims {
                next: reduce(hash, slots),
                skip: 1 + reduce(finish(hash ^ 0x5bd1_e995), slots - 1),
                weight: u64::from(*weight),
                credit: 0,
            }
        })
        .collect();
    let mut ring = vec![FREE; slots as usize];
    let mut left = slots;
    loop {
        for (member, claim) in claims.iter_mut().enumerate() {
            claim.credit += claim.weight;
            if claim.credit < turn {
                continue;
            }
            claim.credit -= turn;
            while ring[claim.next as usize] != FREE {
                claim.step(slots);
            }
            ring[claim.next as usize] = member as u32;
            claim.step(slots);
            left -= 1;
            if left == 0 {
                return ring;
            }
        }
    }
}

impl Claims {
    fn step(&mut self, slots: u32) {
        self.next += self.skip;
        if self.next >= slots {
            self.next -= slots;
        }
    }
}

/// A hash of where a backend listens, equal on every machine.
fn hash_of(address: BackendAddr) -> u64 {
    let octets = match address.addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (words, _) = octets.as_chunks::<8>();
    let hash = words
        .iter()
        .fold(0, |hash, word| fold(hash, u64::from_be_bytes(*word)));
    finish(fold(hash, u64::from(address.port)))
}

/// Maps a hash to `0..range` by its upper half.
fn reduce(hash: u64, range: u32) -> u32 {
    (((hash >> 32) * u64::from(range)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const SLOTS: u32 = 65537;

    fn member(number: u32) -> Member {
        let addr = if number.is_multiple_of(5) {
            Ipv6Addr::from(u128::from(number) | 0xfd << 120).into()
        } else {
            Ipv4Addr::from(0x0a00_0000 | number).into()
        };
        (BackendAddr { addr, port: 80 }, 1)
    }

    fn shares(ring: &[u32], members: usize) -> Vec<u32> {
        let mut shares = vec![0; members];
        for &owner in ring {
            shares[owner as usize] += 1;
        }
        shares
    }

    /// The owner of each slot by its address.
    fn owners(members: &[Member], slots: u32) -> Vec<BackendAddr> {
        ring(members, slots)
            .into_iter()
            .map(|owner| members[owner as usize].0)
            .collect()
    }

    fn some_members(most: usize) -> impl Strategy<Value = Vec<Member>> {
        proptest::collection::btree_map(any::<u16>(), 1_u32..5, 1..most).prop_map(|members| {
            let mut members: Vec<_> = members
                .into_iter()
                .map(|(number, weight)| (member(u32::from(number)).0, weight))
                .collect();
            members.sort_unstable();
            members
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_weights_differ_by_at_most_one_slot(numbers in proptest::collection::btree_set(any::<u16>(), 1..300)) {
            let mut members: Vec<_> = numbers.into_iter().map(|n| member(u32::from(n))).collect();
            members.sort_unstable();

            let shares = shares(&ring(&members, 4093), members.len());

            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{least} to {most}");
        }

        #[test]
        fn shares_follow_weights(members in some_members(60)) {
            let shares = shares(&ring(&members, SLOTS), members.len());

            let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
            for (share, (_, weight)) in shares.iter().zip(&members) {
                let exact = u64::from(SLOTS) * u64::from(*weight) / total;
                prop_assert!(u64::from(*share).abs_diff(exact) <= u64::from(*weight) + 1, "{share} of {exact}");
            }
        }

        #[test]
        fn only_the_ratio_of_weights_counts(members in some_members(20), factor in 2_u32..1000) {
            let scaled: Vec<_> = members.iter().map(|(at, weight)| (*at, weight * factor)).collect();

            prop_assert_eq!(ring(&members, 4093), ring(&scaled, 4093));
        }

        /// Maglev's own evaluation finds a few per cent at 1000 backends on 65537 slots, less with fewer.
        #[test]
        fn one_backend_less_moves_few_slots_of_the_others(count in 2_u32..200, gone in any::<prop::sample::Index>(), start in any::<u16>()) {
            let members: BTreeSet<_> = (0..count).map(|n| member(u32::from(start) + n)).collect();
            let members: Vec<_> = members.into_iter().collect();
            let before = owners(&members, SLOTS);
            let mut fewer = members.clone();
            let (gone, _) = fewer.remove(gone.index(members.len()));

            let after = owners(&fewer, SLOTS);

            let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
            prop_assert!(moved * 100 <= SLOTS as usize * 4, "{moved} of {SLOTS} moved");
            prop_assert!(!after.contains(&gone));
        }
    }

    #[test]
    fn a_small_ring_still_gives_every_backend_a_slot() {
        let mut members: Vec<_> = (0..7).map(member).collect();
        members.sort_unstable();

        assert_eq!(shares(&ring(&members, 7), 7), [1; 7]);
        // One more than there are slots: the last one gets none.
        let mut members: Vec<_> = (0..3).map(member).collect();
        members.sort_unstable();
        assert_eq!(shares(&ring(&members, 2), 3), [1, 1, 0]);
    }

    #[test]
    fn no_backend_makes_no_ring() {
        assert!(ring(&[], SLOTS).is_empty());
        assert!(ring(&[(member(1).0, 0)], SLOTS).is_empty());
    }

    #[test]
    fn the_ring_is_part_of_the_contract_between_nodes() {
        // Nodes of several versions share one address: a change here moves flows of the whole fleet.
        let mut members: Vec<_> = (1..=3).map(member).collect();
        members.sort_unstable();

        assert_eq!(ring(&members, 13), [1, 0, 2, 0, 1, 2, 1, 0, 0, 0, 1, 2, 2]);
    }

    #[test]
    fn a_thousand_backends_are_placed_at_once() {
        let mut members: Vec<_> = (0..1000).map(member).collect();
        members.sort_unstable();

        // The bound is on work, not on time: about slots * ln(slots) claims.
        assert_eq!(
            shares(&ring(&members, SLOTS), 1000).iter().sum::<u32>(),
            SLOTS
        );
    }
}
