//! Service -> ring slot -> backend -> next hop.
//!
//! In the steady state a packet reads four rows (service, slot, backend, next hop) and no flow table, SYN
//! included: a million flows cost what one costs. The kernel is asked for a way only while the next hop's row
//! is not resolved: `bpf_fib_lookup` costs 90 to 200 ns, more than all the rest. Not for building rings: that
//! is userspace's.

use fairlead_common::choice;
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::service::{
    Arrival, Backend, Service, ServingKey, Traffic, flags, forward as forwarding,
};

use crate::forward::{self, Hop, Sent};
use crate::nat::{self, Asked};
use crate::packet::{Frame, Resize};
use crate::parse::{Family, Network, Transport};
use crate::rewrite::{self, End, Tunnel, Wrap};
use crate::route::{self, NoWay, Question};
use crate::{count, flows, maps};

/// Sends a packet of a service to its backend; `is_plain` as in [`send`].
///
/// # Errors
/// Why it is dropped: nobody else can serve it.
#[inline(always)]
pub fn balance(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    scope: u8,
    service: &Service,
    is_plain: bool,
) -> Result<Sent, Reason> {
    let is_new = transport.opens();
    let key = transport.flow(network).of_scope(scope);
    let sent = if network.ttl <= 1 {
        Err(Reason::ServiceTtl)
    } else {
        match choose(service, &key, is_new) {
            Ok(choice) => send(frame, network, transport, service, &choice, is_plain),
            Err(reason) => Err(reason),
        }
    };
    sent.inspect_err(|reason| {
        if !is_sent(&Err(*reason)) {
            count::refused(service.id, *reason);
        }
    })
}

/// The backend of a flow.
pub struct Choice {
    /// Its id.
    pub id: u32,
    /// Its row.
    pub backend: &'static Backend,
    hash: u32,
    is_new: bool,
    in_transition: bool,
}

impl Choice {
    /// The backend that another node has chosen.
    ///
    /// # Errors
    /// [`Reason::ServiceNoBackend`].
    #[inline(always)]
    pub fn made(arrival: &Arrival, is_new: bool) -> Result<Self, Reason> {
        Ok(Self {
            id: arrival.backend,
            backend: maps::backend(arrival.backend).ok_or(Reason::ServiceNoBackend)?,
            hash: 0,
            is_new,
            in_transition: false,
        })
    }

    /// Counts a packet that was sent there.
    #[inline(always)]
    pub fn count(&self, service: u32, bytes: usize) {
        let packet = Traffic {
            packets: 1,
            bytes: bytes as u64,
            new_flows: self.is_new.into(),
            in_transition: self.in_transition.into(),
        };
        count::balanced(service, self.id, &packet);
    }
}

/// Finds the backend that serves a flow of a service.
///
/// # Errors
/// [`Reason::ServiceNoBackend`], or [`Reason::ServiceSourceDenied`].
#[inline(always)]
pub fn choose(service: &Service, key: &FlowKey, is_new: bool) -> Result<Choice, Reason> {
    let choice = choice::choose(&mut flows::Tables, service, key, is_new)?;
    let backend = maps::backend(choice.backend).ok_or(Reason::ServiceNoBackend)?;
    Ok(Choice {
        id: choice.backend,
        backend,
        hash: choice.hash,
        is_new,
        in_transition: choice.in_transition(),
    })
}

/// Sends a packet to the chosen backend, whatever the packet is; translates it only where `is_plain` says that its
/// headers stand where they do in most packets, because the verifier must be able to follow.
///
/// # Errors
/// Why it is dropped, or [`Reason::ServiceToStack`].
#[inline(always)]
pub fn send(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    service: &Service,
    choice: &Choice,
    is_plain: bool,
) -> Result<Sent, Reason> {
    let backend = choice.backend;
    let bytes = frame.bytes();
    let sent = match backend.forward {
        forwarding::L2 => by_l2(frame, network, transport, backend),
        forwarding::ENCAPSULATE => by_tunnel(frame, network, choice, Wrap::Plain),
        forwarding::GUE => by_tunnel(frame, network, choice, Wrap::Gue),
        forwarding::HERE | forwarding::NAT if is_plain && !network.is_tagged() => {
            by_name(frame, network, transport, backend)
        }
        forwarding::HERE | forwarding::NAT => Err(Reason::ServiceUntranslated),
        _ => Err(Reason::ServiceNoBackend),
    };
    if is_sent(&sent) {
        choice.count(service.id, bytes);
    }
    sent
}

