//! Services, their rings and their backends: from what is desired to the steps that make it so.
//!
//! ```text
//!   members (who is on a service's ring) -> ids -> homes (which ring is whose) -> slots -> rows -> steps
//! ```
//! - Services with equal members share a ring. One whose members become different leaves with a copy of
//!   the ring, so that its flows stay where they are; rings that have become equal are joined.
//! - Backends behind one neighbour share a next hop, so that its MAC address stands in one row.
//! - A slot that gets another backend remembers the one that serves its flows for the drain window.
//! - A backend that no slot names keeps its row, and its id, for a drain window: flows that were
//!   remembered for it go on. Then they are forgotten, and its row is removed.
//!
//! Not here: how steps are ordered (`plan::order`).

mod forwarding;
pub(super) mod here;
mod homes;
mod ids;
mod next_hops;
mod terms;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairlead_common::addr::{Addr, Port};
use fairlead_common::service::{self as rows, ServiceKey, flags, forward};
use fairlead_common::tables::{Services, Table};
use hashbrown::{HashMap, HashSet};

use self::homes::Homes;
use self::ids::Ids;
use self::next_hops::NextHops;
use super::ledger::Ledger;
use super::maglev::Member;
use super::{Actual, Reach, Rest, Step, Wanted};
use crate::cores;
use crate::desired::{self, BackendAddr, Condition, Forwarding, Frontend, Scope, Service};

/// What plans must know of earlier plans, because no table says it.
///
/// It may be lost: after a restart every window that is found running begins anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Rings in transition, and when their window ends.
    pub transitions: BTreeMap<u32, Duration>,
    /// Backends that no slot names, and when their rows may go.
    pub retiring: BTreeMap<u32, Duration>,
    /// What the last plan found and left behind; lost, everything is looked at.
    pub(super) ledger: Ledger,
}

/// The backends of so many services are worth a thread beside the one that gives them ids.
const MANY: usize = 256;

/// The services' part of a plan.
pub(super) struct ServicePlan {
    pub(super) steps: Vec<Step>,
    pub(super) fresh: BTreeSet<u32>,
    pub(super) memory: Memory,
    /// Places became free in this plan that a ring waits for.
    pub(super) again: bool,
    pub(super) conditions: Vec<(Frontend, Condition)>,
    /// Services for whose rings there was no room.
    pub(super) waiting: BTreeSet<Frontend>,
    pub(super) programmed: BTreeMap<Frontend, u32>,
    /// What the node's row must say of its backends.
    pub(super) node_flags: u32,
}

/// Plans the tables of services, of a part of them.
pub(super) fn plan(
    wanted: &Wanted<'_>,
    actual: &Actual,
    memory: &Memory,
    now: Duration,
    rest: &Rest<'_>,
) -> ServicePlan {
    let mut conditions = Vec::new();
    let mut ids = Ids::new(actual, rest);
    let forwarding = forwarding::asked(wanted.desired, &mut conditions);
    // Sets of all backends need no ids: they are made beside.
    let sets = || {
        let homes = here::homes(wanted.desired);
        let arriving = here::arriving(wanted, &homes);
        (alive(wanted), homes, arriving)
    };
    let much = wanted.desired.services.len() >= MANY;
    let members = || members(wanted, &mut ids, &mut conditions);
    let (members, (alive, backend_homes, arriving)) = cores::both(much, members, sets);
    let mut programmed: BTreeMap<Frontend, u32> = members
        .iter()
        .map(|(frontend, list)| (*frontend, list.ready))
        .collect();
    let arriving_ids: Vec<u32> = arriving
        .iter()
        .filter_map(|(_, at)| ids.assign(*at))
        .collect();

    let mut homes = Homes::new(wanted, actual, memory, now, &rest.ledger.tables);
    homes.settle(&members, &ids, &alive, &mut conditions);
    programmed.retain(|frontend, _| homes.ring_of(frontend).is_some());

    let mut steps = Vec::new();
    for home in &homes.settled {
        let slots = home.changed_slots(actual);
        if !slots.is_empty() {
            steps.push(Step::PutSlots {
                ring: home.ring,
                slots,
            });
        }
    }
    let services = service_steps(
        wanted,
        actual,
        &rest.ledger.tables,
        &homes,
        &mut steps,
        &mut conditions,
    );

    let mut next = Memory {
        transitions: homes.transitions(),
        retiring: BTreeMap::new(),
        ledger: Ledger::default(),
    };
    let mut forgotten = BTreeSet::new();
    let mut next_hops = NextHops::new(rest, wanted.host);
    let mut named = Named::default();
    let slots = homes.settled.iter().flat_map(|home| home.slots.iter());
    let in_rings = slots.flat_map(|slot| [slot.current, slot.previous]);
    for id in in_rings.chain(arriving_ids) {
        named.insert(id);
    }
    let backends = backend_steps(
        &Backends {
            wanted,
            actual,
            alive: &alive,
            ids: &ids,
            forwarding: &forwarding,
            homes: &backend_homes,
            named,
        },
        memory,
        now,
        &mut next_hops,
        &mut next.retiring,
        &mut forgotten,
        &mut steps,
    );
    next_hops.steps(&mut steps);
    let node_flags = here::steps(
        wanted,
        actual,
        &arriving,
        &services,
        &backends,
        |at| ids.id(at),
        &mut steps,
    ) | rest.ledger.node_flags_outside(rest.part);
    if !(homes.forgotten.is_empty() && forgotten.is_empty()) {
        steps.push(Step::ForgetFlows {
            services: homes.forgotten,
            backends: forgotten,
        });
    }
    ServicePlan {
        steps,
        fresh: homes.fresh,
        memory: next,
        again: homes.again,
        conditions,
        waiting: homes.waiting,
        programmed,
        node_flags,
    }
}

