//! Routes that are told again on the same session, with marks where that begins and ends (RFC 2918, RFC 7313).
//!
//! What was not told again between the marks is gone, as after a restart.

use std::time::{Duration, Instant};

use super::{Established, Peer};
use crate::fsm::Event;
use crate::session::{Direction, Trigger};
use crate::speaker::{self, Shared};
use crate::wire::{self, Family, Refresh};

/// How long a peer may take from one mark to the other.
const CONFIRM_WITHIN: Duration = Duration::from_mins(6);

impl Peer {
    pub(super) fn handle_refresh(
        &mut self,
        direction: Direction,
        family: Option<Family>,
        kind: Option<Refresh>,
        now: Instant,
        shared: &mut Shared,
    ) {
        let terms = self.session(direction).negotiated.as_ref();
        let family = family.filter(|f| terms.is_some_and(|terms| terms.families.contains(f)));
        let is_enhanced = terms.is_some_and(|terms| terms.enhanced_route_refresh);
        // RFC 2918 §3: to who does not know the marks their octet means nothing.
        let kind = if is_enhanced {
            kind
        } else {
            Some(Refresh::Ask)
        };
        if let (Some(family), Some(Refresh::Ask)) = (family, kind) {
            shared.events.push_back(speaker::Event::RefreshAsked {
                peer: self.config.name.clone(),
                family,
            });
            self.forget_sent(family, shared);
            // RFC 7313 §4: no mark goes before the End-of-RIB.
            let established = self.established.clone();
            let established = established.filter(|_| is_enhanced && self.end_of_rib_sent);
            if let Some(established) = established {
                self.told_again.insert(family);
                let begin = wire::encode_route_refresh(family, Refresh::Begin);
                self.send_all(&[begin], &established, now, shared);
            }
        }
        self.step(direction, Trigger::of(Event::RouteRefresh), now, shared);
        let Some(established) = self.established.clone() else {
            return;
        };
        match (family, kind) {
            (Some(family), Some(Refresh::Begin)) => {
                self.begin_confirming(&established, family, now, shared);
            }
            (Some(family), Some(Refresh::End)) => self.end_confirming(family, shared),
            (_, Some(Refresh::Ask) | None) | (None, _) => {}
        }
    }

    /// Asks the peer for its routes again; whether it can be asked.
    pub(crate) fn request_refresh(
        &mut self,
        family: Family,
        now: Instant,
        shared: &mut Shared,
    ) -> bool {
        let Some(established) = self
            .established
            .clone()
            .filter(|e| e.terms.route_refresh && e.terms.families.contains(&family))
        else {
            return false;
        };
        let message = wire::encode_route_refresh(family, Refresh::Ask);
        self.send_all(&[message], &established, now, shared);
        true
    }

    fn begin_confirming(
        &mut self,
        established: &Established,
        family: Family,
        now: Instant,
        shared: &mut Shared,
    ) {
        // RFC 7313 §4: a mark that comes before an awaited End-of-RIB is ignored.
        let is_restarting = established.terms.graceful_restart.is_some();
        if is_restarting && !self.end_of_rib.contains(&family) {
            return;
        }
        shared.rib.mark_stale(self.id, family);
        self.confirming.insert(family, now + CONFIRM_WITHIN);
    }

    /// What it did not tell again is gone.
    fn end_confirming(&mut self, family: Family, shared: &mut Shared) {
        if self.confirming.remove(&family).is_some() {
            let before = shared.rib.count(self.id, family).received;
            shared.rib.sweep_stale(self.id, family);
            shared.events.push_back(speaker::Event::RefreshOver {
                peer: self.config.name.clone(),
                family,
                dropped: before - shared.rib.count(self.id, family).received,
            });
        }
    }

    /// A peer that never says that it told all is taken to have.
    pub(super) fn end_overdue_confirming(&mut self, now: Instant, shared: &mut Shared) {
        for family in Family::ALL {
            let until = self.confirming.get(&family);
            if until.is_some_and(|until| *until <= now) {
                self.end_confirming(family, shared);
            }
        }
    }
}
