//! What a peer is told of our own prefixes, the difference to it, and its packing into messages.
//!
//! Not for what it is told of other peers' prefixes: `group` has that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ipnetwork::IpNetwork;

use super::{Established, Peer};
use crate::config::{Announcement, ExportRule};
use crate::export::Export;
use crate::session::{Direction, Output};
use crate::speaker::{self, Shared};
use crate::wire::{self, Attributes, Encoding, Family, Refresh};

impl Peer {
    /// Puts the peer among those that are told the same as it, by what holds now.
    pub(super) fn find_group(&self, shared: &mut Shared) {
        if let Some(established) = &self.established {
            let export = self.export(established, shared.config.local_as);
            shared.groups.place(self.id, export, &shared.rib);
        }
    }

    /// What it is told, and how.
    fn export(&self, established: &Established, local_as: u32) -> Export {
        let terms = &established.terms;
        let families = terms.families.iter().copied();
        Export {
            local_as,
            internal: terms.internal,
            next_hops: families
                .map(|family| (family, self.next_hop(established, family)))
                .collect(),
            encoding: terms.encoding,
            transit: self.config.transit,
            role: terms.role,
            long_lived: terms.long_lived.is_some(),
            graceful_shutdown: self.config.graceful_shutdown,
        }
    }

    /// Tells the peer the difference between what it should know of our prefixes and what it was told:
    /// withdrawals first, then announcements, then what ends with them.
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
        self.send_all(&messages, &established, now, shared);
        self.mark_ends(now, shared);
    }

    /// Says that it was told all, if that is still to be said: the End-of-RIB markers, or those of a refresh.
    pub(crate) fn mark_ends(&mut self, now: Instant, shared: &mut Shared) {
        let is_first = shared.announcements_known && !self.end_of_rib_sent;
        if (!is_first && self.told_again.is_empty()) || shared.groups.is_waiting(self.id) {
            return;
        }
        let Some(established) = self.established.clone() else {
            return;
        };
        let mut messages = Vec::new();
        if is_first {
            self.end_of_rib_sent = true;
            let families = established.terms.families.iter();
            messages.extend(families.copied().map(wire::end_of_rib));
        }
        let over = std::mem::take(&mut self.told_again).into_iter();
        messages.extend(over.map(|family| wire::encode_route_refresh(family, Refresh::End)));
        self.send_all(&messages, &established, now, shared);
    }

    /// Whether it was told a prefix as ours.
    pub(crate) fn was_told_ours(&self, prefix: &IpNetwork) -> bool {
        self.sent.contains_key(prefix)
    }

    /// Makes the peer be told everything of a family again.
    pub(super) fn forget_sent(&mut self, family: Family, shared: &mut Shared) {
        self.sent.retain(|prefix, _| Family::of(prefix) != family);
        shared.groups.tell_again(self.id, family);
    }

    /// What the peer should know.
    fn wanted(
        &mut self,
        established: &Established,
        shared: &Shared,
    ) -> BTreeMap<IpNetwork, Arc<Attributes>> {
        type Shape<'a> = (&'a Announcement, Vec<&'a ExportRule>, Family);
        let export = self.export(established, shared.config.local_as);
        let mut shapes: BTreeMap<Shape<'_>, Option<Arc<Attributes>>> = BTreeMap::new();
        let mut wanted = BTreeMap::new();
        let mut without_next_hop = BTreeMap::new();
        for (prefix, announcement) in &shared.announcements {
            let family = Family::of(prefix);
            let chosen = announcement.peers.as_ref().is_none_or(|peers| {
                peers.contains(&self.config.name)
                    || self.range().is_some_and(|range| peers.contains(range))
            });
            if !chosen || !export.speaks(family) {
                continue;
            }
            let rules = self.config.export.iter();
            let rules: Vec<_> = rules
                .filter(|rule| rule.prefixes.contains(prefix))
                .collect();
            let shape = (announcement, rules, family);
            let attributes = shapes.entry(shape).or_insert_with_key(|(_, rules, _)| {
                let told = export.of_announcement(announcement, rules, family);
                told.map(Arc::new)
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
    fn next_hop(&self, established: &Established, family: Family) -> Option<IpAddr> {
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
        self.send_by(messages.concat().into(), established.direction, now, shared);
    }

    /// Sends whole messages, if there is a session.
    pub(crate) fn send(&mut self, bytes: Bytes, now: Instant, shared: &mut Shared) {
        if let Some(direction) = self.established.as_ref().map(|e| e.direction) {
            self.send_by(bytes, direction, now, shared);
        }
    }

    fn send_by(&mut self, bytes: Bytes, direction: Direction, now: Instant, shared: &mut Shared) {
        let mut outputs = Vec::with_capacity(1);
        self.session_mut(direction).send(bytes, now, &mut outputs);
        for output in outputs {
            if let Output::Transmit(connection, bytes) = output {
                self.transmit(connection, bytes, shared);
            }
        }
    }

    /// Octets that its session has handed out and that are not written yet.
    pub(crate) fn unwritten(&self) -> usize {
        let established = self.established.as_ref();
        established.map_or(0, |e| self.session(e.direction).unwritten())
    }

    /// What it was told of others, as it stands.
    pub(super) fn passed_on<'a>(
        &'a self,
        shared: &'a Shared,
    ) -> impl Iterator<Item = (IpNetwork, Attributes)> + 'a {
        let group = shared.groups.of(self.id);
        group.into_iter().flat_map(move |(_, group)| {
            group.told_to(self.id).filter_map(move |(prefix, _)| {
                let family = Family::of(&prefix);
                let path = shared.rib.best(&prefix)?;
                let source = shared.rib.source(path.peer);
                let is_told = path.peer != self.id && group.export.passes(path, family, source);
                let told = group.export.of_path(path, family).filter(|_| is_told)?;
                Some((prefix, told))
            })
        })
    }

    /// Whether the peer is told what others told.
    pub(crate) const fn is_passed_to(&self) -> bool {
        self.config.transit
    }
}
