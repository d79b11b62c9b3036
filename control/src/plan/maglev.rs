//! The ring of a service: which backend each slot belongs to, after Maglev (Eisenbud et al., NSDI 2016,
//! section 3.4), with weights and in the size that fits.
//!
//! Every backend has its own permutation of the slots, and a number of slots that follows its weight. Backends
//! take turns; a turn looks at the next slot of the permutation and claims it if it is free, until a backend
//! has its number. A ring depends only on the addresses, ports and weights of its backends, so every node
//! computes the same one.
//!
//! # Why
//! - A turn that finds its slot taken is over; Maglev's goes on to the next free slot. So who owns a slot
//!   depends on who wants it most, less on who came before, and a change of one backend moves half as many
//!   slots of the others.
//! - Sizes are powers of two and a slot is the upper bits of the hash, so slot `k` of a ring is the slots `2k`
//!   and `2k + 1` of one of twice the size: a ring can be written finer than it is without moving a flow.
//! - A ring grows out of smaller ones: each slot's parts keep its owner as far as the owner's number allows.
//!   So a ring that grows because a backend came moves no more slots than one that does not.
//!
//! Not here: backend ids, transitions and places in `RINGS` (`plan::services`).

use std::cmp::Reverse;
use std::net::IpAddr;

use fairlead_common::hash::{finish, fold};

use crate::desired::BackendAddr;

/// A backend of a ring and its weight; at least 1.
pub type Member = (BackendAddr, u32);

/// How large rings are: a function of their members, equal on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Slots of the smallest ring, out of which the others grow; a power of two.
    pub least: u32,
    /// Slots of the greatest ring; a power of two.
    pub most: u32,
    /// How many slots a ring should have for its backend of the least weight.
    pub each: u32,
}

impl Sizes {
    /// The sizes of all nodes: a backend's share is within two per cent of its weight's (one slot of fifty)
    /// while a ring of `most` slots can say so, and within one slot beyond.
    pub const FLEET: Self = Self {
        least: 512,
        most: 1 << 17,
        each: 50,
    };

    /// How many slots the ring of these members has.
    pub fn of(&self, members: &[Member]) -> u32 {
        let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let least = members.iter().map(|(_, weight)| *weight).min().unwrap_or(1);
        let wanted = (total * u64::from(self.each)).div_ceil(u64::from(least.max(1)));
        let wanted = wanted.clamp(self.least.into(), self.most.into()) as u32;
        wanted.next_power_of_two()
    }
}

/// For each slot of the members' ring the index of its backend in `members`.
///
/// `members` must be sorted and distinct; of more than there are slots some have none. Empty when there are no
/// members.
pub fn ring(members: &[Member], sizes: Sizes) -> Vec<u32> {
    debug_assert!(members.is_sorted());
    if members.iter().all(|(_, weight)| *weight == 0) {
        return Vec::new();
    }
    let slots = sizes.of(members);
    let hashes: Vec<u64> = members.iter().map(|(at, _)| hash_of(*at)).collect();
    let mut ring = claim(members, &hashes, sizes.least, None);
    let mut size = sizes.least;
    while size < slots {
        // Wide steps: each adds a little to what a change moves.
        size = slots.min(size * 4);
        ring = claim(members, &hashes, size, Some(&ring));
    }
    ring
}

/// A backend that has not all its slots yet.
struct Claimant {
    member: u32,
    /// The next slot of its permutation, before the mask.
    next: u32,
    /// Odd, so that every slot of a power of two comes.
    skip: u32,
    /// How many slots it still claims.
    left: u32,
    /// What a round adds to its credit; a turn takes the price.
    gain: u64,
    credit: u64,
}

