//! What was begun: a file for each attachment, written before anything is done for it and removed after all is
//! undone.
//!
//! ```text
//!   /run/cni/fairlead/NETWORK/CONTAINER:INTERFACE   locked (flock) by the command that works on it
//! ```
//!
//! Programs that a command starts inherit the lock: when the command is killed, an IPAM plugin that is still at work
//! is waited for as well.
//!
//! It holds what the IPAM plugin gave, once that is known. A command that was killed while it wrote leaves half of
//! a file, which says as much as an empty one: that something was begun.
//!
//! Not for what the kernel knows: links tell of themselves.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use serde::{Deserialize, Serialize};

use super::failure::{Code, Failure};
use super::ipam::Given;
use super::request::Attachment;

/// Between container and interface: neither may hold one.
const SEPARATOR: char = ':';

/// What is known of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The pod's network namespace.
    pub namespace: PathBuf,
    /// What the IPAM plugin gave.
    pub given: Given,
}

/// The record of an attachment, locked.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: Flock<File>,
    /// Whether something had been begun before.
    pub is_old: bool,
    /// What an earlier command wrote down, as far as it came.
    pub known: Option<Known>,
}

impl Record {
    /// Makes the record, or takes an earlier command's; waits for a command that works on it.
    pub fn take(folder: &Path, attachment: &Attachment) -> Result<Self, Failure> {
        fs::create_dir_all(folder).map_err(trouble("creating", folder))?;
        let path = folder.join(file_name(attachment));
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600);
            let made = options.clone().create_new(true).open(&path);
            let (file, is_old) = match made {
                Ok(file) => (file, false),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    match options.open(&path) {
                        Ok(file) => (file, true),
                        // Its command has just ended.
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        Err(error) => return Err(trouble("opening", &path)(error)),
                    }
                }
                Err(error) => return Err(trouble("creating", &path)(error)),
            };
            let file = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| trouble("locking", &path)(errno.into()))?;
            if let Some(record) = Self::open(path.clone(), file, is_old)? {
                return Ok(record);
            }
        }
    }

    /// Takes an earlier command's record; `None` when one works on it or has just removed it.
    fn take_idle(path: &Path) -> Result<Option<Self>, Failure> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(trouble("opening", path)(error)),
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Self::open(path.to_owned(), file, true),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(trouble("locking", path)(errno.into())),
        }
    }

    /// `None` when the file has been removed, or replaced, before it was locked.
    fn open(path: PathBuf, mut file: Flock<File>, is_old: bool) -> Result<Option<Self>, Failure> {
        let ours = file.metadata().map_err(trouble("reading", &path))?;
        match fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(trouble("reading", &path)(error)),
        }
        fcntl(&*file, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|errno| trouble("sharing", &path)(errno.into()))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)
            .map_err(trouble("reading", &path))?;
        Ok(Some(Self {
            known: serde_json::from_slice(&text).ok(),
            path,
            file,
            is_old,
        }))
    }

    /// Writes down what is known.
    pub fn write(&mut self, known: Known) -> Result<(), Failure> {
        let text = serde_json::to_vec(&known)
            .map_err(|error| trouble("writing", &self.path)(error.into()))?;
        let file = &mut *self.file;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(&text))
            .map_err(trouble("writing", &self.path))?;
        self.known = Some(known);
        Ok(())
    }

    /// Removes it: nothing of the attachment is left.
    pub fn remove(self) -> Result<(), Failure> {
        fs::remove_file(&self.path).map_err(trouble("removing", &self.path))
    }
}

/// The records of a network on which nobody works, but those of `valid` attachments.
pub fn stale(folder: &Path, valid: &[Attachment]) -> Result<Vec<(Attachment, Record)>, Failure> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(trouble("listing", folder)(error)),
    };
    let mut found = Vec::new();
    for file in listing {
        let file = file.map_err(trouble("listing", folder))?;
        let name = file.file_name();
        let Some(attachment) = name.to_str().and_then(attachment) else {
            continue;
        };
        if !valid.contains(&attachment)
            && let Some(record) = Record::take_idle(&file.path())?
        {
            found.push((attachment, record));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn file_name(attachment: &Attachment) -> String {
    format!(
        "{}{SEPARATOR}{}",
        attachment.container, attachment.interface
    )
}

fn attachment(file_name: &str) -> Option<Attachment> {
    let (container, interface) = file_name.split_once(SEPARATOR)?;
    Some(Attachment {
        container: container.to_owned(),
        interface: interface.to_owned(),
    })
}

fn trouble(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let doing = format!("{doing} {}", path.display());
    move |error| Failure::new(Code::Io, format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth0(container: &str) -> Attachment {
        Attachment {
            container: container.to_owned(),
            interface: "eth0".to_owned(),
        }
    }

    fn known() -> Known {
        Known {
            namespace: "/run/netns/a".into(),
            given: serde_json::from_str(
                r#"{"ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}]}"#,
            )
            .unwrap(),
        }
    }

    #[test]
    fn what_was_written_is_read_and_half_of_it_says_that_something_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Record::take(dir.path(), &eth0("a")).unwrap();
        assert!(!first.is_old);
        first.write(known()).unwrap();
        drop(first);

        let again = Record::take(dir.path(), &eth0("a")).unwrap();
        assert_eq!((again.is_old, again.known.clone()), (true, Some(known())));
        let length = again.file.metadata().unwrap().len();
        again.file.set_len(length / 2).unwrap();
        drop(again);

        let half = Record::take(dir.path(), &eth0("a")).unwrap();
        assert_eq!((half.is_old, half.known.clone()), (true, None));
        half.remove().unwrap();
        assert!(!Record::take(dir.path(), &eth0("a")).unwrap().is_old);
    }

    #[test]
    fn stale_is_what_is_not_valid_and_nobody_works_on() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            Record::take(dir.path(), &eth0(name)).unwrap();
        }
        let busy = Record::take(dir.path(), &eth0("c")).unwrap();

        let found = stale(dir.path(), &[eth0("a")]).unwrap();

        let names: Vec<_> = found.iter().map(|(of, _)| of.clone()).collect();
        assert_eq!(names, [eth0("b")]);
        drop((busy, found));
        assert_eq!(stale(dir.path(), &[]).unwrap().len(), 3);
        assert_eq!(stale(&dir.path().join("nowhere"), &[]).unwrap().len(), 0);
    }

    #[test]
    fn a_record_that_was_removed_while_it_was_waited_for_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let first = Record::take(dir.path(), &eth0("a")).unwrap();
        let folder = dir.path().to_owned();
        let waiting = std::thread::spawn(move || Record::take(&folder, &eth0("a")).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(20));

        first.remove().unwrap();

        let second = waiting.join().unwrap();
        assert!(second.path.exists());
        assert!(!second.is_old);
    }
}
