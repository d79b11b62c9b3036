//! Destination -> next hop, and the forwarding of plain packets.
//!
//! The way is found by `bpf_fib_lookup` in the kernel's table, which the agent fills with learnt routes.
//!
//! # Why
//! An IPv4 header's checksum is verified before a packet is routed (RFC 1812 §5.2.2): a wrong one is passed
//! to the stack, which counts and drops it. Balanced packets are not verified: they are delivered, not
//! routed, the backend verifies them, and an incremental update keeps a wrong checksum wrong.

use fairlead_common::addr::{Addr, Port};
use fairlead_common::reason::Reason;

use crate::forward::{self, Hop, Sent};
use crate::packet::{FibLookup, Frame, view};
use crate::parse::{Family, IPV4_BYTES, Network, Transport};
use crate::rewrite;

/// `AF_INET` and `AF_INET6` of `linux/socket.h`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Why there is no next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// The destination is here, or no route covers it.
    Local,
    /// A route refuses it.
    Refused,
    /// The next hop's MAC is not known.
    Unresolved,
    /// The packet is larger than the way's MTU, which this is.
    TooBig(u16),
}

impl NoWay {
    /// The reason for a packet that is merely routed.
    #[inline(always)]
    pub const fn routed(self) -> Reason {
        match self {
            Self::Local => Reason::Local,
            Self::Refused => Reason::NoRoute,
            Self::Unresolved => Reason::NeighbourUnresolved,
            Self::TooBig(_) => Reason::MtuExceeded,
        }
    }
}

/// What a way is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Source address.
    pub src: Addr,
    /// Destination address, of the same family.
    pub dst: Addr,
    /// The protocol that policy rules and multipath hashing see.
    pub l4_protocol: u8,
    /// Source and destination port, as in the packet.
    pub ports: (u16, u16),
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv6: traffic class and flow label as in the packet.
    pub flow_info: u32,
    /// Bytes of the IP packet that must fit.
    pub total: u32,
}

impl Question {
    /// Asks for the way of a packet as it is.
    #[inline(always)]
    pub const fn about(network: &Network, transport: &Transport) -> Self {
        let ports = (transport.src_port, transport.dst_port);
        Self::to(network.dst, network, ports)
    }

    /// Asks for the way of a packet to another address, with these ports.
    #[inline(always)]
    pub const fn to(dst: Addr, network: &Network, ports: (Port, Port)) -> Self {
        Self {
            src: network.src,
            dst,
            l4_protocol: network.proto.0,
            ports: (ports.0.wire(), ports.1.wire()),
            traffic_class: network.traffic_class,
            flow_info: network.flow_info,
            total: network.total,
        }
    }
}

/// Finds the next hop.
///
/// # Errors
/// Why there is none.
#[inline(always)]
pub fn way(frame: &impl Frame, question: &Question) -> Result<Hop, NoWay> {
    let (family, flow_info, src, dst) = if question.dst.is_v4() {
        let word = |addr: Addr| [addr.v4_word().into(), 0];
        let traffic_class = question.traffic_class.into();
        (
            AF_INET,
            traffic_class,
            word(question.src),
            word(question.dst),
        )
    } else {
        let halves = |addr: Addr| addr.halves();
        (
            AF_INET6,
            question.flow_info,
            halves(question.src),
            halves(question.dst),
        )
    };
    let total = frame.length_to_fit(question.total);
    let head = FibLookup::head(family, question.l4_protocol, question.ports, total);
    let mut lookup = FibLookup {
        head,
        ifindex: frame.ifindex(),
        flow_info,
        src,
        dst,
        // Anything: the answer is written here. Zeros would be a call of memset.
        macs: [head; 2],
    };
    let found = frame.find_way(&mut lookup);
    // The answer's MTU stands where the length was asked.
    let mtu = (lookup.head >> 48) as u16;
    answer(found, mtu).map(|()| Hop {
        ifindex: lookup.ifindex,
        mtu: mtu.into(),
        macs: lookup.macs,
    })
}

/// Reads `BPF_FIB_LKUP_RET_*` of `linux/bpf.h`.
#[inline(always)]
const fn answer(answer: i64, mtu: u16) -> Result<(), NoWay> {
    match answer {
        0 => Ok(()),
        // NOT_FWDED: the result is no unicast route, or there is no result.
        4 => Err(NoWay::Local),
        // NO_NEIGH.
        7 => Err(NoWay::Unresolved),
        // FRAG_NEEDED.
        8 => Err(NoWay::TooBig(mtu)),
        // BLACKHOLE, UNREACHABLE, PROHIBIT, FWD_DISABLED, UNSUPP_LWT, NO_SRC_ADDR, or an errno.
        _ => Err(NoWay::Refused),
    }
}

