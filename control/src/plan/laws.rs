//! The five laws of plans, against tables in memory and a model of the datapath.
//!
//! A story is a random sequence of desired states, of time that passes, of restarts and of strangers who
//! meddle with the tables. After every step of every plan the tables are looked at as a packet would.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use fairlead_common::route::DEVICE_MASK;
use fairlead_common::service::{flags, forward};
use fairlead_common::tables::{Backends, RING_PAGES, Table};
use fairlead_common::{addr::Proto, service::SLOTS_PER_PAGE};
use proptest::prelude::*;

use super::maglev::Member;
use super::services::{address, key};
use super::*;
use crate::desired::{self, BackendAddr, NodeState};

const SLOTS: u32 = 31;
const WINDOW: Duration = Duration::from_mins(1);

/// The kernel's tables.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tables {
    services: BTreeMap<ServiceKey, Service>,
    backends: BTreeMap<u32, Backend>,
    slots: BTreeMap<u32, Slot>,
    node: Option<Node>,
    devices: BTreeMap<u32, Device>,
    /// `FLOWS`, with the address that the backend had when the flow was remembered.
    flows: BTreeMap<(ServiceKey, u32), (u32, BackendAddr)>,
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
            Step::PutBackend(id, row) => {
                self.backends.insert(id, row);
            }
            Step::RemoveBackend(id) => {
                self.backends.remove(&id);
            }
            Step::PutSlots { ring, slots } => {
                self.slots.extend(
                    slots
                        .into_iter()
                        .map(|(offset, slot)| (ring + offset, slot)),
                );
            }
            Step::PutService(key, row) => {
                self.services.insert(key, row);
            }
            Step::RemoveService(key) => {
                self.services.remove(&key);
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
            .map(|row| (row.ring, self.ring(row)))
            .collect();
        Ok(Actual {
            services: self.services.clone(),
            backends: self.backends.clone(),
            rings,
            node: self.node,
            devices: self.devices.clone(),
        })
    }
}

impl Tables {
    fn ring(&self, row: &Service) -> Vec<Slot> {
        (row.ring..row.ring + row.slots)
            .map(|place| self.slots.get(&place).copied().unwrap_or_default())
            .collect()
    }

    fn actual(&self) -> Actual {
        let Ok(actual) = self.observe();
        actual
    }

    fn backend(&self, id: u32) -> Option<(&Backend, BackendAddr)> {
        let row = self
            .backends
            .get(&id)
            .filter(|row| row.forward != forward::FREE)?;
        Some((row, address(row)))
    }

    /// Where the datapath sends a packet, as `dataplane-ebpf` decides it: the slot's previous backend,
    /// the chosen one's id and its address.
    fn route(
        &self,
        service: ServiceKey,
        flow: u32,
        is_new: bool,
    ) -> Option<(u32, u32, BackendAddr)> {
        let row = *self.services.get(&service).filter(|row| row.slots > 0)?;
        let place = row.ring + flow % row.slots;
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

    /// Begins a flow.
    fn begin(&mut self, service: ServiceKey, flow: u32) -> Option<BackendAddr> {
        let (previous, id, at) = self.route(service, flow, true)?;
        if previous != 0 {
            self.flows.insert((service, flow), (id, at));
        }
        Some(at)
    }

    /// Where a packet of a flow goes that has begun.
    fn follow(&self, service: ServiceKey, flow: u32) -> Option<BackendAddr> {
        self.route(service, flow, false).map(|(_, _, at)| at)
    }
}

/// Law 3: what must hold at every moment.
fn is_safe(tables: &Tables) -> Result<(), TestCaseError> {
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
    for (flow, (id, began_at)) in &tables.flows {
        if let Some((_, at)) = tables.backend(*id) {
            prop_assert_eq!(at, *began_at, "id {} of {:?} was used again", id, flow);
        }
    }
    Ok(())
}

/// What a story's world wants.
#[derive(Clone, Debug, Default)]
struct World {
    desired: Desired,
    reach: BTreeMap<IpAddr, Reach>,
    host: Host,
}

impl World {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            desired: &self.desired,
            reach: &self.reach,
            host: &self.host,
            ring_slots: SLOTS,
            drain_window: WINDOW,
        }
    }

    fn reaches(&self, at: &BackendAddr) -> bool {
        self.reach
            .get(&at.addr)
            .is_some_and(|reach| *reach != Reach::Unreachable)
    }

    /// Who must be on the ring of a service.
    fn members(&self, service: &desired::Service) -> Vec<Member> {
        let of = |ready: bool| -> Vec<Member> {
            service
                .backends
                .iter()
                .filter(|(at, backend)| {
                    self.reaches(at) && (backend.ready || (!ready && backend.serving))
                })
                .map(|(at, backend)| (*at, backend.weight))
                .collect()
        };
        let ready = of(true);
        if ready.is_empty() { of(false) } else { ready }
    }

    fn serves(&self, service: ServiceKey, at: &BackendAddr) -> bool {
        let found = self
            .desired
            .services
            .iter()
            .find(|(frontend, _)| key(frontend) == service);
        found.is_some_and(|(_, service)| {
            let backend = service.backends.get(at);
            backend.is_some_and(|backend| backend.ready || backend.serving) && self.reaches(at)
        })
    }
}

