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

use crate::flow::FlowKey;
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
    /// The flow as its answers look.
    pub answer: FlowKey,
    /// From which service they come. `whose` is the epoch in which the way in `NAT_WAYS` was learnt.
    pub binding: Binding,
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

/// A row of `NAT_WAYS`: where a flow's answers go.
///
/// One word, written by one store; the device's own MAC address and MTU are in `DEVICES`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NatWay {
    /// The neighbour's MAC address.
    pub mac: [u8; 6],
    /// The row of `DEVICES` of the device that leads there.
    pub device: u16,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::Ipv4Addr;
    use std::vec;

    use super::*;
    use crate::addr::{Addr, Port, Proto};

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
