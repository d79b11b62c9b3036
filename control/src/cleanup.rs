//! `fairlead cleanup`: takes everything away that outlives an agent.
//!
//! Programs leave the devices first, so that no packet meets half of a datapath; routes and neighbours
//! of ours go next, then tables and folders. Pods stay: they belong to whoever added them.
//!
//! Not for stopping an agent: its lock ([`Pins::lock`]) says whether one runs.

use std::collections::BTreeSet;
use std::fmt;

use crate::dataplane::attach::{self, Attachment};
use crate::dataplane::pins::{self, Lock, Pins};
use crate::dataplane::sockets;
use crate::host::{self, Netlink};

/// Why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program.
    #[error(transparent)]
    Attach(#[from] attach::Error),
    /// The programs for sockets.
    #[error(transparent)]
    Sockets(#[from] sockets::Error),
    /// A route or a neighbour.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A pin.
    #[error(transparent)]
    Pins(#[from] pins::Error),
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Programs from devices.
    pub attachments: Vec<Attachment>,
    /// Whether the programs for sockets were on a cgroup.
    pub sockets: bool,
    /// How many learnt routes.
    pub routes: usize,
    /// How many neighbours that were kept resolved.
    pub neighbours: usize,
    /// Programs.
    pub programs: Vec<String>,
    /// Tables.
    pub tables: Vec<String>,
}

impl Removed {
    /// Whether there was nothing to remove.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Removed {
    /// A line for each kind of thing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nothing() {
            return write!(f, "nothing to remove");
        }
        for Attachment { hook, device } in &self.attachments {
            writeln!(f, "detached {} from {device}", hook.program())?;
        }
        if self.sockets {
            writeln!(f, "detached the programs for sockets from their cgroup")?;
        }
        writeln!(
            f,
            "removed {} learnt routes and {} neighbours",
            self.routes, self.neighbours
        )?;
        write!(
            f,
            "unpinned {} programs and {} tables",
            self.programs.len(),
            self.tables.len()
        )
    }
}

/// Removes everything; nothing to remove is fine. The owner is who may remove the pins: absent where
/// there are none ([`Pins::exist`]).
pub async fn cleanup(
    netlink: &Netlink,
    pins: &Pins,
    owner: Option<Lock>,
) -> Result<Removed, Error> {
    let mut removed = Removed {
        sockets: sockets::detach(pins)?,
        attachments: attach::attachments(pins)?,
        ..Removed::default()
    };
    for Attachment { hook, device } in &removed.attachments {
        attach::detach(pins, *hook, device)?;
    }
    removed.routes = netlink.flush_learnt_routes().await?;
    removed.neighbours = netlink.keep_neighbours(&BTreeSet::new()).await?.1;
    if let Some(owner) = owner {
        let pins::Removed {
            programs, tables, ..
        } = pins.remove(&owner)?;
        removed.programs = programs;
        removed.tables = tables;
    }
    Ok(removed)
}