/// What happens in a story.
#[derive(Clone, Debug)]
enum Event {
    Change(Box<World>),
    Wait(Duration),
    /// The agent starts anew: what only it knew is lost.
    Restart,
    /// Every client closes its connections and opens others.
    Reconnect,
    /// A stranger writes a slot, a backend's row or a service's.
    Meddle(u32, u32),
}

fn backend_at(number: u8) -> BackendAddr {
    let addr = if number.is_multiple_of(2) {
        IpAddr::from([10, 0, 0, number])
    } else {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)])
    };
    BackendAddr { addr, port: 80 }
}

fn frontend(number: u8) -> Frontend {
    Frontend {
        addr: IpAddr::from([192, 0, 2, number]),
        port: 80,
        proto: if number == 3 { Proto::UDP } else { Proto::TCP },
    }
}

fn world() -> impl Strategy<Value = World> {
    let backend = prop_oneof![
        6 => Just((true, true)),
        2 => Just((false, true)),
        1 => Just((false, false)),
    ];
    let backend = (backend, prop_oneof![4 => Just(1_u32), 1 => Just(3)]);
    let backends = proptest::collection::btree_map(0_u8..7, backend, 0..6);
    let services = proptest::collection::btree_map(0_u8..5, backends, 0..5);
    let reach = prop_oneof![
        5 => Just(Reach::OnLink),
        3 => Just(Reach::Routed),
        1 => Just(Reach::Unreachable),
    ];
    // Some services share what another one has.
    let alike = proptest::option::of((0_u8..5, 0_u8..5));
    let devices = proptest::collection::btree_map(1_u32..6, any::<[u8; 6]>(), 0..3);
    (
        services,
        proptest::collection::vec(reach, 7),
        alike,
        devices,
    )
        .prop_map(|(mut services, reach, alike, devices)| {
            if let Some((from, to)) = alike
                && let Some(backends) = services.get(&from).cloned()
            {
                services.insert(to, backends);
            }
            let services = services
                .into_iter()
                .map(|(number, backends)| {
                    let backends = backends
                        .into_iter()
                        .map(|(at, ((ready, serving), weight))| {
                            let backend = desired::Backend {
                                ready,
                                serving,
                                weight,
                            };
                            (backend_at(at), backend)
                        })
                        .collect();
                    let service = desired::Service {
                        backends,
                        ..desired::Service::default()
                    };
                    (frontend(number), service)
                })
                .collect();
            let reach = (0..7)
                .map(backend_at)
                .map(|at| at.addr)
                .zip(reach)
                .collect();
            World {
                desired: Desired {
                    node: NodeState {
                        name: "node1".to_owned(),
                        ..NodeState::default()
                    },
                    services,
                    ..Desired::default()
                },
                reach,
                host: Host {
                    devices,
                    port_secret: 1,
                    ..Host::default()
                },
            }
        })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => world().prop_map(|world| Event::Change(Box::new(world))),
        3 => (0_u64..90).prop_map(|s| Event::Wait(Duration::from_secs(s))),
        1 => Just(Event::Restart),
        1 => (any::<u32>(), any::<u32>()).prop_map(|(what, value)| Event::Meddle(what, value)),
    ]
}

