//! Backend ids: found again in the table, or the lowest that nothing can name.

use std::collections::BTreeMap;

use fairlead_common::service::forward;
use fairlead_common::tables::{Backends, Table};
use hashbrown::{HashMap, HashSet};

use super::address;
use crate::desired::BackendAddr;
use crate::plan::{Actual, Rest};

/// Ids of backends by where they listen, and back.
pub(super) struct Ids<'a> {
    of: HashMap<BackendAddr, u32>,
    addresses: BTreeMap<u32, BackendAddr>,
    rest: &'a Rest<'a>,
    /// The lowest id that may be free.
    next: u32,
}

impl<'a> Ids<'a> {
    pub(super) fn new(actual: &Actual, rest: &'a Rest<'a>) -> Self {
        let mut ids = Self {
            of: HashMap::new(),
            addresses: BTreeMap::new(),
            rest,
            next: 1,
        };
        for (&id, row) in &actual.backends {
            if id != 0 && row.forward != forward::FREE {
                // Of two rows for one backend the lower stays; the other retires.
                ids.of.entry(address(row)).or_insert(id);
                ids.addresses.insert(id, address(row));
            }
        }
        ids
    }

    /// The id of a backend, a new one when it has none; `None` when the table is full.
    pub(super) fn assign(&mut self, at: BackendAddr) -> Option<u32> {
        if let Some(id) = self.of.get(&at) {
            return Some(*id);
        }
        let Rest { ledger, memory, .. } = self.rest;
        let mut free = ledger.gaps.from(self.next);
        let id = free.find(|id| !ledger.is_id_taken(*id, memory))?;
        self.next = id;
        if id >= Backends::CAPACITY {
            return None;
        }
        self.next = id + 1;
        self.of.insert(at, id);
        self.addresses.insert(id, at);
        Some(id)
    }

    /// The id of a backend that has one; 0, nobody's, otherwise.
    pub(super) fn id(&self, at: BackendAddr) -> u32 {
        self.of.get(&at).copied().unwrap_or(0)
    }

    /// Where the backend of each id listens.
    pub(super) const fn addresses(&self) -> &BTreeMap<u32, BackendAddr> {
        &self.addresses
    }

    /// Whether an id is one of these backends'.
    pub(super) fn is_among(&self, id: u32, backends: &HashSet<BackendAddr>) -> bool {
        let at = self.addresses.get(&id);
        at.is_some_and(|at| backends.contains(at))
    }
}
