//! Which of two paths to a prefix is better, and by what (RFC 4271 §9.1.2.2, RFC 4456 §9).
//!
//! In order:
//! 0. not kept for a peer that is long away (RFC 9494 §4.3);
//! 1. higher LOCAL_PREF (100 when absent);
//! 2. shorter AS_PATH;
//! 3. lower ORIGIN;
//! 4. lower MED, between paths from the same neighbouring AS (0 when absent);
//! 5. external peer before internal peer;
//! 6. lower BGP identifier of the originator or else of the peer;
//! 7. shorter CLUSTER_LIST;
//! 8. lower peer address;
//! 9. lower path identifier, of the same peer (RFC 7911 §3).
//!
//! Paths that tie up to and including 5 may be used together. The metric to the next hop, which
//! the RFC puts before 6, is not known to a node: its next hops are on its links.
//!
//! Rule 4 makes the comparison no total order, so [`rank`] first finds the best path of each
//! neighbouring AS and then the best of those (RFC 4271 §9.1.2.2 c); its result does not depend
//! on the order of arrival.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::wire::Attributes;

/// LOCAL_PREF of a path that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// What decided between two paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// 0: not kept for a peer that is long away.
    LongLivedStale,
    /// 1: higher LOCAL_PREF.
    LocalPref,
    /// 2: shorter AS_PATH.
    AsPathLength,
    /// 3: lower ORIGIN.
    Origin,
    /// 4: lower MED from the same AS.
    Med,
    /// 5: external before internal.
    External,
    /// 6: lower identifier.
    RouterId,
    /// 7: shorter CLUSTER_LIST.
    ClusterListLength,
    /// 8: lower peer address.
    PeerAddress,
    /// 9: lower path identifier.
    PathIdentifier,
    /// It was the only one.
    Only,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LongLivedStale => "long-lived stale",
            Self::LocalPref => "local preference",
            Self::AsPathLength => "AS path length",
            Self::Origin => "origin",
            Self::Med => "MED",
            Self::External => "external before internal",
            Self::RouterId => "router id",
            Self::ClusterListLength => "cluster list length",
            Self::PeerAddress => "peer address",
            Self::PathIdentifier => "path identifier",
            Self::Only => "only path",
        })
    }
}

/// The peer a path came from, as far as it decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Whether the peer is of our AS.
    pub internal: bool,
    /// The peer's BGP identifier.
    pub router_id: Ipv4Addr,
    /// The peer's address.
    pub address: IpAddr,
}

/// A path and where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What the peer said.
    pub attributes: &'a Attributes,
    /// Who said it.
    pub source: &'a Source,
    /// Which of its paths to the prefix it is; 0 where there is one only.
    pub identifier: u32,
}

impl Candidate<'_> {
    fn local_pref(&self) -> u32 {
        self.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
    }

    fn med(&self) -> u32 {
        self.attributes.med.unwrap_or(0)
    }

    fn neighbour_as(&self) -> Option<u32> {
        self.attributes.as_path.first().copied()
    }

    /// How many reflectors it went through.
    fn reflectors(&self) -> usize {
        self.attributes.rare().cluster_list.len()
    }

    fn router_id(&self) -> Ipv4Addr {
        let originator = self.attributes.rare().originator_id;
        originator.unwrap_or(self.source.router_id)
    }
}

/// Compares two paths; `Less` is better. Equal only for a path and itself.
pub fn compare(a: Candidate<'_>, b: Candidate<'_>) -> (Ordering, Reason) {
    let (ordering, reason) = compare_for_multipath(a, b);
    if ordering.is_ne() {
        return (ordering, reason);
    }
    let ties = [
        (a.router_id().cmp(&b.router_id()), Reason::RouterId),
        (
            a.reflectors().cmp(&b.reflectors()),
            Reason::ClusterListLength,
        ),
        (a.source.address.cmp(&b.source.address), Reason::PeerAddress),
        (a.identifier.cmp(&b.identifier), Reason::PathIdentifier),
    ];
    decide(ties)
}

/// Compares by the rules that two paths used together must tie on.
pub fn compare_for_multipath(a: Candidate<'_>, b: Candidate<'_>) -> (Ordering, Reason) {
    let med = if a.neighbour_as() == b.neighbour_as() {
        a.med().cmp(&b.med())
    } else {
        Ordering::Equal
    };
    let is_outliving = |path: Candidate<'_>| path.attributes.is_outliving();
    decide([
        (
            is_outliving(a).cmp(&is_outliving(b)),
            Reason::LongLivedStale,
        ),
        (b.local_pref().cmp(&a.local_pref()), Reason::LocalPref),
        (
            a.attributes.as_path.len().cmp(&b.attributes.as_path.len()),
            Reason::AsPathLength,
        ),
        (
            a.attributes.origin.cmp(&b.attributes.origin),
            Reason::Origin,
        ),
        (med, Reason::Med),
        (a.source.internal.cmp(&b.source.internal), Reason::External),
    ])
}

