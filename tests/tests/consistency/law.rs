//! The law of connections: who must stay with whom, said of what a node was told and when, not of its tables.
//!
//! A connection to a live backend stays with it, at every node, except for the causes of [`Cause`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::hash;
use fairlead_control::desired::BackendAddr;
use fairlead_control::plan::maglev::{self, Member, Sizes};

use crate::fleet::{Connection, WINDOW};

/// Why a connection may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its backend is dead, as far as the node knows.
    Dead,
    /// Its slot has been another backend's for the whole of the drain window.
    Outlived,
    /// It began at another node while its slot was in transition, or while the two nodes saw different backends.
    Elsewhere,
    /// The node was not there when its slot changed.
    Newcomer,
    /// It is UDP and began in a transition, so with the backend before; the window is over.
    NoHandshake,
    /// More flows began in a window than are remembered.
    Forgotten,
    /// The service has no backend that takes flows, and so no ring.
    NoRing,
}

impl Cause {
    pub const ALL: [Self; 7] = [
        Self::Dead,
        Self::Outlived,
        Self::Elsewhere,
        Self::Newcomer,
        Self::NoHandshake,
        Self::Forgotten,
        Self::NoRing,
    ];
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets of established connections.
    pub packets: u64,
    /// Those of them that no cause excuses: they had to arrive.
    pub bound: u64,
    /// Connections that moved.
    pub moved: BTreeMap<Cause, u64>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bound += other.bound;
        for (cause, count) in &other.moved {
            *self.moved.entry(*cause).or_default() += count;
        }
    }
}

/// What was on a service's ring from a moment on.
struct Era {
    since: Duration,
    /// Who owns each slot, of the most there are; empty: no ring.
    owners: Arc<[BackendAddr]>,
    alive: BTreeSet<BackendAddr>,
}

/// What one node had on the ring of one service.
#[derive(Default)]
pub struct Past {
    eras: Vec<Era>,
    restarts: Vec<Duration>,
}

impl Past {
    /// The node writes the ring of these members.
    pub fn programs(
        &mut self,
        now: Duration,
        members: &[Member],
        alive: BTreeSet<BackendAddr>,
        sizes: Sizes,
    ) {
        let ring = maglev::ring(members, sizes);
        let parts = (sizes.most as usize).checked_div(ring.len()).unwrap_or(0);
        let owners: Arc<[BackendAddr]> = ring
            .iter()
            .flat_map(|owner| std::iter::repeat_n(members[*owner as usize].0, parts))
            .collect();
        let last = self.eras.last();
        if last.is_some_and(|era| era.owners == owners && era.alive == alive) {
            return;
        }
        self.eras.push(Era {
            since: now,
            owners,
            alive,
        });
    }

    /// The agent starts anew.
    pub fn restarts(&mut self, now: Duration) {
        self.restarts.push(now);
    }

    fn era(&self, at: Duration) -> Option<&Era> {
        self.eras.iter().rev().find(|era| era.since <= at)
    }

    pub fn has_ring(&self, at: Duration) -> bool {
        self.era(at).is_some_and(|era| !era.owners.is_empty())
    }

    /// Whether the backend ever was one of the service's.
    pub fn has_had(&self, backend: &BackendAddr) -> bool {
        let mut eras = self.eras.iter();
        eras.any(|era| era.alive.contains(backend) || era.owners.contains(backend))
    }

    pub fn is_alive(&self, backend: &BackendAddr, at: Duration) -> bool {
        self.era(at).is_some_and(|era| era.alive.contains(backend))
    }

    fn owner(&self, connection: &Connection, at: Duration) -> Option<BackendAddr> {
        owner(self.era(at)?, connection)
    }

