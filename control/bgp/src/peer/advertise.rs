//! What a peer is told, and when that is all: our own prefixes at once, those of other peers by its group.
//!
//! Not for what is said of either, and in which bytes: `originated` and `group` have that.

use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;
use ipnetwork::IpNetwork;

use super::{Established, Peer};
use crate::export::Export;
use crate::originated::Hearer;
use crate::session::{Direction, Output};
use crate::speaker::{self, Shared};
use crate::wire::{self, Attributes, Family, Refresh};

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
        let export = self.export(&established, shared.config.local_as);
        let range = self.range();
        let hearer = Hearer {
            export: &export,
            rules: &self.config.export,
            names: range.into_iter().chain([self.name()]).collect(),
        };
        let wanted = shared.originated.wanted(&shared.announcements, &hearer);
        let step = shared
            .originated
            .step(&self.sent, &wanted.table, export.encoding);
        self.without_next_hop = wanted.without_next_hop;
        self.sent = step.known;
        for prefixes in step.refused {
            shared
                .events
                .push_back(speaker::Event::AnnouncementsRefused {
                    peer: self.config.name.clone(),
                    prefixes,
                });
        }
        if !step.bytes.is_empty() {
            self.send_by(step.bytes, established.direction, now, shared);
        }
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
        let sent = std::mem::take(&mut self.sent).into_iter();
        self.sent = sent
            .filter(|(prefix, _)| Family::of(prefix) != family)
            .collect();
        shared.groups.tell_again(self.id, family);
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
