//! `fairlead cleanup`: takes everything away that outlives an agent.
//!
//! Programs leave the devices first, so that no packet meets half of a datapath; routes and neighbours
//! of ours go next, then tables and folders. Pods stay: they belong to whoever added them.
//!
//! Not for stopping an agent: its lock ([`Pins::lock`]) says whether one runs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use crate::dataplane::attach::{self, Attachment};
use crate::dataplane::pins::{Lock, Pins};
use crate::host::{self, Netlink};

/// Why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program.
    #[error(transparent)]
    Attach(#[from] attach::Error),
    /// A route or a neighbour.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A pin.
    #[error("removing {}: {source}", path.display())]
    File {
        /// The pin.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Programs from devices.
    pub attachments: Vec<Attachment>,
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

/// Removes everything; nothing to remove is fine. The lock says that no agent runs on these pins; it
/// is needed only where there are any.
pub async fn cleanup(
    netlink: &Netlink,
    pins: &Pins,
    owner: Option<Lock>,
) -> Result<Removed, Error> {
    let mut removed = Removed {
        attachments: attach::attachments(pins)?,
        ..Removed::default()
    };
    for Attachment { hook, device } in &removed.attachments {
        attach::detach(pins, *hook, device)?;
    }
    removed.routes = netlink.flush_learnt_routes().await?;
    removed.neighbours = netlink.keep_neighbours(&BTreeSet::new()).await?.1;
    remove_folder(&pins.links())?;
    removed.programs = remove_folder(&pins.programs())?;
    removed.tables = remove_folder(&pins.maps())?;
    remove_empty(pins.root())?;
    drop(owner);
    Ok(removed)
}

/// Removes a folder of pins; returns their names in order.
fn remove_folder(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(folder)(error)),
    };
    let mut names = Vec::new();
    for file in files {
        let file = file.map_err(failed(folder))?;
        fs::remove_file(file.path()).map_err(failed(&file.path()))?;
        names.push(file.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    remove_empty(folder)?;
    Ok(names)
}

fn remove_empty(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::File {
            path: folder.to_owned(),
            source,
        }),
    }
}
