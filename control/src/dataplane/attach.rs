//! Puts programs on devices, by links that are pinned and outlive the agent.
//!
//! ```text
//!   pinned link, device there    -> its program is replaced through the link: no packet passes without
//!   pinned link, device replaced or renamed -> the link is discarded, a new one is made
//!   no link, device there        -> XDP (driver, else generic) or TCX (else clsact)
//!   no device                    -> Missing: attach again when it appears (`host::links` watches)
//! ```
//!
//! Device names are those of the calling thread's network namespace.
//!
//! Not for loading ([`super::load`]), nor for what devices are (`host::links`).

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::xdp::{XdpLink, XdpMode as Mode};
use aya::programs::{
    LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, tc::SchedClassifierLink,
};
use aya::sys::SyscallError;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::clsact;
use super::link::Link;
use super::load::Loaded;
use super::pins::{self, Pins};
use crate::config::document::XdpMode;

/// Why a program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program holds the device.
    #[error(
        "another XDP program is attached to {device}: remove it with `ip link set dev {device} xdp off`, or leave {device} out of the configuration"
    )]
    Busy {
        /// The device.
        device: String,
    },
    /// The kernel or the driver refused.
    #[error("attaching {program} to {device}: {source}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no such program.
    #[error("program {program} is not pinned: start the agent (`fairlead run`)")]
    NoProgram {
        /// The program.
        program: &'static str,
    },
    /// A pin could not be removed or listed.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Where a program of ours goes on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// `xdp_ingress`: what arrives on an uplink.
    XdpIngress,
    /// `xdp_decap`: what a balancer sends to this backend.
    XdpDecap,
    /// `tc_ingress`: what a pod or the LAN sends.
    TcIngress,
    /// `tc_egress`: what the host itself sends by an uplink.
    TcEgress,
    /// `tc_to_pod`: what is sent to a pod or the LAN.
    TcToPod,
}

impl Hook {
    /// Those of a pod's device, and of the LAN's.
    pub const OF_POD: &[Self] = &[Self::TcIngress, Self::TcToPod];

    /// Every hook.
    pub const ALL: [Self; 5] = [
        Self::XdpIngress,
        Self::XdpDecap,
        Self::TcIngress,
        Self::TcEgress,
        Self::TcToPod,
    ];

    /// The program that belongs there.
    pub const fn program(self) -> &'static str {
        match self {
            Self::XdpIngress => "xdp_ingress",
            Self::XdpDecap => "xdp_decap",
            Self::TcIngress => "tc_ingress",
            Self::TcEgress => "tc_egress",
            Self::TcToPod => "tc_to_pod",
        }
    }

    /// Which way packets go where a TC program sees them.
    const fn direction(self) -> TcAttachType {
        match self {
            Self::TcEgress | Self::TcToPod => TcAttachType::Egress,
            Self::TcIngress | Self::XdpIngress | Self::XdpDecap => TcAttachType::Ingress,
        }
    }
}

/// How a program came to be on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A new link, run by the driver.
    Driver,
    /// A new link, run by the stack.
    Generic,
    /// A new TCX link.
    Tcx,
    /// A new filter of clsact, on a kernel without TCX.
    Clsact,
    /// The program was replaced on a link that was there.
    TakenOver,
    /// There is no such device now.
    Missing,
}

impl State {
    /// Whether the program sees packets.
    pub const fn is_attached(self) -> bool {
        !matches!(self, Self::Missing)
    }
}

/// A program on a device, as the pins tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// Which program.
    pub hook: Hook,
    /// On which device.
    pub device: String,
}

impl Loaded {
    /// Attaches a program to a device, or takes over the link that is there. May be repeated.
    pub fn attach(&self, hook: Hook, device: &str, mode: XdpMode) -> Result<State, Error> {
        attach_pinned_in(&self.pins, hook, device, mode)
    }

    /// Attaches a TC program as a filter of clsact, as [`Loaded::attach`] does by itself where the
    /// kernel has no TCX.
    pub fn attach_clsact(&self, hook: Hook, device: &str) -> Result<State, Error> {
        let path = self.pins.link(hook.program(), device);
        if let Program::SchedClassifier(mut tc) = open(&self.pins, hook, device)? {
            attach_clsact(&mut tc, hook, device, &path)
        } else {
            Err(Error::NoProgram {
                program: hook.program(),
            })
        }
    }
}

