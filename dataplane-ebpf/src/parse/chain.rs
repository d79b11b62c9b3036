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

/// Follows the chain of a packet.
///
/// # Errors
/// [`Reason::Malformed`] when lengths contradict each other, [`Reason::ServiceHeaders`] when the chain is too
/// long or leads elsewhere first (a routing header with segments left).
#[inline(always)]
pub fn follow(frame: &impl Frame, network: &Network) -> Result<Chain, Reason> {
    let end = network.at + network.total as usize;
    if end > frame.bytes() as usize {
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

/// Reads the flow of the packet that an ICMP error quotes from `at` to `end`: of TCP or UDP, and at least the
/// eight bytes after its headers that RFC 792 asks for.
///
/// # Errors
/// [`Reason::ServiceIcmpUnreadable`].
#[inline(always)]
pub fn quoted(
    frame: &impl Frame,
    family: Family,
    at: usize,
    end: usize,
) -> Result<FlowKey, Reason> {
    read_quoted(frame, family, at, end).map_err(|_| Reason::ServiceIcmpUnreadable)
}

#[inline(always)]
fn read_quoted(
    frame: &impl Frame,
    family: Family,
    at: usize,
    end: usize,
) -> Result<FlowKey, Reason> {
    let unreadable = Reason::ServiceIcmpUnreadable;
    let (src, dst, chain) = match family {
        Family::V4 => {
            let [first, second, third] = frame.load(at)?;
            if first as u8 >> 4 != 4 {
                return Err(unreadable);
            }
            (
                Addr::from_v4_word((second >> 32) as u32),
                Addr::from_v4_word(third as u32),
                v4(frame, at, end)?,
            )
        }
        Family::V6 => {
            let [first, a, b, c, d] = frame.load(at)?;
            if first as u8 >> 4 != 6 {
                return Err(unreadable);
            }
            let proto = Proto((first >> 48) as u8);
            (
                Addr::from_v6_halves([a, b]),
                Addr::from_v6_halves([c, d]),
                v6(frame, at + IPV6_BYTES, proto, end)?,
            )
        }
    };
    if !matches!(chain.proto, Proto::TCP | Proto::UDP)
        || matches!(chain.part, Part::Later(_))
        || chain.at + 8 > end
    {
        return Err(unreadable);
    }
    let [ports] = frame.load(chain.at)?;
    Ok(FlowKey::new(
        src,
        Port::from_wire(ports as u16),
        dst,
        Port::from_wire((ports >> 16) as u16),
        chain.proto,
    ))
}
