//! The difference between what the node should be and what the kernel holds, as ordered steps.
//!
//! `plan(desired, actual) -> Plan`, and `apply(plan, store)`, obey five laws (tested as properties):
//! 1. applying the plan makes the kernel what was desired;
//! 2. a plan for what is already there is empty (unless [`Plan::wake`] asks for another round at once,
//!    because a place became free that a ring waits for);
//! 3. every prefix of a plan leaves a safe datapath: no service points at a missing ring, no slot at a
//!    missing backend, no backend at a missing next hop, no backend id is used again while a slot or a flow
//!    may name it, and no next hop's while a backend does; a service that filters its clients keeps out whom it
//!    kept out and still does; packets out of tunnels are for backends that are there, and the answers of a
//!    backend are looked for before packets are translated to it;
//! 4. a plan is no larger than the difference;
//! 5. same inputs, same plan.
//!
//! A plan looks at what has changed since the one before, as far as it is given what that one left behind
//! (`ledger`); without that it looks at everything and comes to the same.
//!
//! What the kernel cannot say is an explicit value that goes in and comes out: [`Memory`]. Time is an
//! argument: a [`Duration`] since any fixed moment of one run of the agent.
//!
//! Not here: who carries the steps out (`dataplane::apply`), and when (`agent`).

mod addresses;
pub mod diff;
mod ledger;
pub mod maglev;
mod mirror;
pub mod node;
pub mod order;
pub mod packets;
pub mod routes;
pub mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::Addr;
use fairlead_common::route::{Device, Node};
use fairlead_common::served::Sieve;
use fairlead_common::service::{
    Arrival, ArrivalKey, Backend, NextHop, Service, ServiceKey, ServingKey, Slot, SourceRange,
};

use imbl::{OrdMap, OrdSet};

use self::ledger::{Ledger, Planned};
use crate::cores;
use crate::desired::{Condition, Desired, Frontend};

pub use self::node::Host;
pub use self::services::Memory;

/// So many steps are worth a thread beside the one that carries them out.
const MANY: usize = 1024;

/// What the tables should say, as far as it is known outside of them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What the node should be.
    pub desired: &'a Desired,
    /// How packets get to each backend's address; an absent one is out of reach.
    pub reach: &'a OrdMap<IpAddr, Reach>,
    /// The next hop on the way to each backend's address; where it is absent, the datapath asks the kernel
    /// for the way of each packet.
    pub ways: &'a OrdMap<IpAddr, Way>,
    /// What the host says.
    pub host: &'a Host,
    /// How large rings are.
    pub ring_sizes: maglev::Sizes,
    /// How long flows that began before a change stay with their backend.
    pub drain_window: Duration,
}

/// How packets get to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// It is on a link of this node.
    OnLink,
    /// It is on a link that we do not send by: a pod that another CNI plugin has joined, for one. The kernel's
    /// stack gets there.
    ByStack,
    /// It is behind a router.
    Routed,
    /// It is an address of this node.
    Local,
    /// No route leads to it.
    Unreachable,
}

/// The next hop on the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// The device that leads to it, by index.
    pub device: u32,
    /// The neighbour: a router, or the address itself.
    pub neighbour: IpAddr,
    /// The largest IP packet that goes this way, in bytes.
    pub mtu: u32,
    /// The neighbour's MAC address, while packets may be sent to it.
    pub mac: Option<[u8; 6]>,
}

/// What to do, and what is known when it has been done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in their order.
    pub steps: Vec<Step>,
    /// What to pass to the next plan once every step has been carried out. After a failed step the
    /// memory from before is passed again.
    pub memory: Memory,
    /// What the tables hold once every step has been carried out. A plan that is given this very value, and the
    /// memory beside it, looks only at what has changed since.
    pub tables: Actual,
    /// When to plan again though nothing has changed: a window ends then, or (now) a place became free.
    pub wake: Option<Duration>,
    /// What could not be done.
    pub conditions: Vec<Condition>,
    /// Once every step has been carried out: the services with a ring, and how many ready backends are
    /// on it (`desired::announce::Programmed::services`).
    pub programmed: OrdMap<Frontend, u32>,
}

impl Plan {
    fn of(steps: Vec<Step>, known: Known) -> Self {
        let Known {
            memory,
            tables,
            wake,
            conditions,
            programmed,
        } = known;
        Self {
            steps,
            memory,
            tables,
            wake,
            conditions,
            programmed,
        }
    }
}

/// The steps from what the tables hold to what they should hold.
pub fn plan(wanted: &Wanted<'_>, actual: &Actual, memory: &Memory, now: Duration) -> Plan {
    let (steps, open) = draft(wanted, actual, memory, now);
    let known = open.settle(&steps);
    Plan::of(steps, known)
}

