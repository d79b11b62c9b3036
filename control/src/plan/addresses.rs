//! The addresses of services, whatever their ports: from the services' rows. And those of other nodes, for sockets.
//!
//! An address of this node, or one that only node ports are reached by, is the host's own: what else comes to
//! it is for the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_common::addr::Addr;
use fairlead_common::served::{Sieve, flags};
use fairlead_common::service::{Service, ServiceKey, scope};
use fairlead_common::tables::{Addresses, Table};
use imbl::OrdMap;

use super::{Actual, Step};
use crate::desired::{self, AddressKind, Condition, Desired, Frontend};

/// Plans `ADDRESSES` and `SIEVE` for these rows of services.
pub(super) fn steps(
    desired: &Desired,
    services: &OrdMap<ServiceKey, Service>,
    actual: &Actual,
    steps: &mut Vec<Step>,
    conditions: &mut Vec<Condition>,
) {
    let hosts_own = hosts_own(desired);
    let mut wanted = BTreeMap::new();
    let mut left_out = 0_u32;
    for (key, row) in services {
        if key.scope != scope::OUTSIDE || hosts_own.contains(&key.addr) {
            continue;
        }
        if wanted.len() >= Addresses::CAPACITY as usize && !wanted.contains_key(&key.addr) {
            left_out += 1;
            continue;
        }
        let served = if row.slots > 0 { flags::SERVED } else { 0 };
        *wanted.entry(key.addr).or_insert(0) |= served;
    }
    let sieve: Box<Sieve> = Box::new(services.keys().map(|key| key.addr).collect());
    let mut unknown = 0_u32;
    for addr in desired.other_nodes.iter().copied().map(Addr::from) {
        if wanted.len() >= Addresses::CAPACITY as usize && !wanted.contains_key(&addr) {
            unknown += 1;
            continue;
        }
        wanted.entry(addr).or_insert(flags::NODE);
    }
    if unknown > 0 {
        conditions.push(Condition {
            object: "table ADDRESSES".to_owned(),
            origin: String::new(),
            reason: "AddressesFull".to_owned(),
            message: format!(
                "{unknown} addresses of other nodes have no room: their node ports are reached by way of those nodes, which fails where they choose a backend of this one; remove services"
            ),
        });
    }
    if left_out > 0 {
        conditions.push(Condition {
            object: "table ADDRESSES".to_owned(),
            origin: String::new(),
            reason: "AddressesFull".to_owned(),
            message: format!(
                "{left_out} services are balanced, but their addresses answer no echo and their other packets are routed; remove services"
            ),
        });
    }
    let held = &actual.addresses;
    let gone = held.keys().filter(|addr| !wanted.contains_key(addr));
    steps.extend(gone.map(|addr| Step::RemoveAddress(*addr)));
    let put = wanted
        .iter()
        .filter(|(addr, flags)| held.get(*addr) != Some(*flags));
    steps.extend(put.map(|(addr, flags)| Step::PutAddress(*addr, *flags)));
    if sieve != actual.sieve {
        steps.push(Step::PutSieve(sieve));
    }
}

