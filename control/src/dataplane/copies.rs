//! `SERVICE_CELLS` and `SERVICE_COPIES`: services by a hash of ours, so that most packets ask no hash table of the
//! kernel's.
//!
//! ```text
//!   SERVICE_CELLS [hash of the key] -> a row of SERVICE_COPIES -> {key, service}
//!   another key, or none                                       -> SERVICES says it
//! ```
//! # Why
//! `SERVICES` is the truth and has room for every service; finding a row there costs as much as choosing the backend. A
//! copy is never changed while a cell names it: a service that changes gets another one, and a packet sees the
//! service as it was or as it is, never a mixture. A copy that was given up is written again only after all that had
//! been given up before, which is half of the table: long after every packet that found it.
//!
//! A cell has one service. Others whose keys fall there are found in `SERVICES`, at the usual price.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use fairlead_common::service::{Service, ServiceCopy, ServiceKey};
use fairlead_common::tables::{ServiceCells, ServiceCopies, Services, Table as _};

use super::mapped::{Access, Mapped};
use super::pins::Pins;
use super::table::{Error, Pinned};

/// Words of a copy.
const WORDS: usize = size_of::<ServiceCopy>() / 8;

/// The pinned tables, and which copies nobody names.
#[derive(Debug)]
pub struct Copies {
    cells: Mapped<u64>,
    rows: Mapped<u64>,
    /// In the order in which they were given up.
    free: VecDeque<u32>,
}

impl Copies {
    /// Opens the tables; with write access, they hold afterwards what `SERVICES` says.
    ///
    /// # Errors
    /// A table is not pinned, or is not this version's.
    pub fn open(pins: &Pins, services: &Pinned<Services>, access: Access) -> Result<Self, Error> {
        let cells = Pinned::<ServiceCells>::open(pins)?;
        let copies = Pinned::<ServiceCopies>::open(pins)?;
        let mut all = Self {
            cells: cells.mapped(0..ServiceCells::CAPACITY, access)?,
            rows: copies.mapped(0..ServiceCopies::CAPACITY, access)?,
            free: VecDeque::new(),
        };
        if access == Access::Write {
            all.follow(services)?;
        }
        Ok(all)
    }

    /// Lets go what an agent that died has left half done, and gives a copy to each service that has none.
    fn follow(&mut self, services: &Pinned<Services>) -> Result<(), Error> {
        let mut is_taken = vec![false; ServiceCopies::CAPACITY as usize];
        let mut given_up = Vec::new();
        for cell in 0..self.cells.len() {
            let Some(at) = self.held(cell) else { continue };
            let Some(copy) = self.copy(at) else {
                self.name(cell, 0);
                continue;
            };
            is_taken[at as usize] = true;
            let is_its = copy.key.cell() as usize == cell;
            if !is_its || services.get(&copy.key)? != Some(copy.service) {
                self.name(cell, 0);
                given_up.push(at);
            }
        }
        // Copy 0 is nobody's. Packets may be reading those that were given up just now: they come last.
        self.free = (1..ServiceCopies::CAPACITY)
            .filter(|at| !is_taken[*at as usize])
            .chain(given_up)
            .collect();
        for row in services.rows() {
            let (key, service) = row?;
            self.put(&key, &service);
        }
        Ok(())
    }

    /// Has packets find a service as it is now.
    pub fn put(&mut self, key: &ServiceKey, service: &Service) {
        let cell = key.cell() as usize;
        let held = self.held(cell);
        if let Some(copy) = held.and_then(|at| self.copy(at))
            && (copy.key != *key || copy.service == *service)
        {
            return;
        }
        let copy = ServiceCopy {
            key: *key,
            service: *service,
        };
        // There are twice as many copies as services; without one, `SERVICES` says what is.
        let at = self.free.pop_front().unwrap_or_default();
        if at != 0 {
            let words: [u64; WORDS] = bytemuck::cast(copy);
            for (place, word) in words.into_iter().enumerate() {
                let _ = self.rows.set(at as usize * WORDS + place, word);
            }
        }
        self.name(cell, at);
        self.free.extend(held);
    }

    /// Has packets find a service here no more.
    pub fn remove(&mut self, key: &ServiceKey) {
        let cell = key.cell() as usize;
        let held = self.held(cell);
        if let Some(copy) = held.and_then(|at| self.copy(at))
            && copy.key == *key
        {
            self.name(cell, 0);
            self.free.extend(held);
        }
    }

    /// The copy that a cell names.
    fn held(&self, cell: usize) -> Option<u32> {
        let at = self.cells.get(cell)? as u32;
        (at != 0).then_some(at)
    }

    fn copy(&self, at: u32) -> Option<ServiceCopy> {
        let mut words = [0_u64; WORDS];
        for (place, word) in words.iter_mut().enumerate() {
            *word = self.rows.get(at as usize * WORDS + place)?;
        }
        Some(bytemuck::cast(words))
    }

    /// Has a cell name a copy, whose words packets must see by then.
    fn name(&mut self, cell: usize, at: u32) {
        fence(Ordering::Release);
        let _ = self.cells.set(cell, at.into());
    }
}
