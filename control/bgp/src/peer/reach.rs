//! What BFD says of a peer, and what follows for its sessions and routes (RFC 5882 §4.1 and §4.3).
//!
//! Not for the BFD session itself: `bfd` has it, and the embedder tells its standing.

use std::time::Instant;

use super::Peer;
use crate::bfd::{Key, Standing, State};
use crate::fsm::Event;
use crate::session::{Direction, Trigger};
use crate::speaker::Shared;
use crate::wire::Notification;

/// What is known by BFD.
#[derive(Debug, Default)]
pub(super) struct Reach {
    standing: Option<Standing>,
    /// It was up and failed, and has not come up since.
    has_failed: bool,
}

impl Peer {
    /// Whether this is the BFD session that watches the peer.
    pub(crate) fn is_watched_by(&self, key: &Key) -> bool {
        self.config
            .bfd_session()
            .is_some_and(|(own, _)| own == *key)
    }

    /// Whether BFD says that packets to the peer are lost.
    pub(crate) const fn is_unreachable(&self) -> bool {
        self.reach.has_failed
    }

    /// BFD's standing, when the peer is watched.
    pub(super) fn standing(&self) -> Option<Standing> {
        self.config
            .bfd
            .map(|_| self.reach.standing.unwrap_or(Standing::UNHEARD))
    }

    /// Whether a session must wait until BFD is up.
    pub(super) fn waits_for_bfd(&self) -> bool {
        let is_strict = self.config.bfd.is_some_and(|bfd| bfd.strict);
        is_strict
            && self
                .standing()
                .is_none_or(|standing| standing.state != State::Up)
    }

    /// The BFD session changed. When one that was up fails, the BGP session ends at once, and with it go
    /// the peer's routes; not when the peer says that it takes no part any more.
    pub(crate) fn handle_bfd(&mut self, standing: Standing, now: Instant, shared: &mut Shared) {
        let before = self.reach.standing.replace(standing);
        let was_up = before.is_some_and(|before| before.state == State::Up);
        match standing.state {
            State::Up => {
                self.reach.has_failed = false;
                self.end_rests(now, shared);
            }
            State::Down if was_up && !standing.peer_admin_down => {
                // RFC 5882 §4.3.2: a peer that restarts takes a BFD session with it that depends on its
                // control plane; that says nothing of its forwarding.
                let is_away = self.established.is_none() && !self.stale.is_empty();
                let is_restart = is_away && !standing.independent;
                self.reach.has_failed = !is_restart;
                self.end_for_bfd(now, shared);
                if !is_restart {
                    self.forget_routes(shared);
                }
            }
            State::Down | State::Init | State::AdminDown => {}
        }
    }

    /// The peer is watched by another session, or by none: what was known is void.
    pub(super) fn forget_standing(&mut self) {
        self.reach = Reach::default();
    }

    fn end_for_bfd(&mut self, now: Instant, shared: &mut Shared) {
        if self.waits_for_bfd() {
            self.starts.clear();
        }
        for direction in Direction::BOTH {
            // RFC 9384 §3: routes that are not reached are not kept either.
            let why = Notification::BFD_DOWN;
            let trigger = Trigger::answered_for_good(Event::AutomaticStop, why);
            self.step(direction, trigger, now, shared);
        }
    }
}
