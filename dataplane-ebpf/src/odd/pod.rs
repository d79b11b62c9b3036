//! What backends of this node send that is not plain (`tc_odd`): to clients of their services it comes from the
//! service.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::reason::Reason;

use super::{fragments, go, icmp};
use crate::forward::{self, Sent};
use crate::packet::{Frame, Resize};
use crate::parse::chain::{self, Chain, Part, Quoted};
use crate::parse::{self, Family, Network, Transport};
use crate::rewrite::{self, End};
use crate::route::{self, NoWay, Question};
use crate::{lb, nat};

/// Takes a pod's packet that has options, extension headers, is a fragment, or speaks about another packet.
///
/// # Errors
/// Why it is passed; [`Reason::ServiceAnsweredByStack`] when it was translated and only the stack knows the way.
#[inline(always)]
pub fn from_pod(frame: &mut impl Resize) -> Result<Sent, Reason> {
    let network = parse::network(frame)?;
    // A pod that speaks to itself by a service does so plainly.
    if nat::client(&network) == network.dst
        && let Ok(chain) = chain::follow(frame, &network)
    {
        let packet = Network {
            proto: chain.proto,
            ..network
        };
        if let Some(answer) = answer(frame, &packet, &chain) {
            return send(frame, &packet, &chain, &answer);
        }
    }
    let transport = parse::transport(frame, &network)?;
    route::forward(frame, &network, &transport)
}

/// What a backend says to a client, and the name of the service that it comes from.
struct Answer {
    message: Message,
    service: (Addr, Port),
}

enum Message {
    Part(Transport),
    Error(Quoted),
}

#[inline(always)]
fn answer(frame: &impl Frame, network: &Network, chain: &Chain) -> Option<Answer> {
    if matches!(chain.proto, Proto::TCP | Proto::UDP) {
        let transport = match chain.part {
            Part::Whole | Part::First(_) => chain::transport(frame, chain),
            Part::Later(id) => fragments::recall(network, chain, id),
        };
        let transport = transport.ok()?;
        let asked = lb::asked(network, &transport)?;
        if let Part::First(id) = chain.part {
            fragments::remember(network, id, &transport);
        }
        return Some(Answer {
            message: Message::Part(transport),
            service: (asked.service, asked.port()),
        });
    }
    if chain.part != Part::Whole || !icmp::is_error(frame, network, chain).ok()? {
        return None;
    }
    let quoted = chain::quoted(frame, network.family, chain.at + 8, chain.end).ok()?;
    Some(Answer {
        service: nat::known(&quoted.flow.reversed())?,
        message: Message::Error(quoted),
    })
}

#[inline(always)]
fn send(
    frame: &mut impl Resize,
    network: &Network,
    chain: &Chain,
    answer: &Answer,
) -> Result<Sent, Reason> {
    if network.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let (service, port) = answer.service;
    let ports = match &answer.message {
        Message::Part(transport) => (port, transport.dst_port),
        Message::Error(_) => (Port::default(), Port::default()),
    };
    let question = Question {
        src: service,
        ..Question::to(network.dst, network, ports)
    };
    let hop = route::way(frame, &question);
    if let Err(NoWay::TooBig(_)) = hop
        && network.family == Family::V6
    {
        // The stack tells the pod, as long as the packet is the pod's.
        return Err(Reason::MtuExceeded);
    }
    let reason = match &answer.message {
        Message::Part(transport) => {
            let part = (transport, chain.has_ports());
            rewrite::name_anywhere(frame, network, part, End::Source, service, port)?;
            Reason::ServiceAnswered
        }
        Message::Error(quoted) => {
            rewrite::quoted(frame, network, chain.at, quoted, End::Source, service, port)?;
            Reason::ServiceIcmpError
        }
    };
    match hop {
        Ok(hop) if forward::has_port(frame, &hop) => go(frame, network, &hop, reason),
        _ => Err(Reason::ServiceAnsweredByStack),
    }
}