/// As [`plan`]. `carry_out` is given the steps here, before it is worked out what is known afterwards, or, where that
/// takes long too, while another thread does it.
pub fn plan_and<T>(
    wanted: &Wanted<'_>,
    actual: &Actual,
    memory: &Memory,
    now: Duration,
    carry_out: impl FnOnce(&[Step]) -> T,
) -> (Plan, T) {
    let (steps, open) = draft(wanted, actual, memory, now);
    let much = steps.len() >= MANY;
    let (outcome, known) = cores::both(much, || carry_out(&steps), || open.settle(&steps));
    (Plan::of(steps, known), outcome)
}

/// The steps, and what is still to be worked out.
fn draft<'a>(
    wanted: &Wanted<'a>,
    actual: &Actual,
    memory: &Memory,
    now: Duration,
) -> (Vec<Step>, Open<'a>) {
    let mut conditions = Vec::new();
    let mut steps = Vec::new();
    let mut node = node::node_row(
        wanted.desired,
        wanted.host,
        actual.node.as_ref(),
        &mut conditions,
    );
    let devices = diff::difference(
        &node::device_rows(wanted.host, &mut conditions),
        &actual.devices,
    );
    steps.extend(devices.put.into_iter().map(|(_, row)| Step::PutDevice(row)));
    steps.extend(devices.remove.into_iter().map(Step::RemoveDevice));

    let ledger = if actual.is(&memory.ledger.tables) {
        memory.ledger.clone()
    } else {
        Ledger::of(actual)
    };
    let part = ledger.part(wanted, memory, now);
    let (own, mut rest) = part.divide(memory);
    let desired = Desired {
        node: wanted.desired.node.clone(),
        services: part.wanted(wanted.desired),
        ..Desired::default()
    };
    let mut services = services::plan(
        &Wanted {
            desired: &desired,
            ..*wanted
        },
        &ledger.tables_of(&part),
        &own,
        now,
        &Rest {
            ledger: &ledger,
            memory,
            part: &part,
        },
    );
    let rows = ledger.services_after(&services.steps);
    let of_addresses = ledger.addresses(&part, wanted.desired, &rows);
    let of_addresses = of_addresses.unwrap_or_else(|| {
        let mut conditions = Vec::new();
        addresses::steps(
            wanted.desired,
            &rows,
            actual,
            &mut services.steps,
            &mut conditions,
        );
        conditions
    });
    conditions.extend(of_addresses.iter().cloned());
    steps.extend(clear_counts(&services.steps, actual));
    steps.append(&mut services.steps);
    node.flags |= services.node_flags;
    if actual.node != Some(node) {
        steps.push(Step::PutNode(Box::new(node)));
    }
    let steps = order::order(steps, &services.fresh);
    rest.transitions.extend(services.memory.transitions);
    rest.retiring.extend(services.memory.retiring);
    let deadlines = rest.transitions.values().chain(rest.retiring.values());
    let again = services.again.then_some(now);
    let open = Open {
        wanted: *wanted,
        ledger,
        part,
        wake: deadlines.copied().chain(again).min(),
        rest,
        conditions,
        planned: Planned {
            programmed: services.programmed,
            conditions: services.conditions,
            of_addresses,
            waiting: services.waiting,
        },
    };
    (steps, open)
}

/// A plan whose steps are known, and not yet what is known after them.
struct Open<'a> {
    wanted: Wanted<'a>,
    ledger: Ledger,
    part: ledger::Part,
    planned: Planned,
    rest: Memory,
    conditions: Vec<Condition>,
    wake: Option<Duration>,
}

/// A [`Plan`] but for its steps.
struct Known {
    memory: Memory,
    tables: Actual,
    wake: Option<Duration>,
    conditions: Vec<Condition>,
    programmed: OrdMap<Frontend, u32>,
}

impl Open<'_> {
    /// What is known once the steps have been carried out.
    fn settle(self, steps: &[Step]) -> Known {
        let Self {
            wanted,
            ledger,
            part,
            planned,
            rest,
            mut conditions,
            wake,
        } = self;
        let ledger = ledger.after(&wanted, &part, steps, planned);
        conditions.extend(ledger.conditions().cloned());
        Known {
            tables: ledger.tables.clone(),
            wake,
            conditions,
            programmed: ledger.programmed.clone(),
            memory: Memory { ledger, ..rest },
        }
    }
}

/// What a plan of a part must know of everything else.
struct Rest<'a> {
    ledger: &'a Ledger,
    memory: &'a Memory,
    part: &'a ledger::Part,
}

/// The counters of ids that are given out: what they counted for others must not count for their new owners.
fn clear_counts(steps: &[Step], actual: &Actual) -> Option<Step> {
    let (mut services, mut backends) = (BTreeSet::new(), BTreeSet::new());
    for step in steps {
        if let Step::PutService(key, row) = step
            && actual.services.get(key).map(|row| row.id) != Some(row.id)
        {
            services.insert(row.id);
        }
        if let Step::PutBackend(id, _) = step
            && !actual.backends.contains_key(id)
        {
            backends.insert(*id);
        }
    }
    let nobody = services.is_empty() && backends.is_empty();
    (!nobody).then_some(Step::ClearCounts { services, backends })
}

