//! Addresses, ports and protocols, in network byte order inside and as plain values outside.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

// Words of the datapath are read from little-endian memory: the object is built for bpfel.
const _: () = assert!(cfg!(target_endian = "little"));

/// The third word of an IPv4-mapped address (RFC 4291 §2.5.5.2): `::ffff:a.b.c.d`.
const V4_MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form: 16 bytes, one path for both families.
///
/// Stored as two words of network-order memory: words of four bytes would be merged into stores of eight
/// that are not aligned, which the verifier refuses on the stack. The all-zero value means "none".
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Addr([u64; 2]);

impl Addr {
    /// No address.
    pub const NONE: Self = Self([0; 2]);

    /// Builds from an IPv4 address as it stands in a packet (network-order memory).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, V4_MAPPED as u64 | (word as u64) << 32])
    }

    /// Builds from the two halves of an IPv6 address as they stand in a packet.
    #[inline(always)]
    pub const fn from_v6_halves(halves: [u64; 2]) -> Self {
        Self(halves)
    }

    /// Builds from a standard-library address.
    pub const fn new(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let (halves, _) = octets.as_chunks::<8>();
        Self([u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1])])
    }

    /// The address as a standard-library value: IPv4 when it is IPv4-mapped.
    pub fn ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.octets());
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// The sixteen bytes in network order.
    pub fn octets(self) -> [u8; 16] {
        bytemuck::cast(self.0)
    }

    /// The two halves of network-order memory.
    #[inline(always)]
    pub const fn halves(self) -> [u64; 2] {
        self.0
    }

    /// The IPv4 part as it stands in a packet; meaningful only where [`Addr::is_v4`] holds.
    #[inline(always)]
    pub const fn v4_word(self) -> u32 {
        (self.0[1] >> 32) as u32
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] as u32 == V4_MAPPED
    }

    /// Whether the address is of the host that it stands on: 127.0.0.0/8 or `::1` (RFC 6890 §2.2).
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        let first = self.v4_word() & 0xff_u32.to_le();
        (self.is_v4() && first == 127) || (self.0[0] == 0 && self.0[1] == 1_u64.to_be())
    }

    /// Whether there is no address.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        (self.0[0] | self.0[1]) == 0
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        Self::new(ip)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::new(IpAddr::V4(ip))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self::new(IpAddr::V6(ip))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("-");
        }
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A transport port (or an ICMP echo identifier) in network order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Port(u16);

impl Port {
    /// Builds from a plain number.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// Builds from the two bytes as they stand in a packet.
    #[inline(always)]
    pub const fn from_wire(word: u16) -> Self {
        Self(word)
    }

    /// The plain number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they stand in a packet.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Proto(pub u8);

impl Proto {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: Self = Self(4);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: Self = Self(41);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ICMP => f.write_str("icmp"),
            Self::IPIP => f.write_str("ipip"),
            Self::TCP => f.write_str("tcp"),
            Self::UDP => f.write_str("udp"),
            Self::IPV6 => f.write_str("ipv6"),
            Self::ICMPV6 => f.write_str("icmpv6"),
            Self(other) => write!(f, "{other}"),
        }
    }
}

impl fmt::Debug for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 prefix for a linear search of a few entries, in network-order memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Cidr4 {
    network: u32,
    mask: u32,
}

impl Cidr4 {
    /// Matches no address that can be in a unicast packet (255.255.255.255/32).
    pub const NONE: Self = Self {
        network: u32::MAX,
        mask: u32::MAX,
    };

    /// Builds from an address and a prefix length of at most 32; host bits are cleared.
    pub const fn new(ip: Ipv4Addr, length: u8) -> Self {
        let mask = if length == 0 {
            0
        } else {
            u32::MAX << (32 - if length > 32 { 32 } else { length as u32 })
        };
        Self {
            network: (u32::from_be_bytes(ip.octets()) & mask).to_be(),
            mask: mask.to_be(),
        }
    }

    /// Whether the address, as it stands in a packet, lies inside.
    #[inline(always)]
    pub const fn contains_word(self, word: u32) -> bool {
        word & self.mask == self.network
    }

    /// The network address and the prefix length.
    pub fn parts(self) -> (Ipv4Addr, u8) {
        (
            Ipv4Addr::from(u32::from_be(self.network)),
            u32::from_be(self.mask).leading_ones() as u8,
        )
    }
}

impl Default for Cidr4 {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for Cidr4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (network, length) = self.parts();
        write!(f, "{network}/{length}")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn an_ipv4_address_survives_the_mapped_form() {
        let addr = Addr::from(Ipv4Addr::new(192, 0, 2, 1));

        assert!(addr.is_v4());
        assert_eq!(addr.to_string(), "192.0.2.1");
        assert_eq!(addr, Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1])));
    }

    #[test]
    fn an_ipv6_address_is_not_ipv4() {
        let addr = Addr::from("2001:db8::1".parse::<Ipv6Addr>().unwrap());

        assert!(!addr.is_v4());
        assert_eq!(addr.to_string(), "2001:db8::1");
    }

    #[test]
    fn loopback_addresses_are_those_of_either_family() {
        let is = |text: &str| Addr::new(text.parse().unwrap()).is_loopback();

        assert!(is("127.0.0.1") && is("127.255.0.9") && is("::1"));
        assert!(!is("128.0.0.1") && !is("10.127.0.1") && !is("::2") && !is("::"));
    }

    #[test]
    fn a_prefix_contains_its_edges_and_nothing_beyond() {
        let cidr = Cidr4::new(Ipv4Addr::new(10, 1, 2, 3), 23);
        let word = |a, b, c, d| u32::from_ne_bytes([a, b, c, d]);

        assert!(cidr.contains_word(word(10, 1, 2, 0)));
        assert!(cidr.contains_word(word(10, 1, 3, 255)));
        assert!(!cidr.contains_word(word(10, 1, 4, 0)));
        assert!(!cidr.contains_word(word(10, 1, 1, 255)));
        assert_eq!(cidr.to_string(), "10.1.2.0/23");
        assert!(Cidr4::new(Ipv4Addr::UNSPECIFIED, 0).contains_word(word(8, 8, 8, 8)));
        assert!(!Cidr4::NONE.contains_word(word(8, 8, 8, 8)));
    }
}
