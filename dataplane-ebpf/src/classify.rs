//! Which path a packet takes.

use fairlead_common::addr::{Addr, Cidr4, Proto};
use fairlead_common::reason::Reason;
use fairlead_common::route::{Device, node_flags};
use fairlead_common::service::scope;

use crate::forward::Sent;
use crate::packet::{Frame, Resize, Skb};
use crate::parse::{self, ETHERNET_BYTES, Family, Kind, Network, Target, Transport, ether_type};
use crate::rewrite::{self, End};
use crate::{arrival, decap, lb, maps, relay, route, snat};

/// A packet that came in by an uplink: to a service, back from the outside to a pod, or to be routed.
///
/// # Errors
/// Why it is passed untouched, or dropped.
#[inline(always)]
pub fn from_uplink(frame: &mut impl Resize, device: &Device) -> Result<Sent, Reason> {
    if !parse::is_to(frame, maps::mac_word(device))? {
        return Err(Reason::OtherMac);
    }
    // Built for each family: where that and the header's place are constants, much of what follows is none.
    match parse::ether_type(frame)? {
        ether_type::IPV4 => {
            if is_hosts_icmp(parse::target_v4(frame, ETHERNET_BYTES)?, Proto::ICMP) {
                let network = parse::ipv4(frame, ETHERNET_BYTES)?;
                return Err(left_to_host(frame, &network));
            }
            let network = parse::ipv4(frame, ETHERNET_BYTES)?;
            take(frame, &network)
        }
        ether_type::IPV6 => {
            if is_hosts_icmp(parse::target_v6(frame, ETHERNET_BYTES)?, Proto::ICMPV6) {
                let network = parse::ipv6(frame, ETHERNET_BYTES)?;
                return Err(left_to_host(frame, &network));
            }
            let network = parse::ipv6(frame, ETHERNET_BYTES)?;
            take(frame, &network)
        }
        ether_type::VLAN | ether_type::PROVIDER_VLAN => Err(Reason::Tagged),
        _ => Err(Reason::NotIp),
    }
}

/// As [`from_uplink`], of tagged frames.
///
/// # Errors
/// As [`from_uplink`].
#[inline(always)]
pub fn from_vlan(frame: &mut impl Resize) -> Result<Sent, Reason> {
    let network = parse::network(frame)?;
    take(frame, &network)
}

#[inline(always)]
fn take(frame: &mut impl Resize, network: &Network) -> Result<Sent, Reason> {
    let transport = parse::transport(frame, network);
    if let Ok(transport) = &transport
        && transport.kind == Kind::Ports
        && maps::may_be_services(network.dst)
        && let Some(service) = maps::service_at_once(transport.service(network))
    {
        return lb::balance(frame, network, transport, scope::OUTSIDE, &service, true);
    }
    if let Ok(transport) = &transport
        && decap::is_wrapped(network, transport)
    {
        return Err(Reason::Wrapped);
    }
    unserved(frame, network, transport)
}

/// A packet that carries another one: another node's balancer may have wrapped it for a backend of this node. It
/// came in by an uplink, and `from_uplink` had no other use for it.
///
/// # Errors
/// As [`from_uplink`].
#[inline(always)]
pub fn from_tunnel(frame: &mut impl Resize) -> Result<Sent, Reason> {
    let network = parse::network(frame)?;
    match arrival::find(frame, &network) {
        Ok(wrapped) => arrival::deliver(frame, &network, &wrapped),
        Err(Reason::Wrapped) => {
            let transport = parse::transport(frame, &network);
            unserved(frame, &network, transport)
        }
        Err(reason) => Err(reason),
    }
}

/// Whether a packet is ICMP to this node, where no pod leaves under its address: nobody's but the host's, which is
/// seen before the rest is read.
#[inline(always)]
fn is_hosts_icmp(target: Target, icmp: Proto) -> bool {
    let node = maps::node();
    target.proto == icmp && node.is_at(target.dst) && node.flags & node_flags::EGRESS_IS_LOCAL == 0
}

/// How a packet ends that is for this node itself: as one of its own when it is whole.
#[inline(always)]
fn left_to_host(frame: &impl Frame, network: &Network) -> Reason {
    let transport = parse::transport(frame, network);
    transport.map_or_else(|reason| reason, |_| Reason::Local)
}

