//! What is said about a path: the attributes of RFC 4271 §5 and its successors, as values.

mod rare;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use rustbgpd_wire::attribute::encode_path_attributes;
use rustbgpd_wire::{AsPath, AsPathSegment, EncodeError, PathAttribute};
use serde::{Deserialize, Serialize};

pub use rare::{Aggregator, ExtendedCommunity, RareAttributes, UnknownAttribute};

/// Attribute flags (RFC 4271 §4.3).
pub(super) const OPTIONAL: u8 = 0x80;
pub(super) const TRANSITIVE: u8 = 0x40;
/// Somebody on the way did not know the attribute.
const PARTIAL: u8 = 0x20;
/// Its length takes two octets.
pub(super) const EXTENDED_LENGTH: u8 = 0x10;

/// Type of a segment whose ASes are in order (RFC 4271 §4.3).
pub(super) const AS_SEQUENCE: u8 = 2;

/// The well-known communities of paths that are kept for a peer that is long away, and of those that shall not be (RFC
/// 9494 §3.2, §3.3).
const LLGR_STALE: u32 = 0xFFFF_0006;
const NO_LLGR: u32 = 0xFFFF_0007;

/// The well-known community of paths that are about to go (RFC 8326 §5).
const GRACEFUL_SHUTDOWN: u32 = 0xFFFF_0000;

/// ORIGIN (RFC 4271 §5.1.1), best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Originated inside its AS.
    Igp,
    /// Learnt by the protocol EGP.
    Egp,
    /// Learnt by other means.
    Incomplete,
}

/// A large community (RFC 8092).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LargeCommunity {
    /// The AS that gives the other two their meaning.
    pub global: u32,
    /// First local part.
    pub local1: u32,
    /// Second local part.
    pub local2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.local1, self.local2)
    }
}

/// The attributes of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attributes {
    /// Where the route comes from.
    pub origin: Origin,
    /// The ASes it went through, nearest first. Sets do not occur (RFC 9774).
    pub as_path: Vec<u32>,
    /// Where packets go.
    pub next_hop: IpAddr,
    /// The same hop's link-local address (RFC 2545).
    pub link_local: Option<Ipv6Addr>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// RFC 1997 communities.
    pub communities: Vec<u32>,
    /// RFC 8092 communities.
    pub large_communities: Vec<LargeCommunity>,
    /// Those that few paths have; `None`: it has none of them. [`Self::rare`] reads them.
    pub rare: Option<Box<RareAttributes>>,
}

impl Attributes {
    /// Nothing but a next hop: a route that begins here.
    pub fn local(next_hop: IpAddr) -> Self {
        Self {
            origin: Origin::Igp,
            as_path: Vec::new(),
            next_hop,
            link_local: None,
            med: None,
            local_pref: None,
            communities: Vec::new(),
            large_communities: Vec::new(),
            rare: None,
        }
    }

    /// The attributes that few paths have.
    pub fn rare(&self) -> &RareAttributes {
        static NONE: LazyLock<RareAttributes> = LazyLock::new(RareAttributes::default);
        self.rare.as_deref().unwrap_or(&NONE)
    }

    /// Sets those that few paths have.
    pub fn set_rare(&mut self, rare: RareAttributes) {
        self.rare = (rare != RareAttributes::default()).then(|| Box::new(rare));
    }

    /// Says that only customers may hear of the path, unless that was said before (RFC 9234 §5).
    pub(crate) fn keep_to_customers(&mut self, asn: u32) {
        self.rare
            .get_or_insert_default()
            .only_to_customer
            .get_or_insert(asn);
    }

    /// Asks who hears of the path to prefer others (RFC 8326 §4.2): by the community, and towards an
    /// internal peer by LOCAL_PREF.
    pub(crate) fn shut_down_gracefully(&mut self, internal: bool) {
        self.communities.push(GRACEFUL_SHUTDOWN);
        self.communities.sort_unstable();
        if internal {
            self.local_pref = Some(0);
        }
    }

