//! What identifies a connection, and what is remembered of one that began in a transition.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};
use crate::hash;

/// The 5-tuple of a packet in its own direction. For ICMP echo both ports are read as
/// {identifier, 0} on the way out and {0, identifier} on the way back.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// Protocol.
    pub proto: Proto,
    /// Zero.
    pub pad: u8,
    /// Zero. Words of their own, because the datapath would fill an array by a call.
    pub pad_half: u16,
}

impl FlowKey {
    /// Builds a key.
    #[inline(always)]
    pub const fn new(src: Addr, src_port: Port, dst: Addr, dst_port: Port, proto: Proto) -> Self {
        Self {
            src,
            dst,
            src_port,
            dst_port,
            proto,
            pad: 0,
            pad_half: 0,
        }
    }

    /// The same flow seen in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self::new(self.dst, self.dst_port, self.src, self.src_port, self.proto)
    }

    /// The flow hash: equal on every node and in userspace (see [`hash::flow`]).
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        hash::flow(self)
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |f: &mut fmt::Formatter<'_>, addr: Addr, port: Port| {
            if addr.is_v4() {
                write!(f, "{addr}:{port}")
            } else {
                write!(f, "[{addr}]:{port}")
            }
        };
        write!(f, "{} ", self.proto)?;
        end(f, self.src, self.src_port)?;
        f.write_str(" -> ")?;
        end(f, self.dst, self.dst_port)
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A flow that began while its slot was in transition, and the backend it was given.
///
/// Aligned to 8: its two words are written as one, which the verifier wants aligned on the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// Backend id.
    pub backend: u32,
    /// Coarse monotonic time of its last packet, in seconds.
    pub last_seen_s: u32,
}
