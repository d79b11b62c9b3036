//! The chain of headers between the network header and the transport: IPv4 options, IPv6 extension headers,
//! fragments; and the packet that an ICMP error quotes.
//!
//! For rare packets: it reads by [`Frame::load`], at places that the verifier need not follow. Not for plain
//! packets, whose transport header follows at once: that is [`super::transport`].

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::flow::FlowKey;
use fairlead_common::reason::Reason;

use super::{Family, IPV4_BYTES, IPV6_BYTES, Kind, Network, Transport};
use crate::packet::Frame;

/// How many extension headers are followed. RFC 8504 §5.3 lets a node set such a limit, of 8 by default.
const HEADERS: usize = 8;
/// Next headers that are followed (IANA "IPv6 Extension Header Types").
mod next {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Which part of a packet a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its beginning, of the packet with this identification.
    First(u32),
    /// What follows: there are no ports.
    Later(u32),
}

/// A packet behind its chain.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    /// The protocol of the transport header.
    pub proto: Proto,
    /// Where the transport header begins, or would.
    pub at: usize,
    /// Where the packet ends.
    pub end: usize,
    /// Which part of the packet this is.
    pub part: Part,
}

impl Chain {
    /// Whether this part has the ports and the checksum of the packet.
    #[inline(always)]
    pub const fn has_ports(&self) -> bool {
        !matches!(self.part, Part::Later(_))
    }
}

/// Follows the chain of a packet.
///
/// # Errors
/// [`Reason::Malformed`] when lengths contradict each other, [`Reason::ServiceHeaders`] when the chain is too
/// long or leads elsewhere first (a routing header with segments left).
#[inline(always)]
pub fn follow(frame: &impl Frame, network: &Network) -> Result<Chain, Reason> {
    let end = network.at + network.total as usize;
    if end > frame.bytes() {
        return Err(Reason::Malformed);
    }
    match network.family {
        Family::V4 => v4(frame, network.at, end),
        Family::V6 => v6(frame, network.at + IPV6_BYTES, network.proto, end),
    }
}

#[inline(always)]
fn v4(frame: &impl Frame, network_at: usize, end: usize) -> Result<Chain, Reason> {
    let [first, second] = frame.load(network_at)?;
    let header_bytes = usize::from(first as u8 & 0x0f) * 4;
    let at = network_at + header_bytes;
    if header_bytes < IPV4_BYTES || at > end {
        return Err(Reason::Malformed);
    }
    let id = (first >> 32) as u16;
    let fragment = u16::from_be((first >> 48) as u16);
    Ok(Chain {
        proto: Proto((second >> 8) as u8),
        at,
        end,
        part: part(fragment & 0x1fff, fragment & 0x2000 != 0, id.into()),
    })
}

/// The part at this offset.
#[inline(always)]
const fn part(offset: u16, more: bool, id: u32) -> Part {
    match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First(id),
        (_, _) => Part::Later(id),
    }
}

#[inline(always)]
fn v6(frame: &impl Frame, at: usize, proto: Proto, end: usize) -> Result<Chain, Reason> {
    let mut chain = Chain {
        proto,
        at,
        end,
        part: Part::Whole,
    };
    for _ in 0..HEADERS {
        let kind = chain.proto.0;
        if !matches!(
            kind,
            next::HOP_BY_HOP
                | next::ROUTING
                | next::FRAGMENT
                | next::AUTHENTICATION
                | next::DESTINATION_OPTIONS
        ) {
            return Ok(chain);
        }
        let [header] = frame.load(chain.at)?;
        let units = usize::from((header >> 8) as u8);
        let bytes = match kind {
            next::FRAGMENT => 8,
            next::AUTHENTICATION => units * 4 + 8,
            _ => units * 8 + 8,
        };
        if kind == next::ROUTING && (header >> 24) as u8 != 0 {
            return Err(Reason::ServiceHeaders);
        }
        chain.proto = Proto(header as u8);
        chain.at += bytes;
        if chain.at > end {
            return Err(Reason::Malformed);
        }
        if kind == next::FRAGMENT {
            let fragment = u16::from_be((header >> 16) as u16);
            chain.part = part(fragment >> 3, fragment & 1 != 0, (header >> 32) as u32);
            if let Part::Later(_) = chain.part {
                return Ok(chain);
            }
        }
    }
    Err(Reason::ServiceHeaders)
}

