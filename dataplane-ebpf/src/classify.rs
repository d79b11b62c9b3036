//! Which path a packet takes.

use fairlead_common::addr::{Addr, Cidr4};
use fairlead_common::reason::Reason;

use crate::forward::Sent;
use crate::packet::{Resize, Skb};
use crate::parse::{self, Family, Kind};
use crate::{lb, maps, route, snat};

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
    if maps::service_address(network.dst).is_some() {
        return Err(Reason::ServiceOdd);
    }
    if let Some(node) = maps::node()
        && !network.dst.is_none()
    {
        if network.dst == node.egress {
            return snat::back(frame, node, &network, transport);
        }
        // What asking for the way would say, at a tenth of the price.
        if network.dst == node.tunnel_v4 || network.dst == node.tunnel_v6 {
            return Err(transport.map_or_else(|reason| reason, |_| Reason::Local));
        }
    }
    route::forward(frame, &network, &transport?)
}

/// A packet that came in from a pod or the LAN: to be routed.
///
/// # Errors
/// Why it is passed untouched.
#[inline(always)]
pub fn from_pod(frame: &mut Skb) -> Result<Sent, Reason> {
    if !frame.is_to_device() {
        return Err(Reason::OtherMac);
    }
    if frame.is_tagged() {
        return Err(Reason::Tagged);
    }
    let network = parse::network(frame)?;
    let transport = parse::transport(frame, &network)?;
    route::forward(frame, &network, &transport)
}

/// A packet that is about to leave by an uplink, whoever routed it: the last place where a pod's packet can be
/// translated, and so the one where it must.
///
/// # Errors
/// Why it passes as it is, or is dropped.
#[inline(always)]
pub fn to_wire(frame: &mut Skb) -> Result<(), Reason> {
    let network = parse::network(frame)?;
    if network.family == Family::V6 {
        return Err(Reason::NotFromPod);
    }
    let node = maps::node().ok_or(Reason::NotFromPod)?;
    if !contains(&node.pods, network.src) {
        return Err(Reason::NotFromPod);
    }
    if contains(&node.native, network.dst) {
        return Err(Reason::Native);
    }
    if node.egress.is_none() {
        return Err(Reason::TranslationOff);
    }
    snat::out(frame, node, &network)
}

#[inline(always)]
fn contains(cidrs: &[Cidr4], addr: Addr) -> bool {
    cidrs.iter().any(|cidr| cidr.contains_word(addr.v4_word()))
}