/// Attaches a program that an agent has pinned; for commands that run beside the agent or without it.
pub fn attach_pinned(pins: &Pins, hook: Hook, device: &str) -> Result<State, Error> {
    attach_pinned_in(pins, hook, device, XdpMode::Auto)
}

/// As [`attach_pinned`], with XDP in the driver or in the stack as asked.
pub fn attach_pinned_in(
    pins: &Pins,
    hook: Hook,
    device: &str,
    mode: XdpMode,
) -> Result<State, Error> {
    let mut program = open(pins, hook, device)?;
    attach(pins, &mut program, hook, device, mode)
}

/// A program of the pins, for a device.
fn open(pins: &Pins, hook: Hook, device: &str) -> Result<Program, Error> {
    let path = pins.program(hook.program());
    if !path.exists() {
        return Err(Error::NoProgram {
            program: hook.program(),
        });
    }
    match hook {
        Hook::XdpIngress | Hook::XdpDecap => {
            Xdp::from_pin(&path, aya_obj::programs::XdpAttachType::Interface).map(Program::Xdp)
        }
        Hook::TcIngress | Hook::TcEgress | Hook::TcToPod => {
            SchedClassifier::from_pin(&path).map(Program::SchedClassifier)
        }
    }
    .map_err(|error: ProgramError| refused(hook, device)(error.into()))
}

/// Removes a program from a device, at once; `false` when it was not there.
pub fn detach(pins: &Pins, hook: Hook, device: &str) -> Result<bool, Error> {
    let path = pins.link(hook.program(), device);
    if clsact::is_record(&path) {
        clsact::detach(device, hook.direction(), hook.program()).map_err(|source| Error::File {
            doing: "detaching",
            path: path.clone(),
            source,
        })?;
        return discard(&path);
    }
    cut(&path)
}

/// Ends a pinned link, at once; `false` when there was none.
pub(super) fn cut(path: &Path) -> Result<bool, Error> {
    // Cutting first: the pin alone lets go only a little later. A link whose device has gone says so.
    if let Ok(link) = Link::open(path)
        && let Err(error) = link.cut()
        && error.raw_os_error() != Some(libc::ENOLINK)
    {
        return Err(Error::File {
            doing: "detaching",
            path: path.to_owned(),
            source: error,
        });
    }
    discard(path)
}

/// What is attached, by the pins.
pub fn attachments(pins: &Pins) -> Result<Vec<Attachment>, Error> {
    let folder = pins.links();
    let failed = |source| Error::File {
        doing: "listing",
        path: folder.clone(),
        source,
    };
    let files = match fs::read_dir(&folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for file in files {
        let name = file.map_err(failed)?.file_name();
        let Some((program, device)) = name.to_str().and_then(pins::parse_link_name) else {
            continue;
        };
        let hook = Hook::ALL.into_iter().find(|hook| hook.program() == program);
        found.extend(hook.map(|hook| Attachment { hook, device }));
    }
    found.sort();
    Ok(found)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya knows 29 kinds of programs, the datapath has two"
)]
fn attach(
    pins: &Pins,
    program: &mut Program,
    hook: Hook,
    device: &str,
    mode: XdpMode,
) -> Result<State, Error> {
    let path = pins.link(hook.program(), device);
    let Ok(index) = if_nametoindex(device) else {
        discard(&path)?;
        return Ok(State::Missing);
    };
    // Another device may have the name by now: the link stayed with the one that was renamed.
    if Link::open(&path).is_ok_and(|link| link.device().is_ok_and(|held| held != index)) {
        detach(pins, hook, device)?;
    }
    if let Program::SchedClassifier(tc) = program
        && clsact::is_record(&path)
    {
        return attach_clsact(tc, hook, device, &path);
    }
    match PinnedLink::from_pin(&path) {
        Ok(pinned) => match take_over(program, pinned.into()) {
            Ok(()) => return Ok(State::TakenOver),
            Err(error) if is_dead(&error) => {
                discard(&path)?;
            }
            Err(error) => return Err(refused(hook, device)(error.into())),
        },
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
        }
        Err(error) => return Err(refused(hook, device)(error.into())),
    }
    let (link, state) = match program {
        Program::Xdp(xdp) => attach_xdp(xdp, hook, device, index, mode)?,
        Program::SchedClassifier(tc) => match link_tcx(tc, hook, device) {
            Ok(link) => (link, State::Tcx),
            // A kernel that does not know TCX.
            Err(error) if errno(&error) == Some(libc::EINVAL) => {
                info!(
                    device,
                    program = hook.program(),
                    "the kernel has no TCX: attaching by clsact"
                );
                return attach_clsact(tc, hook, device, &path);
            }
            Err(error) => return Err(refused(hook, device)(error.into())),
        },
        other => {
            return Err(refused(hook, device)(
                format!("a program of type {:?}", other.prog_type()).into(),
            ));
        }
    };
    // The pin holds the link from here on; the descriptor may go.
    link.pin(&path)
        .map_err(|error| refused(hook, device)(error.into()))?;
    Ok(state)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "aya knows 29 kinds of programs, the datapath has two"
)]
fn take_over(program: &mut Program, link: FdLink) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(xdp) => {
            let id = xdp.attach_to_link(XdpLink::try_from(link).map_err(not_a_link)?)?;
            // The pin holds the link: this descriptor must not.
            FdLink::try_from(xdp.take_link(id)?).map_err(not_a_link)?;
        }
        Program::SchedClassifier(tc) => {
            let id = tc.attach_to_link(SchedClassifierLink::try_from(link).map_err(not_a_link)?)?;
            FdLink::try_from(tc.take_link(id)?).map_err(not_a_link)?;
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(())
}

