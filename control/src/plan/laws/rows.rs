//! Law 1 for what hangs on backends: next hops, and whom packets out of tunnels are for.

use std::collections::BTreeSet;

use fairlead_common::service::{ArrivalKey, flags, forward, next_hop_flags};
use proptest::prelude::*;

use super::Story;
use crate::desired::AddressKind;
use crate::plan::services::{address, key};

impl Story {
    /// Packets out of tunnels reach every backend of this node by each of its services, whether it is ready or
    /// not: another node may have heard more. Says which backends that names.
    pub(super) fn arrivals_are_wanted(&self) -> Result<BTreeSet<u32>, TestCaseError> {
        let mut named = BTreeSet::new();
        for (frontend, service) in &self.world.desired.services {
            for at in service.backends.keys() {
                let is_here = self.world.forward(*at) == forward::HERE;
                if !is_here || !self.world.reaches(at) {
                    continue;
                }
                let arrival = ArrivalKey::new(&key(frontend), at.addr.into());
                let Some(row) = self.tables.arrivals.get(&arrival) else {
                    return Err(TestCaseError::fail(format!(
                        "{frontend} does not reach {at}"
                    )));
                };
                prop_assert_eq!(row.service, self.tables.services[&key(frontend)].id);
                prop_assert_eq!(self.tables.backend(row.backend).unwrap().1, *at);
                named.insert(row.backend);
                let is_node_port = service.address_kinds.contains(&AddressKind::Node);
                let by_number = self.tables.arrivals.get(&arrival.at_any_node());
                prop_assert!(
                    !is_node_port || by_number.is_some(),
                    "{} by its number",
                    frontend
                );
            }
        }
        Ok(named)
    }

    /// Every backend names the next hop on its way, as the world knows it, and no other is left.
    pub(super) fn next_hops_are_wanted(&self) -> Result<(), TestCaseError> {
        let tables = &self.tables;
        for row in tables.backends.values() {
            let at = address(row);
            let way = self.world.ways.get(&at.addr);
            let is_local = row.flags & flags::STACK != 0;
            let Some(way) = way.filter(|_| self.world.reaches(&at) && !is_local) else {
                prop_assert_eq!(row.next_hop, 0, "{} has no way", at);
                continue;
            };
            let found = tables.next_hops[&row.next_hop];
            let name = (found.ifindex, found.addr.ip(), found.mtu);
            prop_assert_eq!(name, (way.device, way.neighbour, way.mtu));
        }
        let named: BTreeSet<_> = tables.backends.values().map(|row| row.next_hop).collect();
        let mut names = BTreeSet::new();
        for (id, row) in &tables.next_hops {
            prop_assert!(named.contains(id), "next hop {} is nobody's", id);
            let is_first = names.insert((row.ifindex, row.addr, row.mtu));
            prop_assert!(is_first, "backends behind one neighbour share its row");
            let is_resolved = row.flags == next_hop_flags::RESOLVED;
            let source = self.world.host.devices.get(&row.ifindex);
            prop_assert!(!is_resolved || source == Some(&row.source));
            prop_assert!(is_resolved || row.destination == [0; 6]);
        }
        Ok(())
    }
}
