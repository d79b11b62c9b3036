//! The kernel's tables in memory, and what a packet sees of them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use fairlead_common::addr::Addr;
use fairlead_common::hash;
use fairlead_common::route::{DEVICE_MASK, Device, Node};
use fairlead_common::served::Sieve;
use fairlead_common::service::{
    Arrival, ArrivalKey, Backend, NextHop, SLOTS_PER_PAGE, Service, ServiceKey, ServingKey, Slot,
    SourceRange, flags, forward, service_flags,
};
use fairlead_common::tables::RING_PAGES;
use imbl::OrdMap;
use ipnetwork::IpNetwork;
use proptest::prelude::*;

use super::FLOWS;
use crate::desired::BackendAddr;
use crate::plan::services::address;
use crate::plan::{Actual, Step, Store};

/// The kernel's tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tables {
    pub(super) services: BTreeMap<ServiceKey, Service>,
    pub(super) backends: BTreeMap<u32, Backend>,
    pub(super) next_hops: BTreeMap<u32, NextHop>,
    pub(super) slots: BTreeMap<u32, Slot>,
    pub(super) serving: BTreeSet<ServingKey>,
    pub(super) arrivals: BTreeMap<ArrivalKey, Arrival>,
    pub(super) node: Option<Node>,
    pub(super) devices: BTreeMap<u32, Device>,
    pub(super) addresses: BTreeMap<Addr, u32>,
    pub(super) sieve: Box<Sieve>,
    pub(super) source_ranges: BTreeSet<SourceRange>,
    /// Ids of services and of backends whose counters were cleared.
    pub(super) cleared: (BTreeSet<u32>, BTreeSet<u32>),
    /// `FLOWS`, with the address that the backend had when the flow was remembered.
    pub(super) flows: BTreeMap<(ServiceKey, u32), (u32, BackendAddr)>,
}

impl Store for Tables {
    type Error = Infallible;

    fn apply(&mut self, step: &Step) -> Result<(), Infallible> {
        match step.clone() {
            Step::PutNode(node) => self.node = Some(*node),
            Step::PutDevice(device) => {
                self.devices.insert(device.ifindex & DEVICE_MASK, device);
            }
            Step::RemoveDevice(row) => {
                self.devices.remove(&row);
            }
            Step::PutNextHop(id, row) => {
                self.next_hops.insert(id, row);
            }
            Step::RemoveNextHop(id) => {
                self.next_hops.remove(&id);
            }
            Step::PutBackend(id, row) => {
                self.backends.insert(id, row);
            }
            Step::RemoveBackend(id) => {
                self.cleared.1.remove(&id);
                self.backends.remove(&id);
            }
            Step::PutSlots { ring, slots } => {
                self.slots
                    .extend(slots.iter().map(|(offset, slot)| (ring + offset, slot)));
            }
            Step::PutSourceRange(range) => {
                self.source_ranges.insert(range);
            }
            Step::RemoveSourceRange(range) => {
                self.source_ranges.remove(&range);
            }
            Step::PutService(key, row) => {
                let before = self.services.insert(key, row);
                if let Some(before) = before.filter(|before| before.id != row.id) {
                    self.cleared.0.remove(&before.id);
                }
            }
            Step::RemoveService(key) => {
                if let Some(row) = self.services.remove(&key) {
                    self.cleared.0.remove(&row.id);
                }
            }
            Step::ClearCounts { services, backends } => {
                self.cleared.0.extend(services);
                self.cleared.1.extend(backends);
            }
            Step::PutAddress(addr, flags) => {
                self.addresses.insert(addr, flags);
            }
            Step::RemoveAddress(addr) => {
                self.addresses.remove(&addr);
            }
            Step::PutSieve(sieve) => self.sieve = sieve,
            Step::PutServing(key) => {
                self.serving.insert(key);
            }
            Step::RemoveServing(key) => {
                self.serving.remove(&key);
            }
            Step::PutArrival(key, row) => {
                self.arrivals.insert(key, row);
            }
            Step::RemoveArrival(key) => {
                self.arrivals.remove(&key);
            }
            Step::ForgetFlows { services, backends } => {
                self.flows.retain(|(service, _), (id, _)| {
                    !services.contains(service) && !backends.contains(id)
                });
            }
        }
        Ok(())
    }

    fn observe(&self) -> Result<Actual, Infallible> {
        let rings = self
            .services
            .values()
            .filter(|row| row.slots > 0)
            .map(|row| (row.ring, Arc::new(self.ring(row))))
            .collect();
        Ok(Actual {
            services: rows(&self.services),
            backends: rows(&self.backends),
            next_hops: rows(&self.next_hops),
            rings,
            serving: self.serving.iter().copied().collect(),
            arrivals: rows(&self.arrivals),
            node: self.node,
            devices: self.devices.clone(),
            addresses: rows(&self.addresses),
            sieve: self.sieve.clone(),
            source_ranges: self.source_ranges.iter().copied().collect(),
        })
    }
}

fn rows<K: Ord + Copy, V: Copy>(table: &BTreeMap<K, V>) -> OrdMap<K, V> {
    table.iter().map(|(key, row)| (*key, *row)).collect()
}

