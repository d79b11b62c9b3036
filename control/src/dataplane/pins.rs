//! Where maps, programs and links are pinned, and the lock that makes one agent their owner.
//!
//! ```text
//!   /sys/fs/bpf/fairlead/         locked (flock) by the agent that runs
//!     maps/NAME                   tables
//!     progs/NAME                  programs as the last agent loaded them
//!     links/PROGRAM-DEVICE        attachments
//! ```
//!
//! # Why the lock is on the directory
//! It belongs to the pins themselves: two agents with two configurations, two sockets or two mount
//! namespaces still meet at it, another pin path is another lock, and it ends with its process.
//!
//! Not for what is pinned: see [`super::load`] and [`super::attach`].

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where the kernel's BPF file system is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// Why the pins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: {}", path.display(), where_one_is(path)
    )]
    NotBpf {
        /// The pin path.
        path: PathBuf,
        /// Why mounting it here failed, when it was tried.
        source: Option<io::Error>,
    },
    /// Another agent owns the pins.
    #[error(
        "another agent{} owns {}: stop it, or give this one another pin path",
        holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display()
    )]
    Owned {
        /// The pin path.
        path: PathBuf,
        /// The process that holds the lock, where it can be seen from here.
        holder: Option<i32>,
    },
    /// A file operation failed.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Mounting over files would hide them: it is proposed only for a folder that is empty or not there.
fn where_one_is(path: &Path) -> String {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let is_empty = fs::read_dir(parent).is_ok_and(|mut files| files.next().is_none());
    if is_empty {
        format!(
            "`mount -t bpf bpf {}` (as root) makes one",
            parent.display()
        )
    } else {
        format!(
            "keep the pins below {BPFFS}, or mount one (`mount -t bpf bpf FOLDER`) and keep them there"
        )
    }
}

impl Error {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }
}

/// A pin path and the names under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Names the pins under `root`; touches nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The pin path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the tables.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The pin of a table.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The folder of the programs.
    pub fn programs(&self) -> PathBuf {
        self.root.join("progs")
    }

    /// The pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// The folder of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The pin of a program's attachment to a device.
    pub fn link(&self, program: &str, device: &str) -> PathBuf {
        self.links().join(link_name(program, device))
    }

    /// Whether an agent has ever pinned anything here.
    pub fn exist(&self) -> bool {
        self.maps().is_dir()
    }

    /// Makes the folders, on a BPF file system that is mounted first when that is the usual one.
    pub fn prepare(&self) -> Result<(), Error> {
        self.ensure_bpffs()?;
        for folder in [
            self.root.clone(),
            self.maps(),
            self.programs(),
            self.links(),
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&folder)
                .map_err(Error::file("creating", &folder))?;
        }
        Ok(())
    }

    fn ensure_bpffs(&self) -> Result<(), Error> {
        let existing = self
            .root
            .ancestors()
            .find(|ancestor| ancestor.is_dir())
            .unwrap_or(Path::new("/"));
        if is_bpffs(existing).map_err(Error::file("reading the file system of", existing))? {
            return Ok(());
        }
        let usual = Path::new(BPFFS);
        if !self.root.starts_with(usual) {
            return Err(Error::NotBpf {
                path: self.root.clone(),
                source: None,
            });
        }
        mount(
            Some("bpf"),
            usual,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            None::<&str>,
        )
        .map_err(|errno| Error::NotBpf {
            path: self.root.clone(),
            source: Some(errno.into()),
        })
    }

    /// Removes all pins and their folders: what was pinned ends with its last user. The lock says that
    /// no agent runs.
    pub fn remove(&self, _owner: &Lock) -> Result<Removed, Error> {
        let removed = Removed {
            links: remove_folder(&self.links())?,
            programs: remove_folder(&self.programs())?,
            tables: remove_folder(&self.maps())?,
        };
        remove_empty(&self.root)?;
        Ok(removed)
    }

    /// Makes this process the owner of the pins until the lock is dropped.
    ///
    /// # Errors
    /// [`Error::Owned`] when another process is.
    pub fn lock(&self) -> Result<Lock, Error> {
        loop {
            let folder = File::open(&self.root).map_err(Error::file("opening", &self.root))?;
            let folder = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(folder) => folder,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(Error::Owned {
                        path: self.root.clone(),
                        holder: self.owner(),
                    });
                }
                Err((_, errno)) => {
                    return Err(Error::file("locking", &self.root)(errno.into()));
                }
            };
            // A cleanup may have removed the folder between opening and locking it.
            if same_file(&folder, &self.root) {
                return Ok(Lock { _folder: folder });
            }
            self.prepare()?;
        }
    }

    /// The process that owns the pins, where one does and can be seen from here.
    pub fn owner(&self) -> Option<i32> {
        let folder = fs::metadata(&self.root).ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        owner_in(&locks, folder.dev(), folder.ino())
    }
}

