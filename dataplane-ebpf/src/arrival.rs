//! Packets out of other nodes' tunnels: a balancer there has chosen a backend of this node.
//!
//! The outer destination is the backend's own address, which says whom it has chosen; the inner one is the service.
//! So the choice is exact whatever this node's own ring says, and this node translates for its own backend as it
//! does for packets that come to it directly. `xdp_ingress` turns off to here (`xdp_arrival`) by a tail call.
//!
//! # Why
//! A node port is one number in the whole cluster and is at every node's address: it is known by the number, so
//! that a node need not know all others.
//! As in [`decap`], outer sources are not checked, nor are the source ranges of a service: whoever can send to the
//! backend's own address reaches it without a tunnel too. What is for no backend of ours stays as it is: pods may
//! have tunnels of their own.

use fairlead_common::reason::Reason;
use fairlead_common::service::{Arrival, ArrivalKey};

use crate::decap::{self, Inside};
use crate::forward::Sent;
use crate::packet::{Frame, Resize};
use crate::parse::{self, Kind, Network, Transport};
use crate::{lb, maps};

/// A packet for a backend of this node, still wrapped.
pub struct Wrapped {
    inside: Inside,
    transport: Transport,
    arrival: Arrival,
}

/// Looks for a packet for a backend of this node inside `outer`.
///
/// # Errors
/// [`Reason::ServiceUntranslated`] for one to a service that is not plain or whose frame is tagged: whom it is for
/// is found elsewhere. [`Reason::Wrapped`] when there is none.
#[inline(always)]
pub fn find(frame: &impl Frame, outer: &Network) -> Result<Wrapped, Reason> {
    let inside = decap::inside(frame, outer).map_err(|_| Reason::Wrapped)?;
    let plain = match parse::transport(frame, &inside.packet) {
        Ok(transport) if transport.kind == Kind::Ports && !outer.is_tagged() => Some(transport),
        Ok(_) | Err(_) => None,
    };
    let Some(transport) = plain else {
        return Err(match maps::service_address(inside.packet.dst) {
            Some(_) => Reason::ServiceUntranslated,
            None => Reason::Wrapped,
        });
    };
    let mut key = ArrivalKey::new(&transport.service(&inside.packet), outer.dst);
    let arrival = match maps::arrival(&key) {
        Some(arrival) => arrival,
        None => {
            // `at_any_node` in place: a copy of the key would be a call.
            key.service = key.backend;
            maps::arrival(&key).ok_or(Reason::Wrapped)?
        }
    };
    Ok(Wrapped {
        inside,
        transport,
        arrival,
    })
}

/// Hands it over, and unwraps it.
///
/// # Errors
/// Why it is dropped, or [`Reason::ServiceToStack`].
#[inline(always)]
pub fn deliver(
    frame: &mut impl Resize,
    outer: &Network,
    wrapped: &Wrapped,
) -> Result<Sent, Reason> {
    let Wrapped {
        inside,
        transport,
        arrival,
    } = wrapped;
    decap::leaving(inside.packet.traffic_class, outer.traffic_class)?;
    // Nothing is changed before it is known that the packet gets there: its sender may have to be told.
    let end = lb::deliver(frame, &inside.packet, transport, arrival);
    if lb::is_sent(&end) {
        decap::strip(frame, outer, inside)?;
    }
    end
}
