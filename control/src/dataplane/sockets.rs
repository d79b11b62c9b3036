//! Puts the programs for sockets on a cgroup, by links that are pinned and outlive the agent.
//!
//! ```text
//!   pinned link, at this cgroup     -> its program is replaced through the link: no socket goes without
//!   pinned link, at another cgroup  -> the link is cut, a new one is made
//!   no link                         -> a new one
//! ```
//! A link is one of many: programs of others at this cgroup, above and below it run as well.
//!
//! Not for finding the cgroup (`host::cgroup`).

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya_obj::programs::CgroupSockAddrAttachType as Hook;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::attach;
use super::link::Link;
use super::load::Loaded;
use super::pins::Pins;

/// The programs, named as their hooks are.
const PROGRAMS: [(&str, Hook); 8] = [
    // What undoes comes first: an answer is never seen under the backend's address.
    ("recvmsg4", Hook::UDPRecvMsg4),
    ("recvmsg6", Hook::UDPRecvMsg6),
    ("getpeername4", Hook::GetPeerName4),
    ("getpeername6", Hook::GetPeerName6),
    ("connect4", Hook::Connect4),
    ("connect6", Hook::Connect6),
    ("sendmsg4", Hook::UDPSendMsg4),
    ("sendmsg6", Hook::UDPSendMsg6),
];
/// Stands in a pin's name where those of packet programs have a device.
const PLACE: &str = "cgroup";

/// Why the programs could not be put on a cgroup or taken off it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder is none of a cgroup.
    #[error(
        "{} is no cgroup of the unified hierarchy{}: `mount -t cgroup2 none FOLDER` makes that visible, `socketLoadBalancing.cgroup` names one",
        path.display(), source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default()
    )]
    NoCgroup {
        /// The folder.
        path: PathBuf,
        /// Why it could not be opened.
        source: Option<io::Error>,
    },
    /// A program or its link.
    #[error(transparent)]
    Attach(#[from] attach::Error),
}

impl Loaded {
    /// Attaches the programs for sockets to a cgroup, or takes over the links that are there. May be
    /// repeated. `true`: all were there.
    pub fn attach_sockets(&self, cgroup: &Path) -> Result<bool, Error> {
        let folder = open(cgroup)?;
        let id = folder.metadata().map_err(|source| Error::NoCgroup {
            path: cgroup.to_owned(),
            source: Some(source),
        })?;
        let mut were_there = true;
        for (name, hook) in PROGRAMS {
            let path = self.pins.link(name, PLACE);
            let mut program = CgroupSockAddr::from_pin(self.pins.program(name), hook)
                .map_err(|_| attach::Error::NoProgram { program: name })?;
            let refused =
                |source: Box<dyn std::error::Error + Send + Sync>| attach::Error::Refused {
                    program: name,
                    device: cgroup.display().to_string(),
                    source,
                };
            if let Ok(link) = Link::open(&path)
                && link.cgroup().is_ok_and(|held| held == id.ino())
            {
                let program = program.fd().map_err(|error| refused(error.into()))?;
                link.replace(program.as_fd())
                    .map_err(|error| refused(error.into()))?;
                continue;
            }
            attach::cut(&path)?;
            were_there = false;
            link(&mut program, &folder)
                .and_then(|link| Ok(link.pin(&path)?))
                .map_err(refused)?;
        }
        Ok(were_there)
    }
}

/// Takes the programs for sockets off their cgroup, at once; `false` when they were on none.
pub fn detach(pins: &Pins) -> Result<bool, Error> {
    let mut were_there = false;
    // What undoes goes last.
    for (name, _) in PROGRAMS.into_iter().rev() {
        were_there |= attach::cut(&pins.link(name, PLACE))?;
    }
    Ok(were_there)
}

fn open(cgroup: &Path) -> Result<File, Error> {
    let failed = |source| Error::NoCgroup {
        path: cgroup.to_owned(),
        source,
    };
    let folder = File::open(cgroup).map_err(|error| failed(Some(error)))?;
    let kind = statfs(cgroup).map_err(|errno| failed(Some(errno.into())))?;
    if kind.filesystem_type() == CGROUP2_SUPER_MAGIC {
        Ok(folder)
    } else {
        Err(failed(None))
    }
}

fn link(
    program: &mut CgroupSockAddr,
    folder: &File,
) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    // A link allows others whatever the mode says; kernels before 6.17 refuse a mode that says so.
    let id = program.attach(folder, CgroupAttachMode::Single)?;
    Ok(FdLink::try_from(program.take_link(id)?)?)
}
