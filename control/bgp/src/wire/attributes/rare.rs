//! Attributes that few paths have: what a reflector adds, and what is passed on without being acted upon.
//!
//! They stand behind one pointer, so that a path without any pays eight octets for all of them.
//!
//! Not for which of them a peer may hear: [`RareAttributes::leave_as`] says what ends at the border of an AS,
//! and `peer::transit` asks for it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use rustbgpd_wire::{Ipv6ExtendedCommunity, PathAttribute, RawAttribute};
use serde::{Deserialize, Serialize};

use super::{OPTIONAL, PARTIAL, TRANSITIVE};

/// The bit of an extended community's first octet that keeps it inside an AS (RFC 4360 §2, RFC 5701 §2).
const NON_TRANSITIVE: u8 = 0x40;

/// Type code of an attribute that the codec reads and we do not: to us it is an unknown one.
const PMSI_TUNNEL: u8 = 22;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RareAttributes {
    /// The originator, when a route reflector passed it on (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// The reflectors it went through (RFC 4456).
    pub cluster_list: Vec<Ipv4Addr>,
    /// Somebody left out more specific paths (RFC 4271 §5.1.6).
    pub atomic_aggregate: bool,
    /// Who made one prefix of several (RFC 4271 §5.1.7).
    pub aggregator: Option<Aggregator>,
    /// RFC 4360 communities.
    pub extended_communities: Vec<ExtendedCommunity>,
    /// RFC 5701 communities: 20 octets each.
    pub ipv6_extended_communities: Vec<[u8; 20]>,
    /// Only customers may hear of the path; this AS said so first (RFC 9234 §5).
    pub only_to_customer: Option<u32>,
    /// Optional transitive attributes that we do not know, in the order of their codes.
    pub unknown: Vec<UnknownAttribute>,
    /// Type codes of known attributes that somebody on the way did not know: their Partial bit stays set
    /// (RFC 4271 §5).
    pub partial: BTreeSet<u8>,
}

/// Who made one prefix of several (RFC 4271 §5.1.7, RFC 6793 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Aggregator {
    /// Its AS.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
}

impl fmt::Display for Aggregator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AS {} {}", self.asn, self.router_id)
    }
}

/// An extended community (RFC 4360 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExtendedCommunity(pub [u8; 8]);

impl ExtendedCommunity {
    /// Whether it may leave the AS.
    pub const fn is_transitive(self) -> bool {
        self.0[0] & NON_TRANSITIVE == 0
    }
}

impl fmt::Display for ExtendedCommunity {
    /// As FRR writes it: `RT:65000:7`, `SoO:…`; other kinds as a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kind, subtype, value @ ..] = self.0;
        let name = match (kind, subtype) {
            (0..=2, 2) => "RT",
            (0..=2, 3) => "SoO",
            _ => return write!(f, "0x{:016x}", u64::from_be_bytes(self.0)),
        };
        // The halves of an AS number or an address, and of what it says.
        let [first, second, third] =
            [0, 2, 4].map(|at| u16::from_be_bytes([value[at], value[at + 1]]));
        let joined = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
        match kind {
            0 => write!(f, "{name}:{first}:{}", joined(second, third)),
            1 => write!(
                f,
                "{name}:{}:{third}",
                Ipv4Addr::from(joined(first, second))
            ),
            _ => write!(f, "{name}:{}:{third}", joined(first, second)),
        }
    }
}

/// An optional transitive attribute that we do not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnknownAttribute {
    /// Its type code.
    pub code: u8,
    /// Its value.
    pub value: Vec<u8>,
}

impl RareAttributes {
    /// Leaves out what ends at the border of our AS: reflection (RFC 4456 §8) and communities that are not
    /// transitive (RFC 4360 §6, RFC 5701 §2).
    pub(crate) fn leave_as(&mut self) {
        self.leave_cluster();
        self.extended_communities
            .retain(|community| community.is_transitive());
        self.ipv6_extended_communities
            .retain(|community| community[0] & NON_TRANSITIVE == 0);
    }

    /// Leaves out what reflectors said.
    pub(crate) fn leave_cluster(&mut self) {
        self.originator_id = None;
        self.cluster_list.clear();
    }

