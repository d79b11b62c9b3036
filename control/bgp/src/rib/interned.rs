//! Attributes that are alike, kept once: a table of a million routes has some hundred thousand of them.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};

use crate::wire::Attributes;

/// How many may be kept before those that nobody uses are let go.
const FIRST_SWEEP: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Interned {
    /// With the hash of each: a table that grows reads no attributes.
    known: HashTable<(u64, Arc<Attributes>)>,
    /// Seeded at random, as neighbours choose what is hashed.
    hasher: DefaultHashBuilder,
    sweep_at: usize,
}

impl Default for Interned {
    fn default() -> Self {
        Self {
            known: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl Interned {
    /// The one copy of these attributes.
    pub(crate) fn only(&mut self, attributes: Arc<Attributes>) -> Arc<Attributes> {
        if self.known.len() >= self.sweep_at {
            // Half at least are new since the last time: it costs each a constant share.
            self.known.retain(|(_, known)| Arc::strong_count(known) > 1);
            self.sweep_at = FIRST_SWEEP.max(2 * self.known.len());
        }
        let hash = self.hasher.hash_one(&attributes);
        let is_alike = |(_, known): &(u64, Arc<Attributes>)| *known == attributes;
        match self.known.entry(hash, is_alike, |(hash, _)| *hash) {
            Entry::Occupied(known) => Arc::clone(&known.get().1),
            Entry::Vacant(new) => {
                new.insert((hash, Arc::clone(&attributes)));
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