/// Hands a packet that came out of a tunnel to the backend that another node has chosen.
///
/// # Errors
/// Why it is dropped, or [`Reason::ServiceToStack`].
#[inline(always)]
pub fn deliver(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    arrival: &Arrival,
) -> Result<Sent, Reason> {
    let bytes = frame.bytes();
    let sent = if network.ttl <= 1 {
        Err(Reason::ServiceTtl)
    } else {
        match Choice::made(arrival, transport.opens()) {
            Ok(choice) => {
                let sent = by_name(frame, network, transport, choice.backend);
                if is_sent(&sent) {
                    choice.count(arrival.service, bytes);
                }
                sent
            }
            Err(reason) => Err(reason),
        }
    };
    sent.inspect_err(|reason| count::refused(arrival.service, *reason))
}

/// Whether a packet is on its way to its backend. What a tail call leads on ends by a reason of its own.
#[inline(always)]
pub const fn is_sent(sent: &Result<Sent, Reason>) -> bool {
    matches!(
        sent,
        Ok(_) | Err(Reason::ServiceToStack | Reason::ServiceRelay)
    )
}

/// To a backend on a link of this node, as it is but for its MAC addresses.
#[inline(always)]
fn by_l2(
    frame: &mut impl Resize,
    network: &Network,
    transport: &Transport,
    backend: &Backend,
) -> Result<Sent, Reason> {
    let ports = (transport.src_port, transport.dst_port);
    let hop = way(frame, backend, &Question::to(backend.addr, network, ports))?;
    rewrite::macs(frame, &hop)?;
    Ok(Sent::by(&hop, Reason::ServiceL2))
}

/// To a backend behind a router, wrapped.
#[inline(always)]
fn by_tunnel(
    frame: &mut impl Resize,
    network: &Network,
    choice: &Choice,
    wrap: Wrap,
) -> Result<Sent, Reason> {
    // Built for each family: what depends on it is a constant then.
    match Family::of(choice.backend.addr) {
        Family::V4 => into(frame, network, choice, &tunnel(Family::V4, choice, wrap)?),
        Family::V6 => into(frame, network, choice, &tunnel(Family::V6, choice, wrap)?),
    }
}

#[inline(always)]
fn into(
    frame: &mut impl Resize,
    network: &Network,
    choice: &Choice,
    tunnel: &Tunnel,
) -> Result<Sent, Reason> {
    let hop = way(frame, choice.backend, &through(network, tunnel))?;
    rewrite::encapsulate(frame, network, tunnel, &hop)?;
    Ok(Sent::by(&hop, Reason::ServiceEncapsulated))
}

#[inline(always)]
fn tunnel(family: Family, choice: &Choice, wrap: Wrap) -> Result<Tunnel, Reason> {
    let node = maps::node();
    let src = match family {
        Family::V4 => node.tunnel_v4,
        Family::V6 => node.tunnel_v6,
    };
    if src.is_none() {
        return Err(Reason::ServiceNoRoute);
    }
    Ok(Tunnel {
        family,
        src,
        dst: choice.backend.addr,
        hash: choice.hash,
        wrap,
    })
}

/// The way of a packet once it is wrapped.
#[inline(always)]
fn through(network: &Network, tunnel: &Tunnel) -> Question {
    Question {
        src: tunnel.src,
        dst: tunnel.dst,
        l4_protocol: match tunnel.wrap {
            Wrap::Plain => 0,
            Wrap::Gue => tunnel.proto(network.family).0,
        },
        ports: tunnel.ports(),
        traffic_class: network.traffic_class,
        flow_info: tunnel.flow_info(network.traffic_class),
        total: network.total + tunnel.bytes() as u32,
    }
}

/// The largest packet that gets to the chosen backend in one piece, in bytes.
///
/// # Errors
/// [`Reason::ServiceTooBig`] when it is not known, [`Reason::ServiceNoBackend`] when none does.
#[inline(always)]
pub fn limit(
    frame: &impl Frame,
    network: &Network,
    flow: &FlowKey,
    choice: &Choice,
) -> Result<u32, Reason> {
    let backend = choice.backend;
    let wrap = match backend.forward {
        forwarding::ENCAPSULATE => Some(Wrap::Plain),
        forwarding::GUE => Some(Wrap::Gue),
        forwarding::L2 | forwarding::HERE | forwarding::NAT => None,
        _ => return Err(Reason::ServiceNoBackend),
    };
    let question = match wrap {
        Some(wrap) => {
            let family = Family::of(backend.addr);
            through(network, &tunnel(family, choice, wrap)?)
        }
        None => Question::to(backend.addr, network, (flow.src_port, flow.dst_port)),
    };
    let mtu = match maps::next_hop(backend.next_hop) {
        Some(row) => row.mtu(),
        None => match route::way(frame, &question) {
            Err(NoWay::TooBig(mtu)) => mtu.into(),
            Ok(_) | Err(_) => return Err(Reason::ServiceTooBig),
        },
    };
    Ok(mtu.saturating_sub(question.total - network.total))
}

