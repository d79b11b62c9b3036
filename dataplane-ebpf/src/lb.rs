//! Service -> ring slot -> backend -> next hop.
//!
//! In the steady state a packet reads four rows (service, slot, backend, next hop) and no flow table, SYN
//! included: a million flows cost what one costs. The kernel is asked for a way only while the next hop's row
//! is not resolved: `bpf_fib_lookup` costs 90 to 200 ns, more than all the rest. Not for building rings: that
//! is userspace's.

use fairlead_common::flow::FlowKey;
use fairlead_common::hash;
use fairlead_common::reason::Reason;
use fairlead_common::service::{Backend, Service, Traffic, forward as forwarding, service_flags};
use fairlead_common::snat::tcp;

use crate::forward::{self, Hop, Sent};
use crate::packet::{Frame, Resize};
use crate::parse::{Network, Transport};
use crate::rewrite::{self, Tunnel, Wrap};
use crate::route::{self, NoWay, Question};
use crate::{count, flows, maps};

/// Sends a packet of a service to its backend.
///
/// # Errors
/// Why it is dropped: nobody else can serve it.
#[inline(always)]
pub fn balance(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    service: &Service,
) -> Result<Sent, Reason> {
    let is_new = transport.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let choice = if network.ttl <= 1 {
        Err(Reason::ServiceTtl)
    } else {
        choose(service, &transport.flow(network), is_new)
    };
    choice
        .and_then(|choice| send(frame, network, transport, service, &choice))
        .inspect_err(|reason| count::refused(service.id, *reason))
}

/// The backend of a flow.
pub struct Choice {
    id: u32,
    backend: &'static Backend,
    hash: u32,
    is_new: bool,
    in_transition: bool,
}

/// Finds the backend that serves a flow of a service.
///
/// # Errors
/// [`Reason::ServiceNoBackend`], or [`Reason::ServiceSourceDenied`].
#[inline(always)]
pub fn choose(service: &Service, key: &FlowKey, is_new: bool) -> Result<Choice, Reason> {
    if service.slots == 0 {
        return Err(Reason::ServiceNoBackend);
    }
    let hash = key.hash();
    let choice = if service.flags == 0 {
        hash
    } else {
        choice_on_terms(service, key, hash)?
    };
    let place = service.ring.wrapping_add(hash::slot(choice, service.slots));
    let slot = maps::slot(place).ok_or(Reason::ServiceNoBackend)?;
    let id = if slot.previous == 0 {
        slot.current
    } else {
        flows::backend_in_transition(key, slot, is_new)
    };
    let backend = maps::backend(id).ok_or(Reason::ServiceNoBackend)?;
    Ok(Choice {
        id,
        backend,
        hash,
        is_new,
        in_transition: slot.previous != 0,
    })
}

/// Sends a packet to the chosen backend, whatever the packet is.
///
/// # Errors
/// Why it is dropped.
#[inline(always)]
pub fn send(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    service: &Service,
    choice: &Choice,
) -> Result<Sent, Reason> {
    let backend = choice.backend;
    let bytes = u64::from(frame.bytes());
    let sent = match backend.forward {
        forwarding::L2 => by_l2(frame, network, transport, backend),
        forwarding::ENCAPSULATE => by_tunnel(frame, network, backend, choice.hash, Wrap::Plain),
        forwarding::GUE => by_tunnel(frame, network, backend, choice.hash, Wrap::Gue),
        _ => Err(Reason::ServiceNoBackend),
    }?;
    let packet = Traffic {
        packets: 1,
        bytes,
        new_flows: u64::from(choice.is_new),
        in_transition: u64::from(choice.in_transition),
    };
    count::balanced(service.id, choice.id, &packet);
    Ok(sent)
}

/// What selects the slot where the service asks for more than a backend: that its client is let in, and that
/// all flows of a client go one way.
#[inline(always)]
fn choice_on_terms(service: &Service, key: &FlowKey, hash: u32) -> Result<u32, Reason> {
    let flags = service.flags;
    if flags & service_flags::SOURCE_RANGES != 0 && !maps::admits(service.id, key.src) {
        return Err(Reason::ServiceSourceDenied);
    }
    Ok(if flags & service_flags::AFFINITY != 0 {
        key.client_hash()
    } else {
        hash
    })
}

/// To a backend on a link of this node, as it is but for its MAC addresses.
#[inline(always)]
fn by_l2(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    backend: &Backend,
) -> Result<Sent, Reason> {
    let question = Question {
        dst: backend.addr,
        src: network.src,
        ..Question::about(network, transport)
    };
    let hop = way(frame, backend, &question)?;
    rewrite::macs(frame, &hop)?;
    Ok(Sent::by(&hop, Reason::ServiceL2))
}

/// To a backend behind a router, wrapped.
#[inline(always)]
fn by_tunnel(
    frame: &mut impl Resize,
    network: &Network,
    backend: &Backend,
    hash: u32,
    wrap: Wrap,
) -> Result<Sent, Reason> {
    let node = maps::node().ok_or(Reason::ServiceNoRoute)?;
    let dst = backend.addr;
    let src = if dst.is_v4() {
        node.tunnel_v4
    } else {
        node.tunnel_v6
    };
    if src.is_none() {
        return Err(Reason::ServiceNoRoute);
    }
    let tunnel = Tunnel {
        src,
        dst,
        hash,
        wrap,
    };
    let hop = way(
        frame,
        backend,
        &Question {
            src,
            dst,
            l4_protocol: match wrap {
                Wrap::Plain => 0,
                Wrap::Gue => tunnel.proto(network.family).0,
            },
            ports: tunnel.ports(),
            traffic_class: network.traffic_class,
            flow_info: tunnel.flow_info(network.traffic_class),
            total: network.total + tunnel.bytes() as u32,
        },
    )?;
    rewrite::encapsulate(frame, network, &tunnel, &hop)?;
    Ok(Sent::by(&hop, Reason::ServiceEncapsulated))
}

#[inline(always)]
fn way(frame: &impl Frame, backend: &Backend, question: &Question) -> Result<Hop, Reason> {
    if let Some(row) = maps::next_hop(backend.next_hop) {
        if u32::from(frame.length_to_fit(question.total)) > row.mtu() {
            return Err(Reason::ServiceTooBig);
        }
        // Userspace resolves ways by devices of `TX_PORTS` only.
        return Ok(Hop::known(row.macs()));
    }
    let hop = route::way(frame, question).map_err(|no_way| match no_way {
        NoWay::Local | NoWay::Refused => Reason::ServiceNoRoute,
        NoWay::Unresolved => Reason::ServiceUnresolved,
        NoWay::TooBig => Reason::ServiceTooBig,
    })?;
    if !forward::has_port(frame, &hop) {
        return Err(Reason::ServiceNoRoute);
    }
    Ok(hop)
}