/// A packet by an uplink that is to no service.
#[inline(always)]
fn unserved(
    frame: &mut impl Resize,
    network: &Network,
    transport: Result<Transport, Reason>,
) -> Result<Sent, Reason> {
    let node = maps::node();
    // Addresses that the node has not are zero in its row.
    let is_somewhere = !network.dst.is_none();
    // Services at the node's own addresses have no row in `ADDRESSES`: what else comes there is the host's.
    let is_nodes = is_somewhere && node.is_at(network.dst);
    if !is_nodes && maps::service_address(network.dst).is_some() {
        return Err(Reason::ServiceOdd);
    }
    if is_somewhere {
        if node.flags & node_flags::ANSWERS_RETURN != 0
            && let Ok(transport) = &transport
            && relay::may_answer(node, network, transport)
        {
            return Err(Reason::ServiceRelay);
        }
        if network.dst == node.egress {
            return snat::back(frame, node, network, transport);
        }
        // What asking for the way would say, at a tenth of the price.
        if is_nodes {
            return Err(transport.map_or_else(|reason| reason, |_| Reason::Local));
        }
    }
    route::forward(frame, network, &transport?)
}

/// A packet that came in from a pod or the LAN: a backend's answer, to a service, or to be routed.
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
    // As in `from_uplink`.
    match parse::ether_type(frame)? {
        ether_type::IPV4 => {
            let network = parse::ipv4(frame, ETHERNET_BYTES)?;
            take_from_pod(frame, &network)
        }
        ether_type::IPV6 => {
            let network = parse::ipv6(frame, ETHERNET_BYTES)?;
            take_from_pod(frame, &network)
        }
        // The kernel has taken the outer tag out of the frame, so there is none as a rule.
        _ => {
            parse::network(frame)?;
            Err(Reason::Tagged)
        }
    }
}

#[inline(always)]
fn take_from_pod(frame: &mut Skb, network: &Network) -> Result<Sent, Reason> {
    let transport = match parse::transport(frame, network) {
        Ok(transport) if network.proto == Proto::ICMPV6 || transport.kind == Kind::IcmpError => {
            return Err(Reason::PodOdd);
        }
        Err(Reason::Fragment | Reason::IpOptions) => return Err(Reason::PodOdd),
        transport => transport?,
    };
    if transport.kind == Kind::Ports {
        if let Some(asked) = lb::asked(network, &transport) {
            return lb::answer(frame, network, &transport, &asked);
        }
        if maps::may_be_services(network.dst)
            && let Some(service) = maps::service_at_once(transport.service(network).inside())
        {
            return lb::balance(frame, network, &transport, scope::INSIDE, &service, true);
        }
    }
    route::forward(frame, network, &transport)
}

/// A packet that is about to leave by an uplink, whoever routed it: the last place where a pod's packet can be
/// translated, and so the one where it must.
///
/// # Errors
/// Why it passes as it is, or is dropped.
#[inline(always)]
pub fn to_wire(frame: &mut Skb) -> Result<(), Reason> {
    let network = parse::network(frame)?;
    let node = maps::node();
    if node.flags & node_flags::ANSWERS_LEAVE != 0 {
        answer_of_host(frame, &network)?;
    }
    if network.family == Family::V6 {
        return Err(Reason::NotFromPod);
    }
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

/// A packet that is about to reach a pod or the LAN: a process of this node may answer a client there. Everything
/// else has ended before, or is the stack's.
///
/// # Errors
/// [`Reason::ServiceAnsweredByStack`] when it was one; why it is dropped.
#[inline(always)]
pub fn to_pod(frame: &mut Skb) -> Result<(), Reason> {
    if maps::node().flags & node_flags::ANSWERS_LEAVE == 0 {
        return Ok(());
    }
    match parse::network(frame) {
        Ok(network) => answer_of_host(frame, &network),
        Err(_) => Ok(()),
    }
}

/// Gives an answer of a process of this node the service's address back.
///
/// # Errors
/// [`Reason::ServiceAnsweredByStack`] when it was one; [`Reason::HelperFailed`].
#[inline(always)]
fn answer_of_host(frame: &mut Skb, network: &Network) -> Result<(), Reason> {
    if let Ok(transport) = parse::transport(frame, network)
        && transport.kind == Kind::Ports
        && let Some(asked) = lb::asked(network, &transport)
    {
        let (service, port) = (asked.service, asked.port());
        rewrite::name(frame, network, &transport, End::Source, service, port)?;
        return Err(Reason::ServiceAnsweredByStack);
    }
    Ok(())
}

#[inline(always)]
fn contains(cidrs: &[Cidr4], addr: Addr) -> bool {
    cidrs.iter().any(|cidr| cidr.contains_word(addr.v4_word()))
}
