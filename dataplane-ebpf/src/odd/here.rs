//! Packets that are not plain, to backends that this node translates for (`xdp_here`): fragments, options,
//! extension headers, tags, ICMP errors, and all of these out of other nodes' tunnels.
//!
//! # Why
//! Tags are taken off towards a pod, for pods have no VLANs, and nothing remembers them: the answer goes the way
//! that the routes say, and a route by a VLAN device tags it.

use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::service::flags;
use fairlead_common::service::forward as forwarding;

use super::subject::{Message, Subject};
use super::{Refusal, answer};
use crate::forward::Sent;
use crate::packet::Resize;
use crate::rewrite::{self, End};
use crate::route::Question;
use crate::{count, lb, nat};

/// Translates a packet to its backend and hands it over.
///
/// # Errors
/// Why it is dropped; [`Reason::ServiceToStack`] when it was translated for a process of this node;
/// [`Reason::Wrapped`] for a packet in a tunnel that is for no backend of this node.
#[inline(always)]
pub fn translate(frame: &mut impl Resize, scope: u8) -> Result<Sent, Refusal> {
    let subject = Subject::find(frame)?;
    let message = subject.message(frame)?;
    let (service, choice) = subject.choose(&message, scope)?;
    let bytes = frame.bytes();
    let end = hand_over(frame, &subject, &message, &choice);
    if lb::is_sent(&end) {
        choice.count(service, bytes);
    }
    end.map_err(|reason| {
        count::refused(service, reason);
        Refusal {
            reason,
            is_to_be_told: answer::is_to_be_told(reason),
        }
    })
}

#[inline(always)]
fn hand_over(
    frame: &mut impl Resize,
    subject: &Subject,
    message: &Message,
    choice: &lb::Choice,
) -> Result<Sent, Reason> {
    let network = &subject.network;
    let backend = choice.backend;
    match backend.forward {
        forwarding::HERE => {}
        forwarding::NAT => return Err(Reason::ServiceUntranslated),
        _ => return Err(Reason::ServiceNoBackend),
    }
    if network.ttl <= 1 {
        return Err(Reason::ServiceTtl);
    }
    let traffic_class = subject.traffic_class()?;
    let flow = message.flow(network);
    let (to, port) = (backend.addr, backend.port);
    let hop = if backend.flags & flags::STACK == 0 {
        let question = Question::to(to, network, (flow.src_port, port));
        Some(lb::way(frame, backend, &question)?)
    } else {
        None
    };
    match message {
        Message::Part(transport) => {
            let answer = FlowKey::new(to, port, flow.src, flow.src_port, flow.proto);
            nat::sent(&answer, flow.dst, flow.dst_port, transport.tcp_flags)?;
            let part = (transport, subject.chain.has_ports());
            rewrite::name_anywhere(frame, network, part, End::Destination, to, port)?;
        }
        Message::Error(quoted) => {
            let at = subject.chain.at;
            rewrite::quoted(frame, network, at, quoted, End::Destination, to, port)?;
        }
    }
    if traffic_class != network.traffic_class {
        rewrite::traffic_class(frame, network, traffic_class)?;
    }
    let reason = match message {
        Message::Part(_) => Reason::ServiceTranslated,
        Message::Error(_) => Reason::ServiceIcmpError,
    };
    match hop {
        Some(hop) => super::go(frame, network, &hop, reason),
        None => {
            // The stack has VLANs, but not our tunnel.
            if subject.is_wrapped {
                rewrite::lay_bare(frame, network)?;
            }
            Err(Reason::ServiceToStack)
        }
    }
}
