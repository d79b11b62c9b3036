//! What is known from plan to plan: what the tables hold, what was wanted, and who names whom.
//!
//! ```text
//!   service ── wants ──> address ── has ──> id <── names ── ring <── uses ── service
//!   service of either scope ── receives ──> arrival ── is for ──> id
//! ```
//! Services that are not connected by these lines have nothing in common but free ids and free places. So a plan
//! looks at the parts in which something has changed, closed along the lines, and comes to what a plan of
//! everything would come to; its cost follows the change, not the number of services.
//!
//! All tables here are persistent: a copy costs nothing, and a change of a copy a few nodes. So a plan stays a
//! function, and whoever holds an older state keeps it.
//!
//! Not for deciding anything: `plan::services` plans the part.

mod gaps;
mod part;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::Port;
use fairlead_common::service::{
    self as rows, Arrival, ArrivalKey, Backend, ServiceKey, ServingKey, Slot, SourceRange,
};
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};

use self::gaps::Gaps;
pub(super) use self::part::Part;
use self::part::{Growing, Place};
use super::services::here::node_flags;
use super::services::{address, key};
use super::{Actual, Memory, Reach, Step, Wanted, Way};
use crate::desired::{BackendAddr, Condition, Desired, Frontend, Service};

/// What is known from plan to plan. It may be lost: then everything has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) tables: Actual,
    services: OrdMap<Frontend, Arc<Service>>,
    reach: OrdMap<IpAddr, Reach>,
    ways: OrdMap<IpAddr, Way>,
    devices: BTreeMap<u32, [u8; 6]>,
    /// The node's own addresses.
    node: BTreeSet<IpAddr>,
    /// (backend, service that wants it).
    wanting: OrdSet<(BackendAddr, Frontend)>,
    /// Backend ids without a row.
    pub(super) gaps: Gaps,
    /// (backend, its id); of a row that was written twice both.
    ids: OrdSet<(BackendAddr, u32)>,
    /// (backend id, ring whose slots name it).
    naming: OrdSet<(u32, u32)>,
    /// (ring, service that uses it).
    using: OrdSet<(u32, ServiceKey)>,
    /// (next hop, backend id that names it).
    behind: OrdSet<(u32, u32)>,
    /// (backend id, row of `ARRIVALS` that names it).
    arriving: OrdSet<(u32, ArrivalKey)>,
    /// Backends of which the node's row says something, and what.
    said: OrdMap<u32, u32>,
    pub(super) programmed: OrdMap<Frontend, u32>,
    conditions: OrdMap<Frontend, Vec<Condition>>,
    /// Services for whose rings there was no room.
    waiting: BTreeSet<Frontend>,
    /// The conditions of the table of addresses; unknown before it was planned.
    of_addresses: Option<Vec<Condition>>,
}

/// What came of planning a part.
pub(super) struct Planned {
    pub(super) programmed: BTreeMap<Frontend, u32>,
    pub(super) conditions: Vec<(Frontend, Condition)>,
    pub(super) of_addresses: Vec<Condition>,
    pub(super) waiting: BTreeSet<Frontend>,
}

impl Ledger {
    /// A ledger of tables that were read, when nothing is known of what was wanted.
    pub(super) fn of(tables: &Actual) -> Self {
        let mut ledger = Self {
            tables: tables.clone(),
            ..Self::default()
        };
        for (id, row) in &tables.backends {
            ledger.note_backend(*id, row);
        }
        for (ring, slots) in &tables.rings {
            let named = named(slots).into_iter();
            ledger.naming.extend(named.map(|id| (id, *ring)));
        }
        for (key, row) in tables.services.iter().filter(|(_, row)| row.slots > 0) {
            ledger.using.insert((row.ring, *key));
        }
        for (key, row) in &tables.arrivals {
            ledger.arriving.insert((row.backend, *key));
        }
        ledger
    }

