//! TC programs on kernels without TCX (before 6.6): filters of a `clsact` queueing discipline.
//!
//! A filter is no link and cannot be pinned. It stays on its device by itself, at a priority and a
//! handle of our own, where the next agent replaces its program in place; where a link would be
//! pinned, the program is, as the record that the filter is there.
//!
//! Not for newer kernels, where [`super::attach`] makes links.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};

use super::link::Link;

/// Our place among the filters of a device: behind an administrator's, which begin low.
const PRIORITY: u16 = 196;
/// Our filter at that priority.
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether the pin records a filter: it is a program, which is on no device.
pub(super) fn is_record(pin: &Path) -> bool {
    Link::open(pin).is_ok_and(|link| link.device().is_err())
}

/// Puts the program on a device, in the place of ours that is there; `true` when there was one.
pub(super) fn attach(
    program: &mut SchedClassifier,
    direction: TcAttachType,
    device: &str,
    record: &Path,
) -> Result<bool, ProgramError> {
    // There already is as good, and whatever else is wrong the filter will say.
    let _ = tc::qdisc_add_clsact(device);
    let was_there = match replace(program, direction, device) {
        Ok(()) => true,
        Err(_) => {
            let place = NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            };
            let id =
                program.attach_with_options(device, direction, TcAttachOptions::Netlink(place))?;
            keep(program.take_link(id)?);
            false
        }
    };
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ProgramError::IOError(error));
        }
        _ => {}
    }
    program
        .pin(record)
        .map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    Ok(was_there)
}

fn replace(
    program: &mut SchedClassifier,
    direction: TcAttachType,
    device: &str,
) -> Result<(), ProgramError> {
    let held = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None)
        .map_err(ProgramError::IOError)?;
    let id = program.attach_to_link(held)?;
    keep(program.take_link(id)?);
    Ok(())
}

/// A dropped filter is removed from its device, and this one is to outlive the agent.
fn keep(link: SchedClassifierLink) {
    std::mem::forget(link);
}

/// Takes our filter off a device; nothing there is fine.
pub(super) fn detach(device: &str, direction: TcAttachType, program: &str) -> io::Result<()> {
    match tc::qdisc_detach_program(device, direction, program) {
        Err(tc::TcError::IoError(error))
            if error.kind() != io::ErrorKind::NotFound
                && error.raw_os_error() != Some(libc::ENODEV) =>
        {
            Err(error)
        }
        Err(tc::TcError::NetlinkError(error)) => Err(io::Error::other(error)),
        _ => Ok(()),
    }
}
