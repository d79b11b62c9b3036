//! Changes packets: the only writer of headers.
//!
//! Every function here is called after the last question that could end the packet otherwise. Not for
//! decisions.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::checksum::{self, Delta};
use fairlead_common::reason::Reason;

use crate::forward::Hop;
use crate::packet::{Checksum, Frame, Outer, Renaming, Resize, view, view_mut};
use crate::parse::{
    ETHERNET_BYTES, Family, IPV4_BYTES, IPV6_BYTES, Network, Transport, ether_type,
};

mod answer;
mod anywhere;

pub use answer::{IcmpError, echo_reply, icmp_error};
pub use anywhere::{decrement_ttl_anywhere, lay_bare, name_anywhere, quoted, traffic_class};

/// The TTL or hop limit of headers of our own: RFC 1700's.
const OWN_TTL: u8 = 64;
/// "Don't fragment", in the order of memory.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Addresses the frame from the hop's device to its neighbour.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
pub fn macs(frame: &mut impl Frame, hop: &Hop) -> Result<(), Reason> {
    let (first, second) = ethernet_words(hop.macs);
    let mut ethernet = view_mut::<ETHERNET_BYTES>(frame, 0)?;
    ethernet.set::<u64, 0>(first);
    ethernet.set::<u32, 8>(second);
    Ok(())
}

/// {-, source, destination} as the kernel answers -> {destination, source} as they stand in a frame, read as a
/// word of eight and a word of four bytes. The object is built for little-endian machines.
#[inline(always)]
const fn ethernet_words(macs: [u64; 2]) -> (u64, u32) {
    let [first, second] = macs;
    let source = (first >> 32) | ((second & 0xffff) << 32);
    let destination = second >> 16;
    (destination | source << 48, (source >> 16) as u32)
}

/// Takes one from the TTL or hop limit, which is at least 2.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
pub fn decrement_ttl(frame: &mut impl Frame, network: &Network) -> Result<(), Reason> {
    match network.family {
        // The header's own checksum makes up for the change: whatever covers the whole stays right.
        Family::V4 => {
            let mut header = view_mut::<IPV4_BYTES>(frame, network.at)?;
            let old = header.get::<u16, 8>();
            let new = old - 1;
            let sum = Delta::NONE.half(old, new).apply(header.get::<u16, 10>());
            header.set::<u16, 8>(new);
            header.set::<u16, 10>(sum);
            Ok(())
        }
        Family::V6 => frame.store_byte(network.at + 7, network.ttl - 1),
    }
}

/// The outer header of a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// The family of the outer header.
    pub family: Family,
    /// This node.
    pub src: Addr,
    /// The backend, of the same family.
    pub dst: Addr,
    /// The flow's hash: the flow label of an outer IPv6 header (RFC 6438) and the outer source port of GUE, so
    /// that routers on the way and the queues at its end can spread flows.
    pub hash: u32,
    /// What stands between the outer header and the packet.
    pub wrap: Wrap,
}

/// What stands between the outer header and the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// Nothing: IPIP, IP6IP6 and their mixtures.
    Plain,
    /// UDP and nothing more: GUE variant 1 (draft-ietf-intarea-gue-09 §3), where the packet's own first bits say
    /// that it is one. Katran sends it, and the kernel takes it (`ip fou add port 6080 gue`).
    Gue,
}

impl Wrap {
    /// Its bytes.
    #[inline(always)]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Gue => UDP_BYTES,
        }
    }
}

/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;
/// The port of GUE (IANA), in the order of memory.
pub const GUE_PORT: u16 = 6080_u16.to_be();

impl Tunnel {
    /// Bytes in front of the packet.
    #[inline(always)]
    pub const fn bytes(&self) -> usize {
        self.family.header_bytes() + self.wrap.bytes()
    }

    /// The protocol of the outer header, for a packet of this family.
    #[inline(always)]
    pub const fn proto(&self, inner: Family) -> Proto {
        match (self.wrap, inner) {
            (Wrap::Plain, Family::V4) => Proto::IPIP,
            (Wrap::Plain, Family::V6) => Proto::IPV6,
            (Wrap::Gue, _) => Proto::UDP,
        }
    }

