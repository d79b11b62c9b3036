//! The difference between what the node should be and what the kernel holds, as ordered steps.
//!
//! `plan(desired, actual) -> Plan`, and `apply(plan, store)`, obey five laws (tested as properties):
//! 1. applying the plan makes the kernel what was desired;
//! 2. a plan for what is already there is empty;
//! 3. every prefix of a plan leaves a safe datapath: no service points at a missing ring, no slot at a
//!    missing backend, no backend id is used again while a slot or a flow may name it;
//! 4. a plan is no larger than the difference;
//! 5. same inputs, same plan.
//!
//! Not here: who carries the steps out (`dataplane::apply`), and when (`agent`).

use std::collections::{BTreeMap, BTreeSet};

use fairlead_common::route::{Device, Node};
use fairlead_common::service::{Backend, Service, ServiceKey, Slot};

/// What the kernel's tables hold now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey, Service>,
    /// `BACKENDS` rows that are in use, by id.
    pub backends: BTreeMap<u32, Backend>,
    /// The slots of the rings that services use, by the ring's first slot.
    pub rings: BTreeMap<u32, Vec<Slot>>,
    /// `NODE`.
    pub node: Option<Node>,
    /// `DEVICES` rows that are in use, by row (`ifindex & DEVICE_MASK`).
    pub devices: BTreeMap<u32, Device>,
}

/// One change of the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes the node's row.
    PutNode(Box<Node>),
    /// Writes a device's row at `ifindex & DEVICE_MASK`.
    PutDevice(Device),
    /// Empties this row of `DEVICES` (`ifindex & DEVICE_MASK`).
    RemoveDevice(u32),
    /// Writes a backend's row.
    PutBackend(u32, Backend),
    /// Empties a backend's row.
    RemoveBackend(u32),
    /// Writes slots of the ring that begins at `ring`: (offset in the ring, slot).
    PutSlots {
        /// First slot of the ring.
        ring: u32,
        /// Offsets within the ring, ascending, and their slots.
        slots: Vec<(u32, Slot)>,
    },
    /// Writes a service's row.
    PutService(ServiceKey, Service),
    /// Removes a service's row.
    RemoveService(ServiceKey),
    /// Deletes the rows of `FLOWS` whose destination is one of these services: their transition is
    /// over, and what was remembered for it must not count in the next one.
    ForgetFlows(BTreeSet<ServiceKey>),
}

/// Where steps are carried out: the pinned maps, or memory in tests.
pub trait Store {
    /// Why a step failed.
    type Error: std::fmt::Display;

    /// Carries out one step.
    fn apply(&mut self, step: &Step) -> Result<(), Self::Error>;

    /// Reads everything back.
    fn observe(&self) -> Result<Actual, Self::Error>;
}
