//! Keeping a peer's routes while it restarts (RFC 4724 §4.2, RFC 8538 §4.1), and letting go of them.

use std::time::{Duration, Instant};

use super::transit::Transit;
use super::{Established, Kept, Peer};
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
        self.sent.clear();
        self.transit = Transit::default();
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
                let before = before.filter(|_| terms.survives_notification);
                if before.is_none() && !self.confirming.contains_key(&family) {
                    // RFC 4724 §4.2: what is stale already was not confirmed in time.
                    shared.rib.sweep_stale(self.id, family);
                }
                let until = now + *restart_time;
                let bound = before.map_or(until + CONFIRM_WITHIN, |before| before.bound);
                let until = until.min(bound);
                self.stale.insert(family, Kept { until, bound });
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
            let preserved = terms.families.contains(&family)
                && terms
                    .graceful_restart
                    .as_ref()
                    .and_then(|offer| offer.families.get(&family))
                    .copied()
                    .unwrap_or(false);
            match self.stale.get_mut(&family) {
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
            if self
                .stale
                .get(&family)
                .is_some_and(|kept| kept.until <= now)
            {
                self.end_stale(family, shared);
            }
        }
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
