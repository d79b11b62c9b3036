//! What is remembered of fragmented packets to services: only the first fragment has ports, and all of them must
//! get to one backend.
//!
//! # Why
//! The ports are remembered, not the backend: the others then ask the ring as the first one did, and go wherever
//! the flow's packets go. A forgotten row costs one packet.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};

/// What the fragments of one packet have in common (RFC 791 §3.2, RFC 8200 §4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// The identification, as in the packet: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// The protocol of the transport header, as a word: no padding.
    pub proto: u32,
}

impl FragmentKey {
    /// Builds a key.
    #[inline(always)]
    pub const fn new(src: Addr, dst: Addr, id: u32, proto: Proto) -> Self {
        Self {
            src,
            dst,
            id,
            proto: proto.0 as u32,
        }
    }
}

/// The ports of a packet's first fragment. Aligned to 8 so that it is written as one word.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ports {
    /// Source port.
    pub src: Port,
    /// Destination port.
    pub dst: Port,
    /// Coarse monotonic time of the first fragment, in seconds.
    pub seen_s: u32,
}

/// How long an identification is taken for the same packet's, in seconds. Reassembly gives up after 30
/// (Linux `ipfrag_time`; RFC 8200 §4.5 says 60), and a sender may use the number again.
pub const LIFETIME_S: u32 = 30;
