//! Turns a packet into an answer to whoever sent it, out by the device and to the neighbour it came from.

use fairlead_common::addr::{Addr, Proto};
use fairlead_common::checksum::{self, Delta};
use fairlead_common::reason::Reason;

use super::{OWN_TTL, ipv4_words, set_ether_type, set_vlan_tags, vlan_tags};
use crate::packet::{Frame, Outer, Resize, Shorten, sum, view, view_mut};
use crate::parse::{ETHERNET_BYTES, Family, IPV4_BYTES, IPV6_BYTES, Network};

/// Bytes of an ICMP error before the packet that it quotes.
const ICMP_BYTES: usize = 8;
/// An ICMP error is a packet of at most this many bytes (RFC 1812 §4.3.2.3).
const LARGEST_V4: u32 = 576;
/// The least MTU of IPv6, which an ICMPv6 error must not exceed (RFC 4443 §2.4(c)).
const LARGEST_V6: u32 = 1280;
/// DSCP CS6: "internetwork control", for ICMP errors of IPv4 (RFC 1812 §4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// An ICMP error.
#[derive(Clone, Copy, Debug)]
pub struct IcmpError {
    /// Whom it comes from.
    pub src: Addr,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The four bytes behind the checksum, as they stand in the packet.
    pub rest: u32,
}

/// The first twelve bytes of a frame that goes back to the neighbour it came from.
#[inline(always)]
fn turned(frame: &impl Frame) -> Result<(u64, u32), Reason> {
    let ethernet = view::<ETHERNET_BYTES>(frame, 0)?;
    let (first, second) = (ethernet.get::<u64, 0>(), ethernet.get::<u32, 8>());
    let (destination, source) = (
        first & 0xffff_ffff_ffff,
        first >> 48 | u64::from(second) << 16,
    );
    Ok((source | destination << 48, (destination >> 16) as u32))
}

#[inline(always)]
fn set_addresses(frame: &mut impl Frame, words: (u64, u32)) -> Result<(), Reason> {
    let mut ethernet = view_mut::<ETHERNET_BYTES>(frame, 0)?;
    ethernet.set::<u64, 0>(words.0);
    ethernet.set::<u32, 8>(words.1);
    Ok(())
}

/// Makes a packet the ICMP error about it, to its sender, quoting as much of it as such errors may. VLAN tags
/// stay.
///
/// # Errors
/// [`Reason::HelperFailed`] when the kernel refuses to grow or shorten the frame.
#[inline(always)]
pub fn icmp_error(
    frame: &mut (impl Resize + Shorten),
    network: &Network,
    error: &IcmpError,
) -> Result<(), Reason> {
    let header_bytes = network.family.header_bytes();
    let largest = match network.family {
        Family::V4 => LARGEST_V4,
        Family::V6 => LARGEST_V6,
    };
    let headers = (header_bytes + ICMP_BYTES) as u32;
    let quoted = network.total.min(largest - headers);
    let addresses = turned(frame)?;
    let tags = vlan_tags(frame, network.at)?;
    frame.shorten(network.at as u32 + quoted)?;
    match network.family {
        // An ICMP header is as long as a UDP header.
        Family::V4 => frame.push(Outer::V4Udp)?,
        Family::V6 => frame.push(Outer::V6Udp)?,
    }
    set_addresses(frame, addresses)?;
    set_vlan_tags(frame, network.at, tags)?;
    set_ether_type(frame, network.at, network.family)?;
    let icmp_bytes = ICMP_BYTES as u32 + quoted;
    let pseudo_header = match network.family {
        Family::V4 => {
            let total = (IPV4_BYTES as u32 + icmp_bytes) as u16;
            let words = ipv4_words(
                error.src,
                network.src,
                Proto::ICMP,
                INTERNETWORK_CONTROL,
                total,
            );
            let mut header = view_mut::<IPV4_BYTES>(frame, network.at)?;
            header.set::<u32, 0>(words[0]);
            header.set::<u32, 4>(words[1]);
            header.set::<u32, 8>(words[2]);
            header.set::<u32, 12>(words[3]);
            header.set::<u32, 16>(words[4]);
            0
        }
        Family::V6 => {
            let mut header = view_mut::<IPV6_BYTES>(frame, network.at)?;
            header.set::<u32, 0>((6_u32 << 28).to_be());
            header.set::<u16, 4>((icmp_bytes as u16).to_be());
            header.set::<u8, 6>(Proto::ICMPV6.0);
            header.set::<u8, 7>(OWN_TTL);
            header.set_v6::<8>(error.src);
            header.set_v6::<24>(network.src);
            let halves = |addr: Addr| {
                let [a, b] = addr.halves();
                (a & 0xffff_ffff) + (a >> 32) + (b & 0xffff_ffff) + (b >> 32)
            };
            // RFC 8200 §8.1: addresses, length, next header.
            halves(error.src)
                + halves(network.src)
                + u64::from(icmp_bytes.to_be())
                + u64::from(u32::from(Proto::ICMPV6.0).to_be())
        }
    };
    let at = network.at + header_bytes;
    let mut icmp = view_mut::<ICMP_BYTES>(frame, at)?;
    icmp.set::<u32, 0>(u32::from_ne_bytes([error.kind, error.code, 0, 0]));
    icmp.set::<u32, 4>(error.rest);
    let sum = pseudo_header + sum(frame, at, icmp_bytes as usize)?;
    view_mut::<ICMP_BYTES>(frame, at)?.set::<u16, 2>(!checksum::fold(sum));
    Ok(())
}

/// Makes a plain echo request its reply (RFC 792, RFC 4443 §4.2): addresses change places, which no checksum
/// notices, and the type changes.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
pub fn echo_reply(frame: &mut impl Frame, network: &Network) -> Result<(), Reason> {
    let addresses = turned(frame)?;
    set_addresses(frame, addresses)?;
    let transport_at = network.at + network.family.header_bytes();
    let kind = match network.family {
        Family::V4 => {
            let mut header = view_mut::<IPV4_BYTES>(frame, network.at)?;
            header.set::<u32, 12>(network.dst.v4_word());
            header.set::<u32, 16>(network.src.v4_word());
            let old = header.get::<u16, 8>();
            let new = old & 0xff00 | u16::from(OWN_TTL);
            let sum = Delta::NONE.half(old, new).apply(header.get::<u16, 10>());
            header.set::<u16, 8>(new);
            header.set::<u16, 10>(sum);
            0
        }
        Family::V6 => {
            let mut header = view_mut::<IPV6_BYTES>(frame, network.at)?;
            header.set_v6::<8>(network.dst);
            header.set_v6::<24>(network.src);
            header.set::<u8, 7>(OWN_TTL);
            129
        }
    };
    let mut icmp = view_mut::<8>(frame, transport_at)?;
    let old = icmp.get::<u16, 0>();
    let new = old & 0xff00 | kind;
    let sum = Delta::NONE.half(old, new).apply(icmp.get::<u16, 2>());
    icmp.set::<u16, 0>(new);
    icmp.set::<u16, 2>(sum);
    Ok(())
}