/// Divides `slots` slots; those of a coarser ring first stay with their owners.
fn claim(members: &[Member], hashes: &[u64], slots: u32, coarser: Option<&[u32]>) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    /// Odd: slots are looked at in an order that no member decides.
    const STRIDE: u32 = 0x9e37_79b1;
    let mask = slots - 1;
    let mut numbers = numbers(members, hashes, slots);
    let mut ring = vec![FREE; slots as usize];
    let mut free = slots;
    if let Some(coarser) = coarser {
        let parts = slots as usize / coarser.len();
        for at in 0..slots {
            let slot = (at.wrapping_mul(STRIDE) & mask) as usize;
            let owner = coarser[slot / parts];
            let number = &mut numbers[owner as usize];
            if *number > 0 {
                *number -= 1;
                ring[slot] = owner;
                free -= 1;
            }
        }
    }
    let total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let greatest = members.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
    let slots = u64::from(slots);
    // One turn a round for the greatest weight; more where a weight is so great that others would wait for
    // thousands of rounds.
    let price = (u64::from(greatest) * slots).min(total * 128).max(1);
    let mut claimants: Vec<Claimant> = (0..)
        .zip(members.iter().zip(hashes))
        .zip(&numbers)
        .map(|((member, ((_, weight), hash)), left)| Claimant {
            member,
            next: (hash >> 32) as u32,
            skip: finish(hash ^ 0x5bd1_e995) as u32 | 1,
            left: *left,
            // Nobody waits longer than one with a single slot.
            gain: (u64::from(*weight) * slots).max(total),
            credit: 0,
        })
        .collect();
    while free > 0 {
        claimants.retain(|claimant| claimant.left > 0);
        for claimant in &mut claimants {
            claimant.credit += claimant.gain;
            while claimant.credit >= price && claimant.left > 0 {
                claimant.credit -= price;
                let slot = &mut ring[(claimant.next & mask) as usize];
                claimant.next = claimant.next.wrapping_add(claimant.skip);
                if *slot == FREE {
                    *slot = claimant.member;
                    claimant.left -= 1;
                    free -= 1;
                }
            }
        }
    }
    ring
}