/// Reads the transport header behind a chain, of a part that has one. Nothing is read for protocols without
/// ports.
///
/// # Errors
/// [`Reason::ServiceHeaders`] when the header is not all in this part (RFC 1858: a tiny fragment).
#[inline(always)]
pub fn transport(frame: &impl Frame, chain: &Chain) -> Result<Transport, Reason> {
    let mut transport = Transport {
        at: chain.at,
        kind: Kind::Other,
        src_port: Port::default(),
        dst_port: Port::default(),
        tcp_flags: 0,
    };
    let bytes = match chain.proto {
        Proto::TCP => 20,
        Proto::UDP => 8,
        _ => return Ok(transport),
    };
    if chain.at + bytes > chain.end {
        return Err(Reason::ServiceHeaders);
    }
    let [first] = frame.load(chain.at)?;
    transport.kind = Kind::Ports;
    transport.src_port = Port::from_wire(first as u16);
    transport.dst_port = Port::from_wire((first >> 16) as u16);
    if chain.proto == Proto::TCP {
        let [second] = frame.load(chain.at + 8)?;
        transport.tcp_flags = (second >> 40) as u8;
    }
    Ok(transport)
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Where its network header begins, of the error's own family.
    pub at: usize,
    /// Where its transport header begins.
    pub transport_at: usize,
    /// Where what is quoted ends.
    pub end: usize,
    /// Its flow.
    pub flow: FlowKey,
}

/// Reads the packet that an ICMP error quotes from `at` to `end`: of TCP or UDP, and at least the eight bytes
/// after its headers that RFC 792 asks for.
///
/// # Errors
/// [`Reason::ServiceIcmpUnreadable`].
#[inline(always)]
pub fn quoted(frame: &impl Frame, family: Family, at: usize, end: usize) -> Result<Quoted, Reason> {
    read_quoted(frame, family, at, end).map_err(|_| Reason::ServiceIcmpUnreadable)
}

#[inline(always)]
fn read_quoted(
    frame: &impl Frame,
    family: Family,
    at: usize,
    end: usize,
) -> Result<Quoted, Reason> {
    let packet = network(frame, family, at)?;
    let chain = match family {
        Family::V4 => v4(frame, at, end),
        Family::V6 => v6(frame, at + IPV6_BYTES, packet.proto, end),
    }?;
    if !matches!(chain.proto, Proto::TCP | Proto::UDP)
        || matches!(chain.part, Part::Later(_))
        || chain.at + 8 > end
    {
        return Err(Reason::ServiceIcmpUnreadable);
    }
    let [ports] = frame.load(chain.at)?;
    let (from, to) = (ports as u16, (ports >> 16) as u16);
    let (from, to) = (Port::from_wire(from), Port::from_wire(to));
    Ok(Quoted {
        at,
        transport_at: chain.at,
        end,
        flow: FlowKey::new(packet.src, from, packet.dst, to, chain.proto),
    })
}

