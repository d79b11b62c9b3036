//! The five laws of plans, against tables in memory and a model of the datapath.
//!
//! A story is a random sequence of desired states, of time that passes, of restarts and of strangers who
//! meddle with the tables. After every step of every plan the tables are looked at as a packet would.

mod rows;
mod tables;
mod wanted;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use fairlead_common::route::DEVICE_MASK;
use fairlead_common::service::{SLOTS_PER_PAGE, ServingKey, flags, forward, service_flags};
use imbl::OrdMap;
use proptest::prelude::*;

use self::tables::{Tables, is_safe};
use self::world::{Event, SOURCES, World, backend_at, busy_day, event, frontend, source, world};
use super::maglev::Sizes;
use super::services::{address, key};
use super::*;
use crate::desired::{self, BackendAddr};

/// Small, so that a story sees all slots, and of several sizes.
const SIZES: Sizes = Sizes {
    least: 16,
    most: 64,
    each: 4,
};
/// Flows of a service: one for each slot of the greatest ring.
const FLOWS: u32 = SIZES.most;
const WINDOW: Duration = Duration::from_mins(1);

/// Windows that end now: of rings, and of backends that retire.
struct Ended {
    rings: BTreeSet<u32>,
    backends: BTreeSet<BackendAddr>,
}

/// A story as it is told.
#[derive(Default)]
struct Story {
    tables: Tables,
    /// The tables as the last plan left them behind; absent after a restart and after meddling, and now and
    /// then: then they are read, and the plan looks at everything.
    known: Option<Actual>,
    memory: Memory,
    now: Duration,
    world: World,
    /// Connections by service and flow, and the backend each began with.
    connections: BTreeMap<(ServiceKey, u32), BackendAddr>,
    /// How many connections ever began.
    begun: u32,
    /// Backends that each service has or had when it was planned last; absent after meddling.
    belongs: Option<BTreeMap<ServiceKey, BTreeSet<BackendAddr>>>,
}

