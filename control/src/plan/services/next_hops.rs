//! Next hops: found again in the table by {device, neighbour, MTU}, or the lowest id that nothing names.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_common::addr::Addr;
use fairlead_common::service::{NextHop, next_hop_flags};
use fairlead_common::tables::{self, Table};

use crate::plan::{Actual, Host, Step, Way};

/// What a row is for, as long as a backend names it.
type Name = (u32, Addr, u32);

/// Ids of next hops, and the rows that backends name once the plan is carried out.
pub(super) struct NextHops<'a> {
    actual: &'a Actual,
    host: &'a Host,
    of: BTreeMap<Name, u32>,
    rows: BTreeMap<u32, NextHop>,
    /// Rows that are in use, and ids that backends name.
    taken: BTreeSet<u32>,
    next: u32,
}

impl<'a> NextHops<'a> {
    pub(super) fn new(actual: &'a Actual, host: &'a Host) -> Self {
        let mut of = BTreeMap::new();
        for (&id, row) in actual.next_hops.iter().filter(|(id, _)| **id != 0) {
            of.entry((row.ifindex, row.addr, row.mtu)).or_insert(id);
        }
        let named = actual.backends.values().map(|row| row.next_hop);
        Self {
            actual,
            host,
            of,
            rows: BTreeMap::new(),
            taken: actual.next_hops.keys().copied().chain(named).collect(),
            next: 1,
        }
    }

    /// The id of a next hop; 0 when the table is full, and packets ask the kernel.
    pub(super) fn assign(&mut self, way: &Way) -> u32 {
        let name = (way.device, Addr::new(way.neighbour), way.mtu);
        let id = match self.of.get(&name) {
            Some(id) => *id,
            None => match self.unused() {
                Some(id) => id,
                None => return 0,
            },
        };
        self.of.insert(name, id);
        self.rows.insert(id, self.row(way));
        id
    }

    fn unused(&mut self) -> Option<u32> {
        while self.taken.contains(&self.next) {
            self.next += 1;
        }
        let id = self.next;
        if id >= tables::NextHops::CAPACITY {
            return None;
        }
        self.next += 1;
        Some(id)
    }

    /// A device that is not ours is no way out: packets are not told about it without asking.
    fn row(&self, way: &Way) -> NextHop {
        let known = self.host.devices.get(&way.device).zip(way.mac);
        let (source, destination, flags) = match known {
            Some((source, destination)) => (*source, destination, next_hop_flags::RESOLVED),
            None => ([0; 6], [0; 6], 0),
        };
        NextHop {
            ifindex: way.device,
            source,
            destination,
            addr: Addr::new(way.neighbour),
            mtu: way.mtu,
            flags,
        }
    }

    /// What the table needs for the backends that were asked for.
    pub(super) fn steps(self, steps: &mut Vec<Step>) {
        let held = &self.actual.next_hops;
        for (&id, row) in &self.rows {
            if held.get(&id) != Some(row) {
                steps.push(Step::PutNextHop(id, *row));
            }
        }
        let left = held.keys().filter(|id| !self.rows.contains_key(id));
        steps.extend(left.map(|id| Step::RemoveNextHop(*id)));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use fairlead_common::service::Backend;

    use super::*;

    fn way(neighbour: u8, mac: u8) -> Way {
        Way {
            device: 3,
            neighbour: IpAddr::from([10, 0, 0, neighbour]),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, mac]),
        }
    }

    fn host() -> Host {
        Host {
            devices: BTreeMap::from([(3, [2, 0, 0, 0, 0, 3])]),
            ..Host::default()
        }
    }

    fn steps(actual: &Actual, ways: &[Way]) -> Vec<Step> {
        let host = host();
        let mut next_hops = NextHops::new(actual, &host);
        for way in ways {
            next_hops.assign(way);
        }
        let mut steps = Vec::new();
        next_hops.steps(&mut steps);
        steps
    }

    #[test]
    fn a_neighbour_whose_mac_address_changes_is_one_write() {
        let first = steps(&Actual::default(), &[way(1, 1), way(2, 2), way(1, 1)]);
        let actual = Actual::default().after(&first);
        assert_eq!(actual.next_hops.len(), 2);

        let then = steps(&actual, &[way(1, 9), way(2, 2), way(1, 9)]);

        let [Step::PutNextHop(1, row)] = then[..] else {
            panic!("{then:?}");
        };
        assert_eq!(row.destination, [2, 0, 0, 0, 0, 9]);
        assert_eq!(row.flags, next_hop_flags::RESOLVED);
    }

    #[test]
    fn an_id_that_a_backend_names_is_not_used_again() {
        let mut actual = Actual::default();
        let row = Backend {
            next_hop: 1,
            ..Backend::default()
        };
        actual.backends.insert(7, row);

        let host = host();
        assert_eq!(NextHops::new(&actual, &host).assign(&way(1, 1)), 2);
    }

    #[test]
    fn a_neighbour_without_a_mac_address_and_one_on_a_strange_device_are_not_resolved() {
        let silent = Way {
            mac: None,
            ..way(1, 1)
        };
        let strange = Way {
            device: 4,
            ..way(2, 2)
        };

        let found = steps(&Actual::default(), &[silent, strange]);

        assert_eq!(found.len(), 2);
        for step in found {
            assert!(
                matches!(step, Step::PutNextHop(_, row) if row.flags == 0),
                "{step:?}"
            );
        }
    }
}
