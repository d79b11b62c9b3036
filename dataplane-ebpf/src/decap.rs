//! The backend's end of a tunnel: takes the balancer's outer header off.
//!
//! # Why
//! What is accepted is decided by the packet inside: its destination must stand in `DECAP_ADDRS`, the service
//! addresses of this backend. Anybody may send such a packet to a backend, but it can only reach what the same
//! sender reaches through a balancer, so outer sources are not checked (balancers come and go, and any node may
//! balance). The outer destination must not be one that this host would forward to: a packet on its way to
//! another backend keeps its header.
//!
//! It needs no table but `DECAP_ADDRS` and `REASONS`, so that it can be loaded alone. Not for the answer: the
//! backend sends it straight to the client.

use fairlead_common::addr::Proto;
use fairlead_common::reason::Reason;

use crate::maps;
use crate::packet::{Frame, Resize, view};
use crate::parse::{self, Family, IPV4_BYTES, IPV6_BYTES, Network, Transport};
use crate::rewrite::{self, GUE_PORT, UDP_BYTES, Wrap};
use crate::route::{self, NoWay, Question};

/// Takes the outer header off a packet for a service address of this host.
///
/// # Errors
/// Why it is passed as it is, or dropped.
#[inline(always)]
pub fn unwrap(frame: &mut impl Resize) -> Result<(), Reason> {
    let outer = parse::network(frame)?;
    let inside = inside(frame, &outer)?;
    if !maps::is_decap_addr(&inside.packet.dst) {
        return Err(Reason::InnerForeign);
    }
    let in_transit = Question {
        src: outer.src,
        dst: outer.dst,
        l4_protocol: outer.proto.0,
        ports: (0, 0),
        traffic_class: outer.traffic_class,
        flow_info: outer.flow_info,
        total: 0,
    };
    match route::way(frame, &in_transit) {
        // Local, or this host does not forward at all.
        Err(NoWay::Local | NoWay::Refused) => {}
        Ok(_) | Err(NoWay::Unresolved | NoWay::TooBig(_)) => return Err(Reason::NotEncapsulated),
    }
    strip(frame, &outer, &inside)
}

/// Whether a packet carries another one, as far as its outer headers say.
#[inline(always)]
pub const fn is_wrapped(outer: &Network, transport: &Transport) -> bool {
    match outer.proto {
        Proto::IPIP | Proto::IPV6 => true,
        Proto::UDP => transport.dst_port.wire() == GUE_PORT,
        _ => false,
    }
}

/// A packet inside another one.
#[derive(Clone, Copy, Debug)]
pub struct Inside {
    /// How it is wrapped.
    pub wrap: Wrap,
    /// Its network header.
    pub packet: Network,
}

impl Inside {
    /// Bytes in front of it that the tunnel added.
    #[inline(always)]
    pub const fn outer_bytes(&self, outer: &Network) -> usize {
        outer.family.header_bytes() + self.wrap.bytes()
    }
}

/// The packet that `outer` wraps.
///
/// # Errors
/// [`Reason::NotEncapsulated`], or why either packet is not whole.
#[inline(always)]
pub fn inside(frame: &impl Frame, outer: &Network) -> Result<Inside, Reason> {
    let (wrap, family) = wrapping(frame, outer)?;
    outer.whole?;
    let outer_bytes = outer.family.header_bytes() + wrap.bytes();
    let packet = match family {
        Family::V4 => parse::ipv4(frame, outer.at + outer_bytes),
        Family::V6 => parse::ipv6(frame, outer.at + outer_bytes),
    }?;
    if packet.total + outer_bytes as u32 > outer.total {
        return Err(Reason::Malformed);
    }
    Ok(Inside { wrap, packet })
}

/// The traffic class that a packet has when it leaves a tunnel.
///
/// # Errors
/// [`Reason::CongestionLost`].
#[inline(always)]
pub fn leaving(inner: u8, outer: u8) -> Result<u8, Reason> {
    received_traffic_class(inner, outer).ok_or(Reason::CongestionLost)
}

