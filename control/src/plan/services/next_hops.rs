//! Next hops: found again in the table by {device, neighbour, MTU}, or the lowest id that nothing names.

use std::collections::BTreeMap;

use fairlead_common::addr::Addr;
use fairlead_common::service::{NextHop, next_hop_flags};
use fairlead_common::tables::{self, Table};

use crate::plan::{Host, Rest, Step, Way};

/// What a row is for, as long as a backend names it.
type Name = (u32, Addr, u32);

/// Ids of next hops, and the rows that backends name once the plan is carried out.
pub(super) struct NextHops<'a> {
    rest: &'a Rest<'a>,
    host: &'a Host,
    of: BTreeMap<Name, u32>,
    rows: BTreeMap<u32, NextHop>,
    next: u32,
    /// The way that was assigned last: neighbours in the table are often behind one router.
    last: Option<(Way, u32)>,
}

impl<'a> NextHops<'a> {
    pub(super) fn new(rest: &'a Rest<'a>, host: &'a Host) -> Self {
        let mut of = BTreeMap::new();
        for (&id, row) in rest
            .ledger
            .tables
            .next_hops
            .iter()
            .filter(|(id, _)| **id != 0)
        {
            of.entry((row.ifindex, row.addr, row.mtu)).or_insert(id);
        }
        Self {
            rest,
            host,
            of,
            rows: BTreeMap::new(),
            next: 1,
            last: None,
        }
    }

    /// The id of a next hop; 0 when the table is full, and packets ask the kernel.
    pub(super) fn assign(&mut self, way: &Way) -> u32 {
        if let Some((_, id)) = self.last.filter(|(last, _)| last == way) {
            return id;
        }
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
        self.last = Some((*way, id));
        id
    }

    fn unused(&mut self) -> Option<u32> {
        while self.rest.ledger.is_next_hop_taken(self.next) {
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
        let Rest { ledger, part, .. } = self.rest;
        let held = &ledger.tables.next_hops;
        for (&id, row) in &self.rows {
            if held.get(&id) != Some(row) {
                steps.push(Step::PutNextHop(id, *row));
            }
        }
        let is_left =
            |id: &u32| !self.rows.contains_key(id) && !ledger.is_behind_outside(*id, part);
        let left = held.keys().filter(|id| is_left(id));
        steps.extend(left.map(|id| Step::RemoveNextHop(*id)));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use fairlead_common::service::Backend;

    use super::*;
    use crate::plan::ledger::{Ledger, Part};
    use crate::plan::{Actual, Memory};

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

    fn with<T>(actual: &Actual, work: impl FnOnce(NextHops<'_>) -> T) -> T {
        let rest = Rest {
            ledger: &Ledger::of(actual),
            memory: &Memory::default(),
            part: &Part::default(),
        };
        work(NextHops::new(&rest, &host()))
    }

    fn steps(actual: &Actual, ways: &[Way]) -> Vec<Step> {
        with(actual, |next_hops| steps_of(next_hops, ways))
    }

    fn steps_of(mut next_hops: NextHops<'_>, ways: &[Way]) -> Vec<Step> {
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
        let mut actual = Actual::default();
        for step in &first {
            actual.carry_out(step);
        }
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

        let id = with(&actual, |mut next_hops| next_hops.assign(&way(1, 1)));
        assert_eq!(id, 2);
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