/// Forwards a packet by its destination address.
///
/// # Errors
/// Why the stack gets it, untouched.
#[inline(always)]
pub fn forward(
    frame: &mut impl Frame,
    network: &Network,
    transport: &Transport,
) -> Result<Sent, Reason> {
    if network.is_tagged() {
        return Err(Reason::Tagged);
    }
    may_be_routed(frame, network)?;
    let hop = way(frame, &Question::about(network, transport)).map_err(NoWay::routed)?;
    if !forward::has_port(frame, &hop) {
        return Err(Reason::OtherDevice);
    }
    // After the way is known: what is for this node is not hindered by a TTL of 1.
    if network.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    rewrite::macs(frame, &hop)?;
    rewrite::decrement_ttl(frame, network)?;
    Ok(Sent::by(&hop, Reason::Routed))
}

/// Refuses what a router must not forward.
///
/// # Errors
/// [`Reason::Malformed`] for a wrong IPv4 header checksum, [`Reason::Unforwardable`] for addresses of a
/// smaller scope (RFC 1812 §5.3.7, RFC 4291 §2.5.6).
#[inline(always)]
pub fn may_be_routed(frame: &impl Frame, network: &Network) -> Result<(), Reason> {
    match network.family {
        Family::V4 => {
            let header = view::<IPV4_BYTES>(frame, network.at)?;
            let sum = u64::from(header.get::<u32, 0>())
                + u64::from(header.get::<u32, 4>())
                + u64::from(header.get::<u32, 8>())
                + u64::from(header.get::<u32, 12>())
                + u64::from(header.get::<u32, 16>());
            if fairlead_common::checksum::fold(sum) != 0xffff {
                return Err(Reason::Malformed);
            }
            if is_narrow_v4(network.src.v4_word()) || is_narrow_v4(network.dst.v4_word()) {
                return Err(Reason::Unforwardable);
            }
        }
        Family::V6 => {
            if is_narrow_v6(network.src) || is_narrow_v6(network.dst) {
                return Err(Reason::Unforwardable);
            }
        }
    }
    Ok(())
}

/// Whether an address may be a packet's beyond the link: one host's, and of no smaller scope.
#[inline(always)]
pub const fn is_wide(addr: Addr) -> bool {
    if addr.is_v4() {
        !is_narrow_v4(addr.v4_word())
    } else {
        !is_narrow_v6(addr)
    }
}

/// 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, and 224.0.0.0/3 (multicast, reserved, broadcast).
#[inline(always)]
const fn is_narrow_v4(word: u32) -> bool {
    let [a, b, ..] = word.to_ne_bytes();
    matches!(a, 0 | 127 | 224..) || (a == 169 && b == 254)
}

/// ::/32 (unspecified, loopback, IPv4-compatible and -mapped), fe80::/10 and ff00::/8.
#[inline(always)]
const fn is_narrow_v6(addr: Addr) -> bool {
    let first = u32::from_be(addr.halves()[0] as u32);
    first == 0 || first >> 22 == 0xfe80_0000 >> 22 || first >> 24 == 0xff
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn addresses_of_a_smaller_scope_are_narrow_and_others_are_not() {
        let is_narrow = |text: &str| match text.parse::<Ipv4Addr>() {
            Ok(v4) => is_narrow_v4(Addr::from(v4).v4_word()),
            Err(_) => is_narrow_v6(Addr::from(text.parse::<Ipv6Addr>().unwrap())),
        };
        for narrow in [
            "0.1.2.3",
            "127.0.0.1",
            "169.254.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(is_narrow(narrow), "{narrow}");
        }
        for wide in [
            "1.0.0.1",
            "10.0.0.1",
            "100.64.0.1",
            "169.253.0.1",
            "169.255.0.1",
            "192.168.0.1",
            "223.255.255.255",
            "2001:db8::1",
            "64:ff9b::1",
            "fd00::1",
            "fec0::1",
            "fe00::1",
        ] {
            assert!(!is_narrow(wide), "{wide}");
        }
    }
}
