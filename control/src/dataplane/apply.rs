//! Carries a plan out on the pinned tables, and reads them back.
//!
//! A step that fails does not stop the plan: what depends on it is left out, everything else goes on,
//! and the outcome says what really happened. The next round starts from [`Store::observe`].
//!
//! ```text
//!   next hop failed     ->  backends that name it are left out
//!   backend row failed  ->  slots that name it are left out  ->  services of that ring are left out
//!   anything failed     ->  no next hop and no backend row is emptied, no flow forgotten: a slot may still need it
//! ```
//!
//! Not for deciding steps or their order (`plan`).

use std::collections::BTreeSet;

use fairlead_common::route::{DEVICE_MASK, Device};
use fairlead_common::service::{self, Backend, Counter, NextHop, ServiceKey, Slot};
use fairlead_common::tables::{
    Addresses, Arrivals, BackendStats, Backends, Devices, Flows, NextHops, NodeTable, ServiceDrops,
    ServiceStats, Services, SieveTable, SourceRanges, Table,
};

use super::copies::Copies;
use super::mapped::Access;
use super::pins::Pins;
use super::serving::Listeners;
use super::table::{self, Pinned, Slots};
use crate::plan::{Actual, SlotWrites, Step, Store};

mod describe;
mod together;
mod tx_ports;

pub use self::describe::describe;
pub use self::tx_ports::{add_tx_port, set_tx_ports};

/// The pinned tables as a plan's store.
#[derive(Debug)]
pub struct KernelStore {
    node: Pinned<NodeTable>,
    devices: Pinned<Devices>,
    services: Pinned<Services>,
    copies: Copies,
    backends: Pinned<Backends>,
    next_hops: Pinned<NextHops>,
    flows: Pinned<Flows>,
    addresses: Pinned<Addresses>,
    sieve: Pinned<SieveTable>,
    source_ranges: Pinned<SourceRanges>,
    service_stats: Pinned<ServiceStats>,
    service_drops: Pinned<ServiceDrops>,
    backend_stats: Pinned<BackendStats>,
    listeners: Listeners,
    arrivals: Pinned<Arrivals>,
    slots: Slots,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table could not be used.
    #[error(transparent)]
    Table(#[from] table::Error),
    /// A ring lies outside of the table of slots.
    #[error("slot {slot} is beyond the {capacity} slots of RINGS")]
    OutOfRings {
        /// The slot that does not exist.
        slot: u64,
        /// How many there are.
        capacity: u32,
    },
}

impl KernelStore {
    /// Opens the tables for writing.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Self::with_access(pins, Access::Write)
    }

    fn with_access(pins: &Pins, access: Access) -> Result<Self, Error> {
        let backends = Pinned::open(pins)?;
        let services = Pinned::open(pins)?;
        Ok(Self {
            copies: Copies::open(pins, &services, access)?,
            services,
            listeners: Listeners::open(pins, &backends, access)?,
            backends,
            node: Pinned::open(pins)?,
            devices: Pinned::open(pins)?,
            next_hops: Pinned::open(pins)?,
            flows: Pinned::open(pins)?,
            addresses: Pinned::open(pins)?,
            sieve: Pinned::open(pins)?,
            source_ranges: Pinned::open(pins)?,
            service_stats: Pinned::open(pins)?,
            service_drops: Pinned::open(pins)?,
            backend_stats: Pinned::open(pins)?,
            arrivals: Pinned::open(pins)?,
            slots: Slots::open(pins, access)?,
        })
    }

    fn put_slots(&mut self, ring: u32, slots: &SlotWrites) -> Result<(), Error> {
        let capacity = self.slots.len();
        let place = |offset: u32| u64::from(ring) + u64::from(offset);
        // Checked first: a ring is written whole or not at all.
        let is_out = |(offset, _): &(u32, Slot)| place(*offset) >= u64::from(capacity);
        if let Some((offset, _)) = slots.iter().find(is_out) {
            return Err(Error::OutOfRings {
                slot: place(offset),
                capacity,
            });
        }
        for (offset, slot) in slots.iter() {
            if !self.slots.set(ring + offset, slot) {
                return Err(Error::OutOfRings {
                    slot: place(offset),
                    capacity,
                });
            }
        }
        Ok(())
    }

