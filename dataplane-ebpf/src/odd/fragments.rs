//! The ports of fragments.
//!
//! A fragment that comes before the first one of its packet is lost, and the packet with it: it could only be
//! kept by holding packets back.

use fairlead_common::fragment::{FragmentKey, LIFETIME_S, Ports};
use fairlead_common::reason::Reason;

use crate::parse::chain::Chain;
use crate::parse::{Kind, Network, Transport};
use crate::{clock, maps};

/// Remembers the ports of a packet for the fragments that follow the first.
#[inline(always)]
pub(super) fn remember(network: &Network, id: u32, transport: &Transport) {
    let key = FragmentKey::new(network.src, network.dst, id, network.proto);
    let ports = Ports {
        src: transport.src_port,
        dst: transport.dst_port,
        seen_s: clock::now_s(),
    };
    maps::remember_fragment(&key, &ports);
}

/// What the transport header of a fragment's packet says, as far as it matters to where the fragment goes.
///
/// # Errors
/// [`Reason::ServiceFragmentUnknown`].
#[inline(always)]
pub(super) fn recall(network: &Network, chain: &Chain, id: u32) -> Result<Transport, Reason> {
    let key = FragmentKey::new(network.src, network.dst, id, network.proto);
    let ports = maps::fragment(&key).ok_or(Reason::ServiceFragmentUnknown)?;
    if clock::now_s().wrapping_sub(ports.seen_s) > LIFETIME_S {
        return Err(Reason::ServiceFragmentUnknown);
    }
    Ok(Transport {
        at: chain.at,
        kind: Kind::Other,
        src_port: ports.src,
        dst_port: ports.dst,
        tcp_flags: 0,
    })
}