/// What the kernel's tables hold now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// `SERVICES`.
    pub services: OrdMap<ServiceKey, Service>,
    /// `BACKENDS` rows that are in use, by id.
    pub backends: OrdMap<u32, Backend>,
    /// `NEXT_HOPS` rows that are in use, by id.
    pub next_hops: OrdMap<u32, NextHop>,
    /// The slots of the rings that services use, by the ring's first slot.
    pub rings: OrdMap<u32, Arc<Vec<Slot>>>,
    /// `SERVING`.
    pub serving: OrdSet<ServingKey>,
    /// `ARRIVALS`.
    pub arrivals: OrdMap<ArrivalKey, Arrival>,
    /// `NODE`.
    pub node: Option<Node>,
    /// `DEVICES` rows that are in use, by row (`ifindex & DEVICE_MASK`).
    pub devices: BTreeMap<u32, Device>,
    /// `ADDRESSES`.
    pub addresses: OrdMap<Addr, u32>,
    /// `SIEVE`.
    pub sieve: Box<Sieve>,
    /// `SOURCE_RANGES`.
    pub source_ranges: OrdSet<SourceRange>,
}

/// Slots of a ring to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotWrites {
    /// All of them, of a ring that is new.
    All(Arc<Vec<Slot>>),
    /// (offset within the ring, slot), ascending.
    Some(Vec<(u32, Slot)>),
}

impl SlotWrites {
    /// (offset within the ring, slot), ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Slot)> {
        let (all, some) = match self {
            Self::All(all) => (&all[..], &[][..]),
            Self::Some(some) => (&[][..], &some[..]),
        };
        let all = (0..).zip(all.iter().copied());
        all.chain(some.iter().copied())
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::All(all) => all.len(),
            Self::Some(some) => some.len(),
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One change of the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes the node's row.
    PutNode(Box<Node>),
    /// Writes a device's row at `ifindex & DEVICE_MASK`.
    PutDevice(Device),
    /// Empties this row of `DEVICES` (`ifindex & DEVICE_MASK`).
    RemoveDevice(u32),
    /// Writes a next hop's row.
    PutNextHop(u32, NextHop),
    /// Empties a next hop's row.
    RemoveNextHop(u32),
    /// Writes a backend's row.
    PutBackend(u32, Backend),
    /// Empties a backend's row.
    RemoveBackend(u32),
    /// Writes slots of the ring that begins at `ring`: (offset in the ring, slot).
    PutSlots {
        /// First slot of the ring.
        ring: u32,
        /// Which, and what they say.
        slots: SlotWrites,
    },
    /// Lets sources in.
    PutSourceRange(SourceRange),
    /// Keeps sources out.
    RemoveSourceRange(SourceRange),
    /// Writes a service's row.
    PutService(ServiceKey, Service),
    /// Removes a service's row.
    RemoveService(ServiceKey),
    /// Writes the flags of a service's address.
    PutAddress(Addr, u32),
    /// Removes the row of an address.
    RemoveAddress(Addr),
    /// Writes the sieve before the addresses.
    PutSieve(Box<Sieve>),
    /// Sets the counters of these ids to zero, because they are given out.
    ClearCounts {
        /// Ids of services.
        services: BTreeSet<u32>,
        /// Ids of backends.
        backends: BTreeSet<u32>,
    },
    /// Looks for answers of the backend that listens there.
    PutServing(ServingKey),
    /// Does so no longer.
    RemoveServing(ServingKey),
    /// Writes whom packets out of tunnels are for.
    PutArrival(ArrivalKey, Arrival),
    /// Removes such a row.
    RemoveArrival(ArrivalKey),
    /// Deletes the rows of `FLOWS` whose destination is one of these services, because their transition
    /// is over and what was remembered for it must not count in the next one; and those that name one
    /// of these backends, because their ids are about to be free.
    ForgetFlows {
        /// Services whose transition is over.
        services: BTreeSet<ServiceKey>,
        /// Backends whose rows are removed next.
        backends: BTreeSet<u32>,
    },
}

/// Where steps are carried out: the pinned maps, or memory in tests.
pub trait Store {
    /// Why a step failed.
    type Error: std::fmt::Display;

    /// Carries out one step.
    fn apply(&mut self, step: &Step) -> Result<(), Self::Error>;

    /// Carries out the first of these steps where several are cheaper together; how many were. At the first that
    /// fails it ends, and [`Self::apply`] says why.
    fn apply_some(&mut self, _steps: &[Step]) -> usize {
        0
    }

    /// Reads everything back.
    fn observe(&self) -> Result<Actual, Self::Error>;
}

#[cfg(test)]
mod laws;