    fn clear_counts(
        &mut self,
        services: &BTreeSet<u32>,
        backends: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        clear(&mut self.service_stats, services)?;
        clear(&mut self.backend_stats, backends)?;
        if services.is_empty() {
            return Ok(());
        }
        for (of, _) in self.service_drops.counts()? {
            if services.contains(&of.service) {
                self.service_drops.remove(&of)?;
            }
        }
        Ok(())
    }

    fn forget_flows(
        &mut self,
        services: &BTreeSet<ServiceKey>,
        backends: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        let mut forgotten = Vec::new();
        for row in self.flows.rows() {
            let (flow, known) = row?;
            let service = ServiceKey {
                scope: flow.scope,
                ..ServiceKey::new(flow.dst, flow.dst_port, flow.proto)
            };
            if services.contains(&service) || backends.contains(&known.backend) {
                forgotten.push(flow);
            }
        }
        for flow in forgotten {
            self.flows.remove(&flow)?;
        }
        Ok(())
    }
}

/// Sets counters to zero; of many, those that have counted something.
fn clear<T>(table: &mut Pinned<T>, ids: &BTreeSet<u32>) -> Result<(), table::Error>
where
    T: Table<Key = u32, Value: Counter>,
{
    // A batch reads four thousand rows in the time of a few dozen writes.
    const MANY: usize = 1000;
    if ids.len() < MANY {
        for id in ids {
            table.remove(id)?;
        }
        return Ok(());
    }
    for (id, _) in table.counts()? {
        if ids.contains(&id) {
            table.remove(&id)?;
        }
    }
    Ok(())
}

impl Store for KernelStore {
    type Error = Error;

    fn apply(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::PutNode(node) => self.node.set(&0, node)?,
            Step::PutDevice(device) => self.devices.set(&(device.ifindex & DEVICE_MASK), device)?,
            Step::RemoveDevice(row) => {
                self.devices.set(row, &Device::default())?;
            }
            Step::PutNextHop(id, next_hop) => self.next_hops.set(id, next_hop)?,
            Step::RemoveNextHop(id) => self.next_hops.set(id, &NextHop::default())?,
            Step::PutBackend(id, backend) => self.backends.set(id, backend)?,
            Step::RemoveBackend(id) => self.backends.set(id, &Backend::default())?,
            Step::PutSlots { ring, slots } => self.put_slots(*ring, slots)?,
            Step::PutSourceRange(range) => self.source_ranges.set(range, &1)?,
            Step::RemoveSourceRange(range) => drop(self.source_ranges.remove(range)?),
            Step::PutService(key, service) => {
                self.services.set(key, service)?;
                self.copies.put(key, service);
            }
            // Gone already is as good.
            Step::RemoveService(key) => {
                self.copies.remove(key);
                self.services.remove(key)?;
            }
            Step::PutAddress(addr, flags) => self.addresses.set(addr, flags)?,
            Step::RemoveAddress(addr) => drop(self.addresses.remove(addr)?),
            Step::PutSieve(sieve) => self.sieve.set(&0, sieve)?,
            Step::ClearCounts { services, backends } => self.clear_counts(services, backends)?,
            Step::PutServing(key) => self.listeners.put(*key)?,
            Step::RemoveServing(key) => self.listeners.remove(*key)?,
            Step::PutArrival(key, row) => self.arrivals.set(key, row)?,
            Step::RemoveArrival(key) => drop(self.arrivals.remove(key)?),
            Step::ForgetFlows { services, backends } => self.forget_flows(services, backends)?,
        }
        Ok(())
    }

    fn apply_some(&mut self, steps: &[Step]) -> usize {
        together::apply(self, steps)
    }

    fn observe(&self) -> Result<Actual, Error> {
        let mut actual = Actual::default();
        for row in self.services.rows() {
            let (key, service) = row?;
            actual.services.insert(key, service);
        }
        for row in self.backends.rows() {
            let (id, backend) = row?;
            if backend.forward != service::forward::FREE {
                actual.backends.insert(id, backend);
            }
        }
        for row in self.next_hops.rows() {
            let (id, next_hop) = row?;
            if next_hop.ifindex != 0 {
                actual.next_hops.insert(id, next_hop);
            }
        }
        for service in actual.services.values().filter(|one| one.slots > 0) {
            let known = actual.rings.get(&service.ring).map_or(0, |held| held.len());
            if known < service.slots as usize {
                let slots = self.slots.ring(service.ring, service.slots);
                actual.rings.insert(service.ring, slots.into());
            }
        }
        actual.serving = self.listeners.keys().clone();
        for row in self.arrivals.rows() {
            let (key, arrival) = row?;
            actual.arrivals.insert(key, arrival);
        }
        actual.node = self
            .node
            .get(&0)?
            .filter(|node| bytemuck::bytes_of(node).iter().any(|&byte| byte != 0));
        for row in self.devices.rows() {
            let (place, device) = row?;
            if device.ifindex != 0 {
                actual.devices.insert(place, device);
            }
        }
        for row in self.addresses.rows() {
            let (addr, flags) = row?;
            actual.addresses.insert(addr, flags);
        }
        *actual.sieve = self.sieve.get(&0)?.unwrap_or_default();
        for row in self.source_ranges.rows() {
            actual.source_ranges.insert(row?.0);
        }
        Ok(actual)
    }
}

