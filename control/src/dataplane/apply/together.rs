//! Rows of one table that follow each other are written together.
//!
//! # Why
//! A node that begins has a hundred thousand rows to write, and a system call for each costs several times the
//! writing.

use super::KernelStore;
use crate::plan::Step;

/// Carries out the first steps when they write rows of one table; how many were carried out.
pub(super) fn apply(store: &mut KernelStore, steps: &[Step]) -> usize {
    let steps = steps.iter();
    match steps.as_slice().first() {
        Some(Step::PutBackend(..)) => store.backends.set_together(steps.map_while(|step| {
            let Step::PutBackend(id, row) = step else {
                return None;
            };
            Some((*id, *row))
        })),
        Some(Step::PutService(..)) => {
            let rows = steps.map_while(|step| {
                let Step::PutService(key, row) = step else {
                    return None;
                };
                Some((*key, *row))
            });
            let done = store.services.set_together(rows.clone());
            for (key, row) in rows.take(done) {
                store.copies.put(&key, &row);
            }
            done
        }
        Some(Step::PutArrival(..)) => store.arrivals.set_together(steps.map_while(|step| {
            let Step::PutArrival(key, row) = step else {
                return None;
            };
            Some((*key, *row))
        })),
        Some(Step::PutAddress(..)) => store.addresses.set_together(steps.map_while(|step| {
            let Step::PutAddress(addr, flags) = step else {
                return None;
            };
            Some((*addr, *flags))
        })),
        _ => 0,
    }
}