    /// The part of everything in which something has changed or a window has ended.
    pub(super) fn part(&self, wanted: &Wanted<'_>, memory: &Memory, now: Duration) -> Part {
        let mut part = Growing {
            ledger: self,
            wanted: wanted.desired,
            part: Part::default(),
            open: Vec::new(),
        };
        for change in self.services.diff(&wanted.desired.services) {
            part.add(Place::Service(*of_diff(&change)));
        }
        for service in &self.waiting {
            part.add(Place::Service(*service));
        }
        if self.services.is_empty() {
            self.add_tables(&mut part, memory);
            return part.close();
        }
        let reach = self
            .reach
            .diff(wanted.reach)
            .map(|change| *of_diff(&change));
        let ways = self.ways.diff(wanted.ways).map(|change| *of_diff(&change));
        for addr in reach.chain(ways).collect::<BTreeSet<_>>() {
            let first = BackendAddr { addr, port: 0 };
            let rows = self.ids.range((first, 0)..);
            for (_, id) in rows.take_while(|(at, _)| at.addr == addr) {
                part.add(Place::Id(*id));
            }
            let services = self.wanting.range((first, Frontend::FIRST)..);
            for (at, _) in services.take_while(|(at, _)| at.addr == addr) {
                part.add(Place::Address(*at));
            }
        }
        for (hop, row) in &self.tables.next_hops {
            let device = row.ifindex;
            if self.devices.get(&device) != wanted.host.devices.get(&device) {
                for id in self.behind_of(*hop) {
                    part.add(Place::Id(id));
                }
            }
        }
        let due = |windows: &BTreeMap<u32, Duration>| -> Vec<u32> {
            let due = windows.iter().filter(|(_, until)| **until <= now);
            due.map(|(of, _)| *of).collect()
        };
        for ring in due(&memory.transitions) {
            part.add(Place::Ring(ring));
        }
        for id in due(&memory.retiring) {
            part.add(Place::Id(id));
        }
        part.close()
    }

    /// Nothing is known of what was wanted: everything in the tables is looked at.
    fn add_tables(&self, part: &mut Growing<'_>, memory: &Memory) {
        for key in self.tables.services.keys() {
            part.add(Place::Key(*key));
        }
        let rings = self.tables.rings.keys();
        for ring in rings.chain(memory.transitions.keys()) {
            part.add(Place::Ring(*ring));
        }
        let backends = self.tables.backends.keys();
        for id in backends.chain(memory.retiring.keys()) {
            part.add(Place::Id(*id));
        }
    }

    /// What the tables hold of a part, for a plan of nothing else.
    pub(super) fn tables_of(&self, part: &Part) -> Actual {
        let tables = &self.tables;
        let rows = part.keys.iter();
        let rings = part.rings.iter();
        let backends = part.ids.iter();
        Actual {
            services: rows
                .filter_map(|key| Some((*key, *tables.services.get(key)?)))
                .collect(),
            rings: rings
                .filter_map(|ring| Some((*ring, tables.rings.get(ring)?.clone())))
                .collect(),
            backends: backends
                .filter_map(|id| Some((*id, *tables.backends.get(id)?)))
                .collect(),
            next_hops: tables.next_hops.clone(),
            source_ranges: self.source_ranges_of(part),
            serving: self.serving_of(part),
            arrivals: self.arrivals_of(part),
            ..Actual::default()
        }
    }

    fn source_ranges_of(&self, part: &Part) -> OrdSet<SourceRange> {
        if self.services.is_empty() {
            return self.tables.source_ranges.clone();
        }
        let rows = part.keys.iter();
        let ids: BTreeSet<u32> = rows
            .filter_map(|key| Some(self.tables.services.get(key)?.id))
            .collect();
        let ranges = self.tables.source_ranges.iter();
        ranges
            .filter(|range| ids.contains(&range.service))
            .copied()
            .collect()
    }

    /// Whether addresses connect anything, and rows are found by them.
    fn knows_addresses(&self) -> bool {
        !(self.services.is_empty() && self.ids.is_empty())
    }

    fn serving_of(&self, part: &Part) -> OrdSet<ServingKey> {
        if self.services.is_empty() {
            return self.tables.serving.clone();
        }
        let keys = part.addresses.iter();
        keys.map(|at| ServingKey::new(at.addr.into(), Port::new(at.port)))
            .filter(|key| self.tables.serving.contains(key))
            .collect()
    }

    fn arrivals_of(&self, part: &Part) -> OrdMap<ArrivalKey, Arrival> {
        if self.services.is_empty() {
            return self.tables.arrivals.clone();
        }
        let keys = part.ids.iter().flat_map(|id| self.arriving_at(*id));
        keys.filter_map(|key| Some((key, *self.tables.arrivals.get(&key)?)))
            .collect()
    }

    /// The rows of `ARRIVALS` that name a backend.
    fn arriving_at(&self, id: u32) -> impl Iterator<Item = ArrivalKey> {
        let rows = self.arriving.range((id, ArrivalKey::default())..);
        rows.take_while(move |(of, _)| *of == id)
            .map(|(_, key)| *key)
    }

