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
    /// In `FLOWS` whose service the packet found ([`crate::service::scope`]), in `SNAT_FWD` whose flow it is
    /// ([`crate::snat::whose`]); zero in every other table.
    pub scope: u8,
    /// Zero.
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
            scope: 0,
            pad_half: 0,
        }
    }

    /// The key of the same flow in `FLOWS`, as a client of this scope has it.
    #[inline(always)]
    #[must_use]
    pub const fn of_scope(self, scope: u8) -> Self {
        Self { scope, ..self }
    }

    /// The same flow seen in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self::new(self.dst, self.dst_port, self.src, self.src_port, self.proto)
    }

    /// The key as five words, as they stand in memory.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        let [a, b] = self.src.halves();
        let [c, d] = self.dst.halves();
        let last = self.src_port.wire() as u64
            | (self.dst_port.wire() as u64) << 16
            | (self.proto.0 as u64) << 32
            | (self.scope as u64) << 40;
        [a, b, c, d, last]
    }

    /// The hash that selects the flow's ring slot: equal on every node and in userspace.
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        (self.hash_keyed(hash::K) >> 32) as u32
    }

    /// The hash that selects the ring slot of a service with session affinity: of the client's address alone, so
    /// that every node gives a client the same slot without remembering it.
    #[inline(always)]
    pub const fn client_hash(&self) -> u32 {
        let [a, b] = self.src.halves();
        (hash::finish(hash::fold(hash::fold(hash::K, a), b)) >> 32) as u32
    }

    /// A hash that outsiders cannot predict without `secret`.
    #[inline(always)]
    pub const fn hash_keyed(&self, secret: u64) -> u64 {
        let [a, b] = self.src.halves();
        let [c, d] = self.dst.halves();
        let ports = (self.src_port.wire() as u64) | ((self.dst_port.wire() as u64) << 16);
        let hash = hash::fold(hash::fold(secret, a), b);
        let hash = hash::fold(hash::fold(hash, c), d);
        hash::finish(hash::fold(hash, ports | ((self.proto.0 as u64) << 32)))
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

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::Ipv4Addr;
    use std::vec;

    use super::*;

    fn key(client: u32, port: u16) -> FlowKey {
        FlowKey::new(
            Addr::from(Ipv4Addr::from(client)),
            Port::new(port),
            Addr::from(Ipv4Addr::new(192, 0, 2, 1)),
            Port::new(80),
            Proto::TCP,
        )
    }

    /// Chi-square over 256 cells; the 99.999 % quantile for 255 degrees of freedom is 360.
    fn chi_square(hashes: impl Iterator<Item = u32>) -> f64 {
        let mut cells = vec![0_u32; 256];
        let mut total = 0_u32;
        for hash in hashes {
            cells[hash::slot(hash, 256) as usize] += 1;
            total += 1;
        }
        let expected = f64::from(total) / 256.0;
        cells
            .iter()
            .map(|&cell| (f64::from(cell) - expected).powi(2) / expected)
            .sum()
    }

    #[test]
    fn consecutive_ports_of_one_client_spread_evenly() {
        assert!(chi_square((1024..=65535).map(|port| key(0x0a00_0001, port).hash())) < 360.0);
    }

    #[test]
    fn consecutive_clients_with_one_port_spread_evenly() {
        assert!(chi_square((0..65536).map(|i| key(0x0a00_0000 + i, 40000).hash())) < 360.0);
    }

    #[test]
    fn consecutive_clients_of_a_service_with_affinity_spread_evenly() {
        assert!(chi_square((0..65536).map(|i| key(0x0a00_0000 + i, 40000).client_hash())) < 360.0);
    }

    #[test]
    fn a_client_has_one_hash_whatever_it_asks() {
        let other = FlowKey {
            dst_port: Port::new(443),
            proto: Proto::UDP,
            ..key(0x0a00_0001, 50000)
        };
        assert_eq!(key(0x0a00_0001, 40000).client_hash(), other.client_hash());
    }

    #[test]
    fn the_value_is_part_of_the_contract() {
        // Other nodes may run another version: a change here moves every flow of the fleet.
        assert_eq!(key(0x0a00_0001, 40000).hash(), 760_902_233);
    }
}
