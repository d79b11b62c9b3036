//! `SERVING`: where backends listen for which this node translates, by bits that several may share.
//!
//! Whose bits they are is not in the table: it follows from `BACKENDS`, where it is read when an agent begins.

use std::collections::BTreeMap;

use fairlead_common::service::{ServingKey, forward};
use fairlead_common::tables::{Backends, Serving};
use imbl::OrdSet;

use super::mapped::Access;
use super::pins::Pins;
use super::table::{Error, Pinned};

/// The pinned table, and whose bits are set.
#[derive(Debug)]
pub struct Listeners {
    table: Pinned<Serving>,
    keys: OrdSet<ServingKey>,
    /// How many keys share a place.
    places: BTreeMap<(u32, u64), usize>,
}

impl Listeners {
    /// Opens the table; with write access, it holds afterwards what `BACKENDS` says.
    ///
    /// # Errors
    /// A table is not pinned, or is not this version's.
    pub fn open(pins: &Pins, backends: &Pinned<Backends>, access: Access) -> Result<Self, Error> {
        let mut table = Pinned::<Serving>::open(pins)?;
        let mut keys = OrdSet::new();
        for row in backends.rows() {
            let (_, row) = row?;
            if matches!(row.forward, forward::HERE | forward::NAT) {
                keys.insert(ServingKey::new(row.addr, row.port));
            }
        }
        let mut places = BTreeMap::new();
        for key in &keys {
            *places.entry(key.place()).or_default() += 1;
        }
        if access == Access::Write {
            let held = table.rows().collect::<Result<Vec<_>, _>>()?;
            for (word, bits) in held {
                let right = bits_of(&places, word);
                if bits != right {
                    table.set(&word, &right)?;
                }
            }
        }
        Ok(Self {
            table,
            keys,
            places,
        })
    }

    /// Where backends listen.
    pub fn keys(&self) -> &OrdSet<ServingKey> {
        &self.keys
    }

    /// Has the answers of a backend be looked for.
    ///
    /// # Errors
    /// The table cannot be written.
    pub fn put(&mut self, key: ServingKey) -> Result<(), Error> {
        if self.keys.insert(key).is_none() {
            *self.places.entry(key.place()).or_default() += 1;
        }
        self.write(key)
    }

    /// Has the answers of a backend be looked for no more.
    ///
    /// # Errors
    /// The table cannot be written.
    pub fn remove(&mut self, key: ServingKey) -> Result<(), Error> {
        if self.keys.remove(&key).is_some()
            && let Some(sharing) = self.places.get_mut(&key.place())
        {
            *sharing -= 1;
            if *sharing == 0 {
                self.places.remove(&key.place());
            }
        }
        self.write(key)
    }

    fn write(&mut self, key: ServingKey) -> Result<(), Error> {
        let (word, _) = key.place();
        self.table.set(&word, &bits_of(&self.places, word))
    }
}

fn bits_of(places: &BTreeMap<(u32, u64), usize>, word: u32) -> u64 {
    places
        .range((word, 0)..=(word, u64::MAX))
        .fold(0, |bits, ((_, bit), _)| bits | bit)
}