impl Story {
    fn happen(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Change(world) => {
                let before = std::mem::replace(&mut self.world, *world);
                self.converge(&before)
            }
            Event::Wait(time) => {
                self.now += time;
                let before = self.world.clone();
                self.converge(&before)
            }
            Event::Restart => {
                self.memory = Memory::default();
                self.known = None;
                let before = self.world.clone();
                self.converge(&before)
            }
            Event::Reconnect => {
                self.connections.clear();
                self.connections_go_on();
                Ok(())
            }
            Event::Meddle(what, value) => {
                self.meddle(what, value);
                self.connections.clear();
                self.belongs = None;
                self.known = None;
                let before = self.world.clone();
                self.converge(&before)
            }
        }
    }

    fn meddle(&mut self, what: u32, value: u32) {
        let nth = value as usize;
        match what % 6 {
            0 => {
                let count = self.tables.slots.len().max(1);
                if let Some(slot) = self.tables.slots.values_mut().nth(nth % count) {
                    slot.current = value % 9;
                    slot.previous = value / 9 % 9;
                }
            }
            1 => {
                let keys: Vec<_> = self.tables.backends.keys().copied().collect();
                if let Some(id) = keys.get(nth % keys.len().max(1)) {
                    self.tables.backends.remove(id);
                }
            }
            2 => {
                let count = self.tables.services.len().max(1);
                if let Some(row) = self.tables.services.values_mut().nth(nth % count) {
                    row.ring = value % 3 * 256;
                }
            }
            3 => {
                let keys: Vec<_> = self.tables.next_hops.keys().copied().collect();
                if let Some(id) = keys.get(nth % keys.len().max(1)) {
                    self.tables.next_hops.remove(id);
                }
                if let Some(row) = self.tables.next_hops.values_mut().next() {
                    row.mtu = value;
                }
            }
            4 => {
                let row = SourceRange {
                    bits: 160,
                    service: value % 7,
                    ..SourceRange::default()
                };
                if !self.tables.source_ranges.remove(&row) {
                    self.tables.source_ranges.insert(row);
                }
            }
            _ => {
                let keys: Vec<_> = self.tables.services.keys().copied().collect();
                if let Some(service) = keys.get(nth % keys.len().max(1)) {
                    self.tables.services.remove(service);
                }
            }
        }
        // What flows remember may name anything now.
        self.tables.flows.clear();
    }

    /// Plans and applies until the plan asks for nothing more now, and checks every law on the way.
    fn converge(&mut self, before: &World) -> Result<(), TestCaseError> {
        for round in 0.. {
            prop_assert!(round < 3, "the plan does not come to an end");
            let again = self.round(before)?;
            if !again {
                return Ok(());
            }
        }
        Ok(())
    }

    fn round(&mut self, before: &World) -> Result<bool, TestCaseError> {
        let actual = self.known.take().unwrap_or_else(|| self.tables.actual());
        let was_safe = is_safe(&self.tables).is_ok();
        let plan = super::plan(&self.world.wanted(), &actual, &self.memory, self.now);

        let twin = super::plan(&self.world.wanted(), &actual, &self.memory, self.now);
        prop_assert_eq!(&plan, &twin, "law 5: the same plan");

        self.is_minimal(&plan.steps)?;
        let ended = |windows: &BTreeMap<u32, Duration>| -> BTreeSet<u32> {
            let ended = windows.iter().filter(|(_, until)| **until <= self.now);
            ended.map(|(of, _)| *of).collect()
        };
        let ended = Ended {
            rings: ended(&self.memory.transitions),
            backends: ended(&self.memory.retiring)
                .iter()
                .filter_map(|id| Some(self.tables.backend(*id)?.1))
                .collect(),
        };
        for (place, step) in plan.steps.iter().enumerate() {
            let Ok(()) = self.tables.apply(step);
            if was_safe {
                is_safe(&self.tables)?;
                self.packets_stay(before, &actual, &ended, place)?;
                self.sources_are_kept_out(before)?;
            }
        }
        is_safe(&self.tables)?;
        self.is_wanted(&plan)?;

        let again = super::plan(
            &self.world.wanted(),
            &self.tables.actual(),
            &plan.memory,
            self.now,
        );
        prop_assert_eq!(
            &plan.tables,
            &self.tables.actual(),
            "law 1: they are as foretold"
        );
        self.is_what_a_look_at_everything_finds(&plan)?;
        let asks_again = plan.wake == Some(self.now);
        if !asks_again {
            prop_assert_eq!(&again.steps, &[], "law 2: nothing is left to do");
            prop_assert_eq!(&again.memory, &plan.memory);
            prop_assert_eq!(again.wake, plan.wake);
        }
        self.memory = plan.memory;
        self.known = Some(plan.tables);
        self.connections_go_on();
        Ok(asks_again)
    }

    /// A plan that looks at a part leaves nothing for one that looks at everything, and says what it says.
    fn is_what_a_look_at_everything_finds(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let memory = Memory {
            ledger: Ledger::default(),
            ..plan.memory.clone()
        };
        let whole = super::plan(
            &self.world.wanted(),
            &self.tables.actual(),
            &memory,
            self.now,
        );
        if plan.wake != Some(self.now) {
            prop_assert_eq!(&whole.steps, &[], "a part was left out");
        }
        prop_assert_eq!(&whole.programmed, &plan.programmed);
        prop_assert_eq!(&whole.conditions, &plan.conditions);
        prop_assert_eq!(
            &whole.memory.ledger,
            &plan.memory.ledger,
            "the ledger is true"
        );
        Ok(())
    }

    /// Law 4: every step changes something, nothing is written twice, and of a ring in use only the
    /// slots that differ are written.
    fn is_minimal(&self, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut tables = self.tables.clone();
        let used: BTreeSet<u32> = tables.actual().rings.keys().copied().collect();
        let mut written = BTreeSet::new();
        for step in steps {
            let name = match step {
                Step::PutNode(_) => "node".to_owned(),
                Step::PutDevice(device) => format!("device {}", device.ifindex & DEVICE_MASK),
                Step::RemoveDevice(row) => format!("device {row}"),
                Step::PutNextHop(id, _) | Step::RemoveNextHop(id) => format!("next hop {id}"),
                Step::PutBackend(id, _) | Step::RemoveBackend(id) => format!("backend {id}"),
                Step::PutSlots { ring, slots } => {
                    prop_assert!(!slots.is_empty());
                    for (offset, slot) in slots.iter().filter(|_| used.contains(ring)) {
                        prop_assert_ne!(tables.slots.get(&(ring + offset)), Some(&slot));
                    }
                    format!("ring {ring}")
                }
                Step::PutSourceRange(range) | Step::RemoveSourceRange(range) => {
                    format!("source range {range:?}")
                }
                Step::PutService(service, _) | Step::RemoveService(service) => {
                    format!("service {service:?}")
                }
                Step::PutAddress(addr, _) | Step::RemoveAddress(addr) => format!("address {addr}"),
                Step::PutSieve(_) => "sieve".to_owned(),
                Step::ClearCounts { .. } => "counts".to_owned(),
                Step::PutServing(key) | Step::RemoveServing(key) => format!("serving {key:?}"),
                Step::PutArrival(key, _) | Step::RemoveArrival(key) => format!("arrival {key:?}"),
                Step::ForgetFlows { .. } => "flows".to_owned(),
            };
            prop_assert!(written.insert(name), "law 4: {step:?} comes twice");
            let before = tables.clone();
            let Ok(()) = tables.apply(step);
            prop_assert_eq!(tables.uncleared(&before), None, "new ids count from zero");
            let may_be_idle = match step {
                Step::ClearCounts { .. } | Step::ForgetFlows { .. } => true,
                Step::PutSlots { ring, .. } => !used.contains(ring),
                Step::PutNode(_)
                | Step::PutDevice(_)
                | Step::RemoveDevice(_)
                | Step::PutNextHop(..)
                | Step::RemoveNextHop(_)
                | Step::PutBackend(..)
                | Step::RemoveBackend(_)
                | Step::PutSourceRange(_)
                | Step::RemoveSourceRange(_)
                | Step::PutServing(_)
                | Step::RemoveServing(_)
                | Step::PutArrival(..)
                | Step::RemoveArrival(_)
                | Step::PutService(..)
                | Step::RemoveService(_)
                | Step::PutAddress(..)
                | Step::RemoveAddress(_)
                | Step::PutSieve(_) => false,
            };
            prop_assert!(
                may_be_idle || tables != before,
                "law 4: {step:?} changes nothing"
            );
        }
        Ok(())
    }

    /// Law 3, as packets see it: a new flow goes to a backend of its own service, before or after; one
    /// that began stays with its backend while that serves and no window ends.
    fn packets_stay(
        &self,
        before: &World,
        actual: &Actual,
        ended: &Ended,
        place: usize,
    ) -> Result<(), TestCaseError> {
        for frontend in (0..5).map(frontend) {
            let service = key(&frontend);
            for flow in 0..FLOWS {
                let sent = self.tables.route(service, flow, true);
                if let (Some((_, _, at)), Some(belongs)) = (sent, &self.belongs) {
                    let was = belongs
                        .get(&service)
                        .is_some_and(|known| known.contains(&at));
                    let is = self.world.desired.services.get(&frontend);
                    let is = is.is_some_and(|service| service.backends.contains_key(&at));
                    prop_assert!(
                        was || is,
                        "step {place}: {frontend} reaches a stranger, {at}"
                    );
                }
            }
        }
        for ((service, flow), at) in &self.connections {
            let ends = actual
                .services
                .get(service)
                .is_some_and(|row| ended.rings.contains(&row.ring));
            let serves = before.serves(*service, at) && self.world.serves(*service, at);
            if ends || ended.backends.contains(at) || !serves {
                continue;
            }
            let sent = self.tables.follow(*service, *flow);
            prop_assert_eq!(
                sent,
                Some(*at),
                "step {}: {:?} of {:?} moved",
                place,
                flow,
                service
            );
        }
        Ok(())
    }

    /// Connections that were moved or lost begin anew; every other flow has one too.
    fn connections_go_on(&mut self) {
        let mut belongs = BTreeMap::new();
        for (frontend, service) in &self.world.desired.services {
            let service_key = key(frontend);
            belongs.insert(service_key, service.backends.keys().copied().collect());
            for place in 0..FLOWS {
                let known = self
                    .connections
                    .keys()
                    .find(|(service, flow)| *service == service_key && flow % FLOWS == place);
                let known = known.copied();
                let goes_on = known.is_some_and(|flow| {
                    self.tables.follow(flow.0, flow.1) == self.connections.get(&flow).copied()
                });
                if goes_on {
                    continue;
                }
                // Its ports are not used again soon: what is remembered of the old one stays.
                known.map(|flow| self.connections.remove(&flow));
                self.begun += 1;
                let flow = self.begun * FLOWS + place;
                if let Some(at) = self.tables.begin(service_key, flow) {
                    self.connections.insert((service_key, flow), at);
                }
            }
        }
        self.connections
            .retain(|(service, _), _| belongs.contains_key(service));
        self.belongs = Some(belongs);
    }

    /// Lets every window end: what is left is what a node without a past would have.
    fn rest(&mut self) -> Result<(), TestCaseError> {
        for round in 0.. {
            prop_assert!(round < 10, "windows do not come to an end");
            let before = self.world.clone();
            self.converge(&before)?;
            let wanted = self.world.wanted();
            match super::plan(&wanted, &self.tables.actual(), &self.memory, self.now).wake {
                Some(wake) => self.now = wake,
                None => break,
            }
        }
        let sets: BTreeSet<_> = self
            .world
            .desired
            .services
            .values()
            .map(|service| self.world.members(service))
            .filter(|members| !members.is_empty())
            .collect();
        let actual = self.tables.actual();
        prop_assert_eq!(actual.rings.len(), sets.len(), "equal members share a ring");
        prop_assert!(
            actual
                .rings
                .values()
                .flat_map(|slots| slots.iter())
                .all(|slot| slot.previous == 0)
        );
        let mut backends: BTreeSet<_> = sets.iter().flatten().map(|(at, _)| *at).collect();
        let arrivals = self.arrivals_are_wanted()?;
        backends.extend(
            arrivals
                .iter()
                .map(|id| self.tables.backend(*id).unwrap().1),
        );
        let rows: BTreeSet<_> = actual.backends.values().map(address).collect();
        prop_assert_eq!(rows, backends);
        prop_assert_eq!(actual.backends.len(), self.tables.backends.len());
        prop_assert!(
            self.tables.flows.is_empty(),
            "nothing is remembered: {:?}",
            self.tables.flows
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn plans_obey_their_laws(events in proptest::collection::vec(event(), 1..12)) {
        let mut story = Story::default();
        for event in events {
            story.happen(event)?;
        }
        story.rest()?;
    }

    #[test]
    fn plans_obey_their_laws_on_a_busy_day(events in busy_day()) {
        let mut story = Story::default();
        for event in events {
            story.happen(event)?;
        }
        story.rest()?;
    }

    /// A node that comes to a state by any way has the same rings as one that was always there.
    #[test]
    fn the_past_leaves_no_trace_in_rings(first in world(), then in world()) {
        let rings = |worlds: &[&World]| -> Result<BTreeMap<ServiceKey, Vec<BackendAddr>>, TestCaseError> {
            let mut story = Story::default();
            for world in worlds {
                story.happen(Event::Change(Box::new((*world).clone())))?;
            }
            story.rest()?;
            Ok(story.tables.services.iter().map(|(service, row)| {
                let slots = story.tables.ring(row).into_iter();
                (*service, slots.map(|slot| story.tables.backend(slot.current).unwrap().1).collect())
            }).collect())
        };

        prop_assert_eq!(rings(&[&first, &then])?, rings(&[&then])?);
    }
}

#[test]
fn the_model_of_safety_sees_what_is_unsafe() {
    let mut story = Story::default();
    let mut world = World {
        reach: OrdMap::unit(backend_at(2).addr, Reach::OnLink),
        ..World::default()
    };
    let backend = desired::Backend {
        ready: true,
        serving: true,
        weight: 1,
        home: desired::Home::Bare,
    };
    let service = desired::Service {
        backends: Arc::new([(backend_at(2), backend)].into()),
        ..desired::Service::default()
    };
    world.desired.services.insert(frontend(1), service.into());
    story.happen(Event::Change(Box::new(world))).unwrap();
    assert!(is_safe(&story.tables).is_ok());

    let mut missing_backend = story.tables.clone();
    missing_backend.backends.clear();
    assert!(is_safe(&missing_backend).is_err());

    let mut missing_ring = story.tables.clone();
    missing_ring
        .services
        .values_mut()
        .for_each(|row| row.ring += SLOTS_PER_PAGE);
    assert!(is_safe(&missing_ring).is_err());

    let mut reused = story.tables.clone();
    let id = *reused.backends.keys().next().unwrap();
    reused
        .flows
        .insert((key(&frontend(1)), 0), (id, backend_at(4)));
    assert!(is_safe(&reused).is_err());
}