    /// The backends that rows of `ARRIVALS` name for a service.
    fn arriving_for(&self, service: &ServiceKey) -> impl Iterator<Item = u32> {
        let ServiceKey {
            addr, port, proto, ..
        } = *service;
        let first = ArrivalKey {
            service: addr,
            ..ArrivalKey::default()
        };
        let rows = self.tables.arrivals.range(first..);
        rows.take_while(move |(key, _)| key.service == addr)
            .filter(move |(key, _)| key.port == port && key.proto == proto)
            .map(|(_, row)| row.backend)
    }

    /// What the node's row must say of the backends outside of a part.
    pub(super) fn node_flags_outside(&self, part: &Part) -> u32 {
        let outside = self.said.iter().filter(|(id, _)| !part.ids.contains(id));
        outside.fold(0, |said, (_, flags)| said | flags)
    }

    /// Whether a row, a slot or a backend's window has this id.
    pub(super) fn is_id_taken(&self, id: u32, memory: &Memory) -> bool {
        self.tables.backends.contains_key(&id)
            || memory.retiring.contains_key(&id)
            || self
                .naming
                .range((id, 0)..)
                .next()
                .is_some_and(|(named, _)| *named == id)
    }

    /// Whether a row or a backend has this next hop.
    pub(super) fn is_next_hop_taken(&self, hop: u32) -> bool {
        self.tables.next_hops.contains_key(&hop) || self.behind_of(hop).next().is_some()
    }

    /// Whether a backend outside of a part is behind a next hop.
    pub(super) fn is_behind_outside(&self, hop: u32, part: &Part) -> bool {
        self.behind_of(hop).any(|id| !part.ids.contains(&id))
    }

    fn behind_of(&self, hop: u32) -> impl Iterator<Item = u32> {
        let rows = self.behind.range((hop, 0)..);
        rows.take_while(move |(of, _)| *of == hop)
            .map(|(_, id)| *id)
    }

    /// What is known once the steps of a plan were carried out.
    pub(super) fn after(
        mut self,
        wanted: &Wanted<'_>,
        part: &Part,
        steps: &[Step],
        planned: Planned,
    ) -> Self {
        for frontend in &part.services {
            for (at, _) in self
                .services
                .get(frontend)
                .iter()
                .flat_map(|known| known.backends.iter())
            {
                self.wanting.remove(&(*at, *frontend));
            }
            self.programmed.remove(frontend);
            self.conditions.remove(frontend);
            self.waiting.remove(frontend);
            if let Some(service) = wanted.desired.services.get(frontend) {
                let backends = service.backends.keys();
                self.wanting.extend(backends.map(|at| (*at, *frontend)));
            }
        }
        // Whatever differs was in the part. A map of our own would share nothing with the next one that is wanted, and
        // to find the difference every service would have to be looked at.
        self.services = wanted.desired.services.clone();
        self.programmed.extend(planned.programmed);
        for (frontend, condition) in planned.conditions {
            self.conditions.entry(frontend).or_default().push(condition);
        }
        self.waiting.extend(planned.waiting);
        self.of_addresses = Some(planned.of_addresses);
        self.reach = wanted.reach.clone();
        self.ways = wanted.ways.clone();
        self.devices.clone_from(&wanted.host.devices);
        self.node.clone_from(&wanted.desired.node.addresses);
        for step in steps {
            self.carry_out(step);
        }
        self
    }

    /// The rows of all services after these steps.
    pub(super) fn services_after(&self, steps: &[Step]) -> OrdMap<ServiceKey, rows::Service> {
        let mut tables = Actual {
            services: self.tables.services.clone(),
            ..Actual::default()
        };
        let of_services =
            |step: &&Step| matches!(step, Step::PutService(..) | Step::RemoveService(_));
        steps
            .iter()
            .filter(of_services)
            .for_each(|step| tables.carry_out(step));
        tables.services
    }

    /// The conditions of the table of addresses, where a part's services change nothing of it.
    pub(super) fn addresses(
        &self,
        part: &Part,
        desired: &Desired,
        rows: &OrdMap<ServiceKey, rows::Service>,
    ) -> Option<Vec<Condition>> {
        let served = |rows: &OrdMap<ServiceKey, rows::Service>, key: &ServiceKey| {
            rows.get(key).map(|row| row.slots > 0)
        };
        let is_as_before = |frontend: &Frontend| {
            let before = self
                .services
                .get(frontend)
                .map(|known| &known.address_kinds);
            let now = desired
                .services
                .get(frontend)
                .map(|known| &known.address_kinds);
            let key = key(frontend);
            before == now && served(&self.tables.services, &key) == served(rows, &key)
        };
        let node = &desired.node.addresses;
        let known = self.of_addresses.as_ref().filter(|_| self.node == *node)?;
        part.services
            .iter()
            .all(is_as_before)
            .then(|| known.clone())
    }

