//! Reads what the datapath counts and remembers, and clears what has outlived its time.
//!
//! Time comes in as an argument; [`now_s`] is the one place that reads the datapath's clock.
//!
//! Not for the tables that the plan owns: `apply` reads those back.

use std::collections::BTreeMap;

use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Count, Traffic};
use fairlead_common::snat::{self, Binding};
use fairlead_common::tables::{
    BackendStats, NatFlows, NatRecent, Reasons, ServiceStats, SnatFwd, SnatRev, Table,
};
use nix::time::{ClockId, clock_gettime};

use super::batch::Place;
use super::kept;
use super::pins::Pins;
use super::table::{Error, Pinned, Walk};

/// The clock that the datapath stamps its rows with, in seconds: `bpf_ktime_get_coarse_ns` reads
/// CLOCK_MONOTONIC at the last tick, which does not run while the machine sleeps.
///
/// # Errors
/// None on a kernel that runs the datapath.
pub fn now_s() -> std::io::Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u32::try_from(now.tv_sec()).unwrap_or(u32::MAX))
}

/// The datapath's counters.
#[derive(Debug)]
pub struct Counters {
    reasons: Pinned<Reasons>,
    services: Pinned<ServiceStats>,
    backends: Pinned<BackendStats>,
}

impl Counters {
    /// Opens the tables of counters.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            reasons: Pinned::open(pins)?,
            services: Pinned::open(pins)?,
            backends: Pinned::open(pins)?,
        })
    }

    /// Reads every reason's count, zeros included, in the order of [`Reason::ALL`].
    pub fn reasons(&self) -> Result<Vec<(Reason, Count)>, Error> {
        let counts: BTreeMap<_, _> = self.reasons.counts()?.into_iter().collect();
        let count = |reason: Reason| counts.get(&(reason as u32)).copied().unwrap_or_default();
        Ok(Reason::ALL
            .iter()
            .map(|&reason| (reason, count(reason)))
            .collect())
    }

    /// Reads the counts of services that have any, by service id.
    pub fn services(&self) -> Result<BTreeMap<u32, Traffic>, Error> {
        Ok(self.services.counts()?.into_iter().collect())
    }

    /// Reads the counts of backends that have any, by backend id.
    pub fn backends(&self) -> Result<BTreeMap<u32, Traffic>, Error> {
        Ok(self.backends.counts()?.into_iter().collect())
    }
}

/// A table of translations that is walked a slice at a time, so that what has outlived its time goes.
#[derive(Debug)]
pub struct Sweep<T: Table> {
    table: Pinned<T>,
    place: Place,
    /// Those that this walk has found alive so far.
    met: usize,
    alive: Option<usize>,
}

/// What one slice of clearing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// How many rows were looked at.
    pub examined: usize,
    /// How many of them were removed.
    pub removed: usize,
    /// Whether the walk came to the end of the table, and begins again.
    pub is_round_complete: bool,
}

impl<T: Table<Key = FlowKey, Value = Binding>> Sweep<T> {
    /// Opens the table.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            table: Pinned::open(pins)?,
            place: Place::default(),
            met: 0,
            alive: None,
        })
    }

    /// How many rows the last complete walk left; `None` before its end.
    pub fn alive(&self) -> Option<usize> {
        self.alive
    }

    /// Walks all rows.
    pub fn rows(&self) -> Walk<'_, T> {
        self.table.rows()
    }

    /// Removes rows that have outlived their time at `now_s`, looking at about `budget` of them; the next call goes
    /// on where this one stopped. Each removed row is shown to `removed`.
    pub fn clear_expired(
        &mut self,
        now_s: u32,
        budget: usize,
        mut removed: impl FnMut(&FlowKey, &Binding) -> Result<(), Error>,
    ) -> Result<Cleared, Error> {
        let (rows, next) = self.table.some_rows(self.place, budget)?;
        let mut cleared = Cleared {
            examined: rows.len(),
            removed: 0,
            is_round_complete: next.is_none(),
        };
        self.place = next.unwrap_or_default();
        for (key, binding) in rows {
            if !snat::is_expired(&binding, key.proto, now_s) {
                continue;
            }
            // A packet may have come since the slice was read.
            match self.table.get(&key)? {
                Some(current) if snat::is_expired(&current, key.proto, now_s) => {}
                _ => continue,
            }
            cleared.removed += usize::from(self.table.remove(&key)?);
            removed(&key, &binding)?;
        }
        self.met += cleared.examined - cleared.removed;
        if cleared.is_round_complete {
            self.alive = Some(std::mem::take(&mut self.met));
        }
        Ok(cleared)
    }
}

/// Everything that this node translates: egress, and flows of services.
#[derive(Debug)]
pub struct Translations {
    outside: Sweep<SnatRev>,
    cache: Pinned<SnatFwd>,
    kept: kept::Sweep,
    recent: Sweep<NatRecent>,
}

impl Translations {
    /// Opens the tables of translations.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            outside: Sweep::open(pins)?,
            cache: Pinned::open(pins)?,
            kept: kept::Sweep::open(pins)?,
            recent: Sweep::open(pins)?,
        })
    }

    /// How many rows the last complete walk of each table left, by the table's name; `None` before its end.
    pub fn alive(&self) -> [(&'static str, Option<usize>); 3] {
        [
            (SnatRev::NAME, self.outside.alive()),
            (NatFlows::NAME, self.kept.alive()),
            (NatRecent::NAME, self.recent.alive()),
        ]
    }

    /// Removes what has outlived its time at `now_s`, looking at about `budget` rows of each table of the kernel's, and
    /// at a piece of our own.
    pub fn clear_expired(&mut self, now_s: u32, budget: usize) -> Result<(), Error> {
        let cache = &mut self.cache;
        self.outside
            .clear_expired(now_s, budget, |outside, binding| {
                cache.remove(&inside(outside, binding)).map(drop)
            })?;
        self.kept.clear_expired(now_s)?;
        self.recent.clear_expired(now_s, budget, |_, _| Ok(()))?;
        Ok(())
    }
}

/// The flow as it looks inside, from its row.
pub fn inside(outside: &FlowKey, binding: &Binding) -> FlowKey {
    FlowKey::new(
        binding.inside,
        binding.inside_port,
        outside.dst,
        outside.dst_port,
        outside.proto,
    )
    .of_scope(binding.whose)
}
