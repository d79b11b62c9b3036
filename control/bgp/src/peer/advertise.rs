//! What a peer is told: Adj-RIB-Out, the difference to it, and its packing into messages.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ipnetwork::IpNetwork;

use super::{Established, Peer};
use crate::best_path::DEFAULT_LOCAL_PREF;
use crate::config::{Announcement, ExportRule};
use crate::session::Output;
use crate::speaker::{self, Shared};
use crate::wire::{self, Attributes, Encoding, Family, Refresh, Role};

impl Peer {
    /// Tells the peer the difference between what it should know and what it was told:
    /// withdrawals first, then announcements, then the End-of-RIB markers, or those of a refresh, if they are still due.
    pub(crate) fn advertise(&mut self, now: Instant, shared: &mut Shared) {
        let Some(established) = self.established.clone() else {
            return;
        };
        let wanted = self.wanted(&established, shared);
        let mut messages = self.withdraw_unwanted(&wanted, established.terms.encoding);
        for ((attributes, family), prefixes) in self.untold(&wanted) {
            let encoding = established.terms.encoding;
            match wire::pack_announcements(&attributes, family, &prefixes, encoding) {
                Ok(packed) => {
                    messages.extend(packed);
                    let told = prefixes
                        .into_iter()
                        .map(|prefix| (prefix, Arc::clone(&attributes)));
                    self.sent.extend(told);
                }
                // RFC 8654 §5: what fits no message is not told, or not any more.
                Err(wire::TooLong) => {
                    let mut stale = prefixes.clone();
                    stale.retain(|prefix| self.sent.remove(prefix).is_some());
                    messages.extend(wire::pack_withdrawals(family, &stale, encoding));
                    shared
                        .events
                        .push_back(speaker::Event::AnnouncementsRefused {
                            peer: self.config.name.clone(),
                            prefixes,
                        });
                }
            }
        }
        let is_all = shared.announcements_known && !self.transit.is_waiting();
        if is_all && !self.end_of_rib_sent {
            self.end_of_rib_sent = true;
            messages.extend(
                established
                    .terms
                    .families
                    .iter()
                    .copied()
                    .map(wire::end_of_rib),
            );
        }
        if !self.transit.is_waiting() {
            let over = std::mem::take(&mut self.told_again).into_iter();
            messages.extend(over.map(|family| wire::encode_route_refresh(family, Refresh::End)));
        }
        self.send_all(&messages, &established, now, shared);
    }

    /// Makes the peer be told everything of a family again.
    pub(super) fn forget_sent(&mut self, family: Family) {
        self.sent.retain(|prefix, _| Family::of(prefix) != family);
        self.transit.tell_again(family);
    }

    /// What the peer should know.
    fn wanted(
        &mut self,
        established: &Established,
        shared: &Shared,
    ) -> BTreeMap<IpNetwork, Arc<Attributes>> {
        type Shape<'a> = (&'a Announcement, Vec<&'a ExportRule>, Family);
        let mut shapes: BTreeMap<Shape<'_>, Option<Arc<Attributes>>> = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        let mut without_next_hop = BTreeMap::new();
        for (prefix, announcement) in &shared.announcements {
            let family = Family::of(prefix);
            let chosen = announcement.peers.as_ref().is_none_or(|peers| {
                peers.contains(&self.config.name)
                    || self.range().is_some_and(|range| peers.contains(range))
            });
            if !chosen || !established.terms.families.contains(&family) {
                continue;
            }
            let rules = self.config.export.iter();
            let rules: Vec<_> = rules
                .filter(|rule| rule.prefixes.contains(prefix))
                .collect();
            let shape = (announcement, rules, family);
            let attributes = shapes.entry(shape).or_insert_with_key(|(_, rules, _)| {
                let next_hop = self.next_hop(established, family)?;
                let local_as = shared.config.local_as;
                let internal = established.terms.internal;
                let mut told = attributes(announcement, rules, next_hop, local_as, internal);
                if established
                    .terms
                    .role
                    .is_some_and(Role::tells_for_customers_only)
                {
                    told.keep_to_customers(local_as);
                }
                if self.config.graceful_shutdown {
                    told.shut_down_gracefully(internal);
                }
                Some(Arc::new(told))
            });
            match attributes {
                Some(attributes) => {
                    wanted.insert(*prefix, Arc::clone(attributes));
                }
                None => *without_next_hop.entry(family).or_default() += 1,
            }
        }
        self.without_next_hop = without_next_hop;
        wanted
    }

