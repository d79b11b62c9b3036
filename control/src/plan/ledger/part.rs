//! The part of everything that a change can touch, closed along the lines between services and backends.
//!
//! Not for what is known of the rest: that is the ledger's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::service::{self as rows, ServiceKey};
use imbl::OrdMap;

use super::{Ledger, named};
use crate::desired::{BackendAddr, Desired, Frontend, Service};
use crate::plan::Memory;
use crate::plan::services::{address, frontend, key};

/// Services, rings and backends that a change can touch.
#[derive(Debug, Default)]
pub(in crate::plan) struct Part {
    pub(super) services: BTreeSet<Frontend>,
    pub(super) keys: BTreeSet<ServiceKey>,
    pub(super) rings: BTreeSet<u32>,
    pub(super) ids: BTreeSet<u32>,
    pub(super) addresses: BTreeSet<BackendAddr>,
}

impl Part {
    /// The services of a part that are wanted.
    pub(in crate::plan) fn wanted(&self, desired: &Desired) -> OrdMap<Frontend, Arc<Service>> {
        if desired.services.keys().eq(&self.services) {
            return desired.services.clone();
        }
        let services = self.services.iter();
        let wanted = services.filter_map(|of| Some((*of, Arc::clone(desired.services.get(of)?))));
        wanted.collect()
    }

    /// What plans must know of earlier plans for this part, and what they must know for the rest.
    pub(in crate::plan) fn divide(&self, memory: &Memory) -> (Memory, Memory) {
        let divide = |windows: &BTreeMap<u32, Duration>, part: &BTreeSet<u32>| {
            let windows = windows.iter().map(|(of, until)| (*of, *until));
            windows.partition::<BTreeMap<_, _>, _>(|(of, _)| part.contains(of))
        };
        let (transitions, others) = divide(&memory.transitions, &self.rings);
        let (retiring, rest) = divide(&memory.retiring, &self.ids);
        let of = |transitions, retiring| Memory {
            transitions,
            retiring,
            ledger: Ledger::default(),
        };
        (of(transitions, retiring), of(others, rest))
    }
}

/// Whatever the lines connect.
pub(super) enum Place {
    Service(Frontend),
    Key(ServiceKey),
    Ring(u32),
    Id(u32),
    Address(BackendAddr),
}

/// A part that grows along the lines.
pub(super) struct Growing<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) wanted: &'a Desired,
    pub(super) part: Part,
    pub(super) open: Vec<Place>,
}

impl Growing<'_> {
    pub(super) fn add(&mut self, place: Place) {
        let is_new = match &place {
            Place::Service(frontend) => self.part.services.insert(*frontend),
            Place::Key(key) => self.part.keys.insert(*key),
            Place::Ring(ring) => self.part.rings.insert(*ring),
            Place::Id(id) => self.part.ids.insert(*id),
            Place::Address(at) => self.part.addresses.insert(*at),
        };
        if is_new {
            self.open.push(place);
        }
    }

    pub(super) fn close(mut self) -> Part {
        let ledger = self.ledger;
        while let Some(place) = self.open.pop() {
            match place {
                Place::Service(of) => {
                    let before = ledger.services.get(&of);
                    let now = self.wanted.services.get(&of);
                    if ledger.knows_addresses() {
                        for service in before.into_iter().chain(now) {
                            for at in service.backends.keys() {
                                self.add(Place::Address(*at));
                            }
                        }
                    }
                    self.add(Place::Key(key(&of)));
                }
                Place::Key(key) => {
                    self.add(Place::Service(frontend(&key)));
                    // A row of `ARRIVALS` is for both scopes.
                    self.add(Place::Key(twin(&key)));
                    for id in ledger.arriving_for(&key) {
                        self.add(Place::Id(id));
                    }
                    if let Some(row) = ledger.tables.services.get(&key)
                        && row.slots > 0
                    {
                        self.add(Place::Ring(row.ring));
                    }
                }
                Place::Ring(ring) => {
                    let users = ledger.using.range((ring, ServiceKey::default())..);
                    for (_, key) in users.take_while(|(of, _)| *of == ring) {
                        self.add(Place::Key(*key));
                    }
                    for id in ledger
                        .tables
                        .rings
                        .get(&ring)
                        .iter()
                        .flat_map(|slots| named(slots))
                    {
                        self.add(Place::Id(id));
                    }
                }
                Place::Id(id) => {
                    if let Some(row) = ledger.tables.backends.get(&id) {
                        self.add(Place::Address(address(row)));
                    }
                    for (_, ring) in ledger
                        .naming
                        .range((id, 0)..)
                        .take_while(|(of, _)| *of == id)
                    {
                        self.add(Place::Ring(*ring));
                    }
                    for key in ledger.arriving_at(id) {
                        let service = ServiceKey::new(key.service, key.port, key.proto);
                        self.add(Place::Key(service));
                    }
                }
                Place::Address(at) => {
                    for (_, id) in ledger.ids.range((at, 0)..).take_while(|(of, _)| *of == at) {
                        self.add(Place::Id(*id));
                    }
                    let services = ledger.wanting.range((at, Frontend::FIRST)..);
                    for (_, of) in services.take_while(|(of, _)| *of == at) {
                        self.add(Place::Service(*of));
                    }
                }
            }
        }
        self.part
    }
}

/// The same service for the clients of the other scope.
const fn twin(key: &ServiceKey) -> ServiceKey {
    let outside = ServiceKey::new(key.addr, key.port, key.proto);
    if key.scope == rows::scope::INSIDE {
        outside
    } else {
        outside.inside()
    }
}
