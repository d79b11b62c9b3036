//! The rows by which this node translates for backends: whose answers to look for, and whom packets out of
//! other nodes' tunnels are for.
//!
//! Not here: how packets of this node's own clients and uplinks get to a backend; its row says that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_common::route;
use fairlead_common::service::{
    Arrival, ArrivalKey, Backend, Service, ServiceKey, ServingKey, flags, forward,
};
use hashbrown::HashMap;

use super::{key, reach};
use crate::desired::{self, AddressKind, BackendAddr, Desired, Home};
use crate::plan::{Actual, Reach, Step, Wanted};

/// Whose work the last step to each backend is. Where services disagree, the one that knows more counts.
pub(super) fn homes(desired: &Desired) -> HashMap<BackendAddr, Home> {
    let mut homes = HashMap::new();
    for backends in sets(desired) {
        for (at, backend) in backends.iter() {
            let home = homes.entry(*at).or_insert(backend.home);
            if *home == Home::Bare || backend.home == Home::Here {
                *home = backend.home;
            }
        }
    }
    homes
}

/// The steps for the rows that these backends and services ask for, and whether packets get to one of the backends
/// through the stack.
///
/// `backends` are all rows as they will be, those that retire included: their flows go on, so their answers are
/// looked for, and packets out of tunnels still reach them.
pub(super) fn steps(
    wanted: &Wanted<'_>,
    actual: &Actual,
    here: &[(ServiceKey, BackendAddr)],
    services: &BTreeMap<ServiceKey, Service>,
    backends: &HashMap<u32, Backend>,
    id_of: impl Fn(BackendAddr) -> u32,
    steps: &mut Vec<Step>,
) -> u32 {
    let translated = backends
        .values()
        .filter(|row| matches!(row.forward, forward::HERE | forward::NAT));
    let serving: BTreeSet<_> = translated
        .map(|row| ServingKey::new(row.addr, row.port))
        .collect();
    let known = &actual.serving;
    let put = serving.iter().filter(|key| !known.contains(*key));
    steps.extend(put.map(|key| Step::PutServing(*key)));
    let gone = known.iter().filter(|key| !serving.contains(*key));
    steps.extend(gone.map(|key| Step::RemoveServing(*key)));

    let is_here = |id: u32| {
        backends
            .get(&id)
            .is_some_and(|row| row.forward == forward::HERE)
    };
    let node_ports: BTreeSet<_> = wanted
        .desired
        .services
        .iter()
        .filter(|(_, service)| service.address_kinds.contains(&AddressKind::Node))
        .map(|(frontend, _)| key(frontend))
        .collect();
    let mut arrivals = BTreeMap::new();
    for &(service_key, at) in here {
        let id = id_of(at);
        if let Some(row) = services.get(&service_key).filter(|_| is_here(id)) {
            // Of two rows of one service, and of two ports of one address, the first counts.
            let arrival = Arrival {
                backend: id,
                service: row.id,
            };
            let key = ArrivalKey::new(&service_key, at.addr.into());
            arrivals.entry(key).or_insert(arrival);
            if node_ports.contains(&service_key) {
                arrivals.entry(key.at_any_node()).or_insert(arrival);
            }
        }
    }
    let known_services: BTreeSet<_> = services
        .keys()
        .map(|key| (key.addr, key.port, key.proto))
        .collect();
    let numbers: BTreeSet<_> = node_ports.iter().map(|key| (key.port, key.proto)).collect();
    for (key, row) in &actual.arrivals {
        // Another node may send for as long as a backend that has left its rings retires here.
        let is_served = known_services.contains(&(key.service, key.port, key.proto))
            || (key.is_at_any_node() && numbers.contains(&(key.port, key.proto)));
        if is_served && is_here(row.backend) && backends[&row.backend].addr == key.backend {
            arrivals.entry(*key).or_insert(*row);
        }
    }
    let known = &actual.arrivals;
    let put = arrivals
        .iter()
        .filter(|(key, row)| known.get(*key) != Some(*row));
    steps.extend(put.map(|(key, row)| Step::PutArrival(*key, *row)));
    let gone = known.keys().filter(|key| !arrivals.contains_key(*key));
    steps.extend(gone.map(|key| Step::RemoveArrival(*key)));

    backends
        .values()
        .fold(0, |said, row| said | node_flags(row))
}

/// What the node's row must say of a backend.
pub(in crate::plan) const fn node_flags(row: &Backend) -> u32 {
    let mut said = 0;
    if row.flags & flags::STACK != 0 {
        said |= route::node_flags::ANSWERS_LEAVE;
    }
    if row.forward == forward::NAT {
        said |= route::node_flags::ANSWERS_RETURN;
    }
    said
}

/// The backends of this node that packets out of tunnels may be for, by service: all that it is told of.
///
/// Whether one takes flows is for the nodes to say that have it in their rings. One that becomes ready may be in
/// another node's before this one has heard, and the first packets of its flows would find nobody.
pub(super) fn arriving(
    wanted: &Wanted<'_>,
    homes: &HashMap<BackendAddr, Home>,
) -> Vec<(ServiceKey, BackendAddr)> {
    let is_here = |at: &BackendAddr| match reach(wanted, *at) {
        Reach::Local => true,
        Reach::Unreachable => false,
        Reach::OnLink | Reach::ByStack | Reach::Routed => homes.get(at) == Some(&Home::Here),
    };
    let mut arriving = Vec::new();
    let mut of_set: (Option<&Backends>, Vec<BackendAddr>) = (None, Vec::new());
    for (frontend, service) in &wanted.desired.services {
        let backends = &service.backends;
        if !of_set.0.is_some_and(|last| Arc::ptr_eq(last, backends)) {
            let here = backends.keys().filter(|at| is_here(at)).copied();
            of_set = (Some(backends), here.collect());
        }
        arriving.extend(of_set.1.iter().map(|at| (key(frontend), *at)));
    }
    arriving
}

type Backends = Arc<BTreeMap<BackendAddr, desired::Backend>>;

/// The backends of each service; a set that the one before has too only once.
pub(super) fn sets(desired: &Desired) -> impl Iterator<Item = &Backends> {
    let mut last: Option<&Backends> = None;
    let sets = desired.services.values().map(|service| &service.backends);
    sets.filter(move |set| !last.replace(set).is_some_and(|last| Arc::ptr_eq(last, set)))
}
