//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! All words are network-order memory as it stands in the packet; the one's complement sum does not
//! care about byte order as long as both sides use the same one (RFC 1071 §2(B)).

/// Adds two one's complement sums without losing the carry.
#[inline(always)]
const fn add(sum: u64, word: u32) -> u64 {
    sum + word as u64
}

/// Folds a sum of 32-bit words to 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A change of some words of a packet: what was there and what is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// A 32-bit word changed.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(add(add(self.0, !old), new))
    }

    /// A 16-bit word changed.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// An IPv6 address changed, given as its two halves.
    #[inline(always)]
    #[must_use]
    pub const fn halves(self, old: [u64; 2], new: [u64; 2]) -> Self {
        self.word(old[0] as u32, new[0] as u32)
            .word((old[0] >> 32) as u32, (new[0] >> 32) as u32)
            .word(old[1] as u32, new[1] as u32)
            .word((old[1] >> 32) as u32, (new[1] >> 32) as u32)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The change as the kernel's helpers take it: a one's complement sum of 32 bits (`__wsum`).
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }

    /// The checksum after this change: RFC 1624 equation 3, `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64)
    }

    /// The UDP checksum after this change: 0 means "none" and stays, a computed 0 becomes 0xffff
    /// (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The checksum of bytes, as it stands in memory; an odd last byte is padded with zero.
pub fn of(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    let mut halves = bytes.chunks_exact(2);
    for half in &mut halves {
        sum += u64::from(u16::from_ne_bytes([half[0], half[1]]));
    }
    if let [last] = halves.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..64),
            at in 0_usize..4,
            new in any::<u32>(),
            half in any::<u16>(),
        ) {
            // The first word is never zero, as in every IP header; RFC 1624 §3 has the corner.
            bytes[0] = 0x45;
            let before = of(&bytes);
            let at = 4 + at * 4;
            let old = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            bytes[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            let old_half = u16::from_ne_bytes([bytes[2], bytes[3]]);
            bytes[2..4].copy_from_slice(&half.to_ne_bytes());

            let updated = Delta::NONE.word(old, new).half(old_half, half).apply(before);

            prop_assert_eq!(updated, of(&bytes));
        }
    }

    #[test]
    fn a_udp_packet_without_a_checksum_stays_without() {
        assert_eq!(Delta::NONE.word(1, 2).apply_udp(0), 0);
    }

    #[test]
    fn a_udp_checksum_that_computes_to_zero_is_sent_as_ones() {
        let checksum = 0x1234_u16;
        let to_zero = Delta::NONE.half(0, checksum);

        assert_eq!(to_zero.apply(checksum), 0);
        assert_eq!(to_zero.apply_udp(checksum), 0xffff);
    }
}
