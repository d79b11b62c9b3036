//! The flow hash that the kernel and userspace compute alike, on every node.
//!
//! # Why
//! A multiply-rotate fold of words costs 2 ns in the datapath where jhash costs 8 (FIB and ring
//! lookups follow it, so its latency is on every packet); the final mix makes every output bit
//! depend on every input bit, which the fold alone does not.

use crate::addr::{Addr, Port, Proto};
use crate::flow::FlowKey;

/// Odd, from the golden ratio: spreads consecutive words over all bits.
const K: u64 = 0x9e37_79b9_7f4a_7c15;
/// The final multiplier of SplitMix64 (Steele, Lea, Flood 2014).
const M: u64 = 0xbf58_476d_1ce4_e5b9;

/// Folds one more word into a hash.
#[inline(always)]
pub const fn fold(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(K)
}

/// Spreads a folded value over all bits.
#[inline(always)]
pub const fn finish(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(M);
    hash ^ (hash >> 31)
}

#[inline(always)]
const fn fold_addr(hash: u64, addr: Addr) -> u64 {
    let [a, b] = addr.halves();
    fold(fold(hash, a), b)
}

#[inline(always)]
const fn ports(src: Port, dst: Port, proto: Proto) -> u64 {
    (src.wire() as u64) | ((dst.wire() as u64) << 16) | ((proto.0 as u64) << 32)
}

/// The hash of a flow in one direction, 64 bits, keyed by `secret`.
#[inline(always)]
pub const fn flow_keyed(key: &FlowKey, secret: u64) -> u64 {
    let hash = fold_addr(secret, key.src);
    let hash = fold_addr(hash, key.dst);
    finish(fold(hash, ports(key.src_port, key.dst_port, key.proto)))
}

/// The hash of a flow in one direction that selects its ring slot.
#[inline(always)]
pub const fn flow(key: &FlowKey) -> u32 {
    (flow_keyed(key, K) >> 32) as u32
}

/// Maps a hash to `0..slots` without a division (Lemire 2016).
#[inline(always)]
pub const fn slot(hash: u32, slots: u32) -> u32 {
    ((hash as u64 * slots as u64) >> 32) as u32
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
            cells[slot(hash, 256) as usize] += 1;
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
    fn the_value_is_part_of_the_contract() {
        // Other nodes may run another version: a change here moves every flow of the fleet.
        assert_eq!(key(0x0a00_0001, 40000).hash(), 760_902_233);
    }
}
