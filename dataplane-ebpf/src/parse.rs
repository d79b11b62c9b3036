//! Bytes of a frame -> what they mean: the network header, then the transport header.
//!
//! Two steps, because a router needs only the first, and because a pod's packet must be recognised by its
//! source address even when the rest of it is broken.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;
use fairlead_common::service::ServiceKey;
use fairlead_common::snat::tcp;

use crate::packet::{Frame, View, view};

pub mod chain;

/// Bytes of an untagged Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_BYTES: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_BYTES: usize = 40;
/// EtherTypes, in the order of memory.
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800_u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86dd_u16.to_be();
    /// IEEE 802.1Q tag.
    pub const VLAN: u16 = 0x8100_u16.to_be();
    /// IEEE 802.1ad outer tag.
    pub const PROVIDER_VLAN: u16 = 0x88a8_u16.to_be();
}

/// The IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[inline(always)]
    pub const fn of(addr: Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }

    /// Bytes of its header, without options.
    #[inline(always)]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::V4 => IPV4_BYTES,
            Self::V6 => IPV6_BYTES,
        }
    }
}

/// What the network header says.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Where the IP header begins.
    pub at: usize,
    /// Its version.
    pub family: Family,
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Protocol or next header.
    pub proto: Proto,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// IPv6: the first four bytes without the version, as in the packet. IPv4: 0.
    pub flow_info: u32,
    /// Bytes of the IP packet.
    pub total: u32,
    /// Whether it is one whole packet that begins with a plain header.
    pub whole: Result<(), Reason>,
}

impl Network {
    /// Whether the frame carries VLAN tags.
    #[inline(always)]
    pub const fn is_tagged(&self) -> bool {
        self.at != ETHERNET_BYTES
    }
}

/// What is looked at of a network header before the rest of it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Destination address.
    pub dst: Addr,
    /// Protocol or next header.
    pub proto: Proto,
}

/// What follows the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP or UDP.
    Ports,
    /// ICMP echo request: the source port is its identifier.
    EchoRequest,
    /// ICMP echo reply: the destination port is its identifier.
    EchoReply,
    /// ICMP that speaks about another packet.
    IcmpError,
    /// Anything else.
    Other,
}

/// What the transport header says.
#[derive(Clone, Copy, Debug)]
pub struct Transport {
    /// Where it begins.
    pub at: usize,
    /// What it is.
    pub kind: Kind,
    /// Source port.
    pub src_port: Port,
    /// Destination port.
    pub dst_port: Port,
    /// TCP flags; 0 for others.
    pub tcp_flags: u8,
}

impl Transport {
    /// The flow that the packet belongs to.
    #[inline(always)]
    pub const fn flow(&self, network: &Network) -> FlowKey {
        FlowKey::new(
            network.src,
            self.src_port,
            network.dst,
            self.dst_port,
            network.proto,
        )
    }

    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// The service that the packet would belong to.
    #[inline(always)]
    pub const fn service(&self, network: &Network) -> ServiceKey {
        ServiceKey::new(network.dst, self.dst_port, network.proto)
    }
}

/// Whether the frame is addressed to `mac`, six bytes in the order of memory; the two behind them do not count.
///
/// # Errors
/// [`Reason::Malformed`] when it has no Ethernet header.
#[inline(always)]
pub fn is_to(frame: &impl Frame, mac: u64) -> Result<bool, Reason> {
    let ethernet = view::<ETHERNET_BYTES>(frame, 0)?;
    Ok((ethernet.get::<u64, 0>() ^ mac) << 16 == 0)
}

/// The EtherType, in the order of memory.
///
/// # Errors
/// [`Reason::Malformed`] when the frame has no Ethernet header.
#[inline(always)]
pub fn ether_type(frame: &impl Frame) -> Result<u16, Reason> {
    Ok(view::<ETHERNET_BYTES>(frame, 0)?.get::<u16, 12>())
}

/// Reads the Ethernet header, up to two VLAN tags and the network header.
///
/// # Errors
/// [`Reason::NotIp`], or [`Reason::Malformed`] when not even the fixed header is there.
#[inline(always)]
pub fn network(frame: &impl Frame) -> Result<Network, Reason> {
    let untagged = ether_type(frame)?;
    // Each depth has its own constant offset, which the verifier follows better than a sum.
    if !is_vlan(untagged) {
        return network_at(frame, untagged, ETHERNET_BYTES);
    }
    let once = view::<18>(frame, 0)?.get::<u16, 16>();
    if !is_vlan(once) {
        return network_at(frame, once, ETHERNET_BYTES + 4);
    }
    let twice = view::<22>(frame, 0)?.get::<u16, 20>();
    network_at(frame, twice, ETHERNET_BYTES + 8)
}

