//! Which backend a packet goes to, computed from the tables as the datapath does it.

use fairlead_common::flow::{Flow, FlowKey};
use fairlead_common::hash;
use fairlead_common::service::{Service, ServiceKey, Slot, flags, service_flags};

use crate::plan::Actual;

/// What the tables say of a packet, step by step.
#[derive(Clone, Copy, Debug)]
pub(in crate::view) struct Choice {
    /// Where it would be looked for.
    pub key: ServiceKey,
    /// The service's row.
    pub service: Option<Service>,
    /// Its place on the ring.
    pub place: Option<Place>,
}

/// A place on a ring, and what became of a packet there.
#[derive(Clone, Copy, Debug)]
pub(in crate::view) struct Place {
    /// The hash that the ring is asked with: of the flow, or of the client alone with session affinity.
    pub hash: u32,
    /// Which slot.
    pub number: u32,
    /// What it holds.
    pub slot: Slot,
    /// Why that backend.
    pub because: Because,
    /// The backend's id; 0: none.
    pub backend: u32,
}

/// Why a slot gives a packet its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::view) enum Because {
    /// The slot is not in transition.
    Steady,
    /// It is, and the flow begins with this packet.
    Begins,
    /// It is, and the flow is remembered.
    Remembered(Flow),
    /// It is, and the flow's backend is dead.
    RememberedDead(Flow),
    /// It is, and the flow is older.
    Older,
    /// It is, the flow is older, and its backend is dead.
    OlderDead,
}

/// Computes it. `remembered` is the flow's row in `FLOWS`; `begins` says that the packet is a SYN without ACK.
pub(in crate::view) fn choose(
    actual: &Actual,
    key: ServiceKey,
    flow: &FlowKey,
    begins: bool,
    remembered: Option<Flow>,
) -> Choice {
    let service = actual.services.get(&key).copied();
    let place = service.filter(|row| row.slots > 0).map(|row| {
        let is_bound = row.flags & service_flags::AFFINITY != 0;
        let hash = if is_bound {
            flow.client_hash()
        } else {
            flow.hash()
        };
        let number = hash::slot(hash, row.slots);
        let ring = actual.rings.get(&row.ring);
        let slot = ring
            .and_then(|ring| ring.get(number as usize))
            .copied()
            .unwrap_or_default();
        let is_alive = |id: u32| {
            let row = actual.backends.get(&id);
            row.is_some_and(|row| row.flags & flags::ALIVE != 0)
        };
        let because = match remembered {
            _ if slot.previous == 0 => Because::Steady,
            _ if begins => Because::Begins,
            Some(flow) if is_alive(flow.backend) => Because::Remembered(flow),
            Some(flow) => Because::RememberedDead(flow),
            None if is_alive(slot.previous) => Because::Older,
            None => Because::OlderDead,
        };
        Place {
            hash,
            number,
            slot,
            because,
            backend: match because {
                Because::Remembered(flow) => flow.backend,
                Because::Older => slot.previous,
                Because::Steady
                | Because::Begins
                | Because::RememberedDead(_)
                | Because::OlderDead => slot.current,
            },
        }
    });
    Choice {
        key,
        service,
        place,
    }
}
