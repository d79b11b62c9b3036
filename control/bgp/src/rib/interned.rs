//! Attributes that are alike, kept once: a table of a million routes has some hundred thousand of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::wire::Attributes;

/// How many may be kept before those that nobody uses are let go.
const FIRST_SWEEP: usize = 1024;

/// See the module.
#[derive(Debug)]
#[expect(
    clippy::zero_sized_map_values,
    reason = "an entry is hashed once, where a set looks and then inserts"
)]
pub(crate) struct Interned {
    known: HashMap<Arc<Attributes>, ()>,
    sweep_at: usize,
}

impl Default for Interned {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl Interned {
    /// The one copy of these attributes.
    pub(crate) fn only(&mut self, attributes: Arc<Attributes>) -> Arc<Attributes> {
        if self.known.len() >= self.sweep_at {
            // Half at least are new since the last time: it costs each a constant share.
            self.known.retain(|known, ()| Arc::strong_count(known) > 1);
            self.sweep_at = FIRST_SWEEP.max(2 * self.known.len());
        }
        match self.known.entry(attributes) {
            Entry::Occupied(known) => Arc::clone(known.key()),
            Entry::Vacant(new) => {
                let attributes = Arc::clone(new.key());
                new.insert(());
                attributes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn alike_attributes_are_one_and_unused_ones_go() {
        let mut interned = Interned::default();
        let some = |med| {
            let mut attributes = Attributes::local(IpAddr::V4(Ipv4Addr::LOCALHOST));
            attributes.med = Some(med);
            Arc::new(attributes)
        };
        let kept = interned.only(some(0));
        for med in 1..10_000 {
            interned.only(some(med));
        }
        assert!(Arc::ptr_eq(&kept, &interned.only(some(0))));
        assert!(interned.known.len() <= FIRST_SWEEP + 1);
    }
}
