//! `fairlead pod add|del`: the host's part of a pod, then the datapath's.
//!
//! Works beside a running agent and without one; what only an agent can do is said in a note, and the
//! agent does it when it starts.
//!
//! Not for what a pod is on the host: [`crate::host::pods`].

use fairlead_common::route::{DEVICE_MASK, Device, device_flags};
use fairlead_common::tables::Devices;

use crate::dataplane::attach::{self, Hook, State};
use crate::dataplane::pins::Pins;
use crate::dataplane::table::{self, Pinned};
use crate::dataplane::{apply, table::Error as TableError};
use crate::host::pods::{Joined, Pod, Wanted};
use crate::host::{self, Netlink};

/// Why a pod could not be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's part.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A program.
    #[error(transparent)]
    Attach(#[from] attach::Error),
    /// A table.
    #[error(transparent)]
    Table(#[from] table::Error),
}

/// A pod that was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The pod and what was changed for it.
    pub joined: Joined,
    /// What is left to do, by whom.
    pub notes: Vec<String>,
}

/// Adds a pod; may be repeated.
pub async fn add(netlink: &Netlink, pins: &Pins, wanted: &Wanted) -> Result<Added, Error> {
    let joined = netlink.join_pod(wanted).await?;
    let mut notes = Vec::new();
    match attach_all(pins, &joined.pod.device) {
        Ok(State::Missing) => notes.push(format!(
            "{} vanished while it was set up",
            joined.pod.device
        )),
        Ok(_) => admit(pins, &joined.pod)?,
        Err(attach::Error::NoProgram { .. }) => notes.push(format!(
            "no agent has pinned its programs at {}: the pod is routed by the kernel alone until `fairlead run` attaches to it",
            pins.root().display()
        )),
        Err(error) => return Err(error.into()),
    }
    Ok(Added { joined, notes })
}

/// Attaches a pod's programs. The one that forwards what it sends comes last.
fn attach_all(pins: &Pins, device: &str) -> Result<State, attach::Error> {
    let mut state = State::Missing;
    for hook in Hook::OF_POD.iter().rev() {
        state = attach::attach_pinned(pins, *hook, device)?;
    }
    Ok(state)
}

/// Removes a pod, also a half-done one; `false` when there was nothing of it.
pub async fn del(netlink: &Netlink, pins: &Pins, name: &str) -> Result<bool, Error> {
    let device = host::pods::device_name(name);
    let parted = netlink.part_pod(&device).await?;
    let mut detached = false;
    for hook in Hook::OF_POD {
        detached |= attach::detach(pins, *hook, &device)?;
    }
    if let Some(link) = &parted {
        expel(pins, link.index)?;
    }
    Ok(parted.is_some() || detached)
}

/// Writes the rows that let the datapath receive from a pod and send to it.
fn admit(pins: &Pins, pod: &Pod) -> Result<(), TableError> {
    apply::add_tx_port(pins, pod.index)?;
    let mut devices = Pinned::<Devices>::open(pins)?;
    let row = pod.index & DEVICE_MASK;
    let known = devices
        .get(&row)?
        .filter(|known| known.ifindex == pod.index);
    let device = Device {
        ifindex: pod.index,
        mac: pod.mac,
        flags: device_flags::NO_TURN,
        pad: 0,
        // The agent says it, once it has seen the device; when a pod is added again, it has.
        mtu: known.map_or(0, |known| known.mtu),
    };
    devices.set(&row, &device)
}

/// Empties the row of a device that has gone; `TX_PORTS` forgets it by itself.
fn expel(pins: &Pins, index: u32) -> Result<(), TableError> {
    let mut devices = match Pinned::<Devices>::open(pins) {
        Ok(devices) => devices,
        Err(TableError::NotPinned { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let row = index & DEVICE_MASK;
    if devices
        .get(&row)?
        .is_some_and(|device| device.ifindex == index)
    {
        devices.remove(&row)?;
    }
    Ok(())
}
