//! Keeping a peer's routes while it restarts (RFC 4724 §4.2, RFC 8538 §4.1), also for long (RFC 9494 §4.2), and letting go of them.

use std::time::{Duration, Instant};

use super::{Established, Kept, Peer};
use crate::originated::Table;
use crate::session::Negotiated;
use crate::speaker::{self, DownReason, Shared};
use crate::wire::Family;

/// How long a peer that is back may take until its End-of-RIB.
const CONFIRM_WITHIN: Duration = Duration::from_mins(6);

impl Peer {
    /// Whether the running session promises to keep forwarding over a restart.
    pub(super) fn keeps_routes(&self) -> bool {
        self.established
            .as_ref()
            .is_some_and(|established| self.kept_families(&established.terms).next().is_some())
    }

    /// Forgets all routes of the peer.
    pub(crate) fn forget_routes(&mut self, shared: &mut Shared) {
        self.stale.clear();
        for family in Family::ALL {
            shared.rib.forget(self.id, family);
        }
    }

    /// The session ended: forgets the peer's routes, or keeps them for its restart time. They are kept when
    /// it went away without a NOTIFICATION from either side, or with one when both agreed on that.
    pub(super) fn release(
        &mut self,
        established: &Established,
        reason: &DownReason,
        now: Instant,
        shared: &mut Shared,
    ) {
        self.sent = Table::new();
        shared.groups.leave(self.id);
        self.end_of_rib_sent = false;
        self.end_of_rib.clear();
        self.without_next_hop.clear();
        self.told_again.clear();
        let terms = &established.terms;
        let comes_back = match reason {
            DownReason::Closed(_) | DownReason::Replaced => true,
            DownReason::Sent(said) | DownReason::Received(said) => {
                terms.survives_notification && !said.is_hard_reset()
            }
            DownReason::SendHoldExpired | DownReason::Stopped | DownReason::ShutDown(_) => false,
        };
        let kept: Vec<_> = if comes_back {
            self.kept_families(terms).collect()
        } else {
            Vec::new()
        };
        for family in Family::ALL {
            if let Some((_, restart_time)) = kept.iter().find(|(kept, _)| *kept == family) {
                let before = self.stale.get(&family).copied();
                // RFC 8538 §4.1: several restarts in a row do not cost a route that is stale already, but its
                // time does not begin anew.
                let long_lived = self.long_lived(terms, family);
                let outlives = terms.survives_notification || long_lived.is_some();
                let before = before.filter(|_| outlives);
                if before.is_none() && !self.confirming.contains_key(&family) {
                    // RFC 4724 §4.2: what is stale already was not confirmed in time.
                    shared.rib.sweep_stale(self.id, family);
                }
                let until = now + *restart_time;
                let longest = long_lived.unwrap_or_default().max(CONFIRM_WITHIN);
                let bound = before.map_or(until + longest, |before| before.bound);
                let until = until.min(bound);
                let kept = Kept {
                    until,
                    bound,
                    is_long_lived: false,
                };
                self.stale.insert(family, kept);
                shared.rib.mark_stale(self.id, family);
                shared.events.push_back(speaker::Event::RoutesKept {
                    peer: self.config.name.clone(),
                    family,
                    restart_time: *restart_time,
                });
            } else {
                self.stale.remove(&family);
                shared.rib.forget(self.id, family);
            }
        }
        self.confirming.clear();
    }

    /// The peer is back: keeps what it says it preserved until it is confirmed.
    pub(super) fn judge_stale(&mut self, terms: &Negotiated, now: Instant, shared: &mut Shared) {
        for family in Family::ALL {
            let offer = terms.graceful_restart.as_ref();
            let preserved = offer.and_then(|offer| offer.families.get(&family).copied());
            let long_lived = terms.long_lived.as_ref();
            let long_preserved = long_lived.and_then(|l| Some(l.get(&family)?.preserved));
            let is_long_lived = self.stale.get(&family).is_some_and(|k| k.is_long_lived);
            // RFC 9494 §4.2: each time has the F bit of its own capability.
            let said = if is_long_lived {
                long_preserved
            } else {
                preserved
            };
            let preserved = terms.families.contains(&family) && said == Some(true);
            match self.stale.get_mut(&family) {
                Some(kept) if preserved && kept.is_long_lived => {
                    kept.until = (now + CONFIRM_WITHIN).min(kept.until);
                }
                Some(kept) if preserved => kept.until = (now + CONFIRM_WITHIN).min(kept.bound),
                Some(_) => self.end_stale(family, shared),
                None => {}
            }
        }
    }

    /// What is still stale in a family is gone.
    pub(super) fn end_stale(&mut self, family: Family, shared: &mut Shared) {
        if self.stale.remove(&family).is_some() {
            let before = shared.rib.count(self.id, family).received;
            shared.rib.sweep_stale(self.id, family);
            shared.events.push_back(speaker::Event::RestartOver {
                peer: self.config.name.clone(),
                family,
                dropped: before - shared.rib.count(self.id, family).received,
            });
        }
    }

    pub(super) fn sweep_overdue(&mut self, now: Instant, shared: &mut Shared) {
        for family in Family::ALL {
            let Some(kept) = self.stale.get(&family).filter(|kept| kept.until <= now) else {
                continue;
            };
            let latest = self.latest.as_ref().filter(|_| self.established.is_none());
            let long_lived = latest.and_then(|latest| self.long_lived(&latest.terms, family));
            match long_lived.filter(|_| !kept.is_long_lived && now < kept.bound) {
                Some(stale_time) => self.begin_long_lived(family, stale_time, now, shared),
                None => self.end_stale(family, shared),
            }
        }
    }

    /// How long routes of a family are kept after the restart time: what the peer asks for, and we allow.
    fn long_lived(&self, terms: &Negotiated, family: Family) -> Option<Duration> {
        let ours = self.config.long_lived_stale_time?;
        let theirs = terms.long_lived.as_ref()?.get(&family)?.stale_time;
        Some(ours.min(theirs)).filter(|time| !time.is_zero())
    }

    /// The restart time is over and the peer is not back: its routes stay for who has no better ones, but those that
    /// shall not.
    fn begin_long_lived(
        &mut self,
        family: Family,
        stale_time: Duration,
        now: Instant,
        shared: &mut Shared,
    ) {
        if let Some(kept) = self.stale.get_mut(&family) {
            kept.until = (now + stale_time).min(kept.bound);
            kept.is_long_lived = true;
        }
        let before = shared.rib.count(self.id, family).received;
        shared.rib.outlive(self.id, family);
        shared.events.push_back(speaker::Event::RoutesOutlive {
            peer: self.config.name.clone(),
            family,
            stale_time,
            dropped: before - shared.rib.count(self.id, family).received,
        });
    }

    /// The families that both sides keep over a restart, and for how long.
    fn kept_families<'a>(
        &self,
        terms: &'a Negotiated,
    ) -> impl Iterator<Item = (Family, Duration)> + use<'a> {
        let ours = self.config.graceful_restart.is_some();
        terms
            .graceful_restart
            .iter()
            .filter(move |_| ours)
            .flat_map(|offer| {
                offer
                    .families
                    .keys()
                    .filter(|family| terms.families.contains(family))
                    .map(|family| (*family, offer.restart_time))
            })
    }
}
