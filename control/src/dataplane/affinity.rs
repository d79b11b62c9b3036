//! Clients that stay with a backend which their service does not have any more.
//!
//! The datapath looks at the backend only: whether it is still one of the service's, userspace says by
//! removing the row after the ring has changed.
//!
//! Not for the time that clients stay: the datapath sees that by itself.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_common::socket::Client;
use fairlead_common::tables::Affinity;

use super::pins::Pins;
use super::table::{self, Pinned};
use crate::plan::Actual;

/// Lets clients go whose backend is in no slot of their service's ring; returns how many.
pub fn let_go(pins: &Pins, actual: &Actual) -> Result<usize, table::Error> {
    let rings: BTreeMap<u32, u32> = actual
        .services
        .iter()
        .filter(|(key, row)| key.is_inside() && row.affinity_s != 0)
        .map(|(_, row)| (row.id, row.ring))
        .collect();
    if rings.is_empty() {
        // The rows that there may be are of services that no longer ask for them.
        return Ok(0);
    }
    let mut members: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let mut gone: Vec<Client> = Vec::new();
    let mut table = Pinned::<Affinity>::open(pins)?;
    for row in table.rows() {
        let (client, stays) = row?;
        let members = members.entry(client.service).or_insert_with(|| {
            let ring = rings.get(&client.service);
            let slots = ring.and_then(|ring| actual.rings.get(ring));
            slots
                .into_iter()
                .flat_map(|slots| slots.iter())
                .map(|slot| slot.current)
                .collect()
        });
        if !members.contains(&stays.backend) {
            gone.push(client);
        }
    }
    for client in &gone {
        table.remove(client)?;
    }
    Ok(gone.len())
}
