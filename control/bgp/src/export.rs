//! What a peer is told of a route, and which routes it is not told: decided by a value, so that peers for which it
//! is the same are told the same.
//!
//! Not for which of our own prefixes a peer hears (`peer`), and not for what it was told already (`group`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::best_path::{DEFAULT_LOCAL_PREF, Source};
use crate::config::{Announcement, ExportRule};
use crate::rib::Path;
use crate::wire::{Attributes, Encoding, Family, Role};

/// RFC 1997: not to external peers, to no peer, not outside a confederation (of which we are none).
const NO_EXPORT: u32 = 0xFFFF_FF01;
const NO_ADVERTISE: u32 = 0xFFFF_FF02;
const NO_EXPORT_SUBCONFED: u32 = 0xFFFF_FF03;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch or a capability of its own"
)]
pub(crate) struct Export {
    pub(crate) local_as: u32,
    /// The peer is of our AS.
    pub(crate) internal: bool,
    /// Of each family of the session the next hop that we are; `None`: we have no address of the family.
    pub(crate) next_hops: BTreeMap<Family, Option<IpAddr>>,
    pub(crate) encoding: Encoding,
    /// It is told the best paths of what other peers told.
    pub(crate) transit: bool,
    /// What we are to it (RFC 9234).
    pub(crate) role: Option<Role>,
    /// It knows what the mark of a path that outlives its peer means (RFC 9494).
    pub(crate) long_lived: bool,
    /// Our paths are about to go (RFC 8326).
    pub(crate) graceful_shutdown: bool,
}

impl Export {
    /// Whether the session speaks a family.
    pub(crate) fn speaks(&self, family: Family) -> bool {
        self.next_hops.contains_key(&family)
    }

    fn next_hop(&self, family: Family) -> Option<IpAddr> {
        self.next_hops.get(&family).copied().flatten()
    }

    /// Whether a best path is passed on; to the peer that told it, it never is, which is for the caller to see to.
    pub(crate) fn passes(&self, path: &Path, family: Family, source: Option<&Source>) -> bool {
        if !self.transit || !self.speaks(family) {
            return false;
        }
        let says = |community| path.attributes.communities.contains(&community);
        let stays_inside = !self.internal && (says(NO_EXPORT) || says(NO_EXPORT_SUBCONFED));
        // RFC 4271 §9.2: what an internal peer told is not for another one; we are no route reflector.
        let is_inside = self.internal && source.is_none_or(|source| source.internal);
        // RFC 9234 §5: what is for customers only goes to no provider, peer or route server.
        let is_for_customers = path.attributes.rare().only_to_customer.is_some();
        let leaks = is_for_customers && self.role.is_some_and(Role::hears_for_customers_only);
        // RFC 9494 §4.3: who does not know what it means would prefer it to better ones.
        let outlives = path.attributes.is_outliving() && !self.long_lived;
        !(is_inside || stays_inside || leaks || outlives || says(NO_ADVERTISE))
    }

    /// What is said about a path that is passed on; `None` without a next hop of the family.
    pub(crate) fn of_path(&self, path: &Path, family: Family) -> Option<Attributes> {
        let mut told = Attributes {
            next_hop: self.next_hop(family)?,
            link_local: None,
            ..Attributes::clone(&path.attributes)
        };
        if let Some(mut rare) = told.rare.take() {
            if self.internal {
                rare.leave_cluster();
            } else {
                rare.leave_as();
            }
            told.set_rare(*rare);
        }
        if self.internal {
            told.local_pref = Some(told.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
        } else {
            told.as_path.insert(0, self.local_as);
            told.local_pref = None;
            // RFC 4271 §5.1.4: it is for us, not for another AS.
            told.med = None;
        }
        self.mark(&mut told);
        Some(told)
    }

    /// What is said about a prefix of ours, the announcement and the rules together: communities of all, the highest
    /// LOCAL_PREF; `None` without a next hop of the family.
    pub(crate) fn of_announcement(
        &self,
        announcement: &Announcement,
        rules: &[&ExportRule],
        family: Family,
    ) -> Option<Attributes> {
        let mut told = Attributes::local(self.next_hop(family)?);
        if self.internal {
            let said = rules.iter().map(|rule| rule.local_pref);
            let highest = said.chain([announcement.local_pref]).flatten().max();
            told.local_pref = Some(highest.unwrap_or(DEFAULT_LOCAL_PREF));
        } else {
            told.as_path = vec![self.local_as; 1 + usize::from(announcement.prepend)];
        }
        told.med = announcement.med;
        let (mut communities, mut large) = (
            announcement.communities.clone(),
            announcement.large_communities.clone(),
        );
        for rule in rules {
            communities.extend(&rule.communities);
            large.extend(&rule.large_communities);
        }
        told.communities = communities.into_iter().collect();
        told.large_communities = large.into_iter().collect();
        self.mark(&mut told);
        Some(told)
    }

    fn mark(&self, told: &mut Attributes) {
        if self.role.is_some_and(Role::tells_for_customers_only) {
            told.keep_to_customers(self.local_as);
        }
        if self.graceful_shutdown {
            told.shut_down_gracefully(self.internal);
        }
    }
}
