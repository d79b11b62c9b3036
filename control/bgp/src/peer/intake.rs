//! What a peer says: messages in, steps of its sessions and paths of the RIB out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::{Established, Peer};
use crate::config::{PeerConfig, SpeakerConfig};
use crate::fsm::{Event, State};
use crate::policy::{Judge, OwnPrefixes};
use crate::rib::{Path, Rib};
use crate::session::{Direction, Negotiated, Output, Trigger, negotiate};
use crate::speaker::{self, DownReason, Shared};
use crate::wire::{self, Family, FaultAction, Message, Notification, RawUpdate, Reading, Update};

impl Peer {
    pub(super) fn handle_message(
        &mut self,
        direction: Direction,
        message: Message,
        now: Instant,
        shared: &mut Shared,
    ) {
        let received = &mut self.counters.received;
        match message {
            Message::Open(open) => {
                received.opens += 1;
                self.heard = Some(open.clone());
                let is_admitted = self
                    .range
                    .as_ref()
                    .is_none_or(|range| range.asns.is_empty() || range.asns.contains(&open.asn));
                let terms = if is_admitted {
                    negotiate(open, &shared.config, &self.config)
                } else {
                    Err(Notification::BAD_PEER_AS)
                };
                match terms {
                    Ok(terms) => self.handle_open(direction, terms, now, shared),
                    Err(refusal) => {
                        let trigger = Trigger::answered(Event::OpenError, refusal);
                        self.step(direction, trigger, now, shared);
                    }
                }
            }
            Message::Update(raw) => {
                received.updates += 1;
                self.handle_update(direction, &raw, now, shared);
            }
            Message::Notification(notification) => {
                received.notifications += 1;
                let event = if notification.is_version_error() {
                    Event::VersionNotification
                } else {
                    Event::Notification
                };
                let trigger = Trigger::because(event, DownReason::Received(notification));
                self.step(direction, trigger, now, shared);
            }
            Message::Keepalive => {
                received.keepalives += 1;
                self.step(direction, Trigger::of(Event::Keepalive), now, shared);
            }
            Message::RouteRefresh(family, kind) => {
                received.route_refreshes += 1;
                self.handle_refresh(direction, family, kind, now, shared);
            }
        }
    }

    /// RFC 4271 §6.8, RFC 6286 §2.3: of two connections the one stays that was opened by the
    /// side with the higher identifier, or else the higher AS.
    fn handle_open(
        &mut self,
        direction: Direction,
        terms: Negotiated,
        now: Instant,
        shared: &mut Shared,
    ) {
        if self.session(direction).state() == State::OpenSent {
            let other = direction.other();
            let ours = (u32::from(shared.config.router_id), shared.config.local_as);
            let theirs = (u32::from(terms.router_id), terms.asn);
            let preferred = if ours > theirs {
                Direction::Active
            } else {
                Direction::Passive
            };
            let dumped = match self.session(other).state() {
                State::Established => Some(direction),
                State::OpenConfirm => Some(preferred.other()),
                State::Idle | State::Connect | State::Active | State::OpenSent => None,
            };
            if let Some(dumped) = dumped {
                let trigger = Trigger::answered(Event::CollisionDump, Notification::COLLISION);
                self.step(dumped, trigger, now, shared);
                if dumped == direction {
                    return;
                }
            }
            self.session_mut(direction).negotiated = Some(terms);
        }
        self.step(direction, Trigger::of(Event::Open), now, shared);
        let other = direction.other();
        if matches!(self.session(other).state(), State::Connect | State::Active) {
            self.step(other, Trigger::of(Event::AutomaticStop), now, shared);
        }
    }

    fn handle_update(
        &mut self,
        direction: Direction,
        raw: &RawUpdate,
        now: Instant,
        shared: &mut Shared,
    ) {
        let Some(terms) = &self.session(direction).negotiated else {
            self.step(direction, Trigger::of(Event::Update), now, shared);
            return;
        };
        let reading = Reading {
            four_octet_as: terms.encoding.four_octet_as,
            internal: terms.internal,
            families: &terms.families,
            add_path: &terms.add_path,
            on_link: self.config.interface.is_some(),
        };
        match wire::decode_update(raw, reading) {
            Ok(update) => {
                let outputs = self.outputs_of(direction, Trigger::of(Event::Update), now, shared);
                let deliver = outputs
                    .iter()
                    .any(|output| matches!(output, Output::Deliver));
                self.perform(direction, outputs, now, shared);
                if deliver {
                    self.learn(update, now, shared);
                }
            }
            Err(error) => {
                let trigger = Trigger::answered(Event::UpdateError, error);
                self.step(direction, trigger, now, shared);
            }
        }
    }