/// Takes `outer` off.
///
/// # Errors
/// [`Reason::CongestionLost`], or [`Reason::HelperFailed`].
#[inline(always)]
pub fn strip(frame: &mut impl Resize, outer: &Network, inside: &Inside) -> Result<(), Reason> {
    let inner = &inside.packet;
    let traffic_class = leaving(inner.traffic_class, outer.traffic_class)?;
    if traffic_class != inner.traffic_class {
        rewrite::traffic_class(frame, inner, traffic_class)?;
    }
    rewrite::decapsulate(frame, outer.at, inside.outer_bytes(outer), inner.family)
}

/// How `outer` wraps a packet, and of which family that is.
///
/// GUE with a header (variant 0) is not ours, nor is one with a checksum, which could not be verified here: the
/// kernel has a receiver for both.
///
/// # Errors
/// [`Reason::NotEncapsulated`].
#[inline(always)]
fn wrapping(frame: &impl Frame, outer: &Network) -> Result<(Wrap, Family), Reason> {
    if outer.proto != Proto::UDP {
        return plainly(outer.proto);
    }
    // Each family has its own constant offset, which the verifier follows better than a sum.
    let udp = match outer.family {
        Family::V4 => view::<GUE_BYTES>(frame, outer.at + IPV4_BYTES),
        Family::V6 => view::<GUE_BYTES>(frame, outer.at + IPV6_BYTES),
    };
    let udp = udp.map_err(|_| Reason::NotEncapsulated)?;
    by_gue(udp.get::<u64, 0>(), udp.get::<u8, 8>())
}

/// Where the packet that `outer` wraps begins, and its family. As [`inside`] finds it, with less of a burden for the
/// verifier: for rare packets.
///
/// # Errors
/// As [`inside`].
#[inline(always)]
pub fn place(frame: &impl Frame, outer: &Network) -> Result<(Family, usize), Reason> {
    outer.whole?;
    let behind = outer.at + outer.family.header_bytes();
    let (wrap, family) = if outer.proto == Proto::UDP {
        let [udp, first] = frame.load(behind)?;
        by_gue(udp, first as u8)
    } else {
        plainly(outer.proto)
    }?;
    Ok((family, behind + wrap.bytes()))
}

#[inline(always)]
const fn plainly(proto: Proto) -> Result<(Wrap, Family), Reason> {
    match proto {
        Proto::IPIP => Ok((Wrap::Plain, Family::V4)),
        Proto::IPV6 => Ok((Wrap::Plain, Family::V6)),
        _ => Err(Reason::NotEncapsulated),
    }
}

/// By a UDP header, as it stands in memory, and the first byte behind it.
#[inline(always)]
const fn by_gue(udp: u64, first: u8) -> Result<(Wrap, Family), Reason> {
    let (port, checksum) = ((udp >> 16) as u16, (udp >> 48) as u16);
    match first >> 4 {
        4 if port == GUE_PORT && checksum == 0 => Ok((Wrap::Gue, Family::V4)),
        6 if port == GUE_PORT && checksum == 0 => Ok((Wrap::Gue, Family::V6)),
        _ => Err(Reason::NotEncapsulated),
    }
}

/// Bytes of a UDP header and the first one behind it.
const GUE_BYTES: usize = UDP_BYTES + 1;

/// The traffic class that a packet has when it leaves a tunnel: RFC 6040 §4.2, figure 4. `None`: it must be
/// dropped, for it was marked congested and cannot say so.
#[inline(always)]
const fn received_traffic_class(inner: u8, outer: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    let ecn = match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => return None,
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (inner, _) => inner,
    };
    Some(inner & !3 | ecn)
}

#[cfg(test)]
mod tests {
    use super::received_traffic_class;

    #[test]
    fn congestion_marks_leave_the_tunnel_as_rfc_6040_figure_4_says() {
        // Rows: inner Not-ECT, ECT(1), ECT(0), CE; columns: outer Not-ECT, ECT(1), ECT(0), CE.
        let figure = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in (0..).zip(figure) {
            for (outer, expected) in (0..).zip(row) {
                let dscp = 0xb8;
                assert_eq!(
                    received_traffic_class(dscp | inner, outer),
                    expected.map(|ecn| dscp | ecn),
                    "inner {inner}, outer {outer}"
                );
            }
        }
    }
}