/// The key of a service's row.
pub fn key(frontend: &Frontend) -> ServiceKey {
    let outside = ServiceKey::new(
        Addr::from(frontend.addr),
        Port::new(frontend.port),
        frontend.proto,
    );
    match frontend.scope {
        Scope::Outside => outside,
        Scope::Inside => outside.inside(),
    }
}

/// Where clients reach the service with this key.
pub fn frontend(key: &ServiceKey) -> Frontend {
    Frontend {
        addr: key.addr.ip(),
        port: key.port.number(),
        proto: key.proto,
        scope: if key.scope == rows::scope::INSIDE {
            Scope::Inside
        } else {
            Scope::Outside
        },
    }
}

/// Where a backend's row says that it listens.
pub fn address(row: &rows::Backend) -> BackendAddr {
    BackendAddr {
        addr: row.addr.ip(),
        port: row.port.number(),
    }
}

fn reach(wanted: &Wanted<'_>, at: BackendAddr) -> Reach {
    wanted
        .reach
        .get(&at.addr)
        .copied()
        .unwrap_or(Reach::Unreachable)
}

/// The backends that answer and that packets get to.
fn alive(wanted: &Wanted<'_>) -> HashSet<BackendAddr> {
    here::sets(wanted.desired)
        .flat_map(|backends| backends.iter())
        .filter(|(at, backend)| {
            (backend.ready || backend.serving) && reach(wanted, **at) != Reach::Unreachable
        })
        .map(|(at, _)| *at)
        .collect()
}

/// Who is on a service's ring, and how many of them are ready.
struct Members {
    list: Rc<[Member]>,
    ready: u32,
}

/// Who is on the ring of each service.
fn members(
    wanted: &Wanted<'_>,
    ids: &mut Ids<'_>,
    conditions: &mut Vec<(Frontend, Condition)>,
) -> BTreeMap<Frontend, Members> {
    let mut all = BTreeMap::<Frontend, Members>::new();
    // The frontends of one port are neighbours, and have one set of backends.
    let mut before: Option<(Frontend, &Service)> = None;
    for (frontend, service) in &wanted.desired.services {
        let twin = before.filter(|(_, before)| {
            Arc::ptr_eq(&before.backends, &service.backends)
                && before.forwarding == service.forwarding
        });
        let said = conditions.len();
        let of_service = match twin.and_then(|(twin, _)| all.get(&twin)) {
            Some(twin) => Members {
                list: Rc::clone(&twin.list),
                ready: twin.ready,
            },
            None => {
                let list = members_of(frontend, service, wanted, ids, conditions);
                let is_ready = |at| service.backends.get(at).is_some_and(|one| one.ready);
                let ready = list.iter().filter(|(at, _)| is_ready(at)).count() as u32;
                Members {
                    list: list.into(),
                    ready,
                }
            }
        };
        // Conditions are each frontend's own.
        before = (conditions.len() == said).then_some((*frontend, service));
        all.insert(*frontend, of_service);
    }
    all
}

