//! Which backends operators have drained: kept in one small file, so that a restart and a reboot do not send
//! flows to a backend that somebody is working on.
//!
//! The file is replaced whole by a rename, so that it is the old one or the new one whatever happens. A drain
//! whose backend is in no service for [`FORGET_AFTER`] is forgotten: the address may be given to somebody else.
//! Until then a backend that comes back, from a pod's restart or a document that was broken for a while, is
//! still drained.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tracing::info;

use crate::desired::drain::{Drain, Drains};
use crate::desired::{Condition, Desired};

/// How long a drain outlives its backend.
pub(super) const FORGET_AFTER: Duration = Duration::from_mins(10);

const FILE: &str = "drains.json";

/// The drains and their file.
#[derive(Debug)]
pub(super) struct DrainBook {
    path: PathBuf,
    drains: Drains,
    /// Why the file could not be read; then it is not written either.
    unreadable: Option<String>,
    /// Drains whose backend is in no service, and since when.
    missing: BTreeMap<Drain, Duration>,
}

impl DrainBook {
    /// Reads the file in this folder; without one nothing is drained. One that cannot be read becomes a
    /// condition: an agent that does not start would be worse.
    pub(super) fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Drains::new()),
            Err(error) => Err(error.to_string()),
        };
        let (drains, unreadable) = match read {
            Ok(drains) => (drains, None),
            Err(why) => (Drains::new(), Some(why)),
        };
        Self {
            path,
            drains,
            unreadable,
            missing: BTreeMap::new(),
        }
    }

    pub(super) const fn drains(&self) -> &Drains {
        &self.drains
    }

    pub(super) fn condition(&self) -> Option<Condition> {
        self.unreadable.as_ref().map(|why| Condition {
            object: format!("file {}", self.path.display()),
            origin: String::new(),
            reason: "DrainsUnreadable".to_owned(),
            message: format!(
                "{why}; backends that were drained take flows: mend or remove the file and restart the agent"
            ),
        })
    }

    /// Adds a drain; false: it was there.
    pub(super) fn add(&mut self, drain: Drain) -> Result<bool> {
        let mut drains = self.drains.clone();
        let is_new = drains.insert(drain);
        self.keep(drains)?;
        Ok(is_new)
    }

    /// Takes away every drain that lies within what is named, and returns them.
    pub(super) fn remove(&mut self, named: &Drain) -> Result<Drains> {
        let (removed, kept) = self
            .drains
            .iter()
            .cloned()
            .partition(|drain| lies_within(drain, named));
        self.keep(kept)?;
        Ok(removed)
    }

    /// Forgets drains whose backends have been gone for long. `now` is of any clock that does not jump.
    pub(super) fn forget_missing(&mut self, desired: &Desired, now: Duration) -> Result<()> {
        let is_there = |drain: &Drain| {
            let mut services = desired.services.values();
            services.any(|one| one.backends.keys().any(|at| drain.covers(one, at)))
        };
        self.missing
            .retain(|drain, _| self.drains.contains(drain) && !is_there(drain));
        let mut kept = self.drains.clone();
        for drain in &self.drains {
            if is_there(drain) {
                continue;
            }
            let since = *self.missing.entry(drain.clone()).or_insert(now);
            if now.saturating_sub(since) >= FORGET_AFTER {
                info!(%drain, "no service has had this backend for a while: it is drained no more");
                kept.remove(drain);
            }
        }
        self.keep(kept)
    }

    /// Writes the file when it says something else.
    fn keep(&mut self, drains: Drains) -> Result<()> {
        if drains == self.drains {
            return Ok(());
        }
        if let Some(why) = &self.unreadable {
            bail!(
                "{} cannot be read ({why}), so it is not written over: mend or remove it and restart the agent",
                self.path.display()
            );
        }
        write(&self.path, &serde_json::to_vec_pretty(&drains)?)
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.drains = drains;
        Ok(())
    }
}

