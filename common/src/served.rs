//! Which addresses belong to services, whatever the port: what is not a packet of a service there is not to be
//! routed on.
//!
//! ```text
//!   SIEVE     [bit of the address]  0: no service has it, whoever reaches it. 1: perhaps one
//!   ADDRESSES {addr}              -> flags
//! ```
//!
//! # Why
//! Most packets that are no service's are to none of their addresses either. They pay one read of a small array
//! where each hash table, of services and of their addresses, would cost several times as much.
//!
//! Addresses that the host has for itself (node ports) are in the sieve only: there everything else is the host's.

use core::fmt;

use bytemuck::{Pod, Zeroable};

use crate::addr::Addr;
use crate::hash;

/// Bits of a row of `ADDRESSES`.
pub mod flags {
    /// Some service there has a backend.
    pub const SERVED: u32 = 1;
    /// Not a service's address but another node's, where its sockets' clients reach node ports. The sieve lets it
    /// through by chance only.
    pub const NODE: u32 = 2;
}

/// Words of the sieve: 8 KiB, which stay in the first-level cache.
pub const SIEVE_WORDS: usize = 1024;

/// The one row of `SIEVE`: 65536 bits.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Sieve([u64; SIEVE_WORDS]);

impl Sieve {
    /// The word that an address's bit is in, and the bit.
    #[inline(always)]
    pub const fn place(addr: Addr) -> (usize, u64) {
        let [first, second] = addr.halves();
        let hash = hash::fold(hash::fold(hash::K, first), second);
        ((hash >> 54) as usize, 1 << (hash >> 48 & 63))
    }

    /// Whether the address is let through.
    pub const fn passes(&self, addr: Addr) -> bool {
        let (word, bit) = Self::place(addr);
        self.0[word] & bit != 0
    }

    /// How many bits are set.
    pub fn bits(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

impl Default for Sieve {
    fn default() -> Self {
        Self([0; SIEVE_WORDS])
    }
}

impl FromIterator<Addr> for Sieve {
    fn from_iter<I: IntoIterator<Item = Addr>>(addresses: I) -> Self {
        let mut sieve = Self::default();
        for addr in addresses {
            let (word, bit) = Self::place(addr);
            sieve.0[word] |= bit;
        }
        sieve
    }
}

impl fmt::Debug for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sieve of {} bits", self.bits())
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    fn addr(number: u32) -> Addr {
        Addr::from(Ipv4Addr::from(number))
    }

    #[test]
    fn the_sieve_holds_back_all_but_a_few_of_the_addresses_that_it_does_not_know() {
        let known = 0x0a00_0000..0x0a00_03e8;
        let sieve: Sieve = known.clone().map(addr).collect();

        assert!(known.into_iter().all(|n| sieve.passes(addr(n))));
        let strangers = (0xc000_0200..0xc000_0200 + 10_000).filter(|&n| sieve.passes(addr(n)));
        // 1000 of 65536 bits are set: 1.5 % of 10,000, and room for chance.
        assert!(strangers.count() < 220);
    }
}
