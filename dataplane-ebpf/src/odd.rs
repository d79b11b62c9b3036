//! Packets of services that are not plain, and what no service takes: where the programs that every packet runs
//! through turn off by tail calls.
//!
//! ```text
//!   to a service's address (xdp_odd)
//!     options, extension headers   -> the transport header behind them -> lb
//!     fragments                    -> the ports of the first one       -> lb
//!     ICMP errors                  -> the flow that they quote         -> lb
//!     echo                         -> answered
//!     neighbour discovery          -> the stack
//!     anything else                -> the stack where the address is the host's own, refused or dropped elsewhere
//!   the same to a backend that this node translates for, and tagged frames (xdp_here)
//!   from such a backend (tc_odd)   fragments, options, extension headers, ICMP errors -> the client
//!   too big, no backend, no TTL (xdp_answer) -> answered by an ICMP error
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

use crate::forward::{Hop, Sent};
use crate::packet::{Frame, Resize};
use crate::parse::chain::{self, Chain, Part};
use crate::parse::{self, Family, Network, Transport};
use crate::route::{self, NoWay, Question};
use crate::{lb, maps, rewrite};

mod answer;
mod fragments;
mod here;
mod icmp;
mod pod;
mod subject;

pub use answer::answer;
pub use here::translate;
pub use pod::from_pod;

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

/// Sends a translated packet on by a device that has no VLANs and no tunnel.
#[inline(always)]
fn go(
    frame: &mut impl Resize,
    network: &Network,
    hop: &Hop,
    reason: Reason,
) -> Result<Sent, Reason> {
    rewrite::decrement_ttl_anywhere(frame, network)?;
    rewrite::lay_bare(frame, network)?;
    rewrite::macs(frame, hop)?;
    Ok(Sent::by(hop, reason))
}