    /// The outer ports, as in the packet; 0 where there are none. The source is one of the dynamic ports.
    #[inline(always)]
    pub const fn ports(&self) -> (u16, u16) {
        match self.wrap {
            Wrap::Plain => (0, 0),
            Wrap::Gue => ((0xc000 | self.hash as u16 & 0x3fff).to_be(), GUE_PORT),
        }
    }

    /// Traffic class (the inner one: RFC 6040 §4.1, normal mode) and flow label of an outer IPv6 header, as
    /// in the packet.
    #[inline(always)]
    pub const fn flow_info(&self, traffic_class: u8) -> u32 {
        ((traffic_class as u32) << 20 | self.hash & 0x000f_ffff).to_be()
    }
}

/// Wraps the packet for the backend and addresses the frame to the hop. VLAN tags stay.
///
/// # Errors
/// [`Reason::HelperFailed`] when the kernel has no room in front of the frame.
#[inline(always)]
pub fn encapsulate(
    frame: &mut impl Resize,
    network: &Network,
    tunnel: &Tunnel,
    hop: &Hop,
) -> Result<(), Reason> {
    let inner = tunnel.proto(network.family);
    let outer = tunnel.family;
    let tags = vlan_tags(frame, network.at)?;
    let wrap = tunnel.wrap.bytes() as u32;
    match (outer, tunnel.wrap) {
        (Family::V4, Wrap::Plain) => frame.push(Outer::V4)?,
        (Family::V6, Wrap::Plain) => frame.push(Outer::V6)?,
        (Family::V4, Wrap::Gue) => frame.push(Outer::V4Udp)?,
        (Family::V6, Wrap::Gue) => frame.push(Outer::V6Udp)?,
    }
    macs(frame, hop)?;
    set_vlan_tags(frame, network.at, tags)?;
    set_ether_type(frame, network.at, outer)?;
    match outer {
        Family::V4 => {
            let mut header = view_mut::<IPV4_BYTES>(frame, network.at)?;
            let total = network.total + IPV4_BYTES as u32 + wrap;
            let words = ipv4_words(
                tunnel.src,
                tunnel.dst,
                inner,
                network.traffic_class,
                total as u16,
            );
            header.set::<u32, 0>(words[0]);
            header.set::<u32, 4>(words[1]);
            header.set::<u32, 8>(words[2]);
            header.set::<u32, 12>(words[3]);
            header.set::<u32, 16>(words[4]);
        }
        Family::V6 => {
            let mut header = view_mut::<IPV6_BYTES>(frame, network.at)?;
            let version = (6_u32 << 28).to_be();
            header.set::<u32, 0>(version | tunnel.flow_info(network.traffic_class));
            header.set::<u16, 4>(((network.total + wrap) as u16).to_be());
            header.set::<u8, 6>(inner.0);
            header.set::<u8, 7>(OWN_TTL);
            header.set_v6::<8>(tunnel.src);
            header.set_v6::<24>(tunnel.dst);
        }
    }
    match tunnel.wrap {
        Wrap::Plain => Ok(()),
        Wrap::Gue => udp(frame, network, tunnel),
    }
}

/// A UDP header without a checksum: the packet has its own (RFC 6935 §5, RFC 6936 §4).
#[inline(always)]
fn udp(frame: &mut impl Frame, network: &Network, tunnel: &Tunnel) -> Result<(), Reason> {
    let (src, dst) = tunnel.ports();
    let total = network.total as u16 + UDP_BYTES as u16;
    let mut header = match tunnel.family {
        Family::V4 => view_mut::<UDP_BYTES>(frame, network.at + IPV4_BYTES)?,
        Family::V6 => view_mut::<UDP_BYTES>(frame, network.at + IPV6_BYTES)?,
    };
    header.set::<u16, 0>(src);
    header.set::<u16, 2>(dst);
    header.set::<u16, 4>(total.to_be());
    header.set::<u16, 6>(0);
    Ok(())
}

