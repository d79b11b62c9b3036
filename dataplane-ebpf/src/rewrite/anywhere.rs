//! Changes headers that stand where the verifier does not follow: those of rare packets.

use fairlead_common::addr::{Addr, Port, Proto};
use fairlead_common::checksum::Delta;
use fairlead_common::reason::Reason;

use super::{End, address, renaming, set_ether_type};
use crate::packet::{Frame, Resize, half, readdress, view, view_mut};
use crate::parse::chain::Quoted;
use crate::parse::{ETHERNET_BYTES, Family, Network, Transport};

/// As [`super::name`], for a part of a packet: one without a transport header (`has_ports` is false) has an
/// address only.
///
/// # Errors
/// As [`super::name`].
#[inline(always)]
pub fn name_anywhere(
    frame: &mut impl Frame,
    network: &Network,
    (transport, has_ports): (&Transport, bool),
    end: End,
    addr: Addr,
    port: Port,
) -> Result<(), Reason> {
    if has_ports {
        return frame.rename_anywhere(&renaming(network, transport, end, addr, port));
    }
    let address = address(network, end);
    readdress(frame, address.v4_header, address.at, (address.held, addr)).map(|_| ())
}

/// Gives one end of the packet that an ICMP error at `icmp_at` quotes another address and port, and the end of
/// the error itself that stands for the same host the same address. All checksums stay right, or wrong.
///
/// # Errors
/// As [`super::name`].
#[inline(always)]
pub fn quoted(
    frame: &mut impl Frame,
    network: &Network,
    icmp_at: usize,
    quoted: &Quoted,
    end: End,
    addr: Addr,
    port: Port,
) -> Result<(), Reason> {
    let outer = address(network, end);
    let pseudo_header = readdress(frame, outer.v4_header, outer.at, (outer.held, addr))?;
    // The error goes to whoever sent the packet that it quotes, so ends have changed places.
    let flow = &quoted.flow;
    let (end, old_port, port_at) = match end {
        End::Source => (End::Destination, flow.dst_port, quoted.transport_at + 2),
        End::Destination => (End::Source, flow.src_port, quoted.transport_at),
    };
    let packet = Network {
        at: quoted.at,
        src: flow.src,
        dst: flow.dst,
        proto: flow.proto,
        ..*network
    };
    let inner = address(&packet, end);
    let mut change = match network.family {
        Family::V4 => Delta::NONE,
        Family::V6 => pseudo_header,
    };
    let header_sum = |frame: &_| match inner.v4_header {
        Some(header) => half(frame, header + 10).map_err(|_| Reason::HelperFailed),
        None => Ok(0),
    };
    let before = header_sum(&*frame)?;
    let moved = readdress(frame, inner.v4_header, inner.at, (inner.held, addr))?;
    let after = header_sum(&*frame)?;
    change = change
        .and(moved)
        .half(before, after)
        .half(old_port.wire(), port.wire());
    frame.store(port_at, port.wire())?;
    let (sum_at, is_udp) = match flow.proto {
        Proto::UDP => (quoted.transport_at + 6, true),
        _ => (quoted.transport_at + 16, false),
    };
    // Eight bytes of the transport header are quoted at least: with UDP's checksum, without TCP's.
    if sum_at + 2 <= quoted.end {
        let moved = moved.half(old_port.wire(), port.wire());
        let before = half(frame, sum_at).map_err(|_| Reason::HelperFailed)?;
        let after = if is_udp {
            moved.apply_udp(before)
        } else {
            moved.apply(before)
        };
        frame.store(sum_at, after)?;
        change = change.half(before, after);
    }
    let sum = half(frame, icmp_at + 2).map_err(|_| Reason::HelperFailed)?;
    frame.store(icmp_at + 2, change.apply(sum))
}

/// As [`super::decrement_ttl`].
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
pub fn decrement_ttl_anywhere(frame: &mut impl Frame, network: &Network) -> Result<(), Reason> {
    match network.family {
        Family::V4 => change_half(frame, network.at, 8, |old| old - 1),
        Family::V6 => frame.store(network.at + 7, network.ttl - 1),
    }
}

/// Sets DSCP and ECN.
///
/// # Errors
/// [`Reason::HelperFailed`] when the frame is too short.
#[inline(always)]
pub fn traffic_class(frame: &mut impl Frame, network: &Network, new: u8) -> Result<(), Reason> {
    match network.family {
        Family::V4 => change_half(frame, network.at, 0, |old| {
            old & 0x00ff | u16::from(new) << 8
        }),
        Family::V6 => {
            let [first] = frame.load(network.at).map_err(|_| Reason::HelperFailed)?;
            let word = u32::from_be(first as u32) & 0xf00f_ffff | u32::from(new) << 20;
            frame.store(network.at, word.to_be())
        }
    }
}

/// Changes two bytes of an IPv4 header, and its checksum.
#[inline(always)]
fn change_half(
    frame: &mut impl Frame,
    header: usize,
    at: usize,
    change: impl FnOnce(u16) -> u16,
) -> Result<(), Reason> {
    let failed = |_| Reason::HelperFailed;
    let old = half(frame, header + at).map_err(failed)?;
    let sum = half(frame, header + 10).map_err(failed)?;
    let new = change(old);
    frame.store(header + at, new)?;
    frame.store(header + 10, Delta::NONE.half(old, new).apply(sum))
}

/// Leaves nothing between the MAC addresses and the packet, neither tags nor a tunnel.
///
/// # Errors
/// [`Reason::HelperFailed`] when the kernel refuses.
#[inline(always)]
pub fn lay_bare(frame: &mut impl Resize, network: &Network) -> Result<(), Reason> {
    let cut = network.at - ETHERNET_BYTES;
    if cut == 0 {
        return Ok(());
    }
    let ethernet = view::<ETHERNET_BYTES>(frame, 0)?;
    let (first, second) = (ethernet.get::<u64, 0>(), ethernet.get::<u32, 8>());
    frame.pull(cut as u32)?;
    let mut ethernet = view_mut::<ETHERNET_BYTES>(frame, 0)?;
    ethernet.set::<u64, 0>(first);
    ethernet.set::<u32, 8>(second);
    set_ether_type(frame, ETHERNET_BYTES, network.family)
}