/// A day on which backends of one service come, drain and go faster than windows end, and every client
/// connects anew now and then.
fn busy_day() -> impl Strategy<Value = Vec<Event>> {
    let state = prop_oneof![
        4 => Just(Some((true, true))),
        3 => Just(Some((false, true))),
        2 => Just(None),
    ];
    let change = proptest::collection::vec(state, 6).prop_map(|states| {
        let backends = (0..6)
            .map(backend_at)
            .zip(states)
            .filter_map(|(at, state)| {
                let (ready, serving) = state?;
                Some((
                    at,
                    desired::Backend {
                        ready,
                        serving,
                        weight: 1,
                    },
                ))
            })
            .collect();
        let service = desired::Service {
            backends,
            ..desired::Service::default()
        };
        let mut world = World {
            reach: (0..6)
                .map(|n| (backend_at(n).addr, Reach::OnLink))
                .collect(),
            ..World::default()
        };
        world.desired.services.insert(frontend(1), service);
        Event::Change(Box::new(world))
    });
    let wait = prop_oneof![Just(20_u64), Just(30), Just(40), Just(60)];
    let wait = wait.prop_map(|s| Event::Wait(Duration::from_secs(s)));
    let event = prop_oneof![4 => change, 3 => wait, 1 => Just(Event::Reconnect)];
    proptest::collection::vec(event, 6..24)
}

/// Windows that end now: of rings, and of backends that retire.
struct Ended {
    rings: BTreeSet<u32>,
    backends: BTreeSet<BackendAddr>,
}