fn lies_within(drain: &Drain, named: &Drain) -> bool {
    drain.address == named.address
        && (named.port.is_none() || named.port == drain.port)
        && (named.service.is_none() || named.service == drain.service)
}

/// Replaces a file: the old one or the new one is there, whatever happens.
fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;
    use crate::desired::{Backend, BackendAddr, Frontend, Home, ObjectName, Scope, Service};

    fn drain(last: u8, port: Option<u16>) -> Drain {
        Drain {
            address: IpAddr::from([10, 0, 0, last]),
            port,
            service: None,
        }
    }

    fn desired(backends: &[u8]) -> Desired {
        let mut desired = Desired::default();
        let backend = Backend {
            ready: true,
            serving: true,
            weight: 1,
            home: Home::Bare,
        };
        let backends = backends.iter().map(|&last| {
            let at = BackendAddr {
                addr: IpAddr::from([10, 0, 0, last]),
                port: 80,
            };
            (at, backend)
        });
        let frontend = Frontend {
            addr: IpAddr::from([192, 0, 2, 1]),
            port: 80,
            proto: fairlead_common::addr::Proto::TCP,
            scope: Scope::Outside,
        };
        let service = Service {
            object: ObjectName::default(),
            backends: Arc::new(backends.collect()),
            ..Service::default()
        };
        desired.services.insert(frontend, service.into());
        desired
    }

    #[test]
    fn what_is_drained_is_drained_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        // The folder is made when it is needed.
        let folder = folder.path().join("state");
        let mut book = DrainBook::open(&folder);
        assert!(book.add(drain(1, None)).unwrap());
        assert!(!book.add(drain(1, None)).unwrap(), "it was drained already");
        assert!(book.add(drain(2, Some(80))).unwrap());

        let book = DrainBook::open(&folder);

        assert_eq!(book.drains(), &[drain(1, None), drain(2, Some(80))].into());
        assert_eq!(book.condition(), None);
    }

    #[test]
    fn undraining_takes_away_what_lies_within_what_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = DrainBook::open(folder.path());
        book.add(drain(1, Some(80))).unwrap();
        book.add(drain(1, Some(443))).unwrap();
        book.add(drain(2, None)).unwrap();

        assert_eq!(
            book.remove(&drain(2, Some(80))).unwrap(),
            [].into(),
            "wider than named"
        );
        assert_eq!(
            book.remove(&drain(1, Some(80))).unwrap(),
            [drain(1, Some(80))].into()
        );
        assert_eq!(
            book.remove(&drain(1, None)).unwrap(),
            [drain(1, Some(443))].into()
        );

        assert_eq!(
            DrainBook::open(folder.path()).drains(),
            &[drain(2, None)].into()
        );
    }

    #[test]
    fn a_drain_outlives_its_backend_for_a_while_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = DrainBook::open(folder.path());
        book.add(drain(1, None)).unwrap();
        let mut at = |minutes, backends: &[u8]| {
            let now = Duration::from_mins(minutes);
            book.forget_missing(&desired(backends), now).unwrap();
            book.drains().len()
        };

        assert_eq!(at(0, &[1, 2]), 1);
        assert_eq!(at(100, &[2]), 1);
        assert_eq!(at(109, &[2]), 1);
        assert_eq!(at(109, &[1]), 1, "it comes back");
        assert_eq!(at(111, &[2]), 1, "the time begins anew");
        assert_eq!(at(121, &[2]), 0);
        assert_eq!(DrainBook::open(folder.path()).drains(), &Drains::new());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_condition_and_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "[{").unwrap();

        let mut book = DrainBook::open(folder.path());

        assert_eq!(book.condition().unwrap().reason, "DrainsUnreadable");
        let refused = book.add(drain(1, None)).unwrap_err().to_string();
        assert!(refused.contains("mend or remove it"), "{refused}");
        assert_eq!(
            std::fs::read_to_string(folder.path().join(FILE)).unwrap(),
            "[{"
        );
    }
}
