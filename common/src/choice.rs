//! Which backend a flow of a service gets: one function, which the datapath runs on its maps, and explanations
//! and proofs on tables in memory.
//!
//! ```text
//!   service -> hash -> slot {current, previous}
//!     previous = 0                       current: the steady state, nothing is read or written beside it
//!     the flow begins                    current, and it is remembered
//!     it is remembered                   the backend it began with, or current when that is dead
//!     it is not: older than the change   previous, or current when that is dead
//! ```
//! What moves a connection in spite of this, and how likely that is, stands in `docs/consistency.md`.
//!
//! Not for how packets get to the backend, nor for sockets, whose slot is drawn.

use crate::addr::Addr;
use crate::flow::{Flow, FlowKey};
use crate::hash;
use crate::reason::Reason;
use crate::service::{Service, Slot, service_flags};

/// The tables that decide.
pub trait Tables {
    /// What `RINGS` holds at a place.
    fn slot(&self, place: u32) -> Option<Slot>;

    /// Whether a backend answers the flows that it has.
    fn is_alive(&self, backend: u32) -> bool;

    /// Whether a service with `loadBalancerSourceRanges`, by its id, lets a source in.
    fn admits(&self, service: u32, source: Addr) -> bool;

    /// What `FLOWS` remembers of a flow.
    fn flow(&mut self, key: &FlowKey) -> Option<&mut Flow>;

    /// Remembers a flow.
    fn remember(&mut self, key: &FlowKey, flow: &Flow);

    /// Coarse monotonic time in seconds.
    fn now_s(&self) -> u32;
}

/// The backend of a flow, and how it came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its id; 0: the slot is empty.
    pub backend: u32,
    /// Why that one.
    pub because: Because,
    /// Which slot of the ring.
    pub number: u32,
    /// What it holds.
    pub slot: Slot,
    /// What the ring was asked with: the hash of the flow, or of the client alone with session affinity.
    pub asked: u32,
    /// The hash of the flow.
    pub hash: u32,
}

impl Choice {
    /// Whether the flow's memory was asked.
    #[inline(always)]
    pub const fn in_transition(&self) -> bool {
        self.slot.previous != 0
    }
}

/// Why a slot gives a flow its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Because {
    /// The slot is not in transition.
    Steady,
    /// It is, and the flow begins with this packet.
    Begins,
    /// It is, and the flow is remembered.
    Remembered,
    /// It is, and the backend that the flow is remembered for is dead.
    RememberedDead,
    /// It is, and the flow is older.
    Older,
    /// It is, the flow is older, and its backend is dead.
    OlderDead,
}

/// Finds the backend of a flow; `is_new` says that it begins with this packet.
///
/// # Errors
/// [`Reason::ServiceNoBackend`], or [`Reason::ServiceSourceDenied`].
#[inline(always)]
pub fn choose(
    tables: &mut impl Tables,
    service: &Service,
    key: &FlowKey,
    is_new: bool,
) -> Result<Choice, Reason> {
    if service.slots == 0 {
        return Err(Reason::ServiceNoBackend);
    }
    let hash = key.hash();
    let asked = if service.flags == 0 {
        hash
    } else {
        on_terms(tables, service, key, hash)?
    };
    let number = hash::slot(asked, service.slots);
    let slot = tables
        .slot(service.ring.wrapping_add(number))
        .ok_or(Reason::ServiceNoBackend)?;
    let (backend, because) = if slot.previous == 0 {
        (slot.current, Because::Steady)
    } else {
        in_transition(tables, key, slot, is_new)
    };
    Ok(Choice {
        backend,
        because,
        number,
        slot,
        asked,
        hash,
    })
}

/// What the ring is asked with where the service asks for more than a backend: that its client is let in, and that
/// all flows of a client go one way.
#[inline(always)]
fn on_terms(
    tables: &impl Tables,
    service: &Service,
    key: &FlowKey,
    hash: u32,
) -> Result<u32, Reason> {
    let flags = service.flags;
    if flags & service_flags::SOURCE_RANGES != 0 && !tables.admits(service.id, key.src) {
        return Err(Reason::ServiceSourceDenied);
    }
    Ok(if flags & service_flags::AFFINITY != 0 {
        key.client_hash()
    } else {
        hash
    })
}

#[inline(always)]
fn in_transition(
    tables: &mut impl Tables,
    key: &FlowKey,
    slot: Slot,
    is_new: bool,
) -> (u32, Because) {
    let now_s = tables.now_s();
    if is_new {
        let flow = Flow {
            backend: slot.current,
            last_seen_s: now_s,
        };
        tables.remember(key, &flow);
        return (slot.current, Because::Begins);
    }
    if let Some(flow) = tables.flow(key) {
        let backend = flow.backend;
        if flow.last_seen_s != now_s {
            flow.last_seen_s = now_s;
        }
        return if tables.is_alive(backend) {
            (backend, Because::Remembered)
        } else {
            (slot.current, Because::RememberedDead)
        };
    }
    if tables.is_alive(slot.previous) {
        (slot.previous, Because::Older)
    } else {
        (slot.current, Because::OlderDead)
    }
}
