//! What a peer shows of itself.

use std::time::Instant;

use super::Peer;
use crate::fsm::State;
use crate::snapshot::{AdvertisedRoute, FamilySnapshot, PeerSnapshot};
use crate::speaker::Shared;
use crate::wire::{Attributes, Family};

impl Peer {
    /// Where the neighbour stands: the further of its two sessions.
    pub(super) fn state(&self) -> State {
        let (dialling, dialled) = (self.dialling.state(), self.dialled.state());
        if dialling == State::Connect && dialled == State::Active {
            State::Connect
        } else {
            dialling.max(dialled)
        }
    }

    /// What the peer was told, in the order of prefixes.
    pub(crate) fn advertised(&self, shared: &Shared) -> Vec<AdvertisedRoute> {
        let ours = self.sent.iter();
        let ours = ours.map(|(prefix, told)| (*prefix, Attributes::clone(told)));
        let mut all: Vec<_> = ours
            .chain(self.passed_on(shared))
            .map(|(prefix, attributes)| AdvertisedRoute { prefix, attributes })
            .collect();
        all.sort_by_key(|route| route.prefix);
        all
    }

    pub(crate) fn snapshot(&self, now: Instant, shared: &Shared) -> PeerSnapshot {
        let terms = self.established.as_ref().map(|e| &e.terms);
        let families = self
            .config
            .families
            .iter()
            .map(|family| {
                let count = shared.rib.count(self.id, *family);
                let shown = FamilySnapshot {
                    negotiated: terms.is_some_and(|terms| terms.families.contains(family)),
                    received: count.received,
                    accepted: count.accepted,
                    advertised: self
                        .sent
                        .keys()
                        .copied()
                        .chain(self.transit.told())
                        .filter(|prefix| Family::of(prefix) == *family)
                        .count(),
                    without_next_hop: self
                        .without_next_hop
                        .get(family)
                        .copied()
                        .unwrap_or_default(),
                };
                (*family, shown)
            })
            .collect();
        PeerSnapshot {
            name: self.config.name.clone(),
            address: self.config.address,
            port: self.config.port,
            state: self.state(),
            in_state: now.saturating_duration_since(self.shown.1),
            remote_as: terms.map_or(self.config.remote_as, |terms| terms.asn),
            router_id: terms.map(|terms| terms.router_id),
            hostname: terms.and_then(|terms| terms.hostname.clone()),
            internal: terms.map(|terms| terms.internal),
            hold_time: terms.map(|terms| terms.hold_time),
            keepalive_time: terms.map(|terms| terms.keepalive_time),
            signed: self.config.password.is_some(),
            bfd: self.standing(),
            waits_for_bfd: self.enabled && self.waits_for_bfd(),
            local_address: self.established.as_ref().and_then(|e| e.local_address),
            families,
            last_error: self.last_error.as_ref().map(ToString::to_string),
            established_count: self.established_count,
            counters: self.counters,
        }
    }
}
