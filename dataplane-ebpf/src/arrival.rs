//! Packets out of other nodes' tunnels: a balancer there has chosen a backend of this node.
//!
//! The outer destination is the backend's own address, which says whom it has chosen; the inner one is the service.
//! So the choice is exact whatever this node's own ring says, and this node translates for its own backend as it
//! does for packets that come to it directly. `xdp_ingress` turns off to here (`xdp_arrival`) by a tail call.
//!
//! # Why
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
#[inline(always)]
pub fn find(frame: &impl Frame, outer: &Network) -> Option<Wrapped> {
    let inside = decap::inside(frame, outer).ok()?;
    let transport = parse::transport(frame, &inside.packet).ok()?;
    if transport.kind != Kind::Ports || outer.is_tagged() {
        return None;
    }
    let key = ArrivalKey::new(&transport.service(&inside.packet), outer.dst);
    Some(Wrapped {
        arrival: maps::arrival(&key)?,
        inside,
        transport,
    })
}

/// Unwraps it and hands it over.
///
/// # Errors
/// Why it is dropped, or [`Reason::ServiceToStack`].
#[inline(always)]
pub fn deliver(
    frame: &mut impl Resize,
    outer: &Network,
    wrapped: &Wrapped,
) -> Result<Sent, Reason> {
    decap::strip(frame, outer, &wrapped.inside)?;
    let cut = wrapped.inside.outer_bytes(outer);
    let inner = Network {
        at: wrapped.inside.packet.at - cut,
        ..wrapped.inside.packet
    };
    let transport = Transport {
        at: wrapped.transport.at - cut,
        ..wrapped.transport
    };
    lb::deliver(frame, &inner, &transport, &wrapped.arrival)
}
