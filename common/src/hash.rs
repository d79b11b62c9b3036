//! The hash that the kernel and userspace compute alike, on every node; [`crate::flow::FlowKey`] says of
//! which words.
//!
//! # Why
//! A multiply-rotate fold of words costs 2 ns in the datapath where jhash costs 8 (FIB and ring
//! lookups follow it, so its latency is on every packet); the final mix makes every output bit
//! depend on every input bit, which the fold alone does not.

/// Odd, from the golden ratio: spreads consecutive words over all bits; also the key of hashes that need
/// no secret.
pub const K: u64 = 0x9e37_79b9_7f4a_7c15;
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

/// Maps a hash to `0..slots` without a division (Lemire 2016).
#[inline(always)]
pub const fn slot(hash: u32, slots: u32) -> u32 {
    ((hash as u64 * slots as u64) >> 32) as u32
}