    fn withdraw_unwanted(
        &mut self,
        wanted: &BTreeMap<IpNetwork, Arc<Attributes>>,
        encoding: Encoding,
    ) -> Vec<Bytes> {
        let mut gone: BTreeMap<Family, Vec<IpNetwork>> = BTreeMap::new();
        self.sent.retain(|prefix, _| {
            let keep = wanted.contains_key(prefix);
            if !keep {
                gone.entry(Family::of(prefix)).or_default().push(*prefix);
            }
            keep
        });
        gone.into_iter()
            .flat_map(|(family, prefixes)| wire::pack_withdrawals(family, &prefixes, encoding))
            .collect()
    }

    /// What the peer should know and does not, by attributes.
    fn untold(
        &self,
        wanted: &BTreeMap<IpNetwork, Arc<Attributes>>,
    ) -> BTreeMap<(Arc<Attributes>, Family), Vec<IpNetwork>> {
        let mut untold: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (prefix, attributes) in wanted {
            if self.sent.get(prefix) != Some(attributes) {
                untold
                    .entry((Arc::clone(attributes), Family::of(prefix)))
                    .or_default()
                    .push(*prefix);
            }
        }
        untold
    }

    /// Next hop self: as configured, or our end of the connection. On a link without addresses of its own
    /// that is link-local, and alone in its attribute (RFC 2545 has no word for that; routers take it).
    pub(super) fn next_hop(&self, established: &Established, family: Family) -> Option<IpAddr> {
        let local = established.local_address;
        if established.terms.extended_next_hop {
            return local.filter(IpAddr::is_ipv6);
        }
        match family {
            Family::Ipv4Unicast => self
                .config
                .next_hop_v4
                .map(IpAddr::V4)
                .or(local.filter(IpAddr::is_ipv4)),
            Family::Ipv6Unicast => self
                .config
                .next_hop_v6
                .map(IpAddr::V6)
                .or(local.filter(IpAddr::is_ipv6)),
        }
    }

    /// Sends messages as one piece: whoever writes them is asked once.
    pub(super) fn send_all(
        &mut self,
        messages: &[Bytes],
        established: &Established,
        now: Instant,
        shared: &mut Shared,
    ) {
        if messages.is_empty() {
            return;
        }
        let mut outputs = Vec::with_capacity(1);
        let bytes = messages.concat().into();
        let session = self.session_mut(established.direction);
        session.send(bytes, now, &mut outputs);
        for output in outputs {
            if let Output::Transmit(connection, bytes) = output {
                self.transmit(connection, bytes, shared);
            }
        }
    }
}

/// The announcement and the rules together: communities of all, the highest LOCAL_PREF.
fn attributes(
    announcement: &Announcement,
    rules: &[&ExportRule],
    next_hop: IpAddr,
    local_as: u32,
    internal: bool,
) -> Attributes {
    let mut attributes = Attributes::local(next_hop);
    if internal {
        let said = rules.iter().map(|rule| rule.local_pref);
        let highest = said.chain([announcement.local_pref]).flatten().max();
        attributes.local_pref = Some(highest.unwrap_or(DEFAULT_LOCAL_PREF));
    } else {
        attributes.as_path = vec![local_as; 1 + usize::from(announcement.prepend)];
    }
    attributes.med = announcement.med;
    let (mut communities, mut large) = (
        announcement.communities.clone(),
        announcement.large_communities.clone(),
    );
    for rule in rules {
        communities.extend(&rule.communities);
        large.extend(&rule.large_communities);
    }
    attributes.communities = communities.into_iter().collect();
    attributes.large_communities = large.into_iter().collect();
    attributes
}
