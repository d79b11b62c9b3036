//! `fairlead decap attach|detach`: a backend behind a router takes packets out of the balancers'
//! tunnels. It needs one program and two small tables, and no agent.
//!
//! Not for balancing: a node loads everything ([`super::load::load`]).

use std::collections::BTreeSet;
use std::net::IpAddr;

use fairlead_common::addr::Addr;
use fairlead_common::tables::DecapAddrs;
use nix::net::if_::if_nametoindex;

use super::attach::{self, Hook, State};
use super::load::{self, Part};
use super::pins::{self, Pins};
use super::table::{self, Pinned};
use crate::config::document::XdpMode;

/// Why decapsulation could not be switched on or off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pins.
    #[error(transparent)]
    Pins(#[from] pins::Error),
    /// The program.
    #[error(transparent)]
    Load(#[from] load::Error),
    /// The device.
    #[error(transparent)]
    Attach(#[from] attach::Error),
    /// The addresses.
    #[error(transparent)]
    Table(#[from] table::Error),
}

/// Takes tunnelled packets to these service addresses out of their tunnels on a device, beside those
/// that were given before. May be repeated.
pub fn attach(
    pins: &Pins,
    device: &str,
    addresses: &BTreeSet<IpAddr>,
    mode: XdpMode,
) -> Result<State, Error> {
    // Before anything is made: for a device that is not there nothing is left behind.
    if if_nametoindex(device).is_err() {
        return Ok(State::Missing);
    }
    pins.prepare()?;
    let add = || -> Result<(), table::Error> {
        let mut table = Pinned::<DecapAddrs>::open(pins)?;
        addresses
            .iter()
            .try_for_each(|&addr| table.set(&Addr::new(addr), &1))
    };
    match pins.lock() {
        Ok(owner) => {
            let loaded = load::load_part(pins, &owner, Part::Decapsulation)?;
            add()?;
            Ok(loaded.attach(Hook::XdpDecap, device, mode)?)
        }
        // An agent runs here: its program and its tables serve.
        Err(pins::Error::Owned { .. }) => {
            add()?;
            Ok(attach::attach_pinned_in(
                pins,
                Hook::XdpDecap,
                device,
                mode,
            )?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Stops it on a device; `false` when it was not on. With the last device the addresses are forgotten,
/// and the pins go unless something else uses them.
pub fn detach(pins: &Pins, device: &str) -> Result<bool, Error> {
    let was_on = attach::detach(pins, Hook::XdpDecap, device)?;
    let left = attach::attachments(pins)?;
    if left.iter().any(|one| one.hook == Hook::XdpDecap) {
        return Ok(was_on);
    }
    match Pinned::<DecapAddrs>::open(pins) {
        Ok(mut table) => {
            let held: Vec<_> = table.rows().collect::<Result<_, _>>()?;
            for (addr, _) in held {
                table.remove(&addr)?;
            }
        }
        Err(table::Error::NotPinned { .. }) => return Ok(was_on),
        Err(error) => return Err(error.into()),
    }
    if left.is_empty()
        && is_alone(pins)
        && let Ok(owner) = pins.lock()
    {
        pins.remove(&owner)?;
    }
    Ok(was_on)
}

/// The addresses whose packets are taken out of tunnels.
pub fn addresses(pins: &Pins) -> Result<BTreeSet<IpAddr>, table::Error> {
    Pinned::<DecapAddrs>::open(pins)?
        .rows()
        .map(|row| row.map(|(addr, _)| addr.ip()))
        .collect()
}

/// Whether only this part is pinned.
fn is_alone(pins: &Pins) -> bool {
    fairlead_common::tables::ALL.iter().all(|table| {
        Part::Decapsulation.tables().contains(&table.name) || !pins.map(table.name).exists()
    })
}
