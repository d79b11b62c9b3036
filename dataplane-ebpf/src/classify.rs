//! Which path a packet takes.

use fairlead_common::reason::Reason;

use crate::forward::Sent;
use crate::packet::Resize;
use crate::parse::{self, Kind};
use crate::{lb, maps, route};

/// A packet that came in by an uplink: to a service, back from the outside to a pod, or to be routed.
///
/// # Errors
/// Why it is passed untouched, or dropped.
#[inline(always)]
pub fn from_uplink(frame: &mut impl Resize) -> Result<Sent, Reason> {
    let device = maps::device(frame.ifindex()).ok_or(Reason::OtherDevice)?;
    if !parse::is_to(frame, device.mac)? {
        return Err(Reason::OtherMac);
    }
    let network = parse::network(frame)?;
    let transport = parse::transport(frame, &network);
    if let Ok(transport) = &transport
        && transport.kind == Kind::Ports
        && let Some(service) = maps::service(&transport.service(&network))
    {
        return lb::balance(frame, &network, transport, service);
    }
    route::forward(frame, &network, &transport?)
}