/// An IPv4 header of our own. Its identification is 0: with DF set it identifies nothing (RFC 6864 §4.1).
#[inline(always)]
const fn ipv4_words(src: Addr, dst: Addr, proto: Proto, traffic_class: u8, total: u16) -> [u32; 5] {
    let [t0, t1] = total.to_be_bytes();
    let [f0, f1] = DONT_FRAGMENT.to_ne_bytes();
    let first = u32::from_ne_bytes([0x45, traffic_class, t0, t1]);
    let second = u32::from_ne_bytes([0, 0, f0, f1]);
    let third = u32::from_ne_bytes([OWN_TTL, proto.0, 0, 0]);
    let (src, dst) = (src.v4_word(), dst.v4_word());
    let sum = first as u64 + second as u64 + third as u64 + src as u64 + dst as u64;
    let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
    let third = u32::from_ne_bytes([OWN_TTL, proto.0, c0, c1]);
    [first, second, third, src, dst]
}

/// Takes a tunnel's header off, of `bytes` at `at`; what is inside is of this family. VLAN tags stay.
///
/// # Errors
/// [`Reason::HelperFailed`] when the kernel refuses.
#[inline(always)]
pub fn decapsulate(
    frame: &mut impl Resize,
    at: usize,
    bytes: usize,
    inner: Family,
) -> Result<(), Reason> {
    let ethernet = view::<ETHERNET_BYTES>(frame, 0)?;
    let (first, second) = (ethernet.get::<u64, 0>(), ethernet.get::<u32, 8>());
    let tags = vlan_tags(frame, at)?;
    frame.pull(bytes as u32)?;
    let mut ethernet = view_mut::<ETHERNET_BYTES>(frame, 0)?;
    ethernet.set::<u64, 0>(first);
    ethernet.set::<u32, 8>(second);
    set_vlan_tags(frame, at, tags)?;
    set_ether_type(frame, at, inner)
}

/// Which end of a flow is given another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that the packet comes from.
    Source,
    /// The one that it goes to.
    Destination,
}

/// Gives one end of a packet's flow another address of its family and another port (or echo identifier).
///
/// # Errors
/// [`Reason::HelperFailed`]; the packet may be half written and must be dropped.
#[inline(always)]
pub fn name(
    frame: &mut impl Frame,
    network: &Network,
    transport: &Transport,
    end: End,
    addr: Addr,
    port: Port,
) -> Result<(), Reason> {
    frame.rename(&renaming(network, transport, end, addr, port))
}

#[inline(always)]
fn renaming(
    network: &Network,
    transport: &Transport,
    end: End,
    addr: Addr,
    port: Port,
) -> Renaming {
    let at = transport.at;
    let (ports, checksum) = match network.proto {
        Proto::TCP => ((at, at + 2), (at + 16, false, true)),
        Proto::UDP => ((at, at + 2), (at + 6, true, true)),
        // An echo's identifier stands in one place for both ends.
        _ => ((at + 4, at + 4), (at + 2, false, false)),
    };
    let (port_at, old_port) = match end {
        End::Source => (ports.0, transport.src_port),
        End::Destination => (ports.1, transport.dst_port),
    };
    let address = address(network, end);
    let (checksum_at, optional, covers_addresses) = checksum;
    Renaming {
        v4_header: address.v4_header,
        address_at: address.at,
        addresses: (address.held, addr),
        port_at,
        ports: (old_port, port),
        checksum: Checksum {
            at: checksum_at,
            optional,
            covers_addresses,
        },
    }
}

/// An address of a network header.
struct AddressAt {
    /// The header, where its checksum covers the address.
    v4_header: Option<usize>,
    /// Where it stands.
    at: usize,
    /// What it is.
    held: Addr,
}

#[inline(always)]
fn address(network: &Network, end: End) -> AddressAt {
    let (v4_header, source_at, bytes) = match network.family {
        Family::V4 => (Some(network.at), network.at + 12, 4),
        Family::V6 => (None, network.at + 8, 16),
    };
    let (at, held) = match end {
        End::Source => (source_at, network.src),
        End::Destination => (source_at + bytes, network.dst),
    };
    AddressAt {
        v4_header,
        at,
        held,
    }
}

