//! The tables after steps that were carried out, without reading them back.
//!
//! Reading all tables costs tens of milliseconds; a round that changed one slot knows what the tables
//! hold now. After a step that failed nothing is known, and the tables are read.

use std::sync::Arc;

use fairlead_common::route::DEVICE_MASK;
use fairlead_common::service::Slot;

use super::{Actual, SlotWrites, Step};

impl Actual {
    /// Whether two values are one, without looking at their rows.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.services.ptr_eq(&other.services)
            && self.backends.ptr_eq(&other.backends)
            && self.next_hops.ptr_eq(&other.next_hops)
            && self.rings.ptr_eq(&other.rings)
            && self.serving.ptr_eq(&other.serving)
            && self.arrivals.ptr_eq(&other.arrivals)
            && self.addresses.ptr_eq(&other.addresses)
            && self.sieve == other.sieve
            && self.source_ranges.ptr_eq(&other.source_ranges)
            && self.node == other.node
            && self.devices == other.devices
    }

    /// Takes a step that was carried out. Which rings are used is the ledger's.
    pub(super) fn carry_out(&mut self, step: &Step) {
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
            Step::PutSlots {
                ring,
                slots: SlotWrites::All(all),
            } => {
                self.rings.insert(*ring, Arc::clone(all));
            }
            Step::PutSlots {
                ring,
                slots: SlotWrites::Some(some),
            } => {
                let held = Arc::make_mut(self.rings.entry(*ring).or_default());
                for &(offset, slot) in some {
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