/// Reads the tables without being able to write slots; for `dpctl` beside an agent or without one.
pub fn observe(pins: &Pins) -> Result<Actual, Error> {
    KernelStore::with_access(pins, Access::Read)?.observe()
}

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many steps were carried out.
    pub done: usize,
    /// What failed, and what was left out because of it, in the order of the plan.
    pub obstacles: Vec<Obstacle>,
}

impl Outcome {
    /// Whether the tables are what the plan wanted.
    pub fn is_complete(&self) -> bool {
        self.obstacles.is_empty()
    }
}

/// A step that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What it would have done, and to which key.
    pub step: String,
    /// Why it was not.
    pub why: String,
    /// Whether it was left out because an earlier one failed.
    pub left_out: bool,
}

/// Carries steps out in their order.
pub fn run<S: Store>(steps: &[Step], store: &mut S) -> Outcome {
    let mut outcome = Outcome::default();
    let mut failed = Failed::default();
    let mut left = steps;
    while let [step, after @ ..] = left {
        if !failed.any {
            let done = store.apply_some(left);
            if done > 0 {
                outcome.done += done;
                left = &left[done..];
                continue;
            }
        }
        left = after;
        let (why, left_out) = match failed.blocks(step) {
            Some(why) => (why.to_owned(), true),
            None => match store.apply(step) {
                Ok(()) => {
                    outcome.done += 1;
                    continue;
                }
                Err(error) => (error.to_string(), false),
            },
        };
        failed.note(step);
        outcome.obstacles.push(Obstacle {
            step: describe(step),
            why,
            left_out,
        });
    }
    outcome
}

/// What later steps must not rely on.
#[derive(Default)]
struct Failed {
    any: bool,
    next_hops: BTreeSet<u32>,
    backends: BTreeSet<u32>,
    rings: BTreeSet<u32>,
}

impl Failed {
    fn note(&mut self, step: &Step) {
        self.any = true;
        match step {
            Step::PutNextHop(id, _) => {
                self.next_hops.insert(*id);
            }
            Step::PutBackend(id, _) => {
                self.backends.insert(*id);
            }
            Step::PutSlots { ring, .. } => {
                self.rings.insert(*ring);
            }
            Step::PutNode(_)
            | Step::PutDevice(_)
            | Step::RemoveDevice(_)
            | Step::RemoveNextHop(_)
            | Step::RemoveBackend(_)
            | Step::PutSourceRange(_)
            | Step::RemoveSourceRange(_)
            | Step::PutService(..)
            | Step::RemoveService(_)
            | Step::PutAddress(..)
            | Step::RemoveAddress(_)
            | Step::PutSieve(_)
            | Step::ClearCounts { .. }
            | Step::PutServing(_)
            | Step::RemoveServing(_)
            | Step::PutArrival(..)
            | Step::RemoveArrival(_)
            | Step::ForgetFlows { .. } => {}
        }
    }