fn not_a_link(error: LinkError) -> ProgramError {
    match error {
        LinkError::SyscallError(error) => error.into(),
        LinkError::InvalidLink | LinkError::UnknownLinkType(_) => ProgramError::NotAttached,
    }
}

/// Whether the link has lost its device: `bpf_xdp_link_update` and `tcx_link_update` say `ENOLINK`.
fn is_dead(error: &ProgramError) -> bool {
    errno(error) == Some(libc::ENOLINK)
}

fn errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::SyscallError(SyscallError { io_error, .. }) = error {
        io_error.raw_os_error()
    } else {
        None
    }
}

fn attach_xdp(
    xdp: &mut Xdp,
    hook: Hook,
    device: &str,
    index: u32,
    mode: XdpMode,
) -> Result<(FdLink, State), Error> {
    let failed = |error: ProgramError| {
        if matches!(errno(&error), Some(libc::EBUSY | libc::EEXIST)) {
            Error::Busy {
                device: device.to_owned(),
            }
        } else {
            refused(hook, device)(error.into())
        }
    };
    if mode != XdpMode::Generic {
        match link_xdp(xdp, index, Mode::Driver) {
            Ok(link) => return Ok((link, State::Driver)),
            Err(error) if mode == XdpMode::Driver => return Err(failed(error)),
            Err(error) if matches!(errno(&error), Some(libc::EBUSY | libc::EEXIST)) => {
                return Err(failed(error));
            }
            Err(error) => {
                info!(device, program = hook.program(), %error, "the driver cannot run XDP: the stack does (generic mode)");
            }
        }
    }
    link_xdp(xdp, index, Mode::Skb)
        .map(|link| (link, State::Generic))
        .map_err(failed)
}

fn link_xdp(xdp: &mut Xdp, index: u32, mode: Mode) -> Result<FdLink, ProgramError> {
    let id = xdp.attach_to_if_index(index, mode)?;
    // aya tries netlink when the kernel refuses a link; that cannot be pinned, and ends here.
    FdLink::try_from(xdp.take_link(id)?).map_err(not_a_link)
}

fn link_tcx(tc: &mut SchedClassifier, hook: Hook, device: &str) -> Result<FdLink, ProgramError> {
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = tc.attach_with_options(device, hook.direction(), options)?;
    FdLink::try_from(tc.take_link(id)?).map_err(not_a_link)
}

fn attach_clsact(
    tc: &mut SchedClassifier,
    hook: Hook,
    device: &str,
    record: &Path,
) -> Result<State, Error> {
    match clsact::attach(tc, hook.direction(), device, record) {
        Ok(true) => Ok(State::TakenOver),
        Ok(false) => Ok(State::Clsact),
        Err(error) => Err(refused(hook, device)(error.into())),
    }
}

fn refused(
    hook: Hook,
    device: &str,
) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Error {
    let device = device.to_owned();
    move |source| Error::Refused {
        program: hook.program(),
        device,
        source,
    }
}

fn discard(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File {
            doing: "removing",
            path: path.to_owned(),
            source,
        }),
    }
}