/// The node's addresses, and those that no service has but by its node port.
fn hosts_own(desired: &Desired) -> BTreeSet<Addr> {
    let is_node_only = |service: &desired::Service| {
        let mut kinds = service.address_kinds.iter();
        kinds.len() == 1 && kinds.all(|kind| *kind == AddressKind::Node)
    };
    let services = desired.services.iter();
    // Few services are reached by node ports only, so those that share an address with one are looked for.
    let by_node_port: BTreeSet<IpAddr> = services
        .filter(|(_, service)| is_node_only(service))
        .map(|(frontend, _)| frontend.addr)
        .collect();
    let all_at = |addr: IpAddr| {
        let first = Frontend {
            addr,
            ..Frontend::FIRST
        };
        let services = desired.services.range(first..);
        services.take_while(move |(frontend, _)| frontend.addr == addr)
    };
    let alone = by_node_port
        .into_iter()
        .filter(|addr| all_at(*addr).all(|(_, service)| is_node_only(service)));
    let node = desired.node.addresses.iter().copied();
    alone.chain(node).map(Addr::from).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fairlead_common::addr::{Port, Proto};

    use super::*;
    use crate::desired::{self, Frontend, Scope};

    fn addr(last: u8) -> Addr {
        Addr::from(std::net::Ipv4Addr::new(192, 0, 2, last))
    }

    fn key(last: u8, port: u16) -> ServiceKey {
        ServiceKey::new(addr(last), Port::new(port), Proto::TCP)
    }

    fn row(slots: u32) -> Service {
        Service {
            slots,
            ..Service::default()
        }
    }

    fn with_kinds(kinds: &[(u8, u16, &[AddressKind])]) -> Desired {
        let services = kinds.iter().map(|&(last, port, kinds)| {
            let frontend = Frontend {
                addr: addr(last).ip(),
                port,
                proto: Proto::TCP,
                scope: Scope::Outside,
            };
            let service = desired::Service {
                address_kinds: kinds.iter().copied().collect(),
                ..desired::Service::default()
            };
            (frontend, Arc::new(service))
        });
        Desired {
            services: services.collect(),
            ..Desired::default()
        }
    }

    fn planned(desired: &Desired, rows: &[(ServiceKey, Service)]) -> Actual {
        let mut planned = Vec::new();
        let rows = rows.iter().copied().collect();
        let actual = Actual::default();
        steps(desired, &rows, &actual, &mut planned, &mut Vec::new());
        let mut actual = actual;
        for step in &planned {
            actual.carry_out(step);
        }
        actual
    }

    #[test]
    fn an_address_is_served_when_one_of_its_services_has_a_backend() {
        let tables = planned(
            &Desired::default(),
            &[
                (key(1, 80), row(0)),
                (key(1, 81), row(7)),
                (key(2, 80), row(0)),
            ],
        );

        let expected = [(addr(1), flags::SERVED), (addr(2), 0)]
            .into_iter()
            .collect();
        assert_eq!(tables.addresses, expected);
        assert!(tables.sieve.passes(addr(1)) && tables.sieve.passes(addr(2)));
        assert_eq!(tables.sieve.bits(), 2);
    }

    #[test]
    fn what_only_pods_reach_is_in_the_sieve_alone() {
        let tables = planned(&Desired::default(), &[(key(1, 80).inside(), row(7))]);

        assert!(tables.addresses.is_empty());
        assert!(tables.sieve.passes(addr(1)));
    }

    #[test]
    fn an_address_with_node_ports_only_stays_the_hosts() {
        let desired = with_kinds(&[
            (1, 30080, &[AddressKind::Node]),
            (2, 30080, &[AddressKind::Node]),
            (2, 80, &[AddressKind::External]),
        ]);
        let rows = [key(1, 30080), key(2, 30080), key(2, 80)].map(|key| (key, row(7)));

        let tables = planned(&desired, &rows);

        assert_eq!(tables.addresses, OrdMap::unit(addr(2), flags::SERVED));
        assert!(tables.sieve.passes(addr(1)) && tables.sieve.passes(addr(2)));
    }

    #[test]
    fn other_nodes_are_noted_beside_the_sieve_unless_a_service_has_their_address() {
        let mut desired = with_kinds(&[(1, 80, &[AddressKind::External])]);
        desired.other_nodes = [1, 2].map(|last| addr(last).ip()).into();

        let tables = planned(&desired, &[(key(1, 80), row(7))]);

        let expected = [(addr(1), flags::SERVED), (addr(2), flags::NODE)];
        assert_eq!(tables.addresses, OrdMap::from_iter(expected));
        assert!(tables.sieve.passes(addr(1)) && !tables.sieve.passes(addr(2)));
    }

    #[test]
    fn nodes_that_have_no_room_are_told_of_and_take_none_from_services() {
        let mut desired = with_kinds(&[(1, 80, &[AddressKind::External])]);
        let first = u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0));
        let nodes = first..first + Addresses::CAPACITY + 1;
        desired.other_nodes = nodes
            .map(|node| std::net::Ipv4Addr::from(node).into())
            .collect();
        let rows = OrdMap::unit(key(1, 80), row(7));
        let (mut planned, mut conditions) = (Vec::new(), Vec::new());

        steps(
            &desired,
            &rows,
            &Actual::default(),
            &mut planned,
            &mut conditions,
        );

        let put = planned
            .iter()
            .filter(|step| matches!(step, Step::PutAddress(..)));
        assert_eq!(put.count(), Addresses::CAPACITY as usize);
        assert!(planned.contains(&Step::PutAddress(addr(1), flags::SERVED)));
        let [told] = &conditions[..] else {
            panic!("{conditions:?}");
        };
        assert!(
            told.message.starts_with("2 addresses of other nodes"),
            "{told:?}"
        );
    }

    #[test]
    fn an_address_of_the_node_that_a_service_names_stays_the_hosts() {
        let mut desired = with_kinds(&[(1, 80, &[AddressKind::External])]);
        desired.node.addresses = BTreeSet::from([addr(1).ip()]);

        let tables = planned(&desired, &[(key(1, 80), row(7))]);

        assert!(tables.addresses.is_empty());
        assert!(tables.sieve.passes(addr(1)));
    }
}