/// Who is on the ring of a service: its ready backends, or, while none is ready, those that still serve,
/// so that a last backend which drains keeps its flows.
fn members_of(
    frontend: &Frontend,
    service: &Service,
    wanted: &Wanted<'_>,
    ids: &mut Ids<'_>,
    conditions: &mut Vec<(Frontend, Condition)>,
) -> Vec<Member> {
    let mut say = |reason: &str, message: String| {
        let condition = Condition {
            object: format!("Service {}", service.object),
            origin: String::new(),
            reason: reason.to_owned(),
            message: format!("{frontend}: {message}"),
        };
        conditions.push((*frontend, condition));
    };
    let of = |wants: fn(&desired::Backend) -> bool| -> Vec<Member> {
        service
            .backends
            .iter()
            .filter(|(_, backend)| wants(backend) && backend.weight > 0)
            .map(|(at, backend)| (*at, backend.weight))
            .collect()
    };
    let mut out_of_reach = Vec::new();
    let mut reachable = |list: Vec<Member>| -> Vec<Member> {
        list.into_iter()
            .filter(|(at, _)| {
                let is_reachable = reach(wanted, *at) != Reach::Unreachable;
                if !is_reachable {
                    out_of_reach.push(at.to_string());
                }
                is_reachable
            })
            .collect()
    };
    let mut members = reachable(of(|backend| backend.ready));
    if members.is_empty() {
        members = reachable(of(|backend| backend.serving && !backend.ready));
    }
    if !out_of_reach.is_empty() {
        say(
            "BackendUnreachable",
            format!(
                "no route leads to {}; left out until there is one",
                out_of_reach.join(", ")
            ),
        );
    }
    let before = members.len();
    members.retain(|(at, _)| {
        let home = service.backends[at].home;
        forwarding::is_possible(service.forwarding, home, || reach(wanted, *at))
    });
    if members.len() < before {
        say(
            "BackendNotOnLink",
            format!(
                "dsr-l2 reaches backends on a link of this node only, so {} behind a router are left out; use dsr-ipip or dsr-gue",
                before - members.len()
            ),
        );
    }
    let most = wanted.ring_sizes.most as usize;
    if members.len() > most {
        say(
            "TooManyBackends",
            format!(
                "{} backends do not fit {most} slots, so the last ones get no flow; divide them among services",
                members.len()
            ),
        );
        members.truncate(most);
    }
    let before = members.len();
    members.retain(|(at, _)| ids.assign(*at).is_some());
    if members.len() < before {
        say(
            "BackendsFull",
            format!(
                "the table of backends is full, so {} of them get no flow; remove services or backends",
                before - members.len()
            ),
        );
    }
    members
}

/// Rows of services.
fn service_steps(
    wanted: &Wanted<'_>,
    actual: &Actual,
    all: &Actual,
    homes: &Homes<'_>,
    steps: &mut Vec<Step>,
    conditions: &mut Vec<(Frontend, Condition)>,
) -> BTreeMap<ServiceKey, rows::Service> {
    let taken = LazyCell::new(|| {
        let taken = all.services.values().map(|row| row.id);
        taken.collect::<BTreeSet<u32>>()
    });
    // Row 0 of the counters is nobody's.
    let mut free = (1..Services::CAPACITY).filter(|id| !taken.contains(id));
    let mut used = BTreeSet::new();
    let mut wanted_rows = BTreeMap::new();
    let mut wanted_ranges = BTreeSet::new();
    for (frontend, service) in &wanted.desired.services {
        let key = key(frontend);
        let known = actual.services.get(&key).map(|row| row.id);
        let id = known
            .filter(|id| *id != 0 && used.insert(*id))
            .or_else(|| free.next());
        let Some(id) = id else {
            let condition = Condition {
                object: format!("Service {}", service.object),
                origin: String::new(),
                reason: "ServicesFull".to_owned(),
                message: format!("{frontend}: the table of services is full; remove services"),
            };
            conditions.push((*frontend, condition));
            continue;
        };
        let (ring, slots) = homes.ring_of(frontend).unwrap_or((0, 0));
        let row = rows::Service {
            id,
            ring,
            slots,
            flags: terms::flags(service),
            affinity_s: service.affinity.map_or(0, |time| time.as_secs() as u32),
            pad: 0,
        };
        wanted_rows.insert(key, row);
        wanted_ranges.extend(terms::source_ranges(id, frontend, service));
    }
    let held = &actual.source_ranges;
    let let_in = wanted_ranges.iter().filter(|range| !held.contains(*range));
    steps.extend(let_in.map(|range| Step::PutSourceRange(*range)));
    let keep_out = held.iter().filter(|range| !wanted_ranges.contains(*range));
    steps.extend(keep_out.map(|range| Step::RemoveSourceRange(*range)));
    for (key, row) in &wanted_rows {
        if actual.services.get(key) != Some(row) {
            steps.push(Step::PutService(*key, *row));
        }
    }
    let gone = actual
        .services
        .keys()
        .filter(|key| !wanted_rows.contains_key(key));
    steps.extend(gone.map(|key| Step::RemoveService(*key)));
    wanted_rows
}

