//! Packets to the addresses of services that are not plain packets of a service (`xdp_odd`), and what no service
//! takes (`xdp_answer`): where `xdp_ingress` turns off by a tail call.
//!
//! ```text
//!   options, extension headers   -> the transport header behind them -> lb
//!   fragments                    -> the ports of the first one       -> lb
//!   ICMP errors                  -> the flow that they quote         -> lb
//!   echo                         -> answered
//!   neighbour discovery          -> the stack
//!   too big, no backend, no TTL  -> answered by an ICMP error
//!   anything else                -> the stack where the address is the host's own, refused or dropped elsewhere
//! ```
//!
//! # Why
//! What no service takes is not routed on: the fabric sends packets to these addresses here, so a route would
//! only send them round. Nor is it given to the stack, unless the kernel has no way to the address but itself.
//!
//! Not for packets to other addresses: none comes here.

use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;
use fairlead_common::service::scope;

use crate::forward::Sent;
use crate::packet::{Frame, Resize};
use crate::parse::chain::{self, Chain, Part};
use crate::parse::{self, Family, Network, Transport};
use crate::route::{self, NoWay, Question};
use crate::{lb, maps};

mod answer;
mod fragments;
mod icmp;

pub use answer::answer;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// Whether its sender may be told: [`answer`] sees to that.
    pub is_to_be_told: bool,
}

impl From<Reason> for Refusal {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            is_to_be_told: false,
        }
    }
}

/// Takes a packet to the address of a service.
///
/// # Errors
/// Why it is passed untouched, or dropped.
#[inline(always)]
pub fn take(frame: &mut impl Resize) -> Result<Sent, Refusal> {
    let outer = parse::network(frame)?;
    let chain = chain::follow(frame, &outer)?;
    // What follows decides by the transport's protocol, not by the first header's.
    let network = Network {
        proto: chain.proto,
        ..outer
    };
    match (chain.proto, network.family) {
        (Proto::TCP | Proto::UDP, _) => {
            let transport = ports(frame, &network, &chain)?;
            let end = match maps::service(&transport.service(&network)) {
                Some(service) => {
                    lb::balance(frame, &network, &transport, scope::OUTSIDE, service, false)
                }
                None => Err(unserved(frame, &network, Reason::ServiceOther)),
            };
            end.map_err(|reason| Refusal {
                reason,
                is_to_be_told: answer::is_to_be_told(reason),
            })
        }
        (_, _) if chain.part != Part::Whole => Err(Reason::ServiceFragmentUnknown.into()),
        (Proto::ICMP, Family::V4) | (Proto::ICMPV6, Family::V6) => {
            Ok(icmp::take(frame, &network, &chain, outer.whole)?)
        }
        (_, _) => Err(unserved(frame, &network, Reason::ServiceOther).into()),
    }
}

/// The ports of a packet: its own, or those of its first fragment.
#[inline(always)]
fn ports(frame: &impl Frame, network: &Network, chain: &Chain) -> Result<Transport, Reason> {
    match chain.part {
        Part::Whole => chain::transport(frame, chain),
        Part::First(id) => {
            let transport = chain::transport(frame, chain)?;
            fragments::remember(network, id, &transport);
            Ok(transport)
        }
        Part::Later(id) => fragments::recall(network, chain, id),
    }
}

/// Where a packet ends that no service takes: the host's own address may be a service's too, and then the rest
/// of it is the host's.
#[inline(always)]
fn unserved(frame: &impl Frame, network: &Network, reason: Reason) -> Reason {
    let question = Question {
        src: network.src,
        dst: network.dst,
        l4_protocol: network.proto.0,
        ports: (0, 0),
        traffic_class: network.traffic_class,
        flow_info: network.flow_info,
        total: 0,
    };
    match route::way(frame, &question) {
        Err(NoWay::Local) => Reason::Local,
        Ok(_) | Err(NoWay::Refused | NoWay::Unresolved | NoWay::TooBig(_)) => reason,
    }
}
