//! Full NAT: backends that neither carry the service's address nor have an agent answer this node, which gives both
//! ends of each packet other names.
//!
//! ```text
//!   client  -> service    becomes   node -> backend     NAT_FLOWS keeps the service, SNAT_REV the client
//!   backend -> node       becomes   service -> client   SNAT_REV tells the client, NAT_FLOWS the service
//! ```
//! The backend is chosen, and its name given to the packet, where every other one's is ([`lb`]); from there a tail
//! call leads to here (`xdp_relay`, `tc_relay`), and for answers another one (`xdp_return`). A port of the node's
//! address is found as an egress port is ([`snat`]), in the same table, so that no answer can be a pod's and a
//! client's at once.
//!
//! # Why
//! Only such backends pay for it: it is the one way of forwarding that remembers every flow on the node that the
//! client's packets come to. When the fabric sends them to another node, the connection ends.

use fairlead_common::addr::Addr;
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::route::Node;
use fairlead_common::service::ServingKey;
use fairlead_common::snat::whose;

use crate::forward::{self, Sent};
use crate::packet::Frame;
use crate::parse::{self, Family, Kind, Network, Transport};
use crate::rewrite::{self, End};
use crate::route::{self, Question};
use crate::snat::{self, Flow, Outside};
use crate::{lb, maps, nat};

/// Whether a packet to this node may be an answer of such a backend.
#[inline(always)]
pub fn may_answer(node: &Node, network: &Network, transport: &Transport) -> bool {
    transport.kind == Kind::Ports
        && network.dst == own(node, network)
        && maps::may_serve(&ServingKey::new(network.src, transport.src_port))
}

/// The node's own address of a packet's family.
#[inline(always)]
const fn own(node: &Node, network: &Network) -> Addr {
    match network.family {
        Family::V4 => node.tunnel_v4,
        Family::V6 => node.tunnel_v6,
    }
}

/// Sends a packet that has its backend's address already ([`lb`] gave it that) from this node.
///
/// # Errors
/// Why it is dropped. [`Reason::ServiceRelay`]: it is to this node, so it may be an answer.
#[inline(always)]
pub fn ask(frame: &mut impl Frame) -> Result<Sent, Reason> {
    let network = parse::network(frame)?;
    let transport = parse::transport(frame, &network)?;
    let node = maps::node();
    let outside = Outside {
        addr: own(node, &network),
        node,
    };
    if network.dst == outside.addr {
        return Err(Reason::ServiceRelay);
    }
    if outside.addr.is_none() {
        return Err(Reason::ServiceNoRoute);
    }
    if network.is_tagged() {
        return Err(Reason::ServiceUntranslated);
    }
    let flow = Flow::new(transport.flow(&network), whose::CLIENT, transport.tcp_flags);
    let port = snat::egress_port(&flow, &outside)?;
    let question = Question {
        src: outside.addr,
        ports: (port.wire(), transport.dst_port.wire()),
        ..Question::about(&network, &transport)
    };
    let hop = lb::found(frame, route::way(frame, &question))?;
    rewrite::name(frame, &network, &transport, End::Source, outside.addr, port)?;
    rewrite::macs(frame, &hop)?;
    rewrite::decrement_ttl(frame, &network)?;
    Ok(Sent::by(&hop, Reason::ServiceTranslated))
}

/// Takes an answer to its client, from the service.
///
/// # Errors
/// Why it is dropped or passed: [`Reason::Local`] when it is the node's own,
/// [`Reason::ServiceAnsweredByStack`] when only the stack knows the way to the client.
#[inline(always)]
pub fn answer(frame: &mut impl Frame) -> Result<Sent, Reason> {
    let network = &parse::network(frame)?;
    let transport = &parse::transport(frame, network)?;
    let outside = transport.flow(network).reversed();
    let Some((client, client_port)) = snat::client(&outside, transport.tcp_flags) else {
        // The node's own connection to a backend, or a pod's under the node's address.
        let node = maps::node();
        if network.dst == node.egress {
            return snat::back(frame, node, network, Ok(*transport));
        }
        return Err(Reason::Local);
    };
    let answer = FlowKey::new(
        network.src,
        transport.src_port,
        client,
        client_port,
        network.proto,
    );
    let asked = nat::answered(&answer, transport.tcp_flags).ok_or(Reason::NoBinding)?;
    let (service, port) = (asked.service, asked.port());
    if network.ttl <= 1 {
        return Err(Reason::ServiceTtl);
    }
    let question = Question {
        src: service,
        dst: client,
        ports: (port.wire(), client_port.wire()),
        ..Question::about(network, transport)
    };
    let hop = route::way(frame, &question);
    rewrite::name(frame, network, transport, End::Source, service, port)?;
    rewrite::name(
        frame,
        network,
        transport,
        End::Destination,
        client,
        client_port,
    )?;
    match hop {
        Ok(hop) if forward::has_port(frame, &hop) => {
            rewrite::macs(frame, &hop)?;
            rewrite::decrement_ttl(frame, network)?;
            Ok(Sent::by(&hop, Reason::ServiceAnswered))
        }
        _ => Err(Reason::ServiceAnsweredByStack),
    }
}