    fn learn(&mut self, update: Update, now: Instant, shared: &mut Shared) {
        let Some(established) = self.established.clone() else {
            return;
        };
        let negotiated =
            |prefix: &IpNetwork| established.terms.families.contains(&Family::of(prefix));
        if !update.faults.is_empty() {
            let withdrawn = update
                .faults
                .iter()
                .any(|fault| fault.action == FaultAction::Withdraw);
            if withdrawn {
                self.counters.treated_as_withdraw += 1;
            } else {
                self.counters.attributes_discarded += 1;
            }
            shared.events.push_back(speaker::Event::UpdateFaults {
                peer: self.config.name.clone(),
                faults: update.faults,
            });
        }
        let gone = update.withdrawn.into_iter().map(|prefix| (prefix, 0));
        for (prefix, identifier) in gone.chain(update.withdrawn_paths) {
            if negotiated(&prefix) {
                shared.rib.withdraw(prefix, self.id, identifier);
            }
        }
        for mut reach in update.reach {
            // RFC 8326 §4.1: such a path is to be used only while there is no other.
            if !established.terms.internal && reach.attributes.is_shutting_down() {
                Arc::make_mut(&mut reach.attributes).local_pref = Some(0);
            }
            if let Some(role) = established.terms.role
                && role.hears_for_customers_only()
            {
                Arc::make_mut(&mut reach.attributes).keep_to_customers(established.terms.asn);
            }
            reach.attributes = shared.rib.intern(reach.attributes);
            let (rib, parts) = shared.rib_and_parts();
            let judge = judge(&self.config, &established, parts);
            let refused = judge.attributes(&reach.attributes);
            let identifiers = reach.identifiers.into_iter().chain(std::iter::repeat(0));
            for (prefix, identifier) in reach.prefixes.into_iter().zip(identifiers) {
                if negotiated(&prefix) {
                    let next_hop = reach.attributes.next_hop;
                    let path = Path {
                        peer: self.id,
                        attributes: Arc::clone(&reach.attributes),
                        rejection: refused.or_else(|| judge.prefix(&prefix, next_hop)),
                        stale: false,
                    };
                    rib.learn(prefix, identifier, path);
                }
            }
        }
        if let Some(family) = update.end_of_rib {
            self.end_of_rib.insert(family);
            self.end_stale(family, shared);
            shared.events.push_back(speaker::Event::EndOfRib {
                peer: self.config.name.clone(),
                family,
            });
        }
        self.limit_prefixes(now, shared);
    }

    /// Ends a session in which the peer told more prefixes of a family than it may (RFC 4486 §4).
    pub(super) fn limit_prefixes(&mut self, now: Instant, shared: &mut Shared) {
        let Some(direction) = self.established.as_ref().map(|e| e.direction) else {
            return;
        };
        let too_many = self.config.max_prefixes.is_some_and(|limit| {
            Family::ALL
                .into_iter()
                .any(|family| shared.rib.count(self.id, family).received > limit)
        });
        if too_many {
            let why = Notification::MAX_PREFIXES;
            let trigger = Trigger::answered_for_good(Event::UpdateError, why);
            self.step(direction, trigger, now, shared);
        }
    }

    /// Judges paths inside a prefix again after our own prefixes changed.
    pub(crate) fn judge_again_within(&self, outer: &IpNetwork, shared: &mut Shared) {
        if let Some(established) = &self.latest {
            let (rib, parts) = shared.rib_and_parts();
            let judge = judge(&self.config, established, parts);
            rib.judge_again_within(self.id, outer, |prefix, attributes| {
                judge.path(prefix, attributes)
            });
        }
    }

    /// Judges paths by a next hop again after BFD lost or found it.
    pub(crate) fn judge_again_by(&self, next_hop: IpAddr, shared: &mut Shared) {
        if let Some(established) = &self.latest {
            let (rib, parts) = shared.rib_and_parts();
            let judge = judge(&self.config, established, parts);
            rib.judge_again_by(self.id, next_hop, |prefix, attributes| {
                judge.path(prefix, attributes)
            });
        }
    }

    pub(super) fn judge_all_again(&self, shared: &mut Shared) {
        if let Some(established) = &self.latest {
            let (rib, parts) = shared.rib_and_parts();
            let judge = judge(&self.config, established, parts);
            rib.judge_again(self.id, |prefix, attributes| judge.path(prefix, attributes));
        }
    }
}

type Parts<'a> = (&'a SpeakerConfig, &'a OwnPrefixes, &'a BTreeSet<IpAddr>);

impl Shared {
    /// The table, and beside it what a path is judged by.
    const fn rib_and_parts(&mut self) -> (&mut Rib, Parts<'_>) {
        (&mut self.rib, (&self.config, &self.own, &self.unreachable))
    }
}

fn judge<'a>(
    config: &'a PeerConfig,
    established: &Established,
    (speaker, own, unreachable): Parts<'a>,
) -> Judge<'a> {
    Judge {
        policy: &config.import,
        own,
        unreachable,
        local_as: speaker.local_as,
        router_id: speaker.router_id,
        local_addresses: [
            established.local_address,
            config.next_hop_v4.map(Into::into),
            config.next_hop_v6.map(Into::into),
        ],
        remote_as: established.terms.asn,
        internal: established.terms.internal,
        role: established.terms.role,
        extended_next_hop: established.terms.extended_next_hop,
        has_link: config.interface.is_some(),
    }
}
