//! Flows whose service's name a node replaces by a backend's, in a hash table of our own.
//!
//! `NAT_FLOWS` is an array of rows of one cache line each. A flow's row is the first free one of the [`PROBES`] that
//! follow its hash's ([`row`]), around the end; who seeks it stops at the first row that was never used.
//!
//! ```text
//!   all zero  --claim-->  BUSY  --key and name written-->  in use  --time-->  expired  --sweep-->  all zero
//!                          ^                                                    |
//!                          +---------------------------claim-------------------+
//! ```
//! A row is claimed by a compare-and-exchange on its last word, {port, state, epoch, last seen}, and so is every
//! change of state and time. An expired row is taken over by the next flow that finds it; the sweep empties it only
//! where the row behind it is empty, so that no flow is cut off from its hash.
//!
//! # Why
//! The kernel's hash reads a bucket, a row of two or three lines, and hashes 40 bytes by jhash: 170 ns for flows that
//! are not in the cache. One line, found by a hash of 2 ns, is one miss.

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};
use crate::flow::FlowKey;
use crate::hash;
use crate::snat::Binding;

/// Rows of `NAT_FLOWS`: twice as many as flows are expected, so that runs stay short.
pub const ROWS: u32 = 1 << 19;
/// How many rows a flow may have. With half of the rows in use fewer than one of a hundred flows finds no room there.
pub const PROBES: u32 = 8;
/// The state of a row that is being written: no [`crate::snat::State`].
pub const BUSY: u8 = 0xff;

/// A row of `NAT_FLOWS`; all zero: never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NatFlow {
    /// The backend's address: the flow is held as its answers look.
    pub src: Addr,
    /// The client's address.
    pub dst: Addr,
    /// The backend's port.
    pub src_port: Port,
    /// The client's port.
    pub dst_port: Port,
    /// Protocol.
    pub proto: Proto,
    /// Zero.
    pub pad: u8,
    /// The row of `NAT_WAYS` that its answers went by last.
    pub way: u16,
    /// From which service they come. `whose` is the epoch in which the way was learnt.
    pub binding: Binding,
}

impl NatFlow {
    /// Builds a row that knows no way yet.
    pub const fn new(answer: &FlowKey, binding: Binding) -> Self {
        Self {
            src: answer.src,
            dst: answer.dst,
            src_port: answer.src_port,
            dst_port: answer.dst_port,
            proto: answer.proto,
            pad: 0,
            way: 0,
            binding,
        }
    }

    /// The flow as its answers look.
    pub const fn answer(&self) -> FlowKey {
        FlowKey::new(self.src, self.src_port, self.dst, self.dst_port, self.proto)
    }
}

/// The row where a flow is sought first; `secret` is the node's, so that nobody outside can fill a run.
#[inline(always)]
pub const fn row(answer: &FlowKey, secret: u64) -> u32 {
    (answer.hash_keyed(secret) >> 32) as u32 & (ROWS - 1)
}

/// The `probe`-th row that a flow may have.
#[inline(always)]
pub const fn probe(first: u32, probe: u32) -> u32 {
    (first + probe) & (ROWS - 1)
}

/// For how long a way is known at most, in seconds: the rest of a span of the clock that is so long.
pub const WAY_S: u32 = 4;
/// Rows of `NAT_WAYS`. A node has as many ways as neighbours, which are few: flows share them, so that they stay in
/// the cache.
pub const WAYS: u32 = 1 << 14;
/// How many rows a way may have. What finds no room there is not learnt.
pub const WAY_PROBES: u32 = 4;

/// A row of `NAT_WAYS`: where answers go; all zero: free. It stays as it is until an agent begins.
///
/// One word, claimed by a compare-and-exchange; the device's own MAC address and MTU are in `DEVICES`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NatWay {
    /// The neighbour's MAC address.
    pub mac: [u8; 6],
    /// The row of `DEVICES` of the device that leads there.
    pub device: u16,
}

/// The `probe`-th row that a way may have, by its word.
#[inline(always)]
pub const fn way_row(way: u64, probe: u32) -> u32 {
    ((hash::fold(hash::K, way) >> 32) as u32).wrapping_add(probe) & (WAYS - 1)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::Ipv4Addr;
    use std::vec;

    use super::*;

    #[test]
    fn nearly_every_flow_finds_room_while_half_of_the_rows_are_in_use() {
        let answer = |n: u32| {
            FlowKey::new(
                Addr::from(Ipv4Addr::new(10, 244, 1, 5)),
                Port::new(8080),
                Addr::from(Ipv4Addr::from(0x0a00_0000 + (n >> 3))),
                Port::new(32768 + (n & 7) as u16),
                Proto::TCP,
            )
        };
        let mut used = vec![false; ROWS as usize];
        let refused = (0..ROWS / 2).filter(|n| {
            let first = row(&answer(*n), 0x5eed);
            let mut places = (0..PROBES).map(|n| probe(first, n) as usize);
            match places.find(|at| !used[*at]) {
                Some(at) => {
                    used[at] = true;
                    false
                }
                None => true,
            }
        });

        assert!(refused.count() < ROWS as usize / 2 / 100);
    }
}
