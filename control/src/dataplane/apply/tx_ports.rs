//! `TX_PORTS`: the devices that XDP may redirect to.

use std::collections::BTreeSet;

use fairlead_common::route::TxPort;
use fairlead_common::tables::TxPorts;

use crate::dataplane::pins::Pins;
use crate::dataplane::table::{self, Pinned};

/// Makes `TX_PORTS` hold exactly these devices; returns what was added and what was removed. A device
/// that has gone left the table by itself.
///
/// # Errors
/// The first device that could not be added or removed, after trying the others.
pub fn set_tx_ports(
    pins: &Pins,
    wanted: &BTreeSet<u32>,
) -> Result<(Vec<u32>, Vec<u32>), table::Error> {
    let mut table = Pinned::<TxPorts>::open(pins)?;
    let held: BTreeSet<u32> = table
        .rows()
        .map(|row| row.map(|(index, _)| index))
        .collect::<Result<_, _>>()?;
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    let mut first = None;
    for &index in wanted.difference(&held) {
        match add_tx_port_to(&mut table, index) {
            Ok(()) => added.push(index),
            Err(error) => first = first.or(Some(error)),
        }
    }
    for &index in held.difference(wanted) {
        match table.remove(&index) {
            Ok(_) => removed.push(index),
            Err(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok((added, removed)), Err)
}

/// Lets XDP redirect to a device, without touching others.
pub fn add_tx_port(pins: &Pins, index: u32) -> Result<(), table::Error> {
    add_tx_port_to(&mut Pinned::open(pins)?, index)
}

fn add_tx_port_to(table: &mut Pinned<TxPorts>, index: u32) -> Result<(), table::Error> {
    let port = TxPort {
        ifindex: index,
        program: 0,
    };
    table.set(&index, &port)
}