    /// Whether the slot of a connection has changed its owner within the window that is open, and when that
    /// window ends at the earliest.
    fn transition(&self, connection: &Connection, at: Duration) -> Option<Duration> {
        let mut ends = None::<Duration>;
        let mut has_changed = false;
        for pair in self.eras.windows(2) {
            let [before, after] = pair else { break };
            if after.since > at {
                break;
            }
            ends = self.prolonged(ends, after.since);
            if ends.is_some_and(|ends| ends < after.since) {
                (ends, has_changed) = (None, false);
            }
            if before.owners != after.owners {
                ends = Some(after.since + WINDOW);
                has_changed |= owner(before, connection) != owner(after, connection);
            }
        }
        ends = self.prolonged(ends, at);
        ends.filter(|ends| has_changed && at <= *ends)
    }

    /// An agent that starts anew begins a window that is open anew.
    fn prolonged(&self, ends: Option<Duration>, by: Duration) -> Option<Duration> {
        let mut ends = ends?;
        for restart in self.restarts.iter().filter(|restart| **restart <= by) {
            if *restart <= ends {
                ends = ends.max(*restart + WINDOW);
            }
        }
        Some(ends)
    }

    /// A new connection goes to the owner of its slot; without a handshake, as the older ones do.
    pub fn may_begin(&self, connection: &Connection, opens: bool) -> Result<(), String> {
        let owner = self.owner(connection, connection.began);
        let in_transition = self.transition(connection, connection.began).is_some();
        if owner == Some(connection.home) || (!opens && in_transition) {
            return Ok(());
        }
        Err(format!(
            "{} begins at {}, and its slot is {owner:?}'s",
            connection.key, connection.home
        ))
    }

    /// Why a packet of a connection may go elsewhere at this node; `None`: it may not. `is_own`: the connection
    /// began here.
    pub fn may_move(
        &self,
        connection: &Connection,
        is_own: bool,
        forgotten: bool,
        now: Duration,
    ) -> Option<Cause> {
        let born = self.eras.first()?.since;
        let from = connection.began.max(born);
        let first = self.eras.iter().rposition(|era| era.since <= from)?;
        let known = &self.eras[first..];
        if known
            .iter()
            .any(|era| !era.alive.contains(&connection.home))
        {
            return Some(Cause::Dead);
        }
        if known.iter().any(|era| era.owners.is_empty()) {
            return Some(Cause::NoRing);
        }
        let is_settled = owner(&self.eras[first], connection) == Some(connection.home)
            && self.transition(connection, from).is_none();
        if !is_settled {
            if !is_own && born > connection.began {
                return Some(Cause::Newcomer);
            }
            if !is_own {
                return Some(Cause::Elsewhere);
            }
            if owner(&self.eras[first], connection) != Some(connection.home) {
                let ends = self.transition(connection, from)?;
                return (ends <= now).then_some(Cause::NoHandshake);
            }
            if forgotten {
                return Some(Cause::Forgotten);
            }
        }
        has_outlived(known, connection, now)
            .then_some(Cause::Outlived)
            .or_else(|| (is_own && forgotten).then_some(Cause::Forgotten))
    }
}

/// Whether the slot was another backend's for a whole window.
fn has_outlived(eras: &[Era], connection: &Connection, now: Duration) -> bool {
    let mut away = None;
    for (place, era) in eras.iter().enumerate() {
        let until = eras.get(place + 1).map_or(now, |next| next.since);
        if owner(era, connection) == Some(connection.home) {
            away = None;
        } else if until >= *away.get_or_insert(era.since) + WINDOW {
            return true;
        }
    }
    false
}

fn owner(era: &Era, connection: &Connection) -> Option<BackendAddr> {
    let asked = if connection.service == 2 {
        connection.key.client_hash()
    } else {
        connection.key.hash()
    };
    let slot = hash::slot(asked, era.owners.len() as u32);
    era.owners.get(slot as usize).copied()
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for era in &self.eras {
            let members: BTreeSet<_> = era.owners.iter().map(|at| at.addr).collect();
            let alive: BTreeSet<_> = era.alive.iter().map(|at| at.addr).collect();
            writeln!(f, "{:?}: ring {members:?}, alive {alive:?}", era.since)?;
        }
        writeln!(f, "restarts {:?}", self.restarts)
    }
}