    fn blocks(&self, step: &Step) -> Option<&'static str> {
        match step {
            Step::PutBackend(_, backend) => self
                .next_hops
                .contains(&backend.next_hop)
                .then_some("its next hop could not be written"),
            Step::RemoveNextHop(_) => self
                .any
                .then_some("an earlier step failed, and a backend may still name it"),
            Step::PutSlots { slots, .. } => slots
                .iter()
                .any(|(_, slot)| {
                    self.backends.contains(&slot.current) || self.backends.contains(&slot.previous)
                })
                .then_some("a backend that it names could not be written"),
            Step::PutService(_, service) => self
                .rings
                .contains(&service.ring)
                .then_some("its ring could not be written"),
            // Until a service's row says that it filters, or no more, both must hold.
            Step::RemoveSourceRange(_) => self
                .any
                .then_some("an earlier step failed, and a service may still let it in"),
            Step::PutArrival(_, arrival) => self
                .backends
                .contains(&arrival.backend)
                .then_some("its backend could not be written"),
            Step::RemoveServing(_) => self
                .any
                .then_some("an earlier step failed, and the backend may still answer"),
            Step::RemoveBackend(_) => self
                .any
                .then_some("an earlier step failed, and a slot may still name it"),
            Step::ForgetFlows { .. } => self
                .any
                .then_some("an earlier step failed, and a slot may still be in transition"),
            Step::PutNode(_)
            | Step::PutDevice(_)
            | Step::RemoveDevice(_)
            | Step::PutNextHop(..)
            | Step::PutSourceRange(_)
            | Step::ClearCounts { .. }
            | Step::PutServing(_)
            | Step::RemoveArrival(_)
            | Step::RemoveService(_)
            | Step::PutAddress(..)
            | Step::RemoveAddress(_)
            | Step::PutSieve(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use fairlead_common::addr::{Addr, Port, Proto};
    use fairlead_common::service::Service;

    use super::*;

    /// Carries out everything but what it is told to refuse.
    struct Refusing {
        refused: Vec<Step>,
        done: Vec<Step>,
    }

    impl Store for Refusing {
        type Error = &'static str;

        fn apply(&mut self, step: &Step) -> Result<(), Self::Error> {
            if self.refused.contains(step) {
                return Err("refused");
            }
            self.done.push(step.clone());
            Ok(())
        }

        fn observe(&self) -> Result<Actual, Self::Error> {
            Ok(Actual::default())
        }
    }

    fn key(last: u8) -> ServiceKey {
        ServiceKey::new(
            Addr::from(Ipv4Addr::new(192, 0, 2, last)),
            Port::new(80),
            Proto::TCP,
        )
    }

    fn slots(ring: u32, backend: u32) -> Step {
        let slot = Slot {
            current: backend,
            previous: 0,
        };
        Step::PutSlots {
            ring,
            slots: SlotWrites::Some(vec![(0, slot)]),
        }
    }

    fn service(last: u8, ring: u32) -> Step {
        let service = Service {
            id: last.into(),
            ring,
            slots: 1,
            ..Service::default()
        };
        Step::PutService(key(last), service)
    }

    #[test]
    fn what_hangs_on_a_failed_step_is_left_out_and_the_rest_goes_on() {
        let steps = [
            Step::PutBackend(1, Backend::default()),
            Step::PutBackend(2, Backend::default()),
            slots(0, 1),
            slots(512, 2),
            service(1, 0),
            service(2, 512),
            Step::RemoveBackend(3),
            Step::ForgetFlows {
                services: [key(9)].into(),
                backends: [3].into(),
            },
        ];
        let mut store = Refusing {
            refused: vec![steps[0].clone()],
            done: Vec::new(),
        };

        let outcome = run(&steps, &mut store);

        assert_eq!(
            store.done,
            [steps[1].clone(), steps[3].clone(), steps[5].clone()]
        );
        assert_eq!(outcome.done, 3);
        let told: Vec<_> = outcome
            .obstacles
            .iter()
            .map(|one| (one.step.as_str(), one.left_out))
            .collect();
        assert_eq!(
            told,
            [
                ("write backend 1 ([::]:0)", false),
                ("write 1 slots of the ring at 0", true),
                ("write service 192.0.2.1:80/tcp", true),
                ("empty backend 3", true),
                ("forget flows of 192.0.2.9:80/tcp, backend 3", true),
            ]
        );
    }

    #[test]
    fn a_plan_without_obstacles_is_complete() {
        let steps = [slots(0, 1), Step::RemoveBackend(3)];
        let mut store = Refusing {
            refused: Vec::new(),
            done: Vec::new(),
        };

        let outcome = run(&steps, &mut store);

        assert!(outcome.is_complete());
        assert_eq!(store.done, steps);
    }
}