    /// Marks the path as one whose peer is long away (RFC 9494 §4.2); `None`: it shall not be kept so.
    pub(crate) fn outlive(&self) -> Option<Self> {
        if self.communities.contains(&NO_LLGR) {
            return None;
        }
        let mut outliving = self.clone();
        if !outliving.is_outliving() {
            outliving.communities.push(LLGR_STALE);
            outliving.communities.sort_unstable();
        }
        Some(outliving)
    }

    /// Whether somebody on the way keeps the path for a peer that is long away.
    pub(crate) fn is_outliving(&self) -> bool {
        self.communities.contains(&LLGR_STALE)
    }

    /// Whether the path is about to go.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.communities.contains(&GRACEFUL_SHUTDOWN)
    }

    pub(super) fn from_codec(
        attributes: &[PathAttribute],
        next_hop: IpAddr,
        internal: bool,
    ) -> Self {
        let mut read = Self::local(next_hop);
        for attribute in attributes {
            if !read.take(attribute, internal) || attribute.flags() & PARTIAL != 0 {
                read.rare.get_or_insert_default().take(attribute, internal);
            }
        }
        read.rare
            .take_if(|rare| **rare == RareAttributes::default());
        read
    }

    /// Reads an attribute; `false`: it is a rare one.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are rare")]
    fn take(&mut self, attribute: &PathAttribute, internal: bool) -> bool {
        match attribute {
            PathAttribute::Origin(origin) => {
                self.origin = match origin {
                    rustbgpd_wire::Origin::Igp => Origin::Igp,
                    rustbgpd_wire::Origin::Egp => Origin::Egp,
                    rustbgpd_wire::Origin::Incomplete => Origin::Incomplete,
                };
            }
            PathAttribute::AsPath(path) => self.as_path = path.asns().collect(),
            PathAttribute::Med(med) => self.med = Some(*med),
            PathAttribute::LocalPref(preference) => {
                // RFC 4271 §5.1.5: from an external peer it is ignored.
                self.local_pref = internal.then_some(*preference);
            }
            // They are with the prefixes.
            PathAttribute::NextHop(_)
            | PathAttribute::MpReachNlri(_)
            | PathAttribute::MpUnreachNlri(_) => {}
            other => {
                if let Some(communities) = other.communities() {
                    self.communities = communities.to_vec();
                } else if let Some(communities) = other.large_communities() {
                    self.large_communities = communities
                        .iter()
                        .map(|community| LargeCommunity {
                            global: community.global_admin,
                            local1: community.local_data1,
                            local2: community.local_data2,
                        })
                        .collect();
                } else {
                    return false;
                }
            }
        }
        true
    }

    /// Writes all but MP_REACH_NLRI, in the order of their type codes. `next_hop` is for prefixes in the body.
    ///
    /// A full table is told in some hundred thousand messages, nearly all of which need no more than what is written
    /// here; the codec writes the others.
    ///
    /// # Errors
    /// What the codec says: an attribute is longer than attributes can be.
    pub(super) fn write(
        &self,
        next_hop: Option<Ipv4Addr>,
        four_octet_as: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        // With its share of the heads of segments, an AS takes less than five octets.
        let longest = (self.as_path.len() * 5)
            .max(self.communities.len() * 4)
            .max(self.large_communities.len() * 12);
        let is_plain = self.rare.is_none() && four_octet_as && u16::try_from(longest).is_ok();
        if !is_plain {
            let mut all = self.to_codec();
            all.splice(2..2, next_hop.map(PathAttribute::NextHop));
            return encode_path_attributes(&all, out, four_octet_as, false);
        }
        begin(out, TRANSITIVE, 1, 1);
        out.push(match self.origin {
            Origin::Igp => 0,
            Origin::Egp => 1,
            Origin::Incomplete => 2,
        });
        let segments = || self.as_path.chunks(usize::from(u8::MAX));
        begin(
            out,
            TRANSITIVE,
            2,
            segments().len() * 2 + self.as_path.len() * 4,
        );
        for segment in segments() {
            out.extend([AS_SEQUENCE, segment.len() as u8]);
            out.extend(segment.iter().flat_map(|asn| asn.to_be_bytes()));
        }
        if let Some(next_hop) = next_hop {
            begin(out, TRANSITIVE, 3, 4);
            out.extend(next_hop.octets());
        }
        if let Some(med) = self.med {
            begin(out, OPTIONAL, 4, 4);
            out.extend(med.to_be_bytes());
        }
        if let Some(preference) = self.local_pref {
            begin(out, TRANSITIVE, 5, 4);
            out.extend(preference.to_be_bytes());
        }
        if !self.communities.is_empty() {
            begin(out, OPTIONAL | TRANSITIVE, 8, self.communities.len() * 4);
            let communities = self.communities.iter();
            out.extend(communities.flat_map(|community| community.to_be_bytes()));
        }
        if !self.large_communities.is_empty() {
            begin(
                out,
                OPTIONAL | TRANSITIVE,
                32,
                self.large_communities.len() * 12,
            );
            for community in &self.large_communities {
                let parts = [community.global, community.local1, community.local2];
                out.extend(parts.into_iter().flat_map(u32::to_be_bytes));
            }
        }
        Ok(())
    }

    /// All but the next hop, in the order of their type codes; ORIGIN and AS_PATH are the first two.
    fn to_codec(&self) -> Vec<PathAttribute> {
        let segments = if self.as_path.is_empty() {
            Vec::new()
        } else {
            vec![AsPathSegment::AsSequence(self.as_path.clone())]
        };
        let mut attributes = vec![
            PathAttribute::Origin(match self.origin {
                Origin::Igp => rustbgpd_wire::Origin::Igp,
                Origin::Egp => rustbgpd_wire::Origin::Egp,
                Origin::Incomplete => rustbgpd_wire::Origin::Incomplete,
            }),
            PathAttribute::AsPath(AsPath { segments }),
        ];
        attributes.extend(self.med.map(PathAttribute::Med));
        attributes.extend(self.local_pref.map(PathAttribute::LocalPref));
        if !self.communities.is_empty() {
            attributes.push(PathAttribute::Communities(self.communities.clone()));
        }
        if !self.large_communities.is_empty() {
            attributes.push(PathAttribute::LargeCommunities(
                self.large_communities
                    .iter()
                    .map(|c| rustbgpd_wire::LargeCommunity::new(c.global, c.local1, c.local2))
                    .collect(),
            ));
        }
        if let Some(rare) = &self.rare {
            rare.add_to(&mut attributes);
        }
        attributes
    }
}