/// The index of the best path.
pub fn rank(candidates: &[Candidate<'_>]) -> Option<usize> {
    let better = |a: &usize, b: &usize| compare(candidates[*a], candidates[*b]).0;
    let champion_of = |neighbour: Option<u32>| {
        (0..candidates.len())
            .filter(|index| candidates[*index].neighbour_as() == neighbour)
            .min_by(better)
    };
    let mut champions: Vec<usize> = Vec::new();
    for candidate in candidates {
        let neighbour = candidate.neighbour_as();
        if champions
            .iter()
            .all(|index| candidates[*index].neighbour_as() != neighbour)
        {
            champions.extend(champion_of(neighbour));
        }
    }
    champions.into_iter().min_by(better)
}

fn decide<const N: usize>(rules: [(Ordering, Reason); N]) -> (Ordering, Reason) {
    rules
        .into_iter()
        .find(|(ordering, _)| ordering.is_ne())
        .unwrap_or((Ordering::Equal, Reason::Only))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Origin, RareAttributes};

    fn attributes() -> Attributes {
        let mut attributes = Attributes::local(IpAddr::from([192, 0, 2, 1]));
        attributes.as_path = vec![65001, 65100];
        attributes
    }

    fn source() -> Source {
        Source {
            internal: false,
            router_id: Ipv4Addr::new(10, 0, 0, 2),
            address: IpAddr::from([192, 0, 2, 2]),
        }
    }

    fn decided(change: impl Fn(&mut Attributes, &mut Source)) -> (Ordering, Reason) {
        let (plain, from) = (attributes(), source());
        let (mut changed, mut changed_from) = (attributes(), source());
        change(&mut changed, &mut changed_from);
        compare(
            Candidate {
                attributes: &changed,
                source: &changed_from,
                identifier: 0,
            },
            Candidate {
                attributes: &plain,
                source: &from,
                identifier: 0,
            },
        )
    }

    #[test]
    fn each_rule_decides_when_the_ones_before_it_tie() {
        use Ordering::{Greater, Less};
        assert_eq!(
            decided(|a, _| {
                a.communities = vec![0xFFFF_0006];
                a.local_pref = Some(200);
            }),
            (Greater, Reason::LongLivedStale)
        );
        assert_eq!(
            decided(|a, _| {
                a.local_pref = Some(200);
                a.as_path = vec![1, 2, 3];
            }),
            (Less, Reason::LocalPref)
        );
        assert_eq!(
            decided(|a, _| {
                a.as_path = vec![65001];
                a.origin = Origin::Incomplete;
            }),
            (Less, Reason::AsPathLength)
        );
        assert_eq!(
            decided(|a, _| a.origin = Origin::Egp),
            (Greater, Reason::Origin)
        );
        assert_eq!(decided(|a, _| a.med = Some(1)), (Greater, Reason::Med));
        assert_eq!(
            decided(|_, from| from.internal = true),
            (Greater, Reason::External)
        );
        assert_eq!(
            decided(|_, from| from.router_id = Ipv4Addr::new(10, 0, 0, 1)),
            (Less, Reason::RouterId)
        );
        assert_eq!(
            decided(|a, _| {
                a.set_rare(RareAttributes {
                    cluster_list: vec![Ipv4Addr::LOCALHOST],
                    ..RareAttributes::default()
                });
            }),
            (Greater, Reason::ClusterListLength)
        );
        assert_eq!(
            decided(|_, from| from.address = IpAddr::from([192, 0, 2, 1])),
            (Less, Reason::PeerAddress)
        );
    }

    #[test]
    fn med_does_not_decide_between_neighbouring_ases() {
        assert_eq!(
            decided(|a, from| {
                a.as_path = vec![65009, 65100];
                a.med = Some(9);
                from.address = IpAddr::from([192, 0, 2, 1]);
            }),
            (Ordering::Less, Reason::PeerAddress)
        );
    }

    proptest! {
        #[test]
        fn the_best_path_does_not_depend_on_the_order_of_arrival(
            facts in proptest::collection::vec((0_u32..3, 0_u32..3, 0_u32..3, 0_u8..2, any::<bool>()), 1..8),
            rotation in 0_usize..8,
        ) {
            let paths: Vec<_> = facts.iter().enumerate().map(|(index, (neighbour, med, id, preference, internal))| {
                let mut attributes = attributes();
                attributes.as_path = vec![*neighbour, 1];
                attributes.med = Some(*med);
                attributes.local_pref = Some(u32::from(*preference));
                let source = Source {
                    internal: *internal,
                    router_id: Ipv4Addr::from(*id),
                    address: IpAddr::from([10, 0, 0, index as u8]),
                };
                (attributes, source)
            }).collect();
            let mut candidates: Vec<_> = paths.iter().map(|(attributes, source)| Candidate { attributes, source, identifier: 0 }).collect();
            let best = candidates[rank(&candidates).unwrap()].source.address;
            let length = candidates.len();
            candidates.rotate_left(rotation % length);
            prop_assert_eq!(candidates[rank(&candidates).unwrap()].source.address, best);
        }
    }
}