#[inline(always)]
const fn is_vlan(kind: u16) -> bool {
    kind == ether_type::VLAN || kind == ether_type::PROVIDER_VLAN
}

#[inline(always)]
fn network_at(frame: &impl Frame, kind: u16, at: usize) -> Result<Network, Reason> {
    match kind {
        ether_type::IPV4 => ipv4(frame, at),
        ether_type::IPV6 => ipv6(frame, at),
        _ => Err(Reason::NotIp),
    }
}

/// Looks at an IPv4 header at `at`.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short.
#[inline(always)]
pub fn target_v4(frame: &impl Frame, at: usize) -> Result<Target, Reason> {
    let header = view::<IPV4_BYTES>(frame, at)?;
    Ok(Target {
        dst: Addr::from_v4_word(header.get::<u32, 16>()),
        proto: Proto(header.get::<u8, 9>()),
    })
}

/// Looks at an IPv6 header at `at`.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short.
#[inline(always)]
pub fn target_v6(frame: &impl Frame, at: usize) -> Result<Target, Reason> {
    let header = view::<IPV6_BYTES>(frame, at)?;
    Ok(Target {
        dst: header.v6::<24>(),
        proto: Proto(header.get::<u8, 6>()),
    })
}

/// Reads an IPv4 header at `at`.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short or not version 4.
#[inline(always)]
pub fn ipv4(frame: &impl Frame, at: usize) -> Result<Network, Reason> {
    let header = view::<IPV4_BYTES>(frame, at)?;
    let version_and_length = header.get::<u8, 0>();
    if version_and_length >> 4 != 4 {
        return Err(Reason::Malformed);
    }
    let total = u32::from(u16::from_be(header.get::<u16, 2>()));
    let whole = if version_and_length != 0x45 {
        match version_and_length {
            0x46.. => Err(Reason::IpOptions),
            _ => Err(Reason::Malformed),
        }
    } else if total < IPV4_BYTES as u32 || at + total as usize > frame.bytes() {
        Err(Reason::Malformed)
    } else if header.get::<u16, 6>() & MORE_FRAGMENTS_OR_OFFSET != 0 {
        Err(Reason::Fragment)
    } else {
        Ok(())
    };
    Ok(Network {
        at,
        family: Family::V4,
        src: Addr::from_v4_word(header.get::<u32, 12>()),
        dst: Addr::from_v4_word(header.get::<u32, 16>()),
        proto: Proto(header.get::<u8, 9>()),
        ttl: header.get::<u8, 8>(),
        traffic_class: header.get::<u8, 1>(),
        flow_info: 0,
        total,
        whole,
    })
}

/// In the order of memory: the flag "more fragments" and the fragment offset (RFC 791 §3.1).
const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff_u16.to_be();

/// Reads an IPv6 header at `at`.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short or not version 6.
#[inline(always)]
pub fn ipv6(frame: &impl Frame, at: usize) -> Result<Network, Reason> {
    let header = view::<IPV6_BYTES>(frame, at)?;
    let first = u32::from_be(header.get::<u32, 0>());
    if first >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let total = u32::from(u16::from_be(header.get::<u16, 4>())) + IPV6_BYTES as u32;
    let proto = Proto(header.get::<u8, 6>());
    let whole = if at + total as usize > frame.bytes() {
        Err(Reason::Malformed)
    } else {
        plain_next_header(proto)
    };
    Ok(Network {
        at,
        family: Family::V6,
        src: header.v6::<8>(),
        dst: header.v6::<24>(),
        proto,
        ttl: header.get::<u8, 7>(),
        traffic_class: (first >> 20) as u8,
        flow_info: (first & 0x0fff_ffff).to_be(),
        total,
        whole,
    })
}

/// Whether an IPv6 next header is an upper layer's (IANA "IPv6 Extension Header Types").
#[inline(always)]
const fn plain_next_header(proto: Proto) -> Result<(), Reason> {
    match proto.0 {
        44 => Err(Reason::Fragment),
        0 | 43 | 51 | 60 | 135 | 139 | 140 | 253 | 254 => Err(Reason::IpOptions),
        _ => Ok(()),
    }
}

