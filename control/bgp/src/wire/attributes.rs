//! What is said about a path: the attributes of RFC 4271 §5 and its successors, as values.

mod rare;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use rustbgpd_wire::{AsPath, AsPathSegment, PathAttribute};
use serde::{Deserialize, Serialize};

pub use rare::{Aggregator, ExtendedCommunity, RareAttributes, UnknownAttribute};

/// The attribute flag of what somebody on the way did not know (RFC 4271 §4.3).
const PARTIAL: u8 = 0x20;

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

    /// All but the next hop, in the order of their type codes; ORIGIN and AS_PATH are the first two.
    pub(super) fn to_codec(&self) -> Vec<PathAttribute> {
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