    /// Reads an attribute, if it is a rare one.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "all others are not rare, or not for us"
    )]
    pub(super) fn take(&mut self, attribute: &PathAttribute, internal: bool) {
        match attribute {
            PathAttribute::OriginatorId(id) if internal => self.originator_id = Some(*id),
            PathAttribute::ClusterList(list) if internal => self.cluster_list.clone_from(list),
            PathAttribute::AtomicAggregate => self.atomic_aggregate = true,
            PathAttribute::Aggregator(aggregator) => {
                self.aggregator = Some(Aggregator {
                    asn: aggregator.asn,
                    router_id: aggregator.router_id,
                });
            }
            PathAttribute::Unknown(RawAttribute {
                flags,
                type_code,
                data,
            }) => {
                // RFC 4271 §5: what is not transitive is ignored.
                if flags & (OPTIONAL | TRANSITIVE) == OPTIONAL | TRANSITIVE {
                    self.keep_unknown(*type_code, data.to_vec());
                }
                return;
            }
            other => {
                if let Some(communities) = other.extended_communities() {
                    self.extended_communities = communities
                        .iter()
                        .map(|community| ExtendedCommunity(community.as_u64().to_be_bytes()))
                        .collect();
                } else if let Some(communities) = other.ipv6_extended_communities() {
                    self.ipv6_extended_communities = communities
                        .iter()
                        .map(|community| *community.as_bytes())
                        .collect();
                } else if let Some(asn) = other.only_to_customer() {
                    self.only_to_customer = Some(asn);
                } else if let Some(tunnel) = other.pmsi_tunnel() {
                    let mut value = Vec::new();
                    tunnel.encode(&mut value);
                    self.keep_unknown(PMSI_TUNNEL, value);
                    return;
                }
            }
        }
        if attribute.flags() & PARTIAL != 0 {
            self.partial.insert(attribute.type_code());
        }
    }

    fn keep_unknown(&mut self, code: u8, value: Vec<u8>) {
        let at = self.unknown.partition_point(|known| known.code <= code);
        self.unknown.insert(at, UnknownAttribute { code, value });
    }

    /// Adds the rare attributes to a list of others, whose Partial bits it sets, and puts all in the order of
    /// their codes (RFC 4271 §5).
    pub(super) fn add_to(&self, all: &mut Vec<PathAttribute>) {
        all.extend(self.originator_id.map(PathAttribute::OriginatorId));
        if !self.cluster_list.is_empty() {
            all.push(PathAttribute::ClusterList(self.cluster_list.clone()));
        }
        if self.atomic_aggregate {
            all.push(PathAttribute::AtomicAggregate);
        }
        all.extend(self.aggregator.map(|aggregator| {
            PathAttribute::Aggregator(rustbgpd_wire::Aggregator {
                asn: aggregator.asn,
                router_id: aggregator.router_id,
                partial: false,
            })
        }));
        if !self.extended_communities.is_empty() {
            let communities = self.extended_communities.iter();
            let communities = communities
                .map(|c| rustbgpd_wire::ExtendedCommunity::new(u64::from_be_bytes(c.0)))
                .collect();
            all.push(PathAttribute::ExtendedCommunities(communities));
        }
        if !self.ipv6_extended_communities.is_empty() {
            let communities = self.ipv6_extended_communities.iter();
            let communities = communities
                .map(|octets| Ipv6ExtendedCommunity::new(*octets))
                .collect();
            all.push(PathAttribute::Ipv6ExtendedCommunities(communities));
        }
        all.extend(self.only_to_customer.map(PathAttribute::OnlyToCustomer));
        all.extend(self.unknown.iter().map(|unknown| {
            PathAttribute::Unknown(RawAttribute {
                flags: OPTIONAL | TRANSITIVE | PARTIAL,
                type_code: unknown.code,
                data: unknown.value.clone().into(),
            })
        }));
        for attribute in all.iter_mut() {
            if self.partial.contains(&attribute.type_code()) {
                set_partial(attribute);
            }
        }
        all.sort_by_key(PathAttribute::type_code);
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only these have a Partial bit"
)]
fn set_partial(attribute: &mut PathAttribute) {
    match attribute {
        PathAttribute::Aggregator(aggregator) => aggregator.partial = true,
        PathAttribute::Communities(values) => {
            *attribute = PathAttribute::CommunitiesPartial(std::mem::take(values));
        }
        PathAttribute::ExtendedCommunities(values) => {
            *attribute = PathAttribute::ExtendedCommunitiesPartial(std::mem::take(values));
        }
        PathAttribute::Ipv6ExtendedCommunities(values) => {
            *attribute = PathAttribute::Ipv6ExtendedCommunitiesPartial(std::mem::take(values));
        }
        PathAttribute::OnlyToCustomer(asn) => {
            *attribute = PathAttribute::OnlyToCustomerPartial(*asn);
        }
        PathAttribute::LargeCommunities(values) => {
            *attribute = PathAttribute::LargeCommunitiesPartial(std::mem::take(values));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extended_community_reads_as_routers_write_it() {
        for (octets, text) in [
            ([0, 2, 0xFD, 0xE8, 0, 1, 0, 7], "RT:65000:65543"),
            ([1, 3, 10, 0, 0, 1, 0, 7], "SoO:10.0.0.1:7"),
            ([2, 2, 0xFA, 0x56, 0xEA, 0, 0, 7], "RT:4200000000:7"),
            ([0x40, 4, 0xFD, 0xE8, 0, 0, 0, 1], "0x4004fde800000001"),
        ] {
            assert_eq!(ExtendedCommunity(octets).to_string(), text);
        }
    }
}