/// Ids that are named; 0 is nobody's.
#[derive(Debug, Default)]
struct Named(Vec<bool>);

impl Named {
    fn insert(&mut self, id: u32) {
        let place = id as usize;
        if self.0.len() <= place {
            self.0.resize(place + 1, false);
        }
        self.0[place] = true;
    }

    fn contains(&self, id: u32) -> bool {
        id != 0 && self.0.get(id as usize).is_some_and(|is_named| *is_named)
    }
}

struct Backends<'a> {
    wanted: &'a Wanted<'a>,
    actual: &'a Actual,
    alive: &'a HashSet<BackendAddr>,
    ids: &'a Ids<'a>,
    /// How packets get to those without an agent.
    forwarding: &'a HashMap<BackendAddr, Forwarding>,
    homes: &'a HashMap<BackendAddr, desired::Home>,
    /// The ids that slots or packets out of tunnels name once the plan is carried out.
    named: Named,
}

impl Backends<'_> {
    fn row(&self, id: u32, at: BackendAddr, next_hops: &mut NextHops<'_>) -> rows::Backend {
        let known = self.actual.backends.get(&id);
        let reach = reach(self.wanted, at);
        let home = self.homes.get(&at);
        let (forward, mut flags) = match (reach, home) {
            (Reach::Local, _) | (Reach::ByStack, Some(desired::Home::Here)) => {
                (forward::HERE, flags::STACK)
            }
            (Reach::OnLink | Reach::Routed, Some(desired::Home::Here)) => (forward::HERE, 0),
            (Reach::OnLink | Reach::ByStack | Reach::Routed, Some(desired::Home::Elsewhere)) => {
                (forward::ENCAPSULATE, 0)
            }
            (Reach::OnLink | Reach::ByStack | Reach::Routed, Some(desired::Home::Bare)) => {
                let asked = self.forwarding.get(&at).copied();
                (forwarding::of_host(asked.unwrap_or_default(), reach), 0)
            }
            // It is nobody's any more, or no way leads to it for the moment: its flows go on as they did.
            (Reach::OnLink | Reach::ByStack | Reach::Routed | Reach::Unreachable, _) => (
                known.map_or(forward::ENCAPSULATE, |row| row.forward),
                known.map_or(0, |row| row.flags & flags::STACK),
            ),
        };
        if self.alive.contains(&at) {
            flags |= flags::ALIVE;
        }
        rows::Backend {
            addr: Addr::from(at.addr),
            port: Port::new(at.port),
            forward,
            flags,
            next_hop: match reach {
                Reach::OnLink | Reach::ByStack | Reach::Routed if flags & flags::STACK == 0 => {
                    let way = self.wanted.ways.get(&at.addr);
                    way.map_or(0, |way| next_hops.assign(way))
                }
                Reach::OnLink
                | Reach::ByStack
                | Reach::Routed
                | Reach::Local
                | Reach::Unreachable => 0,
            },
        }
    }
}

/// Rows of backends: those that slots name, and those that retire.
fn backend_steps(
    backends: &Backends<'_>,
    memory: &Memory,
    now: Duration,
    next_hops: &mut NextHops<'_>,
    retiring: &mut BTreeMap<u32, Duration>,
    forgotten: &mut BTreeSet<u32>,
    steps: &mut Vec<Step>,
) -> HashMap<u32, rows::Backend> {
    let mut all = HashMap::new();
    let mut put = |id: u32, at: BackendAddr| {
        let row = backends.row(id, at, next_hops);
        all.insert(id, row);
        if backends.actual.backends.get(&id) != Some(&row) {
            steps.push(Step::PutBackend(id, row));
        }
    };
    for (&id, &at) in backends.ids.addresses() {
        if backends.named.contains(id) {
            put(id, at);
        }
    }
    let known = backends
        .actual
        .backends
        .keys()
        .chain(memory.retiring.keys());
    let left: BTreeSet<u32> = known
        .copied()
        .filter(|id| !backends.named.contains(*id))
        .collect();
    let mut removed = Vec::new();
    for id in left {
        let until = memory
            .retiring
            .get(&id)
            .copied()
            .unwrap_or(now + backends.wanted.drain_window);
        let row = backends.actual.backends.get(&id);
        if until > now {
            retiring.insert(id, until);
            if let Some(row) = row {
                put(id, address(row));
            }
            continue;
        }
        forgotten.insert(id);
        if row.is_some() {
            removed.push(Step::RemoveBackend(id));
        }
    }
    steps.append(&mut removed);
    all
}

#[cfg(test)]
mod tests;