impl Tables {
    /// An id that one step gave to another owner while it still counts for the old one.
    pub(super) fn uncleared(&self, before: &Self) -> Option<u32> {
        let services = self.services.iter().filter(|(key, row)| {
            let known = before.services.get(key);
            known.map(|row| row.id) != Some(row.id) && !self.cleared.0.contains(&row.id)
        });
        let backends = self
            .backends
            .keys()
            .filter(|id| !before.backends.contains_key(id) && !self.cleared.1.contains(id));
        services
            .map(|(_, row)| row.id)
            .chain(backends.copied())
            .next()
    }

    pub(super) fn ring(&self, row: &Service) -> Vec<Slot> {
        (row.ring..row.ring + row.slots)
            .map(|place| self.slots.get(&place).copied().unwrap_or_default())
            .collect()
    }

    pub(super) fn actual(&self) -> Actual {
        let Ok(actual) = self.observe();
        actual
    }

    pub(super) fn backend(&self, id: u32) -> Option<(&Backend, BackendAddr)> {
        let row = self
            .backends
            .get(&id)
            .filter(|row| row.forward != forward::FREE)?;
        Some((row, address(row)))
    }

    /// Where the datapath sends a packet, as `dataplane-ebpf` decides it: the slot's previous backend,
    /// the chosen one's id and its address.
    pub(super) fn route(
        &self,
        service: ServiceKey,
        flow: u32,
        is_new: bool,
    ) -> Option<(u32, u32, BackendAddr)> {
        let row = *self.services.get(&service).filter(|row| row.slots > 0)?;
        // Every slot of the greatest ring has its flow, and a slot is the upper bits of the hash.
        let hash = (flow % FLOWS) << (32 - FLOWS.trailing_zeros());
        let place = row.ring + hash::slot(hash, row.slots);
        let slot = self.slots.get(&place).copied().unwrap_or_default();
        let is_alive = |id: u32| {
            self.backend(id)
                .is_some_and(|(row, _)| row.flags & flags::ALIVE != 0)
        };
        let id = if slot.previous == 0 || is_new {
            slot.current
        } else {
            match self.flows.get(&(service, flow)) {
                Some((id, _)) if is_alive(*id) => *id,
                Some(_) => slot.current,
                None if is_alive(slot.previous) => slot.previous,
                None => slot.current,
            }
        };
        Some((slot.previous, id, self.backend(id)?.1))
    }

    /// Whether a service lets a source in, as the datapath asks: the source is the whole of a wanted prefix.
    pub(super) fn admits(&self, service: ServiceKey, source: IpNetwork) -> bool {
        self.services.get(&service).is_some_and(|row| {
            let range = SourceRange::new(row.id, Addr::new(source.ip()), source.prefix());
            row.flags & service_flags::SOURCE_RANGES == 0 || self.source_ranges.contains(&range)
        })
    }

    /// Begins a flow.
    pub(super) fn begin(&mut self, service: ServiceKey, flow: u32) -> Option<BackendAddr> {
        let (previous, id, at) = self.route(service, flow, true)?;
        if previous != 0 {
            self.flows.insert((service, flow), (id, at));
        }
        Some(at)
    }

    /// Where a packet of a flow goes that has begun.
    pub(super) fn follow(&self, service: ServiceKey, flow: u32) -> Option<BackendAddr> {
        self.route(service, flow, false).map(|(_, _, at)| at)
    }
}

/// Law 3: what must hold at every moment.
pub(super) fn is_safe(tables: &Tables) -> Result<(), TestCaseError> {
    for (service, row) in tables.services.iter().filter(|(_, row)| row.slots > 0) {
        prop_assert!(row.ring + row.slots <= RING_PAGES * SLOTS_PER_PAGE);
        for slot in tables.ring(row) {
            prop_assert!(
                tables.backend(slot.current).is_some(),
                "{service:?} names {slot:?}"
            );
            let previous = slot.previous == 0 || tables.backend(slot.previous).is_some();
            prop_assert!(previous, "{service:?} names {slot:?}");
        }
    }
    for (id, row) in &tables.backends {
        let has_next_hop = row.next_hop == 0 || tables.next_hops.contains_key(&row.next_hop);
        prop_assert!(has_next_hop, "backend {id} names {}", row.next_hop);
        let serving = ServingKey::new(row.addr, row.port);
        let is_translated = matches!(row.forward, forward::HERE | forward::NAT);
        let is_heard = !is_translated || tables.serving.contains(&serving);
        prop_assert!(
            is_heard,
            "backend {id} is translated to, and its answers are not back"
        );
    }
    for (key, row) in &tables.arrivals {
        let backend = tables.backend(row.backend).map(|(backend, _)| *backend);
        let is_here = backend
            .is_some_and(|backend| backend.forward == forward::HERE && backend.addr == key.backend);
        prop_assert!(is_here, "{key:?} is for {backend:?}");
    }
    for (flow, (id, began_at)) in &tables.flows {
        if let Some((_, at)) = tables.backend(*id) {
            prop_assert_eq!(at, *began_at, "id {} of {:?} was used again", id, flow);
        }
    }
    Ok(())
}