/// A story as it is told.
#[derive(Default)]
struct Story {
    tables: Tables,
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
                let before = self.world.clone();
                self.converge(&before)
            }
        }
    }

    fn meddle(&mut self, what: u32, value: u32) {
        let nth = value as usize;
        match what % 4 {
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
        let actual = self.tables.actual();
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
        let asks_again = plan.wake == Some(self.now);
        if !asks_again {
            prop_assert_eq!(&again.steps, &[], "law 2: nothing is left to do");
            prop_assert_eq!(&again.memory, &plan.memory);
            prop_assert_eq!(again.wake, plan.wake);
        }
        self.memory = plan.memory;
        self.connections_go_on();
        Ok(asks_again)
    }

    /// Law 4: every step changes something, nothing is written twice, and of a ring in use only the
    /// slots that differ are written.
    fn is_minimal(&self, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut tables = self.tables.clone();
        let used: BTreeSet<u32> = tables.actual().rings.into_keys().collect();
        let mut written = BTreeSet::new();
        for step in steps {
            let name = match step {
                Step::PutNode(_) => "node".to_owned(),
                Step::PutDevice(device) => format!("device {}", device.ifindex & DEVICE_MASK),
                Step::RemoveDevice(row) => format!("device {row}"),
                Step::PutBackend(id, _) | Step::RemoveBackend(id) => format!("backend {id}"),
                Step::PutSlots { ring, slots } => {
                    prop_assert!(!slots.is_empty());
                    for (offset, slot) in slots.iter().filter(|_| used.contains(ring)) {
                        prop_assert_ne!(tables.slots.get(&(ring + offset)), Some(slot));
                    }
                    format!("ring {ring}")
                }
                Step::PutService(service, _) | Step::RemoveService(service) => {
                    format!("service {service:?}")
                }
                Step::ForgetFlows { .. } => "flows".to_owned(),
            };
            prop_assert!(written.insert(name), "law 4: {step:?} comes twice");
            let before = tables.clone();
            let Ok(()) = tables.apply(step);
            let may_be_idle = match step {
                Step::ForgetFlows { .. } => true,
                Step::PutSlots { ring, .. } => !used.contains(ring),
                Step::PutNode(_)
                | Step::PutDevice(_)
                | Step::RemoveDevice(_)
                | Step::PutBackend(..)
                | Step::RemoveBackend(_)
                | Step::PutService(..)
                | Step::RemoveService(_) => false,
            };
            prop_assert!(
                may_be_idle || tables != before,
                "law 4: {step:?} changes nothing"
            );
        }
        Ok(())
    }

    /// Law 1: the tables say what is wanted.
    fn is_wanted(&self, plan: &Plan) -> Result<(), TestCaseError> {
        let tables = &self.tables;
        let keys: Vec<_> = self.world.desired.services.keys().map(key).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        prop_assert_eq!(tables.services.keys().copied().collect::<Vec<_>>(), sorted);
        let ids: BTreeSet<_> = tables.services.values().map(|row| row.id).collect();
        prop_assert_eq!(ids.len(), keys.len(), "service ids are distinct");
        prop_assert!(!ids.contains(&0));
        let mut named = BTreeSet::new();
        for (frontend, service) in &self.world.desired.services {
            let members = self.world.members(service);
            let row = tables.services[&key(frontend)];
            prop_assert_eq!(row.slots, if members.is_empty() { 0 } else { SLOTS });
            prop_assert_eq!(plan.programmed.contains_key(frontend), !members.is_empty());
            let ring = maglev::ring(&members, SLOTS);
            for (slot, member) in tables.ring(&row).into_iter().zip(ring) {
                named.extend([slot.current, slot.previous]);
                let (backend, at) = tables.backend(slot.current).unwrap();
                prop_assert_eq!(at, members[member as usize].0);
                prop_assert_eq!(backend.flags, flags::ALIVE);
                let is_on_link = self.world.reach[&at.addr] == Reach::OnLink;
                prop_assert_eq!(backend.forward == forward::L2, is_on_link);
                if slot.previous != 0 {
                    let (previous, _) = tables.backend(slot.previous).unwrap();
                    prop_assert_eq!(previous.flags, flags::ALIVE, "a dead previous is not kept");
                    prop_assert!(plan.memory.transitions.contains_key(&row.ring));
                }
            }
        }
        for id in tables.backends.keys() {
            let retires = plan.memory.retiring.contains_key(id);
            prop_assert_ne!(
                named.contains(id),
                retires,
                "backend {} is named or retires",
                id
            );
        }
        let devices: Vec<_> = tables
            .devices
            .values()
            .map(|row| (row.ifindex, row.mac))
            .collect();
        prop_assert_eq!(
            devices,
            self.world
                .host
                .devices
                .clone()
                .into_iter()
                .collect::<Vec<_>>()
        );
        prop_assert!(tables.node.is_some());
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
            for flow in 0..SLOTS {
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
            for place in 0..SLOTS {
                let known = self
                    .connections
                    .keys()
                    .find(|(service, flow)| *service == service_key && flow % SLOTS == place);
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
                let flow = self.begun * SLOTS + place;
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
                .flatten()
                .all(|slot| slot.previous == 0)
        );
        let backends: BTreeSet<_> = sets.iter().flatten().map(|(at, _)| *at).collect();
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
        reach: BTreeMap::from([(backend_at(2).addr, Reach::OnLink)]),
        ..World::default()
    };
    let backend = desired::Backend {
        ready: true,
        serving: true,
        weight: 1,
    };
    let service = desired::Service {
        backends: BTreeMap::from([(backend_at(2), backend)]),
        ..desired::Service::default()
    };
    world.desired.services.insert(frontend(1), service);
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
    assert!(id < Backends::CAPACITY);
}