    /// What the conditions of all services are.
    pub(super) fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.values().flatten()
    }

    fn carry_out(&mut self, step: &Step) {
        match step {
            Step::PutBackend(id, row) => {
                self.forget_backend(*id);
                self.note_backend(*id, row);
            }
            Step::RemoveBackend(id) => self.forget_backend(*id),
            Step::PutSlots { ring, .. } => {
                self.forget_names(*ring);
                self.tables.carry_out(step);
                let slots = self.tables.rings.get(ring).into_iter();
                let named = slots.flat_map(|slots| named(slots)).map(|id| (id, *ring));
                self.naming.extend(named);
                return;
            }
            Step::PutService(key, row) => {
                self.leave_ring(key, Some(row.ring).filter(|_| row.slots > 0));
                if row.slots > 0 {
                    self.using.insert((row.ring, *key));
                }
            }
            Step::RemoveService(key) => self.leave_ring(key, None),
            Step::PutArrival(key, row) => {
                self.forget_arrival(key);
                self.arriving.insert((row.backend, *key));
            }
            Step::RemoveArrival(key) => self.forget_arrival(key),
            Step::PutServing(_)
            | Step::RemoveServing(_)
            | Step::PutNode(_)
            | Step::PutDevice(_)
            | Step::RemoveDevice(_)
            | Step::PutNextHop(..)
            | Step::RemoveNextHop(_)
            | Step::PutAddress(..)
            | Step::RemoveAddress(_)
            | Step::PutSieve(_)
            | Step::PutSourceRange(_)
            | Step::RemoveSourceRange(_)
            | Step::ClearCounts { .. }
            | Step::ForgetFlows { .. } => {}
        }
        self.tables.carry_out(step);
    }

    fn note_backend(&mut self, id: u32, row: &Backend) {
        self.gaps.take(id);
        self.ids.insert((address(row), id));
        self.behind.insert((row.next_hop, id));
        let said = node_flags(row);
        if said != 0 {
            self.said.insert(id, said);
        }
    }

    fn forget_backend(&mut self, id: u32) {
        if let Some(row) = self.tables.backends.get(&id) {
            self.ids.remove(&(address(row), id));
            self.behind.remove(&(row.next_hop, id));
            self.said.remove(&id);
            self.gaps.give(id);
        }
    }

    fn forget_arrival(&mut self, key: &ArrivalKey) {
        if let Some(row) = self.tables.arrivals.get(key) {
            self.arriving.remove(&(row.backend, *key));
        }
    }

    fn forget_names(&mut self, ring: u32) {
        for id in self
            .tables
            .rings
            .get(&ring)
            .iter()
            .flat_map(|slots| named(slots))
        {
            self.naming.remove(&(id, ring));
        }
    }

    /// A ring that nobody uses is no more.
    fn leave_ring(&mut self, service: &ServiceKey, next: Option<u32>) {
        let Some(before) = self
            .tables
            .services
            .get(service)
            .filter(|row| row.slots > 0)
        else {
            return;
        };
        let ring = before.ring;
        self.using.remove(&(ring, *service));
        let users = self.using.range((ring, ServiceKey::default())..);
        let rows = users
            .take_while(|(of, _)| *of == ring)
            .filter_map(|(_, key)| self.tables.services.get(key));
        // A ring is as long as its services say that it is.
        let length = rows.map(|row| row.slots as usize).max();
        if next != Some(ring) && length.is_none() {
            self.forget_names(ring);
            self.tables.rings.remove(&ring);
        } else if let (Some(held), Some(length)) = (self.tables.rings.get(&ring), length)
            && held.len() > length
        {
            let held = held[..length].to_vec();
            self.forget_names(ring);
            self.naming
                .extend(named(&held).into_iter().map(|id| (id, ring)));
            self.tables.rings.insert(ring, held.into());
        }
    }
}

/// Every id that slots name, ascending.
fn named(slots: &[Slot]) -> Vec<u32> {
    let mut named: Vec<u32> = slots.iter().map(|slot| slot.current).collect();
    named.extend(slots.iter().map(|slot| slot.previous).filter(|id| *id != 0));
    named.sort_unstable();
    named.dedup();
    named.retain(|id| *id != 0);
    named
}

/// The key of a row that differs.
const fn of_diff<'a, K, V>(change: &DiffItem<'a, 'a, K, V>) -> &'a K {
    match *change {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key,
        DiffItem::Update { old: (key, _), .. } => key,
    }
}
