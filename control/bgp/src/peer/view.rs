//! What a peer shows of itself.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Peer;
use crate::config::{ExportRule, ImportPolicy};
use crate::fsm::State;
use crate::policy::Rejection;
use crate::session::our_open;
use crate::snapshot::{
    AdvertisedRoute, FamilySnapshot, GroupSnapshot, NeighborSnapshot, PeerSnapshot, PolicySnapshot,
    Reset, Said,
};
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
        let passed_on = || {
            let told = shared.groups.told_to(self.id);
            told.map(|(prefix, _)| prefix)
        };
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
                        .chain(passed_on())
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
            alias: self.config.alias.clone(),
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
            last_reset: self.last_reset.as_ref().map(|(at, reason)| Reset {
                ago: now.saturating_duration_since(*at),
                reason: reason.clone(),
            }),
            last_notification: self
                .last_notification
                .as_ref()
                .map(|(at, by_us, said)| Said {
                    ago: now.saturating_duration_since(*at),
                    by_us: *by_us,
                    notification: said.clone(),
                }),
            heard: self.heard.clone(),
            established_count: self.established_count,
            counters: self.counters,
        }
    }

    /// Everything about it.
    pub(crate) fn neighbor(
        &self,
        group: Option<GroupSnapshot>,
        now: Instant,
        shared: &Shared,
    ) -> NeighborSnapshot {
        let left = |at: &Instant| at.saturating_duration_since(now);
        let kept = self.stale.iter();
        let established = self.established.as_ref();
        NeighborSnapshot {
            peer: self.snapshot(now, shared),
            config: self.config.clone(),
            range: self.range().map(ToOwned::to_owned),
            offered: our_open(&shared.config, &self.config, self.restarting),
            opened: established.map(|established| established.direction),
            distance: self.distance(&shared.config),
            stale: kept.map(|(f, kept)| (*f, left(&kept.until))).collect(),
            end_of_rib: self.end_of_rib.iter().copied().collect(),
            end_of_rib_sent: self.end_of_rib_sent,
            group,
            rests: self.starts.values().min().map(left),
            rejected: self.rejected(shared),
        }
    }

    /// What decides which routes its session carries.
    pub(crate) fn policy(&self, shared: &Shared) -> PolicySnapshot {
        let mut rules = match &self.config.import {
            ImportPolicy::Nothing | ImportPolicy::All => Vec::new(),
            ImportPolicy::Prefixes(rules) => rules.iter().map(|rule| (*rule, 0)).collect(),
        };
        let mut accepted = 0;
        for (prefix, path) in shared.rib.of(self.id) {
            if path.rejection.is_none() {
                accepted += 1;
                if let Some((_, count)) = rules.iter_mut().find(|(rule, _)| rule.matches(&prefix)) {
                    *count += 1;
                }
            }
        }
        let told = |rule: &ExportRule| {
            let prefixes = rule.prefixes.iter();
            prefixes.filter(|p| self.sent.contains_key(*p)).count()
        };
        let export = self.config.export.iter();
        PolicySnapshot {
            peer: self.config.name.clone(),
            import: self.config.import.clone(),
            rules,
            accepted,
            rejected: self.rejected(shared),
            export: export.map(|rule| (rule.clone(), told(rule))).collect(),
            announced: self.sent.len(),
            transit: self.config.transit,
            passed_on: shared.groups.told_to(self.id).count(),
        }
    }

    fn rejected(&self, shared: &Shared) -> BTreeMap<Rejection, usize> {
        let mut rejected = BTreeMap::new();
        for (_, path) in shared.rib.of(self.id) {
            if let Some(rejection) = path.rejection {
                *rejected.entry(rejection).or_default() += 1;
            }
        }
        rejected
    }
}