/// Reads the network header of a packet that may stand anywhere in the frame.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short or of another version.
#[inline(always)]
pub fn network(frame: &impl Frame, family: Family, at: usize) -> Result<Network, Reason> {
    match family {
        Family::V4 => {
            let [first, second, third] = frame.load(at)?;
            if first as u8 >> 4 != 4 {
                return Err(Reason::Malformed);
            }
            Ok(Network {
                at,
                family,
                src: Addr::from_v4_word((second >> 32) as u32),
                dst: Addr::from_v4_word(third as u32),
                proto: Proto((second >> 8) as u8),
                ttl: second as u8,
                traffic_class: (first >> 8) as u8,
                flow_info: 0,
                total: u32::from(u16::from_be((first >> 16) as u16)),
                whole: Ok(()),
            })
        }
        Family::V6 => {
            let [first, a, b, c, d] = frame.load(at)?;
            let word = u32::from_be(first as u32);
            if word >> 28 != 6 {
                return Err(Reason::Malformed);
            }
            Ok(Network {
                at,
                family,
                src: Addr::from_v6_halves([a, b]),
                dst: Addr::from_v6_halves([c, d]),
                proto: Proto((first >> 48) as u8),
                ttl: (first >> 56) as u8,
                traffic_class: (word >> 20) as u8,
                flow_info: (word & 0x0fff_ffff).to_be(),
                total: u32::from(u16::from_be((first >> 32) as u16)) + IPV6_BYTES as u32,
                whole: Ok(()),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use etherparse::{LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::buffer::Buffer;
    use crate::parse;

    /// An IPv6 packet with these extension headers (kind, units of 8 bytes less one) before UDP; or IPv4 with
    /// this many words of options. Often one byte is wrong.
    fn odd() -> impl Strategy<Value = Vec<u8>> {
        let kinds = prop_oneof![Just(0_u8), Just(43), Just(44), Just(60)];
        let headers = proptest::collection::vec((kinds, 0_u8..3), 0..10);
        let spoil = proptest::option::weighted(0.3, (12_usize..80, any::<u8>()));
        (
            any::<bool>(),
            headers,
            0_usize..11,
            any::<[u8; 24]>(),
            spoil,
        )
            .prop_map(|(is_v4, headers, options, bytes, spoil)| {
                let mut frame = std::vec![2; 12];
                let udp = [&[0x9c, 0x40, 0, 80, 0, 32, 0, 0][..], &bytes].concat();
                if is_v4 {
                    frame.extend([8, 0, 0x45 + options as u8, 0]);
                    frame.extend((20 + 4 * options as u16 + 32).to_be_bytes());
                    frame.extend([0, 7, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
                    frame.extend(std::vec![1; 4 * options]);
                } else {
                    let mut chain = Vec::new();
                    for (place, &(kind, units)) in headers.iter().enumerate() {
                        let units = if kind == 44 { 0 } else { units };
                        let next = headers.get(place + 1).map_or(17, |(kind, _)| *kind);
                        let mut header = std::vec![0; 8 + 8 * usize::from(units)];
                        (header[0], header[1]) = (next, units);
                        chain.extend(header);
                    }
                    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                    frame.extend((chain.len() as u16 + 32).to_be_bytes());
                    frame.extend([headers.first().map_or(17, |(kind, _)| *kind), 64]);
                    frame.extend([[0x20; 16], [0x21; 16]].concat());
                    frame.extend(chain);
                }
                frame.extend(udp);
                if let Some((at, byte)) = spoil
                    && at < frame.len()
                {
                    frame[at] = byte;
                }
                frame
            })
    }

    proptest! {
        /// What we balance by its ports, etherparse takes for the same flow.
        #[test]
        fn etherparse_finds_the_same_ports_behind_every_chain_that_we_follow(frame in odd()) {
            let buffer = Buffer(frame);
            let Ok(network) = parse::network(&buffer) else { return Ok(()) };
            let Ok(chain) = follow(&buffer, &network) else { return Ok(()) };
            prop_assume!(chain.part == Part::Whole);
            let Ok(transport) = transport(&buffer, &chain) else { return Ok(()) };
            prop_assume!(transport.kind == Kind::Ports);

            let sliced = LaxSlicedPacket::from_ethernet(&buffer.0).unwrap();
            prop_assume!(sliced.stop_err.is_none());

            let number = match &sliced.net {
                Some(LaxNetSlice::Ipv4(ip)) => ip.payload().ip_number,
                Some(LaxNetSlice::Ipv6(ip)) => ip.payload().ip_number,
                other => return Err(TestCaseError::fail(std::format!("{other:?}"))),
            };
            prop_assert_eq!(number.0, chain.proto.0);
            let ports = match &sliced.transport {
                Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
                Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
                other => return Err(TestCaseError::fail(std::format!("{other:?}"))),
            };
            prop_assert_eq!((transport.src_port.number(), transport.dst_port.number()), ports);
        }

        #[test]
        fn no_bytes_lead_beyond_the_packet(
            frame in proptest::collection::vec(any::<u8>(), 14..200), kind in prop_oneof![Just([8, 0]), Just([0x86, 0xdd])],
        ) {
            let mut frame = frame;
            frame[12..14].copy_from_slice(&kind);
            if let Some(version) = frame.get_mut(14) {
                *version = if kind == [8, 0] { 0x40 | *version & 15 } else { 0x60 | *version & 15 };
            }
            let buffer = Buffer(frame);
            let Ok(network) = parse::network(&buffer) else { return Ok(()) };

            if let Ok(chain) = follow(&buffer, &network) {
                prop_assert!(chain.at <= chain.end && chain.end <= buffer.0.len());
                let _ = transport(&buffer, &chain);
            }
            let _ = quoted(&buffer, network.family, 14, buffer.0.len());
        }

        #[test]
        fn the_flow_of_a_quoted_packet_is_read_from_eight_bytes_behind_its_headers(
            src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), ports in any::<(u16, u16)>(), kept in 0_usize..9,
        ) {
            let mut bytes = Vec::new();
            let packet = PacketBuilder::ipv4(src, dst, 1).udp(ports.0, ports.1);
            packet.write(&mut bytes, &[7; 20]).unwrap();
            bytes.truncate(20 + kept);
            let end = bytes.len();

            let flow = quoted(&Buffer(bytes), Family::V4, 0, end).map(|quoted| quoted.flow);

            let expected = FlowKey::new(
                Addr::from_v4_word(u32::from_ne_bytes(src)),
                Port::new(ports.0),
                Addr::from_v4_word(u32::from_ne_bytes(dst)),
                Port::new(ports.1),
                Proto::UDP,
            );
            prop_assert_eq!(flow, if kept == 8 { Ok(expected) } else { Err(Reason::ServiceIcmpUnreadable) });
        }
    }
}