/// The VLAN tags between the MAC addresses and the EtherType.
#[inline(always)]
fn vlan_tags(frame: &impl Frame, network_at: usize) -> Result<(u32, u32), Reason> {
    Ok(match network_at - ETHERNET_BYTES {
        0 => (0, 0),
        4 => (view::<16>(frame, 0)?.get::<u32, 12>(), 0),
        _ => {
            let header = view::<20>(frame, 0)?;
            (header.get::<u32, 12>(), header.get::<u32, 16>())
        }
    })
}

#[inline(always)]
fn set_vlan_tags(
    frame: &mut impl Frame,
    network_at: usize,
    tags: (u32, u32),
) -> Result<(), Reason> {
    match network_at - ETHERNET_BYTES {
        0 => {}
        4 => view_mut::<16>(frame, 0)?.set::<u32, 12>(tags.0),
        _ => {
            let mut header = view_mut::<20>(frame, 0)?;
            header.set::<u32, 12>(tags.0);
            header.set::<u32, 16>(tags.1);
        }
    }
    Ok(())
}

#[inline(always)]
fn set_ether_type(frame: &mut impl Frame, ip_at: usize, family: Family) -> Result<(), Reason> {
    let kind = match family {
        Family::V4 => ether_type::IPV4,
        Family::V6 => ether_type::IPV6,
    };
    view_mut::<2>(frame, ip_at - 2)?.set::<u16, 0>(kind);
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::buffer::Buffer;
    use crate::parse;

    const HOP: Hop = Hop {
        ifindex: 2,
        mtu: 0,
        // As the kernel writes it: four unused bytes, 02:..:0a, 02:..:0b.
        macs: [
            u64::from_ne_bytes([0xee, 0xee, 0xee, 0xee, 2, 1, 1, 1]),
            u64::from_ne_bytes([1, 0x0a, 2, 2, 2, 2, 2, 0x0b]),
        ],
    };
    const HOP_MACS: [u8; 12] = [2, 2, 2, 2, 2, 0x0b, 2, 1, 1, 1, 1, 0x0a];

    /// A frame by etherparse: `tags` VLAN tags, an IP header of the family, UDP.
    fn frame(tags: usize, family: Family, ttl: u8, payload: &[u8]) -> Buffer {
        let ethernet = PacketBuilder::ethernet2([9; 6], [8; 6]);
        let mut bytes = Vec::new();
        macro_rules! build {
            ($link:expr) => {
                match family {
                    Family::V4 => $link
                        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], ttl)
                        .udp(1000, 2000)
                        .write(&mut bytes, payload),
                    Family::V6 => $link
                        .ipv6([1; 16], [2; 16], ttl)
                        .udp(1000, 2000)
                        .write(&mut bytes, payload),
                }
            };
        }
        let vlan = |id: u16| etherparse::VlanId::try_new(id).unwrap();
        match tags {
            0 => build!(ethernet),
            1 => build!(ethernet.single_vlan(vlan(7))),
            _ => build!(ethernet.double_vlan(vlan(7), vlan(8))),
        }
        .unwrap();
        Buffer(bytes)
    }

    fn family() -> impl Strategy<Value = Family> {
        prop_oneof![Just(Family::V4), Just(Family::V6)]
    }

    /// Whether every checksum of a frame is right, by etherparse.
    fn is_consistent(bytes: &[u8]) -> bool {
        let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else {
            return false;
        };
        let header = udp.to_header();
        match &sliced.net {
            Some(etherparse::NetSlice::Ipv4(ip)) => {
                let ip = ip.header().to_header();
                let sum = header.calc_checksum_ipv4_raw(ip.source, ip.destination, udp.payload());
                ip.header_checksum == ip.calc_header_checksum() && sum == Ok(header.checksum)
            }
            Some(etherparse::NetSlice::Ipv6(ip)) => {
                let ip = ip.header().to_header();
                let sum = header.calc_checksum_ipv6_raw(ip.source, ip.destination, udp.payload());
                sum == Ok(header.checksum)
            }
            _ => false,
        }
    }

    #[test]
    fn a_frame_is_addressed_from_the_device_to_its_neighbour() {
        let mut buffer = frame(0, Family::V4, 64, &[]);

        macs(&mut buffer, &HOP).unwrap();

        assert_eq!(buffer.0[..12], HOP_MACS);
    }

    proptest! {
        #[test]
        fn a_decremented_ttl_leaves_every_checksum_right(
            tags in 0_usize..3, family in family(), ttl in 1_u8.., payload in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut buffer = frame(tags, family, ttl, &payload);
            let network = parse::network(&buffer).unwrap();

            decrement_ttl(&mut buffer, &network).unwrap();

            prop_assert!(is_consistent(&buffer.0));
            prop_assert_eq!(parse::network(&buffer).unwrap().ttl, ttl - 1);
        }

        #[test]
        fn a_changed_traffic_class_leaves_every_checksum_right(
            family in family(), class in any::<u8>(),
        ) {
            let mut buffer = frame(0, family, 64, &[]);
            let network = parse::network(&buffer).unwrap();

            traffic_class(&mut buffer, &network, class).unwrap();

            prop_assert!(is_consistent(&buffer.0));
            prop_assert_eq!(parse::network(&buffer).unwrap().traffic_class, class);
        }

        #[test]
        fn a_new_name_leaves_every_checksum_right(
            family in family(), is_source in any::<bool>(), addr in any::<[u8; 16]>(), port in any::<u16>(),
            payload in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut buffer = frame(0, family, 64, &payload);
            let before = parse::network(&buffer).unwrap();
            let transport = parse::transport(&buffer, &before).unwrap();
            let addr = match family {
                Family::V4 => Addr::from(core::net::Ipv4Addr::from_octets([addr[0], addr[1], addr[2], addr[3]])),
                Family::V6 => Addr::from(core::net::Ipv6Addr::from_octets(addr)),
            };
            let port = Port::new(port);
            let end = if is_source { End::Source } else { End::Destination };

            name(&mut buffer, &before, &transport, end, addr, port).unwrap();

            prop_assert!(is_consistent(&buffer.0));
            let after = parse::network(&buffer).unwrap();
            let ports = parse::transport(&buffer, &after).unwrap();
            let expected = match end {
                End::Source => ((addr, port), (before.dst, transport.dst_port)),
                End::Destination => ((before.src, transport.src_port), (addr, port)),
            };
            prop_assert_eq!(((after.src, ports.src_port), (after.dst, ports.dst_port)), expected);
        }

        #[test]
        fn a_packet_comes_out_of_the_tunnel_as_it_went_in(
            tags in 0_usize..3, inner in family(), outer in family(), hash in any::<u32>(),
            wrap in prop_oneof![Just(Wrap::Plain), Just(Wrap::Gue)],
            payload in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut buffer = frame(tags, inner, 64, &payload);
            let before = buffer.0.clone();
            let network = parse::network(&buffer).unwrap();
            let (src, dst) = match outer {
                Family::V4 => (Addr::from_v4_word(1), Addr::from_v4_word(2)),
                Family::V6 => (Addr::from_v6_halves([1, 2]), Addr::from_v6_halves([3, 4])),
            };

            let tunnel = Tunnel { family: outer, src, dst, hash, wrap };
            encapsulate(&mut buffer, &network, &tunnel, &HOP).unwrap();
            let header = parse::network(&buffer).unwrap();
            prop_assert_eq!((header.src, header.dst, header.family), (src, dst, outer));
            prop_assert_eq!(header.total as usize, buffer.0.len() - header.at);
            prop_assert_eq!(header.whole, Ok(()));
            prop_assert_eq!(header.proto, tunnel.proto(inner));
            decapsulate(&mut buffer, header.at, tunnel.bytes(), inner).unwrap();

            prop_assert_eq!(&buffer.0[..12], &HOP_MACS);
            prop_assert_eq!(&buffer.0[12..], &before[12..]);
        }
    }
}