/// To a backend for which this node translates: the packet gets its address and port, and what it answers gets
/// the service's back ([`answer`]). [`Reason::ServiceRelay`] when it must get another source too (`relay`).
#[inline(always)]
fn by_name<F: Resize>(
    frame: &mut F,
    network: &Network,
    transport: &Transport,
    backend: &Backend,
) -> Result<Sent, Reason> {
    let (src, src_port) = (network.src, transport.src_port);
    let answer = FlowKey::new(backend.addr, backend.port, src, src_port, network.proto);
    let remember = || {
        nat::sent(
            &answer,
            network.dst,
            transport.dst_port,
            transport.tcp_flags,
        )
    };
    let (to, port) = (backend.addr, backend.port);
    if backend.flags & flags::STACK != 0 {
        remember()?;
        rewrite::name(frame, network, transport, End::Destination, to, port)?;
        return Err(Reason::ServiceToStack);
    }
    let question = Question::to(to, network, (src_port, port));
    let hop = way(frame, backend, &question)?;
    remember()?;
    rewrite::name(frame, network, transport, End::Destination, to, port)?;
    if backend.forward == forwarding::NAT {
        return Err(Reason::ServiceRelay);
    }
    if F::MAY_TURN && src == to {
        let mirror = nat::mirror(network.family);
        rewrite::name(frame, network, transport, End::Source, mirror, src_port)?;
    }
    rewrite::macs(frame, &hop)?;
    rewrite::decrement_ttl(frame, network)?;
    Ok(Sent::by(&hop, Reason::ServiceTranslated))
}

/// The service that a packet comes from, when it is a backend's answer to a flow that this node translated.
#[inline(always)]
pub fn asked(network: &Network, transport: &Transport) -> Option<Asked> {
    if !maps::may_serve(&ServingKey::new(network.src, transport.src_port)) {
        return None;
    }
    nat::answered(&nat::answer_of(network, transport), transport.tcp_flags)
}

/// Sends a backend's answer to the client, from the service.
///
/// # Errors
/// Why it is passed as it is; [`Reason::ServiceAnsweredByStack`] when it was translated and only the stack knows
/// the way.
#[inline(always)]
pub fn answer<F: Frame>(
    frame: &mut F,
    network: &Network,
    transport: &Transport,
    asked: &Asked,
) -> Result<Sent, Reason> {
    let (service, port) = (asked.service, asked.port());
    if network.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let (client, client_port) = (nat::client(network), transport.dst_port);
    let question = Question {
        src: service,
        dst: client,
        ports: (port.wire(), client_port.wire()),
        ..Question::about(network, transport)
    };
    // Before the kernel is asked: what changes meanwhile begins another epoch. Policy rules may send what has a DSCP
    // another way, so nothing is learnt of it.
    let epoch = if network.traffic_class >> 2 == 0 {
        maps::way_epoch()
    } else {
        0
    };
    let known = asked.way(epoch, frame.length_to_fit(network.total).into());
    let hop = match known {
        Some(macs) => Ok(Hop::known(macs)),
        None => match route::way(frame, &question) {
            Ok(hop) if forward::has_port(frame, &hop) => {
                asked.remember(epoch, hop.ifindex, hop.mtu, hop.macs);
                Ok(hop)
            }
            _ => Err(Reason::ServiceAnsweredByStack),
        },
    };
    rewrite::name(frame, network, transport, End::Source, service, port)?;
    if F::MAY_TURN && client != network.dst {
        rewrite::name(
            frame,
            network,
            transport,
            End::Destination,
            client,
            client_port,
        )?;
    }
    let hop = hop?;
    rewrite::macs(frame, &hop)?;
    rewrite::decrement_ttl(frame, network)?;
    Ok(Sent::by(&hop, Reason::ServiceAnswered))
}

/// The way to a backend.
///
/// # Errors
/// Why there is none, or [`Reason::ServiceTooBig`].
#[inline(always)]
pub fn way(frame: &impl Frame, backend: &Backend, question: &Question) -> Result<Hop, Reason> {
    if let Some(row) = maps::next_hop(backend.next_hop) {
        if u32::from(frame.length_to_fit(question.total)) > row.mtu() {
            return Err(Reason::ServiceTooBig);
        }
        // Userspace resolves ways by devices of `TX_PORTS` only.
        return Ok(Hop::known(row.macs()));
    }
    found(frame, route::way(frame, question))
}

/// What the kernel says of the way to a backend.
///
/// # Errors
/// Why there is none.
#[inline(always)]
pub fn found(frame: &impl Frame, way: Result<Hop, NoWay>) -> Result<Hop, Reason> {
    let hop = way.map_err(|no_way| match no_way {
        NoWay::Local | NoWay::Refused => Reason::ServiceNoRoute,
        NoWay::Unresolved => Reason::ServiceUnresolved,
        NoWay::TooBig(_) => Reason::ServiceTooBig,
    })?;
    if !forward::has_port(frame, &hop) {
        return Err(Reason::ServiceNoRoute);
    }
    Ok(hop)
}