/// How many slots each member has: by weight, the largest remainders rounded up, and at least one while there
/// are enough. Their sum is `slots`.
fn numbers(members: &[Member], hashes: &[u64], slots: u32) -> Vec<u32> {
    let mut total: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut divided = u64::from(slots);
    let mut numbers = vec![0; members.len()];
    if members.len() <= slots as usize {
        // Those whose share is less than one slot have one; the others divide the rest, which may make
        // another share less than one.
        loop {
            let (total_before, divided_before) = (total, divided);
            for (number, (_, weight)) in numbers.iter_mut().zip(members) {
                let weight = u64::from(*weight);
                if *number == 0 && divided_before * weight < total_before {
                    *number = 1;
                    divided -= 1;
                    total -= weight;
                }
            }
            if total == total_before {
                break;
            }
        }
    }
    let mut remainders = Vec::with_capacity(members.len());
    let mut left = divided;
    for (member, number) in numbers
        .iter_mut()
        .enumerate()
        .filter(|(_, number)| **number == 0)
    {
        let share = divided * u64::from(members[member].1);
        *number = (share / total) as u32;
        left -= share / total;
        remainders.push((Reverse(share % total), hashes[member], member));
    }
    remainders.sort_unstable();
    for (_, _, member) in remainders.into_iter().take(left as usize) {
        numbers[member] += 1;
    }
    numbers
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Rings of one size, whoever is on them.
    fn fixed(slots: u32) -> Sizes {
        Sizes {
            least: slots,
            most: slots,
            ..Sizes::FLEET
        }
    }

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

    /// How much of all flows goes to another backend, in hundredths of a per cent.
    fn moved(before: &[Member], after: &[Member]) -> usize {
        let [a, b] = [before, after].map(|members| {
            let ring = ring(members, Sizes::FLEET);
            let owners = ring.into_iter().map(|owner| members[owner as usize].0);
            owners.collect::<Vec<_>>()
        });
        let slots = a.len().max(b.len());
        let differs = |slot: &usize| a[slot * a.len() / slots] != b[slot * b.len() / slots];
        (0..slots).filter(differs).count() * 10_000 / slots
    }

    /// `count` backends of one weight.
    fn alike(count: u32, from: u32) -> Vec<Member> {
        let members: BTreeSet<_> = (from..from + count).map(member).collect();
        members.into_iter().collect()
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

            let shares = shares(&ring(&members, Sizes::FLEET), members.len());

            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{least} to {most}");
        }

        #[test]
        fn shares_are_within_two_per_cent_of_their_weights(members in some_members(60), scale in 1_u32..1_000_000) {
            let members: Vec<_> = members.into_iter().map(|(at, weight)| (at, weight * scale)).collect();

            let ring = ring(&members, Sizes::FLEET);

            let total: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
            for (share, (_, weight)) in shares(&ring, members.len()).iter().zip(&members) {
                let exact = f64::from(ring.len() as u32) * f64::from(*weight) / total;
                prop_assert!((f64::from(*share) / exact - 1.0).abs() <= 0.02, "{share} of {exact}");
            }
        }

        #[test]
        fn weights_that_no_ring_can_say_are_a_slot_off_at_most(weights in proptest::collection::vec(1_u32.., 2..40)) {
            let members: Vec<_> = alike(weights.len() as u32, 0).into_iter().zip(weights).map(|((at, _), weight)| (at, weight)).collect();

            let ring = ring(&members, Sizes::FLEET);

            let total: f64 = members.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let shares = shares(&ring, members.len());
            // Those that have a slot though their share is less take it from the others.
            let tiny = members.iter().filter(|(_, weight)| f64::from(*weight) / total * f64::from(ring.len() as u32) < 1.0).count() as u32;
            for (share, (_, weight)) in shares.iter().zip(&members) {
                let exact = f64::from(ring.len() as u32) * f64::from(*weight) / total;
                prop_assert!(*share >= 1);
                prop_assert!((f64::from(*share) - exact).abs() <= 1.0 + f64::from(tiny), "{share} of {exact}");
            }
        }

        #[test]
        fn only_the_ratio_of_weights_counts(members in some_members(20), factor in 2_u32..1000) {
            let scaled: Vec<_> = members.iter().map(|(at, weight)| (*at, weight * factor)).collect();

            prop_assert_eq!(ring(&members, Sizes::FLEET), ring(&scaled, Sizes::FLEET));
        }

        /// Also where the ring has another size afterwards. `docs/architecture.md` has the averages.
        #[test]
        fn one_backend_less_moves_its_own_flows_and_a_few_per_cent(count in 2_u32..200, gone in any::<prop::sample::Index>(), start in any::<u16>()) {
            let members = alike(count, start.into());
            let mut fewer = members.clone();
            fewer.remove(gone.index(members.len()));

            let others = moved(&members, &fewer).saturating_sub(10_000 / count as usize);

            prop_assert!(others <= 1100, "{others} of 10000 moved beside its own");
        }

        #[test]
        fn a_ring_of_another_size_is_nearly_the_same(members in some_members(60), step in 0_u32..3) {
            let slots = Sizes::FLEET.of(&members) << step;
            let owners = |slots| ring(&members, Sizes { most: slots, each: u32::MAX >> 8, ..Sizes::FLEET });
            let (coarse, fine) = (owners(slots), owners(slots * 2));

            let moved = (0..fine.len()).filter(|slot| fine[*slot] != coarse[slot / 2]).count();

            prop_assert!(moved * 100 <= fine.len() * 3, "{moved} of {}", fine.len());
        }
    }

    #[test]
    fn a_ring_is_as_large_as_its_members_need() {
        let size = |count| Sizes::FLEET.of(&alike(count, 0));
        assert_eq!([1, 10, 11, 20, 21].map(size), [512, 512, 1024, 1024, 2048]);
        assert_eq!(size(1310), 65536);
        assert_eq!(size(100_000), 131_072);

        let mut weighted = alike(2, 0);
        weighted[1].1 = 100;
        assert_eq!(Sizes::FLEET.of(&weighted), 8192);
        weighted[1].1 = u32::MAX;
        assert_eq!(Sizes::FLEET.of(&weighted), 131_072);
    }

    #[test]
    fn a_small_ring_still_gives_every_backend_a_slot() {
        let members = alike(8, 0);
        assert_eq!(shares(&ring(&members, fixed(8)), 8), [1; 8]);

        let mut members = alike(3, 0);
        members[1].1 = u32::MAX;
        assert_eq!(shares(&ring(&members, fixed(8)), 3), [1, 6, 1]);
    }

    #[test]
    fn no_backend_makes_no_ring() {
        assert!(ring(&[], Sizes::FLEET).is_empty());
        assert!(ring(&[(member(1).0, 0)], Sizes::FLEET).is_empty());
    }

    #[test]
    fn the_ring_is_part_of_the_contract_between_nodes() {
        // Nodes of several versions share one address: a change here moves flows of the whole fleet.
        assert_eq!(
            ring(&alike(3, 1), fixed(16)),
            [0, 0, 0, 1, 1, 2, 1, 1, 1, 2, 1, 2, 2, 0, 0, 2]
        );
        let digest = |count| {
            let ring = ring(&alike(count, 1), Sizes::FLEET);
            finish(
                ring.iter()
                    .fold(0, |hash, owner| fold(hash, u64::from(*owner))),
            )
        };
        let known = [
            13_517_920_695_492_380_436,
            8_248_711_913_515_082_867,
            8_384_350_741_752_635_691,
        ];
        assert_eq!([3, 30, 300].map(digest), known);
    }

    #[test]
    fn backends_of_very_different_weights_are_placed_at_once() {
        // Turns are bounded: one that waits for ten thousand rounds would keep the agent for a second.
        let mut members = alike(1000, 0);
        members[7].1 = 1_000_000;

        let shares = shares(&ring(&members, fixed(65536)), 1000);

        assert_eq!(shares[7], 65536 - 999);
        assert_eq!(shares.iter().sum::<u32>(), 65536);
    }
}
