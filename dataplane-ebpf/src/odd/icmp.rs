//! ICMP to the addresses of services.

use fairlead_common::addr::Proto;
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::served;
use fairlead_common::service::{Service, ServiceKey};

use super::unserved;
use crate::forward::Sent;
use crate::packet::{Frame, Resize};
use crate::parse::chain::{self, Chain};
use crate::parse::{Family, Kind, Network, Transport};
use crate::{lb, maps, rewrite, route};

/// ICMP types that are told apart.
mod icmp_type {
    pub const ECHO_REQUEST: u8 = 8;
    pub const DESTINATION_UNREACHABLE: u8 = 3;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// ICMPv6 errors are 1 (unreachable), 2 (too big), 3 (time exceeded), 4 (parameter problem).
    pub const V6_FIRST_ERROR: u8 = 1;
    pub const V6_LAST_ERROR: u8 = 4;
    pub const V6_ECHO_REQUEST: u8 = 128;
    /// Router solicitation to redirect (RFC 4861 §4).
    pub const V6_FIRST_NEIGHBOUR: u8 = 133;
    pub const V6_LAST_NEIGHBOUR: u8 = 137;
}

/// Whether a packet is an ICMP error.
///
/// # Errors
/// [`Reason::Malformed`].
#[inline(always)]
pub(super) fn is_error(
    frame: &impl Frame,
    network: &Network,
    chain: &Chain,
) -> Result<bool, Reason> {
    let is_icmp = match network.family {
        Family::V4 => chain.proto == Proto::ICMP,
        Family::V6 => chain.proto == Proto::ICMPV6,
    };
    Ok(is_icmp && is_error_type(network.family, message_type(frame, chain)?))
}

#[inline(always)]
fn message_type(frame: &impl Frame, chain: &Chain) -> Result<u8, Reason> {
    if chain.at + 8 > chain.end {
        return Err(Reason::Malformed);
    }
    let [header] = frame.load(chain.at)?;
    Ok(header as u8)
}

#[inline(always)]
const fn is_error_type(family: Family, number: u8) -> bool {
    match family {
        Family::V4 => matches!(
            number,
            icmp_type::DESTINATION_UNREACHABLE
                | icmp_type::TIME_EXCEEDED
                | icmp_type::PARAMETER_PROBLEM
        ),
        Family::V6 => matches!(number, icmp_type::V6_FIRST_ERROR..=icmp_type::V6_LAST_ERROR),
    }
}

/// Takes an ICMP message to the address of a service; `plain` says whether nothing stands between its headers.
///
/// # Errors
/// Why it is passed untouched, or dropped.
#[inline(always)]
pub(super) fn take(
    frame: &mut impl Resize,
    network: &Network,
    chain: &Chain,
    plain: Result<(), Reason>,
) -> Result<Sent, Reason> {
    let number = message_type(frame, chain)?;
    match (network.family, number) {
        (Family::V4, icmp_type::ECHO_REQUEST) | (Family::V6, icmp_type::V6_ECHO_REQUEST) => {
            echo(frame, network, plain)
        }
        (family, number) if is_error_type(family, number) => error(frame, network, chain),
        (Family::V6, icmp_type::V6_FIRST_NEIGHBOUR..=icmp_type::V6_LAST_NEIGHBOUR) => {
            Err(Reason::Local)
        }
        _ => Err(unserved(frame, network, Reason::ServiceOther)),
    }
}

/// Answers an echo request for a service address, as long as somebody serves there: a monitor that pings the
/// address sees what a client would.
#[inline(always)]
fn echo(
    frame: &mut impl Resize,
    network: &Network,
    plain: Result<(), Reason>,
) -> Result<Sent, Reason> {
    let flags = maps::service_address(network.dst).unwrap_or_default();
    if flags & served::flags::SERVED == 0 {
        return Err(unserved(frame, network, Reason::ServiceEchoUnserved));
    }
    // An answer would have to reverse what the options record (RFC 1122 §3.2.2.6).
    plain.map_err(|_| Reason::ServiceHeaders)?;
    if !route::is_wide(network.src) || maps::service_address(network.src).is_some() {
        return Err(Reason::Unforwardable);
    }
    rewrite::echo_reply(frame, network)?;
    Ok(Sent {
        reason: Reason::ServiceEcho,
        ifindex: frame.ifindex(),
    })
}

/// Sends an ICMP error to the backend whose packet it quotes: the quoted packet went from the service to the
/// client, so the flow that the ring knows is its reverse.
#[inline(always)]
fn error(frame: &mut impl Resize, network: &Network, chain: &Chain) -> Result<Sent, Reason> {
    let quoted = match chain::quoted(frame, network.family, chain.at + 8, chain.end) {
        Ok(quoted) => quoted,
        Err(reason) => return Err(unserved(frame, network, reason)),
    };
    let flow = quoted.flow.reversed();
    let Some(service) = serving(network, &flow) else {
        return Err(unserved(frame, network, Reason::ServiceIcmpForeign));
    };
    if network.ttl <= 1 {
        return Err(Reason::ServiceTtl);
    }
    let choice = lb::choose(service, &flow, false)?;
    let transport = Transport {
        at: chain.at,
        kind: Kind::IcmpError,
        src_port: flow.src_port,
        dst_port: flow.dst_port,
        tcp_flags: 0,
    };
    let sent = lb::send(frame, network, &transport, service, &choice, false)?;
    Ok(Sent {
        reason: Reason::ServiceIcmpError,
        ..sent
    })
}

/// The service of a flow, where the packet that it was read from is for that service.
#[inline(always)]
fn serving(network: &Network, flow: &FlowKey) -> Option<&'static Service> {
    if flow.dst != network.dst {
        return None;
    }
    maps::service(&ServiceKey::new(flow.dst, flow.dst_port, flow.proto))
}