/// Reads what follows the network header.
///
/// # Errors
/// The reason why the packet is not whole, or [`Reason::Malformed`] when the transport header is cut short.
#[inline(always)]
pub fn transport(frame: &impl Frame, network: &Network) -> Result<Transport, Reason> {
    network.whole?;
    let at = network.at + network.family.header_bytes();
    let bytes = network.total - network.family.header_bytes() as u32;
    let mut transport = Transport {
        at,
        kind: Kind::Other,
        src_port: Port::default(),
        dst_port: Port::default(),
        tcp_flags: 0,
    };
    match (network.proto, network.family) {
        (Proto::TCP, _) => {
            let header = enough(view::<20>(frame, at)?, bytes)?;
            transport.kind = Kind::Ports;
            transport.src_port = Port::from_wire(header.get::<u16, 0>());
            transport.dst_port = Port::from_wire(header.get::<u16, 2>());
            transport.tcp_flags = header.get::<u8, 13>();
        }
        (Proto::UDP, _) => {
            let header = enough(view::<8>(frame, at)?, bytes)?;
            transport.kind = Kind::Ports;
            transport.src_port = Port::from_wire(header.get::<u16, 0>());
            transport.dst_port = Port::from_wire(header.get::<u16, 2>());
        }
        (Proto::ICMP, Family::V4) => {
            let header = enough(view::<8>(frame, at)?, bytes)?;
            let identifier = Port::from_wire(header.get::<u16, 4>());
            transport.kind = match header.get::<u8, 0>() {
                0 => Kind::EchoReply,
                8 => Kind::EchoRequest,
                3 | 4 | 5 | 11 | 12 => Kind::IcmpError,
                _ => Kind::Other,
            };
            match transport.kind {
                Kind::EchoReply => transport.dst_port = identifier,
                Kind::EchoRequest => transport.src_port = identifier,
                Kind::Ports | Kind::IcmpError | Kind::Other => {}
            }
        }
        _ => {}
    }
    Ok(transport)
}

/// A frame may be padded: the header must lie inside the IP packet, not only inside the frame.
#[inline(always)]
fn enough<const N: usize>(header: View<'_, N>, bytes: u32) -> Result<View<'_, N>, Reason> {
    if (bytes as usize) < N {
        return Err(Reason::Malformed);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::buffer::Buffer;

    /// A frame of random bytes but for what makes a whole packet of one: and often one of these is wrong.
    fn almost_whole() -> impl Strategy<Value = Vec<u8>> {
        let bytes = proptest::collection::vec(any::<u8>(), 74..120);
        let spoil = proptest::option::weighted(0.3, (12_usize..60, any::<u8>()));
        (bytes, any::<bool>(), any::<bool>(), spoil).prop_map(
            |(mut frame, is_v4, is_tcp, spoil)| {
                let proto = if is_tcp { 6 } else { 17 };
                let transport = if is_v4 { 34 } else { 54 };
                let total = frame.len() as u16 - 14;
                if is_v4 {
                    frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
                    frame[16..18].copy_from_slice(&total.to_be_bytes());
                    frame[20..22].copy_from_slice(&[0x40, 0]);
                    frame[23] = proto;
                } else {
                    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                    frame[18..20].copy_from_slice(&(total - 40).to_be_bytes());
                    frame[20] = proto;
                }
                if is_tcp {
                    frame[transport + 12] = 0x50;
                } else {
                    let length = (frame.len() - transport) as u16;
                    frame[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
                }
                if let Some((at, byte)) = spoil {
                    frame[at] = byte;
                }
                frame
            },
        )
    }

    proptest! {
        /// What we take for a whole packet with ports, etherparse takes for the same one.
        #[test]
        fn etherparse_reads_the_same_in_every_packet_that_we_accept(frame in almost_whole()) {
            let buffer = Buffer(frame);
            let network = network(&buffer);
            prop_assume!(network.is_ok());
            let network = network.unwrap();
            let transport = transport(&buffer, &network);
            prop_assume!(transport.as_ref().is_ok_and(|transport| transport.kind == Kind::Ports));
            let transport = transport.unwrap();

            // Lax: TCP options and the length of UDP are the ends' concern.
            let sliced = LaxSlicedPacket::from_ethernet(&buffer.0).unwrap();
            prop_assume!(sliced.stop_err.is_none());

            let (src, dst) = match &sliced.net {
                Some(LaxNetSlice::Ipv4(ip)) => (
                    Addr::from(ip.header().source_addr()),
                    Addr::from(ip.header().destination_addr()),
                ),
                Some(LaxNetSlice::Ipv6(ip)) => (
                    Addr::from_v6_halves(halves(ip.header().source())),
                    Addr::from_v6_halves(halves(ip.header().destination())),
                ),
                other => return Err(TestCaseError::fail(std::format!("{other:?}"))),
            };
            let ports = match &sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
                Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
                other => return Err(TestCaseError::fail(std::format!("{other:?}"))),
            };
            prop_assert_eq!((network.src, network.dst), (src, dst));
            prop_assert_eq!(
                (transport.src_port.number(), transport.dst_port.number()),
                ports
            );
        }
    }

    fn halves(octets: [u8; 16]) -> [u64; 2] {
        let (halves, _) = octets.as_chunks::<8>();
        [u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1])]
    }
}