/// Names of pins that were removed, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Links.
    pub links: Vec<String>,
    /// Programs.
    pub programs: Vec<String>,
    /// Tables.
    pub tables: Vec<String>,
}

fn remove_folder(folder: &Path) -> Result<Vec<String>, Error> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("listing", folder)(error)),
    };
    let mut names = Vec::new();
    for file in files {
        let file = file.map_err(Error::file("listing", folder))?;
        fs::remove_file(file.path()).map_err(Error::file("removing", &file.path()))?;
        names.push(file.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    remove_empty(folder)?;
    Ok(names)
}

fn remove_empty(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("removing", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Ownership of the pins; it ends when this is dropped or its process dies.
#[derive(Debug)]
pub struct Lock {
    _folder: Flock<File>,
}

/// The name of a link's pin. A BPF file system refuses dots, and a device name may hold one but
/// never a colon, so the colon stands for it.
fn link_name(program: &str, device: &str) -> String {
    format!("{program}-{}", device.replace('.', ":"))
}

/// The program and the device of a link's pin.
pub fn parse_link_name(name: &str) -> Option<(&str, String)> {
    let (program, device) = name.split_once('-')?;
    Some((program, device.replace(':', ".")))
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

fn same_file(open: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (open.metadata(), fs::metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Finds the holder of a flock in the text of `/proc/locks` (proc_locks(5)).
fn owner_in(locks: &str, device: u64, inode: u64) -> Option<i32> {
    let file = format!(
        "{:02x}:{:02x}:{inode}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device)
    );
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        // A waiter's line has an arrow before the kind and is not the holder's.
        let kind = words.next()?;
        let pid = words.nth(2)?;
        let held = words.next()?;
        (kind == "FLOCK" && held == file)
            .then(|| pid.parse().ok())?
            .filter(|&pid: &i32| pid > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_with_a_dot_keeps_its_name_through_the_pin() {
        let name = link_name("tc_egress", "eth0.100");

        assert_eq!(name, "tc_egress-eth0:100");
        assert_eq!(
            parse_link_name(&name),
            Some(("tc_egress", "eth0.100".to_owned()))
        );
    }

    #[test]
    fn a_device_with_a_hyphen_keeps_its_name_through_the_pin() {
        assert_eq!(
            parse_link_name(&link_name("xdp_ingress", "br-lan")),
            Some(("xdp_ingress", "br-lan".to_owned()))
        );
    }

    #[test]
    fn the_holder_is_found_among_other_locks_and_waiters() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:27:33334 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 17749 00:27:33334 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 00:27:33334 0 EOF\n";
        let device = nix::sys::stat::makedev(0, 0x27);

        assert_eq!(owner_in(locks, device, 33334), Some(17749));
        assert_eq!(owner_in(locks, device, 33335), None);
    }

    #[test]
    fn a_path_elsewhere_says_what_to_mount() {
        let folder = tempfile::tempdir().unwrap();
        let error = Pins::new(folder.path().join("fairlead"))
            .prepare()
            .unwrap_err();

        assert_eq!(
            error.to_string(),
            format!(
                "{0}/fairlead is not on a BPF file system: `mount -t bpf bpf {0}` (as root) makes one",
                folder.path().display()
            )
        );
    }
}
