//! Turns a packet into an answer to whoever sent it, out by the device and to the neighbour it came from.

use fairlead_common::checksum::Delta;
use fairlead_common::reason::Reason;

use super::OWN_TTL;
use crate::packet::{Frame, view_mut};
use crate::parse::{ETHERNET_BYTES, Family, IPV4_BYTES, IPV6_BYTES, Network};

/// Sends a frame back to the neighbour it came from.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
fn turn(frame: &mut impl Frame) -> Result<(), Reason> {
    let mut ethernet = view_mut::<ETHERNET_BYTES>(frame, 0)?;
    let (first, second) = (ethernet.get::<u64, 0>(), ethernet.get::<u32, 8>());
    let (destination, source) = (
        first & 0xffff_ffff_ffff,
        first >> 48 | u64::from(second) << 16,
    );
    ethernet.set::<u64, 0>(source | destination << 48);
    ethernet.set::<u32, 8>((destination >> 16) as u32);
    Ok(())
}

/// Makes a plain echo request its reply (RFC 792, RFC 4443 §4.2): addresses change places, which no checksum
/// notices, and the type changes.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
pub fn echo_reply(frame: &mut impl Frame, network: &Network) -> Result<(), Reason> {
    turn(frame)?;
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