/// Writes what stands before an attribute's value of a length.
fn begin(out: &mut Vec<u8>, flags: u8, code: u8, length: usize) {
    match u8::try_from(length) {
        Ok(length) => out.extend([flags, code, length]),
        Err(_) => {
            out.extend([flags | EXTENDED_LENGTH, code]);
            out.extend((length as u16).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn large() -> impl Strategy<Value = LargeCommunity> {
        any::<[u32; 3]>().prop_map(|[global, local1, local2]| LargeCommunity {
            global,
            local1,
            local2,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_here_is_what_the_codec_writes(
            origin in prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
            as_path in proptest::collection::vec(any::<u32>(), 0..600),
            in_body in any::<bool>(),
            med in proptest::option::of(any::<u32>()),
            local_pref in proptest::option::of(any::<u32>()),
            communities in proptest::collection::vec(any::<u32>(), 0..100),
            large_communities in proptest::collection::vec(large(), 0..40),
        ) {
            let next_hop = Ipv4Addr::new(192, 0, 2, 1);
            let attributes = Attributes {
                origin,
                as_path,
                med,
                local_pref,
                communities,
                large_communities,
                ..Attributes::local(next_hop.into())
            };
            let next_hop = in_body.then_some(next_hop);
            let mut written = Vec::new();
            attributes.write(next_hop, true, &mut written).unwrap();
            let mut all = attributes.to_codec();
            all.splice(2..2, next_hop.map(PathAttribute::NextHop));
            let mut expected = Vec::new();
            encode_path_attributes(&all, &mut expected, true, false).unwrap();
            prop_assert_eq!(written, expected);
        }
    }
}
