//! The tables after steps that were carried out, without reading them back.
//!
//! Reading all tables costs tens of milliseconds; a round that changed one slot knows what the tables
//! hold now. After a step that failed nothing is known, and the tables are read.

use std::collections::BTreeMap;

use fairlead_common::route::DEVICE_MASK;
use fairlead_common::service::Slot;

use super::{Actual, Step};

impl Actual {
    /// What the tables hold after these steps were carried out in full.
    #[must_use]
    pub fn after<'a>(mut self, steps: impl IntoIterator<Item = &'a Step>) -> Self {
        for step in steps {
            self.take(step);
        }
        // A ring is known as long as a service uses it, and as long as that service says it is.
        let used = self.services.values().filter(|row| row.slots > 0);
        let used: BTreeMap<u32, u32> = used.map(|row| (row.ring, row.slots)).collect();
        self.rings.retain(|ring, slots| match used.get(ring) {
            Some(&length) => {
                slots.resize(length as usize, Slot::default());
                true
            }
            None => false,
        });
        self
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::PutNode(node) => self.node = Some(**node),
            Step::PutDevice(device) => {
                self.devices.insert(device.ifindex & DEVICE_MASK, *device);
            }
            Step::RemoveDevice(row) => {
                self.devices.remove(row);
            }
            Step::PutNextHop(id, next_hop) => {
                self.next_hops.insert(*id, *next_hop);
            }
            Step::RemoveNextHop(id) => {
                self.next_hops.remove(id);
            }
            Step::PutBackend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Step::RemoveBackend(id) => {
                self.backends.remove(id);
            }
            Step::PutSlots { ring, slots } => {
                let held = self.rings.entry(*ring).or_default();
                for &(offset, slot) in slots {
                    let offset = offset as usize;
                    if held.len() <= offset {
                        held.resize(offset + 1, Slot::default());
                    }
                    held[offset] = slot;
                }
            }
            Step::PutSourceRange(range) => {
                self.source_ranges.insert(*range);
            }
            Step::RemoveSourceRange(range) => {
                self.source_ranges.remove(range);
            }
            Step::PutService(key, service) => {
                self.services.insert(*key, *service);
            }
            Step::RemoveService(key) => {
                self.services.remove(key);
            }
            Step::PutAddress(addr, flags) => {
                self.addresses.insert(*addr, *flags);
            }
            Step::RemoveAddress(addr) => {
                self.addresses.remove(addr);
            }
            Step::PutSieve(sieve) => self.sieve.clone_from(sieve),
            Step::PutServing(key) => {
                self.serving.insert(*key);
            }
            Step::RemoveServing(key) => {
                self.serving.remove(key);
            }
            Step::PutArrival(key, row) => {
                self.arrivals.insert(*key, *row);
            }
            Step::RemoveArrival(key) => {
                self.arrivals.remove(key);
            }
            Step::ClearCounts { .. } | Step::ForgetFlows { .. } => {}
        }
    }
}
