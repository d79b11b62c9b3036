//! What follows when a session comes up or ends: who rests, for how long, and who starts again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Established, Peer};
use crate::best_path::Source;
use crate::fsm::{Event, State};
use crate::session::{Direction, Trigger};
use crate::speaker::{self, DownReason, Shared};
use crate::wire::{Family, Notification};

/// First rest after a fault; doubled with each further one.
const FIRST_REST: Duration = Duration::from_secs(5);
/// Longest rest after faults.
const LONGEST_REST: Duration = Duration::from_mins(2);
/// A session that lasted this long forgives earlier faults.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
/// How soon a lost connection is dialled again; used as `[t, 2t)`.
const REDIAL: Duration = Duration::from_secs(1);

impl Peer {
    pub(super) fn establish(&mut self, direction: Direction, now: Instant, shared: &mut Shared) {
        let session = self.session(direction);
        let Some(terms) = session.negotiated.clone() else {
            return;
        };
        let local_address = session.local().map(|local| local.ip().to_canonical());
        let terms = Arc::new(terms);
        self.established = Some(Established {
            direction,
            since: now,
            terms: Arc::clone(&terms),
            local_address,
        });
        // RFC 4724 §4.2 keeps the routes of the router that restarted, not those of another one
        // at its address.
        let is_another = self.latest.as_ref().is_some_and(|latest| {
            (latest.terms.router_id, latest.terms.asn) != (terms.router_id, terms.asn)
        });
        if is_another {
            for family in Family::ALL {
                self.end_stale(family, shared);
            }
        }
        self.latest.clone_from(&self.established);
        self.established_count += 1;
        self.last_error = None;
        self.restarting = false;
        shared.rib.introduce(
            self.id,
            Source {
                internal: terms.internal,
                router_id: terms.router_id,
                address: self.config.address,
            },
        );
        shared.events.push_back(speaker::Event::PeerUp {
            peer: self.config.name.clone(),
            remote_as: terms.asn,
            router_id: terms.router_id,
        });
        self.starts.clear();
        let trigger = Trigger::answered(Event::AutomaticStop, Notification::COLLISION);
        self.step(direction.other(), trigger, now, shared);
        self.judge_stale(&terms, now, shared);
        self.find_group(shared);
        self.advertise(now, shared);
    }

    pub(super) fn went_down(
        &mut self,
        direction: Direction,
        was: State,
        failed: bool,
        reason: &DownReason,
        now: Instant,
        shared: &mut Shared,
    ) {
        let ended = self
            .established
            .take_if(|established| established.direction == direction);
        if let Some(established) = &ended {
            if now.duration_since(established.since) >= FORGIVEN_AFTER {
                self.faults = 0;
            }
            self.release(established, reason, now, shared);
        }
        let silent =
            *reason == DownReason::Stopped || *reason == DownReason::Sent(Notification::COLLISION);
        if !silent {
            self.last_error = Some(reason.clone());
            match reason {
                DownReason::Sent(said) => self.last_notification = Some((now, true, said.clone())),
                DownReason::Received(said) => {
                    self.last_notification = Some((now, false, said.clone()));
                }
                DownReason::Closed(_)
                | DownReason::Replaced
                | DownReason::SendHoldExpired
                | DownReason::Stopped
                | DownReason::ShutDown(_) => {}
            }
            if was == State::Established {
                self.last_reset = Some((now, reason.clone()));
            }
            let peer = self.config.name.clone();
            shared.events.push_back(if was == State::Established {
                speaker::Event::PeerDown {
                    peer,
                    reason: reason.clone(),
                }
            } else {
                speaker::Event::AttemptFailed {
                    peer,
                    reason: reason.clone(),
                }
            });
        }
        let is_other_under_way = self.session(direction.other()).state() >= State::OpenSent;
        if !self.enabled || is_other_under_way || self.waits_for_bfd() {
            return;
        }
        let rest = is_fault(reason, was, failed).then(|| {
            let doubled = FIRST_REST * 2_u32.saturating_pow(self.faults.min(10));
            self.faults = self.faults.saturating_add(1);
            let rest = doubled.min(LONGEST_REST);
            shared.jitter.between(rest * 3 / 4, rest / 4)
        });
        if let Some(rest) = rest {
            self.schedule(direction, now + rest);
            let other = direction.other();
            if self.session(other).state() == State::Idle {
                self.schedule(other, now + rest);
            }
        }
    }

    /// A session that rests while the other one is under way starts again when that is over,
    /// whichever way it ended: at once if it waits to be dialled, soon if it dials.
    pub(super) fn end_rests(&mut self, now: Instant, shared: &mut Shared) {
        let under_way = Direction::BOTH
            .into_iter()
            .any(|direction| self.session(direction).state() >= State::OpenSent);
        if !self.enabled || under_way || self.waits_for_bfd() {
            return;
        }
        for direction in Direction::BOTH {
            let rests = self.session(direction).state() == State::Idle;
            if rests && !self.starts.contains_key(&direction) {
                let wait = match direction {
                    Direction::Passive => Duration::ZERO,
                    Direction::Active => shared.jitter.between(REDIAL, REDIAL),
                };
                self.schedule(direction, now + wait);
            }
        }
        self.run_starts(now, shared);
    }

    pub(super) fn schedule(&mut self, direction: Direction, at: Instant) {
        let is_wanted = direction == Direction::Passive || !self.config.passive;
        if is_wanted && !self.waits_for_bfd() {
            self.starts.insert(direction, at);
        }
    }

    pub(super) fn run_starts(&mut self, now: Instant, shared: &mut Shared) {
        for direction in Direction::BOTH {
            let due = self.starts.get(&direction).is_some_and(|at| *at <= now);
            if !due {
                continue;
            }
            self.starts.remove(&direction);
            if self.session(direction.other()).state() >= State::OpenConfirm {
                continue;
            }
            let event = match (direction, self.faults) {
                (Direction::Active, 0) => Event::AutomaticStart,
                (Direction::Active, _) => Event::DampedStart,
                (Direction::Passive, 0) => Event::AutomaticStartPassive,
                (Direction::Passive, _) => Event::DampedStartPassive,
            };
            self.step(direction, Trigger::of(event), now, shared);
        }
    }
}

/// Whether an end calls for a rest in which the peer is not let in either. A session that was
/// lost, or that either side ended by intent or for silence, is sought again at once.
fn is_fault(reason: &DownReason, was: State, failed: bool) -> bool {
    match reason {
        DownReason::Closed(_) | DownReason::Replaced => false,
        DownReason::Stopped | DownReason::ShutDown(_) => failed,
        DownReason::Sent(notification) => {
            notification.is_fault() || *notification.cause() == Notification::MAX_PREFIXES
        }
        DownReason::Received(notification) => notification.is_fault() || was != State::Established,
        DownReason::SendHoldExpired => true,
    }
}
